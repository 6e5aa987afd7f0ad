//! Where the blocks of a version lie: for each block that is not zero, in the order of its map, a
//! pack, a frame in it, and where in that.
//!
//! Magic, number of packs (4 bytes) and their names (16 bytes each); then, as one stream of zstd, runs
//! of blocks that lie one after the other in a frame: how many, pack, offset and length of the
//! frame, offset of the first block in what that unpacks to; each a number of LEB128.

use std::io::{self, BufReader, Read, Write};
use std::ops::Range;

use crate::hashmap::map_file::number;
use crate::store::name::ObjectId;
use crate::store::pack::{MOST_PACK, MOST_RAW, MOST_STORED, MOST_WINDOW};

const MAGIC: &[u8; 16] = b"holesync places\n";
/// Packs of one version: a pebibyte of packs of 64 MiB.
const MOST_PACKS: usize = 1 << 24;
const LEVEL: i32 = 9;

/// The name of a pack: the first bytes of its BLAKE3.
pub type PackId = ObjectId;

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the packs.
    pub pack: u32,
    /// Where its frame begins in that.
    pub offset: u64,
    /// Bytes of the frame.
    pub stored: u32,
    /// Where in what the frame unpacks to.
    pub raw: u32,
}

impl Place {
    /// Where its frame lies in its pack.
    pub fn frame(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.stored)
    }
}

/// Blocks that lie one after the other in one frame.
#[derive(Debug, Clone, Copy)]
struct Run {
    blocks: u64,
    first: Place,
    /// Where the next block would lie.
    end: u32,
}

/// Writes the runs, before it is known which packs there are.
pub struct PlacesWriter<W: Write> {
    packer: zstd::stream::write::Encoder<'static, W>,
    run: Option<Run>,
}

impl<W: Write> PlacesWriter<W> {
    /// Runs go to `output`.
    ///
    /// # Errors
    ///
    /// What zstd reports.
    pub fn new(output: W) -> io::Result<PlacesWriter<W>> {
        Ok(PlacesWriter { packer: zstd::stream::write::Encoder::new(output, LEVEL)?, run: None })
    }

    /// Adds the place of the next block, which has so many bytes of data.
    ///
    /// # Errors
    ///
    /// What writing reports.
    pub fn add(&mut self, place: Place, bytes: u32) -> io::Result<()> {
        if let Some(run) = &mut self.run
            && (Place { raw: run.end, ..run.first }) == place
        {
            run.blocks += 1;
            run.end += bytes;
            return Ok(());
        }
        self.end_run()?;
        self.run = Some(Run { blocks: 1, first: place, end: place.raw + bytes });
        Ok(())
    }

    fn end_run(&mut self) -> io::Result<()> {
        let Some(Run { blocks, first, .. }) = self.run.take() else { return Ok(()) };
        let mut record = Vec::new();
        let numbers = [blocks, first.pack.into(), first.offset, first.stored.into(), first.raw.into()];
        numbers.into_iter().for_each(|value| number::add(&mut record, value));
        self.packer.write_all(&record)
    }

    /// Completes the runs.
    ///
    /// # Errors
    ///
    /// What writing reports.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_run()?;
        self.packer.finish()
    }
}

/// What stands before the runs: which packs there are.
pub fn head_of(packs: &[PackId]) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend((packs.len() as u32).to_le_bytes());
    packs.iter().for_each(|pack| head.extend(pack.0));
    head
}

/// The packs that a version lies in.
///
/// # Errors
///
/// `InvalidData` for what are no places; what reading reports.
pub fn read_packs(input: &mut impl Read) -> io::Result<Vec<PackId>> {
    let mut head = [0; 20];
    input.read_exact(&mut head)?;
    let count = u32::from_le_bytes(std::array::from_fn(|nth| head[16 + nth])) as usize;
    if head[..16] != *MAGIC || count > MOST_PACKS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut packs = Vec::new();
    for _ in 0..count {
        let mut id = [0; 16];
        input.read_exact(&mut id)?;
        packs.push(ObjectId(id));
    }
    Ok(packs)
}

