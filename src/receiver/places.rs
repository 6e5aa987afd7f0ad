//! Where blocks lie that may be copied in the place of being sent: which place in which image
//! has a hash, as far as maps are at hand. Nothing waits for it, and nothing follows from it: what
//! is copied is hashed as it is copied.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::apply::{Basis, Place};
use crate::error::lock;
use crate::hashmap::{self, Batch, Grid, Hash, Item, PageMask};
use crate::options::BlockSize;
use crate::scan::{FileImage, Image};

/// Blocks that are known at most: 36 MiB, and half as much again while the table grows.
const MAX_BLOCKS: usize = (1 << 21) / 8 * 7;
/// Images in which blocks are looked for; of more the oldest go.
const MAX_IMAGES: usize = 64;
/// Bytes of an image below which its blocks are not worth their room.
const WORTH: u64 = 1 << 20;

/// All that is known.
#[derive(Default)]
pub struct Places(Mutex<Table>);

/// The number of an image.
type Number = u32;

#[derive(Default)]
struct Table {
    images: BTreeMap<Number, Origin>,
    next: Number,
    /// By the first bytes of their hashes.
    blocks: HashMap<[u8; 8], Spot>,
    /// Where there were too many, only each block whose index has so many zeros at its end is kept.
    sparse: u32,
}

/// Where an image is to be had.
enum Origin {
    Open(Arc<dyn Image + Send + Sync>),
    /// A file that is complete, or was given up: what is there is looked at again, when
    /// something is looked for.
    Closed(Place, Changed),
    /// Such a one that was looked at.
    OpenAgain(Arc<dyn Image + Send + Sync>, Place, Changed),
}

impl Origin {
    fn close_again(&mut self) {
        if let Origin::OpenAgain(_, place, changed) = self {
            *self = Origin::Closed(place.clone(), std::mem::take(changed));
        }
    }
}

/// Which blocks of a file do not stay as they were, as it is described.
#[derive(Default)]
pub struct Changed {
    /// Ascending, apart from each other.
    ranges: Vec<Range<u64>>,
}

impl Changed {
    /// Ranges that are kept at most: a file with more has no blocks for others.
    const MOST: usize = 1 << 16;

    /// The next blocks do not stay.
    pub fn add(&mut self, blocks: Range<u64>) {
        let may_grow = self.ranges.len() <= Changed::MOST;
        match self.ranges.last_mut() {
            Some(last) if last.end == blocks.start => last.end = blocks.end,
            _ if may_grow => self.ranges.push(blocks),
            _ => {}
        }
    }

    fn contains(&self, block: u64) -> bool {
        let behind = self.ranges.partition_point(|range| range.end <= block);
        self.ranges.get(behind).is_some_and(|range| range.contains(&block))
    }
}

/// A block of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    image: Number,
    block: u32,
}

/// A block that was found.
pub struct FoundBlock {
    /// Its pages of data.
    pub data: PageMask,
    /// These, packed.
    pub bytes: Vec<u8>,
}

/// A search for the blocks of one file.
pub struct Search {
    /// The image that this run writes to itself: places before the block that is looked for
    /// do not count there.
    written: Option<Number>,
    /// The block that was found last, and where.
    last: Option<(u64, Spot)>,
}

impl Search {
    /// `written`: the image of the file itself, if this run writes to it.
    pub fn new(written: Option<u32>) -> Search {
        Search { written, last: None }
    }
}

impl Places {
    /// An image whose map is to come; `None`: it is too small to be worth it.
    pub fn open(&self, image: &Arc<dyn Image + Send + Sync>, length: u64) -> Option<Number> {
        (length >= WORTH).then(|| lock(&self.0).open(Arc::clone(image)))
    }

    /// Learns all of an image, until that is of no use any more.
    ///
    /// # Errors
    ///
    /// What reading reports: what was learned counts.
    pub fn hash(&self, basis: &Basis, block: BlockSize, is_over: impl Fn() -> bool + Sync) -> io::Result<()> {
        if is_over() {
            return Ok(());
        }
        let grid = Grid { length: basis.length, block };
        let Some(number) = self.open(&basis.image, basis.length) else { return Ok(()) };
        // A thread of its own: where it is read slowly, what everybody waits for is not.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(io::Error::other)?;
        let mut at = 0;
        let mut learn = |batch: &mut Batch| {
            self.learn(number, at, &batch.items);
            at += batch.items.iter().map(Item::blocks).sum::<u64>();
            Ok(!is_over())
        };
        pool.install(|| hashmap::hash_image(basis.image.as_ref(), &grid, &mut learn))
    }

