//! A map file: any sections with right checks, then anything.
#![no_main]

use holesync::hashmap::map_file::MapReader;
use libfuzzer_sys::fuzz_target;

const CHECK: usize = 16;

fuzz_target!(|data: &[u8]| {
    read(data);
    read(&map_of(data));
});

/// What `docs/map.md` has as the frame, around bodies of any content.
fn map_of(data: &[u8]) -> Vec<u8> {
    let Some((&[shift, a, b, c, high, sections], mut rest)) = data.split_first_chunk() else {
        return Vec::new();
    };
    let mut map = b"holesync map 1\r\n".to_vec();
    map.extend((4096u64 << (shift % 8)).to_le_bytes());
    map.extend((u64::from(u32::from_le_bytes([a, b, c, 0])) << (high % 41)).to_le_bytes());
    append_check(&mut map, &[0; CHECK], 0);
    for _ in 0..sections % 8 {
        let Some((&[kind, size], behind)) = rest.split_first_chunk() else { break };
        let (body, behind) = behind.split_at(usize::from(size).min(behind.len()));
        let (start, before) = (map.len(), last_check(&map));
        map.extend(u32::from(kind % 4).to_le_bytes());
        map.extend((body.len() as u32).to_le_bytes());
        map.extend(body);
        append_check(&mut map, &before, start);
        rest = behind;
    }
    map.extend(rest);
    map
}

fn last_check(map: &[u8]) -> [u8; CHECK] {
    *map.last_chunk().expect("a check")
}

fn append_check(map: &mut Vec<u8>, before: &[u8; CHECK], from: usize) {
    let hash = blake3::hash(&[&before[..], &map[from..]].concat());
    map.extend(&hash.as_bytes()[..CHECK]);
}

fn read(bytes: &[u8]) {
    let Ok(mut map) = MapReader::new(bytes) else { return };
    let (grid, mut index) = (map.grid(), 0);
    while let Ok(Some(entries)) = map.entries() {
        index += entries.iter().map(|entry| entry.blocks()).sum::<u64>();
        assert!(index <= grid.blocks(), "{index} of {grid:?}");
    }
    assert!(map.root().is_none() || index == grid.blocks(), "{index} of {grid:?}");
}