/// Places that are being read, in the order of the map.
pub struct PlacesReader<R: Read> {
    packs: Vec<PackId>,
    runs: BufReader<zstd::stream::read::Decoder<'static, BufReader<R>>>,
    /// Blocks left of the run, and where the next one lies.
    left: u64,
    next: Place,
}

impl<R: Read> PlacesReader<R> {
    /// Reads which packs there are.
    ///
    /// # Errors
    ///
    /// Those of [`read_packs`].
    pub fn new(mut input: R) -> io::Result<PlacesReader<R>> {
        let packs = read_packs(&mut input)?;
        let mut unpacker = zstd::stream::read::Decoder::new(input)?;
        unpacker.window_log_max(MOST_WINDOW)?;
        let runs = BufReader::new(unpacker);
        let next = Place { pack: 0, offset: 0, stored: 0, raw: 0 };
        Ok(PlacesReader { packs, runs, left: 0, next })
    }

    /// The packs that the version lies in.
    pub fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// The name of the pack of a place that was read.
    pub fn pack_of(&self, place: &Place) -> PackId {
        self.packs[place.pack as usize]
    }

    /// The place of the next block that is not zero, which has so many bytes of data.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a place that no block can have; what reading reports.
    pub fn next(&mut self, bytes: u64) -> io::Result<Place> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        if self.left == 0 {
            (self.left, self.next) = self.run()?;
        }
        let place = self.next;
        let end = u64::from(place.raw) + bytes;
        if end > MOST_RAW as u64 {
            return Err(wrong());
        }
        self.next.raw = end as u32;
        self.left -= 1;
        Ok(place)
    }

    fn run(&mut self) -> io::Result<(u64, Place)> {
        let mut numbers = [0; 5];
        for value in &mut numbers {
            *value = number::read(&mut self.runs)?;
        }
        let [blocks, pack, offset, stored, raw] = numbers;
        let is_fine = blocks > 0
            && pack < self.packs.len() as u64
            && stored > 0
            && stored <= MOST_STORED as u64
            && raw < MOST_RAW as u64
            && offset <= MOST_PACK;
        if !is_fine {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((blocks, Place { pack: pack as u32, offset, stored: stored as u32, raw: raw as u32 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(places: &[(Place, u32)]) -> Vec<u8> {
        let mut writer = PlacesWriter::new(Vec::new()).unwrap();
        places.iter().for_each(|&(place, bytes)| writer.add(place, bytes).unwrap());
        [head_of(&[ObjectId([1; 16]), ObjectId([2; 16])]), writer.finish().unwrap()].concat()
    }

    #[test]
    fn places_are_read_as_they_were_written() {
        let place = |pack, offset, raw| Place { pack, offset, stored: 99, raw };
        let places = [
            (place(0, 24, 0), 4096),
            (place(0, 24, 4096), 100),
            (place(1, 24, 0), 7),
            (place(0, 24, 0), 4096),
        ];
        let bytes = written(&places);
        let mut reader = PlacesReader::new(bytes.as_slice()).unwrap();
        for (place, bytes) in places {
            assert_eq!(reader.next(bytes.into()).unwrap(), place);
        }
        assert!(reader.next(1).is_err());
    }

    #[test]
    fn places_that_no_block_can_have_are_refused() {
        for place in [
            Place { pack: 2, offset: 24, stored: 9, raw: 0 },
            Place { pack: 0, offset: 24, stored: 0, raw: 0 },
            Place { pack: 0, offset: 24, stored: MOST_STORED as u32 + 1, raw: 0 },
            Place { pack: 0, offset: MOST_PACK + 1, stored: 9, raw: 0 },
            Place { pack: 0, offset: 24, stored: 9, raw: MOST_RAW as u32 - 1 },
        ] {
            let bytes = written(&[(place, 4096)]);
            assert!(PlacesReader::new(bytes.as_slice()).unwrap().next(4096).is_err(), "{place:?}");
        }
    }
}
