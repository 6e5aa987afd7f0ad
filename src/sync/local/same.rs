//! What a source has in one place of storage with the file that is there: it is not read.

use std::ops::Range;

use crate::apply::Basis;
use crate::hashmap::compare::Hashing;
use crate::hashmap::since::{Settled, same_blocks};
use crate::source::OpenSource;
use crate::sync::local::LocalCopy;
use crate::sys;

impl LocalCopy<'_> {
    /// Blocks of a source, on the grid of this run, that the old file has in one place with it.
    pub(super) fn same_blocks(
        &self,
        opened: &OpenSource,
        basis: Option<&Basis>,
        hashing: Hashing,
    ) -> Vec<Range<u64>> {
        let options = &self.options;
        let looks = options.checksum || options.verify || !options.hole_map || hashing == Hashing::Wanted;
        let Some(Basis { image, state: Some(state), .. }) = basis.filter(|_| opened.settled && !looks) else {
            return Vec::new();
        };
        let Some(file) = image.plain_file() else { return Vec::new() };
        let source = opened.image.file();
        if !sys::share_places(source, file) || !state.will_show_changes(file) {
            return Vec::new();
        }
        let source = Settled { file: source, state: &opened.state };
        same_blocks(Settled { file, state }, source, options.block_size)
    }
}
