//! How a file is told to the receiver, block by block: what stays, what becomes
//! zero, what is new, and of what differs only the parts that it lacks. In a dry run the same is
//! told without the data: see [`Over`].

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::{Batch, Block, Grid, Hash, PageMask};
use crate::options::BlockSize;
use crate::protocol::{
    BlockAnswer, COPIES, Compressor, Credit, Differ, LEAF_BLOCKS, LeafAnswer, LinkSpeed, MAX_DATA,
    MAX_DATA_BLOCKS, MAX_DIFFER, MAX_UNPATCHED, Message, Patch,
};
use crate::report::{Event, Phase};
use crate::sender::described_file::BatchCursor;
use crate::sender::leaf_policy::LeafPolicy;
use crate::sender::pending::{PendingBlock, PendingBytes, frames_of, ranges_of};
use crate::sender::shared::SenderShared;
use crate::source::OpenSource;
use crate::sys;

/// Data that waits for an answer, in bytes. What is beyond that is read once more when the
/// answer comes, where that can be; otherwise questions wait.
const MAX_HELD: usize = 16 << 20;
/// The same for each of several that send the same files, which are read from the cache.
const MAX_HELD_EACH: usize = 1 << 20;
/// Patches gather up to this, in bytes, so that they compress well.
const PATCH: usize = 256 << 10;
/// Bytes of a file of which new blocks are worth a question: others would wait for the answer.
const SEARCHED: u64 = 4 << 20;
/// Bytes that a range of a file has on average, for the way past us to be worth it.
const LEAST_DIRECT: u64 = 32 << 10;

/// Describes one file after the other.
pub struct Describer<'a, W: Write> {
    shared: &'a SenderShared<'a, W>,
    link: LinkSpeed,
    compressor: Compressor,
    policy: LeafPolicy,
    /// Where the receiver may be asked about blocks that are new.
    news: News,
    /// The file is compared with nothing.
    whole: bool,
    /// Blocks to keep that the receiver was not told of yet.
    keep: u64,
    /// Blocks to be asked about that it was not told of yet.
    differ: Differ,
    /// Blocks that it was or will be asked about.
    asked: VecDeque<PendingBlock>,
    /// Bytes in those.
    held: usize,
    /// What it lacks of blocks that it has answered for.
    patch: Patch,
}

/// What is done with blocks that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// They are sent whole.
    Send,
    /// The receiver is asked what it has of them.
    Ask,
}

/// Whether the receiver is asked about blocks that are new: it may have them elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// It has nothing, as far as this run has seen.
    Nowhere,
    /// In files that are large enough for a question.
    Elsewhere,
}

/// What the receiver has of blocks that are sent whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Zeros, or nobody knows: in a dry run it is told which pages come.
    Zeros,
    /// Data: in a dry run it is told a hash of each page, as some of them may be there.
    Data,
}

