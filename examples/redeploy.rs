//! Deploys a disk image of 100 GiB that holds 1 GiB of data, changes 1 % of the
//! data, deploys it again, and once more with nothing changed; compares both
//! files byte for byte each time and prints what each step cost.
//!
//! `cargo run --release --example redeploy [DIRECTORY]`
//!
//! The other end is a process of its own: this program starts itself again as
//! the agent and talks to it over pipes, as it would over ssh. It works in a new
//! directory inside DIRECTORY (the system's directory for temporary files unless
//! given), which needs 2.5 GiB of room and goes away at the end.

use std::error::Error;
use std::fs::File;
use std::io::{Write, stdin, stdout};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use holesync::confinement::Confinement;
use holesync::location::{Host, Location};
use holesync::options::{Compress, Options};
use holesync::report::{Event, Reporter, Summary, human};
use holesync::sync::{self, Agent, RemoteOptions};
use holesync::{apply::ranges, remote, sys};
use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::{Whence, lseek};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE: u64 = 4 * KIB;
const BLOCK: u64 = 64 * KIB;

/// What the image seems to hold.
const APPARENT: u64 = 100 * GIB;
/// Its extents: so many of each size come to 1 GiB together.
const EXTENTS_OF_EACH: u64 = 256;
const SIZES: [u64; 8] = [4 * KIB, 12 * KIB, 60 * KIB, 128 * KIB, 308 * KIB, 512 * KIB, MIB, 2 * MIB];
/// Blocks to change: 10 MiB, 1 % of the data.
const CHANGES: usize = 160;
/// Two images, and the changes beside one of them.
const ROOM: u64 = 5 * GIB / 2;
const OTHER_PLACE: &str = "name another directory as the argument";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let argument = std::env::args_os().nth(1);
    let umask = sys::umask();
    let result = if argument.as_ref().is_some_and(|argument| argument == "agent") {
        be_the_agent(umask)
    } else {
        place_for(argument.map(PathBuf::from)).and_then(|dir| demonstrate(&dir, umask))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("redeploy: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The hidden half: what `holesync agent` does.
fn be_the_agent(umask: u32) -> Result<()> {
    let output = File::from(stdout().as_fd().try_clone_to_owned()?);
    Ok(sync::serve(stdin(), output, umask, &Confinement::default())?)
}

fn demonstrate(place: &Path, umask: u32) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("holesync-redeploy-").tempdir_in(place)?;
    remove_on_signal(dir.path().to_path_buf())?;
    check_place(dir.path())?;
    let (source, copy) = (dir.path().join("source.img"), dir.path().join("copy.img"));
    let mut random = Random::new();

    println!("Making an image of {} in {} ...", human(APPARENT), dir.path().display());
    let extents = lay_out(&mut random);
    let file = File::create_new(&source)?;
    fill(&file, &extents, &mut random)?;

    println!("{:<28}{:>12}{:>12}{:>13}{:>9}  equal", "step", "apparent", "data", "on the wire", "seconds");
    let packed = Options { compress: Compress::Zstd, ..Options::default() };
    deploy("deploy where nothing is", &source, &copy, &packed, umask)?;
    change(&file, &extents, &mut random)?;
    if equal(&source, &copy)? {
        return Err("the comparison does not see that the image was changed".into());
    }
    deploy("redeploy, 1 % changed", &source, &copy, &packed, umask)?;
    let contents = Options { checksum: true, ..packed };
    deploy("redeploy, contents compared", &source, &copy, &contents, umask)
}

/// Makes `copy` equal to `source` through an agent, checks that it is, and
/// prints a line of the table.
fn deploy(step: &str, source: &Path, copy: &Path, options: &Options, umask: u32) -> Result<()> {
    let this_program = std::env::current_exe()?;
    let this_program = this_program.to_str().ok_or("the path of this program is not UTF-8")?;
    let host = Host { user: None, name: "localhost".into(), port: None };
    // Called with a host and a command, as ssh would be; forgets the host.
    let remote = RemoteOptions {
        agent: Agent::Require,
        rsh: Some(r#"sh -c 'shift; exec sh -c "$*"' sh"#.into()),
        remote_path: Some(this_program.into()),
        umask,
        ..RemoteOptions::default()
    };
    let (from, to) = (Location::Local(source.into()), Location::Remote(host, copy.into()));
    let totals = Totals::default();
    sync::run(&[from], None, &to, None, options, &remote, &totals)?;
    let totals = totals.0.into_inner()?.ok_or("the run ended without totals")?;
    let equal = equal(source, copy)?;
    println!(
        "{step:<28}{:>12}{:>12}{:>13}{:>9.2}  {}",
        human(totals.stats.apparent_bytes),
        human(totals.stats.data_bytes),
        human(totals.wire_sent + totals.wire_received),
        totals.elapsed.as_secs_f64(),
        if equal { "yes" } else { "NO" },
    );
    if equal { Ok(()) } else { Err(format!("after {step:?} the two images differ").into()) }
}

/// Keeps the totals of a run; only failures are shown.
#[derive(Default)]
struct Totals(Mutex<Option<Summary>>);

impl Reporter for Totals {
    fn event(&self, event: Event) {
        if let Event::Failed(failure) = event {
            eprintln!("{}", failure.message);
        }
    }

    fn summary(&self, summary: &Summary) {
        if let Ok(mut kept) = self.0.lock() {
            *kept = Some(summary.clone());
        }
    }
}

/// Extents of all sizes, each somewhere in its own equal part of the image.
fn lay_out(random: &mut Random) -> Vec<Range<u64>> {
    let count = EXTENTS_OF_EACH * SIZES.len() as u64;
    let part = APPARENT / count;
    let extent = |nth: u64| {
        let size = SIZES[nth as usize % SIZES.len()];
        let start = nth * part + random.below((part - size) / PAGE) * PAGE;
        start..start + size
    };
    (0..count).map(extent).collect()
}

/// Half of the extents of each size get random bytes, the others a log file.
fn fill(file: &File, extents: &[Range<u64>], random: &mut Random) -> Result<()> {
    file.set_len(APPARENT)?;
    let mut bytes = Vec::new();
    for (nth, extent) in extents.iter().enumerate() {
        let len = (extent.end - extent.start) as usize;
        bytes.clear();
        if (nth / SIZES.len()).is_multiple_of(2) {
            bytes.resize(len, 0);
            random.fill(&mut bytes);
        }
        while bytes.len() < len {
            let (request, micros) = (random.below(1 << 40), random.below(9_999));
            writeln!(bytes, "web[{nth}]: GET /item/{request:010x}/view answered 200 after {micros} us")?;
        }
        file.write_all_at(&bytes[..len], extent.start)?;
    }
    Ok(file.sync_all()?)
}

/// Of eight changed blocks six get new bytes, one becomes a hole, and one
/// appears where a hole was.
fn change(file: &File, extents: &[Range<u64>], random: &mut Random) -> Result<()> {
    let large: Vec<_> = extents.iter().filter(|extent| extent.end - extent.start >= 2 * BLOCK).collect();
    let mut bytes = vec![0; BLOCK as usize];
    for nth in 0..CHANGES {
        let extent = large[random.below(large.len() as u64) as usize];
        let first = extent.start.next_multiple_of(BLOCK);
        let within = first + random.below((extent.end - first) / BLOCK) * BLOCK;
        let pair = &extents[random.below(extents.len() as u64 - 1) as usize..][..2];
        let between = (pair[0].end + pair[1].start) / 2 / BLOCK * BLOCK;
        random.fill(&mut bytes);
        match nth % 8 {
            0 => ranges::make_zero(file, within..within + BLOCK, false)?,
            1 => file.write_all_at(&bytes, between)?,
            _ => file.write_all_at(&bytes, within)?,
        }
    }
    Ok(file.sync_all()?)
}

/// Whether two files hold the same bytes. Reads what is data in either of them:
/// what is a hole in both is zero in both.
fn equal(a: &Path, b: &Path) -> Result<bool> {
    let (a, b) = (File::open(a)?, File::open(b)?);
    let len = a.metadata()?.len();
    if b.metadata()?.len() != len {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    let mut at = 0;
    while at < len {
        at = seek(&a, at, Whence::SeekData)?.min(seek(&b, at, Whence::SeekData)?);
        let end = seek(&a, at, Whence::SeekHole)?.max(seek(&b, at, Whence::SeekHole)?);
        while at < end {
            let n = (end - at).min(MIB) as usize;
            a.read_exact_at(&mut left[..n], at)?;
            b.read_exact_at(&mut right[..n], at)?;
            if left[..n] != right[..n] {
                return Ok(false);
            }
            at += n as u64;
        }
    }
    Ok(true)
}

/// The next data or hole of a file; its end when there is none.
fn seek(file: &File, from: u64, what: Whence) -> Result<u64> {
    match lseek(file, from as i64, what) {
        Ok(at) => Ok(at as u64),
        Err(Errno::ENXIO) => Ok(file.metadata()?.len()),
        Err(error) => Err(error.into()),
    }
}

/// The directory to work in: what was asked for, or one that is not in memory.
fn place_for(wanted: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(place) = wanted {
        return Ok(place);
    }
    let place = std::env::temp_dir();
    let in_memory = statfs(&place)?.filesystem_type() == TMPFS_MAGIC;
    Ok(if in_memory { PathBuf::from("/var/tmp") } else { place })
}

/// Refuses a place that is too small for the data, or would fill the holes.
fn check_place(dir: &Path) -> Result<()> {
    let free = sys::free_space(File::open(dir)?)?;
    if free < ROOM {
        let (free, room) = (human(free), human(ROOM));
        return Err(
            format!("{room} are needed and {free} are free in {}; {OTHER_PLACE}", dir.display()).into()
        );
    }
    let probe = tempfile::tempfile_in(dir)?;
    let keeps_holes = probe.set_len(APPARENT).is_ok() && {
        probe.write_all_at(&[1], APPARENT - 1)?;
        probe.sync_all()?;
        seek(&probe, 0, Whence::SeekData)? > APPARENT / 2
    };
    if !keeps_holes {
        let apparent = human(APPARENT);
        return Err(format!("{} cannot hold {apparent} made of holes; {OTHER_PLACE}", dir.display()).into());
    }
    Ok(())
}

/// Ctrl-C leaves nothing behind either.
fn remove_on_signal(dir: PathBuf) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            remote::interrupt();
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                eprintln!("redeploy: cannot remove {}: {error}", dir.display());
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Random bytes, the same in every run: the endless output of BLAKE3.
struct Random(blake3::OutputReader);

impl Random {
    fn new() -> Random {
        Random(blake3::Hasher::new().update(b"redeploy").finalize_xof())
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }
}
