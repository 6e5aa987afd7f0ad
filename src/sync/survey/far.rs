//! An image at the other end of a connection, as the agent there tells of it. What it tells is
//! checked and bounded.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Mutex;

use crate::error::{Result, lock};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::{Grid, MapEntry};
use crate::protocol::{
    Ask, BlockAnswer, Frame, FrameReader, FrameWriter, LeafAnswer, MAX_LENGTH, MAX_SURVEYED, Message,
    SURVEYED_AHEAD, Told,
};
use crate::scan::Extent;
use crate::sync::survey::Surveyed;

/// Entries by which one batch may go beyond [`SURVEYED_AHEAD`].
const BEYOND: usize = 4 * MAX_SURVEYED;

/// See the module.
pub struct FarImage<'a, R: Read, W: Write> {
    input: FrameReader<R>,
    output: &'a Mutex<FrameWriter<W>>,
    length: u64,
    /// What blocks are told on, once they are asked for.
    grid: Option<Grid>,
    /// Blocks of the grid that are not told yet.
    left: u64,
    told: VecDeque<Vec<MapEntry>>,
    /// Entries that were told and for which no others were asked.
    ahead: usize,
    /// Those of them that were handed on.
    taken: usize,
    has_ended: bool,
    asked: VecDeque<Vec<u64>>,
    answers: VecDeque<Vec<Leaves>>,
}

impl<'a, R: Read, W: Write> FarImage<'a, R, W> {
    /// Learns how long it is.
    pub fn open(mut input: FrameReader<R>, output: &'a Mutex<FrameWriter<W>>) -> Result<FarImage<'a, R, W>> {
        let length = loop {
            match input.read()? {
                Frame::Message(Message::Busy(_)) => {}
                Frame::Message(Message::Told(Told::Length(length))) if length <= MAX_LENGTH => break length,
                _ => return Err(input.bad("something else than the length of an image")),
            }
        };
        Ok(FarImage {
            input,
            output,
            length,
            grid: None,
            left: 0,
            told: VecDeque::new(),
            ahead: 0,
            taken: 0,
            has_ended: false,
            asked: VecDeque::new(),
            answers: VecDeque::new(),
        })
    }

    /// Ends the conversation.
    pub fn close(&mut self) -> Result<()> {
        self.say(Ask::End)
    }

    fn say(&self, ask: Ask) -> Result<()> {
        let mut output = lock(self.output);
        output.message(&Message::Ask(ask))?;
        output.flush()
    }

    /// Takes in one frame.
    fn hear(&mut self) -> Result<Heard> {
        loop {
            match self.input.read()? {
                Frame::Message(Message::Busy(_)) => {}
                Frame::Message(Message::Told(Told::Blocks(told))) => {
                    self.take_blocks(told)?;
                    return Ok(Heard::Other);
                }
                Frame::Leaves(answer) => {
                    self.take_leaves(answer)?;
                    return Ok(Heard::Other);
                }
                Frame::Message(Message::Told(Told::Extents(extents))) => return Ok(Heard::Extents(extents)),
                Frame::Message(Message::Told(Told::End)) => return Ok(Heard::End),
                _ => return Err(self.input.bad("something that is no answer")),
            }
        }
    }

    fn take_blocks(&mut self, told: Vec<MapEntry>) -> Result<()> {
        let Some(grid) = self.grid else { return Err(self.input.bad("blocks that were not asked for")) };
        let mut index = grid.blocks() - self.left;
        for blocks in &told {
            let (count, is_right) = match blocks {
                MapEntry::Zero(count) => (*count, *count > 0),
                MapEntry::Data { pages, .. } => {
                    (1, *pages != 0 && self.left > 0 && pages & !grid.all_pages(index) == 0)
                }
            };
            if !is_right || count > self.left {
                return Err(self.input.bad("blocks that the image does not have"));
            }
            self.left -= count;
            index += count;
        }
        self.ahead += told.len();
        if told.len() > MAX_SURVEYED || self.ahead > SURVEYED_AHEAD + BEYOND {
            return Err(self.input.bad("more blocks than were asked for"));
        }
        self.told.push_back(told);
        Ok(())
    }

    fn take_leaves(&mut self, answer: LeafAnswer) -> Result<()> {
        let (asked, grid) = (self.asked.pop_front().unwrap_or_default(), self.grid);
        let fitting = |(block, answer): (&u64, BlockAnswer)| match answer {
            BlockAnswer::Leaves(leaves) if leaves.are_pages_of(grid?.all_pages(*block)) => Some(leaves),
            _ => None,
        };
        let is_one = !asked.is_empty() && asked.len() == answer.blocks.len();
        let leaves = asked.iter().zip(answer.blocks).map(fitting).collect::<Option<Vec<_>>>();
        let Some(leaves) = leaves.filter(|_| is_one) else {
            return Err(self.input.bad("leaves that were not asked for"));
        };
        self.answers.push_back(leaves);
        Ok(())
    }

    /// Has the other end go on, when enough was taken.
    fn grant(&mut self, entries: usize) -> Result<()> {
        self.taken += entries;
        if self.taken < SURVEYED_AHEAD / 4 {
            return Ok(());
        }
        let taken = std::mem::take(&mut self.taken);
        self.ahead -= taken;
        self.say(Ask::More { entries: taken as u64 })
    }
}

/// What came.
enum Heard {
    Extents(Vec<(u64, u64)>),
    End,
    /// It was put where it is waited for.
    Other,
}

impl<R: Read, W: Write> Surveyed for FarImage<'_, R, W> {
    fn length(&self) -> u64 {
        self.length
    }

