//! What the receiver has said and the merging thread has not taken yet: for each file
//! that it asked for a queue of its own, and one for everything else. All of them are
//! bounded; a receiver that says more than it may breaks a rule. Pure.

use std::collections::{HashMap, VecDeque};

use crate::error::Failure;
use crate::hashmap::Hash;
use crate::hashmap::plan::Run;
use crate::protocol::{
    CREDIT, Credit, Frame, LeafAnswer, MAX_AHEAD, MAX_NAMES, MAX_PATH, MAX_TEXT, MAX_UNPATCHED, Message,
    RESERVED, size_of_names,
};
use crate::report::Changes;

/// Messages about no file that is being described: a unit of credit causes at most a
/// warning, attributes that are not set, a phase and a result.
const MAX_MESSAGES: usize = 4 * CREDIT;
/// Bytes of text in those: each entry causes at most a warning with a path, attributes that are not
/// set and a failure.
const MAX_TEXTS: usize = 4 * (CREDIT - RESERVED) * MAX_TEXT;

/// A file that the receiver asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    pub id: u64,
    /// The receiver's map comes.
    pub mapped: bool,
    /// It goes onto a block device.
    pub device: bool,
    /// In a dry run: the file would get another length.
    pub resized: bool,
    /// In a dry run: how it differs from what is wanted.
    pub changes: Changes,
}

impl Answered {
    /// In a run that is none.
    pub fn of(id: u64, mapped: bool, device: bool) -> Answered {
        Answered { id, mapped, device, resized: false, changes: Changes::default() }
    }
}

/// What the receiver says of a file that it asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum FileReply {
    Runs(Vec<Run>),
    MapEnd,
    /// In the place of all that.
    AsKnown(Hash),
    Leaves(LeafAnswer),
    Failed(Failure),
}

/// All that is waiting to be taken.
pub struct Replies {
    messages: VecDeque<Message>,
    /// Bytes of text in those.
    text: usize,
    /// Files that were asked for and are not taken up, in this order.
    answered: VecDeque<Answered>,
    files: HashMap<u64, FileReplies>,
    /// The file that was asked for last: what is said of one before it whose queue is
    /// gone comes too late.
    last: Option<u64>,
    /// Keys and runs of zeros that are known and not described.
    ahead: Credit,
    /// How much of maps may still come too late: each file may have as much under way as
    /// there is credit.
    late: usize,
    /// Where nothing is described, the receiver has to be granted what it may send more of: so
    /// much by now.
    granted: Option<usize>,
    /// Blocks whose leaves wait here.
    leaves: usize,
}

/// What may still come of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// More of its map.
    Map,
    /// Leaves only: its map has ended, or there is none.
    Mapped,
    /// Nothing that counts: it failed.
    Failed,
}

struct FileReplies {
    queue: VecDeque<FileReply>,
    expected: Expected,
    /// Some of its map came.
    is_begun: bool,
    /// Its part of all that is known and not described.
    ahead: usize,
    leaves: usize,
}

impl Replies {
    /// `grants`: nothing is described.
    pub fn new(grants: bool) -> Replies {
        Replies {
            granted: grants.then_some(0),
            messages: VecDeque::new(),
            text: 0,
            answered: VecDeque::new(),
            files: HashMap::new(),
            last: None,
            ahead: Credit::for_maps(),
            late: 0,
            leaves: 0,
        }
    }

    /// A file that may be described, and that was not asked for before.
    pub fn open(&mut self, answered: Answered) {
        self.last = Some(answered.id);
        self.late = self.late.saturating_add(2 * MAX_AHEAD);
        self.answered.push_back(answered);
        let expected = if answered.mapped { Expected::Map } else { Expected::Mapped };
        self.files.insert(answered.id, FileReplies::new(expected, None));
    }

