//! What a pull believes of the lengths that it is told.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holesync::hashmap::{Grid, MAX_LENGTH};
use holesync::options::{BlockSize, Options};
use holesync::report::Silent;
use holesync::store::head::{Digest, Head, PatchesHead, Proven, Subject};
use holesync::store::name::{ImageName, ObjectId, Version};
use holesync::store::objects::Web;
use holesync::store::pull::{Pull, PullOptions};

use super::server::{Server, close};
use super::web::options;
use crate::support::ends;

#[test]
fn a_lone_map_without_an_end_is_bounded() {
    for says_length in [false, true] {
        let came = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&came);
        let server = Server::new(move |_, head, stream| {
            if !head.starts_with("GET /store/disk.map ") {
                return close(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
            }
            let length = if says_length { "Content-Length: 1000000000000\r\n" } else { "" };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{length}\r\n").as_bytes())?;
            loop {
                stream.write_all(&[7; 64 << 10])?;
                count.fetch_add(64 << 10, Ordering::Relaxed);
            }
        });
        let error = ends(move || {
            let (web, name) =
                (Web::open(&server.url(), &options()).unwrap(), ImageName::new("disk").unwrap());
            let wanted = PullOptions { version: None, root: None, trusted: None, jobs: 1 };
            let (options, dir) = (Arc::new(Options::default()), tempfile::tempdir().unwrap());
            let pull = Pull {
                objects: &web,
                name: &name,
                pull: &wanted,
                options: &options,
                umask: 0,
                reporter: &Silent,
            };
            pull.run(&dir.path().join("to")).unwrap_err().to_string()
        });
        assert!(
            error.contains("/store/disk.map") && error.contains("is longer than 134217728 bytes"),
            "{error}"
        );
        // What lies in buffers on its way is not read.
        assert!(came.load(Ordering::Relaxed) < 160 << 20, "{came:?}");
    }
}

#[test]
fn a_head_names_objects_of_lengths_that_its_image_may_have() {
    let (name, version) = (ImageName::new("disk").unwrap(), Version::new("v1").unwrap());
    let parse = |length: u64, block: u64, [map, places, index]: [u64; 3]| {
        let proven = |length| Proven { digest: Digest([7; 32]), length };
        let grid = Grid { length, block: BlockSize::new(block).unwrap() };
        let (name, version, id) = (&name, &version, ObjectId([9; 16]));
        let subject =
            Subject { name, version, id, time: 5, modified: None, grid, data: length, root: [1; 32] };
        let patches = PatchesHead { object: Digest([7; 32]), index: proven(index) };
        let head = Head::new(subject, proven(map), Some(proven(places)), Some(patches));
        let read = Head::parse(&head.to_line(), "here", name);
        if let Ok(read) = &read {
            assert_eq!(*read, head);
        }
        read.is_ok()
    };
    let (huge, index) = (16u64 << 40, 64 << 20);
    for block in [4096, 64 << 10, 256 << 10] {
        // All of it data: a hash, a mask and a number each; and each block a run of its own.
        let blocks = huge / block;
        let (map, places) = (blocks * 44, blocks * 30);
        assert!(parse(huge, block, [map, places, index]), "{block}");
        let most = blocks * 64 + (1 << 16);
        assert!(parse(huge, block, [most, most, index]), "{block}");
        assert!(!parse(huge, block, [most + 1, places, index]), "{block}");
        assert!(!parse(huge, block, [map, most + 1, index]), "{block}");
        assert!(!parse(huge, block, [map, places, index + 1]), "{block}");
        assert!(!parse(huge, block, [u64::MAX, places, index]), "{block}");
    }
    assert!(parse(MAX_LENGTH, 4096, [1 << 57, 1 << 57, 1]));
    assert!(!parse(MAX_LENGTH + 1, 4096, [1, 1, 1]));
    // A small image cannot have them.
    assert!(parse(4096, 4096, [1 << 16, 1 << 16, 1]) && !parse(4096, 4096, [1 << 17, 1, 1]));
}
