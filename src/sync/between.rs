//! From a host to another one: an agent at each, and what they say to each other goes through here.
//! Neither knows of the other, so neither can reach it, or need log in there.
//!
//! 1. The receiver is reached and asked, and kept waiting until the sender is.
//! 2. Frames go from one to the other as they come, in a thread for each direction, until both have
//!    said that that was all.
//! 3. What they say is looked at on its way: for the user, and so that nothing comes that was not
//!    asked for. The receiver does not know what that is.
//!
//! Guaranteed: the receiver checks all that it would check otherwise; who fails ends the other.
//! Memory: a frame for each direction, and what the reporter needs of entries that have no result yet.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::confinement::{NamedPath, RequestPath};
use crate::error::{Error, Failure, Result, lock};
use crate::location::Host;
use crate::protocol::{CREDIT, Entry, Message, Passing, Request, Says, VERSION};
use crate::receiver::Target;
use crate::remote::{FarSide, Input, Output};
use crate::report::{Changes, Event, Outcome, Phase, Reporter, Stats};
use crate::source::{self, Asked, Kind};
use crate::sync::retry::Tries;
use crate::sync::{Completed, Initiator, names};

/// What is said by the sender, and by the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Sender,
    Receiver,
}

/// The sources of a run, on a host.
pub(super) struct FarSources<'a> {
    pub host: &'a Host,
    pub paths: &'a [Vec<u8>],
    /// What is transferred below the only one of them.
    pub listed: Option<&'a Vec<Vec<u8>>>,
}

impl Initiator<'_> {
    /// Has one host send to another.
    pub(super) fn pass_on(self, from: &FarSources, to: &Host, path: &Path) -> Result<Completed<Stats>> {
        if self.saved.is_some() {
            let what = "--save-map wants one end on this machine: holesync map HOST:IMG -o FILE.map writes the map of \
                        an image on a host";
            return Err(Error::Usage(what.into()));
        }
        if self.options.remove_source_files {
            let what = "--remove-source-files is not for a transfer between two hosts: both names may be those of one file, \
                        which neither host would notice; remove SRC there when DEST has it";
            return Err(Error::Usage(what.into()));
        }
        let silence = self.options.silence();
        let target = self.target(path, from.listed.is_some() || from.paths.len() > 1)?;
        let paths = from.paths.iter().map(|path| NamedPath::here(OsStr::from_bytes(path))).collect();
        let asked = Asked::of(&source::choose(paths, from.listed.cloned(), self.options)?, self.options);
        let receive = Request::Receive { destination: path.into(), directory: target.directory };
        let target = Target { asked: Some(asked), ..target };
        // What counts as one that has worked is one to both of them.
        let tries = &Tries::new(Some(0));
        let first = Initiator { tries, ..self };
        let completed = first.connect(to, silence, |far_side, receiver, mut to_receiver| {
            needs_agent(far_side, to)?;
            speaks_as_here(&receiver)?;
            self.request(&mut to_receiver, receive)?;
            self.tries.connecting(!tries.asks());
            let waiting = Waiting::new(to_receiver);
            let reach = || {
                self.connect(from.host, silence, |far_side, sender, mut to_sender| {
                    needs_agent(far_side, from.host)?;
                    speaks_as_here(&sender)?;
                    let sources = from.paths.iter().cloned().map(RequestPath::from).collect();
                    let send = Request::Send { sources, listed: from.listed.is_some() };
                    self.request_in(self.tries.second_run(), &mut to_sender, send)?;
                    if let Some(names) = from.listed {
                        names::send(&mut to_sender, names.clone())?;
                    }
                    let watch =
                        Watch::new(self.reporter, (from.host, to), target, self.options.tells_others());
                    between(&watch, (sender, to_sender), (receiver, waiting.end()?))
                })
            };
            waiting.during(self.options.life_sign(), reach)
        })?;
        let Completed { value: Completed { value, wire: (sent, received), .. }, route, wire } = completed;
        Ok(Completed { value, route, wire: (wire.0 + sent, wire.1 + received) })
    }
}

/// The way to a host that waits while another one is reached, which may take as long as somebody types.
struct Waiting(Mutex<Option<Output>>);

impl Waiting {
    fn new(output: Output) -> Waiting {
        Waiting(Mutex::new(Some(output)))
    }

    /// Has it hear something now and then while `reach` is at work.
    fn during<T>(&self, life_sign: Duration, reach: impl FnOnce() -> T) -> T {
        let (over_in, over) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while over.recv_timeout(life_sign / 2) == Err(RecvTimeoutError::Timeout) {
                    // A host that is gone is found when it is spoken to.
                    let _ = lock(&self.0).as_mut().map(|output| output.keep_alive(Phase::Mapping));
                }
            });
            let reached = reach();
            drop(over_in);
            reached
        })
    }

    /// It waits no longer.
    fn end(&self) -> Result<Output> {
        lock(&self.0).take().ok_or_else(|| Error::closed("the host with DEST"))
    }
}

