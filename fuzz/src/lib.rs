//! What the targets share.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holesync::error::Result;
use holesync::options::{BlockSize, Delete, DeleteWhen, Options};
use holesync::protocol::{FrameReader, MAGIC, Message, OLDEST, VERSION};
use holesync::stream::Sink;
use tempfile::TempDir;

/// Counts what it gets.
#[derive(Default)]
pub struct Counted(pub u64);

impl Sink for Counted {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.0 += bytes.len() as u64;
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        self.0 += len;
        Ok(())
    }
}

/// Small blocks, and no waiting for storage.
pub fn options() -> Options {
    let block_size = BlockSize::new(8 << 10).expect("a power of two");
    Options { block_size, fsync: false, ..Options::default() }
}

/// Those of a session: a dry run; one that removes what the source does not have. The bit 16 is for [`input`].
pub fn options_of(how: u8) -> Options {
    let delete = Delete { when: DeleteWhen::After, excluded: false, most: None, ignore_errors: true };
    let mut options =
        Options { dry_run: how & 1 != 0, delete: (how & 4 != 0).then_some(delete), ..options() };
    // All that an entry may carry; device nodes would be those of this machine.
    (options.kinds.specials, options.kinds.hard_links) = (true, true);
    (options.attributes.acls, options.attributes.xattrs) = (how & 8 != 0, how & 8 != 0);
    options
}

/// A frame in an input: its type, the length of its body in two bytes, the body.
fn frames(data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut left = data;
    std::iter::from_fn(move || {
        let (&[kind, low, high], rest) = left.split_first_chunk()?;
        let (body, rest) = rest.split_at(rest.len().min(u16::from_le_bytes([low, high]).into()));
        left = rest;
        Some((kind, body))
    })
}

/// An input with the numbers and checks that make its frames pass.
pub fn framed(data: &[u8]) -> Vec<Vec<u8>> {
    let check = |parts: &[&[u8]]| blake3::hash(&parts.concat()).as_bytes()[..4].to_vec();
    let frame = |(number, (kind, body)): (usize, (u8, &[u8]))| {
        let mut header = vec![kind];
        header.extend((body.len() as u32).to_le_bytes());
        header.extend(check(&[&(number as u64).to_le_bytes(), &header]));
        // Data and patches have no check of their own.
        let end = if matches!(kind, 2 | 3 | 7 | 8) { Vec::new() } else { check(&[body]) };
        [header, body.to_vec(), end].concat()
    };
    frames(data).enumerate().map(frame).collect()
}

/// The other way round: an input of the frames that a writer wrote.
pub fn unframed(mut bytes: &[u8]) -> Vec<u8> {
    let mut input = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
        let len = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        input.push(header[0]);
        input.extend((len as u16).to_le_bytes());
        input.extend(&rest[..len]);
        bytes = &rest[len + if matches!(header[0], 2 | 3 | 7 | 8) { 0 } else { 4 }..];
    }
    input
}

/// Gives a role its frames, a moment apart where it has to have answered before.
pub struct Paced {
    frames: std::vec::IntoIter<Vec<u8>>,
    now: io::Cursor<Vec<u8>>,
}

impl Paced {
    pub fn new(data: &[u8]) -> Paced {
        Paced { frames: framed(data).into_iter(), now: io::Cursor::default() }
    }
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.position() == self.now.get_ref().len() as u64 {
            let Some(next) = self.frames.next() else { return Ok(0) };
            // A control message that is Content, NoBasis, Map or Unchanged.
            if next[0] == 1 && matches!(next.get(9), Some(3 | 8 | 9 | 10)) {
                std::thread::sleep(Duration::from_micros(300));
            }
            self.now = io::Cursor::new(next);
        }
        self.now.read(buffer)
    }
}

/// Frames from the other end, which has greeted as one of the newest version, or is one of the oldest.
pub fn input(how: u8, data: &[u8]) -> FrameReader<impl Read + Send + 'static> {
    let is_new = how & 16 != 0;
    let versions = [OLDEST, VERSION].map(u16::to_le_bytes).concat();
    let greeting = if is_new { [&MAGIC[..], &versions, &[0; 4]].concat() } else { Vec::new() };
    let mut input = FrameReader::new(io::Cursor::new(greeting).chain(Paced::new(data)), "the input");
    if is_new {
        input.await_greeting(0).expect("a greeting");
    }
    input
}

/// A directory in memory where there is one, with `tree` in it: two files and a directory.
pub struct Ground(TempDir);

impl Ground {
    pub fn new() -> Ground {
        let parent =
            if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        Ground(tempfile::tempdir_in(parent).expect("a directory"))
    }

    /// The tree, as it is at the start of each run.
    pub fn tree(&self) -> PathBuf {
        let tree = self.0.path().join("tree");
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(tree.join("sub")).expect("mkdir");
        let bytes: Vec<u8> = (0..20_000u32).map(|at| (at / 7) as u8 | 1).collect();
        fs::write(tree.join("old"), &bytes).expect("write");
        fs::write(tree.join("sub/file"), &bytes[..9000]).expect("write");
        tree
    }

    /// Demands that nothing but the tree is there.
    pub fn check(&self) {
        let names: Vec<_> =
            fs::read_dir(self.0.path()).expect("list").flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["tree"]);
    }
}

impl Default for Ground {
    fn default() -> Ground {
        Ground::new()
    }
}

/// A message as an input has it.
pub fn message(message: &Message) -> Vec<u8> {
    let body = postcard::to_stdvec(message).expect("memory");
    let mut input = vec![1];
    input.extend((body.len() as u16).to_le_bytes());
    input.write_all(&body).expect("memory");
    input
}
