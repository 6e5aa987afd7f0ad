//! Changes of permissions, as `--chmod` of rsync(1) has them: those of chmod(1), separated by
//! commas, each for files alone after an `F`, for directories alone after a `D`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Changes, in the order in which they are made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeChanges(Vec<ModeChange>);

/// One change. Bits are those of `07777`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ModeChange {
    scope: Scope,
    /// Bits that go.
    clear: u32,
    /// Bits that are set.
    set: u32,
    /// Those for execution are set only for what is a directory, or could be executed.
    keeps_executability: bool,
    copy: Option<Copied>,
}

/// The permissions of the user, the group or others become those of others, too. Each is named
/// by its lowest bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Copied {
    from: u32,
    to: u32,
    removes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Scope {
    All,
    Files,
    Directories,
}

impl ModeChanges {
    /// Reads changes. Where nobody is named whose permissions change, bits of `umask` are not
    /// set.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what is no change.
    pub fn parse(text: &str, umask: u32) -> Result<ModeChanges> {
        let changes = text.split(',').map(|change| {
            ModeChange::parse(change, umask).ok_or_else(|| {
                Error::Usage(format!(
                    "--chmod={text}: \"{change}\" is no change of permissions; write it as in Du=rwx,Fgo-w or D755"
                ))
            })
        });
        Ok(ModeChanges(changes.collect::<Result<_>>()?))
    }

    /// These, and then others.
    pub fn and(mut self, more: ModeChanges) -> ModeChanges {
        self.0.extend(more.0);
        self
    }

    /// What becomes of permissions (`07777`).
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let in_scope = |change: &&ModeChange| match change.scope {
            Scope::All => true,
            Scope::Files => !is_directory,
            Scope::Directories => is_directory,
        };
        let executable = is_directory || mode & 0o111 != 0;
        self.0.iter().filter(in_scope).fold(mode, |mode, change| change.apply(mode, executable))
    }
}

impl ModeChange {
    fn parse(text: &str, umask: u32) -> Option<ModeChange> {
        let (scope, text) = match text.as_bytes().first()? {
            b'D' => (Scope::Directories, &text[1..]),
            b'F' => (Scope::Files, &text[1..]),
            _ => (Scope::All, text),
        };
        if text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) && (1..=4).contains(&text.len()) {
            let set = u32::from_str_radix(text, 8).ok()?;
            return Some(ModeChange { scope, clear: 0o7777, set, keeps_executability: false, copy: None });
        }
        let (who, rest) = text.split_at(text.find(['+', '-', '='])?);
        let named = who.chars().map(place_of).try_fold(0, |places, place| Some(places | place?))?;
        let (places, may_change) = if who.is_empty() { (0o111, !umask) } else { (named, !0) };
        let (operator, what) = rest.split_at(1);
        let (mut bits, mut special, mut keeps_executability, mut copy) = (0, 0, false, None);
        for letter in what.chars() {
            match letter {
                'r' => bits |= 4,
                'w' => bits |= 2,
                'x' => bits |= 1,
                'X' => (bits, keeps_executability) = (bits | 1, true),
                's' if who.is_empty() => special |= 0o4000,
                's' => special |= special_of(named & 0o110),
                't' => special |= 0o1000,
                'u' | 'g' | 'o' if what.len() == 1 => copy = Some(place_of(letter)?),
                _ => return None,
            }
        }
        let set = ((places * bits) & may_change) | special;
        let copy = copy.map(|from| Copied { from, to: places, removes: operator == "-" });
        let (clear, set) = match operator {
            "+" => (0, set),
            "-" => (set, 0),
            // The permissions of somebody else say something of them, too.
            _ if copy.is_some() => ((places * 7) | special_of(places), set),
            // Set-id bits stay where nothing is said of them.
            _ => ((places * 7) | special, set),
        };
        Some(ModeChange { scope, clear, set, keeps_executability, copy })
    }

    fn apply(&self, mode: u32, executable: bool) -> u32 {
        let set = if self.keeps_executability && !executable { self.set & !0o111 } else { self.set };
        let changed = mode & 0o7777 & !self.clear | set;
        let Some(Copied { from, to, removes }) = self.copy else { return changed };
        let bits = to * ((mode / from) & 7);
        if removes { changed & !bits } else { changed | bits }
    }
}

/// The set-id and sticky bits of those who are named by their lowest bits.
fn special_of(places: u32) -> u32 {
    (places & 0o100) << 5 | (places & 0o010) << 7 | (places & 0o001) << 9
}

/// Whose permissions a letter means: the lowest bit of each.
fn place_of(letter: char) -> Option<u32> {
    Some(match letter {
        'u' => 0o100,
        'g' => 0o010,
        'o' => 0o001,
        'a' => 0o111,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The changes, a file's mode, a directory's mode, and what rsync makes of them.
    #[test]
    fn changes_are_those_of_rsync() {
        for (text, before, file, directory) in [
            ("u=rw,go=r", 0o777, 0o644, 0o644),
            ("D755,F644", 0o600, 0o644, 0o755),
            ("Dg+s,ug+w,Fo-w,+X", 0o2602, 0o2620, 0o2733),
            ("go-rwx", 0o4755, 0o4700, 0o4700),
            ("a+X", 0o644, 0o644, 0o755),
            ("a+X", 0o744, 0o755, 0o755),
            ("u+s,g+s,+t", 0o755, 0o7755, 0o7755),
            ("ug=", 0o6777, 0o6007, 0o6007),
            ("+w", 0o444, 0o644, 0o644),
            ("a+w", 0o444, 0o666, 0o666),
            ("=rx", 0o7777, 0o7555, 0o7555),
            ("g=u", 0o750, 0o770, 0o770),
            ("u=g", 0o6755, 0o2555, 0o2555),
            ("g=u,o=u", 0o7755, 0o4777, 0o4777),
            ("a=u", 0o7755, 0o777, 0o777),
            ("u+g", 0o4755, 0o4755, 0o4755),
            ("o-g", 0o777, 0o770, 0o770),
            ("0", 0o777, 0, 0),
            ("1777", 0, 0o1777, 0o1777),
        ] {
            let changes = ModeChanges::parse(text, 0o022).unwrap();
            assert_eq!(changes.apply(before, false), file, "{text} on a file of {before:o}");
            assert_eq!(changes.apply(before, true), directory, "{text} on a directory of {before:o}");
        }
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for text in ["", "x", "u", "q+x", "u+q", "888", "77777", "u=rw,", "D", "F", "g=uo", "u+x-w", "é+x"] {
            assert!(ModeChanges::parse(text, 0o022).is_err(), "{text:?}");
        }
    }
}
