//! A list of changes, as it comes; and ranges that are printed as each program prints them.
#![no_main]

use std::fmt::Write;
use std::ops::Range;

use holesync::hashmap::since::list::changed;
use libfuzzer_sys::fuzz_target;

/// Bytes of a block of a thin pool.
const BLOCK: u64 = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let Some((&[how, shift, extra], list)) = data.split_first_chunk() else { return };
    let length = (1 << (shift % 64)) + u64::from(extra);
    if let Ok(ranges) = changed(list, length) {
        let mut end = 0;
        for range in &ranges {
            assert!(
                end <= range.start && range.start < range.end && range.end <= length,
                "{ranges:?} of {length}"
            );
            end = range.end;
        }
        // Each takes some bytes of the list.
        assert!(ranges.len() <= list.len());
    }
    let (ranges, length) = made(list);
    assert_eq!(changed(printed(how, &ranges, length).as_bytes(), length), Ok(ranges));
});

/// Ranges in order with gaps between them, of whole blocks, and the length of an image that has them.
fn made(data: &[u8]) -> (Vec<Range<u64>>, u64) {
    let mut at = 0;
    let range = |bytes: &[u8; 2]| {
        let start = at + BLOCK * u64::from(bytes[0]);
        let end = start + BLOCK * (1 + u64::from(bytes[1]));
        at = end + BLOCK;
        start..end
    };
    let ranges: Vec<_> = data.as_chunks().0.iter().map(range).collect();
    (ranges, at + BLOCK)
}

fn printed(how: u8, ranges: &[Range<u64>], length: u64) -> String {
    let mut text = String::new();
    let mut print = |line: String| writeln!(text, "{line}").expect("memory");
    // What nbdinfo tells of: all of the image.
    let mut every = Vec::new();
    let mut at = 0;
    for range in ranges.iter().cloned().chain([length..length]) {
        every.extend([(at..range.start, 0, "clean"), (range.clone(), 1, "dirty")]);
        at = range.end;
    }
    every.retain(|(range, ..)| !range.is_empty());
    let bytes = |range: &Range<u64>| range.end - range.start;
    match how % 6 {
        0 => {
            print("# offset and length".into());
            ranges.iter().for_each(|range| print(format!("{} {:#x}", range.start, bytes(range))));
        }
        1 => {
            print("Offset  Length  Type".into());
            ranges.iter().for_each(|range| print(format!("{}  {}  data", range.start, bytes(range))));
        }
        2 => {
            let entry = |range: &Range<u64>| {
                format!(r#"{{"offset":{},"length":{},"exists":"true"}}"#, range.start, bytes(range))
            };
            print(format!("[{}]", ranges.iter().map(entry).collect::<Vec<_>>().join(",")));
        }
        3 => every.iter().for_each(|(range, kind, word)| {
            print(format!("{:10} {:10} {kind:4}  {word}", range.start, bytes(range)));
        }),
        4 => {
            let entry = |(range, kind, word): &(Range<u64>, u8, &str)| {
                let (start, bytes) = (range.start, bytes(range));
                format!(
                    r#"{{ "offset": {start}, "length": {bytes}, "type": {kind}, "description": "{word}" }}"#
                )
            };
            print(format!("[\n{}\n]", every.iter().map(entry).collect::<Vec<_>>().join(",\n")));
        }
        _ => {
            print(r#"<superblock uuid="" time="1" data_block_size="128"><diff left="1" right="2">"#.into());
            every.iter().for_each(|(range, kind, _)| {
                let name = if *kind == 0 { "same" } else { "different" };
                let (begin, blocks) = (range.start / BLOCK, bytes(range) / BLOCK);
                print(format!(r#"<{name} begin="{begin}" length="{blocks}"/>"#));
            });
            print("</diff></superblock>".into());
        }
    }
    text
}
