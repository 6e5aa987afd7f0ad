//! The responder: compares an image with what is there as it comes, and makes it the file.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::channel;

use crate::confinement::NamedPath;
use crate::error::{Result, lock};
use crate::hashmap::{self, Grid, Hash};
use crate::options::Options;
use crate::protocol::{
    Data, Differ, Frame, FrameReader, FrameWriter, ImageMessage, MAX_ASKED_BLOCKS, MAX_LENGTH, Message,
    VERSION, keep_alive,
};
use crate::report::Stats;
use crate::stream::PlainImage;

/// Receives an image, and answers with totals.
///
/// # Errors
///
/// When the destination cannot be written, which the initiator is told; when it breaks a rule,
/// or is gone. Then the old file is as it was.
pub fn answer<R: Read, W: Write + Send>(
    destination: &NamedPath,
    options: &Options,
    umask: u32,
    input: FrameReader<R>,
    output: FrameWriter<W>,
) -> Result<()> {
    let output = Mutex::new(output);
    let result = std::thread::scope(|scope| {
        let (_until_here, over) = channel();
        let output = &output;
        scope.spawn(move || keep_alive(output, options.life_sign(), &over));
        let mut image = PlainImage::open(destination, options, umask)?;
        let warning = image.warning.take().map(|warning| Message::warning(warning, VERSION));
        tell(output, warning)?;
        tell(output, [Message::Image(ImageMessage::Opened { device: image.is_device() })])?;
        let block = options.block_size;
        let mut receiving = Receiving {
            input,
            output,
            image,
            grid: Grid { length: MAX_LENGTH / block.bytes() * block.bytes(), block },
            is_told: false,
            at: 0,
            asked: VecDeque::new(),
            dry_run: options.dry_run,
            hashed: 0,
        };
        match receiving.run() {
            Ok(()) => receiving.finish(destination),
            Err(error) => Err(receiving.image.give_up(error)),
        }
    });
    if let Err(error) = &result {
        lock(&output).give_up(error);
    }
    result
}

fn tell<W: Write>(output: &Mutex<FrameWriter<W>>, messages: impl IntoIterator<Item = Message>) -> Result<()> {
    let mut output = lock(output);
    messages.into_iter().try_for_each(|message| output.message(&message))?;
    output.flush()
}

/// An image that is being received.
struct Receiving<'a, R: Read, W: Write> {
    input: FrameReader<R>,
    output: &'a Mutex<FrameWriter<W>>,
    image: PlainImage,
    /// As long as a file can be, until the length is told.
    grid: Grid,
    is_told: bool,
    /// The next block.
    at: u64,
    /// Blocks that it lacks, and what they must hash to.
    asked: VecDeque<(u64, Hash)>,
    dry_run: bool,
    hashed: u64,
}

impl<R: Read, W: Write> Receiving<'_, R, W> {
    /// Everything up to the initiator's totals.
    fn run(&mut self) -> Result<()> {
        loop {
            match self.input.read()? {
                Frame::Message(Message::Busy(_)) => {}
                Frame::Message(Message::Image(ImageMessage::Length(length))) => self.length(length)?,
                Frame::Differ(differ) => self.compare(&differ)?,
                Frame::Data(data) => {
                    self.data(&data)?;
                    self.input.reuse(data);
                }
                Frame::Message(Message::End(_)) if self.is_told && self.asked.is_empty() => {
                    return self.zero_up_to(self.grid.blocks());
                }
                _ => return Err(self.input.bad("something else than an image")),
            }
        }
    }

    fn length(&mut self, length: u64) -> Result<()> {
        let grid = Grid { length, ..self.grid };
        if self.is_told || length > MAX_LENGTH || grid.blocks() < self.at {
            return Err(self.input.bad("a length that cannot be"));
        }
        (self.grid, self.is_told) = (grid, true);
        Ok(())
    }

    /// What lies between two blocks that are asked about is zero.
    fn zero_up_to(&mut self, block: u64) -> Result<()> {
        let range = self.grid.bytes(&(self.at..block));
        self.at = block;
        self.image.zero(range.end - range.start)
    }

    fn compare(&mut self, differ: &Differ) -> Result<()> {
        let end = differ.first.checked_add(differ.hashes.len() as u64);
        let is_next = differ.first >= self.at && end.is_some_and(|end| end <= self.grid.blocks());
        if !is_next || self.asked.len() + differ.hashes.len() > MAX_ASKED_BLOCKS {
            return Err(self.input.bad("a question out of place, or one too many"));
        }
        self.zero_up_to(differ.first)?;
        let mut lacks = Vec::new();
        for (nth, hash) in (0..=u8::MAX).zip(&differ.hashes) {
            let range = self.grid.bytes(&(self.at..self.at + 1));
            let len = range.end - range.start;
            self.hashed += len;
            if !self.image.has(len as usize, hash)? {
                lacks.push(nth);
                if !self.dry_run {
                    self.asked.push_back((self.at, *hash));
                }
            }
            self.at += 1;
        }
        tell(self.output, [Message::Image(ImageMessage::Lacks(lacks))])
    }

    fn data(&mut self, data: &Data) -> Result<()> {
        let mut left = data.bytes.as_slice();
        for (&mask, index) in data.masks.iter().zip(data.first..) {
            let hash = match self.asked.pop_front() {
                Some((asked, hash)) if asked == index => hash,
                _ => return Err(self.input.bad("data that was not asked for")),
            };
            if mask & !self.grid.all_pages(index) != 0 {
                return Err(self.input.bad("data with an impossible page mask"));
            }
            let Some((bytes, behind)) = left.split_at_checked(self.grid.masked_bytes(index, mask) as usize)
            else {
                return Err(self.input.bad("data that is too short"));
            };
            left = behind;
            if hashmap::hash_block(mask, [bytes].into_iter()) != hash {
                return Err(self.input.bad("a block with another hash than was told"));
            }
            let range = self.grid.bytes(&(index..index + 1));
            let mut block = vec![0; (range.end - range.start) as usize];
            let mut bytes = bytes;
            for run in hashmap::page_runs(mask) {
                let pages = self.grid.pages(index, &run);
                let (part, rest) = bytes.split_at((pages.end - pages.start) as usize);
                bytes = rest;
                let at = (pages.start - range.start) as usize;
                block[at..at + part.len()].copy_from_slice(part);
            }
            self.image.fill(range.start, &block)?;
        }
        if left.is_empty() { Ok(()) } else { Err(self.input.bad("data that is too long")) }
    }

    /// Makes what came the file, and tells the totals.
    fn finish(self, destination: &NamedPath) -> Result<()> {
        let (finished, changed) = self.image.finish()?;
        let mut stats =
            Stats { files_sent: changed.into(), basis_hashed_bytes: self.hashed, ..Stats::default() };
        let note = finished.note(destination.path());
        tell(self.output, note.map(|note| Message::warning(note, VERSION)))?;
        // In a dry run no data comes.
        if !self.dry_run {
            (stats.written_bytes, stats.punched_bytes) = (finished.written, finished.punched);
        }
        if let Some(failure) = finished.unset {
            stats.count_unset(failure.code);
            tell(self.output, [Message::Unset(failure)])?;
        }
        tell(self.output, [Message::End(Box::new(stats))])
    }
}
