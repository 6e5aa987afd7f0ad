//! Archives of a far side's tar, their sums made right.
#![no_main]

use holesync::shell::sparse_tar;
use holesync_fuzz::Counted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[low, high, factor], archive)) = data.split_first_chunk() else { return };
    let (size, factor) = (u64::from(u16::from_le_bytes([low, high])), u64::from(factor % 20 + 1));
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let mut sink = Counted::default();
    if let Ok(found) = sparse_tar::receive(&mut archive.as_slice(), "the input", size, factor, &mut sink) {
        assert_eq!(sink.0, if found { size } else { 0 });
    }
});
