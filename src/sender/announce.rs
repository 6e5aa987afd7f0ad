//! What the sender announces: every entry below its sources, under ids that the
//! receiver answers to, as far as there is credit.

use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex};

use crate::confinement::NamedPath;
use crate::error::lock;
use crate::error::{Result, Warning};
use crate::options::DeleteWhen;
use crate::protocol::{CREDIT, Credit, Entry, Message, in_pieces};
use crate::report::Event;
use crate::sender::hasher::WantedFile;
use crate::sender::known;
use crate::sender::replies::Answered;
use crate::sender::shared::SenderShared;
use crate::source::{self, Contents, ContentsTold, Found, Kind, Source, Tells, Told, Walk};

/// Files that were announced and are not described yet, and the credit for more.
pub struct Files {
    table: Mutex<Table>,
    /// Credit came back, or the run is over.
    changed: Condvar,
    /// Bytes of files can be sent without being read.
    direct: bool,
    /// The receiver tells of what is no file, too.
    tells_others: bool,
}

struct Table {
    pending: HashMap<u64, Source>,
    /// What is no file, and the receiver will tell of.
    others: HashMap<u64, Source>,
    credit: Credit,
    /// The id of the next entry.
    next: u64,
    /// The file that the receiver asked for last.
    wanted: Option<u64>,
    /// The way to the hasher; `None`: the run is over.
    jobs: Option<Sender<WantedFile>>,
    /// The walker waits for credit. Waking nobody is a system call, too.
    waiting: bool,
}

impl Files {
    /// None so far. Those that the receiver wants go to the hasher through `jobs`.
    /// `direct`: bytes of files can be sent without being read. `tells_others`: the receiver
    /// tells of what is no file, too.
    pub fn new(jobs: Sender<WantedFile>, direct: bool, tells_others: bool) -> Files {
        let credit = Credit::for_messages();
        let (pending, others, jobs) = (HashMap::new(), HashMap::new(), Some(jobs));
        let table = Table { pending, others, credit, next: 0, wanted: None, jobs, waiting: false };
        Files { table: Mutex::new(table), changed: Condvar::new(), direct, tells_others }
    }

    /// Takes an id and credit for a source. `None`: there is no credit, or the run is over.
    fn add(&self, source: &Source) -> Option<u64> {
        let mut table = lock(&self.table);
        table.jobs.as_ref()?;
        if !table.may_announce() || !table.credit.take_for_later() {
            return None;
        }
        let id = table.next;
        table.next += 1;
        if matches!(source.kind, Kind::File { .. }) {
            table.pending.insert(id, source.clone());
        } else if self.tells_others && source.kind != Kind::Missing {
            table.others.insert(id, source.clone());
        }
        Some(id)
    }

