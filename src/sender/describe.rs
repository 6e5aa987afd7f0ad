//! How a file is told to the receiver, block by block: what stays, what becomes
//! zero, what is new, and of what differs only the parts that it lacks.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::Range;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::hashmap::{Batch, Block, Grid, Hash, PageMask, page_runs};
use crate::protocol::Compressor;
use crate::protocol::Link;
use crate::protocol::{Answer, Differ, MAX_ASKED, MAX_DATA, MAX_DATA_BLOCKS, MAX_DIFFER, Message, Patch};
use crate::sender::announce::Shared;
use crate::sender::file_state::BatchWalk;
use crate::sys;

/// Data that waits for an answer, in bytes. What a long link carries meanwhile
/// should fit in here.
const MAX_HELD: usize = 16 << 20;
/// Patches gather up to this, in bytes, so that they compress well.
const PATCH: usize = 256 << 10;
/// Bytes that a range of a file has on average, for the way past us to be worth it.
const LEAST_DIRECT: u64 = 32 << 10;
/// How long an answer takes, in seconds, as long as none has come.
const FIRST_GUESS: f64 = 2e-3;
/// What a byte costs on the fastest link that there is, in seconds: ssh encrypts it
/// and decrypts it.
const FASTEST: f64 = 2e-9;

/// Tells of one file after the other.
pub(crate) struct Describer<'a, W: Write> {
    shared: &'a Shared<'a, W>,
    link: Link,
    compressor: Compressor,
    questions: Questions,
    /// Blocks to keep that the receiver was not told of yet.
    keep: u64,
    /// Blocks to be asked about that it was not told of yet.
    differ: Differ,
    /// Blocks that it was or will be asked about.
    asked: VecDeque<Asked>,
    /// Bytes in those.
    held: usize,
    /// What it lacks of blocks that it has answered for.
    patch: Patch,
}

/// What is done with blocks that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// They are sent whole.
    Send,
    /// The receiver is asked what it has of them.
    Ask,
}

/// A block that waits for an answer.
struct Asked {
    index: u64,
    since: Instant,
    data: PageMask,
    /// Its pages of data, packed.
    bytes: Vec<u8>,
}

