//! What is told of a run to several hosts: each has a reporter of its own, which names it; what
//! became of it is told at its end, and of all of them at theirs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::error::{Failure, escape, told};
use crate::report::bar::Bars;
use crate::report::terminal::outcome;
use crate::report::{Ends, JsonLines, Reporter, Summary, Terminal, Verbosity, json};

/// What became of one host.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Its place in the list of all.
    pub at: usize,
    /// The host, for people and programs.
    pub host: String,
    /// What it is called beside the others: with its path, where they share a host.
    pub name: String,
    /// The destination there.
    pub path: PathBuf,
    /// What was done, unless the run broke off.
    pub summary: Option<Summary>,
    /// Why the destination is not as the source is; its code is that of a run to this host alone.
    pub failure: Option<Failure>,
}

/// Where it goes what is told of several hosts.
pub trait HostsReporter: Sync {
    /// What tells of the part of the run that goes to one host, between these ends, which is
    /// called so beside the others; and where its destination is.
    fn part(&self, ends: &Ends, name: &str, path: &Path) -> Box<dyn Reporter>;
    /// A host is through. Called from several threads.
    fn ended(&self, verdict: &Verdict);
    /// All are, after so long a time.
    fn finish(&self, verdicts: &[Verdict], elapsed: Duration);
}

/// Shows a run to several hosts to people.
#[derive(Debug)]
pub struct TerminalHosts {
    show: Verbosity,
    bars: Option<Bars>,
}

impl TerminalHosts {
    /// For so many hosts, whose names are no longer than `widest`.
    pub fn new(show: Verbosity, hosts: usize, widest: usize) -> TerminalHosts {
        TerminalHosts { show, bars: Terminal::has_bar(&show).then(|| Bars::new(show.units, hosts, widest)) }
    }

    /// What shows the part that goes to one host.
    pub fn part(&self, ends: &Ends, name: &str) -> Terminal {
        Terminal::part(self.show, ends, name, self.bars.as_ref())
    }

    fn write(&self, mut out: impl Write, line: &str) {
        // A closed stream is no reason to leave a transfer half done.
        let mut write = || drop(writeln!(out, "{line}"));
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

impl HostsReporter for TerminalHosts {
    fn part(&self, ends: &Ends, name: &str, _: &Path) -> Box<dyn Reporter> {
        Box::new(self.part(ends, name))
    }

    fn ended(&self, verdict: &Verdict) {
        self.bars.iter().for_each(|bars| bars.ended(verdict.failure.is_some()));
        let name = escape(verdict.name.as_bytes());
        match (&verdict.failure, &verdict.summary) {
            (Some(failure), _) => {
                let told = told(Some(&verdict.name), &failure.message);
                let line = format!("holesync: {told} (code {})", failure.code);
                self.write(std::io::stderr(), &line);
            }
            (None, Some(summary)) if !self.show.quiet => {
                self.write(std::io::stdout(), &format!("{name}: {}", outcome(summary, self.show.units)));
            }
            _ => {}
        }
    }

    fn finish(&self, verdicts: &[Verdict], elapsed: Duration) {
        self.bars.iter().for_each(Bars::finish);
        if self.show.quiet {
            return;
        }
        let failed = verdicts.iter().filter(|verdict| verdict.failure.is_some()).count();
        let head = ["host", "result", "sent", "matched", "on the wire", "written", "time"].map(String::from);
        let rows: Vec<_> = std::iter::once(head).chain(verdicts.iter().map(|v| self.row(v))).collect();
        let sums = format!(
            "{} of {} hosts done, {:.1} s",
            verdicts.len() - failed,
            verdicts.len(),
            elapsed.as_secs_f64()
        );
        self.write(std::io::stdout(), &format!("\n{}\n{sums}", aligned(&rows)));
    }
}

impl TerminalHosts {
    /// What the table has of a host.
    fn row(&self, verdict: &Verdict) -> [String; 7] {
        let result =
            verdict.failure.as_ref().map_or("equal".into(), |failure| format!("failed ({})", failure.code));
        let name = escape(verdict.name.as_bytes());
        let Some(summary) = &verdict.summary else {
            return [name, result, "-".into(), "-".into(), "-".into(), "-".into(), "-".into()];
        };
        let result = if summary.dry_run && verdict.failure.is_none() { "dry run".into() } else { result };
        let [sent, matched, wire, written] = [
            summary.stats.sent_data_bytes,
            summary.stats.matched_bytes,
            summary.wire_sent.saturating_add(summary.wire_received),
            summary.stats.written_bytes,
        ]
        .map(|bytes| self.show.units.short(bytes));
        [name, result, sent, matched, wire, written, format!("{:.1} s", summary.elapsed.as_secs_f64())]
    }
}

/// Rows as a table: the first two columns begin, all others end at one place.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(column, (text, width))| match column {
            0 | 1 => format!("{text:<width$}"),
            _ => format!("{text:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Tells a program of a run to several hosts: JSON lines on stdout.
#[derive(Debug, Default)]
pub struct JsonHosts;

impl HostsReporter for JsonHosts {
    fn part(&self, ends: &Ends, _: &str, _: &Path) -> Box<dyn Reporter> {
        Box::new(JsonLines::new(ends))
    }

    fn ended(&self, verdict: &Verdict) {
        let failure = verdict.failure.as_ref();
        json::print(json!({"event": "host", "host": verdict.host, "path": verdict.path.to_string_lossy(),
            "code": failure.map_or(0, |failure| failure.code),
            "message": failure.map(|failure| &failure.message)}));
    }

    fn finish(&self, verdicts: &[Verdict], elapsed: Duration) {
        let failed = verdicts.iter().filter(|verdict| verdict.failure.is_some()).count();
        let sum =
            |of: fn(&Summary) -> u64| verdicts.iter().filter_map(|v| v.summary.as_ref()).map(of).sum::<u64>();
        json::print(json!({"event": "hosts", "hosts_total": verdicts.len(), "hosts_failed": failed,
            "sent_data_bytes": sum(|s| s.stats.sent_data_bytes),
            "wire_bytes_sent": sum(|s| s.wire_sent),
            "wire_bytes_received": sum(|s| s.wire_received),
            "written_bytes": sum(|s| s.stats.written_bytes),
            "elapsed_seconds": elapsed.as_secs_f64()}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_table_stand_below_each_other() {
        let rows = [["host", "result", "sent"], ["h", "failed (11)", "-"]].map(|row| row.map(String::from));
        assert_eq!(aligned(&rows), "host  result       sent\nh     failed (11)     -");
    }
}
