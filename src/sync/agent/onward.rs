//! What an agent is asked before it gets the request that matters: whether it is where another one
//! is, and whether it can send to another host by itself.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::confinement::{Confinement, NamedPath};
use crate::error::{Error, Failure, Result, code};
use crate::options::Options;
use crate::protocol::{
    Frame, FrameReader, FrameWriter, Message, Onward, OnwardRequest, Request, RunId, Silence, Speaker, Tap,
    shortened,
};
use crate::remote::{Agent, Cipher, FarSide, Input, Output, RemoteOptions};
use crate::report::{Phase, Silent, Stats};
use crate::sender::{self, Side};
use crate::sync::agent::{chosen, witness};
use crate::sync::between::speaks_as_here;
use crate::sync::retry::{Tries, has_died};
use crate::sync::{Completed, Initiator, Shared, names};

/// Seconds for which a host that is being reached may be silent: there is another way to it.
const PATIENCE: u32 = 10;
/// What passed and was not told yet.
const ROOM: usize = 64;

/// What an agent is to do, and in which run.
type Asked = (Options, Request, Option<RunId>);

/// Who an agent is to others on its machine.
pub struct Me<'a> {
    /// What it may do.
    pub confinement: &'a Confinement,
    /// Of its process.
    pub umask: u32,
}

impl Me<'_> {
    fn bears_witness_of(&self, token: &RunId) -> io::Result<()> {
        if self.confinement.is_any() { Ok(()) } else { witness::bear(token, self.umask) }
    }

    fn is_where(&self, token: &RunId) -> bool {
        !self.confinement.is_any() && witness::is_here(token, self.umask)
    }
}

/// Reads the request that matters, and answers what is asked before it. `None`: there is none, and
/// that is no fault. `map_cache`: the initiator wants maps that are kept to be used.
///
/// # Errors
///
/// When the connection fails, or the initiator breaks a rule; those of sending to another host.
pub fn await_request<R: Read, W: Write + Send>(
    input: &mut FrameReader<R>,
    output: &mut FrameWriter<W>,
    silence: &Silence,
    map_cache: bool,
    me: &Me,
) -> Result<Option<Asked>> {
    let mut is_witness = false;
    loop {
        match input.read() {
            Ok(Frame::Message(Message::Start(options, request, run))) => {
                return Ok(Some((Options { map_cache, ..*options }, request, run)));
            }
            Ok(Frame::Message(Message::Onward(Onward::Witness(token)))) if !is_witness => {
                is_witness = true;
                // Where it cannot bear witness, nobody meets it.
                let _ = me.bears_witness_of(&token);
            }
            Ok(Frame::Message(Message::Busy(_))) if is_witness => {}
            Err(Error::Closed { .. }) if is_witness => return Ok(None),
            Ok(Frame::Message(Message::Onward(Onward::Meet(token)))) => {
                output.message(&Message::Onward(Onward::Met(me.is_where(&token))))?;
                output.flush()?;
            }
            Ok(Frame::Message(Message::Onward(Onward::Send(request)))) => {
                let mut request = *request;
                request.options.map_cache = map_cache;
                silence.limit(request.options.silence());
                let listed = if request.listed { Some(names::receive(input)?) } else { None };
                if send(request, listed, me.confinement, output)? {
                    return Ok(None);
                }
            }
            Ok(_) => return Err(input.bad("something else than a request")),
            Err(error) => return Err(error),
        }
    }
}

