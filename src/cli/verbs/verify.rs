//! `holesync verify`: a file or device held against a map. Exit codes are those of `diff`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use holesync::error::Result;

use crate::cli::verbs::draw::DrawArgs;
use crate::cli::verbs::look::LookArgs;
use crate::cli::verbs::{DiffArgs, output};

/// `holesync verify IMG --map FILE`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The image: a file or block device, or host:path
    image: OsString,
    /// The map that it is to have, as `holesync map IMG -o FILE.map` wrote it
    #[arg(long, value_name = "FILE.map")]
    map: PathBuf,
    /// Print nothing, and end at the first difference: the exit code tells
    #[arg(short, long, conflicts_with_all = ["svg", "chart", "json"])]
    quiet: bool,
    /// One JSON object a line, the summary last
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    look: LookArgs,
}

impl VerifyArgs {
    /// Prints the ranges that differ. Returns whether there are any, as an exit code.
    ///
    /// # Errors
    ///
    /// When the image or the map cannot be read.
    pub fn run(self, umask: u32) -> Result<ExitCode> {
        let VerifyArgs { image, map, quiet, json, draw, look } = self;
        let diff = DiffArgs { a: map.clone().into(), b: image, quiet, json, draw, look };
        diff.run_if(umask, || output::check_map(&map))
    }
}