/// A shell knows nothing of frames.
fn needs_agent(far_side: FarSide, host: &Host) -> Result<()> {
    match far_side {
        FarSide::Agent => Ok(()),
        FarSide::Shell => Err(names::needs_agent("a transfer between two hosts", host)),
    }
}

/// What one says must mean the same to the other, and to who stands between.
fn speaks_as_here(host: &Input) -> Result<()> {
    if host.version() == VERSION {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "holesync on {} speaks version {} of the protocol, and a transfer between two hosts wants version {VERSION} of both: \
         renew it there, or bring this one along with --agent=push",
        host.peer(),
        host.version()
    )))
}

/// Passes on what both say until both are through; what both did.
fn between(watch: &Watch, sender: (Input, Output), receiver: (Input, Output)) -> Result<Stats> {
    let (from_sender, to_sender) = sender;
    let (from_receiver, to_receiver) = receiver;
    // Who is given up says so in its turn: why is what was found first, or what that host said.
    let reason = Mutex::new(None);
    let pass = |speaker, input, output| {
        let passed = pass_all(watch, speaker, input, output);
        passed.map_err(|error| {
            let mut reason = lock(&reason);
            let says_more = matches!(error, Error::Remote { .. } | Error::Protocol { .. });
            if reason.is_none()
                || says_more && matches!(*reason, Some(Error::Closed { .. } | Error::Link { .. }))
            {
                *reason = Some(error);
            }
        })
    };
    let (sent, received) = std::thread::scope(|scope| {
        let sent = scope.spawn(|| pass(Speaker::Sender, from_sender, to_receiver));
        let received = pass(Speaker::Receiver, from_receiver, to_sender);
        (sent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), received)
    });
    match (sent, received, lock(&reason).take()) {
        (Ok(mut stats), Ok(received), _) => {
            stats.add_receiver(&received);
            Ok(stats)
        }
        (_, _, error) => Err(error.unwrap_or_else(|| Error::closed("both hosts"))),
    }
}

/// Passes on what one of them says, to its end.
fn pass_all(watch: &Watch, speaker: Speaker, mut input: Input, mut output: Output) -> Result<Stats> {
    let mut pass = || {
        let (mut believed, mut room) = (0u64, None);
        loop {
            let passing: Passing = input.pass(room.take())?;
            let mut end = None;
            match &passing.says {
                Says::Message(message) => match &**message {
                    Message::End(stats) => end = Some(stats.clone()),
                    Message::Believed { bytes } => believed = *bytes,
                    message => watch.hear(speaker, message).map_err(|what| input.bad(what))?,
                },
                Says::Data(bytes) => watch.data(*bytes),
                Says::Other => {}
            }
            output.pass(&passing)?;
            if let Some(stats) = end {
                output.flush()?;
                let mut stats = Stats { believed_bytes: believed, ..*stats };
                stats.count_told(&lock(&watch.seen).told[speaker as usize]);
                return Ok(stats);
            }
            // What comes next may wait for this.
            if !input.has_arrived() {
                output.flush()?;
            }
            room = Some(passing);
        }
    };
    pass().inspect_err(|error| output.give_up_for(error))
}

/// A file, or another entry, that has no result yet.
struct Announced {
    entry: Entry,
    /// Bytes of its data that came.
    sent: u64,
}

/// What is known of a run by who stands between.
struct Watch<'a> {
    reporter: &'a dyn Reporter,
    sender: String,
    receiver: String,
    /// Entries that are no files have results, too.
    tells_others: bool,
    seen: Mutex<Seen>,
}

struct Seen {
    /// What may come.
    target: Target,
    entries: HashMap<u64, Announced>,
    /// The file that is being described.
    current: Option<u64>,
    /// Failures that the sender, and the receiver, told of.
    told: [Stats; 2],
}

/// What breaks a rule.
type Heard = std::result::Result<(), &'static str>;

