//! Answers of a far side's shell, to a push and to a pull.
#![no_main]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::process::{ChildStdin, ChildStdout};
use std::sync::Arc;

use holesync::confinement::NamedPath;
use holesync::protocol::{FrameReader, FrameWriter, Silence, TimedReader, TimedWriter};
use holesync::receiver::Target;
use holesync::report::Silent;
use holesync::shell::{self, ShellSession};
use holesync_fuzz::{Ground, options};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static GROUND: (Ground, File) = (Ground::new(), tempfile::tempfile().expect("a file"));
}

fuzz_target!(|data: &[u8]| GROUND.with(|(ground, file)| {
    let Some((&how, data)) = data.split_first() else { return };
    let mut answers = file.try_clone().expect("a descriptor");
    answers.set_len(0).and_then(|()| answers.rewind()).expect("an empty file");
    answers.write_all(data).and_then(|()| answers.rewind()).expect("write");
    let silence = Arc::<Silence>::default();
    let nowhere = File::options().write(true).open("/dev/null").expect("open");
    let input = FrameReader::new(
        TimedReader::new(ChildStdout::from(OwnedFd::from(answers)), Arc::clone(&silence)),
        "the input",
    );
    let output = FrameWriter::new(
        TimedWriter::new(ChildStdin::from(OwnedFd::from(nowhere)), Arc::clone(&silence)),
        "the input",
    );
    let mut options = options();
    options.dry_run = how & 2 != 0;
    options.checksum = how & 4 != 0;
    let session = ShellSession { input, output, options: &options, host: "the input", reporter: &Silent };
    let tree = ground.tree();
    let source = NamedPath::here(tree.join(""));
    let target = Target::new(NamedPath::here(tree), false, 0o022);
    let _ = if how & 1 == 0 {
        shell::send(session, &[source], &target)
    } else {
        shell::receive(session, &[b"image".to_vec()], &target)
    };
    ground.check();
}));
