//! Command lines that mean something, but hardly what was wanted: refused with what was
//! probably meant, before anything is reached or made. Looks at words and at the names of
//! files here alone.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Subcommand;
use clap::error::ErrorKind;
use holesync::error::{Error, Result, escape};

use crate::cli::Verb;

/// Words that others have for what needs none here.
const NO_COMMANDS: [&str; 10] =
    ["sync", "cp", "copy", "clone", "push", "pull", "put", "get", "write", "restore"];

/// Refuses operands that were probably meant otherwise. `paths`: SRC... DEST.
///
/// # Errors
///
/// [`Error::Usage`] for the first of them.
pub fn refuse(paths: &[OsString]) -> Result<()> {
    let is_remote = |path: &OsString| has_host(path.as_bytes());
    let has_remote = paths.iter().any(is_remote);
    let meant = paths.iter().enumerate().find_map(|(nth, path)| {
        let text = path.as_bytes();
        let is_dest = nth > 0 && nth + 1 == paths.len();
        command_in_front(path, nth, paths.len())
            .or_else(|| stdout(text, is_dest))
            .or_else(|| file_with_a_colon(path))
            .or_else(|| if is_there(path) { None } else { no_file(text, has_remote) })
    });
    meant.map_or(Ok(()), |what| Err(Error::Usage(what)))
}

/// What a command line that clap refused was probably meant to be: options before a verb.
pub fn options_before_a_verb(arguments: &[OsString]) -> Option<clap::Error> {
    let mut words = arguments.iter().skip(1);
    let at = words.position(|word| !word.as_bytes().starts_with(b"-"))?;
    let verb = arguments.get(at + 1)?.to_str().filter(|word| at > 0 && Verb::has_subcommand(word))?;
    Some(clap::Error::raw(ErrorKind::ArgumentConflict, format!("{}\n", behind(verb))))
}

/// Refuses options that are about DEST where SRC is alone.
///
/// # Errors
///
/// [`Error::Usage`].
pub fn check_dest(is_listing: bool, wants_dest: bool) -> Result<()> {
    let what = "there is no DEST: SRC alone is listed, for which --inplace, --verify, --preallocate and --as-is mean nothing";
    if is_listing && wants_dest { Err(Error::Usage(what.into())) } else { Ok(()) }
}

fn behind(verb: &str) -> String {
    format!(
        "{verb} is a command, and its options go behind it: holesync {verb} ...; for a file of that name write \
         ./{verb}"
    )
}

/// The first operand is a verb behind options, or a word that is none.
fn command_in_front(path: &OsStr, nth: usize, count: usize) -> Option<String> {
    let word = path.to_str().filter(|_| nth == 0)?;
    if Verb::has_subcommand(word) {
        return Some(behind(word));
    }
    (NO_COMMANDS.contains(&word) && count > 2 && !is_there(path)).then(|| {
        format!("there is no command {word}, and no file of that name: write SRC and DEST alone, holesync SRC DEST")
    })
}

fn stdout(text: &[u8], is_dest: bool) -> Option<String> {
    let what = "DEST cannot be stdout: holesync send IMG | holesync recv - writes an image there; for a file of that name \
                write ./-";
    (is_dest && text == b"-").then(|| what.into())
}

/// A file here has the name that reads as one on a host.
fn file_with_a_colon(path: &OsStr) -> Option<String> {
    let text = path.as_bytes();
    if !has_host(text) || !is_there(path) {
        return None;
    }
    let colon = text.iter().position(|&byte| byte == b':')?;
    let (host, path) = (escape(&text[..colon]), escape(&text[colon + 1..]));
    Some(format!(
        "{host}:{path} is a file here, and reads as the path {path} on the host {host}: write ./{host}:{path} for the \
         file, [{host}]:{path} for the host"
    ))
}

/// What is no file here, and reads as something else.
fn no_file(text: &[u8], has_remote: bool) -> Option<String> {
    if has_host(text) || text.contains(&0) {
        return None;
    }
    let whole = escape(text);
    let (first, rest) = text.split_at(text.iter().position(|&byte| byte == b'/').unwrap_or(text.len()));
    let (head, tail) = (escape(first), escape(rest));
    if first.is_empty() || is_there(OsStr::from_bytes(first)) && !rest.is_empty() {
        return None;
    }
    if let Some(dd) = ["if=", "of="].iter().find_map(|option| text.strip_prefix(option.as_bytes())) {
        let path = escape(dd);
        return Some(format!("{whole} is a word of dd: write {path} alone, as in holesync SRC DEST"));
    }
    if is_ssh_option(text) {
        return Some(format!("{whole} looks like an option of ssh: write -e 'ssh -o {whole}'"));
    }
    if has_remote && rest.is_empty() && text.iter().all(u8::is_ascii_digit) {
        return Some(format!(
            "{whole} is no file here: if it is the port of ssh, write ssh://host:{whole}/path, or -e 'ssh -p {whole}'"
        ));
    }
    let at = first.iter().position(|&byte| byte == b'@');
    if at.is_some_and(|at| at > 0 && at + 1 < first.len()) || is_address(&head) {
        return Some(format!(
            "{whole} has no colon, and would be a file here: write {head}:{tail} for a path on that host, or ./{whole} for \
             the file"
        ));
    }
    if let Some(sign) = first.iter().position(|&byte| byte == b';')
        && sign > 0
    {
        let (host, path) = (escape(&text[..sign]), escape(&text[sign + 1..]));
        return Some(format!(
            "{whole} has a semicolon where host and path have a colon: write {host}:{path}, or ./{whole} for a file here"
        ));
    }
    text.starts_with(b"\\\\").then(|| {
        format!(
            "{whole} is a path of Windows: write /dir/file, or host:/dir/file for ssh, or ./{whole} for a file here"
        )
    })
}

/// `Port=22` and the like, as ssh_config(5) has them.
fn is_ssh_option(text: &[u8]) -> bool {
    let name = text.split(|&byte| byte == b'=').next().unwrap_or_default();
    let options: [&[u8]; 8] = [
        b"Port",
        b"User",
        b"IdentityFile",
        b"ProxyJump",
        b"ProxyCommand",
        b"StrictHostKeyChecking",
        b"BatchMode",
        b"ConnectTimeout",
    ];
    name.len() < text.len() && options.contains(&name)
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// Whether it reads as a path on a host: a colon before the first slash.
fn has_host(text: &[u8]) -> bool {
    text.iter().find(|&&byte| byte == b':' || byte == b'/') == Some(&b':')
}

/// Whether a file here has this name.
fn is_there(path: &OsStr) -> bool {
    Path::new(path).symlink_metadata().is_ok()
}
