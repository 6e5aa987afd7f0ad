//! ACLs and extended attributes of what is sent.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use crate::error::{Error, Result};
use crate::filter::DirectoryRules;
use crate::options::Options;
use crate::source::{Kind, MAX_EXTENDED, Source};
use crate::sys::xattrs::{self, ACL, Acl, AclEntry, Acls, DEFAULT_ACL, Xattr};

impl Source {
    /// Reads those that the options ask for and no rule hides.
    ///
    /// # Errors
    ///
    /// When they cannot be read. Then it is sent without them.
    pub(super) fn read_extended(&mut self, options: &Options, rules: &DirectoryRules) -> Result<()> {
        let kept = &options.attributes;
        let is_device = self.metadata.mode.is_none();
        if !(kept.acls || kept.xattrs) || is_device {
            return Ok(());
        }
        // What was followed may be followed again, and must lead to the same.
        let is_link = matches!(self.kind, Kind::Symlink(_));
        let flags = if is_link { OFlag::O_PATH | OFlag::O_NOFOLLOW } else { OFlag::O_PATH };
        let file = File::from(self.open_as(flags)?);
        let failed = |what| Error::file(what, &self.path);
        let is_same = fstat(&file).is_ok_and(|stat| self.is_at(&stat));
        if !is_same {
            return Err(Error::refused(&self.path, "was replaced while it was read"));
        }
        if kept.acls && !is_link {
            let acls = acls(&file, self.kind == Kind::Directory).map_err(failed("read the ACL of"))?;
            self.metadata.acls = Some(Box::new(acls));
        }
        if kept.xattrs {
            let found = read(&file, kept.acts_as_superuser(), rules)
                .map_err(failed("read the extended attributes of"))?;
            self.metadata.xattrs = Some(found);
        }
        Ok(())
    }
}

impl Source {
    /// Takes them off where they are more than a message holds.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if so: it is sent without them.
    pub(super) fn limit_extended(&mut self) -> Result<()> {
        let bytes = self.metadata.extended_bytes();
        if bytes <= MAX_EXTENDED {
            return Ok(());
        }
        (self.metadata.acls, self.metadata.xattrs) = (None, None);
        let what = format!(
            "has {bytes} bytes of ACLs and extended attributes, and was sent without them: {MAX_EXTENDED} are the most"
        );
        Err(Error::refused(&self.path, what))
    }
}

fn acls(file: &File, is_directory: bool) -> io::Result<Acls> {
    let entries = |name: &str| -> io::Result<Vec<AclEntry>> {
        match xattrs::get(file, OsStr::new(name)) {
            Ok(acl) => Ok(acl.map_or_else(Vec::new, |acl| Acl(acl).entries())),
            Err(error) if xattrs::is_unknown(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    };
    let default = if is_directory { entries(DEFAULT_ACL)? } else { Vec::new() };
    Ok(Acls { access: entries(ACL)?, default })
}

fn read(file: &File, superuser: bool, rules: &DirectoryRules) -> io::Result<Vec<Xattr>> {
    let names = match xattrs::list(file) {
        Err(error) if xattrs::is_unknown(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for name in names {
        if !xattrs::is_kept(&name, superuser) || rules.hides_attribute(name.as_bytes()) {
            continue;
        }
        if let Some(value) = xattrs::get(file, &name)? {
            found.push((name.into_vec(), value));
        }
    }
    Ok(found)
}