impl<'a> Watch<'a> {
    fn new(
        reporter: &'a dyn Reporter,
        (sender, receiver): (&Host, &Host),
        target: Target,
        tells_others: bool,
    ) -> Watch<'a> {
        let seen =
            Mutex::new(Seen { target, entries: HashMap::new(), current: None, told: Default::default() });
        Watch { reporter, sender: sender.to_string(), receiver: receiver.to_string(), tells_others, seen }
    }

    fn peer(&self, speaker: Speaker) -> &str {
        if speaker == Speaker::Sender { &self.sender } else { &self.receiver }
    }

    /// Data of the current file comes.
    fn data(&self, bytes: u64) {
        let mut seen = lock(&self.seen);
        if let Some(current) = seen.current
            && let Some(file) = seen.entries.get_mut(&current)
        {
            file.sent += bytes;
        }
        drop(seen);
        self.reporter.event(Event::Phase(Phase::Sending));
        self.reporter.event(Event::Done(Phase::Sending, bytes));
    }

    fn hear(&self, speaker: Speaker, message: &Message) -> Heard {
        match message {
            Message::Busy(phase) => self.reporter.event(Event::Phase(*phase)),
            Message::Warning(_) | Message::WarningAbout { .. } => {
                let warning = message.clone().into_warning(self.peer(speaker));
                warning.iter().for_each(|warning| self.reporter.event(Event::Warning(warning)));
            }
            _ if speaker == Speaker::Sender => return self.hear_sender(message),
            _ => self.hear_receiver(message),
        }
        Ok(())
    }

    fn hear_sender(&self, message: &Message) -> Heard {
        let mut seen = lock(&self.seen);
        match message {
            Message::Entry(entry) => {
                seen.check(entry)?;
                let allocated =
                    if let Kind::File { allocated, .. } = entry.kind { Some(allocated) } else { None };
                if allocated.is_some() || self.tells_others && entry.kind != Kind::Missing {
                    let entry =
                        Entry { metadata: entry.metadata.clone().without_extended(), ..entry.clone() };
                    seen.entries.insert(entry.id, Announced { entry, sent: 0 });
                }
                // Some may have a result that is on its way here.
                if seen.entries.len() > 2 * CREDIT {
                    return Err("more entries than it has credit for");
                }
                drop(seen);
                allocated.into_iter().for_each(|bytes| self.reporter.event(Event::Found(bytes)));
            }
            Message::Contents { directory, is_whole: true, .. } if !seen.target.is_asked_whole(directory) => {
                return Err("it tells of what it was not asked for");
            }
            Message::Content { id } => seen.current = Some(*id),
            Message::Finish { .. } => seen.current = None,
            Message::Abandon => drop(seen.current.take().and_then(|id| seen.entries.remove(&id))),
            Message::SourceFailed(failure) => {
                drop(seen);
                self.failed(Speaker::Sender, failure);
            }
            _ => {}
        }
        Ok(())
    }

    fn hear_receiver(&self, message: &Message) {
        match message {
            Message::Unchanged { id, changes } => self.done(*id, None, *changes),
            Message::Done { id, changed, changes } => self.done(*id, *changed, *changes),
            Message::Made { id, changes, .. } => {
                if let Some(made) = self.settled(*id) {
                    self.reporter.event(Event::Made(made.entry.item(), *changes));
                }
            }
            Message::Failed { id, failure } => {
                self.settled(*id);
                self.failed(Speaker::Receiver, failure);
            }
            Message::Again { id } | Message::Lacking { id } => drop(self.settled(*id)),
            Message::Unset(failure) => {
                lock(&self.seen).told[Speaker::Receiver as usize].count_unset(failure.code);
                self.reporter.event(Event::Unset(&failure.clone().on(&self.receiver)));
            }
            Message::Stays(failure) => self.failed(Speaker::Receiver, failure),
            Message::Removed { paths } => {
                paths.iter().for_each(|path| self.reporter.event(Event::Removed(path)));
            }
            _ => {}
        }
    }

    fn failed(&self, speaker: Speaker, failure: &Failure) {
        lock(&self.seen).told[speaker as usize].count_failure(failure.code);
        self.reporter.event(Event::Failed(&failure.clone().on(self.peer(speaker))));
    }

    /// An entry has its result.
    fn settled(&self, id: u64) -> Option<Announced> {
        lock(&self.seen).entries.remove(&id)
    }

    fn done(&self, id: u64, changed: Option<u64>, changes: Changes) {
        let Some(Announced { entry, sent }) = self.settled(id) else { return };
        if let Kind::File { allocated, .. } = entry.kind {
            self.reporter.event(Event::Done(Phase::Mapping, allocated.saturating_sub(sent)));
        }
        let outcome = changed.map_or(Outcome::Unchanged, |_| Outcome::Sent(sent));
        self.reporter.event(Event::File(entry.item(), outcome, changes));
    }
}

impl Seen {
    /// An entry, and what it is another name of, were asked for.
    fn check(&mut self, entry: &Entry) -> Heard {
        let is_linked = match &entry.kind {
            Kind::HardLink(first) => self.target.is_asked(first, &entry.kind),
            _ => true,
        };
        let is_asked = self.target.is_asked(&entry.path, &entry.kind);
        match is_linked && is_asked && self.target.has_asked_attributes(&entry.metadata) {
            true => Ok(()),
            false => Err("it sends what it was not asked for"),
        }
    }
}
