//! Chunk stores that lie: none is believed, and what is there stays as it was.

use std::fs;
use std::path::{Path, PathBuf};

use holesync::error::Result;
use holesync::options::Options;
use holesync::report::Silent;
use holesync::store::casync::ChunkStore;
use holesync::store::objects::{Directory, Web};
use holesync::stream::casync::{Published, Pulled, pull};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::store::server::{Server, close, right};
use crate::store::stops::{busy, patient};
use crate::support::ends;

const HEAD: usize = 48;
const FIRST: usize = HEAD + 16;
const ITEM: usize = 40;
/// Bytes of every chunk but the last.
const CHUNK: usize = 20_000;
const BEFORE: &[u8] = b"as it was";

/// An index and its store, as casync lays them out.
struct Store {
    dir: TempDir,
    index: Vec<u8>,
    image: Vec<u8>,
}

impl Store {
    fn new() -> Store {
        let image: Vec<u8> = (0..5 * CHUNK + 777).map(|at| (at * 31 + at / 4096) as u8).collect();
        let store = Store { dir: tempfile::tempdir().expect("a directory"), index: index_of(&image), image };
        for bytes in store.image.chunks(CHUNK) {
            store.put(bytes, &zstd::bulk::compress(bytes, 3).expect("compress"));
        }
        fs::write(store.dir.path().join("to"), BEFORE).expect("write");
        store
    }

    fn chunk(&self, of: &[u8]) -> PathBuf {
        let name: String = Sha256::digest(of).iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.path().join("chunks").join(&name[..4]).join(format!("{name}.cacnk"))
    }

    /// Puts `packed` where the chunk of these bytes is looked for.
    fn put(&self, of: &[u8], packed: &[u8]) {
        let path = self.chunk(of);
        fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
        fs::write(path, packed).expect("write");
    }

    fn pull(&self) -> Result<Pulled> {
        let dir = self.dir.path();
        fs::write(dir.join("x.caibx"), &self.index).expect("write");
        let objects = &Directory::open(dir)?;
        let chunks = ChunkStore { objects, prefix: "chunks/" };
        let published = Published { objects, index: "x.caibx", chunks, jobs: 3 };
        pull(&published, &dir.join("to"), &Options::default(), 0o022, &Silent)
    }

    /// Demands an error that names `path` and says this.
    #[track_caller]
    fn refuses(&self, path: &Path, says: &str) {
        let error = self.pull().expect_err(says).to_string();
        assert!(error.contains(says) && error.contains(path.to_str().expect("a name")), "{says}: {error}");
        assert_eq!(fs::read(self.dir.path().join("to")).expect("read"), BEFORE, "{says}");
    }
}

fn index_of(image: &[u8]) -> Vec<u8> {
    let numbers =
        |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let mut index = numbers(&[48, 0x9682_4d9c_7b12_9ff9, 0x9000_0000_0000_0000, 1, 9999, CHUNK as u64]);
    index.extend(numbers(&[u64::MAX, 0xe75b_9e11_2f17_417d]));
    let mut end = 0;
    for bytes in image.chunks(CHUNK) {
        end += bytes.len();
        index.extend((end as u64).to_le_bytes());
        index.extend(Sha256::digest(bytes));
    }
    let table = index.len() - HEAD + ITEM;
    index.extend(numbers(&[0, 0, 48, table as u64, 0x4b4f_050e_5549_ecd1]));
    index
}

#[test]
fn what_is_right_is_taken() {
    let store = Store::new();
    let pulled = store.pull().expect("a run");
    assert_eq!(pulled.chunks, 6);
    assert_eq!(fs::read(store.dir.path().join("to")).expect("read"), store.image);
    assert_eq!(store.pull().expect("a run").chunks, 0);
}