    fn extents(&mut self, from: u64, sink: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        self.say(Ask::Extents { from })?;
        let mut at = from;
        while let Heard::Extents(extents) = self.hear()? {
            for (start, length) in extents {
                let end = start.checked_add(length).filter(|end| *end <= self.length && length > 0);
                let Some(end) = end.filter(|_| start >= at) else {
                    return Err(self.input.bad("extents that the image does not have"));
                };
                at = end;
                sink(start..end)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, grid: &Grid) -> Result<()> {
        (self.grid, self.left) = (Some(*grid), grid.blocks());
        self.say(Ask::Blocks { length: grid.length })
    }

    fn blocks(&mut self) -> Result<Option<Vec<MapEntry>>> {
        loop {
            if let Some(told) = self.told.pop_front() {
                self.grant(told.len())?;
                return Ok(Some(told));
            }
            if self.has_ended {
                return Ok(None);
            }
            match self.hear()? {
                Heard::Other => {}
                Heard::End if self.left == 0 => self.has_ended = true,
                _ => return Err(self.input.bad("less than all blocks")),
            }
        }
    }

    fn ask(&mut self, blocks: &[u64]) -> Result<()> {
        self.asked.push_back(blocks.to_vec());
        self.say(Ask::Leaves { blocks: blocks.to_vec() })
    }

    fn answer(&mut self) -> Result<Vec<Leaves>> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(answer);
            }
            match self.hear()? {
                Heard::Other => {}
                Heard::End if self.left == 0 && !self.has_ended => self.has_ended = true,
                _ => return Err(self.input.bad("something else than leaves")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::BlockSize;
    use crate::report::Phase;

    fn zero(blocks: u64) -> MapEntry {
        MapEntry::Zero(blocks)
    }

    fn data(pages: u64) -> MapEntry {
        MapEntry::Data { pages, hash: [1; 32] }
    }

    /// What becomes of what an agent says about an image of 10 blocks and a page.
    fn told<T>(said: Vec<Told>, look: impl FnOnce(&mut FarImage<&[u8], Vec<u8>>) -> Result<T>) -> Result<T> {
        let mut bytes = Vec::new();
        let mut wire = FrameWriter::new(&mut bytes, "memory");
        wire.message(&Message::Busy(Phase::Mapping)).unwrap();
        let length = Told::Length(10 * 65536 + 4096);
        for told in [length].into_iter().chain(said) {
            wire.message(&Message::Told(told)).unwrap();
        }
        wire.leaves(&LeafAnswer { id: 0, blocks: vec![Leaves { data: 1, hashes: vec![[0; 8]] }.into()] })
            .unwrap();
        wire.flush().unwrap();
        drop(wire);
        let output = Mutex::new(FrameWriter::new(Vec::new(), "memory"));
        look(&mut FarImage::open(FrameReader::new(&bytes[..], "a liar"), &output)?)
    }

    fn all_blocks(image: &mut FarImage<&[u8], Vec<u8>>) -> Result<u64> {
        image.start(&Grid { length: image.length(), block: BlockSize::default() })?;
        let mut blocks = 0;
        while let Some(told) = image.blocks()? {
            blocks += told.iter().map(MapEntry::blocks).sum::<u64>();
        }
        Ok(blocks)
    }

    #[test]
    fn blocks_are_those_of_the_image() {
        let good = vec![Told::Blocks(vec![zero(9), data(0xffff)]), Told::Blocks(vec![data(1)]), Told::End];
        assert_eq!(told(good, all_blocks).unwrap(), 11);
        for lie in [
            vec![Told::Blocks(vec![zero(12)])],
            vec![Told::Blocks(vec![zero(u64::MAX), zero(u64::MAX)])],
            vec![Told::Blocks(vec![zero(0)])],
            vec![Told::Blocks(vec![data(0)])],
            vec![Told::Blocks(vec![data(1 << 16)])],
            vec![Told::Blocks(vec![zero(10), data(2)])],
            vec![Told::Blocks(vec![zero(11), data(1)])],
            vec![Told::Blocks(vec![zero(1)]), Told::End],
            vec![Told::Length(1)],
            vec![Told::Extents(vec![(0, 1)])],
            // Leaves that nobody asked for follow.
            vec![],
        ] {
            let error = told(lie.clone(), all_blocks).unwrap_err();
            assert!(matches!(error, crate::error::Error::Protocol { .. }), "{lie:?}: {error}");
        }
    }

    #[test]
    fn extents_lie_in_the_image_in_order() {
        let all = |image: &mut FarImage<&[u8], Vec<u8>>| {
            let mut found = Vec::new();
            image.extents(4096, &mut |extent| {
                found.push(extent);
                Ok(())
            })?;
            Ok(found)
        };
        let good = vec![Told::Extents(vec![(4096, 1)]), Told::Extents(vec![(8192, 10)]), Told::End];
        assert_eq!(told(good, all).unwrap(), [4096..4097, 8192..8202]);
        for lie in [
            vec![(0, 1)],
            vec![(4096, 0)],
            vec![(4096, u64::MAX)],
            vec![(655_360, 4097)],
            vec![(8192, 10), (8193, 1)],
        ] {
            assert!(told(vec![Told::Extents(lie.clone()), Told::End], all).is_err(), "{lie:?}");
        }
    }

    #[test]
    fn leaves_are_those_that_were_asked_for() {
        let ask = |blocks: &'static [u64]| {
            move |image: &mut FarImage<&[u8], Vec<u8>>| {
                image.start(&Grid { length: image.length(), block: BlockSize::default() })?;
                image.ask(blocks)?;
                image.answer()
            }
        };
        assert_eq!(told(vec![], ask(&[10])).unwrap().len(), 1);
        assert!(told(vec![], ask(&[9, 10])).is_err());
        assert!(told(vec![Told::End], ask(&[10])).is_err());
    }
}
