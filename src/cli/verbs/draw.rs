//! Where pictures of images go: to the terminal, as it can show them, and into a file.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use holesync::error::{Error, Result};
use holesync::location::Location;
use holesync::report::picture::{Picture, Style};

use crate::cli::verbs::{output, print_line};

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
    /// Fails early where the file could not be written, or is one of the images.
    ///
    /// # Errors
    ///
    /// Those of [`output::check`].
    pub fn check(&self, images: &[&Location]) -> Result<()> {
        self.svg.as_deref().map_or(Ok(()), |path| output::check(path, images))
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
        let Some(path) = &self.svg else { return Ok(()) };
        output::put(path, |mut file| {
            file.write_all(picture.svg().as_bytes()).map_err(Error::file("write", path))
        })
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
