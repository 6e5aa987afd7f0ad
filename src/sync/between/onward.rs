//! The host with the sources sends to the other one by itself.
//!
//! 1. The receiver that was reached from here bears witness of a token.
//! 2. The host with the sources is told of it, and reaches the other by its own ssh, which asks nobody
//!    anything and knows the key of that host. The agent that it finds there must be where the witness
//!    is: from there the name may be that of another machine, or lead to another user's login.
//! 3. What the two say to each other comes here as well, without the data. Whatever goes wrong before
//!    leaves the way through here.
//!
//! Not guaranteed: that a host tells the truth of what it sends by itself.

use std::io::Read;

use crate::error::{Error, Result};
use crate::location::Host;
use crate::protocol::{
    Frame, FrameReader, MAX_CONTROL, MAX_DATA, Message, Onward, OnwardRequest, RunId, Said, Speaker,
};
use crate::remote::{Addresses, Agent, Cipher, Input, Output, RemoteOptions};
use crate::report::{Event, Stats};
use crate::sync::between::Transfer;
use crate::sync::between::watch::{Told, Watch};
use crate::sync::origin::names;

/// See the module.
pub struct OnwardWay {
    token: RunId,
}

impl OnwardWay {
    /// One that may be tried. `None`: the user, or the command that reaches hosts from here, has it
    /// otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when an agent would be forwarded for nothing, or by another command.
    pub fn between(remote: &RemoteOptions, from: &Host, to: &Host) -> Result<Option<OnwardWay>> {
        if remote.rsh.is_some() {
            let what = "--forward-agent is for ssh without --rsh and RSYNC_RSH";
            return if remote.forward_agent { Err(Error::Usage(what.into())) } else { Ok(None) };
        }
        // What is brought along from here, and addresses that are chosen here, are not known there.
        let is_usual = remote.agent != Agent::Push && remote.addresses == Addresses::Any && from != to;
        if remote.forward_agent && !is_usual {
            let what = "--forward-agent is of no use where all goes through here, as with --agent=push, -4 and -6, and with \
                        both paths on one host: leave it out";
            return Err(Error::Usage(what.into()));
        }
        let mut token = RunId::default();
        let may_be_tried = is_usual && !remote.relay && getrandom::fill(&mut token).is_ok();
        Ok(may_be_tried.then_some(OnwardWay { token }))
    }

    /// Has the receiver bear witness.
    pub fn have_witness(&self, output: &mut Output) -> Result<()> {
        output.message(&Message::Onward(Onward::Witness(self.token)))?;
        output.flush()
    }

    /// Has the host with the sources send. `None`: it does not reach the other one. `joined` is called
    /// when it does.
    pub fn send(
        &self,
        transfer: &Transfer,
        input: &mut Input,
        output: &mut Output,
        joined: impl FnOnce(),
    ) -> Result<Option<Stats>> {
        let Transfer { initiator, from, to, .. } = *transfer;
        let (host, remote) = (from.host, initiator.remote);
        let request = OnwardRequest {
            options: initiator.travelling_options()?,
            run: initiator.tries.run(),
            to: to.clone(),
            remote_path: remote.remote_path.clone(),
            sudo: remote.sudo,
            cipher_of_ssh: remote.cipher == Cipher::Ssh,
            token: self.token,
            destination: transfer.destination.clone(),
            directory: transfer.directory,
            sources: from.paths.iter().cloned().map(Into::into).collect(),
            listed: from.listed.is_some(),
        };
        let request = Message::Onward(Onward::Send(Box::new(request)));
        // What fits a request, and the options, may be too much for both in one.
        if postcard::to_stdvec(&request).is_ok_and(|encoded| encoded.len() > MAX_CONTROL) {
            return Ok(None);
        }
        output.message(&request)?;
        if let Some(names) = from.listed {
            names::send(output, names.clone())?;
        }
        output.flush()?;
        let why = loop {
            match input.read()? {
                Frame::Message(Message::Onward(Onward::Joined)) => break None,
                Frame::Message(Message::Onward(Onward::Apart(why))) => break Some(why),
                Frame::Message(Message::Busy(_)) => {}
                _ => return Err(input.bad("something else than whether it reaches a host")),
            }
        };
        let note = match &why {
            None => format!("{host} sends to {to} by itself"),
            Some(why) => format!("{host} does not reach {to} by itself, so that it goes through here: {why}"),
        };
        initiator.reporter.event(Event::Note(&note));
        if why.is_some() {
            return Ok(None);
        }
        joined();
        // A way that dies may be no good: the next try goes through here.
        initiator.tries.goes_onward();
        let (totals, wire) = hear_all(&transfer.watch, input)?;
        initiator.tries.wire(wire.0, wire.1);
        Ok(Some(totals))
    }
}

/// What both did, and bytes that went from the sender to the receiver, and back.
type Totals = (Stats, (u64, u64));

