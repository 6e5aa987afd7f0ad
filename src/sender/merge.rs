//! Merges one file's blocks with the map that arrives of it, in file order, so that what
//! differs is sent. Step 4 of [`sender`](crate::sender).

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use crate::error::lock;
use crate::error::{Error, Failure, Result};
use crate::hashmap::plan::Action;
use crate::hashmap::{BATCH, Batch, Block, Hash, MapRecord};
use crate::protocol::Message;
use crate::scan::Content;
use crate::sender::describe::{Over, Treatment, at_once};
use crate::sender::described_file::{DescribedFile, Obstacle, Supply};
use crate::sender::hasher::Hashed;
use crate::sender::inbox::Arrival;
use crate::sender::known::KnownBasis;
use crate::sender::replies::FileReply;
use crate::sender::session::Session;
use crate::source::OpenSource;

/// How describing a file to the receiver ended.
pub enum Merged {
    /// All of it is described; its root hash.
    Whole(Hash, Option<MapRecord>),
    SourceChanged,
    SourceFailed(Error),
    /// It goes onto a device, and holds what does not belong there.
    SourceUnfit(Content),
    SourceUnread(io::Error),
    ReceiverFailed(Failure),
}

impl<W: Write> Session<'_, W> {
    /// Merges the source's blocks with the arriving map, and sends what differs.
    pub(super) fn merge(&mut self, file: &mut DescribedFile) -> Result<Merged> {
        loop {
            self.take_arrived(file)?;
            self.apply_plan(file)?;
            match file.obstacle.take() {
                Some(Obstacle::ReceiverFailed(failure)) => return Ok(Merged::ReceiverFailed(failure)),
                Some(Obstacle::SourceUnread(error)) => return Ok(Merged::SourceUnread(error)),
                None => {}
            }
            if file.hashes == Supply::Open && !file.planner.wants_basis() {
                match self.next_hashed()? {
                    Hashed::Batch(batch) => self.begin_batch(file, batch, None),
                    Hashed::Bare(batch, source) => self.begin_batch(file, batch, Some(source)),
                    Hashed::Warning(text) => self.shared.warn(text)?,
                    Hashed::Aside(bytes) => lock(&self.shared.stats).hashed_bytes += bytes,
                    Hashed::Unfit(content) => {
                        file.hashes = Supply::Ended;
                        return Ok(Merged::SourceUnfit(content));
                    }
                    Hashed::End { same, settled } => {
                        file.hashes = Supply::Ended;
                        file.settled = settled;
                        if !same {
                            return Ok(Merged::SourceChanged);
                        }
                    }
                    Hashed::Failed(error) => {
                        file.hashes = Supply::Ended;
                        return Ok(Merged::SourceFailed(error));
                    }
                }
            } else if file.known.is_some() {
                // With a second try the map travels.
                if !file.push_known() {
                    return Ok(Merged::SourceChanged);
                }
            } else if file.map == Supply::Open {
                self.wait_for(file)?;
            } else if self.describer.awaits_answers() {
                self.describer.flush()?;
                self.wait_for(file)?;
            } else if file.cursor.is_stale() {
                return Ok(Merged::SourceChanged);
            } else {
                if self.shared.describes {
                    self.describer.finish()?;
                }
                let (root, map) = file.end();
                return Ok(Merged::Whole(root, map));
            }
        }
    }

    /// Leaves a file half described. What the receiver still says of it is dropped.
    pub(super) fn abandon(&mut self, file: &DescribedFile) -> Result<()> {
        self.describer.begin(false, false);
        if self.shared.describes {
            self.shared.send(&Message::Abandon)?;
        }
        if file.hashes == Supply::Open { self.drain_hasher() } else { Ok(()) }
    }

    /// Does all steps for which both sides are known.
    fn apply_plan(&mut self, file: &mut DescribedFile) -> Result<()> {
        while file.obstacle.is_none()
            && let Some((blocks, action)) = file.planner.step()
        {
            // Before the receiver can know of it, and send more of its map.
            if let Some(entries) = file.newly_planned() {
                self.inbox.described(file.id, entries);
            }
            self.apply_action(file, blocks, action)?;
        }
        Ok(())
    }

    fn begin_batch(&self, file: &mut DescribedFile, batch: Batch, source: Option<Arc<OpenSource>>) {
        let mut stats = lock(&self.shared.stats);
        stats.hashed_bytes += if batch.is_shared { 0 } else { batch.bytes_read as u64 };
        stats.data_bytes += (batch.bytes_read + batch.believed) as u64;
        stats.believed_bytes += batch.believed as u64;
        let DescribedFile { cursor, grid, planner, root, .. } = file;
        self.recycle(cursor.begin(batch, source, grid, planner, root));
    }

    /// Takes what has come already, so that answers do not wait behind the map.
    fn take_arrived(&mut self, file: &mut DescribedFile) -> Result<()> {
        self.check_decision()?;
        while let Some(event) = self.try_next(Some(file.id))? {
            self.on_arrival_of(file, event)?;
        }
        Ok(())
    }

    /// Waits for the next thing that the receiver says.
    fn wait_for(&mut self, file: &mut DescribedFile) -> Result<()> {
        let event = self.wait(Some(file.id))?;
        self.on_arrival_of(file, event)
    }

    fn on_arrival_of(&mut self, file: &mut DescribedFile, event: Arrival) -> Result<()> {
        match event {
            Arrival::File(FileReply::Runs(runs)) if file.map == Supply::Open => {
                file.push_basis(runs);
            }
            Arrival::File(FileReply::MapEnd) if file.map == Supply::Open => {
                file.end_basis();
            }
            Arrival::File(FileReply::AsKnown(root)) if file.map == Supply::Open && file.may_be_known => {
                let known = self.shared.known.told(&root);
                let known = known.filter(|map| file.grid.cuts_no_block_of(&map.grid()));
                let known = known.ok_or_else(|| self.unexpected("a map that it was not told of"))?;
                file.known = Some(KnownBasis::of(known));
            }
            Arrival::File(FileReply::Runs(_) | FileReply::MapEnd | FileReply::AsKnown(_)) => {
                return Err(self.unexpected("a map out of turn"));
            }
            Arrival::File(FileReply::Leaves(answer)) => {
                match self.describer.take_answer(&file.grid, answer)? {
                    Ok((sent, had)) => {
                        self.count_sent(file, sent);
                        lock(&self.shared.stats).matched_bytes += had;
                    }
                    Err(error) => file.obstacle = Some(Obstacle::SourceUnread(error)),
                }
            }
            Arrival::File(FileReply::Failed(failure)) => {
                file.obstacle = Some(Obstacle::ReceiverFailed(failure));
            }
            other => self.on_arrival(other)?,
        }
        Ok(())
    }

    fn next_hashed(&mut self) -> Result<Hashed> {
        loop {
            if let Some(next) = self.taken.pop_front() {
                return Ok(next);
            }
            self.taken.extend(self.hashed.recv().map_err(|_| self.unexpected("the hasher ended"))?);
        }
    }

    fn drain_hasher(&mut self) -> Result<()> {
        loop {
            match self.next_hashed()? {
                Hashed::Batch(batch) | Hashed::Bare(batch, _) => self.recycle(batch.buffer),
                Hashed::Warning(_) | Hashed::Aside(_) => {}
                Hashed::Unfit(_) | Hashed::End { .. } | Hashed::Failed(_) => return Ok(()),
            }
        }
    }

    fn recycle(&self, buffer: Vec<u8>) {
        // Only that of a batch that was about full is room for another: those of small
        // files, of which many are under way, would all grow to that size.
        if buffer.capacity() >= BATCH / 2 {
            // A hasher that is gone needs none.
            let _ = self.buffers.send(buffer);
        }
    }

    /// Does one step of the plan.
    fn apply_action(&mut self, file: &mut DescribedFile, blocks: Range<u64>, action: Action) -> Result<()> {
        let (mut found, read) = file.cursor.take(blocks.end);
        let bytes =
            found.iter().map(|(index, block)| file.grid.masked_bytes(*index, block.data)).sum::<u64>();
        let sends = matches!(action, Action::Data | Action::Update);
        // What is sent counts when it has left, or has turned out to be there.
        let later = if sends { bytes } else { 0 };
        self.describer.matched(read.saturating_sub(later));
        file.differs |= action != Action::Keep;
        file.rest = file.rest.saturating_sub(read);
        if action == Action::Keep {
            lock(&self.shared.stats).matched_bytes += bytes;
        }
        match action {
            Action::Keep | Action::Zero if !self.shared.describes => Ok(()),
            Action::Keep => self.describer.keep(blocks.end - blocks.start),
            Action::Zero => self.describer.zero(blocks.end - blocks.start),
            Action::Update if !self.shared.describes => self.send(file, &mut found, Over::Data),
            Action::Data if !self.describer.may_have_new(&file.grid) => {
                self.send(file, &mut found, Over::Zeros)
            }
            Action::Data => self.update(file, &mut found, Over::Zeros),
            Action::Update => self.update(file, &mut found, Over::Data),
        }
    }

    fn count_sent(&self, file: &mut DescribedFile, bytes: u64) {
        file.bytes += bytes;
        lock(&self.shared.stats).sent_data_bytes += bytes;
    }

    fn send(&mut self, file: &mut DescribedFile, blocks: &mut [(u64, Block)], over: Over) -> Result<()> {
        if !self.shared.describes {
            let bytes = blocks.iter().map(|(index, block)| file.grid.masked_bytes(*index, block.data)).sum();
            self.describer.matched(bytes);
            self.count_sent(file, bytes);
            return Ok(());
        }
        match self.describer.send(&file.grid, &mut file.cursor, blocks, over)? {
            Ok(sent) => self.count_sent(file, sent),
            Err(error) => file.obstacle = Some(Obstacle::SourceUnread(error)),
        }
        Ok(())
    }

    /// Sends what the receiver lacks of adjoining blocks that differ, or are new.
    fn update(
        &mut self,
        file: &mut DescribedFile,
        mut blocks: &mut [(u64, Block)],
        over: Over,
    ) -> Result<()> {
        while !blocks.is_empty() && file.obstacle.is_none() {
            let (now, later) = blocks.split_at_mut(at_once(&file.grid, blocks));
            blocks = later;
            if self.describer.decide(&file.grid, now, over, file.rest) == Treatment::Send {
                self.send(file, now, over)?;
                continue;
            }
            if let Err(error) = file.cursor.fetch(&file.grid, now) {
                file.obstacle = Some(Obstacle::SourceUnread(error));
                return Ok(());
            }
            for (index, block) in now {
                if !self.ask_about(file, *index, block)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Asks about a block that differs, as soon as there is room for another question.
    /// `false`: the file is abandoned next, and more questions than may be open break a rule.
    fn ask_about(&mut self, file: &mut DescribedFile, index: u64, block: &Block) -> Result<bool> {
        loop {
            // Sending patches makes room, too, and then there may be nothing to wait for.
            for _ in 0..2 {
                let again = file.cursor.source();
                if self.describer.ask_about(&file.grid, &file.cursor.batch, index, block, again)? {
                    return Ok(true);
                }
                self.describer.flush()?;
            }
            self.wait_for(file)?;
            if file.obstacle.is_some() {
                return Ok(false);
            }
        }
    }
}
