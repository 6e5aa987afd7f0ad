//! The sending role, over any pair of streams. Announces what there is,
//! without waiting for answers; for each file the receiver wants, reads and
//! hashes it while the receiver's map arrives, and sends what differs.
//!
//! Four threads: the walker announces, the hasher reads and hashes, a reader
//! takes what arrives, and the caller's thread merges and sends. Incoming data
//! is drained whatever the others do, so neither pipe can block the other.

pub(crate) mod announce;
pub(crate) mod deferred;
pub(crate) mod describe;
pub(crate) mod file_state;
pub(crate) mod hasher;
pub(crate) mod merge;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};

use crate::error::Result;
use crate::hashmap::ahead::EarlyStart;
use crate::options::Options;
use crate::protocol::{Frame, FrameReader, FrameWriter, Message};
use crate::report::{Reporter, Stats};
pub use crate::sender::announce::Side;
use crate::sender::announce::{Files, Shared, announce_all};
use crate::sender::hasher::hash_files;
use crate::sender::merge::{Incoming, Merger};

/// Frames and batches that wait for the merging thread.
const QUEUED_FRAMES: usize = 64;

const QUEUED_BATCHES: usize = 2;

/// Sends everything below `sources` and waits until the receiver has it. `early`: what
/// was begun already.
/// Returns what both ends did; failed files are counted there, not errors.
///
/// # Errors
///
/// When the connection fails or the receiver gives up.
pub fn run<R: Read + Send + 'static, W: Write + Send>(
    input: FrameReader<R>,
    output: FrameWriter<W>,
    sources: &[PathBuf],
    early: Option<EarlyStart>,
    options: &Options,
    side: Side,
    reporter: &dyn Reporter,
) -> Result<Stats> {
    let (jobs_in, jobs) = channel();
    let direct = output.is_direct();
    let shared = Shared {
        files: Arc::new(Files::new(jobs_in)),
        output: Mutex::new(output),
        stats: Mutex::default(),
        options,
        side,
        reporter,
    };
    let (events_in, events) = sync_channel(QUEUED_FRAMES);
    let (hashed_in, hashed) = sync_channel(QUEUED_BATCHES);
    let (buffers_in, buffers) = channel();
    read_frames(input, Arc::clone(&shared.files), events_in.clone());
    let result = std::thread::scope(|scope| {
        let walker = &shared;
        // Takes its end of the channel along: when the reader ends, too, it closes.
        scope.spawn(move || {
            let count = announce_all(walker, sources);
            // Only the end of the run closes this channel.
            let _ = events_in.send(Incoming::Walked(count));
        });
        scope.spawn(|| hash_files(options, direct, early, jobs, hashed_in, buffers));
        let mut merger = Merger::new(&shared, events, hashed, buffers_in);
        let result = merger.run();
        shared.files.close();
        result.map_err(|error| merger.reason(error))
    });
    if let Err(error) = &result {
        shared.lock_output().give_up(error);
    }
    result
}

/// Reads until the stream ends. The thread outlives the role when that fails:
/// it ends with the connection.
fn read_frames<R: Read + Send + 'static>(
    mut input: FrameReader<R>,
    files: Arc<Files>,
    events: SyncSender<Incoming>,
) {
    std::thread::spawn(move || {
        loop {
            let event = match input.read() {
                Ok(frame) => Incoming::Frame(frame),
                Err(error) => Incoming::Closed(error),
            };
            // Here, before the merging thread can take it.
            match &event {
                Incoming::Frame(Frame::Message(Message::Map { id, .. })) => files.want(*id, true),
                Incoming::Frame(Frame::Message(Message::NoBasis { id, .. })) => files.want(*id, false),
                _ => {}
            }
            let last =
                matches!(event, Incoming::Closed(_) | Incoming::Frame(Frame::Message(Message::End(_))));
            if events.send(event).is_err() || last {
                return;
            }
        }
    });
}
