//! The mark beside what is prepared: the temp file, or stage and log, that it lies beside are all
//! of a new file, which waits for a decision about all hosts of a run. It tells people of that, and
//! nothing more: nobody finishes a file because of it, and a run that goes on removes it.

use std::fs::File;
use std::io::{self, Read, Write};

use crate::apply::place::Place;
use crate::hashmap::Hash;
use crate::options::DeploymentId;
use crate::report::hex;
use crate::working::Working;

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The run that decides.
    pub run: DeploymentId,
    /// What the new file hashes to.
    pub root: Hash,
}

impl Mark {
    /// It, as people may read it.
    fn text(&self) -> String {
        format!("holesync prepared 1\nrun {}\nroot {}\n", hex(&self.run), hex(&self.root))
    }

    fn parse(text: &str) -> Option<Mark> {
        let mut lines = text.lines();
        let field = |line: Option<&str>, name: &str| line?.strip_prefix(name).map(str::to_owned);
        field(lines.next(), "holesync prepared 1")?;
        let run = bytes_of(&field(lines.next(), "run ")?)?;
        let root = bytes_of(&field(lines.next(), "root ")?)?;
        let mark = Mark { run, root };
        (mark.text() == text).then_some(mark)
    }
}

/// The bytes that a text of digits to the base of 16 stands for.
pub fn bytes_of<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let digits = digits.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

impl Place {
    /// Puts a mark here, and with `sync` on storage. As long as it is open nobody removes it.
    pub(in crate::apply) fn put_mark(&self, mark: &Mark, sync: bool) -> io::Result<File> {
        // What cannot go is in the way below.
        let _ = self.remove(&[Working::Prepared]);
        let mut file = self.create(Working::Prepared)?;
        // A file system without locks has none for the file itself, either.
        let _ = file.try_lock();
        file.write_all(mark.text().as_bytes())?;
        if sync {
            file.sync_all()?;
            self.sync_dir()?;
        }
        Ok(file)
    }

    /// The mark of this user that lies here beside what it speaks of, if it is whole.
    pub(in crate::apply) fn mark(&self) -> io::Result<Option<Mark>> {
        let Some(file) = self.peek(Working::Prepared)? else { return Ok(None) };
        let has_log = self.peek(Working::Log)?.is_some() && self.peek(Working::Stage)?.is_some();
        if !has_log && self.peek(Working::Temp)?.is_none() {
            return Ok(None);
        }
        let mut text = String::new();
        match file.take(1 << 10).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            read => read.map(|_| Mark::parse(&text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_not_at_all_where_it_is_torn() {
        let mark = Mark { run: [0x1f; 16], root: [0xe0; 32] };
        let text = mark.text();
        assert_eq!(Mark::parse(&text), Some(mark));
        for len in 0..text.len() {
            assert_eq!(Mark::parse(&text[..len]), None, "{len}");
        }
        assert_eq!(Mark::parse(&text.replace("root e0", "root +0")), None);
        assert_eq!(Mark::parse(&(text + "x")), None);
    }
}
