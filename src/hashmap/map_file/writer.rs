//! Writes a map, section by section.

use std::io::{self, Write};

use crate::hashmap::map_file::{BLOCKS, CHECK, Check, END, MAGIC, SECTION_BLOCKS, check, mask_bytes, number};
use crate::hashmap::{Grid, Hash, MapEntry, PageMask, RootHasher};

/// Zero blocks, and the blocks with data behind them.
#[derive(Debug, Default)]
struct Run {
    zeros: u64,
    blocks: Vec<(PageMask, Hash)>,
}

/// A map that is being written. What was added is not there as a map before
/// [`finish`](MapWriter::finish).
#[derive(Debug)]
pub struct MapWriter<W> {
    output: W,
    grid: Grid,
    /// The next block.
    index: u64,
    root: RootHasher,
    check: Check,
    run: Run,
    body: Vec<u8>,
    /// Blocks with data in `body` and `run`.
    gathered: usize,
}

impl<W: Write> MapWriter<W> {
    /// Begins the map of an image on this grid.
    ///
    /// # Errors
    ///
    /// What writing reports.
    pub fn new(mut output: W, grid: &Grid) -> io::Result<MapWriter<W>> {
        let mut head = MAGIC.to_vec();
        head.extend(grid.block.bytes().to_le_bytes());
        head.extend(grid.length.to_le_bytes());
        let check = check(&[0; CHECK], &[&head]);
        head.extend(check);
        output.write_all(&head)?;
        Ok(MapWriter {
            output,
            grid: *grid,
            index: 0,
            root: RootHasher::new(grid),
            check,
            run: Run::default(),
            body: Vec::new(),
            gathered: 0,
        })
    }

    /// Adds the next blocks of the image.
    ///
    /// # Errors
    ///
    /// What writing reports; more blocks than the image has.
    pub fn add(&mut self, entry: &MapEntry) -> io::Result<()> {
        if entry.blocks() > self.grid.blocks() - self.index {
            return Err(io::Error::other("a map of more blocks than the image has"));
        }
        match entry {
            MapEntry::Zero(blocks) => {
                self.close_run();
                self.run.zeros += blocks;
            }
            MapEntry::Data { pages, hash } => {
                self.root.add(self.index, hash);
                self.run.blocks.push((*pages, *hash));
                self.gathered += 1;
            }
        }
        self.index += entry.blocks();
        if self.gathered == SECTION_BLOCKS { self.close_section() } else { Ok(()) }
    }

    /// Completes the map. Returns what it was written to, and the root hash of the image.
    ///
    /// # Errors
    ///
    /// What writing reports; fewer blocks than the image has.
    pub fn finish(mut self) -> io::Result<(W, Hash)> {
        if self.index != self.grid.blocks() {
            return Err(io::Error::other("a map of fewer blocks than the image has"));
        }
        self.close_section()?;
        let root = self.root.clone().finish();
        self.section(END, &root)?;
        self.output.flush()?;
        Ok((self.output, root))
    }

    /// Appends the run to the body, if its blocks with data end here.
    fn close_run(&mut self) {
        if self.run.blocks.is_empty() {
            return;
        }
        self.append_run();
    }

    fn append_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        number::add(&mut self.body, run.zeros);
        number::add(&mut self.body, run.blocks.len() as u64);
        let bytes = mask_bytes(&self.grid);
        run.blocks.iter().for_each(|(pages, _)| self.body.extend(&pages.to_le_bytes()[..bytes]));
        run.blocks.iter().for_each(|(_, hash)| self.body.extend(hash));
    }

    fn close_section(&mut self) -> io::Result<()> {
        if self.run.zeros > 0 || !self.run.blocks.is_empty() {
            self.append_run();
        }
        if self.body.is_empty() {
            return Ok(());
        }
        let mut body = std::mem::take(&mut self.body);
        self.section(BLOCKS, &body)?;
        body.clear();
        (self.body, self.gathered) = (body, 0);
        Ok(())
    }

    fn section(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&kind.to_le_bytes());
        head[4..].copy_from_slice(&(body.len() as u32).to_le_bytes());
        self.check = check(&self.check, &[&head, body]);
        self.output.write_all(&head)?;
        self.output.write_all(body)?;
        self.output.write_all(&self.check)
    }
}
