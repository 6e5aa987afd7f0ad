//! Names that are for device nodes: where such a node is missing, a file in its place would
//! hold an image in memory, where nobody looks for it.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::apply::place::Place;
use crate::error::{Error, Result, lock};
use crate::sys;

/// Which directories are for device nodes, for one run.
#[derive(Debug, Default)]
pub(super) struct NodeDirectories {
    /// The directory that was looked at last: mostly the next name lies in it, too.
    last: Mutex<Option<(Arc<OwnedFd>, bool)>>,
}

impl NodeDirectories {
    /// Refuses a name that is not there, or is a symlink, where a device node should be.
    pub fn refuse_missing(&self, place: &Place, is_symlink: bool) -> Result<()> {
        let belongs_there = self.contains(place) || is_symlink && leads_to_missing_node(place);
        if !belongs_there {
            return Ok(());
        }
        let why = "there is no such device, and a file in its place would be of no use: set the device up first (lsblk shows which there are)";
        Err(Error::refused(&place.path, why))
    }

    /// Whether a name lies in a directory that is for device nodes.
    pub fn contains(&self, place: &Place) -> bool {
        let mut last = lock(&self.last);
        match last.as_ref() {
            Some((dir, is_for_nodes)) if Arc::ptr_eq(dir, &place.dir) => *is_for_nodes,
            _ => {
                let is_for_nodes = is_for_nodes(&place.dir);
                *last = Some((Arc::clone(&place.dir), is_for_nodes));
                is_for_nodes
            }
        }
    }
}

fn leads_to_missing_node(place: &Place) -> bool {
    let link = sys::read_link_at(&place.dir, &place.name);
    link.is_ok_and(|link| Path::new(&link).starts_with("/dev") && fs::metadata(&link).is_err())
}

/// Whether a directory is on the file system of `/dev`, which mostly has one of its own
/// (devtmpfs; tmpfs in containers); where it has not, whether it is below it.
fn is_for_nodes(dir: &OwnedFd) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let ours = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    let nodes = device(Path::new("/dev"));
    nodes.is_some()
        && device(&ours) == nodes
        && (nodes != device(Path::new("/"))
            || fs::read_link(&ours).is_ok_and(|path| path.starts_with("/dev")))
}