#[test]
fn an_index_that_lies_is_refused() {
    let path = PathBuf::from("x.caibx");
    let set = |at: usize, number: u64| {
        move |index: &mut Vec<u8>| index[at..at + 8].copy_from_slice(&number.to_le_bytes())
    };
    let most = (CHUNK + 1) as u64;
    type Lie = Box<dyn Fn(&mut Vec<u8>)>;
    let lies: [(Lie, &str); 18] = [
        (Box::new(|index| index.clear()), "is no index of an image"),
        (Box::new(set(0, 49)), "is no index of an image"),
        (Box::new(set(8, 1)), "is no index of an image"),
        (Box::new(|index| index.truncate(20)), "it ends too early"),
        (Box::new(set(16, 0xb000_0001_efff_fe26)), "is the index of a directory"),
        (Box::new(set(24, 0)), "lengths of chunks"),
        (Box::new(set(24, 10_000)), "lengths of chunks"),
        (Box::new(set(40, 128 << 20 | 1)), "lengths of chunks"),
        (Box::new(set(HEAD, 0)), "it has no table"),
        (Box::new(set(FIRST, 0)), "a chunk of a length"),
        (Box::new(set(FIRST, most)), "a chunk of a length"),
        (Box::new(set(FIRST + ITEM, CHUNK as u64)), "a chunk of a length"),
        (Box::new(set(FIRST + ITEM, CHUNK as u64 - 1)), "a chunk of a length"),
        (Box::new(set(FIRST + 5 * ITEM, u64::MAX)), "a chunk of a length"),
        (Box::new(|index| index.truncate(index.len() - 1)), "it ends too early"),
        (Box::new(|index| index.truncate(index.len() - ITEM)), "it has no end"),
        (Box::new(|index| drop(index.drain(FIRST..FIRST + ITEM))), "it has no end"),
        (Box::new(|index| index.extend([0; ITEM])), "it has no end"),
    ];
    for (lie, says) in lies {
        let mut store = Store::new();
        lie(&mut store.index);
        store.refuses(&path, says);
    }
}

#[test]
fn a_store_that_lies_is_refused() {
    let store = Store::new();
    let of = &store.image[3 * CHUNK..4 * CHUNK];
    let (right, path) = (fs::read(store.chunk(of)).expect("read"), store.chunk(of));
    let pack = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).expect("compress");
    let mut other = of.to_vec();
    other[777] ^= 1;
    for (packed, says) in [
        (pack(&other), "other bytes than the index says"),
        (pack(&of[..CHUNK - 1]), "other bytes than the index says"),
        (pack(&vec![0; 100 << 20]), "cannot unpack into its length"),
        (right[..right.len() - 1].to_vec(), "cannot unpack"),
        (vec![], "neither zstd nor gzip"),
        (of.to_vec(), "neither zstd nor gzip"),
        (b"\xfd7zXZ\0 and so on".to_vec(), "packed with xz"),
        (b"\x1f\x8b\x08\0 and so on, and so on".to_vec(), "gzip cannot unpack"),
        (vec![0x28; 3 << 20], "is longer than"),
    ] {
        store.put(of, &packed);
        store.refuses(&path, says);
    }
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(9));
    std::io::Write::write_all(&mut bomb, &vec![0; 50 << 20]).expect("compress");
    store.put(of, &bomb.finish().expect("compress"));
    store.refuses(&path, "other bytes than the index says");
    fs::remove_file(&path).expect("remove");
    store.refuses(&path, "is not there");
    store.put(of, &right);
    store.pull().expect("a run");
    assert_eq!(fs::read(store.dir.path().join("to")).expect("read"), store.image);
}

#[test]
fn the_first_error_of_any_chunk_ends_a_pull() {
    let store = Store::new();
    let name = |nth: usize| {
        let path = store.chunk(store.image.chunks(CHUNK).nth(nth).expect("a chunk"));
        path.file_name().and_then(|name| name.to_str()).expect("a name").to_string()
    };
    let ([first, third], index) = ([0, 2].map(name), store.index.clone());
    let (asked, waits) = (std::sync::Mutex::new(false), std::sync::Condvar::new());
    let server = Server::new(move |_, head, stream| {
        if head.contains("x.caibx") {
            return right(&index, head, stream);
        }
        if head.contains(&first) {
            *asked.lock().expect("a lock") = true;
            waits.notify_all();
        }
        if head.contains(&third) {
            drop(waits.wait_while(asked.lock().expect("a lock"), |asked| !*asked));
            return close(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
        busy(stream)
    });
    let to = store.dir.path().join("to");
    let error = ends(move || {
        let objects = &Web::open(&server.url(), &patient()).expect("open");
        let published =
            Published { objects, index: "x.caibx", chunks: ChunkStore { objects, prefix: "" }, jobs: 3 };
        pull(&published, &to, &Options::default(), 0o022, &Silent).expect_err("an error").to_string()
    });
    assert!(error.contains("is not there, and the index names it"), "{error}");
}
