//! The reporter for programs: JSON lines on stdout.

use std::io::Write;

use serde_json::json;

use crate::report::progress::{Ticker, phase_name};
use crate::report::{Event, Item, ItemKind, Outcome, Phase, Reporter, Route, Summary};

/// Prints one JSON object a line, `summary` last, and progress at most twice a second.
#[derive(Debug, Default)]
pub struct JsonLines {
    ticker: Ticker,
}

impl JsonLines {
    fn print(&self, value: serde_json::Value) {
        let _ = writeln!(std::io::stdout().lock(), "{value}");
    }

    fn progress(&self, phase: Phase, found: u64, done: u64) {
        if let Some(progress) = self.ticker.add(found, done) {
            self.print(json!({"event": "progress", "phase": phase_name(phase),
                "done_bytes": progress.done, "data_bytes": progress.found}));
        }
    }
}

impl JsonLines {
    fn listed(&self, item: &Item) {
        let path = String::from_utf8_lossy(item.path);
        let mode = item.mode.map(|mode| format!("{mode:04o}"));
        let mtime = item.mtime.map(|(seconds, _)| seconds);
        let (kind, length, target) = match item.kind {
            ItemKind::File { length } => ("file", length, None),
            ItemKind::Directory => ("directory", None, None),
            ItemKind::Symlink(link) => ("symlink", None, Some(String::from_utf8_lossy(link))),
            ItemKind::Device { is_block: true } => ("block device", None, None),
            ItemKind::Device { is_block: false } => ("character device", None, None),
            ItemKind::Special { is_socket: true } => ("socket", None, None),
            ItemKind::Special { is_socket: false } => ("fifo", None, None),
            ItemKind::HardLink(first) => ("hard link", None, Some(String::from_utf8_lossy(first))),
        };
        self.print(json!({"event": "listed", "path": path, "kind": kind, "length": length, "target": target,
            "mode": mode, "mtime": mtime}));
    }
}

impl Reporter for JsonLines {
    fn event(&self, event: Event) {
        match event {
            Event::Found(bytes) => self.progress(Phase::Mapping, bytes, 0),
            Event::Done(phase, bytes) => self.progress(phase, 0, bytes),
            Event::Phase(phase) => self.progress(phase, 0, 0),
            Event::File(item, outcome, _) => {
                let (action, sent) = match outcome {
                    Outcome::Sent(bytes) => ("sent", bytes),
                    Outcome::Unchanged => ("unchanged", 0),
                };
                let path = String::from_utf8_lossy(item.path);
                self.print(json!({"event": "file", "path": path, "action": action,
                    "sent_data_bytes": sent}));
            }
            Event::Removed(path) => {
                let path = String::from_utf8_lossy(path);
                self.print(json!({"event": "file", "path": path, "action": "deleted"}));
            }
            Event::Made(..) | Event::Connected(_) => {}
            Event::Listed(item) => self.listed(&item),
            Event::Failed(f) => self.print(json!({"event": "error", "code": f.code, "message": f.message})),
            Event::Unset(f) => self.print(json!({"event": "warning", "code": f.code, "message": f.message})),
            Event::Warning(text) => self.print(json!({"event": "warning", "message": text})),
            Event::Retry(text) => {
                self.ticker.restart();
                self.print(json!({"event": "retry", "message": text}));
            }
            Event::Hint(text) | Event::Note(text) => self.print(json!({"event": "note", "message": text})),
            Event::Choice(_) => {}
        }
    }

    fn summary(&self, summary: &Summary) {
        let stats = &summary.stats;
        self.print(json!({
            "event": "summary",
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
            "written_bytes": stats.written_bytes,
            "punched_bytes": stats.punched_bytes,
            "tries": summary.tries,
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
