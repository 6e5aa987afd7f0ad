//! Open files as what is compared with.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::apply::Basis;
use crate::scan::{self, FileImage, FileState};

impl Basis {
    /// An open file, or a device, as it is.
    pub(in crate::apply) fn of(file: &File, hole_map: bool) -> io::Result<Basis> {
        let metadata = file.metadata()?;
        let state = FileState::with(file, &metadata)?;
        let image = Arc::new(image_of(file, 512 * metadata.blocks(), state.length, hole_map)?);
        Ok(Basis { image, length: state.length, state: Some(state) })
    }
}

/// An old file as what is compared with.
pub fn image_of(file: &File, allocated: u64, length: u64, hole_map: bool) -> io::Result<FileImage> {
    let data = scan::may_hold(allocated, length);
    Ok(FileImage::new(file.try_clone()?, hole_map).sparing_cache_for(data))
}
