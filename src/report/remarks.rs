//! What is told of entries beside the lines about them: what a rule left as it is, where
//! backups are, that the destination was made. In the words of rsync, which scripts look for.

use std::path::PathBuf;

use crate::error::{escape, printable};
use crate::options::{Backup, TransferRules};
use crate::report::{Changes, Item, ItemKind, Outcome};

/// What of that is told.
#[derive(Debug, Clone, Default)]
pub struct Remarks {
    /// What these rules leave as it is, or do not make.
    pub skipped: Option<TransferRules>,
    /// Where what was replaced or removed is kept.
    pub backups: Option<Backup>,
    /// That this destination was made, if it is a directory.
    pub destination: Option<PathBuf>,
}

impl Remarks {
    /// Why an entry stays as it is, or is not made.
    pub(super) fn skipped(&self, item: &Item, changes: Changes) -> Option<String> {
        let rules = self.skipped.filter(|_| !changes.has(Changes::BELOW))?;
        let name = escape(item.path);
        if changes.has(Changes::NEW) {
            let what = if item.kind == ItemKind::Directory { "directory" } else { "file" };
            return Some(format!("not creating new {what} \"{name}\""));
        }
        let why = match (rules.ignore_existing, rules.update) {
            (true, _) => "exists",
            (_, true) => "is newer",
            (false, false) => "is complete",
        };
        Some(format!("{name} {why}"))
    }

    /// That the destination was made.
    pub(super) fn created(&self, item: &Item, changes: Changes) -> Option<String> {
        let destination = self.destination.as_ref()?;
        let is_root = item.path.is_empty() && item.kind == ItemKind::Directory;
        (is_root && changes.has(Changes::NEW))
            .then(|| format!("created directory {}", printable(destination)))
    }

    /// Where that is now which an entry replaced, if it was of the same kind.
    pub(super) fn backed_up(&self, item: &Item, outcome: Outcome, changes: Changes) -> Option<String> {
        let backups = self.backups.as_ref()?;
        let is_replaced = match item.kind {
            ItemKind::File { .. } => matches!(outcome, Outcome::Sent(_)) && !changes.has(Changes::NEW),
            _ => changes.has(Changes::VALUE),
        };
        is_replaced.then(|| moved(backups, item.path))
    }

    /// Where what was removed is now, if it was kept.
    pub(super) fn kept(&self, path: &[u8]) -> Option<String> {
        let backups = self.backups.as_ref()?;
        (!path.ends_with(b"/") && !backups.is_one(path)).then(|| moved(backups, path))
    }
}

/// Where a file is that had this path.
fn moved(backups: &Backup, path: &[u8]) -> String {
    let dir = backups.dir.as_deref().map(|dir| [dir, b"/"].concat()).unwrap_or_default();
    let kept = [&dir, path, &backups.suffix].concat();
    format!("backed up {} to {}", escape(path), escape(&kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_are_those_of_rsync() {
        let rules = TransferRules { update: true, ..TransferRules::default() };
        let backups = Backup { suffix: b"~".to_vec(), dir: None };
        let remarks =
            Remarks { skipped: Some(rules), backups: Some(backups), destination: Some("/to".into()) };
        let file = Item::new(b"d/a", ItemKind::File { length: None });
        let (left, new) = (Changes::LEFT, Changes::NEW);
        assert_eq!(remarks.skipped(&file, left).unwrap(), "d/a is newer");
        assert_eq!(remarks.skipped(&file, left.with(new, true)).unwrap(), "not creating new file \"d/a\"");
        let backed_up = |outcome, changes| remarks.backed_up(&file, outcome, changes);
        assert_eq!(backed_up(Outcome::Sent(1), Changes::SIZE).unwrap(), "backed up d/a to d/a~");
        assert_eq!(backed_up(Outcome::Sent(1), new), None);
        assert_eq!(backed_up(Outcome::Unchanged, Changes::TIME), None);
        assert_eq!(remarks.kept(b"x").unwrap(), "backed up x to x~");
        assert_eq!((remarks.kept(b"x/"), remarks.kept(b"x~")), (None, None));
        let root = Item::new(b"", ItemKind::Directory);
        assert_eq!(remarks.created(&root, new).unwrap(), "created directory /to");
        assert_eq!(remarks.created(&root, Changes::TIME), None);
        let nothing = Remarks::default();
        assert!(nothing.created(&root, new).is_none() && nothing.skipped(&file, left).is_none());
    }
}
