//! What is put, in parts that fit into memory.

use std::io;
use std::os::unix::fs::FileExt;

use object_store::PutPayload;

use crate::store::objects::Content;

/// What is put by one request, and the parts of what is longer. No store takes smaller ones than 5 MiB.
const PART: u64 = 8 << 20;
/// As many parts does an object have.
const PARTS: u64 = 10_000;
/// A part has a multiple of so many bytes.
const STEP: u64 = 1 << 20;

/// How many bytes each part has but the last, of an object of `length` bytes.
pub fn size(length: u64) -> u64 {
    PART.max(length.div_ceil(PARTS).next_multiple_of(STEP))
}

/// A part of some content.
pub fn read(content: Content, at: u64, bytes: u64) -> io::Result<PutPayload> {
    let fits = |number: u64| usize::try_from(number).map_err(|_| io::ErrorKind::FileTooLarge);
    let (start, length) = (fits(at)?, fits(bytes)?);
    let mut part = vec![0; length];
    match content {
        Content::Bytes(all) => {
            let some = all.get(start..start.saturating_add(length)).ok_or(io::ErrorKind::UnexpectedEof)?;
            part.copy_from_slice(some);
        }
        Content::File(file) => file.read_exact_at(&mut part, at)?,
    }
    Ok(PutPayload::from(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_many_as_a_store_takes() {
        assert_eq!(size(0), PART);
        assert_eq!(size(PART * PARTS), PART);
        for length in [PART * PARTS + 1, 5 << 40] {
            assert!(length.div_ceil(size(length)) <= PARTS);
            assert_eq!(size(length) % STEP, 0);
        }
    }
}
