//! The reporter for people: names and totals on stdout, errors, warnings and the progress
//! bar on stderr.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, DecimalBytes, ProgressBar, ProgressStyle};

use crate::error::{escape, lock};
use crate::report::progress::{Ticker, phase_name};
use crate::report::{Event, LineFormat, Phase, Reporter, Summary, listing};

/// What is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verbosity {
    /// Warnings are left out.
    pub quiet: bool,
    /// Names of what is removed.
    pub removals: bool,
    /// What goes on besides.
    pub notes: bool,
    /// What was chosen of several that would do.
    pub choices: bool,
    /// A line at the end.
    pub totals: bool,
    /// How far the run is.
    pub progress: Progress,
    /// The table of counters at the end.
    pub stats: bool,
    /// The units of its numbers, and of the last line.
    pub units: Units,
}

/// Whether it is shown how far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Progress {
    /// By a bar, where stderr is a terminal.
    #[default]
    Bar,
    /// Elsewhere, too, by lines.
    Shown,
    /// Nowhere.
    Hidden,
}

/// How numbers of bytes are shown; what rsync's `-h` means, as far as there are numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Units {
    /// In units of 1024, and in bytes in the table of counters.
    #[default]
    Both,
    /// In units of 1000.
    Thousands,
    /// In units of 1024.
    Powers,
}

impl Units {
    /// What `--human-readable` means when it is given so many times.
    pub fn asked_for(times: u8) -> Units {
        match times {
            0 => Units::Both,
            1 => Units::Thousands,
            _ => Units::Powers,
        }
    }

    fn short(self, bytes: u64) -> String {
        match self {
            Units::Thousands => DecimalBytes(bytes).to_string(),
            Units::Both | Units::Powers => BinaryBytes(bytes).to_string(),
        }
    }

    fn full(self, bytes: u64) -> String {
        match self {
            Units::Both if bytes >= 1024 => format!("{bytes} B ({})", self.short(bytes)),
            _ => self.short(bytes),
        }
    }
}

/// Shows a run on a terminal, or in a log.
#[derive(Debug)]
pub struct Terminal {
    show: Verbosity,
    bar: ProgressBar,
    phase: Mutex<ShownPhase>,
    ticker: Option<Ticker>,
    lines: Option<LineFormat>,
}

/// The phase that the bar shows. Mapping and sending go on together: the bar shows
/// "sending" while data travels now and then, and does not flicker.
#[derive(Debug)]
struct ShownPhase {
    phase: Phase,
    last_sent: Option<Instant>,
}

