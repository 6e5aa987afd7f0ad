//! Seeks that contradict each other: what they leave in doubt is read.

use std::path::Path;
use std::process::Command;

use crate::common::faults::can_trace;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::process::{holesync, run};

const MIB: usize = 1 << 20;

/// The digest that is found when strace does this to seeks.
fn digest(image: &Path, injection: &str) -> String {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=lseek", "-e", injection]);
    let plain = holesync();
    traced.arg(plain.get_program()).arg("digest").arg(image);
    let outcome = run(&mut traced).ok();
    outcome.stdout.split(' ').next().expect("a digest").to_owned()
}

#[test]
fn no_seek_that_answers_below_where_it_was_asked_hides_data() {
    if !can_trace() {
        return;
    }
    let dir = lab::scratch();
    let mut rng = Rng(11);
    let image = dir.path().join("image");
    let layout = Layout::hole("image", 5 * MIB).data(MIB..MIB + 9000, &mut rng);
    layout.data(2 * MIB..3 * MIB, &mut rng).data(4 * MIB..4 * MIB + 1, &mut rng).write(&image);
    let right = digest(&image, "inject=lseek:retval=0:when=1000");
    for call in 1..=9 {
        let lie = format!("inject=lseek:retval=0:when={call}");
        assert_eq!(digest(&image, &lie), right, "{lie}");
    }
    for lie in ["inject=lseek:error=EINVAL:when=1+", "inject=lseek:retval=0"] {
        assert_eq!(digest(&image, lie), right, "{lie}");
    }
}

#[test]
fn data_that_one_seek_denies_and_the_other_ends_is_read() {
    if !can_trace() {
        return;
    }
    let dir = lab::scratch();
    let image = dir.path().join("image");
    Layout::hole("image", 5 * MIB).data(0..MIB, &mut Rng(12)).write(&image);
    let right = digest(&image, "inject=lseek:retval=0:when=1000");
    // The last one denies data and holes alike, of a file that is not at its end.
    for lie in
        ["inject=lseek:error=ENXIO:when=1", "inject=lseek:retval=1048576:when=1", "inject=lseek:error=ENXIO"]
    {
        assert_eq!(digest(&image, lie), right, "{lie}");
    }
}
