//! What two images have at the same offsets, as spans of bytes in order. Pure: numbers and
//! masks in, spans out.

use std::ops::Range;

use crate::hashmap::{Grid, PAGE, PageMask};

/// How long two images are, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// The first one.
    pub a: u64,
    /// The second one.
    pub b: u64,
}

impl Lengths {
    /// As far as both go.
    pub fn common(self) -> u64 {
        self.a.min(self.b)
    }

    /// As far as the longer one goes.
    pub fn longest(self) -> u64 {
        self.a.max(self.b)
    }
}

/// What an image has in a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Pages that are not all zeros.
    Data,
    /// Zeros, holes or not.
    Zeros,
    /// Nothing: it is shorter.
    Absent,
}

/// A span of both images in which neither changes what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Where it lies.
    pub bytes: Range<u64>,
    /// What the first image has.
    pub a: Content,
    /// What the second image has.
    pub b: Content,
    /// They differ.
    pub differs: bool,
}

/// The pages of one block of two images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPages {
    /// Those of the first that are not all zeros.
    pub a: PageMask,
    /// Those of the second.
    pub b: PageMask,
    /// Those that differ.
    pub differing: PageMask,
}

impl BlockPages {
    fn content(mask: PageMask, page: u64) -> Content {
        if mask >> page & 1 == 1 { Content::Data } else { Content::Zeros }
    }
}

/// Takes blocks in order and hands on spans, neighbours that are alike joined.
#[derive(Debug)]
pub struct Spans<F> {
    sink: F,
    last: Option<Span>,
}

impl<E, F: FnMut(Span) -> Result<(), E>> Spans<F> {
    /// Which go to `sink`.
    pub fn new(sink: F) -> Spans<F> {
        Spans { sink, last: None }
    }

    /// Blocks that are zeros in both images.
    pub fn zeros(&mut self, grid: &Grid, blocks: &Range<u64>) -> Result<(), E> {
        let bytes = grid.bytes(blocks);
        self.push(Span { bytes, a: Content::Zeros, b: Content::Zeros, differs: false })
    }

    /// A block that one of them has data in.
    pub fn block(&mut self, grid: &Grid, index: u64, pages: BlockPages) -> Result<(), E> {
        let bytes = grid.bytes(&(index..index + 1));
        let all = grid.all_pages(index);
        let is_plain = [pages.a, pages.b, pages.differing].iter().all(|&mask| mask == 0 || mask == all);
        let step = if is_plain { bytes.end - bytes.start } else { PAGE };
        let mut at = bytes.start;
        while at < bytes.end {
            let (start, page) = (at, (at - bytes.start) / PAGE);
            at = (at + step).min(bytes.end);
            let (a, b) = (BlockPages::content(pages.a, page), BlockPages::content(pages.b, page));
            let differs = pages.differing >> page & 1 == 1;
            self.push(Span { bytes: start..at, a, b, differs })?;
        }
        Ok(())
    }

    /// The next span as it is.
    pub fn push(&mut self, span: Span) -> Result<(), E> {
        if span.bytes.is_empty() {
            return Ok(());
        }
        let kind = |span: &Span| (span.a, span.b, span.differs);
        match &mut self.last {
            Some(last) if last.bytes.end == span.bytes.start && kind(last) == kind(&span) => {
                last.bytes.end = span.bytes.end;
                Ok(())
            }
            last => last.replace(span).map_or(Ok(()), &mut self.sink),
        }
    }

    /// Hands on what is left.
    pub fn finish(mut self) -> Result<(), E> {
        self.last.take().map_or(Ok(()), self.sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::BlockSize;

    fn spans(feed: impl FnOnce(&mut Spans<&mut dyn FnMut(Span) -> Result<(), ()>>)) -> Vec<Span> {
        let mut found = Vec::new();
        let mut sink = |span| {
            found.push(span);
            Ok(())
        };
        let mut spans = Spans::new(&mut sink as &mut dyn FnMut(Span) -> Result<(), ()>);
        feed(&mut spans);
        spans.finish().unwrap();
        found
    }

    #[test]
    fn pages_become_spans_and_neighbours_are_joined() {
        let grid = Grid { length: 3 * 65536 - 100, block: BlockSize::new(65536).unwrap() };
        let found = spans(|spans| {
            spans.block(&grid, 0, BlockPages { a: 0xffff, b: 0xffff, differing: 0 }).unwrap();
            spans.block(&grid, 1, BlockPages { a: 0xff, b: 0xf, differing: 0xf1 }).unwrap();
            spans.zeros(&grid, &(2..3)).unwrap();
        });
        use Content::{Data, Zeros};
        let span = |start, end, a, b, differs| Span { bytes: start..end, a, b, differs };
        let expected = [
            span(0, 65536, Data, Data, false),
            span(65536, 65536 + 4096, Data, Data, true),
            span(65536 + 4096, 65536 + 4 * 4096, Data, Data, false),
            span(65536 + 4 * 4096, 65536 + 8 * 4096, Data, Zeros, true),
            span(65536 + 8 * 4096, 3 * 65536 - 100, Zeros, Zeros, false),
        ];
        assert_eq!(found, expected);
    }
}
