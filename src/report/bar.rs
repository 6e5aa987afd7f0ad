//! The progress bar: one line that fits the terminal, drawn four times a second.

use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use crate::error::{escape, lock};
use crate::report::meter::{Meter, Reading, Traffic};
use crate::report::terminal::Units;
use crate::report::{Ends, Event, Phase};

/// How often it is drawn.
const TICK: Duration = Duration::from_millis(250);
/// Columns of a terminal that does not tell how many it has.
const USUAL_WIDTH: usize = 80;
/// Columns between the brackets, at least and at most.
const LEAST_BAR: usize = 4;
const MOST_BAR: usize = 40;

/// A line at the bottom of a terminal.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    meter: Arc<Mutex<Meter>>,
    has_host: bool,
    /// Those that it stands among.
    beside: Option<Bars>,
}

impl Bar {
    /// Draws nothing before there is something to show: while a connection is made, ssh may ask
    /// for a password.
    pub fn new(units: Units, ends: &Ends) -> Bar {
        Bar::drawn(ProgressBar::new(0), units, ends, String::new(), None)
    }

    /// `before` stands at the beginning of the line.
    fn drawn(bar: ProgressBar, units: Units, ends: &Ends, before: String, beside: Option<Bars>) -> Bar {
        let meter = Arc::<Mutex<Meter>>::default();
        let (shown, has_host) = (Arc::clone(&meter), ends.host.is_some());
        let ends = ends.clone();
        draw(&bar, move || {
            let reading = lock(&shown).read(Instant::now());
            let width = width().saturating_sub(before.chars().count());
            format!("{before}{}", line(&reading, &ends, units, width))
        });
        let bar = Bar { bar, meter, has_host, beside };
        if !has_host {
            bar.bar.enable_steady_tick(TICK);
        }
        bar
    }

    /// Counts an event.
    pub fn count(&self, event: &Event) {
        lock(&self.meter).count(event, Instant::now());
    }

    /// A connection stands.
    pub fn connected(&self, traffic: &Traffic) {
        lock(&self.meter).connected(traffic.clone());
        self.bar.enable_steady_tick(TICK);
    }

    /// The run begins again, with another connection.
    pub fn restart(&self) {
        lock(&self.meter).restart();
        if self.has_host {
            self.bar.disable_steady_tick();
            self.bar.suspend(|| {});
        }
    }

    /// Does something with the terminal while the bar is not there.
    pub fn suspend(&self, work: impl FnOnce()) {
        self.bar.suspend(work);
    }

    /// Takes it away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bars) = &self.beside {
            bars.remove(self);
        }
    }
}

/// Has a bar show this line.
fn draw(bar: &ProgressBar, line: impl Fn() -> String + Clone + Send + Sync + 'static) {
    let line = move |_: &ProgressState, out: &mut dyn Write| {
        // Writing to a string does not fail.
        let _ = out.write_str(&line());
    };
    if let Ok(style) = ProgressStyle::with_template("{line}") {
        bar.set_style(style.with_key("line", line));
    }
}

/// The most columns for the name of a host before its bar.
const MOST_NAME: usize = 24;

/// The bars of a run to several hosts: one a host that is being sent to, and below them one for
/// all.
#[derive(Debug, Clone)]
pub struct Bars {
    shown: MultiProgress,
    all: ProgressBar,
    units: Units,
    /// Columns for names.
    names: usize,
    hosts: Arc<Mutex<Hosts>>,
}

/// How far the hosts are.
#[derive(Debug, Default)]
struct Hosts {
    total: usize,
    done: usize,
    failed: usize,
    under_way: Vec<Arc<Mutex<Meter>>>,
}

impl Bars {
    /// For so many hosts, whose names are no longer than `widest`.
    pub fn new(units: Units, total: usize, widest: usize) -> Bars {
        let shown = MultiProgress::new();
        let all = shown.add(ProgressBar::new(0));
        let hosts = Arc::new(Mutex::new(Hosts { total, ..Hosts::default() }));
        let drawn = Arc::clone(&hosts);
        draw(&all, move || lock(&drawn).line(width()));
        all.enable_steady_tick(TICK);
        Bars { shown, all, units, names: widest.min(MOST_NAME), hosts }
    }

    /// The bar of one of them, which goes when it is dropped.
    pub fn add(&self, ends: &Ends, name: &str) -> Bar {
        let (name, width) = (escape(name.as_bytes()), self.names);
        // Of a long one the end is what tells it from others.
        let name: String = name.chars().skip(name.chars().count().saturating_sub(width)).collect();
        let before = format!("{name:<width$}  ");
        let bar = self.shown.insert_before(&self.all, ProgressBar::new(0));
        let bar = Bar::drawn(bar, self.units, ends, before, Some(self.clone()));
        lock(&self.hosts).under_way.push(Arc::clone(&bar.meter));
        bar
    }

    fn remove(&self, bar: &Bar) {
        lock(&self.hosts).under_way.retain(|meter| !Arc::ptr_eq(meter, &bar.meter));
        bar.bar.finish_and_clear();
        self.shown.remove(&bar.bar);
    }

