//! A list of names, one a line: what `--files-from` reads.

use std::io::{self, BufRead};

use crate::source::path::MAX_PATH;

/// What the names of a list may take in memory, in bytes.
pub const MAX_LIST: usize = 256 << 20;
/// What a name takes beside its bytes.
const OVERHEAD: usize = 64;

/// The names of a list, as far as they came.
#[derive(Debug, Default)]
pub struct NameList {
    names: Vec<Vec<u8>>,
    bytes: usize,
}

impl NameList {
    /// Takes another name.
    ///
    /// # Errors
    ///
    /// When there are too many, or it is longer than a path.
    pub fn add(&mut self, name: Vec<u8>) -> Result<(), String> {
        if name.len() > MAX_PATH {
            return Err(format!("a name in it has more than {MAX_PATH} bytes"));
        }
        self.bytes += name.len() + OVERHEAD;
        if self.bytes > MAX_LIST {
            return Err(format!("its names take more than {} MiB: send in several runs", MAX_LIST >> 20));
        }
        self.names.push(name);
        Ok(())
    }

    /// All of them.
    pub fn into_names(self) -> Vec<Vec<u8>> {
        self.names
    }
}

/// Reads a list. Its lines end with NUL if it is `nul_separated`, otherwise with a line feed or
/// carriage return. Those that begin with `#` or `;` are comments, as rsync has it. Empty lines
/// are none.
///
/// # Errors
///
/// When it cannot be read, or is no list: see [`NameList::add`].
pub fn read_names(input: impl BufRead, nul_separated: bool) -> io::Result<Vec<Vec<u8>>> {
    let mut list = NameList::default();
    let end = if nul_separated { b'\0' } else { b'\n' };
    let mut input = input;
    loop {
        let mut line = Vec::new();
        let most = MAX_LINE as u64;
        if io::Read::take(&mut input, most).read_until(end, &mut line)? == 0 {
            return Ok(list.into_names());
        }
        let is_cut = line.len() == MAX_LINE && line.last() != Some(&end);
        line.pop_if(|last| *last == end);
        for name in line.split(|&byte| byte == b'\r' && !nul_separated) {
            let is_comment = matches!(name, [b'#' | b';', ..]);
            if is_cut {
                return Err(io::Error::other("a line in it is too long"));
            }
            if !name.is_empty() && !is_comment {
                list.add(name.to_vec()).map_err(io::Error::other)?;
            }
        }
    }
}

/// Bytes that are read of a line.
const MAX_LINE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_rsync_reads_them() {
        let read = |text: &str, nul| {
            let names = read_names(text.as_bytes(), nul).unwrap();
            names.into_iter().map(|name| String::from_utf8(name).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(read("a\n\n#no\n;no\n b \r\nc/#d\n\n e", false), ["a", " b ", "c/#d", " e"]);
        assert_eq!(read("a\nb\0\0#c\0;d\r\0e", true), ["a\nb", "e"]);
        assert_eq!(read("", false), [""; 0]);
        assert!(read_names("x".repeat(MAX_PATH + 1).as_bytes(), false).is_err());
        assert!(read_names("x".repeat(MAX_LINE).as_bytes(), false).is_err());
    }
}
