//! Where pictures of images go: to the terminal, as it can show them, and into a file.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use holesync::error::{Error, Result};
use holesync::report::picture::{Picture, Style};
use nix::unistd::{AccessFlags, access};

use crate::cli::verbs::print_line;

/// Whether there is a picture.
#[derive(Debug, Args)]
pub struct DrawArgs {
    /// Draw a picture into FILE
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Show a strip chart, also where stdout is no terminal
    #[arg(long)]
    chart: bool,
}

/// The width where nobody tells one.
const WIDTH: usize = 80;

impl DrawArgs {
    /// Fails early where the file could not be written.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn check(&self) -> Result<()> {
        let Some(path) = &self.svg else { return Ok(()) };
        access(directory_of(path), AccessFlags::W_OK)
            .map_err(|errno| Error::file("write into the directory of", path)(errno.into()))
    }

    /// Draws what is asked for; `as_text`: stdout is for people.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn draw(&self, picture: &Picture, as_text: bool) -> Result<()> {
        if as_text && (self.chart || std::io::stdout().is_terminal()) {
            print_line("")?;
            picture.lines(style()).iter().try_for_each(|line| print_line(line))?;
        }
        self.svg.as_ref().map_or(Ok(()), |path| put(path, picture.svg().as_bytes()))
    }
}

/// How stdout shows a picture: see <https://no-color.org> and locale(7).
fn style() -> Style {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_terminal = std::io::stdout().is_terminal();
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let unicode = ["utf-8", "utf8"].iter().any(|name| locale.to_ascii_lowercase().ends_with(name));
    let is_dumb = set("TERM").is_none_or(|term| term == "dumb");
    let columns = if is_terminal { terminal_size::terminal_size() } else { None };
    let width = columns.map_or(WIDTH, |(width, _)| usize::from(width.0));
    Style { width, colours: is_terminal && !is_dumb && set("NO_COLOR").is_none(), unicode }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Puts a file in the place of what is there, all of it at once. What is no file, as
/// `/dev/stdout`, is written to.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = Error::file("write", path);
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(bytes))
            .map_err(write);
    }
    let Some(name) = path.file_name() else { return Err(Error::refused(path, "names no file")) };
    let (mut file, temporary) = temporary_beside(&directory_of(path).join(name)).map_err(write)?;
    let put =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    put.map_err(|error| {
        // What failed is told; this file is of no use.
        let _ = fs::remove_file(&temporary);
        Error::file("write", path)(error)
    })
}

/// A new file with a hidden name.
fn temporary_beside(path: &Path) -> std::io::Result<(File, PathBuf)> {
    const TRIES: u32 = 100;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut tries = 0;
    loop {
        let shortened = &name[..name.floor_char_boundary(200)];
        let temporary = path.with_file_name(format!(".{shortened}.holesync-{}-{tries}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < TRIES => tries += 1,
            opened => return opened.map(|file| (file, temporary)),
        }
    }
}
