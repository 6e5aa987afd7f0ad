//! The flags that have something removed: what the source does not have, or the source.

use clap::Args;
use holesync::error::{Error, Result};
use holesync::options::{Delete, DeleteWhen};

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
    /// Remove no more than N entries
    #[arg(long, value_name = "N")]
    max_delete: Option<u64>,
    /// Remove files of the source when the destination has them
    #[arg(long)]
    pub remove_source_files: bool,
    /// Remove also when something could not be read or transferred
    #[arg(long)]
    ignore_errors: bool,
}

impl DeleteArgs {
    /// What the library takes. `recursive`: directories are descended into.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when nothing would ever be removed.
    pub fn options(&self, recursive: bool) -> Result<Option<Delete>> {
        let when = if self.delete_before {
            DeleteWhen::Before
        } else if self.delete_during {
            DeleteWhen::During
        } else if self.delete || self.delete_after || self.delete_delay {
            DeleteWhen::After
        } else {
            return Ok(None);
        };
        if !recursive {
            return Err(Error::Usage("--delete looks into directories: leave --no-recursive out".into()));
        }
        Ok(Some(Delete { when, most: self.max_delete, ignore_errors: self.ignore_errors }))
    }
}
