//! The names of working files: what a run keeps beside its destination while it works.
//! Senders leave them out, receivers take none from the other end.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// The files that a run keeps beside its destination while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Working {
    /// The new file, complete or in the making.
    Temp,
    /// A copy of the old file in the making.
    Clone,
    /// New data of a file that is to be changed in place.
    Stage,
    /// Which ranges of the stage count.
    Log,
}

impl Working {
    /// All of them, in the order in which they go: no log outlives its stage.
    pub const ALL: [Working; 4] = [Working::Temp, Working::Clone, Working::Log, Working::Stage];

    fn suffix(self) -> &'static str {
        match self {
            Working::Temp => ".holesync.temp",
            Working::Clone => ".holesync.clone",
            Working::Stage => ".holesync.stage",
            Working::Log => ".holesync.log",
        }
    }

    /// The name of the working file of `name`. Always the same, so that the
    /// next run finds it; long names are cut and marked with their hash.
    pub(crate) fn name_for(self, name: &OsStr) -> OsString {
        const NAME_MAX: usize = 255;
        let (name, suffix) = (name.as_bytes(), self.suffix());
        let mut working = vec![b'.'];
        if 1 + name.len() + suffix.len() <= NAME_MAX {
            working.extend(name);
        } else {
            let mark = format!("~{}", &blake3::hash(name).to_hex()[..16]);
            working.extend(&name[..NAME_MAX - 1 - suffix.len() - mark.len()]);
            working.extend(mark.bytes());
        }
        working.extend(suffix.bytes());
        OsStr::from_bytes(&working).to_owned()
    }
}

/// Whether a name is that of a working file, which is nobody's data.
pub fn is_working_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.starts_with(b".") && Working::ALL.iter().any(|kind| bytes.ends_with(kind.suffix().as_bytes()))
}

/// Whether a path leads to or through a working file, which is nobody's data.
pub fn names_working_file(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/').any(|name| is_working_name(OsStr::from_bytes(name)))
}
