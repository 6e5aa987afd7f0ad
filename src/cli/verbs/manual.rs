//! `holesync manual DIR`: the manual, and completions for shells, made from the options
//! themselves, where programs below a prefix have them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use holesync::error::{Error, Result};

use crate::cli::help::{self, EXAMPLES, EXIT_CODES};

/// Writes all of it below a directory such as `/usr/local/share`.
///
/// # Errors
///
/// When something cannot be written.
pub fn run(root: &Path) -> Result<()> {
    let mut command = help::command().mut_args(with_all_names);
    command.build();
    put(root, "man/man1/holesync.1", &page(&command)?)?;
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let name = format!("holesync-{}", verb.get_name());
        let mut page = Vec::new();
        Man::new(verb.clone()).render(&mut page).map_err(Error::file("write", root))?;
        put(root, &format!("man/man1/{name}.1"), &page)?;
    }
    for (shell, path) in [
        (Shell::Bash, "bash-completion/completions/holesync"),
        (Shell::Zsh, "zsh/site-functions/_holesync"),
        (Shell::Fish, "fish/vendor_completions.d/holesync.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut help::command(), "holesync", &mut script);
        put(root, path, &script)?;
    }
    Ok(())
}

/// An option of the manual, which has no short form, and leaves out other names by itself.
fn with_all_names(option: Arg) -> Arg {
    let option = option.hide_short_help(false);
    let names = option.get_visible_aliases().unwrap_or_default();
    let Some(help) = option.get_help().filter(|_| !names.is_empty()) else { return option };
    let help = format!("{help}; also --{}", names.join(", --"));
    option.help(help)
}

fn put(root: &Path, path: &str, bytes: &[u8]) -> Result<()> {
    let path = root.join(path);
    let dir = path.parent().unwrap_or(root);
    fs::create_dir_all(dir).map_err(Error::file("make", dir))?;
    fs::write(&path, bytes).map_err(Error::file("write", &path))
}

/// The page of the program as a whole.
fn page(command: &Command) -> Result<Vec<u8>> {
    // What follows the options has sections of its own.
    let man = Man::new(command.clone().after_long_help(None::<&str>).after_help(None::<&str>));
    let mut page = Vec::new();
    let mut render = || {
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        page.extend(synopsis().bytes());
        man.render_description_section(&mut page)?;
        page.extend(examples().bytes());
        man.render_options_section(&mut page)?;
        man.render_subcommands_section(&mut page)?;
        page.extend(exit_status().bytes());
        man.render_version_section(&mut page)
    };
    render().map_err(Error::file("write", "the manual"))?;
    Ok(page)
}

fn synopsis() -> String {
    let mut text = String::from(".SH SYNOPSIS\n");
    for line in ["[OPTIONS] SRC... DEST", "[OPTIONS] SRC", "COMMAND [OPTIONS] ..."] {
        // A text takes whatever is written into it.
        let _ = writeln!(text, "\\fBholesync\\fR {line}\n.br");
    }
    text
}

fn examples() -> String {
    let mut text = String::from(".SH EXAMPLES\n");
    for (line, what) in EXAMPLES {
        let _ = writeln!(text, ".TP\n\\fB{}\\fR\n{what}", plain(line));
    }
    text
}

fn exit_status() -> String {
    let mut text = String::from(".SH \"EXIT STATUS\"\n");
    for (code, what) in EXIT_CODES {
        let _ = writeln!(text, ".TP\n\\fB{code}\\fR\n{}", plain(what));
    }
    text + ".PP\nOf \\fBholesync diff\\fR: 0 equal, 1 different, 2 and more trouble.\n"
}

/// Text as it stands, for roff: hyphens that can be copied.
fn plain(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}
