//! `send` and `recv`: an image as a stream of records, exact on the way out,
//! whole or not at all on the way in, and spoken by others too.

mod bmap;
mod casync;
mod fit;
mod plain;
mod through;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;

use crate::common::check::{
    assert_begins_with, assert_holes_kept, assert_no_leftovers, assert_same, data_extents,
};
use crate::common::faults::can_trace;
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::process::{Outcome, PROGRAM, holesync, run, run_on};

const MIB: usize = 1 << 20;

/// Writes an image as a stream, knowing nothing of this program.
const SENDER: &str = r#"
import os, sys
image, out = os.open(sys.argv[1], os.O_RDONLY), sys.stdout.buffer
at, size = 0, os.fstat(image).st_size
while at < size:
    try:
        start = os.lseek(image, at, os.SEEK_DATA)
        end = os.lseek(image, start, os.SEEK_HOLE)
    except OSError:
        start = end = size
    if start > at:
        out.write(b"HOLE\n%d\n" % (start - at))
    if end > start:
        out.write(b"DATA\n%d\n" % (end - start))
        out.write(os.pread(image, end - start, start))
    at = end
"#;

/// Makes a stream a file, knowing nothing of this program.
const RECEIVER: &str = r#"
import os, sys
image, stream = open(sys.argv[1], "wb"), sys.stdin.buffer
for kind in iter(stream.readline, b""):
    count = int(stream.readline())
    if kind == b"DATA\n":
        image.write(stream.read(count))
    elif kind == b"HOLE\n":
        image.seek(count, os.SEEK_CUR)
    else:
        sys.exit("not a record: %r" % kind)
image.truncate()
"#;

/// Runs a script of bash in which `$0` is the program and `$1` and so on are these.
#[track_caller]
fn bash(script: &str, args: &[&Path]) -> Outcome {
    let mut command = Command::new("bash");
    command.env("LC_ALL", "C").args(["-o", "pipefail", "-c", script, PROGRAM]);
    run(command.args(args))
}

/// Whether there is a Python; if not, a counted skip.
fn has_python() -> bool {
    let found = Command::new("python3").args(["-c", ""]).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        lab::skip("no python3");
    }
    found
}

/// Has `check` look at each layout on each file system, given a name for the copy.
fn on_every_layout(check: impl Fn(&Path, &Path)) {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
        for layout in layouts(&mut Rng(7)) {
            eprintln!("{} on {fs:?}", layout.name);
            layout.write(&source);
            // Where the data is may show only once it is written back.
            File::open(&source).expect("open").sync_all().expect("sync");
            check(&source, &copy);
            for path in [&source, &copy] {
                assert!(fs::remove_file(path).is_ok() || !path.exists(), "cannot remove {path:?}");
            }
            assert_no_leftovers(dir.path());
        }
    }
}

