//! The flags that have something removed, what the source does not have or the source, and that
//! keep it under another name.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Args;
use holesync::error::{Error, Result};
use holesync::options::{Backup, Delete, DeleteWhen, Options};

/// What is removed, and when.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Remove what the source does not have, when everything else is done
    #[arg(long)]
    delete: bool,
    /// The same, before anything is transferred
    #[arg(long, overrides_with_all = ["delete_during", "delete_after", "delete_delay"])]
    delete_before: bool,
    /// The same, directory by directory
    #[arg(long, visible_alias = "del", overrides_with_all = ["delete_before", "delete_after", "delete_delay"])]
    delete_during: bool,
    /// The same as --delete
    #[arg(long, overrides_with_all = ["delete_before", "delete_during", "delete_delay"])]
    delete_after: bool,
    /// The same as --delete
    #[arg(long, overrides_with_all = ["delete_before", "delete_during", "delete_after"])]
    delete_delay: bool,
    /// Remove also what the filter rules leave out
    #[arg(long)]
    delete_excluded: bool,
    /// Remove no more than N entries
    #[arg(long, value_name = "N")]
    max_delete: Option<u64>,
    /// Keep what is replaced or removed, under its name and a suffix
    #[arg(short = 'b', long)]
    backup: bool,
    /// Keep it below DIR, which is relative to the destination
    #[arg(long, value_name = "DIR")]
    backup_dir: Option<OsString>,
    /// What is put behind its name [default: ~; with --backup-dir nothing]
    #[arg(long, value_name = "SUFFIX")]
    suffix: Option<OsString>,
    /// Replace directories, too, that are not empty, where the source has something else
    #[arg(long)]
    pub force: bool,
    /// Remove files of the source when the destination has them
    #[arg(long)]
    pub remove_source_files: bool,
    /// Remove also when something could not be read or transferred
    #[arg(long)]
    ignore_errors: bool,
}

impl DeleteArgs {
    /// How what is replaced or removed is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a suffix that cannot be one.
    pub fn backup(&self) -> Result<Option<Backup>> {
        if !self.backup && self.backup_dir.is_none() {
            return Ok(None);
        }
        let dir = self.backup_dir.as_ref().map(|dir| dir.as_bytes().to_vec());
        let usual = if dir.is_some() { "" } else { "~" };
        let suffix = self.suffix.as_deref().map_or(usual.into(), |suffix| suffix.as_bytes().to_vec());
        if suffix.contains(&b'/') || suffix.is_empty() && dir.is_none() {
            return Err(Error::Usage("--suffix wants something that can end a name, without a slash".into()));
        }
        Ok(Some(Backup { suffix, dir }))
    }

    /// Whether what is replaced stays in its directory, under another name: that changes the
    /// time of the directory, which is left alone then, as with rsync.
    pub fn renames_beside(&self) -> bool {
        self.backup && self.backup_dir.is_none()
    }

    /// The rule that keeps backups beside what they are of, as rsync has it: others may come
    /// before it.
    ///
    /// # Errors
    ///
    /// Those of [`DeleteArgs::backup`].
    pub fn protects_backups(&self) -> Result<Option<OsString>> {
        let deletes = self.when().is_some() && !self.delete_excluded;
        let beside = self.backup()?.filter(|backup| deletes && backup.dir.is_none());
        Ok(beside.map(|backup| {
            let special = |byte: &u8| b"*?[\\".contains(byte);
            let mut rule = b"P *".to_vec();
            for byte in backup.suffix {
                rule.extend(special(&byte).then_some(b'\\'));
                rule.push(byte);
            }
            OsString::from_vec(rule)
        }))
    }

    fn when(&self) -> Option<DeleteWhen> {
        if self.delete_before {
            Some(DeleteWhen::Before)
        } else if self.delete_during {
            Some(DeleteWhen::During)
        } else {
            let is_asked = self.delete || self.delete_after || self.delete_delay || self.delete_excluded;
            is_asked.then_some(DeleteWhen::After)
        }
    }

    /// What the library takes. `recursive`: directories are descended into.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when nothing would ever be removed.
    pub fn options(&self, recursive: bool) -> Result<Option<Delete>> {
        let Some(when) = self.when() else { return Ok(None) };
        if !recursive {
            return Err(Error::Usage(
                "--delete looks into directories: give -r or -d, too, and leave --no-recursive out".into(),
            ));
        }
        Ok(Some(Delete {
            when,
            excluded: self.delete_excluded,
            most: self.max_delete,
            ignore_errors: self.ignore_errors,
        }))
    }
}

/// Checks what is removed or kept against all other options. `through`: a command is in the
/// place of the destination.
///
/// # Errors
///
/// [`Error::Usage`] for what excludes each other.
pub fn check(options: &Options, through: bool) -> Result<()> {
    if through && (options.delete.is_some() || options.remove_source_files) {
        let what =
            "--through keeps its source and has no directory: leave --delete and --remove-source-files out";
        return Err(Error::Usage(what.into()));
    }
    Ok(())
}
