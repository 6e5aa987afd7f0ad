//! The sending role, over any pair of streams.
//!
//! Five threads: the walker, a reader, the hasher, one that says Busy when nobody else says
//! anything, and the caller's thread, which merges and is the only one that describes; what arrives is read by the reader whatever the
//! others do. Numbers in other files are those of these steps.
//!
//! 1. The walker announces every entry below the sources, each for a unit of credit, and
//!    waits for no answer. Of a single file it tells before that which maps are known that the
//!    receiver may have.
//! 2. The reader puts what the receiver says into queues: one for each file that it asks
//!    for, one for all else. Their bounds follow from credit; a receiver that says more
//!    breaks a rule. A file that is asked for goes to the hasher at once.
//! 3. The hasher reads and hashes those files in that order, two batches ahead.
//! 4. The merging thread takes up one file after the other, in that order: holds its
//!    blocks against the map, as far as both have come, and sends what differs at once, or
//!    asks what the receiver has of it. Meanwhile it takes all that is here.
//! 5. A file is described to its end (Finish), or abandoned when its source changed or
//!    either end failed; then nothing that the receiver still says of it counts.
//! 6. Files that changed or arrived damaged are announced once more, when all others have
//!    their result.
//! 7. When every file has its result, the walker tells once more what directories hold, if the
//!    receiver is to remove what else it has. Then totals are exchanged.
//!
//! Guaranteed: each block of a file is described exactly once, in order, and not before
//! its key is known; when the receiver was told Finish, the source was in one state from
//! the first byte read to the last byte sent, as far as its times show. The reader waits for the connection alone,
//! so the receiver never waits for a sender that is busy. The file that is described
//! never waits for credit that files announced later hold: these leave a reserve.
//!
//! Not guaranteed: the order of results; that a file is read only once: what is sent may
//! be read again.

mod announce;
mod describe;
mod described_file;
mod hasher;
mod inbox;
mod known;
mod leaf_policy;
mod merge;
mod pending;
mod replies;
mod session;
mod shared;
mod together;

use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use crate::confinement::NamedPath;
use crate::error::Result;
use crate::options::DeleteWhen;
use crate::protocol::{Connection, describes_in_dry_runs, keep_alive};
use crate::report::Stats;
use crate::source;
use announce::{Files, announce_all, remove_others};
pub use hasher::Hasher;
use inbox::Inbox;
use session::Session;
use shared::SenderShared;
pub use shared::Side;
pub use together::Decision;

/// Sends everything below `sources` and waits until the receiver has it. `hasher`: one
/// that has begun already, with the same options.
/// Returns what both ends did; failed files are counted there, not errors.
///
/// # Errors
///
/// When the connection fails or the receiver gives up.
pub fn run<R: Read + Send + 'static, W: Write + Send>(
    connection: Connection<R, W>,
    sources: &[NamedPath],
    hasher: Option<Hasher>,
    side: Side,
) -> Result<Stats> {
    send(connection, sources, hasher, side, None)
}

/// The same of one file to one of several hosts, which puts it in place when `decision` says so.
///
/// # Errors
///
/// Those of [`run`]; what was decided against it.
pub fn run_together<R: Read + Send + 'static, W: Write + Send>(
    connection: Connection<R, W>,
    sources: &[NamedPath],
    hasher: Option<Hasher>,
    decision: &dyn Decision,
) -> Result<Stats> {
    send(connection, sources, hasher, Side::Initiator, Some(decision))
}

fn send<R: Read + Send + 'static, W: Write + Send>(
    connection: Connection<R, W>,
    sources: &[NamedPath],
    hasher: Option<Hasher>,
    side: Side,
    decision: Option<&dyn Decision>,
) -> Result<Stats> {
    let Connection { input, output, options, reporter, saved } = connection;
    let hasher = hasher.unwrap_or_else(|| Hasher::start(options, None, None, None));
    let Hasher { jobs, hashed, buffers, is_shared, known } = hasher;
    let shared = SenderShared {
        files: Arc::new(Files::new(jobs, output.is_direct(), options.tells_others())),
        output: Mutex::new(output),
        stats: Mutex::default(),
        links: Mutex::default(),
        options,
        side,
        version: input.version(),
        peer: input.peer().into(),
        describes: !options.dry_run || describes_in_dry_runs(input.version()),
        is_shared,
        known,
        decision,
        reporter,
        saved,
    };
    let inbox = Arc::new(Inbox::new(options.dry_run, shared.describes));
    inbox.fill(input, Arc::clone(&shared.files));
    let result = std::thread::scope(|scope| {
        let (_until_here, over) = channel();
        let shared = &shared;
        scope.spawn(move || keep_alive(&shared.output, options.life_sign(), &over));
        let (arrived_in, arrived) = channel();
        let walked = Arc::clone(&inbox);
        scope.spawn(move || {
            walked.walked(announce_all(shared, sources));
            // When everything has arrived; never, if the run fails.
            if arrived.recv().is_ok() {
                walked.walked(remove_others(shared, sources));
            }
        });
        let when = source::deletes(sources, options);
        let remove = (when == Some(DeleteWhen::After)).then_some(arrived_in);
        let mut session = Session::new(shared, Arc::clone(&inbox), hashed, buffers, remove);
        let result = session.run();
        shared.files.close();
        result.map_err(|error| session.reason(error))
    });
    if let Err(error) = &result {
        shared.lock_output().give_up(error);
    }
    result
}
