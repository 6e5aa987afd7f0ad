//! What a run tells its user: events through [`Reporter`], counters in
//! [`Stats`]. The library never prints; the three implementations are a
//! terminal, JSON lines, and silence.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Failure, lock, printable};

/// What a run did, in bytes unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Regular files and devices that were looked at (count).
    pub files_total: u64,
    /// Files of which something was sent or changed (count).
    pub files_sent: u64,
    /// Files that could not be transferred (count).
    pub files_failed: u64,
    /// Source files that were gone before they could be read (count).
    pub files_vanished: u64,
    /// Sum of the lengths of the files.
    pub apparent_bytes: u64,
    /// Of these, in data extents; whole files that were skipped count as the
    /// system says they are allocated.
    pub data_bytes: u64,
    /// Data that the destination had already, in compared files.
    pub matched_bytes: u64,
    /// Data that travelled, before compression.
    pub sent_data_bytes: u64,
    /// Bytes hashed on the sending side.
    pub hashed_bytes: u64,
    /// Bytes hashed on the receiving side.
    pub basis_hashed_bytes: u64,
    /// Bytes written into destinations and what they are made from.
    pub written_bytes: u64,
    /// Bytes of the destinations that were made into holes.
    pub punched_bytes: u64,
    /// The exit code that the worst failure asks for; 0 if there was none.
    pub worst_code: u8,
}

impl Stats {
    /// Adds the counters that only the receiving side knows.
    pub fn add_receiver(&mut self, other: &Stats) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.basis_hashed_bytes, other.basis_hashed_bytes);
        add(&mut self.written_bytes, other.written_bytes);
        add(&mut self.punched_bytes, other.punched_bytes);
        add(&mut self.files_failed, other.files_failed);
        self.remember_code(other.worst_code);
    }

    /// Counts a failure and remembers the code that matters most.
    pub fn count_failure(&mut self, code: u8) {
        self.files_failed += 1;
        self.remember_code(code);
    }

    fn remember_code(&mut self, code: u8) {
        let rank = |code: u8| [0, 24, 23].iter().position(|&c| c == code).unwrap_or(usize::MAX);
        if rank(code) > rank(self.worst_code) {
            self.worst_code = code;
        }
    }
}

/// How the two ends were joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Both ends on this machine.
    Local,
    /// A holesync agent at the other end.
    Agent,
    /// Nothing but a shell at the other end.
    Shell,
}

/// The totals of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// What both ends did.
    pub stats: Stats,
    /// Bytes sent through the connection.
    pub wire_sent: u64,
    /// Bytes received through the connection.
    pub wire_received: u64,
    /// How the two ends were joined.
    pub route: Route,
    /// From start to end.
    pub elapsed: Duration,
    /// Whether the run changed nothing on purpose.
    pub dry_run: bool,
}

/// What a part of a run is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Reading and comparing.
    Mapping,
    /// Data is travelling.
    Sending,
    /// The destination is being completed and synced to storage.
    WritingBack,
}

/// What became of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was made equal; so much data travelled.
    Sent(u64),
    /// It was equal already.
    Unchanged,
}

