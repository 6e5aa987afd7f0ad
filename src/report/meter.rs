//! How far a run is, how fast it lately went, and how long the rest will take at that rate.
//! Counts what is reported; draws nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::report::{Event, Phase};

/// Bytes that went through a connection, both ways. Counted by what reads and writes it.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Bytes sent.
    pub sent: Arc<AtomicU64>,
    /// Bytes received.
    pub received: Arc<AtomicU64>,
}

impl Traffic {
    fn bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed).saturating_add(self.received.load(Ordering::Relaxed))
    }
}

/// Rates are those of so long a time.
const RECENT: Duration = Duration::from_secs(8);
/// A run that became slower in so short a time is not expected to become faster again.
const LATEST: Duration = Duration::from_secs(3);
/// How long the last progress may be past and still tell how fast it goes.
const OLDEST: Duration = Duration::from_secs(60);
/// Two samples are no closer than that.
const PAUSE: Duration = Duration::from_millis(200);
/// While data travelled so lately, it is what the run does, whatever is done beside it.
const LINGER: Duration = Duration::from_secs(1);
/// What of the data in one frame may be under way, and is not reported yet.
const FRAME: u64 = 1 << 20;

/// Counts the events of a run.
#[derive(Debug, Default)]
pub struct Meter {
    traffic: Option<Traffic>,
    phase: Option<Phase>,
    last_sent: Option<Instant>,
    found: Count,
    done: Count,
    /// Data that travelled, where there is no connection to count.
    moved: u64,
    /// What had moved when data was reported last.
    moved_before: u64,
    /// Data that was shown as done.
    shown: u64,
    samples: VecDeque<Sample>,
}

/// How many files, and their data in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Files.
    pub files: u64,
    /// Bytes of data.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    done: u64,
    moved: u64,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// What goes on.
    pub phase: Phase,
    /// All data is where it belongs, and files are being completed.
    pub completes: bool,
    /// What was found so far.
    pub found: Count,
    /// What of it is done.
    pub done: Count,
    /// Bytes a second, of what travels, or is compared while nothing travels; `None`: not
    /// known yet.
    pub rate: Option<f64>,
    /// Until all that was found is done; `None`: not known.
    pub left: Option<Duration>,
}

impl Meter {
    /// A connection stands.
    pub fn connected(&mut self, traffic: Traffic) {
        self.traffic = Some(traffic);
        self.samples.clear();
        self.moved_before = self.moved();
    }

    /// The run begins again.
    pub fn restart(&mut self) {
        *self = Meter::default();
    }