    /// A stretch of the map of an image, from the block `first` on.
    pub fn learn(&self, image: Number, first: u64, items: &[Item]) {
        lock(&self.0).learn(image, first, items);
    }

    /// What is there of a file is not held open any more, nor are others that were looked at for it:
    /// what was replaced meanwhile would keep its room. What stays of it may be looked at where it is.
    pub fn close(&self, image: Number, place: Option<Place>, changed: Changed) {
        let mut table = lock(&self.0);
        table.images.values_mut().for_each(Origin::close_again);
        let is_known = changed.ranges.len() <= Changed::MOST;
        match (table.images.get_mut(&image), place) {
            (Some(origin), Some(place)) if is_known => *origin = Origin::Closed(place, changed),
            _ => _ = table.images.remove(&image),
        }
    }

    /// The block of a file that has this hash, from anywhere.
    pub fn find(&self, hash: &Hash, grid: &Grid, index: u64, search: &mut Search) -> Option<FoundBlock> {
        let known = lock(&self.0).spot_of(hash);
        // Where only some blocks are known, those behind one that was found are found by it.
        let next = search.last.filter(|(last, _)| last + 1 == index).and_then(|(_, spot)| spot.next());
        let counts = |spot: &Spot| search.written != Some(spot.image) || u64::from(spot.block) > index;
        let mut found = [known, next].into_iter().flatten().filter(counts).filter_map(|spot| {
            let image = lock(&self.0).image(spot)?;
            let at = u64::from(spot.block) * grid.block.bytes();
            Some((spot, read(image.as_ref(), grid, index, at, hash)?))
        });
        let (spot, block) = found.next()?;
        search.last = Some((index, spot));
        Some(block)
    }
}

impl Spot {
    fn next(self) -> Option<Spot> {
        Some(Spot { block: self.block.checked_add(1)?, ..self })
    }
}

impl Table {
    fn open(&mut self, image: Arc<dyn Image + Send + Sync>) -> Number {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.images.insert(number, Origin::Open(image));
        if self.images.len() > MAX_IMAGES {
            self.images.pop_first();
        }
        number
    }

    fn learn(&mut self, image: Number, first: u64, items: &[Item]) {
        // It gave way to others.
        if !self.images.contains_key(&image) {
            return;
        }
        let mut index = first;
        for item in items {
            if let (Item::Block(block), Ok(at)) = (item, u32::try_from(index))
                && block.data != 0
                && at.trailing_zeros() >= self.sparse
            {
                self.blocks.insert(head(&block.hash), Spot { image, block: at });
            }
            index = index.saturating_add(item.blocks());
            while self.blocks.len() > MAX_BLOCKS {
                self.thin_out();
            }
        }
    }

    /// Forgets what is of no use any more, and then every other block.
    fn thin_out(&mut self) {
        let images = &self.images;
        self.blocks.retain(|_, spot| images.contains_key(&spot.image));
        if self.blocks.len() > MAX_BLOCKS / 4 * 3 {
            self.sparse += 1;
            let sparse = self.sparse;
            self.blocks.retain(|_, spot| spot.block.trailing_zeros() >= sparse);
        }
    }

    fn spot_of(&self, hash: &Hash) -> Option<Spot> {
        self.blocks.get(&head(hash)).copied()
    }

    /// The image that a block is in, if it has that still.
    fn image(&mut self, spot: Spot) -> Option<Arc<dyn Image + Send + Sync>> {
        let block = u64::from(spot.block);
        match self.images.remove(&spot.image)? {
            Origin::Closed(place, changed) => {
                let image: Arc<dyn Image + Send + Sync> =
                    Arc::new(FileImage::new(place.open_to_read()?, true));
                self.images.insert(spot.image, Origin::OpenAgain(image, place, changed));
            }
            origin => _ = self.images.insert(spot.image, origin),
        }
        match self.images.get(&spot.image)? {
            Origin::Open(image) => Some(Arc::clone(image)),
            Origin::OpenAgain(image, _, changed) => (!changed.contains(block)).then(|| Arc::clone(image)),
            Origin::Closed(..) => None,
        }
    }
}

fn head(hash: &Hash) -> [u8; 8] {
    std::array::from_fn(|i| hash[i])
}

