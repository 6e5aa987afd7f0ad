//! The reporter for people: names and totals on stdout, errors, warnings and the progress
//! bar on stderr.

use std::io::{IsTerminal, Write};

use indicatif::{BinaryBytes, DecimalBytes};

use crate::error::{escape, told};
use crate::report::bar::{Bar, Bars};
use crate::report::progress::{Ticker, phase_name};
use crate::report::{Ends, Event, LineFormat, Phase, Reporter, Route, Stats, Summary, listing};

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

    /// A number of bytes in a few digits.
    pub(super) fn short(self, bytes: u64) -> String {
        match self {
            Units::Thousands => DecimalBytes(bytes).to_string(),
            Units::Both | Units::Powers => BinaryBytes(bytes).to_string(),
        }
    }

    /// How much of a number of bytes, in the unit of the whole.
    pub(super) fn part(self, bytes: u64, whole: u64) -> String {
        let text = self.short(whole);
        let Some((number, unit)) = text.split_once(' ').filter(|_| whole > 0) else { return text };
        let scale = number.parse::<f64>().unwrap_or(0.0) / whole as f64;
        let decimals = if number.contains('.') { 2 } else { 0 };
        format!("{:.decimals$} of {number} {unit}", bytes as f64 * scale)
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
    bar: Option<Bar>,
    ticker: Option<Ticker>,
    lines: Option<LineFormat>,
    /// The host, where it is one of several: stands before every line.
    name: Option<String>,
}

impl Terminal {
    /// The bar appears when stderr is a terminal; elsewhere `progress` gives plain lines.
    pub fn new(show: Verbosity, ends: &Ends) -> Terminal {
        let bar = Terminal::has_bar(&show).then(|| Bar::new(show.units, ends));
        Terminal { show, bar, ticker: Terminal::ticker(&show), lines: None, name: None }
    }

    /// For the part of a run that goes to one of several hosts, which is called so. What it did is
    /// told by who tells of all.
    pub(super) fn part(show: Verbosity, ends: &Ends, name: &str, bars: Option<&Bars>) -> Terminal {
        let bar = bars.map(|bars| bars.add(ends, name));
        let name = Some(name.into());
        Terminal { show, bar, ticker: Terminal::ticker(&show), lines: None, name }
    }

    /// Whether bars appear.
    pub(super) fn has_bar(show: &Verbosity) -> bool {
        std::io::stderr().is_terminal() && !show.quiet && show.progress != Progress::Hidden
    }

    fn ticker(show: &Verbosity) -> Option<Ticker> {
        (show.progress == Progress::Shown && !std::io::stderr().is_terminal()).then(Ticker::default)
    }

    /// What stands before a line.
    fn before(&self) -> String {
        self.name.as_ref().map_or(String::new(), |name| format!("{}: ", escape(name.as_bytes())))
    }

    /// It shows lines of this format about entries, if there is one.
    #[must_use]
    pub fn with_lines(self, lines: Option<LineFormat>) -> Terminal {
        Terminal { lines: lines.filter(|_| !self.show.quiet), ..self }
    }

    /// Puts a line of what was asked for on stdout.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_line(&self, line: &str) -> std::io::Result<()> {
        let mut written = Ok(());
        let mut write = || written = writeln!(std::io::stdout(), "{line}");
        // The bar is drawn again each time, and is in the way on the same terminal alone.
        if std::io::stdout().is_terminal() {
            self.suspend(write)
        } else {
            write()
        }
        written
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.iter().for_each(Bar::finish);
    }

    /// Shows the lines about an entry.
    fn formatted(&self, lines: Option<Vec<String>>) {
        lines.iter().flatten().for_each(|line| self.print(line));
    }

    fn progress(&self, phase: Option<Phase>, found: u64, done: u64) {
        if let Some(progress) = self.ticker.as_ref().and_then(|ticker| ticker.add(found, done)) {
            let phase = phase.map_or("", phase_name);
            let [done, found] = [progress.done, progress.found].map(|bytes| self.show.units.short(bytes));
            let _ = writeln!(std::io::stderr(), "{}{phase:>12} {done}/{found} of data", self.before());
        }
    }

    fn restart(&self) {
        self.bar.iter().for_each(Bar::restart);
        self.ticker.iter().for_each(Ticker::restart);
    }

    /// Does something while no bar is there.
    fn suspend(&self, work: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    fn print(&self, line: &str) {
        self.suspend(|| {
            // A closed stdout is no reason to leave a transfer half done.
            let _ = writeln!(std::io::stdout(), "{}{line}", self.before());
        });
    }

    /// Shows on stderr what is said, and of which host.
    fn warn(&self, host: Option<&str>, message: &str) {
        let line = told(self.name.as_deref().or(host), message);
        self.suspend(|| {
            // A closed stderr is no reason either: eprintln would panic on it.
            let _ = writeln!(std::io::stderr(), "holesync: {line}");
        });
    }
}