/// Something a user may want to know.
#[derive(Debug)]
pub enum Event<'a> {
    /// There is so much more data to look at.
    Found(u64),
    /// So much of it is done, this way.
    Done(Phase, u64),
    /// A phase was entered.
    Phase(Phase),
    /// A file, directory or symlink is equal now; the path is relative to the destination.
    File(&'a Path, Outcome),
    /// A file failed; the run goes on.
    Failed(&'a Failure),
    /// Something odd that is no failure.
    Warning(&'a str),
    /// Something for the curious: shown with `-v`.
    Note(&'a str),
}

/// Where events go.
pub trait Reporter: Sync {
    /// Takes note of an event. Called from several threads.
    fn event(&self, event: Event);
    /// The run is over.
    fn summary(&self, summary: &Summary);
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn event(&self, _: Event) {}
    fn summary(&self, _: &Summary) {}
}

/// What the terminal shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verbosity {
    /// Names of files that were sent; with 2, of unchanged ones too.
    pub names: u8,
    /// Not even warnings.
    pub quiet: bool,
    /// A progress bar even where there is no terminal.
    pub progress: bool,
    /// The table of counters at the end.
    pub stats: bool,
}

/// For people: names and totals on stdout, troubles and the bar on stderr.
#[derive(Debug)]
pub struct Terminal {
    show: Verbosity,
    bar: ProgressBar,
    phase: Mutex<ShownPhase>,
    plain: Option<Ticker>,
}

/// Mapping and sending go on together: the bar says "sending" while data
/// travels now and then, and does not flicker.
#[derive(Debug)]
struct ShownPhase {
    phase: Phase,
    last_sent: Option<Instant>,
}

impl ShownPhase {
    /// Whether the phase to show becomes another one.
    fn turns_to(&mut self, phase: Phase) -> bool {
        const LINGER: Duration = Duration::from_secs(1);
        if phase == Phase::Sending {
            self.last_sent = Some(Instant::now());
        } else if phase == Phase::Mapping && self.last_sent.is_some_and(|sent| sent.elapsed() < LINGER) {
            return false;
        }
        std::mem::replace(&mut self.phase, phase) != phase
    }
}

impl Terminal {
    /// The bar appears when stderr is a terminal; elsewhere `progress` gives plain lines.
    pub fn new(show: Verbosity) -> Terminal {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal && !show.quiet { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template =
            "{msg:>12} [{bar:30}] {bytes}/{total_bytes} of data, {binary_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(phase_name(Phase::Mapping));
        bar.enable_steady_tick(Duration::from_millis(250));
        let plain = (show.progress && !terminal).then(Ticker::default);
        let phase = Mutex::new(ShownPhase { phase: Phase::Mapping, last_sent: None });
        Terminal { show, bar, phase, plain }
    }

    fn progress(&self, phase: Option<Phase>, found: u64, done: u64) {
        let mut shown = lock(&self.phase);
        if let Some(phase) = phase
            && shown.turns_to(phase)
        {
            self.bar.set_message(phase_name(phase));
        }
        let phase = phase.map(|_| shown.phase);
        drop(shown);
        self.bar.inc_length(found);
        self.bar.inc(done);
        if let Some(progress) = self.plain.as_ref().and_then(|ticker| ticker.add(found, done)) {
            let phase = phase.map_or("", phase_name);
            let (done, found) = (HumanBytes(progress.done), HumanBytes(progress.found));
            let _ = writeln!(std::io::stderr(), "{phase:>12} {done}/{found} of data");
        }
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| {
            // A closed stdout is no reason to leave a transfer half done.
            let _ = writeln!(std::io::stdout(), "{line}");
        });
    }

    fn warn(&self, line: &str) {
        self.bar.suspend(|| {
            // Nor is a closed stderr, on which eprintln would panic.
            let _ = writeln!(std::io::stderr(), "holesync: {line}");
        });
    }
}

impl Reporter for Terminal {
    fn event(&self, event: Event) {
        match event {
            Event::Found(bytes) => self.progress(None, bytes, 0),
            Event::Done(phase, bytes) => self.progress(Some(phase), 0, bytes),
            Event::Phase(phase) => self.progress(Some(phase), 0, 0),
            Event::File(path, Outcome::Sent(_)) if self.show.names > 0 => self.say(&printable(path)),
            Event::File(path, Outcome::Unchanged) if self.show.names > 1 => {
                self.say(&format!("{} is unchanged", printable(path)));
            }
            Event::File(..) => {}
            Event::Failed(failure) => self.warn(&crate::error::escape(failure.message.as_bytes())),
            Event::Warning(text) if !self.show.quiet => self.warn(&crate::error::escape(text.as_bytes())),
            Event::Note(text) if self.show.names > 0 => self.warn(&crate::error::escape(text.as_bytes())),
            Event::Warning(_) | Event::Note(_) => {}
        }
    }

    fn summary(&self, summary: &Summary) {
        self.bar.finish_and_clear();
        if self.show.stats {
            self.say(&stats_table(summary));
        } else if self.show.names > 0 {
            let dry = if summary.dry_run { " (dry run)" } else { "" };
            let (sent, received) = (HumanBytes(summary.wire_sent), HumanBytes(summary.wire_received));
            let stats = &summary.stats;
            self.say(&format!(
                "{} of {} files sent, {sent} out, {received} in, {:.2} s{dry}",
                stats.files_sent,
                stats.files_total,
                summary.elapsed.as_secs_f64()
            ));
        }
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Mapping => "mapping",
        Phase::Sending => "sending",
        Phase::WritingBack => "writing back",
    }
}

/// Progress for where no bar can be drawn: counts, and says when to tell.
#[derive(Debug)]
struct Ticker(Mutex<Progress>);

#[derive(Debug, Clone, Copy)]
struct Progress {
    found: u64,
    done: u64,
    told: Instant,
}

impl Default for Ticker {
    fn default() -> Ticker {
        Ticker(Mutex::new(Progress { found: 0, done: 0, told: Instant::now() }))
    }
}

impl Ticker {
    const PAUSE: Duration = Duration::from_millis(500);

    /// Adds to the counts; hands them out when it is time to tell them.
    fn add(&self, found: u64, done: u64) -> Option<Progress> {
        let mut progress = lock(&self.0);
        progress.found = progress.found.saturating_add(found);
        progress.done = progress.done.saturating_add(done);
        if progress.told.elapsed() < Ticker::PAUSE {
            return None;
        }
        progress.told = Instant::now();
        Some(*progress)
    }
}

/// The table that `--stats` prints.
pub fn stats_table(summary: &Summary) -> String {
    let stats = &summary.stats;
    let seconds = summary.elapsed.as_secs_f64().max(1e-6);
    let wire = summary.wire_sent + summary.wire_received;
    let rows = [
        ("files", format!("{} ({} sent)", stats.files_total, stats.files_sent)),
        ("apparent size", size(stats.apparent_bytes)),
        ("data", size(stats.data_bytes)),
        ("holes", size(stats.apparent_bytes.saturating_sub(stats.data_bytes))),
        ("matched", size(stats.matched_bytes)),
        ("sent", format!("{} of data, {} on the wire", size(stats.sent_data_bytes), size(summary.wire_sent))),
        ("received", size(summary.wire_received)),
        (
            "hashed",
            format!("{} here and there", size(stats.hashed_bytes.saturating_add(stats.basis_hashed_bytes))),
        ),
        ("written", size(stats.written_bytes)),
        ("punched", size(stats.punched_bytes)),
        ("time", format!("{seconds:.2} s")),
        ("rate", format!("{}/s of data", HumanBytes((stats.data_bytes as f64 / seconds) as u64))),
        (
            "speed-up",
            format!("{:.1} (apparent size / wire)", stats.apparent_bytes as f64 / wire.max(1) as f64),
        ),
    ];
    rows.map(|(name, value)| format!("{name:<14} {value}")).join("\n")
}

fn size(bytes: u64) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { format!("{bytes} B ({})", HumanBytes(bytes)) }
}

/// A size for a message, in units people read.
pub fn human(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For programs: one JSON object a line on stdout, `summary` last. Progress is
/// told twice a second at most.
#[derive(Debug, Default)]
pub struct JsonLines {
    ticker: Ticker,
}

impl JsonLines {
    fn put(&self, value: serde_json::Value) {
        let _ = writeln!(std::io::stdout().lock(), "{value}");
    }

    fn progress(&self, phase: Phase, found: u64, done: u64) {
        if let Some(progress) = self.ticker.add(found, done) {
            self.put(json!({"event": "progress", "phase": phase_name(phase),
                "done_bytes": progress.done, "data_bytes": progress.found}));
        }
    }
}

impl Reporter for JsonLines {
    fn event(&self, event: Event) {
        match event {
            Event::Found(bytes) => self.progress(Phase::Mapping, bytes, 0),
            Event::Done(phase, bytes) => self.progress(phase, 0, bytes),
            Event::Phase(phase) => self.progress(phase, 0, 0),
            Event::File(path, outcome) => {
                let (action, sent) = match outcome {
                    Outcome::Sent(bytes) => ("sent", bytes),
                    Outcome::Unchanged => ("unchanged", 0),
                };
                self.put(json!({"event": "file", "path": path.to_string_lossy(), "action": action,
                    "sent_data_bytes": sent}));
            }
            Event::Failed(f) => self.put(json!({"event": "error", "code": f.code, "message": f.message})),
            Event::Warning(text) => self.put(json!({"event": "warning", "message": text})),
            Event::Note(text) => self.put(json!({"event": "note", "message": text})),
        }
    }

    fn summary(&self, summary: &Summary) {
        let stats = &summary.stats;
        self.put(json!({
            "event": "summary",
            "files_total": stats.files_total,
            "files_sent": stats.files_sent,
            "files_failed": stats.files_failed,
            "apparent_bytes": stats.apparent_bytes,
            "data_bytes": stats.data_bytes,
            "hole_bytes": stats.apparent_bytes.saturating_sub(stats.data_bytes),
            "matched_bytes": stats.matched_bytes,
            "sent_data_bytes": stats.sent_data_bytes,
            "wire_bytes_sent": summary.wire_sent,
            "wire_bytes_received": summary.wire_received,
            "hashed_bytes": stats.hashed_bytes.saturating_add(stats.basis_hashed_bytes),
            "written_bytes": stats.written_bytes,
            "punched_bytes": stats.punched_bytes,
            "elapsed_seconds": summary.elapsed.as_secs_f64(),
            "route": match summary.route {
                Route::Local => "local",
                Route::Agent => "agent",
                Route::Shell => "shell",
            },
            "dry_run": summary.dry_run,
        }));
    }
}
