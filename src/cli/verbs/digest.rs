//! `holesync digest`: root hashes of files and devices.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use holesync::error::{Result, printable};
use holesync::location::Location;
use holesync::report::{Silent, hex};
use holesync::sync;
use holesync::sync::survey::Looking;

use crate::cli::verbs::look::LookArgs;
use crate::cli::verbs::{each, print_line};

/// `holesync digest FILE...`.
#[derive(Debug, Args)]
pub struct DigestArgs {
    /// The files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<OsString>,
    #[command(flatten)]
    look: LookArgs,
}

impl DigestArgs {
    /// Prints a line for each file.
    ///
    /// # Errors
    ///
    /// When one cannot be read; the others are printed.
    pub fn run(self, umask: u32) -> Result<()> {
        let (options, remote) = self.look.options(umask)?;
        let looking = Looking { options: &options, remote: &remote, reporter: &Silent };
        let files = self.files.iter().map(|file| Ok((file, Location::parse(file)?)));
        let files = files.collect::<Result<Vec<_>>>()?;
        each(&files, |(file, location)| {
            let root = sync::digest(location, looking)?;
            print_line(&format!("{}  {}", hex(&root), printable(Path::new(file))))
        })
    }
}