/// Takes notice of what passes, until that was all.
fn hear_all<R: Read>(watch: &Watch, input: &mut FrameReader<R>) -> Result<Totals> {
    let (mut of_sender, mut of_receiver) = (Told::default(), Told::default());
    let wire = loop {
        match input.read()? {
            Frame::Message(Message::Onward(Onward::Heard(speaker, said))) => match said {
                Said::Data(bytes) if bytes > MAX_DATA as u64 => {
                    return Err(input.bad("more data than a frame has"));
                }
                Said::Data(bytes) => watch.data(bytes),
                Said::Message(encoded) => {
                    let message = input.heard(&encoded)?;
                    let told = if speaker == Speaker::Sender { &mut of_sender } else { &mut of_receiver };
                    watch.hear(speaker, &message, told).map_err(|what| input.bad(what))?;
                }
            },
            Frame::Message(Message::Onward(Onward::Over { sent, received })) => break (sent, received),
            Frame::Message(Message::Busy(_)) => {}
            _ => return Err(input.bad("something else than what passes")),
        }
    };
    let totals = (watch.totals(Speaker::Sender, &of_sender), watch.totals(Speaker::Receiver, &of_receiver));
    match totals {
        (Some(mut totals), Some(received)) => {
            totals.add_receiver(&received);
            Ok((totals, wire))
        }
        _ => Err(input.bad("an end before that of both hosts")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::confinement::NamedPath;
    use crate::error::{Failure, lock};
    use crate::options::Options;
    use crate::protocol::{Entry, FrameWriter};
    use crate::receiver::Target;
    use crate::report::{Reporter, Summary};
    use crate::source::{Asked, Kind, Metadata};

    /// Keeps what it is told, in words.
    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl Reporter for Kept {
        fn event(&self, event: Event) {
            lock(&self.0).push(format!("{event:?}"));
        }
        fn summary(&self, _: &Summary) {}
    }

    fn heard(speaker: Speaker, message: &Message) -> Onward {
        Onward::Heard(speaker, Said::Message(postcard::to_stdvec(message).unwrap()))
    }

    fn entry(path: &[u8]) -> Message {
        let kind = Kind::File { length: 9, allocated: 9, retry: false, whole: false };
        Message::Entry(Entry { id: 0, path: path.to_vec(), kind, metadata: Metadata::default() })
    }

    fn end(files: u64) -> Message {
        Message::End(Box::new(Stats { files_total: files, files_failed: files, ..Stats::default() }))
    }

    /// What comes of a host that says this, and what the user is told.
    fn told(said: &[Onward]) -> (Result<Totals>, String) {
        let mut bytes = Vec::new();
        let mut output = FrameWriter::new(&mut bytes, "here");
        said.iter().for_each(|said| output.message(&Message::Onward(said.clone())).unwrap());
        output.flush().unwrap();
        drop(output);
        let options = Options::default();
        let asked = Asked::of(&[NamedPath::here("/images/img")], &options);
        let target = Target { asked: Some(asked), ..Target::new(NamedPath::here("/there"), true, 0o022) };
        let [one, two] = ["one", "two"].map(|name| Host { user: None, name: name.into(), port: None });
        let kept = Kept::default();
        let watch = Watch::new(&kept, (&one, &two), target, false);
        let result = hear_all(&watch, &mut FrameReader::new(bytes.as_slice(), "one"));
        let events = lock(&kept.0).join(" ");
        (result, events)
    }

    #[test]
    fn what_a_host_tells_is_believed_as_far_as_it_was_asked_for() {
        use Speaker::*;
        let over = Onward::Over { sent: 7, received: 8 };
        let all = [
            heard(Sender, &entry(b"img")),
            heard(Sender, &Message::Content { id: 0 }),
            Onward::Heard(Sender, Said::Data(9)),
            heard(Receiver, &Message::Failed { id: 0, failure: Failure::new(23, "full") }),
            heard(Sender, &end(1)),
            heard(Receiver, &end(0)),
            over.clone(),
        ];
        let (result, events) = told(&all);
        let (stats, wire) = result.unwrap();
        // A failure that was told counts, whatever the totals say.
        assert_eq!((stats.files_total, stats.files_failed, wire), (1, 2, (7, 8)));
        assert!(events.contains("full") && events.contains("two"), "{events}");
        let garbage = Onward::Heard(Sender, Said::Message(vec![200; 9]));
        let fatal = heard(Receiver, &Message::Fatal(Failure::new(11, "no room")));
        for (what, said) in [
            ("no end of the receiver", vec![heard(Sender, &end(0)), over.clone()]),
            ("no end at all", vec![over.clone()]),
            ("what was not asked for", vec![heard(Sender, &entry(b"passwd"))]),
            ("no message", vec![garbage]),
            ("it breaks off", vec![heard(Sender, &end(0))]),
            ("an error", vec![fatal]),
            ("too much data", vec![Onward::Heard(Sender, Said::Data(u64::MAX))]),
            ("an answer to nothing", vec![Onward::Met(true)]),
        ] {
            assert!(told(&said).0.is_err(), "{what}");
        }
        // One within another is heard, and means nothing.
        let within = heard(Sender, &Message::Onward(over.clone()));
        assert!(told(&[within, heard(Sender, &end(0)), heard(Receiver, &end(0)), over]).0.is_ok());
    }
}