/// The stream of an image.
#[track_caller]
fn stream_of(image: &Path, flags: &[&str]) -> Vec<u8> {
    let output = holesync().arg("send").args(flags).arg(image).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The heads of its records.
fn heads(mut stream: &[u8]) -> Vec<(String, u64)> {
    let line = |stream: &mut &[u8]| {
        let end = stream.iter().position(|&byte| byte == b'\n').expect("a line");
        let line = std::str::from_utf8(&stream[..end]).expect("text").to_owned();
        *stream = &stream[end + 1..];
        line
    };
    let mut heads = Vec::new();
    while !stream.is_empty() {
        let (kind, count) = (line(&mut stream), line(&mut stream).parse().expect("a count"));
        stream = &stream[if kind == "DATA" { count as usize } else { 0 }..];
        heads.push((kind, count));
    }
    heads
}

/// What the heads must be, as the file system tells it.
fn expected_heads(image: &Path) -> Vec<(String, u64)> {
    let file = File::open(image).expect("open");
    let len = file.metadata().expect("stat").len();
    let (mut heads, mut at) = (Vec::new(), 0);
    for extent in data_extents(&file, len).expect("map") {
        heads.push(("HOLE", extent.start - at));
        heads.push(("DATA", extent.end - extent.start));
        at = extent.end;
    }
    heads.push(("HOLE", len - at));
    heads.into_iter().filter(|head| head.1 > 0).map(|(kind, count)| (kind.to_owned(), count)).collect()
}

/// A directory with a `recv` in it.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Desk {
        Desk { dir: lab::scratch() }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    fn image(&self, layout: &Layout) -> PathBuf {
        let path = self.dir.path().join("image");
        layout.write(&path);
        path
    }

    #[track_caller]
    fn recv(&self, flags: &[&str], stream: impl AsRef<[u8]>) -> Outcome {
        self.recv_to(&self.file(), flags, stream)
    }

    #[track_caller]
    fn recv_to(&self, file: &Path, flags: &[&str], stream: impl AsRef<[u8]>) -> Outcome {
        run_on(holesync().arg("recv").args(flags).arg(file), stream.as_ref())
    }

    /// Demands that this stream is refused, whether there is an old file or none, and
    /// that neither shows any of it.
    #[track_caller]
    fn refuses(&self, flags: &[&str], stream: impl AsRef<[u8]>, code: i32) {
        let (file, stream) = (self.file(), stream.as_ref());
        self.recv(flags, stream).code(code).says(&["stdin"]);
        assert!(!file.exists(), "a file of {:?}", stream.escape_ascii().to_string());
        fs::write(&file, "old").expect("write");
        let before = fs::metadata(&file).expect("stat").ino();
        self.recv(flags, stream).code(code);
        assert_eq!(fs::read(&file).expect("read"), b"old");
        assert_eq!(fs::metadata(&file).expect("stat").ino(), before, "replaced");
        fs::remove_file(&file).expect("remove");
        assert_no_leftovers(self.dir.path());
    }
}