/// The block `index` of a file, if it lies at this offset of an image. What cannot be read is not
/// there.
pub fn read(image: &dyn Image, grid: &Grid, index: u64, at: u64, hash: &Hash) -> Option<FoundBlock> {
    let range = grid.bytes(&(index..index + 1));
    let mut bytes = vec![0; (range.end - range.start) as usize];
    image.read_at(&mut bytes, at).ok()?;
    let block = hashmap::block_of(&bytes);
    let is_it = block.data != 0 && block.hash == *hash;
    let packed = || block.data_in(grid, index, &bytes).collect::<Vec<_>>().concat();
    is_it.then(|| FoundBlock { data: block.data, bytes: packed() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashmap::map_image;

    const BLOCK: u64 = 4096;

    /// An image of so many blocks, each another one, and what is known of it.
    fn image(blocks: u64) -> (Arc<dyn Image + Send + Sync>, Vec<Item>, Grid) {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        (0..blocks).for_each(|n| {
            file.write_all_at(&[&(n + 1).to_le_bytes()[..], &[7; 9]].concat(), n * BLOCK).unwrap()
        });
        file.set_len(blocks * BLOCK).unwrap();
        let grid = Grid { length: blocks * BLOCK, block: BlockSize::new(BLOCK).unwrap() };
        let image: Arc<dyn Image + Send + Sync> = Arc::new(FileImage::new(file, true));
        let mut items = Vec::new();
        map_image::<std::io::Error>(image.as_ref(), &grid, |batch| {
            items.append(&mut batch.items);
            Ok(true)
        })
        .unwrap();
        (image, items, grid)
    }

    fn hash_of(item: &Item) -> Hash {
        let Item::Block(block) = item else { panic!("a hole") };
        block.hash
    }

    #[test]
    fn what_is_known_is_found_and_what_was_written_over_is_not() {
        let (image, items, grid) = image(300);
        let places = Places::default();
        let number = places.open(&image, grid.length).unwrap();
        places.learn(number, 0, &items);
        let mut search = Search::new(None);
        assert!(places.find(&hash_of(&items[7]), &grid, 40, &mut search).is_some());
        assert!(places.find(&[9; 32], &grid, 41, &mut search).is_none());
        search.written = Some(number);
        assert!(places.find(&hash_of(&items[7]), &grid, 40, &mut search).is_none());
        assert!(places.find(&hash_of(&items[41]), &grid, 40, &mut search).is_some());
        places.close(number, None, Changed::default());
        assert!(places.find(&hash_of(&items[41]), &grid, 40, &mut search).is_none());
    }

    #[test]
    fn of_too_many_blocks_some_are_known_and_lead_to_those_behind_them() {
        let (image, items, grid) = image(300);
        let places = Places::default();
        let number = places.open(&image, grid.length).unwrap();
        places.learn(number, 0, &items);
        {
            let mut table = lock(&places.0);
            table.sparse = 3;
            table.blocks.retain(|_, spot| spot.block % 8 == 0);
            let (before, known) = (table.blocks.len(), table.blocks.capacity());
            table.learn(number, 0, &items);
            assert_eq!((table.blocks.len(), table.blocks.capacity()), (before, known));
        }
        let mut search = Search::new(None);
        let found: Vec<_> = (0..24)
            .filter(|&n| places.find(&hash_of(&items[n + 4]), &grid, n as u64, &mut search).is_some())
            .collect();
        assert_eq!(found, (4..24).collect::<Vec<_>>());
    }

    #[test]
    fn what_did_not_stay_is_told_from_what_did() {
        let mut changed = Changed::default();
        [1..3, 3..4, 9..10].into_iter().for_each(|range| changed.add(range));
        let are: Vec<_> = (0..12).filter(|&block| changed.contains(block)).collect();
        assert_eq!(are, [1, 2, 3, 9]);
        assert_eq!(changed.ranges.len(), 2);
    }

    #[test]
    fn of_many_images_the_oldest_go() {
        let (image, items, grid) = image(256);
        let places = Places::default();
        let first = places.open(&image, grid.length).unwrap();
        places.learn(first, 0, &items);
        let mut search = Search::new(None);
        (0..MAX_IMAGES).for_each(|_| _ = places.open(&image, grid.length));
        assert!(places.find(&hash_of(&items[3]), &grid, 0, &mut search).is_none());
        assert!(places.open(&image, WORTH - 1).is_none());
    }
}
