//! What blocks of a version are made of that differ little from those of the version before: which
//! pages, and their bytes. An extra: each of these blocks lies in a pack, too.
//!
//! First the index, as one stream of zstd: how many frames, the length of each, then for each
//! patch how many blocks lie between it and the one before, times 2, and 1 more where a frame begins with it;
//! the first bytes of the hash of the block that it goes on top of (16), and which of the new block's pages it
//! has (8). Behind the index the frames, of which each unpacks to the pages of its patches.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use crate::hashmap::map_file::nameless;
use crate::hashmap::map_file::number;
use crate::hashmap::{Grid, Key, PageMask};
use crate::store::pack::{self, ENOUGH_RAW, MOST_RAW, MOST_STORED, MOST_WINDOW};

/// Patches of one version; beyond that blocks are had whole.
const MOST_PATCHES: u64 = 1 << 20;
const INDEX_LEVEL: i32 = 9;

/// A patch as it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// The block that it makes.
    pub index: u64,
    /// Of the block that it goes on top of.
    pub base: Key,
    /// The pages that it has.
    pub pages: PageMask,
    /// Where its frame begins behind the index.
    pub offset: u64,
    /// Bytes of that frame.
    pub stored: u32,
    /// Where in what that unpacks to.
    pub raw: u32,
}

/// Patches that are being written.
pub struct PatchesWriter {
    frames: File,
    written: u64,
    lengths: Vec<u8>,
    records: Vec<u8>,
    count: u64,
    frame_count: u64,
    raw: Vec<u8>,
    /// The block behind the last patch.
    next: u64,
    level: i32,
}

impl PatchesWriter {
    /// Without any.
    ///
    /// # Errors
    ///
    /// When there is no room for them.
    pub fn new(level: i32) -> io::Result<PatchesWriter> {
        Ok(PatchesWriter {
            frames: nameless()?,
            written: 0,
            lengths: Vec::new(),
            records: Vec::new(),
            count: 0,
            frame_count: 0,
            raw: Vec::new(),
            next: 0,
            level,
        })
    }

    /// Whether there is room for another one.
    pub fn has_room(&self) -> bool {
        self.count < MOST_PATCHES
    }

    /// Adds a patch; indices ascend. `bytes`: its pages, packed; none where the block only has less than before.
    ///
    /// # Errors
    ///
    /// What writing reports.
    pub fn add(&mut self, index: u64, base: &Key, pages: PageMask, bytes: &[u8]) -> io::Result<()> {
        let begins = self.raw.is_empty() && !bytes.is_empty();
        number::add(&mut self.records, (index - self.next) << 1 | u64::from(begins));
        self.records.extend(base);
        self.records.extend(pages.to_le_bytes());
        self.raw.extend(bytes);
        (self.next, self.count) = (index + 1, self.count + 1);
        if self.raw.len() >= ENOUGH_RAW { self.end_frame() } else { Ok(()) }
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let frame = pack::compress(&self.raw, self.level)?;
        self.raw.clear();
        self.frames.write_all_at(&frame, self.written)?;
        self.written += frame.len() as u64;
        self.frame_count += 1;
        number::add(&mut self.lengths, frame.len() as u64);
        Ok(())
    }

    /// The index, and all of it as a file; `None`: there are no patches.
    ///
    /// # Errors
    ///
    /// What writing reports.
    pub fn finish(mut self) -> io::Result<Option<(Vec<u8>, File)>> {
        if self.count == 0 {
            return Ok(None);
        }
        if !self.raw.is_empty() {
            self.end_frame()?;
        }
        let mut index = Vec::new();
        number::add(&mut index, self.frame_count);
        index.extend(&self.lengths);
        index.extend(&self.records);
        let index = zstd::bulk::compress(&index, INDEX_LEVEL)?;
        let mut whole = nameless()?;
        whole.write_all(&index)?;
        let mut frames = crate::scan::At::new(&self.frames, 0);
        io::copy(&mut frames, &mut whole)?;
        Ok(Some((index, whole)))
    }
}

/// Patches that are being read, in order.
pub struct PatchesReader<R: Read> {
    records: BufReader<zstd::stream::read::Decoder<'static, BufReader<R>>>,
    grid: Grid,
    lengths: std::vec::IntoIter<u32>,
    /// Where the frame lies that is told of, and where in it the next patch does.
    offset: u64,
    stored: u32,
    raw: u64,
    next_block: u64,
    /// The one that was read last.
    patch: Option<Patch>,
}