    /// Takes in anything else. The error is the rule that is broken.
    pub fn take_in(&mut self, frame: Frame) -> Result<(), &'static str> {
        match frame {
            Frame::Message(message) if text_of(&message) > MAX_TEXT => Err("a text that is too long"),
            Frame::Message(Message::WarningAbout { path, .. }) if path.len() > MAX_PATH => {
                Err("a path that is too long")
            }
            Frame::Map(id, runs) => self.map(id, runs),
            Frame::Message(Message::MapEnd { id }) => self.map_end(id, FileReply::MapEnd),
            Frame::Message(Message::AsKnown { id, root }) => self.map_end(id, FileReply::AsKnown(root)),
            Frame::Leaves(answer) => {
                let Some(file) = self.files.get_mut(&answer.id) else { return Ok(()) };
                if file.expected == Expected::Failed {
                    return Ok(());
                }
                file.leaves += answer.blocks.len();
                self.leaves += answer.blocks.len();
                // An empty one says nothing, and would be kept all the same.
                if !answer.blocks.is_empty() {
                    file.queue.push_back(FileReply::Leaves(answer));
                }
                if self.leaves > MAX_UNPATCHED { Err("leaves that it was not asked for") } else { Ok(()) }
            }
            Frame::Message(Message::Failed { id, failure }) if self.files.contains_key(&id) => {
                self.forget(id);
                // It stays open, with nothing but its end in it.
                let end = FileReply::Failed(failure);
                self.files.insert(id, FileReplies::new(Expected::Failed, Some(end)));
                Ok(())
            }
            Frame::Message(message) => self.message(message),
            _ => Err("something that only senders say"),
        }
    }

    fn message(&mut self, message: Message) -> Result<(), &'static str> {
        use Message::{
            Again, Believed, Busy, Done, End, Failed, Granted, Lacking, Made, Prepared, Removed, Stays,
            Unchanged, Unset, Warning, WarningAbout,
        };
        match &message {
            Removed { paths } if size_of_names(paths) > MAX_NAMES => Err("too many names"),
            Removed { .. }
            | Stays(_)
            | Failed { .. }
            | Warning(_)
            | WarningAbout { .. }
            | Unset(_)
            | Unchanged { .. }
            | Made { .. }
            | Done { .. }
            | Again { .. }
            | Lacking { .. } => Ok(()),
            Believed { .. } | Busy(_) | Granted { .. } | Prepared { .. } | End(_) => Ok(()),
            _ => Err("a message out of turn"),
        }?;
        self.text += memory_of(&message);
        self.messages.push_back(message);
        Ok(())
    }

    fn map(&mut self, id: u64, runs: Vec<Run>) -> Result<(), &'static str> {
        let entries = runs.iter().map(Run::entries).sum::<usize>();
        let wanted = |file: &&mut FileReplies| file.expected != Expected::Failed;
        let Some(file) = self.files.get_mut(&id).filter(wanted) else {
            if self.granted.is_some() && self.ahead.take(entries) {
                self.free(entries);
            }
            return self.late(id, 1 + entries);
        };
        if file.expected != Expected::Map {
            return Err("a map out of turn");
        }
        if !self.ahead.take(entries) {
            return Err("a map that runs ahead");
        }
        file.is_begun = true;
        file.ahead += entries;
        if entries > 0 {
            file.queue.push_back(FileReply::Runs(runs));
        }
        Ok(())
    }

    /// `end`: how the map of a file ends, or that none of it comes.
    fn map_end(&mut self, id: u64, end: FileReply) -> Result<(), &'static str> {
        let Some(file) = self.files.get_mut(&id) else { return self.late(id, 1) };
        match file.expected {
            Expected::Map if file.is_begun && end != FileReply::MapEnd => Err("a map out of turn"),
            Expected::Map => {
                file.expected = Expected::Mapped;
                file.queue.push_back(end);
                Ok(())
            }
            Expected::Mapped => Err("a map out of turn"),
            Expected::Failed => Ok(()),
        }
    }

    /// So much less is ahead of what is described.
    fn free(&mut self, entries: usize) {
        match &mut self.granted {
            Some(granted) => *granted += self.ahead.settle(entries).unwrap_or(0),
            // What is freed was taken before.
            None => _ = self.ahead.give_back(entries),
        }
    }

    /// So much about a file whose queue is gone, or never was.
    fn late(&mut self, id: u64, weight: usize) -> Result<(), &'static str> {
        if self.last.is_none_or(|last| id > last) {
            return Err("a map out of turn");
        }
        // In a dry run the receiver is granted what is dropped here, and goes on to its end.
        if self.granted.is_none() {
            self.late = self.late.checked_sub(weight).ok_or("a map without an end")?;
        }
        Ok(())
    }

    /// Whether more messages wait than credit allows.
    pub fn is_overrun(&self) -> bool {
        self.messages.len() > MAX_MESSAGES || self.text > MAX_TEXTS
    }

    pub fn next_message(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.text -= memory_of(&message);
        Some(message)
    }

    pub fn next_answered(&mut self) -> Option<Answered> {
        self.answered.pop_front()
    }

    /// The next thing that was said of a file.
    pub fn next_of(&mut self, id: u64) -> Option<FileReply> {
        let file = self.files.get_mut(&id)?;
        let reply = file.queue.pop_front()?;
        if let FileReply::Leaves(answer) = &reply {
            file.leaves -= answer.blocks.len();
            self.leaves -= answer.blocks.len();
        }
        Some(reply)
    }

    /// So many keys and runs of zeros of a file are described, or in a dry run compared.
    pub fn described(&mut self, id: u64, entries: usize) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let entries = entries.min(file.ahead);
        file.ahead -= entries;
        self.free(entries);
    }

    /// Drops what is said of a file, now and later, but for a failure that nobody has taken:
    /// what is said of the file later is a message.
    pub fn forget(&mut self, id: u64) -> Option<Failure> {
        let mut file = self.files.remove(&id)?;
        self.leaves -= file.leaves;
        self.free(file.ahead);
        match file.queue.pop_back() {
            Some(FileReply::Failed(failure)) => Some(failure),
            _ => None,
        }
    }

    /// Units that the receiver is to be granted.
    pub fn next_grant(&mut self) -> Option<usize> {
        self.granted.as_mut().map(std::mem::take).filter(|&units| units > 0)
    }
}

