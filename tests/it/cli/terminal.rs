//! What a terminal shows: the bar, and the line at the end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LIMIT, each_way, outputs};
use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{PROGRAM, Running, holesync, run, start, wait_until};

/// A run on a terminal of its own, that `script` makes; all it shows goes to a file.
struct OnTerminal {
    running: Running,
    screen: PathBuf,
}

impl OnTerminal {
    fn start(dir: &Path, command: &Command) -> OnTerminal {
        OnTerminal::of_width(dir, "", command)
    }

    /// `size`: what stty sets first; empty: the terminal does not tell how wide it is.
    fn of_width(dir: &Path, size: &str, command: &Command) -> OnTerminal {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line = words.map(|word| shell_word(Path::new(word))).collect::<Vec<_>>().join(" ");
        let line = if size.is_empty() { line } else { format!("stty {size}; exec {line}") };
        let screen = dir.join(format!("screen {size}"));
        fs::write(&screen, "").expect("write");
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--return", "--command", &line]).arg(&screen);
        script.env("LC_ALL", "C").env("COLUMNS", "100").env("TERM", "xterm");
        OnTerminal { running: start(&mut script), screen }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.screen).expect("read")).into_owned()
    }

    /// Waits until this is on the screen.
    #[track_caller]
    fn wait_for(&self, text: &str) {
        assert!(wait_until(LIMIT, || self.shown().contains(text)), "{text:?} is not in {:?}", self.shown());
    }

    #[track_caller]
    fn finish(self) -> String {
        let screen = self.screen.clone();
        self.running.finish().ok();
        String::from_utf8_lossy(&fs::read(screen).expect("read")).into_owned()
    }
}

/// Where the frames in what an agent said begin: behind the greeting, each of
/// one byte of type, four of length, four of check, its body, and its check.
fn frames(said: &[u8]) -> Vec<usize> {
    let mut starts = vec![16];
    while let Some(length) = starts.last().and_then(|at| said.get(at + 1..at + 5)) {
        let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
        starts.push(starts[starts.len() - 1] + 9 + length as usize + 4);
    }
    assert_eq!(starts.pop(), Some(said.len()), "whole frames");
    starts
}

#[test]
fn a_terminal_gets_a_bar_in_every_phase_and_is_left_clean() {
    let dir = lab::scratch();
    let (source, to) = (dir.path().join("source"), dir.path().join("to"));
    // More than what a receiver syncs without a word.
    Layout::dense("source", 9 << 20, &mut Rng(4)).write(&source);
    let record = dir.path().join("record");
    let peer = Peer::script(dir.path(), &format!("agent | tee {}", shell_word(&record)));
    run(peer.holesync().arg(&source).arg(at(&to))).ok();
    let starts = frames(&fs::read(&record).expect("read"));
    let go = dir.path().join("go");
    run(Command::new("mkfifo").arg(&go)).ok();
    // Held before its first answer, behind it, and behind the word that it writes back.
    let phases = [
        (starts[0], "comparing   0% ["),
        (starts[1], "waiting for peer 100% ["),
        (starts[2], "waiting for storage on peer 100% ["),
    ];
    for (offset, phase) in phases {
        fs::remove_file(&to).expect("remove");
        let body = format!("agent | {{ stdbuf -o0 head -c {offset}; : <{}; cat; }}", shell_word(&go));
        let peer = Peer::script(dir.path(), &body);
        let terminal = OnTerminal::start(dir.path(), peer.holesync().arg(&source).arg(at(&to)));
        terminal.wait_for(phase);
        File::options().write(true).open(&go).expect("open the fifo");
        let shown = terminal.finish();
        // Nothing of the bar is left, and the line at the end stays.
        let left = shown.rsplit("\x1b[2K").next().unwrap_or("");
        assert!(shown.contains("\x1b[2K") && !left.contains("% ["), "{shown:?}");
        assert!(left.contains("1 file sent: 9.00 MiB of data, 9.00 MiB travelled, "), "{shown:?}");
        assert_same(&source, &to);
    }
}

#[test]
fn no_bar_is_drawn_where_it_is_not_wanted() {
    let dir = lab::scratch();
    for mut command in each_way(dir.path(), &["-q"]) {
        let shown = OnTerminal::start(dir.path(), &command).finish();
        assert!(
            !shown.contains("\x1b[") && !shown.contains("comparing") && !shown.contains("travelled"),
            "{shown:?}"
        );
        command.arg("-I");
        run(&mut command).ok();
    }
    for outcome in outputs(&["-P"]).iter().chain(&outputs(&["-P", "-v"])).flatten() {
        let all = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(!all.contains(['\x1b', '\r']), "{outcome}");
    }
}

/// The time that a line says is left, in seconds.
fn time_left(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" left")?;
    let (_, time) = before.rsplit_once(' ')?;
    time.split(':').try_fold(0, |sum, part| Some(60 * sum + part.parse::<u64>().ok()?))
}

/// How much a line says is done, in percent.
fn part_done(line: &str) -> Option<u64> {
    let (before, _) = line.split_once('%')?;
    before.rsplit(' ').next()?.parse().ok()
}

