//! The initiator's conversation about an image: steps 2 to 4 of
//! [`stdin`](crate::sync::stdin).

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::error::{Error, Result, lock};
use crate::hashmap::{self, Block};
use crate::options::Options;
use crate::protocol::{
    Compressor, Differ, Frame, FrameReader, FrameWriter, ImageMessage, LinkSpeed, MAX_ASKED, Message,
};
use crate::report::{Event, Phase, Reporter, Stats};
use crate::sync::stdin::{PIECE, Pieces};

/// Bytes that may wait for answers.
const HELD: usize = 32 << 20;

/// Consecutive blocks that were asked about.
struct Asked {
    first: u64,
    /// Their pages that are not zero, and hashes.
    blocks: Vec<Block>,
    bytes: Vec<u8>,
}

/// An image on its way to a host.
pub struct Sending<'a, R: Read, W: Write> {
    input: FrameReader<R>,
    output: &'a Mutex<FrameWriter<W>>,
    options: &'a Options,
    reporter: &'a dyn Reporter,
    compressor: Compressor,
    link: LinkSpeed,
    asked: VecDeque<Asked>,
    /// Bytes in those.
    held: usize,
    pub stats: Stats,
}

impl<'a, R: Read, W: Write> Sending<'a, R, W> {
    pub fn new(
        input: FrameReader<R>,
        output: &'a Mutex<FrameWriter<W>>,
        options: &'a Options,
        reporter: &'a dyn Reporter,
    ) -> Self {
        Sending {
            input,
            output,
            options,
            reporter,
            compressor: Compressor::new(options),
            link: LinkSpeed::default(),
            asked: VecDeque::new(),
            held: 0,
            stats: Stats { files_total: 1, ..Stats::default() },
        }
    }

    /// Sends all of it, and hears the totals.
    pub fn run(&mut self, mut pieces: Pieces) -> Result<()> {
        let device = match self.hear()? {
            Frame::Message(Message::Image(ImageMessage::Opened { device })) => device,
            _ => return Err(self.input.bad("something else than that the destination is open")),
        };
        pieces.check_content(device, self.options)?;
        let mut is_told = false;
        while let Some(piece) = pieces.next()? {
            if piece.len() < PIECE {
                is_told = true;
                self.tell_length(self.stats.apparent_bytes + piece.len() as u64)?;
            }
            self.piece(piece)?;
        }
        if !is_told {
            self.tell_length(self.stats.apparent_bytes)?;
        }
        while !self.asked.is_empty() {
            self.answer()?;
        }
        self.end()
    }

    fn tell_length(&mut self, length: u64) -> Result<()> {
        lock(self.output).message(&Message::Image(ImageMessage::Length(length)))
    }

    /// Asks about the blocks of a piece.
    fn piece(&mut self, piece: Vec<u8>) -> Result<()> {
        let block = self.options.block_size.bytes() as usize;
        let first = self.stats.apparent_bytes / block as u64;
        self.stats.apparent_bytes += piece.len() as u64;
        let blocks: Vec<Block> = piece.par_chunks(block).map(hashmap::block_of).collect();
        self.reporter.event(Event::Done(Phase::Sending, piece.len() as u64));
        let mut at = 0;
        for run in blocks.chunk_by(|a, b| (a.data == 0) == (b.data == 0)) {
            let range = at * block..piece.len().min((at + run.len()) * block);
            if run[0].data != 0 {
                self.stats.hashed_bytes += range.len() as u64;
                let asked =
                    Asked { first: first + at as u64, blocks: run.to_vec(), bytes: piece[range].to_vec() };
                self.ask(asked)?;
            }
            at += run.len();
        }
        Ok(())
    }

    fn ask(&mut self, asked: Asked) -> Result<()> {
        let hashes = asked.blocks.iter().map(|block| block.hash).collect();
        let mut output = lock(self.output);
        output.differ(&Differ { first: asked.first, hashes })?;
        output.flush()?;
        drop(output);
        self.held += asked.bytes.len();
        self.asked.push_back(asked);
        while self.held > HELD || self.asked.len() >= MAX_ASKED {
            self.answer()?;
        }
        Ok(())
    }

