//! What a run to several hosts shows, writes down, and keeps for the next one.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use holesync::error::escape;
use holesync::report::{Ends, HostsReporter, JsonHosts, Reporter, TerminalHosts, Verbosity, Verdict};

use crate::cli::FailedList;
use crate::cli::record::Record;
use crate::cli::verbs::{Readers, warn, written_down};

/// Shows it to people or a program, and keeps the log and the list of hosts that failed.
pub struct HostsShown<'a> {
    readers: &'a Readers,
    record: Record,
    list: Option<FailedList>,
    people: Option<TerminalHosts>,
    quiet: bool,
}

impl<'a> HostsShown<'a> {
    /// For hosts that are called so.
    pub fn new(
        readers: &'a Readers,
        show: Verbosity,
        record: Record,
        names: &[String],
        list: Option<FailedList>,
    ) -> HostsShown<'a> {
        let widest = names.iter().map(|name| escape(name.as_bytes()).chars().count()).max().unwrap_or(0);
        let people = (!readers.json).then(|| TerminalHosts::new(show, names.len(), widest));
        HostsShown { readers, record, list, people, quiet: show.quiet }
    }

    fn shown(&self) -> &dyn HostsReporter {
        self.people.as_ref().map_or(&JsonHosts, |people| people)
    }
}

impl HostsReporter for HostsShown<'_> {
    fn part(&self, ends: &Ends, name: &str, path: &Path) -> Box<dyn Reporter> {
        let record = self.record.to(path);
        let shown = match &self.people {
            Some(people) => Box::new(people.part(ends, name).with_lines(record.lines.clone())),
            None => JsonHosts.part(ends, name, path),
        };
        written_down(self.readers, record, Some(name), shown)
    }

    fn ended(&self, verdict: &Verdict) {
        self.shown().ended(verdict);
        if let Some(log) = &self.readers.log {
            log.host_ended(verdict);
        }
        if let (Some(list), None) = (&self.list, &verdict.failure)
            && let Err(error) = list.is_equal(verdict.at)
        {
            warn(&format!("{error}; {} names {} still, which is equal", list.path().display(), verdict.name));
        }
    }

    fn finish(&self, verdicts: &[Verdict], elapsed: Duration) {
        self.shown().finish(verdicts, elapsed);
        let has_failed = verdicts.iter().any(|verdict| verdict.failure.is_some());
        if let (Some(list), true, false) = (&self.list, has_failed, self.quiet) {
            let path = escape(list.path().as_os_str().as_encoded_bytes());
            let _ = writeln!(std::io::stderr(), "holesync: {path} has the hosts to try again, for --hosts");
        }
    }
}