    /// A host is through.
    pub fn ended(&self, failed: bool) {
        let mut hosts = lock(&self.hosts);
        hosts.done += 1;
        hosts.failed += usize::from(failed);
    }

    /// Does something with the terminal while no bars are there.
    pub fn suspend(&self, work: impl FnOnce()) {
        self.shown.suspend(work);
    }

    /// Takes them away.
    pub fn finish(&self) {
        self.all.finish_and_clear();
    }
}

impl Hosts {
    /// The line of all hosts, in no more than `width` columns.
    fn line(&self, width: usize) -> String {
        let parts = self.under_way.iter().map(|meter| lock(meter).done_part()).sum::<f64>();
        let part = ((self.done as f64 + parts) / self.total.max(1) as f64).min(1.0);
        let failed = if self.failed > 0 { format!(", {} failed", self.failed) } else { String::new() };
        let told = format!("{} of {} hosts done{failed} {:3}%", self.done, self.total, (part * 100.0) as u64);
        let free = width.saturating_sub(told.chars().count() + " []".len()).min(MOST_BAR);
        let bar = match free >= LEAST_BAR {
            true => format!(" [{:<free$}]", "=".repeat((free as f64 * part) as usize)),
            false => String::new(),
        };
        (told + &bar).chars().take(width).collect()
    }
}

/// Columns of the terminal that is stderr. The last one stays free: what is written there
/// makes some terminals begin a new line.
fn width() -> usize {
    let size = terminal_size::terminal_size_of(std::io::stderr());
    let width = size.map_or(0, |(width, _)| usize::from(width.0));
    (if width == 0 { USUAL_WIDTH } else { width }) - 1
}

/// A part of the line.
struct Part {
    text: String,
    /// What stands before it.
    gap: &'static str,
    /// The part of the highest rank is the first to go where there is no room.
    rank: u8,
}

/// The line, in no more than `width` columns. What matters least goes first.
fn line(reading: &Reading, ends: &Ends, units: Units, width: usize) -> String {
    let mut parts = parts(reading, ends, units);
    while columns(&parts) > width
        && let Some(rank) = parts.iter().map(|part| part.rank).max().filter(|&rank| rank > 0)
    {
        parts.retain(|part| part.rank != rank);
    }
    let free = width.saturating_sub(columns(&parts) + " []".len());
    let mut line = String::new();
    for Part { text, gap, rank } in parts {
        line.push_str(gap);
        line.push_str(&text);
        if rank == PERCENT && free >= LEAST_BAR {
            let length = free.min(MOST_BAR);
            let full = length * percent(reading) / 100;
            let head = if full < length { ">" } else { "" };
            // Writing to a string does not fail.
            let _ = write!(line, " [{:<length$}]", "=".repeat(full) + head);
        }
    }
    line.chars().take(width).collect()
}

/// The rank of the part behind which the bar itself is.
const PERCENT: u8 = 1;

fn parts(reading: &Reading, ends: &Ends, units: Units) -> Vec<Part> {
    let Reading { found, done, rate, left, completes, .. } = *reading;
    let has_data = found.bytes > 0;
    let rate = rate.filter(|_| !completes).map(|rate| format!("{}/s", units.short(rate as u64)));
    let left = left.filter(|_| done.bytes < found.bytes).map(|left| format!("{} left", clock(left)));
    // Nobody knows how much comes from stdin.
    let data = match has_data {
        true => Some(units.part(done.bytes, found.bytes)),
        false => (done.bytes > 0).then(|| units.short(done.bytes)),
    };
    let files = || format!("{}/{} files", done.files, found.files);
    let parts = [
        (Some(phase(reading, ends)), "", 0),
        (has_data.then(|| format!("{:3}%", percent(reading))), " ", PERCENT),
        (data, " ", 4),
        ((found.files > 1).then(files), ", ", 5),
        (rate, ", ", 3),
        (left, ", ", 2),
    ];
    let shown = parts.into_iter().filter_map(|(text, gap, rank)| Some(Part { text: text?, gap, rank }));
    shown.collect()
}

/// Columns of parts, one behind the other.
fn columns(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.gap.len() + part.text.chars().count()).sum()
}

fn percent(reading: &Reading) -> usize {
    let (done, found) = (u128::from(reading.done.bytes), u128::from(reading.found.bytes.max(1)));
    (done * 100 / found).min(100) as usize
}

/// What goes on, and where.
fn phase(reading: &Reading, ends: &Ends) -> String {
    let other = ends.host.as_deref().unwrap_or("the other end");
    let there = if ends.pulls { None } else { ends.host.as_deref() };
    match reading.phase {
        _ if ends.reads => "reading".into(),
        Phase::Waiting => format!("waiting for another run on {other}"),
        Phase::Removing => "removing".into(),
        Phase::WritingBack if ends.verifies => at("verifying", there),
        // What has left is not yet there, and what goes on there shows only by its word.
        Phase::Sending | Phase::Mapping if reading.completes && reading.found.bytes > 0 => {
            there.map_or("waiting for storage".into(), |host| format!("waiting for {host}"))
        }
        Phase::WritingBack if reading.completes => storage(there),
        Phase::WritingBack => at("writing", there),
        Phase::Mapping => "comparing".into(),
        Phase::Sending if ends.host.is_none() => "copying".into(),
        Phase::Sending if ends.pulls => "receiving".into(),
        Phase::Sending => "sending".into(),
    }
}

