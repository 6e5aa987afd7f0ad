//! From a host to another one: an agent at each.
//!
//! 1. The receiver is reached, and kept waiting until the sender is.
//! 2. Where the host with the sources reaches the other one [by itself](onward), it sends there and
//!    tells of it.
//! 3. Otherwise frames go from one to the other through here as they come, in a thread for each
//!    direction, until both have said that that was all. Neither knows of the other then, so neither
//!    can reach it, or need log in there.
//! 4. What they say is looked at: for the user, and so that nothing comes that was not asked for.
//!    The receiver does not know what that is.
//!
//! Guaranteed: the receiver checks all that it would check otherwise; who fails ends the other.
//! Memory: a frame for each direction, and what the reporter needs of entries that have no result yet.

mod onward;
mod watch;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::confinement::{NamedPath, RequestPath};
use crate::error::{Error, Result, lock};
use crate::location::Host;
use crate::protocol::{Passing, Request, Says, Speaker, VERSION};
use crate::receiver::Target;
use crate::remote::{FarSide, Input, Output, RemoteOptions};
use crate::report::{Phase, Stats};
use crate::source::{self, Asked};
use crate::sync::retry::Tries;
use crate::sync::{Completed, Initiator, names};
use onward::OnwardWay;
use watch::{Told, Watch};

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
        let target = self.target(path, from.listed.is_some() || from.paths.len() > 1)?;
        let paths = from.paths.iter().map(|path| NamedPath::here(OsStr::from_bytes(path))).collect();
        let asked = Asked::of(&source::choose(paths, from.listed.cloned(), self.options)?, self.options);
        let (destination, directory) = (RequestPath::from(path), target.directory);
        let target = Target { asked: Some(asked), ..target };
        let watch = Watch::new(self.reporter, (from.host, to), target, self.options.tells_others());
        let onward = OnwardWay::between(self.remote, from.host, to)?.filter(|_| !self.tries.went_onward());
        let done = Mutex::default();
        Transfer { initiator: self, from, to, destination, directory, watch, onward, done }.run()
    }
}

/// A run between two hosts.
struct Transfer<'a> {
    initiator: Initiator<'a>,
    from: &'a FarSources<'a>,
    to: &'a Host,
    destination: RequestPath,
    /// It must be one.
    directory: bool,
    watch: Watch<'a>,
    /// How the host with the sources may reach the other by itself.
    onward: Option<OnwardWay>,
    /// What was done, whatever becomes of the connection to the receiver.
    done: Mutex<Option<Completed<Stats>>>,
}

impl Transfer<'_> {
    /// Reaches the receiver, and then the sender.
    fn run(&self) -> Result<Completed<Stats>> {
        let Initiator { options, remote, .. } = self.initiator;
        // What counts as one that has worked is one to both of them; and nothing is forwarded here.
        let tries = &Tries::new(Some(0));
        let remote = &RemoteOptions { forward_agent: false, ..remote.clone() };
        let first = Initiator { tries, remote, ..self.initiator };
        let completed = first.connect(self.to, options.silence(), |far_side, input, mut output| {
            needs_agent(far_side, self.to)?;
            speaks_as_here(&input)?;
            match &self.onward {
                Some(onward) => onward.have_witness(&mut output)?,
                None => self.ask_receiver(&mut output)?,
            }
            self.initiator.tries.connecting(!tries.asks());
            let waiting = Waiting::new(output);
            waiting.during(options.life_sign(), || self.reach_sender((input, &waiting)))
        });
        match (lock(&self.done).take(), completed) {
            (Some(done), _) => Ok(done),
            (None, Ok(Completed { value: Completed { value, wire: (sent, received), .. }, route, wire })) => {
                let wire = (wire.0.saturating_add(sent), wire.1.saturating_add(received));
                Ok(Completed { value, route, wire })
            }
            (None, Err(error)) => Err(error),
        }
    }

    fn ask_receiver(&self, output: &mut Output) -> Result<()> {
        let receive = Request::Receive { destination: self.destination.clone(), directory: self.directory };
        self.initiator.request(output, receive)
    }

    /// Reaches the sender, and has it send: by itself, if it can, else through here.
    fn reach_sender(&self, receiver: (Input, &Waiting)) -> Result<Completed<Stats>> {
        let FarSources { host, paths, listed } = self.from;
        let (from_receiver, waiting) = receiver;
        let mut is_onward = false;
        let silence = self.initiator.options.silence();
        let completed = self.initiator.connect(host, silence, |far_side, mut input, mut output| {
            needs_agent(far_side, host)?;
            speaks_as_here(&input)?;
            if let Some(onward) = &self.onward {
                // The one that was a witness is of no use any more, and ends.
                let joined = || drop(waiting.end());
                if let Some(totals) = onward.send(self, &mut input, &mut output, joined)? {
                    is_onward = true;
                    return Ok(totals);
                }
            }
            let sources = paths.iter().cloned().map(RequestPath::from).collect();
            let send = Request::Send { sources, listed: listed.is_some() };
            self.initiator.request_in(self.initiator.tries.second_run(), &mut output, send)?;
            if let Some(names) = listed {
                names::send(&mut output, (*names).clone())?;
            }
            let mut to_receiver = waiting.end()?;
            if self.onward.is_some() {
                self.ask_receiver(&mut to_receiver)?;
            }
            between(&self.watch, (input, output), (from_receiver, to_receiver))
        })?;
        if is_onward {
            *lock(&self.done) = Some(completed.clone());
        }
        Ok(completed)
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
pub(super) fn speaks_as_here(host: &Input) -> Result<()> {
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
    let pass = |speaker, mut input, mut output| {
        pass_all(watch, speaker, &mut input, &mut output).map_err(|error| {
            let failure = error.to_failure();
            let says_more = matches!(error, Error::Remote { .. } | Error::Protocol { .. });
            let mut first = lock(&reason);
            let says_less = matches!(*first, Some(Error::Closed { .. } | Error::Link { .. }));
            if first.is_none() || says_more && says_less {
                *first = Some(error);
            }
            drop(first);
            // That ends the other one, which is no reason any more.
            output.give_up_for(failure);
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
fn pass_all(watch: &Watch, speaker: Speaker, input: &mut Input, output: &mut Output) -> Result<Stats> {
    let (mut told, mut room) = (Told::default(), None);
    loop {
        let passing: Passing = input.pass(room.take())?;
        match &passing.says {
            Says::Message(message) => {
                watch.hear(speaker, message, &mut told).map_err(|what| input.bad(what))?;
            }
            Says::Data(bytes) => watch.data(*bytes),
            Says::Other => {}
        }
        output.pass(&passing)?;
        if let Some(stats) = watch.totals(speaker, &told) {
            output.flush()?;
            return Ok(stats);
        }
        // What comes next may wait for this.
        if !input.has_arrived() {
            output.flush()?;
        }
        room = Some(passing);
    }
}
