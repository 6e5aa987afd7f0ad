//! A SRC in a store: which flags mean something for it, and what is pulled.

use holesync::error::{Error, Result};
use holesync::location::Location;
use holesync::options::{Compress, Missing, Options, TransferRules, WorkplaceRules};
use holesync::store::address::{Address, Base, Named};
use holesync::sync::Pulling;

use crate::cli::TransferArgs;
use crate::cli::reach::{Around, HAS_STORES, without_stores};

impl TransferArgs {
    /// What is pulled, where SRC names a store.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what makes no sense with that, or without it; when a file of keys cannot be
    /// read.
    pub(in crate::cli) fn pulling(
        &self,
        destination: Option<&Location>,
        options: &Options,
        is_several: bool,
    ) -> Result<Option<Pulling>> {
        let named = self.paths.iter().map(|source| Address::of_source(source));
        let mut named = named.collect::<Result<Vec<_>>>()?;
        let usage = |what: &str| Err(Error::Usage(what.into()));
        if named.iter().all(Option::is_none) {
            return match self.store.is_asked() {
                true => usage(
                    "--root, --trust, --ca and --chunks are for a SRC in a store: https://host/path/NAME",
                ),
                false => Ok(None),
            };
        }
        if !HAS_STORES {
            return Err(without_stores());
        }
        let (Some(source), true) = (named.pop().flatten(), named.is_empty()) else {
            return usage("one image is pulled from a store at a time: name one SRC, and DEST");
        };
        let refused = self.means_nothing(options, is_several).or_else(|| match source.named {
            Named::Index(_) => self.means_nothing_for_index(options),
            Named::Image(..) => None,
        });
        if let Some(what) = refused.or_else(|| self.store.means_nothing(&source)) {
            return usage(what);
        }
        if destination.is_none() || self.record.list_only {
            return usage(
                "an image in a store is pulled to a DEST; `holesync versions STORE/NAME` lists a store",
            );
        }
        if self.bwlimit.is_some() && matches!(source.base, Base::Directory(_)) {
            return usage("a store in a directory is read as fast as it can be: leave --bwlimit out");
        }
        let around = Around {
            jobs: self.remote.hosts.jobs(),
            retries: self.retries,
            contimeout: self.remote.contimeout,
            options,
        };
        self.store.pulling(source, &around).map(Some)
    }

    /// What is asked for that is not to be had of an image in a store.
    fn means_nothing(&self, options: &Options, is_several: bool) -> Option<&'static str> {
        let picks = self.filter.chooses()
            || options.transfer != TransferRules::default()
            || options.missing != Missing::Failed
            || options.removes();
        let places = options.directories.relative || options.remove_source_files || self.through.is_some();
        let keeps = self.perms || self.owner || self.group || self.kept.keeps_more_than_times();
        let packs = options.compress != Compress::Auto || self.compress_level.is_some();
        if picks || places {
            Some(
                "an image from a store is one file: leave out what picks, places or removes files, and --through",
            )
        } else if is_several || self.agent.is_some() || self.remote.is_about_ssh() {
            Some(
                "an image from a store comes to this machine, and no ssh takes part: leave out what names, reaches or \
                 runs something on hosts",
            )
        } else if keeps {
            Some(
                "a store has the time of an image, and neither its permissions nor its owner: leave -p, -o, -g, -A, -X, \
                 -U, -E, --chmod, --chown, --usermap, --groupmap, --numeric-ids and --super out; a new file gets its mode \
                 from the umask",
            )
        } else if self.block_size.is_some() || self.leaf_size.is_some() || packs {
            Some(
                "what a store has is published with a unit of comparison, and packed: leave --block-size, --leaf-size, \
                 --compress and --compress-level out",
            )
        } else if options.workplace.delay || self.beside.save_map().is_some() {
            Some(
                "an image from a store is one file, of which the store has the map: leave --delay-updates and --save-map \
                 out",
            )
        } else if options.since.is_some() || options.open_noatime {
            Some("the image is read where it is published: leave --since and --open-noatime out")
        } else {
            None
        }
    }

    /// The same of an index of casync.
    fn means_nothing_for_index(&self, options: &Options) -> Option<&'static str> {
        let has_aside = options.backup.is_some() || options.fuzzy || options.alternates.is_some();
        if options.size_only || options.modify_window.is_some() {
            Some(
                "an index of casync has no time: its image is always compared by its content, so leave --size-only and \
                 --modify-window out",
            )
        } else if has_aside || !options.basis.is_empty() || options.workplace != WorkplaceRules::default() {
            Some(
                "what an index of casync names is laid over DEST: leave --backup, --temp-dir, --partial-dir, --basis, \
                 --fuzzy and the like out",
            )
        } else {
            None
        }
    }
}