/// Sends to another host, and tells of it. `false`: it does not reach that, and has told why.
fn send<W: Write + Send>(
    request: OnwardRequest,
    listed: Option<Vec<Vec<u8>>>,
    confinement: &Confinement,
    output: &mut FrameWriter<W>,
) -> Result<bool> {
    let apart = |output: &mut FrameWriter<W>, error: &Error| {
        output.message(&Message::Onward(Onward::Apart(shortened(error.to_string()))))?;
        output.flush().map(|()| false)
    };
    let options = &request.options;
    let allowed =
        confinement.allow(options).and_then(|()| confinement.unconfined(request.destination.clone()));
    let sources = allowed.and_then(|_| chosen(request.sources.clone(), listed, options, confinement));
    let sources = match sources {
        Ok(sources) => sources,
        Err(error) => return apart(output, &error),
    };
    let (told_in, told) = sync_channel(ROOM);
    let life_sign = options.life_sign();
    let way = Way { request, told: told_in };
    let (sent, has_joined) = std::thread::scope(|scope| {
        let output = &mut *output;
        // Where it fails, nobody listens any more, and whoever tells something ends.
        let telling = scope.spawn(move || tell_all(&told, output, life_sign));
        let sent = way.send(&sources);
        // Whoever else may still tell something has nothing to say any more. It may have gone itself.
        let _ = way.told.send(match &sent {
            Ok(Completed { wire: (sent, received), .. }) => Onward::Over { sent: *sent, received: *received },
            Err(error) => Onward::Apart(shortened(error.to_string())),
        });
        (sent, telling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    match (sent, has_joined?) {
        (Ok(_), _) => Ok(true),
        (Err(_), false) => Ok(false),
        (Err(error), true) => {
            let failure = error.to_failure();
            // What died may be made again.
            let is_lost = has_died(&error) && failure.code != code::TIMEOUT;
            let code = if is_lost { code::LINK } else { failure.code };
            output.give_up_for(Failure { code, ..failure });
            Err(Error::Reported { code })
        }
    }
}

/// Tells the initiator what passes, until that was all, or why the two hosts are apart. Returns whether they were joined:
/// then why that ended is left to the caller.
fn tell_all<W: Write>(
    told: &Receiver<Onward>,
    output: &mut FrameWriter<W>,
    life_sign: Duration,
) -> Result<bool> {
    let mut has_joined = false;
    loop {
        let next = match told.try_recv() {
            Ok(next) => Ok(next),
            Err(_) => {
                output.flush()?;
                told.recv_timeout(life_sign / 2)
            }
        };
        match next {
            Ok(Onward::Apart(_)) if has_joined => return Ok(true),
            Ok(passed) => {
                has_joined |= passed == Onward::Joined;
                let is_last = matches!(passed, Onward::Over { .. } | Onward::Apart(_));
                output.message(&Message::Onward(passed))?;
                if is_last {
                    return output.flush().map(|()| has_joined);
                }
            }
            Err(RecvTimeoutError::Timeout) => output.keep_alive(Phase::Waiting)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(has_joined),
        }
    }
}

/// The way to the other host.
struct Way {
    request: OnwardRequest,
    told: SyncSender<Onward>,
}

impl Way {
    fn send(&self, sources: &[NamedPath]) -> Result<Completed<Stats>> {
        let OnwardRequest { to, options, remote_path, sudo, cipher_of_ssh, .. } = &self.request;
        let remote = RemoteOptions {
            agent: if remote_path.is_some() { Agent::Require } else { Agent::Auto },
            remote_path: remote_path.clone(),
            sudo: *sudo,
            contimeout: PATIENCE,
            asks_nothing: true,
            is_onward: true,
            no_map_cache: !options.map_cache,
            cipher: if *cipher_of_ssh { Cipher::Ssh } else { Cipher::Auto },
            // Nothing is kept of what is found out for somebody else.
            dry_run: true,
            ..RemoteOptions::default()
        };
        let initiator = Initiator {
            options,
            remote: &remote,
            reporter: &Silent,
            tries: &Tries::new(Some(0)),
            shared: &Shared::alone(options),
            saved: None,
        };
        let patience = Some(Duration::from_secs(PATIENCE.into()));
        initiator.connect(to, patience, |far_side, input, output| {
            if far_side == FarSide::Shell {
                return Err(Error::Start(format!("there is no holesync on {to}")));
            }
            self.join(initiator, input, output, sources)
        })
    }

    /// Sends to who answered, if that is who is meant.
    fn join(
        &self,
        initiator: Initiator,
        mut input: Input,
        mut output: Output,
        sources: &[NamedPath],
    ) -> Result<Stats> {
        speaks_as_here(&input)?;
        let OnwardRequest { to, run, token, destination, directory, .. } = &self.request;
        output.message(&Message::Onward(Onward::Meet(*token)))?;
        output.flush()?;
        match input.read()? {
            Frame::Message(Message::Onward(Onward::Met(true))) => {}
            Frame::Message(Message::Onward(Onward::Met(false))) => {
                return Err(Error::Start(format!(
                    "{to} is another machine there, or another user or place on it"
                )));
            }
            _ => return Err(input.bad("something else than whether it is the one that is meant")),
        }
        input.limit_silence(self.request.options.silence());
        let receive = Request::Receive { destination: destination.clone(), directory: *directory };
        initiator.request_in(*run, &mut output, receive)?;
        let gone = |_| Error::closed("the initiator");
        self.told.send(Onward::Joined).map_err(gone)?;
        let input = input.tapped(Tap::new(Speaker::Receiver, self.told.clone()));
        let output = output.tapped(Tap::new(Speaker::Sender, self.told.clone()));
        sender::run(initiator.connection(input, output), sources, None, Side::Responder)
    }
}