fn at(what: &str, host: Option<&str>) -> String {
    host.map_or(what.into(), |host| format!("{what} on {host}"))
}

fn storage(host: Option<&str>) -> String {
    host.map_or("waiting for storage".into(), |host| format!("waiting for storage on {host}"))
}

/// A time as a clock shows it: `0:09`, `1:02:03`; days from two on.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil() as u64;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{rest:02}"),
        1..48 => format!("{hours}:{minutes:02}:{rest:02}"),
        _ => format!("{} days", hours / 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::meter::Count;

    fn reading() -> Reading {
        Reading {
            phase: Phase::Sending,
            completes: false,
            found: Count { files: 20, bytes: 4 << 30 },
            done: Count { files: 12, bytes: 1288490189 },
            rate: Some(2.5e6),
            left: Some(Duration::from_secs(1162)),
        }
    }

    fn ends(host: &str) -> Ends {
        Ends { host: Some(host.into()), ..Ends::default() }
    }

    #[test]
    fn the_line_fits_every_width_and_what_matters_most_stays() {
        for width in 0..200 {
            let readings = [
                reading(),
                Reading { phase: Phase::WritingBack, completes: true, ..reading() },
                Reading { found: Count::default(), done: Count::default(), left: None, ..reading() },
            ];
            for reading in readings {
                let line = line(&reading, &ends("a-host.with.a.long.name"), Units::Both, width);
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
        let shown = |width| line(&reading(), &ends("h"), Units::Both, width);
        assert_eq!(
            shown(119),
            "sending  30% [============>                           ] 1.20 of 4.00 GiB, 12/20 files, 2.38 MiB/s, 19:22 left"
        );
        assert_eq!(
            shown(79),
            "sending  30% [===>      ] 1.20 of 4.00 GiB, 12/20 files, 2.38 MiB/s, 19:22 left"
        );
        assert_eq!(shown(39), "sending  30%, 2.38 MiB/s, 19:22 left");
        assert_eq!(shown(19), "sending  30% [=>  ]");
        let unknown = Reading { found: Count::default(), left: None, ..reading() };
        assert_eq!(line(&unknown, &ends("h"), Units::Both, 79), "sending 1.20 GiB, 2.38 MiB/s");
    }

    #[test]
    fn the_line_of_all_hosts_counts_those_that_are_done_and_parts_of_others() {
        let half = Meter::default();
        let hosts = Hosts { total: 4, done: 1, failed: 1, under_way: vec![Arc::new(Mutex::new(half))] };
        let meter = Arc::clone(&hosts.under_way[0]);
        lock(&meter).count(&Event::Found(100), Instant::now());
        lock(&meter).count(&Event::Done(Phase::Sending, 60), Instant::now());
        assert_eq!(hosts.line(45), "1 of 4 hosts done, 1 failed  40% [====      ]");
        assert!((0..99).all(|width| hosts.line(width).chars().count() <= width));
    }

    #[test]
    fn phases_have_words_that_tell_where() {
        let told =
            |phase, completes, ends: &Ends| super::phase(&Reading { phase, completes, ..reading() }, ends);
        let (push, pull) = (ends("h"), Ends { pulls: true, ..ends("h") });
        let here = Ends::default();
        for (phase, completes, ends, want) in [
            (Phase::Mapping, false, &push, "comparing"),
            (Phase::Sending, false, &push, "sending"),
            (Phase::Sending, false, &pull, "receiving"),
            (Phase::Sending, false, &here, "copying"),
            (Phase::Sending, true, &push, "waiting for h"),
            (Phase::Sending, true, &pull, "waiting for storage"),
            (Phase::WritingBack, true, &push, "waiting for storage on h"),
            (Phase::WritingBack, true, &pull, "waiting for storage"),
            (Phase::WritingBack, false, &push, "writing on h"),
            (Phase::Waiting, false, &pull, "waiting for another run on h"),
            (Phase::Removing, false, &here, "removing"),
            (Phase::WritingBack, true, &Ends { verifies: true, ..ends("h") }, "verifying on h"),
            (Phase::Mapping, true, &Ends { reads: true, ..ends("h") }, "reading"),
        ] {
            assert_eq!(told(phase, completes, ends), want);
        }
    }

    #[test]
    fn times_are_read_from_a_clock() {
        for (seconds, want) in [(0.2, "0:01"), (59.5, "1:00"), (3723.0, "1:02:03"), (400_000.0, "4 days")] {
            assert_eq!(clock(Duration::from_secs_f64(seconds)), want);
        }
    }
}