impl<'a, W: Write> Describer<'a, W> {
    /// For a connection.
    pub fn new(shared: &'a Shared<'a, W>) -> Describer<'a, W> {
        Describer {
            shared,
            link: Link::default(),
            compressor: Compressor::new(shared.options),
            questions: Questions::new(),
            keep: 0,
            differ: Differ::default(),
            asked: VecDeque::new(),
            held: 0,
            patch: Patch::default(),
        }
    }

    /// A new file begins.
    pub fn begin(&mut self) {
        self.keep = 0;
        self.differ = Differ::default();
        self.asked.clear();
        self.held = 0;
        self.patch = Patch::default();
        self.questions.begin();
    }

    /// So many blocks stay.
    pub fn keep(&mut self, blocks: u64) -> Result<()> {
        self.ask()?;
        self.keep += blocks;
        Ok(())
    }

    /// So many blocks become zero.
    pub fn zero(&mut self, blocks: u64) -> Result<()> {
        self.say()?;
        self.shared.send(&Message::Zero { blocks })
    }

    /// Adjoining blocks are sent whole; how many bytes that was. The inner error is the
    /// source's.
    pub fn send(
        &mut self,
        grid: &Grid,
        walk: &mut BatchWalk,
        blocks: &mut [(u64, Block)],
    ) -> Result<io::Result<u64>> {
        self.say()?;
        let mut sent = 0;
        for (first, count) in frames_of(grid, blocks) {
            match self.send_frame(grid, walk, &mut blocks[first..first + count])? {
                Ok(bytes) => sent += bytes,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(sent))
    }

    fn send_frame(
        &mut self,
        grid: &Grid,
        walk: &mut BatchWalk,
        blocks: &mut [(u64, Block)],
    ) -> Result<io::Result<u64>> {
        let Some(&(first, _)) = blocks.first() else { return Ok(Ok(0)) };
        let masks: Vec<_> = blocks.iter().map(|(_, block)| block.data).collect();
        if let Some(source) = walk.source() {
            let ranges = ranges_of(grid, blocks);
            let len = ranges.iter().map(|range| range.end - range.start).sum::<u64>();
            let shared = self.shared;
            let mut output = shared.lock_output();
            let pays = len >= LEAST_DIRECT * ranges.len() as u64 && output.is_direct();
            if pays && self.compressor.skips(len as usize) {
                let write = || output.data_of_file(first, &masks, source.image.file(), &ranges);
                return Ok(self.link.watch(len, write)?.map(|()| len));
            }
        }
        if let Err(error) = walk.fetch(grid, blocks) {
            return Ok(Err(error));
        }
        let batch = &walk.batch;
        let parts: Vec<&[u8]> =
            blocks.iter().flat_map(|(index, block)| batch.data_of(grid, *index, block)).collect();
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let packed = self.compressor.compress(&parts, &self.link);
        let written = packed.as_ref().map_or(len, Vec::len) as u64;
        let shared = self.shared;
        let mut output = shared.lock_output();
        self.link.watch(written, || match &packed {
            Some(packed) => output.data_zstd(first, &masks, len, packed),
            None => output.data(first, &masks, &parts),
        })?;
        Ok(Ok(len as u64))
    }

    /// What to do with adjoining blocks that differ.
    /// `rest`: about how many bytes of data follow in this file.
    pub fn decide(&mut self, grid: &Grid, blocks: &[(u64, Block)], rest: u64) -> Step {
        let leaf = self.shared.options.leaf_size.bytes();
        let bytes = blocks.iter().map(|(index, block)| grid.masked_bytes(*index, block.data)).sum();
        let asks = leaf < grid.block.bytes() && self.questions.pay(bytes, rest, &self.link);
        if asks { Step::Ask } else { Step::Send }
    }

    /// Whether an answer has to come before more can be asked.
    pub fn is_full(&self) -> bool {
        self.held >= MAX_HELD || self.asked.len() + self.patch.masks.len() >= MAX_ASKED
    }

    /// Asks about a block that differs.
    pub fn wonder(&mut self, grid: &Grid, batch: &Batch, index: u64, block: &Block) -> Result<()> {
        let follows = self.differ.first + self.differ.hashes.len() as u64 == index;
        if self.keep > 0 || !follows || self.differ.hashes.len() >= MAX_DIFFER {
            self.say()?;
            self.differ.first = index;
        }
        self.differ.hashes.push(block.hash);
        let bytes = batch.data_of(grid, index, block).collect::<Vec<_>>().concat();
        self.held += bytes.len();
        self.asked.push_back(Asked { index, since: Instant::now(), data: block.data, bytes });
        Ok(())
    }

    /// Whether answers are still to come.
    pub fn awaits_answers(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Takes an answer, and sends what the receiver lacks. Returns how many bytes
    /// that is, and how many it has.
    pub fn take_answer(&mut self, grid: &Grid, answer: Answer) -> Result<(u64, u64)> {
        let (mut lacking, mut had) = (0, 0);
        for leaves in answer.blocks {
            let Some(Asked { index, since, data, bytes }) = self.asked.pop_front() else {
                return Err(self.unexpected("leaves that it was not asked for"));
            };
            self.held -= bytes.len();
            self.questions.answered_after(since.elapsed().as_secs_f64());
            // Time that something else took shall not count.
            let start = sys::thread_time();
            let sent = leaves.differing(self.shared.options.leaf_size, grid, index, data, &bytes);
            let lacks = grid.masked_bytes(index, sent);
            let took = sys::thread_time().saturating_sub(start);
            self.questions.learn(bytes.len(), lacks, took.as_secs_f64());
            self.add_to_patch(grid, index, data, sent, &bytes)?;
            lacking += lacks;
            had += bytes.len() as u64 - lacks;
        }
        Ok((lacking, had))
    }

    fn add_to_patch(
        &mut self,
        grid: &Grid,
        index: u64,
        data: PageMask,
        sent: PageMask,
        bytes: &[u8],
    ) -> Result<()> {
        if self.patch.bytes.len() >= PATCH || self.patch.masks.len() >= MAX_DATA_BLOCKS {
            self.send_patch()?;
        }
        if self.patch.masks.is_empty() {
            self.patch.first = index;
        }
        self.patch.masks.push(data);
        self.patch.sent.push(sent);
        let block = Block { hash: Hash::default(), data: sent, read: data, at: 0 };
        block.data_in(grid, index, bytes).for_each(|part| self.patch.bytes.extend(part));
        Ok(())
    }

    fn send_patch(&mut self) -> Result<()> {
        let patch = std::mem::take(&mut self.patch);
        if patch.masks.is_empty() {
            return Ok(());
        }
        let packed = self.compressor.compress(&[&patch.bytes], &self.link);
        let written = packed.as_ref().map_or(patch.bytes.len(), Vec::len) as u64;
        let shared = self.shared;
        let mut output = shared.lock_output();
        self.link.watch(written, || output.patch(&patch, packed.as_deref()))
    }

    /// Says what was held back: the receiver waits for it, or something else follows.
    pub fn say(&mut self) -> Result<()> {
        let blocks = std::mem::take(&mut self.keep);
        if blocks > 0 {
            self.shared.send(&Message::Keep { blocks })?;
        }
        self.ask()
    }

    fn ask(&mut self) -> Result<()> {
        let differ = std::mem::take(&mut self.differ);
        if differ.hashes.is_empty() { Ok(()) } else { self.shared.lock_output().differ(&differ) }
    }

    /// Says what is left of a file.
    pub fn finish(&mut self) -> Result<()> {
        self.say()?;
        self.send_patch()
    }

    /// Says all there is to say, and has it leave.
    pub fn flush(&mut self) -> Result<()> {
        self.finish()?;
        self.shared.lock_output().flush()
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::Protocol { peer: "the receiver".into(), what: what.into() }
    }
}

/// Of how many of these adjoining blocks it is decided at once.
pub(crate) fn at_once(grid: &Grid, blocks: &[(u64, Block)]) -> usize {
    blocks.len().min((MAX_DATA as u64 / grid.block.bytes()) as usize)
}

/// The frames for these adjoining blocks: index of the first, and how many.
fn frames_of(grid: &Grid, blocks: &[(u64, Block)]) -> Vec<(usize, usize)> {
    let mut frames: Vec<(usize, usize)> = Vec::new();
    let mut bytes = 0;
    for (at, (index, block)) in blocks.iter().enumerate() {
        let more = grid.masked_bytes(*index, block.data) as usize;
        match frames.last_mut() {
            Some((_, count)) if bytes + more <= MAX_DATA && *count < MAX_DATA_BLOCKS => {
                *count += 1;
                bytes += more;
            }
            _ => {
                frames.push((at, 1));
                bytes = more;
            }
        }
    }
    frames
}

/// Where in the file the data of these adjoining blocks is.
fn ranges_of(grid: &Grid, blocks: &[(u64, Block)]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (index, block) in blocks {
        for range in page_runs(block.data).map(|run| grid.pages(*index, &run)) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
    }
    ranges
}

/// Whether it pays to ask what the receiver has of blocks that differ: a question
/// costs hashing at both ends, at the same time, and saves bytes.
struct Questions {
    /// Of what was asked about, how much did not have to travel lately: 0 to 1.
    saved: f64,
    /// What hashing leaves costs, in seconds of a processor a byte.
    cost: f64,
    /// How long the quickest answer took, in seconds, if one has come.
    delay: Option<f64>,
    /// Bytes of this file that differ and were sent before the first question.
    unasked: u64,
    /// There was a question about this file: the wait for an answer is worth it.
    begun: bool,
    /// Decisions since the last question.
    idle: u32,
}

impl Questions {
    /// Every so often it is tried whether it pays again.
    const TRY_AGAIN: u32 = 8;

    fn new() -> Questions {
        Questions { saved: 1.0, cost: 0.0, delay: None, unasked: 0, begun: false, idle: 0 }
    }

    fn begin(&mut self) {
        (self.unasked, self.begun) = (0, false);
    }

    fn pay(&mut self, bytes: u64, rest: u64, link: &Link) -> bool {
        let seen = link.seconds_per_byte();
        let per_byte = seen.unwrap_or(FASTEST).max(FASTEST);
        // The first blocks of a file are sent sooner than an answer comes, and the last
        // ones while the last answer is on its way.
        let few = (self.unasked + bytes) as f64 * per_byte < self.delay.unwrap_or(FIRST_GUESS);
        let late = self.delay.zip(seen).is_some_and(|(delay, _)| rest as f64 * per_byte < delay);
        if few && !self.begun || late {
            self.unasked += bytes;
            return false;
        }
        self.begun = true;
        self.idle += 1;
        let pay = self.saved * per_byte > self.cost || self.idle >= Questions::TRY_AGAIN;
        if pay {
            self.idle = 0;
        }
        pay
    }

    fn answered_after(&mut self, seconds: f64) {
        self.delay = Some(self.delay.map_or(seconds, |delay| delay.min(seconds)));
    }

    /// Learns from an answer for a block.
    fn learn(&mut self, bytes: usize, sent: u64, seconds: f64) {
        const WEIGHT: f64 = 1.0 / 16.0;
        let bytes = bytes.max(1) as f64;
        self.saved += (1.0 - sent as f64 / bytes - self.saved) * WEIGHT;
        self.cost += (seconds / bytes - self.cost) * WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 64 << 10;

    /// After the first blocks of a file, and some answers that saved most of a block.
    fn questions(seconds_per_byte: f64) -> Questions {
        let mut questions = Questions { unasked: 1 << 20, ..Questions::new() };
        (0..50).for_each(|_| questions.learn(BLOCK, 4096, seconds_per_byte * BLOCK as f64));
        questions
    }

    /// How many of these decisions were for asking.
    fn asked(questions: &mut Questions, decisions: usize) -> usize {
        (0..decisions).filter(|_| questions.pay(BLOCK as u64, 1 << 30, &Link::default())).count()
    }

    #[test]
    fn the_first_blocks_of_a_file_are_not_asked_about() {
        let mut questions = Questions::new();
        assert_eq!(asked(&mut questions, 15), 0);
        assert_eq!(asked(&mut questions, 15), 15);
        // Nor does a slow answer stop what has begun; the next file is another matter.
        questions.answered_after(0.02);
        assert_eq!(asked(&mut questions, 15), 15);
        questions.begin();
        assert_eq!(asked(&mut questions, 15), 0);
    }

    #[test]
    fn the_last_blocks_of_a_file_wait_for_no_answer() {
        let mut questions = questions(0.5e-9);
        questions.answered_after(2e-3);
        let mut link = Link::default();
        link.took(64 << 20, std::time::Duration::from_millis(64 * 10));
        assert!(questions.pay(BLOCK as u64, 1 << 20, &link));
        assert!(!questions.pay(BLOCK as u64, 1 << 17, &link));
    }

    #[test]
    fn where_hashing_costs_more_than_it_saves_it_is_only_tried() {
        assert_eq!(asked(&mut questions(3e-9), 16), 2);
        let mut useless = questions(0.5e-9);
        (0..50).for_each(|_| useless.learn(BLOCK, BLOCK as u64, 0.5e-9 * BLOCK as f64));
        assert_eq!(asked(&mut useless, 16), 2);
    }
}