#[test]
fn the_bar_fits_every_width_and_tells_a_time_that_can_be() {
    let dir = lab::scratch();
    let source = dir.path().join("source");
    Layout::dense("source", 600_000, &mut Rng(5)).write(&source);
    let peer = Peer::pipe(dir.path());
    // Of the first 1.4 s of each every quarter of a second is drawn.
    let widths = [120, 80, 40, 20];
    let runs = widths.map(|width| {
        let to = dir.path().join(width.to_string());
        let mut command = peer.holesync();
        let size = format!("cols {width} rows 24");
        OnTerminal::of_width(dir.path(), &size, command.arg("--bwlimit=400").arg(&source).arg(at(to)))
    });
    for (width, run) in widths.into_iter().zip(runs) {
        let shown = run.finish();
        // Behind each line come spaces, up to the width.
        let lines = shown.split("\x1b[2K").map(|line| line.trim_matches(['\r', '\n', ' ']));
        let bars: Vec<_> = lines.filter(|line| line.starts_with("sending ")).collect();
        assert!(bars.len() > 1, "{shown:?}");
        for line in &bars {
            assert!(line.chars().count() < width && !line.contains(['\n', '\r']), "{line:?}");
            let wanted = ["% [", " of 585.94 KiB", " KiB/s", " left"];
            let is_whole = width < 80 || wanted.iter().all(|part| line.contains(part));
            assert!(is_whole || time_left(line).is_none(), "{line:?} of {width}");
            // At 400 KiB a second there are no more than a few left, on a machine that is slow; what began
            // late tells another time at first.
            let may_be_long = part_done(line).is_none_or(|part| part < 5);
            let fits = |left| left > 0 && (left < 60 || may_be_long);
            assert!(time_left(line).is_none_or(fits), "{line:?}");
        }
        let told = bars.iter().filter(|line| time_left(line).is_some()).count();
        assert_eq!(told > 0, width > 20, "{shown:?}");
    }
}

#[test]
fn a_terminal_gets_one_line_at_the_end() {
    let dir = lab::scratch();
    let source = dir.path().join("source");
    Layout::hole("source", 300 << 10).data(0..100 << 10, &mut Rng(6)).write(&source);
    let to = dir.path().join("to");
    let ends = |options: &[&str], parts: &[&str]| {
        let mut command = holesync();
        command.args(options).arg("-I").arg(&source).arg(&to);
        let shown = OnTerminal::start(dir.path(), &command).finish();
        assert_eq!(shown.matches(" s\r\n").count(), 1, "{options:?}: {shown:?}");
        parts.iter().for_each(|part| assert!(shown.contains(part), "{options:?}: {shown:?}"));
    };
    ends(&["-n"], &["would send 100.00 KiB of 1 file, "]);
    ends(&[], &["1 file sent: 100.00 KiB of data in 300.00 KiB, 100.00 KiB copied, "]);
    ends(&[], &["1 file, which is equal: 100.00 KiB of data in 300.00 KiB, 0 B copied, "]);
    ends(&["-n"], &["would send nothing: 1 file, which is equal, "]);
    ends(&["-v"], &["\r\nsent 0 of 1 files, 0 B out, 0 B in, "]);
    ends(&["-h", "--stats"], &["apparent size  307.20 kB", "time "]);
    // And none where there is no terminal.
    let outcome = run(holesync().arg("-I").arg(&source).arg(&to)).ok();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""));
}

/// `map` and `diff` of an image on a host that comes to a stand half way.
#[test]
fn who_waits_for_a_picture_sees_a_bar_that_is_cleaned_away() {
    let dir = lab::scratch();
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    let image = Layout::dense("image", 24 << 20, &mut Rng(7));
    [&here, &there].into_iter().for_each(|path| image.write(path));
    let (record, go) = (dir.path().join("record"), dir.path().join("go"));
    run(Command::new("mkfifo").arg(&go)).ok();
    for verb in ["map", "diff"] {
        let command = |peer: &Peer, flags: &[&str]| {
            let mut command = holesync();
            command.arg(verb).args(["-e", peer.rsh(), "--remote-path", PROGRAM]).args(flags);
            let images =
                if verb == "map" { vec!["--hashes".into()] } else { vec![here.clone().into_os_string()] };
            command.args(images).arg(at(&there));
            command
        };
        let peer = Peer::script(dir.path(), &format!("agent | tee {}", shell_word(&record)));
        let told = run(&mut command(&peer, &[])).ok().stdout;
        let starts = frames(&fs::read(&record).expect("read"));
        let half = starts[starts.len() / 2];
        let body = format!("agent | {{ stdbuf -o0 head -c {half}; : <{}; cat; }}", shell_word(&go));
        let peer = Peer::script(dir.path(), &body);
        for width in [120, 40] {
            let size = format!("cols {width} rows 24");
            let terminal = OnTerminal::of_width(dir.path(), &size, &command(&peer, &[]));
            terminal.wait_for("% [");
            File::options().write(true).open(&go).expect("open the fifo");
            let shown = terminal.finish();
            let lines = shown.split("\x1b[2K").flat_map(|part| part.split(['\r', '\n'])).map(str::trim);
            let bars: Vec<_> = lines.filter(|line| line.starts_with("reading ")).collect();
            assert!(bars.iter().any(|line| line.contains("% [")), "{verb}: {shown:?}");
            assert!(bars.iter().all(|line| line.chars().count() < width), "{verb}: {shown:?}");
            let left = shown.rsplit("\x1b[2K").next().unwrap_or("");
            assert!(!left.contains("reading "), "{verb}: {shown:?}");
            let last = told.lines().last().expect("a line");
            assert!(shown.contains(last), "{verb}: no {last:?} in {shown:?}");
        }
        if verb == "diff" {
            let quiet = OnTerminal::start(dir.path(), &command(&Peer::pipe(dir.path()), &["-q"])).finish();
            assert!(!quiet.contains("\x1b[") && !quiet.contains("reading"), "{quiet:?}");
        }
    }
    // And nowhere else than on a terminal.
    let outcome = run(holesync().args(["map", "--hashes"]).arg(&here)).ok();
    assert_eq!(outcome.stderr, "");
}
