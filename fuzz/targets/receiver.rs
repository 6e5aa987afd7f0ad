//! Messages to a receiver.
#![no_main]

use holesync::confinement::NamedPath;
use holesync::protocol::{Connection, FrameWriter};
use holesync::receiver::{self, Target};
use holesync::report::Silent;
use holesync_fuzz::{Ground, input, options_of};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static GROUND: Ground = Ground::new();
}

fuzz_target!(|data: &[u8]| GROUND.with(|ground| {
    let Some((&how, data)) = data.split_first() else { return };
    let options = options_of(how);
    let tree = ground.tree();
    let path = NamedPath::here(if how & 2 == 0 { tree } else { tree.join("old") });
    let input = input(how, data);
    let output = FrameWriter::new(std::io::sink(), "the input");
    let connection = Connection { input, output, options: &options, reporter: &Silent, saved: None };
    let _ = receiver::run(connection, Target::new(path, false, 0o022), None);
    ground.check();
}));