impl ShownPhase {
    /// Enters a phase. Returns whether the phase to show becomes another one.
    fn enter(&mut self, phase: Phase) -> bool {
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
        let has_bar = terminal && !show.quiet && show.progress != Progress::Hidden;
        let bar = if has_bar { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template = match show.units {
            Units::Thousands => {
                "{msg:>12} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} of data, {decimal_bytes_per_sec}, {eta} left"
            }
            Units::Both | Units::Powers => {
                "{msg:>12} [{bar:30}] {bytes}/{total_bytes} of data, {binary_bytes_per_sec}, {eta} left"
            }
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(phase_name(Phase::Mapping));
        bar.enable_steady_tick(Duration::from_millis(250));
        let ticker = (show.progress == Progress::Shown && !terminal).then(Ticker::default);
        let phase = Mutex::new(ShownPhase { phase: Phase::Mapping, last_sent: None });
        Terminal { show, bar, phase, ticker, lines: None }
    }

    /// It shows lines of this format about entries, if there is one.
    #[must_use]
    pub fn with_lines(self, lines: Option<LineFormat>) -> Terminal {
        Terminal { lines: lines.filter(|_| !self.show.quiet), ..self }
    }

    /// Shows the lines about an entry.
    fn formatted(&self, lines: Option<Vec<String>>) {
        lines.iter().flatten().for_each(|line| self.print(line));
    }

    fn progress(&self, phase: Option<Phase>, found: u64, done: u64) {
        let mut shown = lock(&self.phase);
        if let Some(phase) = phase
            && shown.enter(phase)
        {
            self.bar.set_message(phase_name(phase));
        }
        let phase = phase.map(|_| shown.phase);
        drop(shown);
        self.bar.inc_length(found);
        self.bar.inc(done);
        if let Some(progress) = self.ticker.as_ref().and_then(|ticker| ticker.add(found, done)) {
            let phase = phase.map_or("", phase_name);
            let [done, found] = [progress.done, progress.found].map(|bytes| self.show.units.short(bytes));
            let _ = writeln!(std::io::stderr(), "{phase:>12} {done}/{found} of data");
        }
    }

    fn print(&self, line: &str) {
        self.bar.suspend(|| {
            // A closed stdout is no reason to leave a transfer half done.
            let _ = writeln!(std::io::stdout(), "{line}");
        });
    }

    fn warn(&self, line: &str) {
        self.bar.suspend(|| {
            // A closed stderr is no reason either: eprintln would panic on it.
            let _ = writeln!(std::io::stderr(), "holesync: {line}");
        });
    }
}

impl Reporter for Terminal {
    fn event(&self, event: Event) {
        let lines = self.lines.as_ref();
        match event {
            Event::Found(bytes) => self.progress(None, bytes, 0),
            Event::Done(phase, bytes) => self.progress(Some(phase), 0, bytes),
            Event::Phase(phase) => self.progress(Some(phase), 0, 0),
            Event::File(item, outcome, changes) => {
                self.formatted(lines.map(|lines| lines.file(item, outcome, changes)));
            }
            Event::Made(item, changes) => self.formatted(lines.map(|lines| lines.made(item, changes))),
            Event::Listed(item) => self.print(&listing::line(&item, self.show.units)),
            Event::Removed(path) if self.show.removals => match lines {
                Some(lines) => self.formatted(Some(lines.removed(path))),
                None => self.print(&format!("deleting {}", escape(path))),
            },
            Event::Removed(_) => {}
            Event::Failed(failure) | Event::Unset(failure) => self.warn(&escape(failure.message.as_bytes())),
            Event::Warning(text) if !self.show.quiet => self.warn(&escape(text.as_bytes())),
            Event::Retry(text) => {
                self.bar.set_length(0);
                self.bar.set_position(0);
                self.ticker.iter().for_each(Ticker::restart);
                self.warn(&escape(text.as_bytes()));
            }
            Event::Note(text) if self.show.notes => self.warn(&escape(text.as_bytes())),
            Event::Choice(text) if self.show.choices => self.print(&escape(text.as_bytes())),
            Event::Warning(_) | Event::Note(_) | Event::Choice(_) => {}
        }
    }

    fn summary(&self, summary: &Summary) {
        self.bar.finish_and_clear();
        if self.show.stats {
            self.print(&stats_table(summary, self.show.units));
        } else if self.show.totals {
            let dry = if summary.dry_run { " (dry run)" } else { "" };
            let [sent, received] =
                [summary.wire_sent, summary.wire_received].map(|bytes| self.show.units.short(bytes));
            let stats = &summary.stats;
            self.print("");
            self.print(&format!(
                "sent {} of {} files, {sent} out, {received} in, {:.2} s{dry}",
                stats.files_sent,
                stats.files_total,
                summary.elapsed.as_secs_f64()
            ));
        }
    }
}

/// The table that `--stats` prints.
pub fn stats_table(summary: &Summary, units: Units) -> String {
    let stats = &summary.stats;
    let size = |bytes| units.full(bytes);
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
        ("rate", format!("{}/s of data", units.short((stats.data_bytes as f64 / seconds) as u64))),
        (
            "speed-up",
            format!("{:.1} (apparent size / wire)", stats.apparent_bytes as f64 / wire.max(1) as f64),
        ),
    ];
    let tries = (summary.tries > 1).then(|| ("tries", summary.tries.to_string()));
    let removed = (stats.removed > 0).then(|| ("deleted", stats.removed.to_string()));
    let rows =
        rows.into_iter().chain(removed).chain(tries).map(|(name, value)| format!("{name:<14} {value}"));
    rows.collect::<Vec<_>>().join("\n")
}
