//! The reporter for programs: JSON lines on stdout.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use crate::error::{Error, Failure, Warning};
use crate::report::progress::{Ticker, phase_name};
use crate::report::{Changes, Ends, Event, Item, ItemKind, Outcome, Phase, Reporter, Route, Summary};

/// Prints one JSON object a line, `summary` or the error that ended the run last, and progress
/// at most twice a second.
#[derive(Debug, Default)]
pub struct JsonLines {
    ticker: Ticker,
    /// The host at the other end.
    host: Option<String>,
    /// That, if the destination is there.
    destination: Option<String>,
    /// Entries that were made, changed or removed.
    changed: AtomicU64,
}

impl JsonLines {
    /// For a run between these.
    pub fn new(ends: &Ends) -> JsonLines {
        let destination = ends.host.clone().filter(|_| !ends.pulls);
        JsonLines { host: ends.host.clone(), destination, ..JsonLines::default() }
    }

    fn print(&self, value: serde_json::Value) {
        print(value);
    }

    /// Prints what became of an entry of the destination.
    fn entry(&self, path: &[u8], kind: &str, action: &str, sent: Option<u64>) {
        if action != "unchanged" {
            self.changed.fetch_add(1, Ordering::Relaxed);
        }
        // The root of a tree has a name, too.
        let path = if path.is_empty() { b"." } else { path };
        // Scripts count files by their event.
        let event = if sent.is_some() || action == "deleted" { "file" } else { "entry" };
        self.print(json!({"event": event, "host": self.destination, "path": String::from_utf8_lossy(path),
            "kind": kind, "action": action, "sent_data_bytes": sent}));
    }

    fn warning(&self, warning: &Warning) {
        let host = warning.host.as_ref().or(warning.of.as_ref());
        let path = warning.path.as_deref().map(String::from_utf8_lossy);
        self.print(json!({"event": "warning", "host": host, "path": path, "message": warning.message}));
    }

    fn progress(&self, phase: Phase, found: u64, done: u64) {
        if let Some(progress) = self.ticker.add(found, done) {
            self.print(json!({"event": "progress", "host": self.host, "phase": phase_name(phase),
                "done_bytes": progress.done, "data_bytes": progress.found}));
        }
    }
}

/// Prints the error that ended a run, as the last line.
pub fn print_error(error: &Error) {
    print(failure("error", &error.as_failure()));
}

pub(super) fn print(value: serde_json::Value) {
    // Nobody who reads it is no reason to fail. What there is not has no field.
    let mut value = value;
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let _ = writeln!(std::io::stdout().lock(), "{value}");
}

fn failure(event: &str, failure: &Failure) -> serde_json::Value {
    let path = failure.path.as_deref().map(String::from_utf8_lossy);
    json!({"event": event, "code": failure.code, "host": failure.host, "path": path,
        "message": failure.message})
}

/// The name of a kind of entry.
fn kind_name(kind: ItemKind) -> &'static str {
    match kind {
        ItemKind::File { .. } => "file",
        ItemKind::Directory => "directory",
        ItemKind::Symlink(_) => "symlink",
        ItemKind::Device { is_block: true } => "block device",
        ItemKind::Device { is_block: false } => "character device",
        ItemKind::Special { is_socket: true } => "socket",
        ItemKind::Special { is_socket: false } => "fifo",
        ItemKind::HardLink(_) => "hard link",
    }
}

impl JsonLines {
    fn listed(&self, item: &Item) {
        let path = String::from_utf8_lossy(item.path);
        let mode = item.mode.map(|mode| format!("{mode:04o}"));
        let mtime = item.mtime.map(|(seconds, _)| seconds);
        let length = if let ItemKind::File { length } = item.kind { length } else { None };
        let target = match item.kind {
            ItemKind::Symlink(to) | ItemKind::HardLink(to) => Some(String::from_utf8_lossy(to)),
            _ => None,
        };
        self.print(json!({"event": "listed", "host": self.host, "path": path, "kind": kind_name(item.kind),
            "length": length, "target": target, "mode": mode, "mtime": mtime}));
    }
}

/// Whether something was done, or would be: what a rule leaves alone is not.
fn is_changed(changes: Changes) -> bool {
    !changes.has(Changes::LEFT) && !changes.without(Changes::TRANSFER).is_empty()
}

fn removed_kind(path: &[u8]) -> &'static str {
    if path.ends_with(b"/") { "directory" } else { "file" }
}

impl Reporter for JsonLines {
    fn event(&self, event: Event) {
        match event {
            Event::Found(bytes) => self.progress(Phase::Mapping, bytes, 0),
            Event::Done(phase, bytes) => self.progress(phase, 0, bytes),
            Event::Phase(phase) => self.progress(phase, 0, 0),
            Event::File(item, outcome, changes) => {
                let (action, sent) = match outcome {
                    Outcome::Sent(bytes) => ("sent", bytes),
                    Outcome::Unchanged if is_changed(changes) => ("changed", 0),
                    Outcome::Unchanged => ("unchanged", 0),
                };
                self.entry(item.path, "file", action, Some(sent));
            }
            Event::Removed(path) => self.entry(path, removed_kind(path), "deleted", None),
            Event::Made(item, changes) if changes.has(Changes::NEW.with(Changes::VALUE, true)) => {
                self.entry(item.path, kind_name(item.kind), "made", None);
            }
            Event::Made(item, changes) if is_changed(changes) => {
                self.entry(item.path, kind_name(item.kind), "changed", None);
            }
            Event::Made(..) | Event::Connected(_) => {}
            Event::Listed(item) => self.listed(&item),
            Event::Failed(f) => self.print(failure("error", f)),
            Event::Unset(f) => self.print(failure("warning", f)),
            Event::Warning(warning) => self.warning(warning),
            Event::Retry(text) => {
                self.ticker.restart();
                self.print(json!({"event": "retry", "host": self.host, "message": text}));
            }
            Event::Hint(text) | Event::Note(text) => {
                self.print(json!({"event": "note", "host": self.host, "message": text}));
            }
            Event::Choice(_) => {}
        }
    }

    fn summary(&self, summary: &Summary) {
        let stats = &summary.stats;
        self.print(json!({
            "event": "summary",
            "host": self.host,
            "entries_changed": self.changed.load(Ordering::Relaxed),
            "files_total": stats.files_total,
            "files_sent": stats.files_sent,
            "files_failed": stats.files_failed,
            "attributes_unset": stats.attributes_unset,
            "files_deleted": stats.removed,
            "apparent_bytes": stats.apparent_bytes,
            "data_bytes": stats.data_bytes,
            "hole_bytes": stats.apparent_bytes.saturating_sub(stats.data_bytes),
            "matched_bytes": stats.matched_bytes,
            "sent_data_bytes": stats.sent_data_bytes,
            "wire_bytes_sent": summary.wire_sent,
            "wire_bytes_received": summary.wire_received,
            "hashed_bytes": stats.hashed_bytes.saturating_add(stats.basis_hashed_bytes),
            "believed_bytes": stats.believed_bytes,
            "written_bytes": stats.written_bytes,
            "punched_bytes": stats.punched_bytes,
            "tries": summary.tries,
            "elapsed_seconds": summary.elapsed.as_secs_f64(),
            "route": match summary.route {
                Route::Local => "local",
                Route::Agent => "agent",
                Route::Shell => "shell",
                Route::Store => "store",
            },
            "dry_run": summary.dry_run,
        }));
    }
}