    /// Waits until there is credit for another entry. `false`: the run is over.
    fn wait_for_credit(&self) -> bool {
        let mut table = lock(&self.table);
        while !table.may_announce() && table.jobs.is_some() {
            table.waiting = true;
            table = self.changed.wait(table).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        table.jobs.is_some()
    }

    /// Whether there is credit for another entry.
    pub fn may_announce(&self) -> bool {
        lock(&self.table).may_announce()
    }

    /// Takes credit for a question about the file that is being described.
    pub fn take_credit(&self, units: usize) -> bool {
        lock(&self.table).credit.take(units)
    }

    /// Credit came back. `false`: more than was taken.
    pub fn give_back(&self, units: usize) -> bool {
        let mut table = lock(&self.table);
        let fits = table.credit.give_back(units);
        self.wake(&mut table);
        fits
    }

    fn wake(&self, table: &mut Table) {
        if table.waiting && table.may_announce() {
            table.waiting = false;
            self.changed.notify_all();
        }
    }

    /// Has a file hashed that the receiver asks for. `false`: it may not ask for that.
    /// A hasher that is gone needs no more work.
    pub fn want(&self, answered: &Answered) -> bool {
        let &Answered { id, mapped: compared, device, .. } = answered;
        let mut table = lock(&self.table);
        let Some(source) = table.pending.get(&id).cloned() else { return false };
        if table.wanted.is_some_and(|last| id <= last) {
            return false;
        }
        table.wanted = Some(id);
        if let Some(jobs) = &table.jobs {
            let _ = jobs.send(WantedFile { source, compared, device, direct: self.direct });
        }
        true
    }

    /// Takes a file that is answered; none if it was not announced, or answered before.
    pub fn take(&self, id: u64) -> Option<Source> {
        let mut table = lock(&self.table);
        let source = table.pending.remove(&id);
        self.wake(&mut table);
        source
    }

    /// Takes what is no file, and that the receiver tells of, or that failed; none likewise.
    pub fn take_other(&self, id: u64) -> Option<Source> {
        let mut table = lock(&self.table);
        let source = table.others.remove(&id);
        self.wake(&mut table);
        source
    }

    /// Whether the receiver told of everything else that it was to tell of.
    pub fn all_told(&self) -> bool {
        lock(&self.table).others.is_empty()
    }

    /// Whether all files that were announced are answered.
    pub fn all_answered(&self) -> bool {
        lock(&self.table).pending.is_empty()
    }

    /// Lets the walker and the hasher end, which wait for more work.
    pub fn close(&self) {
        lock(&self.table).jobs = None;
        self.changed.notify_all();
    }
}

impl Table {
    /// The others hold whenever the first condition does, unless the receiver gives back credit
    /// for entries that it has not answered, or not told of.
    fn may_announce(&self) -> bool {
        self.credit.has_for_later() && self.pending.len() < CREDIT && self.others.len() < CREDIT
    }
}

/// Walks the sources and announces what is there (step 1 of [`sender`](crate::sender)).
pub fn announce_all<W: Write>(shared: &SenderShared<W>, sources: &[NamedPath]) -> Result<()> {
    let when = source::deletes(sources, shared.options);
    let during = when == Some(DeleteWhen::During);
    let walk = Walk::new(sources, shared.options);
    let walk = walk.telling(if during { Tells::Both } else { Tells::Entries });
    let single = walk.is_single();
    shared.send(&Message::Layout { single })?;
    if single {
        sources.first().map_or(Ok(()), |source| known::tell(shared, source))?;
    }
    if when == Some(DeleteWhen::Before) {
        remove_others(shared, sources)?;
    }
    let mut removes = shared.options.delete.filter(|_| during);
    for found in walk {
        match found {
            Found::Failed(failure) => {
                if removes.take_if(|delete| delete.is_ended_by(&failure)).is_some() {
                    shared.warn(Warning::new(source::NOTHING_REMOVED))?;
                }
                shared.source_failed(failure)?;
            }
            Found::Contents(contents) if removes.is_some() => {
                tell(shared, Told::Contents(contents))?;
                tell(shared, Told::RemoveOthers)?;
            }
            Found::Contents(_) => {}
            Found::Skipped(what) => shared.warn(what)?,
            Found::Source(source) => {
                let Some(source) = lock(&shared.links).keep(*source) else { continue };
                if let Kind::File { length, allocated, .. } = source.kind {
                    let mut stats = lock(&shared.stats);
                    stats.files_total += 1;
                    stats.apparent_bytes = stats.apparent_bytes.saturating_add(length);
                    shared.reporter.event(Event::Found(allocated));
                }
                if !announce(shared, source)? {
                    break;
                }
            }
        }
    }
    shared.lock_output().flush()
}

/// Has the receiver remove what the sources do not have, unless something cannot be read.
pub fn remove_others<W: Write>(shared: &SenderShared<W>, sources: &[NamedPath]) -> Result<()> {
    let ContentsTold { is_cut, failure } =
        source::tell_contents(sources, shared.options, &mut |told| tell(shared, told))?;
    let is_new = !lock(&shared.stats).has_failed();
    if let Some(failure) = failure.filter(|_| is_new) {
        shared.source_failed(failure)?;
    }
    if is_cut { shared.warn(Warning::new(source::NOTHING_REMOVED)) } else { Ok(()) }
}

fn tell<W: Write>(shared: &SenderShared<W>, told: Told) -> Result<()> {
    let Told::Contents(Contents { directory, names, is_whole }) = told else {
        return shared.send(&Message::RemoveOthers);
    };
    for names in in_pieces(names) {
        shared.send(&Message::Contents { directory: directory.clone(), names, is_whole })?;
    }
    Ok(())
}

/// Announces one source; `false`: the run is over.
pub fn announce<W: Write>(shared: &SenderShared<W>, source: Source) -> Result<bool> {
    loop {
        // The receiver counts in the order of arrival: no question that took credit later may
        // be written before this entry.
        let mut output = shared.lock_output();
        if let Some(id) = shared.files.add(&source) {
            let Source { target, kind, metadata, .. } = source;
            output.message(&Message::Entry(Entry { id, path: target, kind, metadata }))?;
            return Ok(true);
        }
        output.flush()?;
        drop(output);
        if !shared.files.wait_for_credit() {
            return Ok(false);
        }
    }
}
