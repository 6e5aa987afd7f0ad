//! What is known of a run between two hosts by who stands between: from what they say to each other, for
//! the user, and so that nothing comes that was not asked for.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::error::{Failure, lock};
use crate::location::Host;
use crate::protocol::{CREDIT, Entry, Message, Speaker};
use crate::receiver::Target;
use crate::report::{Changes, Event, Outcome, Phase, Reporter, Stats};
use crate::source::Kind;

/// A file, or another entry, that has no result yet.
struct Announced {
    entry: Entry,
    /// Bytes of its data that came.
    sent: u64,
}

/// See the module.
pub struct Watch<'a> {
    reporter: &'a dyn Reporter,
    sender: String,
    receiver: String,
    /// Entries that are no files have results, too.
    tells_others: bool,
    seen: Mutex<Seen>,
}

/// What one of them tells at its end.
#[derive(Debug, Default)]
pub struct Told {
    ended: Option<Stats>,
    believed: u64,
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
pub type Heard = std::result::Result<(), &'static str>;

impl<'a> Watch<'a> {
    /// `tells_others`: entries that are no files have results, too.
    pub fn new(
        reporter: &'a dyn Reporter,
        (sender, receiver): (&Host, &Host),
        target: Target,
        tells_others: bool,
    ) -> Watch<'a> {
        let seen =
            Mutex::new(Seen { target, entries: HashMap::new(), current: None, told: Default::default() });
        Watch { reporter, sender: sender.to_string(), receiver: receiver.to_string(), tells_others, seen }
    }

    /// A host that speaks, for people.
    pub fn peer(&self, speaker: Speaker) -> &str {
        if speaker == Speaker::Sender { &self.sender } else { &self.receiver }
    }

    /// Data of the current file comes.
    pub fn data(&self, bytes: u64) {
        let mut seen = lock(&self.seen);
        if let Some(current) = seen.current
            && let Some(file) = seen.entries.get_mut(&current)
        {
            file.sent = file.sent.saturating_add(bytes);
        }
        drop(seen);
        self.reporter.event(Event::Phase(Phase::Sending));
        self.reporter.event(Event::Done(Phase::Sending, bytes));
    }

    /// Takes notice of a message. `told`: what its speaker tells at its end.
    ///
    /// # Errors
    ///
    /// The rule that it breaks.
    pub fn hear(&self, speaker: Speaker, message: &Message, told: &mut Told) -> Heard {
        match message {
            Message::End(stats) => told.ended = Some((**stats).clone()),
            Message::Believed { bytes } => told.believed = *bytes,
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
                    seen.entries.insert(entry.id, Announced { entry: entry.without_extended(), sent: 0 });
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

    /// What a host did, once it has told.
    pub fn totals(&self, speaker: Speaker, told: &Told) -> Option<Stats> {
        let mut stats = Stats { believed_bytes: told.believed, ..told.ended.clone()? };
        stats.count_told(&lock(&self.seen).told[speaker as usize]);
        Some(stats)
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
