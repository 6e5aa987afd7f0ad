//! The stream of DATA and HOLE records.
#![no_main]

use holesync::stream;
use holesync_fuzz::Counted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for size in [None, Some(4096)] {
        let mut sink = Counted::default();
        let read = stream::read_records(&mut &*data, "the input", size, &mut sink);
        if let Ok((length, _)) = read {
            assert_eq!(length, sink.0);
            assert!(size.is_none_or(|size| size == length));
        }
    }
});
