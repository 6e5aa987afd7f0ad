//! What is kept of attributes beside permissions, times and owners as they are, and what is
//! made of these on the way.

use serde::{Deserialize, Serialize};

use crate::options::chmod::ModeChanges;
use crate::options::id_map::IdMap;
use crate::sys;

/// What is kept of attributes, and what is made of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeRules {
    /// Where permissions are not kept, a file is executable if that of the source is.
    pub executability: bool,
    /// Keep access times.
    pub atimes: bool,
    /// Leave the times of directories alone.
    pub omit_dir_times: bool,
    /// Leave the times of symlinks alone.
    pub omit_link_times: bool,
    /// Keep ACLs; acl(5).
    pub acls: bool,
    /// Keep extended attributes; xattr(7).
    pub xattrs: bool,
    /// Owners and groups go by number, whatever their names.
    pub numeric_ids: bool,
    /// What is made of the permissions of the source.
    pub chmod: ModeChanges,
    /// Who owns at the destination what these users own in the source.
    pub user_map: IdMap,
    /// The same for groups.
    pub group_map: IdMap,
    /// Whether what only root may do is tried; `None`: by root.
    pub superuser: Option<bool>,
}

impl AttributeRules {
    /// Whether a process that is root, or is not, tries what only root may do.
    pub fn acts_as_superuser(&self) -> bool {
        self.superuser.unwrap_or_else(sys::is_root)
    }

    /// Whether something is given to a group: without the rights of root only to one that the
    /// process is in.
    pub fn may_give_to(&self, gid: u32) -> bool {
        self.superuser != Some(false) || sys::is_in_group(gid)
    }
}
