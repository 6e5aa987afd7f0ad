//! What thin_delta(8) prints of two thin devices: elements of runs of blocks, which are those of
//! their pool.

use std::io::BufRead;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::{Ranges, Says};

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Reads all of it.
pub fn read(input: impl BufRead, ranges: &mut Ranges) -> Result<(), String> {
    let mut xml = Reader::from_reader(input);
    let mut delta = Delta { ranges, block: None, is_changed: None, depth: 0, at: 0 };
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        match xml.read_event_into(&mut buffer).map_err(|error| error.to_string())? {
            Event::Start(element) => {
                delta.depth += 1;
                delta.element(&element)?;
            }
            Event::Empty(element) => delta.element(&element)?,
            Event::End(_) => delta.depth -= 1,
            Event::Eof => break,
            Event::Text(text) if text.trim().is_empty() => {}
            Event::Decl(_) | Event::Comment(_) => {}
            _ => return Err("there is something else than elements in it".into()),
        }
    }
    match (delta.block, delta.depth) {
        (Some(_), 0) => Ok(()),
        _ => Err("it was cut off".into()),
    }
}

/// How far it is read.
struct Delta<'a> {
    ranges: &'a mut Ranges,
    /// Bytes of a block, once they are told.
    block: Option<u64>,
    /// What the ranges say that follow.
    is_changed: Option<bool>,
    /// Elements that are open.
    depth: usize,
    /// Elements that were read.
    at: u32,
}

impl Delta<'_> {
    fn element(&mut self, element: &BytesStart) -> Result<(), String> {
        self.at = self.at.saturating_add(1);
        let name = element.name().as_ref().to_owned();
        let told = match name.as_str() {
            "superblock" => self.superblock(element),
            "diff" => Ok(()),
            "same" | "different" | "left_only" | "right_only" => {
                self.is_changed = Some(name != "same");
                // With --verbose the ranges are elements of their own.
                match number(element, "begin")? {
                    Some(begin) => self.range(element, begin),
                    None if number(element, "length")?.is_none() && self.depth > 2 => Ok(()),
                    None => Err("there is no begin".into()),
                }
            }
            "range" => match number(element, "begin")? {
                Some(begin) => self.range(element, begin),
                None => Err("there is no begin".into()),
            },
            _ => Err("thin_delta has no such element".into()),
        };
        told.map_err(|why| format!("<{name}>, element {}: {why}", self.at))
    }

    fn superblock(&mut self, element: &BytesStart) -> Result<(), String> {
        let sectors = number(element, "data_block_size")?.filter(|&sectors| sectors > 0);
        let bytes = sectors.and_then(|sectors| sectors.checked_mul(SECTOR));
        self.block = Some(bytes.ok_or("its data_block_size is none")?);
        Ok(())
    }

    fn range(&mut self, element: &BytesStart, begin: u64) -> Result<(), String> {
        let block = self.block.ok_or("it stands before the size of a block")?;
        let is_changed = self.is_changed.ok_or("nothing says what it is")?;
        let length = number(element, "length")?.ok_or("there is no length")?;
        let bytes = |blocks: u64| blocks.saturating_mul(block);
        if !is_changed {
            return Ok(());
        }
        self.ranges.add((bytes(begin), bytes(length)), block, Says::Changed, self.at)
    }
}

fn number(element: &BytesStart, name: &str) -> Result<Option<u64>, String> {
    let found = element.try_get_attribute(name).map_err(|error| error.to_string())?;
    let Some(found) = found else { return Ok(None) };
    let number = found.value.parse().ok();
    number.map(Some).ok_or_else(|| format!("its {name} is no number"))
}
