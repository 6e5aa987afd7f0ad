//! A log file beside another reporter: a line with date, time and process for each entry
//! that changed, for what went wrong, for the totals, and for what ended the run.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result, escape, lock};
use crate::report::format::time;
use crate::report::{Event, LineFormat, Reporter, Summary, Verdict};
use crate::sys;

/// The file, which several may write to.
pub struct LogFile(Mutex<File>);

impl LogFile {
    /// Goes on behind what the file has.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<LogFile> {
        let file = File::options().append(true).create(true).open(path);
        Ok(LogFile(Mutex::new(file.map_err(Error::file("open the log file", path))?)))
    }

    /// Writes how the run ended, where that was no success.
    pub fn ended(&self, error: &Error) {
        self.write(&format!("{} (code {})", escape(error.to_string().as_bytes()), error.exit_code()));
    }

    /// Writes how it ended for one of several hosts.
    pub fn host_ended(&self, verdict: &Verdict) {
        let name = escape(verdict.name.as_bytes());
        self.write(&match &verdict.failure {
            None => format!("{name}: equal"),
            Some(failure) => {
                format!("{name}: {} (code {})", escape(failure.message.as_bytes()), failure.code)
            }
        });
    }

    fn write(&self, line: &str) {
        let line = format!("{} [{}] {line}\n", time(sys::now(), ' '), std::process::id());
        // A log that cannot be written is no reason to leave a transfer half done.
        let _ = lock(&self.0).write_all(line.as_bytes());
    }
}

/// Writes a log file, and passes everything on.
pub struct Logged {
    file: Arc<LogFile>,
    lines: LineFormat,
    /// Stands before each line, where several hosts take part.
    name: String,
    shown: Box<dyn Reporter>,
}

impl Logged {
    /// Begins a run in the file.
    /// `name`: the host, where several take part.
    pub fn new(
        file: Arc<LogFile>,
        lines: LineFormat,
        name: Option<&str>,
        shown: Box<dyn Reporter>,
    ) -> Logged {
        let name = name.map_or(String::new(), |name| format!("{}: ", escape(name.as_bytes())));
        let logged = Logged { file, lines, name, shown };
        logged.write(if logged.lines.pulls() { "receiving file list" } else { "building file list" });
        logged
    }

    fn write(&self, line: &str) {
        self.file.write(&format!("{}{line}", self.name));
    }
}

impl Reporter for Logged {
    fn event(&self, event: Event) {
        let lines = match event {
            Event::File(item, outcome, changes) => self.lines.file(item, outcome, changes),
            Event::Made(item, changes) => self.lines.made(item, changes),
            Event::Removed(path) => self.lines.removed(path),
            Event::Failed(failure) | Event::Unset(failure) => vec![failure.told()],
            Event::Warning(warning) => vec![warning.told()],
            Event::Retry(text) => vec![escape(text.as_bytes())],
            Event::Connected(_) | Event::Listed(_) | Event::Found(_) | Event::Done(..) | Event::Phase(_) => {
                vec![]
            }
            Event::Hint(_) | Event::Note(_) | Event::Choice(_) => vec![],
        };
        lines.iter().for_each(|line| self.write(line));
        self.shown.event(event);
    }

    fn summary(&self, summary: &Summary) {
        let Summary { stats, wire_sent, wire_received, .. } = summary;
        let size = stats.apparent_bytes;
        self.write(&format!("sent {wire_sent} bytes  received {wire_received} bytes  total size {size}"));
        self.shown.summary(summary);
    }
}
