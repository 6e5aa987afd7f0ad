//! Messages to a sender.
#![no_main]

use holesync::confinement::NamedPath;
use holesync::protocol::{Connection, FrameWriter};
use holesync::report::Silent;
use holesync::sender::{self, Side};
use holesync_fuzz::{Ground, input, options_of};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static GROUND: Ground = Ground::new();
}

fuzz_target!(|data: &[u8]| GROUND.with(|ground| {
    let Some((&how, data)) = data.split_first() else { return };
    let options = options_of(how);
    let sources = [NamedPath::here(ground.tree().join(""))];
    let input = input(how, data);
    let output = FrameWriter::new(std::io::sink(), "the input");
    let connection = Connection { input, output, options: &options, reporter: &Silent, saved: None };
    let _ = sender::run(connection, &sources, None, Side::Initiator);
    ground.check();
}));