    /// Hears one answer, and sends what is lacking.
    fn answer(&mut self) -> Result<()> {
        let lacks = match self.hear()? {
            Frame::Message(Message::Image(ImageMessage::Lacks(lacks))) => lacks,
            _ => return Err(self.input.bad("something else than an answer")),
        };
        let Some(asked) = self.asked.pop_front() else {
            return Err(self.input.bad("an answer to nothing"));
        };
        self.held -= asked.bytes.len();
        let ascends = lacks.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascends || lacks.last().is_some_and(|&last| usize::from(last) >= asked.blocks.len()) {
            return Err(self.input.bad("blocks that it was not asked about"));
        }
        let data: u64 = asked.parts(0..asked.blocks.len(), self.block()).map(|part| part.len() as u64).sum();
        let mut sent = 0;
        for run in lacks.chunk_by(|a, b| a + 1 == *b) {
            let blocks = usize::from(run[0])..usize::from(run[0]) + run.len();
            sent += self.send(&asked, blocks)?;
        }
        self.stats.data_bytes += data;
        self.stats.sent_data_bytes += sent;
        self.stats.matched_bytes += data - sent;
        Ok(())
    }

    fn block(&self) -> usize {
        self.options.block_size.bytes() as usize
    }

    /// Sends some of the blocks that were asked about. Returns bytes of data.
    fn send(&mut self, asked: &Asked, blocks: Range<usize>) -> Result<u64> {
        let first = asked.first + blocks.start as u64;
        let masks: Vec<_> = asked.blocks[blocks.clone()].iter().map(|block| block.data).collect();
        let parts: Vec<&[u8]> = asked.parts(blocks, self.block()).collect();
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if self.options.dry_run {
            return Ok(len as u64);
        }
        let packed = self.compressor.compress(&parts, &self.link);
        let written = packed.as_ref().map_or(len, Vec::len) as u64;
        let mut output = lock(self.output);
        self.link.watch(written, || match &packed {
            Some(packed) => output.data_zstd(first, &masks, len, packed),
            None => output.data(first, &masks, &parts),
        })?;
        Ok(len as u64)
    }

    /// Step 4.
    fn end(&mut self) -> Result<()> {
        let mut output = lock(self.output);
        output.message(&Message::End(Box::new(self.stats.clone())))?;
        output.flush()?;
        drop(output);
        match self.hear()? {
            Frame::Message(Message::End(theirs)) => {
                self.stats.files_sent = theirs.files_sent.min(1);
                self.stats.add_receiver(&theirs);
                Ok(())
            }
            _ => Err(self.input.bad("something else than its totals")),
        }
    }

    /// The next frame that has to do with the image.
    fn hear(&mut self) -> Result<Frame> {
        loop {
            match self.input.read()? {
                Frame::Message(Message::Busy(phase)) => self.reporter.event(Event::Phase(phase)),
                Frame::Message(message @ (Message::Warning(_) | Message::WarningAbout { .. })) => {
                    let warning = message.into_warning(self.input.peer());
                    warning.iter().for_each(|warning| self.reporter.event(Event::Warning(warning)));
                }
                Frame::Message(Message::Unset(failure)) => {
                    self.reporter.event(Event::Unset(&failure.on(self.input.peer())));
                }
                frame => return Ok(frame),
            }
        }
    }

    /// Why the other end has left, if it said so.
    pub fn last_words(&mut self) -> Option<Error> {
        loop {
            match self.hear() {
                Ok(_) => {}
                Err(error @ Error::Remote { .. }) => return Some(error),
                Err(_) => return None,
            }
        }
    }
}

impl Asked {
    /// The pages of some blocks that are not zero.
    fn parts(&self, blocks: Range<usize>, size: usize) -> impl Iterator<Item = &[u8]> {
        let page = hashmap::PAGE as usize;
        let chunks = self.bytes.chunks(size).zip(&self.blocks).take(blocks.end).skip(blocks.start);
        chunks.flat_map(move |(bytes, block)| {
            hashmap::page_runs(block.data)
                .map(move |run| &bytes[run.start as usize * page..bytes.len().min(run.end as usize * page)])
        })
    }
}
