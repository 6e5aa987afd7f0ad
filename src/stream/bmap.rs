//! An image as a bmap, version 2.0: which blocks hold its data extents, each range of them with its
//! SHA-256. `bmaptool copy` flashes with it: it writes these blocks, checks them as it reads them, and
//! leaves all others as they are.
//!
//! The number of blocks and the digest of the whole file stand before the ranges, and are known behind
//! them: until then the ranges wait in a file without a name, and not in memory.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::hashmap::map_file::nameless;
use crate::report::hex;
use crate::scan::Extent;
use crate::stream::{CHUNK, ImageStream, Sink};

/// The unit of ranges: that of bmaptool.
const BLOCK: u64 = 4096;
/// What stands in the place of the digest of the file where that is taken.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What stands behind the ranges.
const FOOT: &str = "    </BlockMap>\n</bmap>\n";

/// See the module.
#[derive(Debug)]
pub struct Bmap {
    length: u64,
    /// Bytes of its data extents.
    pub data: u64,
    mapped: u64,
    ranges: File,
}

impl Bmap {
    /// Reads the data of an image. `found` is told of data as it is read, in order.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or changed meanwhile; [`Error::Refused`] for one of no bytes, of which there
    /// is no bmap.
    pub fn of(image: &ImageStream, found: &mut dyn FnMut(Extent)) -> Result<Bmap> {
        if image.length == 0 {
            return Err(Error::refused(
                &image.path,
                "has no bytes, and nothing with no bytes can be flashed",
            ));
        }
        let ranges = nameless().map_err(unkept())?;
        let ranges = BufWriter::new(ranges);
        let mut ranges = Ranges { at: 0, open: None, mapped: 0, ranges, found };
        let data = image.pour(&mut ranges)?;
        ranges.close()?;
        let mapped = ranges.mapped;
        let ranges = ranges.ranges.into_inner().map_err(|error| unkept()(error.into_error()))?;
        Ok(Bmap { length: image.length, data, mapped, ranges })
    }

    /// Writes it to `out`, whose name is `path`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&mut self, out: &mut dyn Write, path: &Path) -> Result<()> {
        let mut sha = Sha256::new();
        sha.update(self.head(NO_DIGEST));
        self.each_piece(&mut |piece| {
            sha.update(piece);
            Ok(())
        })?;
        sha.update(FOOT);
        let head = self.head(&hex(&sha.finalize()));
        let mut put = |piece: &[u8]| out.write_all(piece).map_err(Error::file("write", path));
        put(head.as_bytes())?;
        self.each_piece(&mut put)?;
        put(FOOT.as_bytes())
    }

    /// What stands before the ranges.
    fn head(&self, digest: &str) -> String {
        let Bmap { length, mapped, .. } = self;
        let blocks = length.div_ceil(BLOCK);
        format!(
            "<?xml version=\"1.0\" ?>\n\
             <!-- Made by holesync: the blocks of an image that hold data, for bmaptool copy. -->\n\
             <bmap version=\"2.0\">\n    \
             <ImageSize> {length} </ImageSize>\n    \
             <BlockSize> {BLOCK} </BlockSize>\n    \
             <BlocksCount> {blocks} </BlocksCount>\n    \
             <MappedBlocksCount> {mapped} </MappedBlocksCount>\n    \
             <ChecksumType> sha256 </ChecksumType>\n    \
             <BmapFileChecksum> {digest} </BmapFileChecksum>\n    \
             <BlockMap>\n"
        )
    }

    fn each_piece(&mut self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.ranges.rewind().map_err(unkept())?;
        let mut piece = vec![0; CHUNK];
        loop {
            match self.ranges.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(len) => take(&piece[..len])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unkept()(error)),
            }
        }
    }
}

fn unkept() -> impl FnOnce(io::Error) -> Error {
    Error::file("keep", "the ranges of the bmap in a temporary file")
}

/// Makes ranges of an image that is poured in.
struct Ranges<'a> {
    at: u64,
    /// The range that data was last found in: its first block, and the digest of it up to `at`.
    open: Option<(u64, Sha256)>,
    mapped: u64,
    ranges: BufWriter<File>,
    found: &'a mut dyn FnMut(Extent),
}

impl Ranges<'_> {
    /// No more data comes in the block that `at` lies in, or ends.
    fn close(&mut self) -> Result<()> {
        let Some((first, sha)) = self.open.take() else { return Ok(()) };
        let (last, digest) = (self.at.div_ceil(BLOCK) - 1, hex(&sha.finalize()));
        self.mapped += last - first + 1;
        let blocks = if first == last { first.to_string() } else { format!("{first}-{last}") };
        writeln!(self.ranges, "        <Range chksum=\"{digest}\"> {blocks} </Range>").map_err(unkept())
    }
}

impl Sink for Ranges<'_> {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let at = self.at;
        let (_, sha) = self.open.get_or_insert_with(|| {
            // What of the first block lies in a hole.
            (at / BLOCK, Sha256::new_with_prefix(&[0; BLOCK as usize][..(at % BLOCK) as usize]))
        });
        sha.update(bytes);
        self.at += bytes.len() as u64;
        (self.found)(at..self.at);
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        let end = self.at + len;
        let of_block = len.min(self.at.next_multiple_of(BLOCK) - self.at);
        if let Some((_, sha)) = &mut self.open {
            sha.update(&[0; BLOCK as usize][..of_block as usize]);
        }
        self.at += of_block;
        if self.at < end {
            self.close()?;
        }
        self.at = end;
        Ok(())
    }
}