    /// Counts an event. Bytes that are done count where they are, or have left.
    pub fn count(&mut self, event: &Event, now: Instant) {
        match *event {
            Event::Found(bytes) => {
                self.found.files += 1;
                self.found.bytes = self.found.bytes.saturating_add(bytes);
            }
            Event::Done(phase, bytes) => {
                self.done.bytes = self.done.bytes.saturating_add(bytes);
                if phase == Phase::Sending {
                    self.moved = self.moved.saturating_add(bytes);
                }
                self.moved_before = self.moved();
                self.enter(phase, now);
            }
            Event::Phase(phase) => self.enter(phase, now),
            Event::Removed(_) => self.enter(Phase::Removing, now),
            Event::File(..) | Event::Failed(_) => self.done.files += 1,
            _ => {}
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        if phase == Phase::Sending {
            self.last_sent = Some(now);
        }
        self.phase = Some(phase);
    }

    fn moved(&self) -> u64 {
        self.traffic.as_ref().map_or(self.moved, Traffic::bytes)
    }

    /// Which part of what was found is done, of 1.
    pub fn done_part(&self) -> f64 {
        self.done.bytes.min(self.found.bytes) as f64 / self.found.bytes.max(1) as f64
    }

    /// Reads it, and remembers what it was for the next time.
    pub fn read(&mut self, now: Instant) -> Reading {
        let phase = self.phase_now(now);
        let moved = self.moved();
        let under_way = moved.saturating_sub(self.moved_before).min(FRAME);
        self.shown = self.shown.max(self.done.bytes.saturating_add(under_way).min(self.found.bytes));
        let sample = Sample { at: now, done: self.shown, moved };
        if self.samples.back().is_none_or(|last| now.saturating_duration_since(last.at) >= PAUSE) {
            self.samples.push_back(sample);
        }
        self.forget(now);
        let found = self.found;
        let done = Count { files: self.done.files.min(found.files), bytes: self.shown };
        let counts = if phase == Phase::Sending { |s: &Sample| s.moved } else { |s: &Sample| s.done };
        Reading {
            phase,
            completes: done.bytes >= found.bytes && done.files < found.files,
            found,
            done,
            rate: self.since(now, RECENT).and_then(|first| rate(first, sample, counts)),
            left: self.left(sample, found.bytes - done.bytes),
        }
    }

    /// Data travels now and then while the rest is compared: that is told as one phase.
    fn phase_now(&self, now: Instant) -> Phase {
        let lately = self.last_sent.is_some_and(|sent| now.saturating_duration_since(sent) < LINGER);
        match self.phase {
            Some(phase @ (Phase::Mapping | Phase::WritingBack)) => {
                let is_all = self.done.bytes >= self.found.bytes && phase == Phase::WritingBack;
                if lately && !is_all { Phase::Sending } else { phase }
            }
            other => other.unwrap_or(Phase::Mapping),
        }
    }

    /// The newest sample that is so old, or else the oldest.
    fn since(&self, now: Instant, span: Duration) -> Option<Sample> {
        let is_old = |sample: &&Sample| now.saturating_duration_since(sample.at) >= span;
        self.samples.iter().rev().find(is_old).or(self.samples.front()).copied()
    }

    /// Drops what is too old, but for the last sample that shows progress.
    fn forget(&mut self, now: Instant) {
        while let Some(&second) = self.samples.get(1) {
            let age = now.saturating_duration_since(second.at);
            let is_still = self.samples.back().is_some_and(|last| last.done == second.done);
            if age < RECENT || is_still && age < OLDEST {
                return;
            }
            self.samples.pop_front();
        }
    }

    /// How long so many bytes take at the rate of late, at the slower one of two: a run whose
    /// first part was found equal at once would seem to be over soon.
    fn left(&self, now: Sample, bytes: u64) -> Option<Duration> {
        let done = |sample: &Sample| sample.done;
        let rates = [RECENT, LATEST].map(|span| self.since(now.at, span).and_then(|s| rate(s, now, done)));
        let whole = self.samples.front().and_then(|first| rate(*first, now, done));
        let slowest = rates.into_iter().flatten().filter(|rate| *rate > 0.0).min_by(f64::total_cmp);
        let rate = slowest.or(whole).filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(bytes as f64 / rate).ok()
    }
}

/// Bytes a second between two samples.
fn rate(first: Sample, last: Sample, of: impl Fn(&Sample) -> u64) -> Option<f64> {
    let seconds = last.at.saturating_duration_since(first.at).as_secs_f64();
    (seconds >= PAUSE.as_secs_f64()).then(|| of(&last).saturating_sub(of(&first)) as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Reads a meter four times a second while `step` is called as often.
    fn readings(
        meter: &mut Meter,
        start: Instant,
        quarters: std::ops::Range<u64>,
        mut step: impl FnMut(&mut Meter, Instant),
    ) -> Vec<Reading> {
        let at = |quarter| start + Duration::from_millis(250 * quarter);
        quarters
            .map(|quarter| {
                step(meter, at(quarter));
                meter.read(at(quarter))
            })
            .collect()
    }

    #[test]
    fn the_time_that_is_left_is_that_of_what_lately_travelled() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let traffic = Traffic::default();
        meter.connected(traffic.clone());
        meter.count(&Event::Found(1010 * MIB), start);
        // 1000 MiB are equal, within a second.
        readings(&mut meter, start, 0..4, |meter, now| {
            meter.count(&Event::Done(Phase::Mapping, 250 * MIB), now);
        });
        // The rest travels at 256 KiB a second, in frames of 256 KiB that count at their end.
        let slow = readings(&mut meter, start, 4..124, |meter, now| {
            let sent = traffic.sent.fetch_add(MIB / 16, Ordering::Relaxed) + MIB / 16;
            if sent.is_multiple_of(MIB / 4) {
                meter.count(&Event::Done(Phase::Sending, MIB / 4), now);
            }
        });
        for (quarter, reading) in slow.iter().enumerate().skip(12) {
            let want = 40.0 - quarter as f64 / 4.0;
            let left = reading.left.expect("known").as_secs_f64();
            assert!(
                (want * 0.7..want * 1.4 + 1.0).contains(&left),
                "{left} s in place of {want}: {reading:?}"
            );
            assert_eq!(reading.phase, Phase::Sending);
        }
        let rate = slow[60].rate.expect("known");
        assert!((200_000.0..300_000.0).contains(&rate), "{rate}");
        // It moves between two frames, and never back.
        assert!(slow.windows(2).all(|two| two[0].done.bytes < two[1].done.bytes));
    }

    #[test]
    fn a_line_that_stands_still_has_no_rate_and_more_and_more_time_left() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        meter.count(&Event::Found(100 * MIB), start);
        readings(&mut meter, start, 0..40, |meter, now| {
            meter.count(&Event::Done(Phase::Sending, MIB), now);
        });
        let still = readings(&mut meter, start, 40..120, |_, _| {});
        assert_eq!(still.last().expect("one").rate, Some(0.0));
        let left = still.iter().skip(30).map(|reading| reading.left.expect("known"));
        assert!(left.is_sorted(), "{still:?}");
    }

    #[test]
    fn phases_do_not_flicker_and_the_last_one_shows() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        meter.count(&Event::Found(2 * MIB), start);
        for (after, event, want) in [
            (0, Event::Phase(Phase::Mapping), Phase::Mapping),
            (100, Event::Done(Phase::Sending, MIB), Phase::Sending),
            (200, Event::Phase(Phase::Mapping), Phase::Sending),
            (300, Event::Phase(Phase::WritingBack), Phase::Sending),
            (1600, Event::Phase(Phase::Mapping), Phase::Mapping),
            (1700, Event::Done(Phase::Sending, MIB), Phase::Sending),
            (1800, Event::Phase(Phase::WritingBack), Phase::WritingBack),
            (1900, Event::Removed(b"x"), Phase::Removing),
        ] {
            let now = start + Duration::from_millis(after);
            meter.count(&event, now);
            assert_eq!(meter.read(now).phase, want, "after {after} ms");
        }
        let reading = meter.read(start + Duration::from_secs(3));
        assert!(reading.completes && reading.left == Some(Duration::ZERO), "{reading:?}");
    }
}