impl Reporter for Terminal {
    fn event(&self, event: Event) {
        let lines = self.lines.as_ref();
        self.bar.iter().for_each(|bar| bar.count(&event));
        match event {
            Event::Connected(traffic) => self.bar.iter().for_each(|bar| bar.connected(traffic)),
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
            Event::Failed(failure) | Event::Unset(failure) => {
                self.warn(failure.host.as_deref(), &failure.message)
            }
            Event::Warning(warning) if !self.show.quiet => {
                self.warn(warning.host.as_deref(), &warning.message)
            }
            Event::Retry(text) => {
                self.restart();
                self.warn(None, text);
            }
            Event::Hint(text) if self.show.totals || self.bar.is_some() => self.warn(None, text),
            Event::Note(text) if self.show.notes => self.warn(None, text),
            Event::Choice(text) if self.show.choices => self.print(&escape(text.as_bytes())),
            Event::Warning(_) | Event::Hint(_) | Event::Note(_) | Event::Choice(_) => {}
        }
    }

    fn summary(&self, summary: &Summary) {
        self.finish();
        if self.show.stats {
            stats_table(summary, self.show.units).lines().for_each(|line| self.print(line));
        } else if self.name.is_some() {
            // Who tells of all hosts tells of this one.
        } else if self.show.totals {
            self.print("");
            self.print(&totals(summary, self.show.units));
        } else if self.bar.is_some() && summary.stats.files_total > 0 {
            // In the place of the bar: a closed stderr is no reason to fail.
            let _ = writeln!(std::io::stderr(), "{}", outcome(summary, self.show.units));
        }
    }
}

/// The line at the end of a run that names what it did.
fn totals(summary: &Summary, units: Units) -> String {
    let [sent, received] = [summary.wire_sent, summary.wire_received].map(|bytes| units.short(bytes));
    let Stats { files_sent, files_total, .. } = summary.stats;
    let seconds = summary.elapsed.as_secs_f64();
    let done = match summary.dry_run {
        true => foretold(summary, units),
        false => format!("sent {files_sent} of {files_total} files"),
    };
    format!("{done}, {sent} out, {received} in, {seconds:.2} s")
}

/// What a run would do that was dry.
fn foretold(summary: &Summary, units: Units) -> String {
    let Stats { files_sent, files_total, removed, sent_data_bytes, matched_bytes, .. } = summary.stats;
    let [sent, matched] = [sent_data_bytes, matched_bytes].map(|bytes| units.short(bytes));
    let files = if files_sent == 1 { "file" } else { "files" };
    let sends = match files_sent {
        0 if files_total == 1 => "would send nothing: 1 file, which is equal".into(),
        0 => format!("would send nothing: {files_total} files, all equal"),
        _ if matched_bytes == 0 => format!("would send {sent} of {files_sent} {files}"),
        _ => format!("would send {sent} of {files_sent} {files} ({matched} are there already)"),
    };
    let removes = if removed > 0 { format!(", and delete {removed}") } else { String::new() };
    sends + &removes
}

/// The line that stays in the place of the bar: what, how much of it is data, how much
/// travelled, how long it took.
pub(super) fn outcome(summary: &Summary, units: Units) -> String {
    let Stats { files_sent, files_total, removed, apparent_bytes, data_bytes, .. } = summary.stats;
    if summary.dry_run {
        return format!("{}, {:.1} s", foretold(summary, units), summary.elapsed.as_secs_f64());
    }
    let files = if files_total == 1 { "file" } else { "files" };
    let (moved, how) = match summary.route {
        Route::Local => (summary.stats.sent_data_bytes, "copied"),
        Route::Agent | Route::Shell | Route::Store => {
            (summary.wire_sent.saturating_add(summary.wire_received), "travelled")
        }
    };
    let done = match files_sent {
        0 if files_total == 1 => "1 file, which is equal".into(),
        0 => format!("{files_total} files, all equal"),
        _ if files_sent == files_total => format!("{files_total} {files} sent"),
        _ => format!("{files_sent} of {files_total} files sent"),
    };
    let removed = if removed > 0 { format!(", {removed} removed") } else { String::new() };
    let size = match apparent_bytes == data_bytes {
        true => String::new(),
        false => format!(" in {}", units.short(apparent_bytes)),
    };
    let [moved, data] = [moved, data_bytes].map(|bytes| units.short(bytes));
    let seconds = summary.elapsed.as_secs_f64();
    format!("{done}{removed}: {data} of data{size}, {moved} {how}, {seconds:.1} s")
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
    let believed = (stats.believed_bytes > 0)
        .then(|| ("believed", format!("{} here and there, and not read", size(stats.believed_bytes))));
    let removed = (stats.removed > 0).then(|| ("deleted", stats.removed.to_string()));
    let rows = rows
        .into_iter()
        .chain(believed)
        .chain(removed)
        .chain(tries)
        .map(|(name, value)| format!("{name:<14} {value}"));
    rows.collect::<Vec<_>>().join("\n")
}
