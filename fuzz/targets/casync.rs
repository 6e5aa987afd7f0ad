//! An index of casync: any bytes, and any table between a head and a tail that are right.
#![no_main]

use holesync::store::casync::Index;
use libfuzzer_sys::fuzz_target;

const HEAD: usize = 48;
const ITEM: usize = 40;

fuzz_target!(|data: &[u8]| {
    read(data.to_vec());
    read(index_of(data));
});

/// Items whose ends grow by two bytes of the input each, behind a greatest length that it says.
fn index_of(data: &[u8]) -> Vec<u8> {
    let Some((&[flags, most, high], rest)) = data.split_first_chunk() else { return Vec::new() };
    let mut index = Vec::new();
    let mut put = |numbers: &[u64]| numbers.iter().for_each(|number| index.extend(number.to_le_bytes()));
    put(&[48, 0x9682_4d9c_7b12_9ff9, u64::from(flags) << 56, 1, 1, u64::from(most) << (high % 32)]);
    put(&[u64::MAX, 0xe75b_9e11_2f17_417d]);
    let mut end = 0u64;
    for grows in rest.chunks_exact(2) {
        end = end.wrapping_add(u64::from(u16::from_le_bytes([grows[0], grows[1]])) << (high % 64));
        put(&[end, 1, 2, 3, end]);
    }
    let table = (16 + rest.len() / 2 * ITEM + ITEM) as u64;
    put(&[0, 0, HEAD as u64, table, 0x4b4f_050e_5549_ecd1]);
    index
}

fn read(bytes: Vec<u8>) {
    let long = bytes.len();
    let Ok(index) = Index::parse(bytes) else { return };
    assert_eq!(long, HEAD + 16 + (index.len() + 1) * ITEM);
    let mut end = 0;
    for nth in 0..index.len() {
        let chunk = index.chunk(nth).expect("a chunk");
        assert!(chunk.range.start == end && !chunk.is_empty() && chunk.len() <= 128 << 20, "{chunk:?}");
        end = chunk.range.end;
    }
    assert!(end == index.length() && index.chunk(index.len()).is_none(), "{index:?}");
}
