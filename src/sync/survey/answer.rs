//! The responder: tells of an image what it is asked, and no data.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use crate::confinement::NamedPath;
use crate::error::{Error, Result, Stop, lock};
use crate::hashmap::{self, Grid, MapEntry};
use crate::options::Options;
use crate::protocol::{
    Ask, Frame, FrameReader, FrameWriter, LeafAnswer, MAX_DIFFER, MAX_SURVEYED, Message, SURVEYED_AHEAD,
    Told, keep_alive,
};
use crate::scan::{self, FileImage};
use crate::sync::survey::{each_extent, leaves_of};

/// Answers until nothing more is asked.
///
/// # Errors
///
/// When the image cannot be read, which the initiator is told; when it breaks a rule, or is gone.
pub fn answer<R: Read, W: Write + Send>(
    path: &NamedPath,
    options: &Options,
    input: FrameReader<R>,
    output: FrameWriter<W>,
) -> Result<()> {
    let output = Mutex::new(output);
    let result = std::thread::scope(|scope| {
        let (_until_here, over) = channel();
        let output = &output;
        scope.spawn(move || keep_alive(output, options.life_sign(), &over));
        let (file, length) = scan::open_image(path)?;
        let image = FileImage::new(file, options.hole_map);
        let mut talk = Talk { input, output };
        talk.tell(&[Told::Length(length)])?;
        let seen =
            Seen { path: path.path(), image, length, grid: Grid { length, block: options.block_size } };
        seen.answer_all(&mut talk)
    });
    if let Err(error) = &result {
        lock(&output).give_up(error);
    }
    result
}

/// The way to the initiator and back.
struct Talk<'a, R: Read, W: Write> {
    input: FrameReader<R>,
    output: &'a Mutex<FrameWriter<W>>,
}

impl<R: Read, W: Write> Talk<'_, R, W> {
    fn ask(&mut self) -> Result<Ask> {
        loop {
            match self.input.read()? {
                Frame::Message(Message::Busy(_)) => {}
                Frame::Message(Message::Ask(ask)) => return Ok(ask),
                _ => return Err(self.bad()),
            }
        }
    }

    fn tell(&self, told: &[Told]) -> Result<()> {
        let mut output = lock(self.output);
        told.iter().try_for_each(|told| output.message(&Message::Told(told.clone())))?;
        output.flush()
    }

    fn bad(&self) -> Error {
        self.input.bad("a question that makes no sense")
    }
}

/// The image that questions are about.
struct Seen<'a> {
    path: &'a Path,
    image: FileImage,
    length: u64,
    grid: Grid,
}

impl Seen<'_> {
    fn answer_all<R: Read, W: Write>(mut self, talk: &mut Talk<R, W>) -> Result<()> {
        let mut has_blocks = false;
        loop {
            match talk.ask()? {
                Ask::End => return Ok(()),
                Ask::Extents { from } if from <= self.length => self.tell_extents(from, talk)?,
                Ask::Blocks { length } if length <= self.length && !has_blocks => {
                    (self.grid.length, has_blocks) = (length, true);
                    if !self.tell_blocks(talk)? {
                        return Ok(());
                    }
                }
                Ask::Leaves { blocks } => self.tell_leaves(&blocks, talk)?,
                Ask::More { .. } if has_blocks => {}
                _ => return Err(talk.bad()),
            }
        }
    }

    fn tell_extents<R: Read, W: Write>(&self, from: u64, talk: &Talk<R, W>) -> Result<()> {
        let mut extents = Vec::new();
        each_extent(self.path, &self.image, from..self.length, &mut |extent| {
            extents.push((extent.start, extent.end - extent.start));
            if extents.len() < MAX_SURVEYED {
                return Ok(());
            }
            talk.tell(&[Told::Extents(std::mem::take(&mut extents))])
        })?;
        talk.tell(&[Told::Extents(extents), Told::End])
    }

    /// Returns whether anything more is wanted.
    fn tell_blocks<R: Read, W: Write>(&self, talk: &mut Talk<R, W>) -> Result<bool> {
        let (mut ahead, mut is_wanted) = (0, true);
        let hashed = hashmap::hash_image(&self.image, &self.grid, |batch| {
            let told = MapEntry::of(&batch.items);
            ahead += told.len() as u64;
            let told: Vec<Told> =
                told.chunks(MAX_SURVEYED).map(|piece| Told::Blocks(piece.to_vec())).collect();
            talk.tell(&told)?;
            while ahead >= SURVEYED_AHEAD as u64 && is_wanted {
                match talk.ask()? {
                    Ask::More { entries } => ahead = ahead.saturating_sub(entries),
                    Ask::Leaves { blocks } => self.tell_leaves(&blocks, talk)?,
                    Ask::End => is_wanted = false,
                    _ => return Err(Stop::Taken(talk.bad())),
                }
            }
            Ok::<_, Stop>(is_wanted)
        });
        hashed.map_err(|stop| stop.or_read(Error::file("read", self.path)))?;
        if is_wanted {
            talk.tell(&[Told::End])?;
        }
        Ok(is_wanted)
    }

    fn tell_leaves<R: Read, W: Write>(&self, blocks: &[u64], talk: &Talk<R, W>) -> Result<()> {
        let count = self.grid.blocks();
        if blocks.is_empty() || blocks.len() > MAX_DIFFER || blocks.iter().any(|&block| block >= count) {
            return Err(talk.bad());
        }
        let blocks = leaves_of(self.path, &self.image, &self.grid, blocks)?;
        let mut output = lock(talk.output);
        output.leaves(&LeafAnswer { id: 0, blocks: blocks.into_iter().map(Into::into).collect() })?;
        output.flush()
    }
}
