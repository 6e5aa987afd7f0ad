//! Frames, with right checks and as they come.
#![no_main]

use holesync::protocol::{FrameReader, MAX_NOISE};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let bytes = holesync_fuzz::framed(data).concat();
    let mut input = FrameReader::new(bytes.as_slice(), "the input");
    while input.read().is_ok() {}
    let mut input = FrameReader::new(data, "the input");
    if input.await_greeting_or(b"\nholesync shell 1 ", MAX_NOISE).is_ok() {
        while input.read().is_ok() {}
    }
});