impl<R: Read> PatchesReader<R> {
    /// Reads the index of the patches of an image on this grid.
    ///
    /// # Errors
    ///
    /// `InvalidData` for what is none; what reading reports.
    pub fn new(input: R, grid: Grid) -> io::Result<PatchesReader<R>> {
        let mut unpacker = zstd::stream::read::Decoder::new(input)?;
        unpacker.window_log_max(MOST_WINDOW)?;
        let mut records = BufReader::new(unpacker);
        let count = number::read(&mut records)?;
        if count > MOST_PATCHES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut lengths = Vec::new();
        for _ in 0..count {
            let length = number::read(&mut records)?;
            if length == 0 || length > MOST_STORED as u64 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            lengths.push(length as u32);
        }
        let lengths = lengths.into_iter();
        Ok(PatchesReader { records, grid, lengths, offset: 0, stored: 0, raw: 0, next_block: 0, patch: None })
    }

    /// The patch that makes a block, if there is one; indices ascend.
    ///
    /// # Errors
    ///
    /// `InvalidData` for one that cannot be; what reading reports.
    pub fn find(&mut self, index: u64) -> io::Result<Option<Patch>> {
        while self.patch.is_none_or(|patch| patch.index < index) {
            if !self.advance()? {
                return Ok(None);
            }
        }
        Ok(self.patch.filter(|patch| patch.index == index))
    }

    /// Reads the next one. `false`: there are no more.
    fn advance(&mut self) -> io::Result<bool> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        if std::io::BufRead::fill_buf(&mut self.records)?.is_empty() {
            return Ok(false);
        }
        let step = number::read(&mut self.records)?;
        let (mut base, mut pages) = (Key::default(), [0; 8]);
        self.records.read_exact(&mut base)?;
        self.records.read_exact(&mut pages)?;
        let pages = PageMask::from_le_bytes(pages);
        let index = self.next_block.checked_add(step >> 1).filter(|&index| index < self.grid.blocks());
        let index = index.ok_or_else(wrong)?;
        if pages & !self.grid.all_pages(index) != 0 || pages == 0 && step & 1 == 1 {
            return Err(wrong());
        }
        if step & 1 == 1 {
            self.offset += u64::from(self.stored);
            self.stored = self.lengths.next().ok_or_else(wrong)?;
            self.raw = 0;
        }
        let raw = self.raw;
        self.raw += self.grid.masked_bytes(index, pages);
        if pages != 0 && self.stored == 0 || self.raw > MOST_RAW as u64 {
            return Err(wrong());
        }
        self.next_block = index + 1;
        self.patch =
            Some(Patch { index, base, pages, offset: self.offset, stored: self.stored, raw: raw as u32 });
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::BlockSize;

    #[test]
    fn patches_are_found_as_they_were_written() {
        let grid = Grid { length: 100 << 16, block: BlockSize::default() };
        let mut writer = PatchesWriter::new(3).unwrap();
        writer.add(0, &[1; 16], 0, &[]).unwrap();
        writer.add(2, &[2; 16], 1, &[2; 4096]).unwrap();
        writer.add(5, &[5; 16], 0x8001, &[5; 8192]).unwrap();
        for index in 10..80 {
            writer.add(index, &[7; 16], 3, &[index as u8; 8192]).unwrap();
        }
        let (index, file) = writer.finish().unwrap().unwrap();
        let mut reader = PatchesReader::new(index.as_slice(), grid).unwrap();
        assert_eq!(reader.find(1).unwrap(), None);
        let mut first = PatchesReader::new(index.as_slice(), grid).unwrap();
        assert_eq!(first.find(0).unwrap().unwrap().pages, 0);
        let five = reader.find(5).unwrap().unwrap();
        assert_eq!((five.base, five.pages, five.offset, five.raw), ([5; 16], 0x8001, 0, 4096));
        let last = reader.find(79).unwrap().unwrap();
        assert!(last.offset > 0);
        let mut stored = vec![0; last.stored as usize];
        file.read_exact_at(&mut stored, index.len() as u64 + last.offset).unwrap();
        let mut unpacker = pack::Unpacker::new().unwrap();
        assert_eq!(unpacker.frame(&stored).unwrap()[last.raw as usize..][..8192], [79; 8192]);
        assert_eq!(reader.find(90).unwrap(), None);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        let grid = Grid { length: 9 << 16, block: BlockSize::default() };
        let read = |bytes: &[u8]| {
            let mut reader = PatchesReader::new(bytes, grid)?;
            (0..9).try_for_each(|index| reader.find(index).map(drop))
        };
        let index = |frames: &[u8], step: u8, pages: u64| {
            let record = [&[step][..], &[0; 16], &pages.to_le_bytes()].concat();
            zstd::bulk::compress(&[frames, &record].concat(), 3).unwrap()
        };
        assert!(read(&index(&[1, 9], 1, 1)).is_ok());
        assert!(read(&index(&[0], 0, 0)).is_ok(), "one without pages");
        for wrong in [
            index(&[1, 9], 0, 1),
            index(&[1, 9], 1, 0),
            index(&[1, 9], 1, 1 << 16),
            index(&[1, 9], 2 * 9 + 1, 1),
            index(&[1, 0], 1, 1),
            index(&[0], 1, 1),
            b"nothing".to_vec(),
        ] {
            assert!(read(&wrong).is_err());
        }
    }
}