#[test]
fn what_is_sent_is_received_holes_included() {
    on_every_layout(|source, copy| {
        for script in
            [r#""$0" send "$1" | "$0" recv --no-fsync "$2""#, r#""$0" send "$1" --end | "$0" recv "$2""#]
        {
            // What is there the second time is replaced.
            bash(script, &[source, copy]).ok();
            assert_same(source, copy);
            assert_holes_kept(source, copy);
        }
    });
}

#[test]
fn recv_to_stdout_gives_the_plain_bytes() {
    on_every_layout(|source, copy| {
        bash(r#""$0" send "$1" --end | "$0" recv - >"$2""#, &[source, copy]).ok();
        assert!(fs::read(source).expect("read") == fs::read(copy).expect("read"));
        bash(r#""$0" send "$1" | "$0" recv - --size "$(stat -c %s "$1")" | cmp - "$1""#, &[source]).ok();
    });
}

#[test]
fn a_stream_has_one_record_for_each_extent_and_each_hole() {
    on_every_layout(|source, _| {
        let plain = stream_of(source, &[]);
        assert_eq!(heads(&plain), expected_heads(source));
        let len = fs::metadata(source).expect("stat").len();
        assert!(stream_of(source, &["--end"]) == [&plain[..], format!("END\n{len}\n").as_bytes()].concat());
    });
}

#[test]
fn others_read_what_is_sent_and_are_read() {
    if !has_python() {
        return;
    }
    on_every_layout(|source, copy| {
        bash(r#""$0" send "$1" | python3 -c "$3" "$2""#, &[source, copy, RECEIVER.as_ref()]).ok();
        assert_same(source, copy);
        bash(r#"python3 -c "$3" "$1" | "$0" recv "$2""#, &[source, copy, SENDER.as_ref()]).ok();
        assert_same(source, copy);
        assert_holes_kept(source, copy);
    });
}

#[test]
fn a_stream_of_many_small_records_gives_a_file_that_is_as_sparse() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let (image, file) = (dir.path().join("image"), dir.path().join("file"));
        let mut rng = Rng(11);
        let layout = (0..600).fold(Layout::hole("many", 40 * MIB), |layout, nth| {
            layout.data(nth * 65_536..nth * 65_536 + 4096 * (1 + nth % 3), &mut rng)
        });
        layout.write(&image);
        // Data comes in pieces that respect no page, and twice in a row.
        let stream = stream_of(&image, &[]);
        let mut pieces = Vec::new();
        let mut rest = stream.as_slice();
        for (kind, count) in heads(&stream) {
            let head = format!("{kind}\n{count}\n").len();
            let data = &rest[head..head + if kind == "DATA" { count as usize } else { 0 }];
            rest = &rest[head + data.len()..];
            if kind == "HOLE" {
                write!(pieces, "HOLE\n1\nHOLE\n{}\nDATA\n0\nHOLE\n0\n", count - 1).expect("memory");
            }
            for piece in data.chunks(1000) {
                write!(pieces, "DATA\n{}\n", piece.len()).expect("memory");
                pieces.extend(piece);
            }
        }
        run_on(holesync().arg("recv").arg(&file), &pieces).ok();
        assert_same(&image, &file);
        assert_holes_kept(&image, &file);
    }
}

#[test]
fn an_existing_file_is_replaced_as_a_whole_and_keeps_its_permissions() {
    let desk = Desk::new();
    let (file, other) = (desk.file(), desk.dir.path().join("other"));
    fs::write(&file, vec![1; 3 * MIB]).expect("write");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).expect("chmod");
    fs::hard_link(&file, &other).expect("link");
    desk.recv(&["--size", "5"], "DATA\n2\nabHOLE\n3\nEND\n5\n").ok();
    assert_eq!(fs::read(&file).expect("read"), b"ab\0\0\0");
    assert_eq!(fs::metadata(&file).expect("stat").mode() & 0o7777, 0o640);
    assert!(fs::read(&other).expect("read") == vec![1; 3 * MIB], "written in place");
    // Who has the old one open reads on in it.
    fs::remove_file(&file).expect("remove");
    fs::write(&file, vec![1; 3 * MIB]).expect("write");
    let mut opened = File::open(&file).expect("open");
    desk.recv(&[], "HOLE\n3145728\n").ok();
    let mut read = Vec::new();
    opened.read_to_end(&mut read).expect("read");
    assert!(read == vec![1; 3 * MIB], "written in place");
    // What an interrupted run left is no part of it.
    fs::write(desk.dir.path().join(".file.holesync.temp"), vec![2; MIB]).expect("write");
    desk.recv(&[], "HOLE\n7\n").ok();
    assert_eq!(fs::read(&file).expect("read"), [0; 7]);
    assert_no_leftovers(desk.dir.path());
}

#[test]
fn a_new_file_has_the_permissions_of_any_new_file() {
    let desk = Desk::new();
    let umask = r#"umask 027; "$0" send "$1" | "$0" recv "$2""#;
    bash(umask, &[&desk.image(&Layout::hole("image", 9)), &desk.file()]).ok();
    assert_eq!(fs::metadata(desk.file()).expect("stat").mode() & 0o7777, 0o640);
}

#[test]
fn an_empty_stream_is_an_empty_file_unless_it_must_have_a_size() {
    let desk = Desk::new();
    for (flags, stream) in [(&[][..], ""), (&[], "END\n0\n"), (&["--size", "0"], ""), (&[], "HOLE\n0\n")] {
        let is_sure = !(flags.is_empty() && stream.is_empty());
        fs::write(desk.file(), if is_sure { "old" } else { "" }).expect("write");
        desk.recv(flags, stream).ok();
        assert_eq!(fs::read(desk.file()).expect("read"), b"");
        fs::remove_file(desk.file()).expect("remove");
    }
    desk.recv(&[], "").ok();
    fs::remove_file(desk.file()).expect("remove");
    desk.refuses(&["--size", "1"], "", 12);
    // Whoever was to send something has died, most likely: what was there stays.
    fs::write(desk.file(), "old").expect("write");
    desk.recv(&[], "").code(12).says(&["nothing at all", "--size 0"]);
    assert_eq!(fs::read(desk.file()).expect("read"), b"old");
    fs::remove_file(desk.file()).expect("remove");
}

#[test]
fn a_stream_that_is_cut_off_anywhere_is_no_file() {
    let desk = Desk::new();
    let stream = b"HOLE\n5\nDATA\n4\nabc\nHOLE\n12\nDATA\n1\nxEND\n22\n";
    let records = stream.len() - b"END\n22\n".len();
    desk.recv(&[], stream).ok();
    let image = [&[0; 5][..], b"abc\n", &[0; 12], b"x"].concat();
    assert_eq!(fs::read(desk.file()).expect("read"), image);
    fs::remove_file(desk.file()).expect("remove");
    for end in 0..stream.len() {
        // Where the records are complete, all of the image is there.
        if end == records {
            desk.recv(&["--size", "22"], &stream[..end]).ok();
            assert_eq!(fs::read(desk.file()).expect("read"), image);
            fs::remove_file(desk.file()).expect("remove");
        } else {
            desk.refuses(&["--size", "22"], &stream[..end], 12);
        }
    }
    // Without a size a stream may end behind any record, and nowhere else.
    let between = [0, 7, 18, 26, records];
    for end in (0..stream.len()).filter(|end| !between.contains(end)) {
        desk.refuses(&[], &stream[..end], 12);
    }
}

#[test]
fn what_is_no_stream_is_no_file() {
    let desk = Desk::new();
    let many = format!("HOLE\n{}\n", "1".repeat(100));
    for stream in [
        "\n",
        "hello\n",
        "data\n1\nx",
        "DATA \n1\nx",
        " DATA\n1\nx",
        "DATA\r\n1\r\nx",
        "DATA\n1\r\nx",
        "DATA 1\nx",
        "DATA\n\nx",
        "DATA\n+1\nx",
        "DATA\n-1\nx",
        "DATA\n 1\nx",
        "DATA\n1 \nx",
        "DATA\n0x1\nx",
        "DATA\n1e0\nx",
        "DATA\n1.0\nx",
        "DATA\n\u{661}\nx",
        "DATA\n1",
        "HOLE\n1",
        "HOLE",
        "END\n1",
        "HOLE\n9223372036854775808\n",
        "HOLE\n18446744073709551616\n",
        "HOLE\n99999999999999999999\n",
        "DATA\n9223372036854775808\n",
        "END\n18446744073709551616\n",
        &many,
        "HOLE\n1\nHOLE\n9223372036854775807\n",
        "HOLE\n1\nDATA\n9223372036854775807\n",
        "DATA\n1\nxEND\n2\n",
        "DATA\n2\nxyEND\n1\n",
        "END\n1\n",
        "END\n0\n\n",
        "END\n0\nEND\n0\n",
        "HOLE\n3\nEND\n3\nHOLE\n1\n",
        "DATA\n1\nx\n",
        "DATA\n1\nx\0\0\0\0",
        "\0\0\0\0\0",
        "DATA\n1\nxy",
    ] {
        desk.refuses(&[], stream, 12);
    }
    // A file that is no stream at all.
    let garbage = Layout::dense("image", MIB, &mut Rng(1));
    desk.refuses(&[], fs::read(desk.image(&garbage)).expect("read"), 12);
    desk.refuses(&[], vec![0; 4 * MIB], 12);
}

#[test]
fn the_size_must_be_the_one_that_was_said() {
    let desk = Desk::new();
    for stream in ["HOLE\n7\n", "HOLE\n9\n", "HOLE\n9\nEND\n9\n", "HOLE\n7\nEND\n7\n", "DATA\n9\n123456789"] {
        desk.refuses(&["--size", "8"], stream, 12);
    }
    desk.refuses(&["--size", "8K"], "HOLE\n8191\n", 12);
    desk.recv(&["--size", "8K"], "HOLE\n8192\n").ok();
    assert_eq!(fs::metadata(desk.file()).expect("stat").len(), 8192);
}

#[test]
fn zeros_before_a_count_do_not_make_it_octal() {
    let desk = Desk::new();
    desk.recv(&[], "HOLE\n010\nDATA\n00000000000000000001\nxEND\n0000000000011\n").ok();
    assert_eq!(fs::read(desk.file()).expect("read"), b"\0\0\0\0\0\0\0\0\0\0x");
    fs::remove_file(desk.file()).expect("remove");
    desk.refuses(&[], "HOLE\n000000000000000000001\n", 12);
}

#[test]
fn recv_to_stdout_fails_where_the_stream_does() {
    let desk = Desk::new();
    for (flags, stream) in [
        (&[][..], "DATA\n3\nab"),
        (&[], "DATA\n2\nabEND\n3\n"),
        (&[], "DATA\n2\nabmore"),
        (&["--size", "3"], "DATA\n2\nab"),
    ] {
        let outcome = desk.recv_to("-".as_ref(), flags, stream).code(12).says(&["stdin"]);
        assert_eq!(outcome.stdout, "ab");
    }
    let mut full = holesync();
    full.args(["recv", "-"]).stdout(File::create("/dev/full").expect("open"));
    let image = desk.image(&Layout::hole("image", MIB));
    bash(r#""$0" send "$1" | "$0" recv - >/dev/full"#, &[&image]).code(11).says(&["cannot write to stdout"]);
}

#[test]
fn a_hole_that_no_file_can_have_is_an_error() {
    let desk = Desk::new();
    // ext4 ends at 16 TiB, and the system at 2^63 - 1.
    for (flags, count) in [(&[][..], i64::MAX as u64), (&["--size", "18446744073709551615"], 1 << 62)] {
        let stream = format!("HOLE\n{count}\n");
        let outcome = desk.recv(flags, stream);
        assert!([11, 12, 23].contains(&outcome.code), "{outcome}");
        outcome.says(&["holesync: "]);
        assert!(!desk.file().exists());
        assert_no_leftovers(desk.dir.path());
    }
}

#[test]
fn recv_wants_a_name_for_a_file_in_a_directory_that_is_there() {
    let desk = Desk::new();
    let here = desk.dir.path();
    desk.recv_to(here, &[], "HOLE\n1\n").code(23).says(&["is a directory", "name the file"]);
    desk.recv_to(&here.join(""), &[], "HOLE\n1\n").code(23).says(&["is a directory"]);
    desk.recv_to(&here.join("no/file"), &[], "HOLE\n1\n").code(3).says(&["no", "create it first"]);
    desk.recv_to(&here.join("new/"), &[], "HOLE\n1\n");
    assert!(!here.join("new").is_dir(), "a directory was made");
    let fifo = here.join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("mkfifo");
    desk.recv_to(&fifo, &[], "HOLE\n1\n").code(23).says(&["neither a regular file nor a block device"]);
    desk.recv_to(Path::new("/"), &[], "HOLE\n1\n").code(23).says(&["is a directory"]);
    run_on(holesync().arg("recv"), b"").code(1);
}

#[test]
fn a_symlink_is_replaced_and_its_target_is_left_alone() {
    let desk = Desk::new();
    let target = desk.dir.path().join("target");
    fs::write(&target, "old").expect("write");
    std::os::unix::fs::symlink(&target, desk.file()).expect("link");
    desk.recv(&[], "DATA\n1\nx").ok();
    assert_eq!(fs::read(&target).expect("read"), b"old");
    assert!(!desk.file().is_symlink());
    assert_eq!(fs::read(desk.file()).expect("read"), b"x");
}

#[test]
fn a_device_becomes_the_image_and_the_rest_of_it_is_left_alone() {
    if !lab::is_root() {
        return;
    }
    let desk = Desk::new();
    let rng = &mut Rng(3);
    let behind = desk.dir.path().join("behind");
    Layout::dense("behind", 4 * MIB, rng).write(&behind);
    let device = Loop::over(&behind);
    let before = fs::read(&device.0).expect("read");
    let layout = Layout::dense("image", 2 * MIB + 777, rng).punch(100_000..MIB).punch(2 * MIB..2 * MIB + 777);
    let image = desk.image(&layout);
    desk.recv_to(&device.0, &["--size", "4M"], "HOLE\n1\nEND\n1\n").code(12);
    desk.recv_to(&device.0, &["--size", "8M"], "").code(23).says(&["4194304", "nothing was written"]);
    for flags in [&[][..], &["--end"]] {
        fs::write(&device.0, &before).expect("write");
        desk.recv_to(&device.0, &[], stream_of(&image, flags)).ok();
        assert_begins_with(&device.0, &image);
        assert!(fs::read(&device.0).expect("read")[layout.len()..] == before[layout.len()..]);
    }
    // And it is sent as any image is.
    desk.recv(&[], stream_of(&device.0, &["--end"])).ok();
    assert!(fs::read(&device.0).expect("read") == fs::read(desk.file()).expect("read"));
}

#[test]
fn a_stream_that_is_longer_than_the_device_says_so() {
    if !lab::is_root() {
        return;
    }
    let desk = Desk::new();
    let behind = desk.dir.path().join("behind");
    fs::write(&behind, vec![7; MIB]).expect("write");
    let device = Loop::over(&behind);
    let data = [&b"HOLE\n1048000\nDATA\n1000\n"[..], &[1; 1000]].concat();
    for (stream, state) in [
        (data.as_slice(), "partly written"),
        (b"HOLE\n1048577\n", "nothing was written"),
        (b"HOLE\n2097152\nEND\n2097152\n", "nothing was written"),
        (b"DATA\n1\nxHOLE\n1048576\n", "partly written"),
    ] {
        let outcome = desk.recv_to(&device.0, &[], stream).code(23);
        outcome.says(&["holds 1048576 bytes", state, device.0.to_str().expect("a path")]);
    }
    assert_eq!(fs::metadata(&behind).expect("stat").len(), MIB as u64);
}

#[test]
fn a_source_that_cannot_be_sent_is_an_error_with_its_name() {
    let desk = Desk::new();
    let here = desk.dir.path();
    let fifo = here.join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("mkfifo");
    for (path, what) in [
        (here.join("missing"), "No such file"),
        (here.to_owned(), "is a directory"),
        (fifo, "neither a file nor a block device"),
        ("/dev/null".into(), "neither a file nor a block device"),
    ] {
        let outcome = run(holesync().arg("send").arg(&path)).code(23);
        let outcome = outcome.says(&[what, path.to_str().expect("a path")]);
        assert_eq!(outcome.stdout, "");
    }
    if can_trace() {
        let image = desk.image(&Layout::dense("image", MIB, &mut Rng(1)));
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=pread64:error=EIO", "-P"]);
        command.arg(&image).arg(PROGRAM).args(["send", "--end"]).arg(&image);
        let outcome = run(&mut command).code(11).says(&["cannot read", "image", "Input/output error"]);
        assert!(!outcome.stdout.contains("END"), "{outcome}");
    }
}

#[test]
fn a_stream_that_nobody_reads_or_that_does_not_fit_is_an_error() {
    let desk = Desk::new();
    let image = desk.image(&Layout::dense("image", MIB, &mut Rng(1)));
    bash(r#""$0" send "$1" | :"#, &[&image]).code(23).says(&["cannot write to stdout: Broken pipe"]);
    bash(r#""$0" send "$1" >/dev/full"#, &[&image]).code(11).says(&["cannot write to stdout: No space"]);
    bash(r#""$0" send "$1" 1<"$1""#, &[&image]).code(23).says(&["cannot write to stdout"]);
}

#[test]
fn a_source_that_changes_while_it_is_sent_is_refused_and_its_stream_has_no_end() {
    let desk = Desk::new();
    let image = desk.image(&Layout::dense("image", 4 * MIB, &mut Rng(1)));
    for resize in [None, Some(MIB as u64), Some(5 * MIB as u64)] {
        let mut command = holesync();
        command.args(["send", "--end"]).arg(&image).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run");
        // The pipe holds little of it: it waits until more is read.
        let mut out = child.stdout.take().expect("a pipe");
        let mut stream = vec![0; 100];
        out.read_exact(&mut stream).expect("read");
        let file = File::options().append(true).open(&image).expect("open");
        match resize {
            Some(len) => file.set_len(len).expect("set the length"),
            None => (&file).write_all(b"more").expect("write"),
        }
        out.read_to_end(&mut stream).expect("read");
        let output = child.wait_with_output().expect("wait");
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(23), "{messages}");
        assert!(messages.contains("changed while it was read; send a snapshot"), "{messages}");
        assert_eq!(heads(&stream), [("DATA".to_owned(), stream.len() as u64 - 13)], "{resize:?}");
        desk.image(&Layout::dense("image", 4 * MIB, &mut Rng(1)));
    }
}
