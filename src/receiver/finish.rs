//! Completes files that are described: attributes, sync, rename. Step 5 of
//! [`receiver`](crate::receiver).

use std::sync::Mutex;
use std::sync::mpsc::Receiver;

use crate::apply::Finished;
use crate::apply::tree::DelayedFile;
use crate::error::lock;
use crate::hashmap::Hash;
use crate::protocol::Message;
use crate::receiver::assemble::OpenFile;
use crate::receiver::shared::{ReceiverShared, Settles};
use crate::report::{Event, Outcome, Phase};

/// A file of which more than this arrived takes a moment to be written back.
const WORTH_TELLING: u64 = 8 << 20;

/// A file whose content is complete.
pub struct Complete {
    pub file: Box<OpenFile>,
    pub root: Hash,
}

/// Completes files until the applying thread has no more.
pub fn finish_files(shared: &ReceiverShared, queue: &Mutex<Receiver<Complete>>) {
    loop {
        let next = lock(queue).recv();
        let Ok(Complete { file, root }) = next else { return };
        let path = file.destination.path().to_path_buf();
        let OpenFile { id, entry, destination, kept, received, changes, .. } = *file;
        if received > WORTH_TELLING {
            shared.reporter.event(Event::Phase(Phase::WritingBack));
            // Only a hint for the other end; a broken connection shows below.
            let _ = shared.tell(Message::Busy(Phase::WritingBack), Settles::Nothing);
        }
        let _finishing = shared.finishing();
        // The file is complete even when nobody is left to hear it.
        let _ = match destination.finish(&root, kept) {
            Ok(finished) => {
                let note = finished.note(&path);
                let Finished { written, punched, changed, unset, delayed, .. } = finished;
                if let Some(delayed) = delayed {
                    lock(&shared.delayed).push(DelayedFile { id, path: entry.path.clone(), delayed });
                }
                let mut stats = shared.lock_stats();
                stats.written_bytes += written;
                stats.punched_bytes = stats.punched_bytes.saturating_add(punched);
                drop(stats);
                let outcome = if changed { Outcome::Sent(received) } else { Outcome::Unchanged };
                shared.report(&entry, outcome, changes);
                let changed = changed.then(|| written.saturating_add(punched));
                let noted = note.map_or(Ok(()), |note| shared.warn(note)).and_then(|()| shared.unset(unset));
                noted.and_then(|()| shared.tell(Message::Done { id, changed, changes }, Settles::Entry))
            }
            Err(error) => shared.fail(id, &error, Settles::Entry),
        };
    }
}
