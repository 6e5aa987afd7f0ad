//! The flags that say where new content gathers until it becomes the file.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Args;
use holesync::error::{Error, Result};
use holesync::options::{Commit, Options, WorkplaceRules};

/// Where new content gathers.
#[derive(Debug, Args)]
pub struct WorkplaceArgs {
    /// Let new data gather in DIR, on the file system of DEST
    #[arg(short = 'T', long, value_name = "DIR")]
    temp_dir: Option<OsString>,
    /// The same; with a name, in a directory of that name beside each file
    #[arg(long, value_name = "DIR")]
    partial_dir: Option<OsString>,
    /// Put files in place when all of them have arrived, from a --partial-dir
    #[arg(long)]
    delay_updates: bool,
}

impl WorkplaceArgs {
    /// What the library takes.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a relative path of several names.
    pub fn rules(&self) -> Result<WorkplaceRules> {
        let bytes = |dir: &OsString| dir.as_bytes().to_vec();
        let temp_dir = self.temp_dir.as_ref().map(bytes).filter(|dir| !dir.is_empty());
        Ok(WorkplaceRules { temp_dir, partial_dir: self.partial_dir()?, delay: self.delay_updates })
    }

    fn partial_dir(&self) -> Result<Option<Vec<u8>>> {
        // That of rsync.
        let usual = || self.delay_updates.then(|| b".~tmp~".to_vec());
        Ok(self.named_partial_dir()?.or_else(usual))
    }

    fn named_partial_dir(&self) -> Result<Option<Vec<u8>>> {
        let Some(dir) = &self.partial_dir else { return Ok(None) };
        let dir = dir.as_bytes();
        let end = dir.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
        match &dir[..end] {
            // As with rsync: beside the file.
            b"" if dir.is_empty() => Ok(None),
            b"." => Ok(None),
            b"" => Ok(Some(b"/".to_vec())),
            name if dir[0] != b'/' && (name.contains(&b'/') || name == b"..") => Err(Error::Usage(
                "--partial-dir wants an absolute path, or the name of a directory that is made beside each file"
                    .into(),
            )),
            path => Ok(Some(path.to_vec())),
        }
    }

    /// A filter rule that comes after all others: directories of that name are neither sent nor
    /// removed.
    ///
    /// # Errors
    ///
    /// Those of [`WorkplaceArgs::rules`].
    pub fn last_rule(&self) -> Result<Option<OsString>> {
        let Some(name) = self.partial_dir()?.filter(|dir| dir[0] != b'/') else { return Ok(None) };
        let is_special = |byte: &u8| b"*?[".contains(byte);
        let is_pattern = name.iter().any(is_special);
        let mut rule = b"-p ".to_vec();
        for byte in name {
            rule.extend((is_pattern && (is_special(&byte) || byte == b'\\')).then_some(b'\\'));
            rule.push(byte);
        }
        rule.push(b'/');
        Ok(Some(OsString::from_vec(rule)))
    }
}

/// Checks where content gathers against all other options. `through`: a command is in the place
/// of the destination.
///
/// # Errors
///
/// [`Error::Usage`] for what excludes each other.
pub fn check(options: &Options, through: bool) -> Result<()> {
    let rules = &options.workplace;
    if through && !rules.is_beside() {
        let what = "--through puts nothing together at the other end: leave --temp-dir, --partial-dir and \
                    --delay-updates out";
        return Err(Error::Usage(what.into()));
    }
    if rules.partial_dir.is_some() && options.commit == Commit::InPlace {
        let other = if rules.delay { "--delay-updates" } else { "--partial-dir" };
        let what =
            format!("--inplace writes into the file, where {other} lets it wait: leave one of them out");
        return Err(Error::Usage(what));
    }
    if rules.delay && options.remove_source_files {
        let what = "--delay-updates puts files in place when all have arrived, and --remove-source-files removes \
                    each when it has: leave one of them out";
        return Err(Error::Usage(what.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(partial_dir: &str) -> WorkplaceArgs {
        WorkplaceArgs { temp_dir: None, partial_dir: Some(partial_dir.into()), delay_updates: false }
    }

    #[test]
    fn a_directory_for_partial_files_is_named_as_with_rsync() {
        for (given, dir, rule) in [
            (".part", Some(".part"), Some("-p .part/")),
            ("part//", Some("part"), Some("-p part/")),
            ("/var/part/", Some("/var/part"), None),
            ("/", Some("/"), None),
            (".", None, None),
            ("", None, None),
            ("a*\\b", Some("a*\\b"), Some("-p a\\*\\\\b/")),
            ("a\\b", Some("a\\b"), Some("-p a\\b/")),
        ] {
            let args = args(given);
            assert_eq!(args.rules().unwrap().partial_dir, dir.map(|dir| dir.as_bytes().to_vec()), "{given}");
            assert_eq!(args.last_rule().unwrap(), rule.map(OsString::from), "{given}");
        }
        for bad in ["a/b", "..", "../a", "a/.."] {
            assert_eq!(args(bad).rules().unwrap_err().exit_code(), 1, "{bad}");
        }
    }
}
