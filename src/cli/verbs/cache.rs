//! `holesync cache`: the maps that this user's runs have kept.

use clap::Subcommand;
use holesync::error::{Result, printable};
use holesync::hashmap::cache;
use holesync::report::human;

use crate::cli::verbs::print_line;

/// `holesync cache show|clear`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum CacheArgs {
    /// Tell how many maps are kept, and what they take
    Show,
    /// Remove all of them
    Clear,
}

impl CacheArgs {
    /// Does it.
    ///
    /// # Errors
    ///
    /// When there can be no cache, or it cannot be read or changed.
    pub fn run(self) -> Result<()> {
        match self {
            CacheArgs::Show => {
                let kept = cache::kept()?;
                let oldest = kept.oldest.map_or(String::new(), |age| {
                    format!("; the oldest was of no use for {} h", age.as_secs() / 3600)
                });
                print_line(&format!(
                    "{}: {} maps, {} of at most {}{oldest}",
                    printable(&kept.path),
                    kept.maps,
                    human(kept.bytes),
                    human(kept.most)
                ))
            }
            CacheArgs::Clear => print_line(&format!("{} maps removed", cache::clear()?)),
        }
    }
}