impl FileReplies {
    fn new(expected: Expected, reply: Option<FileReply>) -> FileReplies {
        FileReplies { queue: reply.into_iter().collect(), expected, is_begun: false, ahead: 0, leaves: 0 }
    }
}

/// Memory that a message takes beside itself, in bytes.
fn memory_of(message: &Message) -> usize {
    match message {
        Message::Removed { paths } => paths.iter().map(|path| path.len() + size_of::<Vec<u8>>()).sum(),
        Message::WarningAbout { path, text } => path.len() + text.len(),
        other => text_of(other),
    }
}

/// Bytes of text in a message.
fn text_of(message: &Message) -> usize {
    match message {
        Message::Failed { failure, .. } | Message::Unset(failure) | Message::Stays(failure) => {
            failure.message.len()
        }
        Message::Warning(text) | Message::WarningAbout { text, .. } => text.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashmap::leaves::Leaves;

    fn asked_for(ids: &[u64]) -> Replies {
        let mut replies = Replies::new(false);
        ids.iter().for_each(|&id| replies.open(Answered::of(id, true, false)));
        replies
    }

    fn keys(count: usize) -> Vec<Run> {
        vec![Run::Keys(vec![[7; 16]; count])]
    }

    #[test]
    fn maps_of_all_files_together_stay_within_their_credit() {
        let mut replies = asked_for(&[1, 2]);
        replies.take_in(Frame::Map(1, keys(MAX_AHEAD / 2))).unwrap();
        replies.take_in(Frame::Map(2, keys(MAX_AHEAD / 2))).unwrap();
        assert!(replies.take_in(Frame::Map(1, keys(1))).is_err());
        assert!(matches!(replies.next_of(2), Some(FileReply::Runs(_))));
        // It was taken and is not described yet.
        assert!(replies.take_in(Frame::Map(2, keys(1))).is_err());
        replies.described(2, MAX_AHEAD / 2);
        replies.take_in(Frame::Map(2, keys(MAX_AHEAD / 2))).unwrap();
    }

    #[test]
    fn a_file_that_failed_frees_what_was_known_of_it() {
        let failed = |id| {
            let failure = Failure::new(23, "no");
            Frame::Message(Message::Failed { id, failure })
        };
        let mut replies = asked_for(&[1, 2]);
        replies.take_in(Frame::Map(1, keys(MAX_AHEAD))).unwrap();
        replies.take_in(failed(1)).unwrap();
        replies.take_in(Frame::Map(1, keys(9))).unwrap();
        replies.take_in(Frame::Map(2, keys(MAX_AHEAD))).unwrap();
        assert!(matches!(replies.next_of(1), Some(FileReply::Failed(_))));
        assert_eq!(replies.next_of(1), None);
        // What was taken of it before does not count twice.
        replies.described(1, MAX_AHEAD);
        assert!(replies.take_in(Frame::Map(2, keys(1))).is_err());
    }

    #[test]
    fn a_failure_outlives_the_queue_that_it_was_in() {
        let failed = |id| {
            let failure = Failure::new(23, "no");
            Frame::Message(Message::Failed { id, failure })
        };
        let mut replies = asked_for(&[1, 2, 3]);
        replies.take_in(failed(1)).unwrap();
        assert_eq!(replies.forget(1).map(|failure| failure.code), Some(23));
        replies.take_in(failed(2)).unwrap();
        assert!(matches!(replies.next_of(2), Some(FileReply::Failed(_))));
        assert_eq!(replies.forget(2), None);
        assert_eq!(replies.forget(3), None);
        replies.take_in(failed(3)).unwrap();
        assert!(matches!(replies.next_message(), Some(Message::Failed { id: 3, .. })));
    }

    #[test]
    fn a_map_ends_once_and_nothing_of_it_follows() {
        let end = |id| Frame::Message(Message::MapEnd { id });
        let mut replies = asked_for(&[1]);
        replies.open(Answered::of(2, false, false));
        replies.take_in(end(1)).unwrap();
        for id in [1, 2] {
            assert_eq!(replies.take_in(end(id)), Err("a map out of turn"));
            assert_eq!(replies.take_in(Frame::Map(id, keys(1))), Err("a map out of turn"));
            assert_eq!(replies.take_in(Frame::Map(id, Vec::new())), Err("a map out of turn"));
        }
        let failure = Failure::new(23, "no");
        replies.take_in(Frame::Message(Message::Failed { id: 2, failure })).unwrap();
        replies.take_in(end(2)).unwrap();
        assert!(matches!(replies.next_of(2), Some(FileReply::Failed(_))));
        assert_eq!(replies.next_of(2), None);
    }

    #[test]
    fn what_comes_late_is_dropped_and_what_comes_out_of_turn_is_not() {
        let mut replies = asked_for(&[1, 5]);
        replies.forget(1);
        replies.take_in(Frame::Map(1, keys(MAX_AHEAD + 1))).unwrap();
        replies.take_in(Frame::Message(Message::MapEnd { id: 1 })).unwrap();
        assert!(replies.take_in(Frame::Map(6, keys(1))).is_err());
        assert!(replies.take_in(Frame::Message(Message::MapEnd { id: 6 })).is_err());
    }

    #[test]
    fn a_run_without_descriptions_grants_what_it_compared_and_what_it_dropped() {
        let mut replies = Replies::new(true);
        replies.open(Answered::of(1, true, false));
        let batch = MAX_AHEAD / 4;
        (0..4).for_each(|_| replies.take_in(Frame::Map(1, keys(batch))).unwrap());
        assert_eq!(replies.next_grant(), None);
        replies.described(1, batch - 1);
        assert_eq!(replies.next_grant(), None);
        replies.described(1, 1);
        assert_eq!(replies.next_grant(), Some(batch));
        replies.forget(1);
        assert_eq!(replies.next_grant(), Some(3 * batch));
        replies.take_in(Frame::Map(1, keys(batch))).unwrap();
        assert_eq!((replies.next_grant(), replies.next_grant()), (Some(batch), None));
    }

    #[test]
    fn leaves_and_messages_are_bounded() {
        let leaves = || Frame::Leaves(LeafAnswer { id: 1, blocks: vec![Leaves::default().into(); 256] });
        let mut replies = asked_for(&[1]);
        assert_eq!((0..99).take_while(|_| replies.take_in(leaves()).is_ok()).count(), MAX_UNPATCHED / 256);
        replies.forget(1);
        assert_eq!(replies.leaves, 0);
        let mut said = 0;
        while !replies.is_overrun() {
            replies.take_in(Frame::Message(Message::Warning(String::new()))).unwrap();
            said += 1;
        }
        assert_eq!(said, MAX_MESSAGES + 1);
        let warning = |len: usize| Frame::Message(Message::Warning("w".repeat(len)));
        let mut replies = asked_for(&[1]);
        assert!(replies.take_in(warning(MAX_TEXT + 1)).is_err());
        for id in [0, 1] {
            let failure = Failure::new(23, "f".repeat(MAX_TEXT + 1));
            assert!(replies.take_in(Frame::Message(Message::Failed { id, failure })).is_err());
        }
        (0..MAX_TEXTS / MAX_TEXT).for_each(|_| replies.take_in(warning(MAX_TEXT)).unwrap());
        assert!(!replies.is_overrun());
        replies.take_in(warning(1)).unwrap();
        assert!(replies.is_overrun());
        replies.next_message();
        assert!(!replies.is_overrun());
        assert!(replies.take_in(Frame::Message(Message::Abandon)).is_err());
    }
}
