//! Reads a map, section by section. Nothing of a section is handed on before its check is
//! right.

use std::io::{ErrorKind, Read};

use crate::hashmap::map_file::number;
use crate::hashmap::map_file::{
    BLOCKS, CHECK, Check, END, HEAD, MAGIC, MAGIC_START, MAX_BODY, MapError, SECTION_HEAD, check, mask_bytes,
};
use crate::hashmap::{Grid, Hash, MAX_LENGTH, MapEntry, PageMask, RootHasher};
use crate::options::BlockSize;

type Result<T> = std::result::Result<T, MapError>;

/// A map that is being read, front to back.
#[derive(Debug)]
pub struct MapReader<R> {
    input: R,
    grid: Grid,
    /// The next block.
    index: u64,
    hasher: RootHasher,
    check: Check,
    root: Option<Hash>,
}

impl<R: Read> MapReader<R> {
    /// Reads what the map is of.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn new(mut input: R) -> Result<MapReader<R>> {
        let mut head = [0; HEAD];
        let got = fill(&mut input, &mut head)?;
        if head[..MAGIC.len()] != *MAGIC {
            return Err(version(&head[..got]).map_or(MapError::NoMap, MapError::Version));
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|nth| head[at + nth]));
        let right = check(&[0; CHECK], &[&head[..HEAD - CHECK]]);
        if got < HEAD || head[HEAD - CHECK..] != right {
            return Err(MapError::Damaged("its head"));
        }
        let (block, length) = (BlockSize::new(word(16)), word(24));
        let Some(block) = block.ok().filter(|_| length <= MAX_LENGTH) else {
            return Err(MapError::Damaged("its head"));
        };
        let grid = Grid { length, block };
        Ok(MapReader { input, grid, index: 0, hasher: RootHasher::new(&grid), check: right, root: None })
    }

    /// What the image is laid out on.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The root hash of the image, once all of the map was read.
    pub fn root(&self) -> Option<Hash> {
        self.root
    }

    /// The next entries, in order; `None` behind the last, when the map has proven to be whole.
    ///
    /// # Errors
    ///
    /// See [`MapError`]. What was handed on before is then of a damaged map.
    pub fn entries(&mut self) -> Result<Option<Vec<MapEntry>>> {
        if self.root.is_some() {
            return Ok(None);
        }
        let (kind, body) = self.section()?;
        if kind == BLOCKS {
            return self.blocks(&body).map(Some);
        }
        self.end(&body)?;
        Ok(None)
    }

    fn section(&mut self) -> Result<(u32, Vec<u8>)> {
        let mut head = [0; SECTION_HEAD];
        self.exactly(&mut head)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|nth| head[at + nth]));
        let (kind, length) = (word(0), word(4) as usize);
        if ![BLOCKS, END].contains(&kind) || length > MAX_BODY {
            return Err(MapError::Damaged("a section of no known kind"));
        }
        let mut body = vec![0; length];
        self.exactly(&mut body)?;
        let mut found = [0; CHECK];
        self.exactly(&mut found)?;
        self.check = check(&self.check, &[&head, &body]);
        if found != self.check {
            return Err(MapError::Damaged("a section was changed"));
        }
        Ok((kind, body))
    }

    fn blocks(&mut self, mut body: &[u8]) -> Result<Vec<MapEntry>> {
        let wrong = || MapError::Damaged("blocks that the image does not have");
        let mut entries = Vec::new();
        let bytes = mask_bytes(&self.grid);
        while !body.is_empty() {
            let zeros = number::take(&mut body).ok_or_else(wrong)?;
            let count = number::take(&mut body).ok_or_else(wrong)?;
            let left = self.grid.blocks() - self.index;
            if zeros.checked_add(count).is_none_or(|blocks| blocks == 0 || blocks > left) {
                return Err(wrong());
            }
            let count = usize::try_from(count).map_err(|_| wrong())?;
            let size = count.checked_mul(bytes + 32).filter(|&size| size <= body.len());
            let (run, rest) = body.split_at(size.ok_or_else(wrong)?);
            body = rest;
            if zeros > 0 {
                entries.push(MapEntry::Zero(zeros));
                self.index += zeros;
            }
            let (masks, hashes) = run.split_at(count * bytes);
            for (mask, hash) in masks.chunks_exact(bytes).zip(hashes.as_chunks::<32>().0) {
                entries.push(self.block(mask, hash).ok_or_else(wrong)?);
            }
        }
        Ok(entries)
    }

    fn block(&mut self, mask: &[u8], hash: &Hash) -> Option<MapEntry> {
        let mut pages = [0; 8];
        pages[..mask.len()].copy_from_slice(mask);
        let pages = PageMask::from_le_bytes(pages);
        if pages == 0 || pages & !self.grid.all_pages(self.index) != 0 {
            return None;
        }
        self.hasher.add(self.index, hash);
        self.index += 1;
        Some(MapEntry::Data { pages, hash: *hash })
    }

    fn end(&mut self, body: &[u8]) -> Result<()> {
        let root = self.hasher.clone().finish();
        if self.index != self.grid.blocks() || body != root {
            return Err(MapError::Damaged("its hashes are not those of its root hash"));
        }
        if fill(&mut self.input, &mut [0])? != 0 {
            return Err(MapError::Damaged("something follows its end"));
        }
        self.root = Some(root);
        Ok(())
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Result<()> {
        match fill(&mut self.input, buffer)? == buffer.len() {
            true => Ok(()),
            false => Err(MapError::Damaged("it ends too early")),
        }
    }
}

/// Reads until `buffer` is full or nothing more comes. Returns how much came.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(got)
}

/// The version that the first bytes name.
fn version(head: &[u8]) -> Option<u32> {
    let rest = head.strip_prefix(MAGIC_START)?;
    let end = rest.iter().position(|&byte| byte == b'\r')?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}