impl<'a, W: Write> Describer<'a, W> {
    pub fn new(shared: &'a SenderShared<'a, W>) -> Describer<'a, W> {
        Describer {
            shared,
            link: LinkSpeed::default(),
            compressor: Compressor::new(shared.options),
            policy: LeafPolicy::new(!shared.options.basis.is_empty()),
            news: if shared.options.basis.is_empty() { News::Nowhere } else { News::Elsewhere },
            whole: false,
            keep: 0,
            differ: Differ::default(),
            asked: VecDeque::new(),
            held: 0,
            patch: Patch::default(),
        }
    }

    /// A new file begins, of which the receiver tells what it has, or not. `whole`: it is compared
    /// with nothing.
    pub fn begin(&mut self, mapped: bool, whole: bool) {
        if mapped {
            self.news = News::Elsewhere;
        }
        self.whole = whole;
        self.keep = 0;
        let unsent = std::mem::take(&mut self.differ);
        self.shared.files.give_back(Credit::of_question(unsent.hashes.len()));
        self.asked.clear();
        self.held = 0;
        self.patch = Patch::default();
        self.policy.begin();
    }

    /// So many blocks stay.
    pub fn keep(&mut self, blocks: u64) -> Result<()> {
        self.send_question()?;
        self.keep += blocks;
        Ok(())
    }

    /// So many blocks become zero.
    pub fn zero(&mut self, blocks: u64) -> Result<()> {
        self.flush_pending()?;
        self.shared.send(&Message::Zero { blocks })
    }

    /// Adjoining blocks are sent whole; how many bytes that was. The inner error is the
    /// source's.
    pub fn send(
        &mut self,
        grid: &Grid,
        cursor: &mut BatchCursor,
        blocks: &mut [(u64, Block)],
        over: Over,
    ) -> Result<io::Result<u64>> {
        self.flush_pending()?;
        let mut sent = 0;
        self.shared.reporter.event(Event::Phase(Phase::Sending));
        for (first, count) in frames_of(grid, blocks) {
            let blocks = &mut blocks[first..first + count];
            let sent_frame = match self.shared.options.dry_run {
                true => self.foretell_frame(grid, cursor, blocks, over),
                false => self.send_frame(grid, cursor, blocks),
            };
            match sent_frame? {
                Ok(bytes) => {
                    self.shared.done(Phase::Sending, bytes);
                    sent += bytes;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(sent))
    }

    fn send_frame(
        &mut self,
        grid: &Grid,
        cursor: &mut BatchCursor,
        blocks: &mut [(u64, Block)],
    ) -> Result<io::Result<u64>> {
        let Some(&(first, _)) = blocks.first() else { return Ok(Ok(0)) };
        let masks: Vec<_> = blocks.iter().map(|(_, block)| block.data).collect();
        if let Some(source) = cursor.source() {
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
        if let Err(error) = cursor.fetch(grid, blocks) {
            return Ok(Err(error));
        }
        let batch = &cursor.batch;
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

    /// In a dry run, in the place of a frame of data.
    fn foretell_frame(
        &mut self,
        grid: &Grid,
        cursor: &mut BatchCursor,
        blocks: &mut [(u64, Block)],
        over: Over,
    ) -> Result<io::Result<u64>> {
        let Some(&(first, _)) = blocks.first() else { return Ok(Ok(0)) };
        let mut hashes = Vec::new();
        if over == Over::Data {
            if let Err(error) = cursor.fetch(grid, blocks) {
                return Ok(Err(error));
            }
            for (index, block) in &*blocks {
                let bytes = cursor.batch.data_of(grid, *index, block).collect::<Vec<_>>().concat();
                hashes.extend(Leaves::of(BlockSize::SMALLEST, grid, *index, block.data, &bytes).hashes);
            }
        }
        let masks: Vec<_> = blocks.iter().map(|(_, block)| block.data).collect();
        self.shared.lock_output().data(first, &masks, &[hashes.as_flattened()])?;
        Ok(Ok(blocks.iter().map(|(index, block)| grid.masked_bytes(*index, block.data)).sum()))
    }

    /// What to do with adjoining blocks that differ, or are new.
    /// `rest`: about how many bytes of data follow in this file.
    pub fn decide(&mut self, grid: &Grid, blocks: &[(u64, Block)], over: Over, rest: u64) -> Treatment {
        let leaf = self.shared.options.leaf_size.bytes();
        let bytes = blocks.iter().map(|(index, block)| grid.masked_bytes(*index, block.data)).sum();
        let asks = leaf < grid.block.bytes()
            && match over {
                Over::Data => self.policy.pays_off(bytes, rest, &self.link),
                Over::Zeros => self.policy.finds_new(),
            };
        if asks { Treatment::Ask } else { Treatment::Send }
    }

    /// Whether the receiver may be asked about blocks of a file that are new.
    pub fn may_have_new(&self, grid: &Grid) -> bool {
        let knows = self.shared.version >= COPIES && self.news == News::Elsewhere;
        knows && !self.whole && grid.length >= SEARCHED
    }

    /// Asks about a block that differs. `false`: answers or credit have to come first. `again`:
    /// where its bytes can be read once more.
    pub fn ask_about(
        &mut self,
        grid: &Grid,
        batch: &Batch,
        index: u64,
        block: &Block,
        again: Option<Arc<OpenSource>>,
    ) -> Result<bool> {
        let follows = self.differ.first + self.differ.hashes.len() as u64 == index;
        if self.keep > 0 || !follows || self.differ.hashes.len() >= MAX_DIFFER {
            self.flush_pending()?;
            self.differ.first = index;
        }
        let most = if self.shared.is_shared { MAX_HELD_EACH } else { MAX_HELD };
        let again = again.filter(|_| self.held >= most);
        let holds_enough = self.held >= MAX_HELD && again.is_none();
        let is_full = holds_enough || self.asked.len() + self.patch.masks.len() >= MAX_UNPATCHED;
        let needs_credit = self.differ.hashes.len().is_multiple_of(LEAF_BLOCKS);
        if is_full || needs_credit && !self.shared.files.take_credit(1) {
            return Ok(false);
        }
        self.differ.hashes.push(block.hash);
        let held = || PendingBytes::Held(batch.data_of(grid, index, block).collect::<Vec<_>>().concat());
        let bytes = again.map_or_else(held, PendingBytes::In);
        self.held += bytes.held();
        self.asked.push_back(PendingBlock {
            index,
            since: Instant::now(),
            data: block.data,
            bytes,
            behind: 0,
        });
        Ok(true)
    }

    /// So much data is equal, or need not be looked at. It counts in the order of the file: behind
    /// blocks that wait.
    pub fn matched(&mut self, bytes: u64) {
        match self.asked.back_mut() {
            Some(asked) => asked.behind += bytes,
            None => self.shared.done(Phase::Mapping, bytes),
        }
    }

    /// Whether answers are still to come.
    pub fn awaits_answers(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Takes an answer, and sends what the receiver lacks. Returns how many bytes
    /// that is, and how many it has. The inner error is the source's.
    pub fn take_answer(&mut self, grid: &Grid, answer: LeafAnswer) -> Result<io::Result<(u64, u64)>> {
        let (mut lacking, mut had) = (0, 0);
        for block in answer.blocks {
            let Some(PendingBlock { index, since, data, bytes, behind }) = self.asked.pop_front() else {
                return Err(self.unexpected("leaves that it was not asked for"));
            };
            self.held -= bytes.held();
            let leaves = match block {
                BlockAnswer::Leaves(leaves) => leaves,
                BlockAnswer::Had if self.shared.version >= COPIES => {
                    let bytes = grid.masked_bytes(index, data);
                    self.policy.found(bytes as usize, since.elapsed().as_secs_f64());
                    had += bytes;
                    self.shared.done(Phase::Mapping, bytes + behind);
                    continue;
                }
                BlockAnswer::Had => return Err(self.unexpected("a block that it was not asked for")),
            };
            let bytes = match bytes.read(grid, index, data) {
                Ok(bytes) => bytes,
                Err(error) => return Ok(Err(error)),
            };
            self.policy.answered_after(since.elapsed().as_secs_f64());
            // Time that something else took shall not count.
            let start = sys::thread_time();
            let sent = leaves.differing(self.shared.options.leaf_size, grid, index, data, &bytes);
            let lacks = grid.masked_bytes(index, sent);
            let took = sys::thread_time().saturating_sub(start);
            match leaves.data {
                0 => self.policy.not_found(),
                _ => self.policy.learn(bytes.len(), lacks, took.as_secs_f64()),
            }
            self.add_to_patch(grid, index, data, sent, &bytes)?;
            lacking += lacks;
            had += bytes.len() as u64 - lacks;
            self.shared.done(Phase::Sending, lacks);
            self.shared.done(Phase::Mapping, bytes.len() as u64 - lacks + behind);
        }
        Ok(Ok((lacking, had)))
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
        if self.shared.options.dry_run {
            return Ok(());
        }
        let block = Block { hash: Hash::default(), data: sent, read: data, at: 0 };
        block.data_in(grid, index, bytes).for_each(|part| self.patch.bytes.extend(part));
        Ok(())
    }

    fn send_patch(&mut self) -> Result<()> {
        let patch = std::mem::take(&mut self.patch);
        if patch.masks.is_empty() {
            return Ok(());
        }
        if self.shared.options.dry_run {
            return self.shared.lock_output().patch(&patch, None);
        }
        let packed = self.compressor.compress(&[&patch.bytes], &self.link);
        let written = packed.as_ref().map_or(patch.bytes.len(), Vec::len) as u64;
        let shared = self.shared;
        let mut output = shared.lock_output();
        self.link.watch(written, || output.patch(&patch, packed.as_deref()))
    }

    /// Sends what was held back: the receiver waits for it, or something else follows.
    pub fn flush_pending(&mut self) -> Result<()> {
        let blocks = std::mem::take(&mut self.keep);
        if blocks > 0 {
            self.shared.send(&Message::Keep { blocks })?;
        }
        self.send_question()
    }

    fn send_question(&mut self) -> Result<()> {
        let differ = std::mem::take(&mut self.differ);
        if differ.hashes.is_empty() { Ok(()) } else { self.shared.lock_output().differ(&differ) }
    }

    /// Sends what is left of a file.
    pub fn finish(&mut self) -> Result<()> {
        self.flush_pending()?;
        self.send_patch()
    }

    /// Sends all there is, and has it leave.
    pub fn flush(&mut self) -> Result<()> {
        self.finish()?;
        self.shared.lock_output().flush()
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::Protocol { peer: "the receiver".into(), what: what.into() }
    }
}

/// Of how many of these adjoining blocks it is decided at once.
pub fn at_once(grid: &Grid, blocks: &[(u64, Block)]) -> usize {
    blocks.len().min((MAX_DATA as u64 / grid.block.bytes()) as usize)
}
