//! The spool in the life of a group: when captured content goes there, when it is free again, and what a fault costs.
//!
//! The spool is memory, not state. It takes content of sealed sets, and changes nothing else about them: they keep their
//! place in the queue, their number, and what they hold. Memory keeps the oldest, the spool takes what comes behind, in
//! order. Content counts as spooled when its write has ended well, and stays in memory until then; its room is free
//! again when its set is gone and no write to it is under way. What comes back is checked against the CRC of its capture.
//! A fault costs what lies there, in the sense that sets give way to the bitmap (`overload`): never data. What goes there next, `moving` says.
//!
//! docs/catching-up.md has the interleavings behind each rule.

use std::collections::BTreeMap;
use std::time::Duration;

use blockio::crc32;
use bytes::Bytes;
use proto::ids::Epoch;

use super::action::Action;
use super::catchup::CatchUpReason;
use super::core::Group;
use super::limits::{SPOOL_ABOVE_SHARE, SPOOL_BELOW_SHARE};
use super::moving::{Chunk, Moved};
use super::queue::QueuedSet;
use crate::changeset::{Content, Record, Spooled};
use crate::rules::Rule;
use crate::spool::Space;
use crate::spool::limits::{HEALTHY_AFTER, RETRY_MAX, RETRY_MIN, SPOOL_UNIT, WRITES_IN_FLIGHT_MAX};

/// What can be done with the cache volume.
#[derive(Debug)]
enum Volume {
    /// There is none.
    Absent,
    /// The file is being made.
    Opening,
    /// It takes content.
    Ready,
    /// What it had is being given back to the volume; whatever were written now could be lost.
    Emptying,
    /// It failed. What lies there can still be read, if it can; it takes content again then.
    Refusing { again: Duration },
}

/// A write to the spool that has not ended.
#[derive(Debug)]
struct Writing {
    epoch: Epoch,
    offset: u64,
    len: u64,
    extents: Vec<Moved>,
}

/// A read from the spool that has not ended: of one part, in one phase.
#[derive(Debug)]
struct Reading {
    number: u64,
    part: u32,
    phase: u64,
    offset: u64,
    records: Vec<Record>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Spool {
    space: Space,
    volume: Volume,
    writes: BTreeMap<u64, Writing>,
    reads: BTreeMap<u64, Reading>,
    ids: u64,
    /// Sealed sets go to the spool.
    is_active: bool,
    /// The last chunk found no room.
    is_full: bool,
    /// Something was written since the file was last empty.
    is_used: bool,
    /// What failed last, until it works again.
    trouble: Option<String>,
    retry: Duration,
    failed_at: Duration,
    /// How often something came back other than it was written, for the judge.
    #[cfg(test)]
    damages: u64,
}

impl Spool {
    /// A spool of `bytes`, still to be opened; 0 is none.
    pub(super) fn new(bytes: u64) -> Self {
        let space = Space::new(bytes);
        Self {
            volume: if space.size() > 0 { Volume::Opening } else { Volume::Absent },
            space,
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            ids: 0,
            is_active: false,
            is_full: false,
            is_used: false,
            trouble: None,
            retry: RETRY_MIN,
            failed_at: Duration::ZERO,
            #[cfg(test)]
            damages: 0,
        }
    }

    /// Whether the group has a cache volume, usable or not.
    pub(super) fn exists(&self) -> bool {
        !matches!(self.volume, Volume::Absent)
    }

    pub(super) fn is_active(&self) -> bool {
        self.is_active
    }

    /// Whether sets are to go there, and there was room the last time.
    pub(super) fn takes_more(&self) -> bool {
        self.is_active && !self.is_full
    }

    /// Whether another write may be under way.
    pub(super) fn may_write(&self) -> bool {
        self.writes.len() < WRITES_IN_FLIGHT_MAX
    }

    /// Bytes that it may take.
    pub(super) fn limit(&self) -> u64 {
        self.space.size()
    }

    /// Bytes that are taken.
    pub(super) fn stored(&self) -> u64 {
        self.space.used()
    }

    /// Why it takes nothing, where a fault is the reason.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Why memory has run out all the same.
    pub(super) fn overflow_reason(&self) -> CatchUpReason {
        match self.trouble {
            Some(_) => CatchUpReason::CacheVolume,
            None if self.is_full => CatchUpReason::SpoolFull,
            None => CatchUpReason::MemoryBudget,
        }
    }

    /// A set is gone, and with it what it had in the spool. A write that is still under way keeps its room: what came
    /// next there could be overwritten by it.
    pub(super) fn release(&mut self, queued: &QueuedSet) {
        for (offset, len) in &queued.spool.chunks {
            self.give_back(*offset, *len);
        }
        if !Rule::SpoolWritesKeepRoom.holds() {
            let of_set = |writing: &Writing| writing.epoch == queued.set.epoch();
            let under_way: Vec<u64> = self.writes.iter().filter(|(_, it)| of_set(it)).map(|(id, _)| *id).collect();
            for id in under_way {
                let writing = self.writes.remove(&id).expect("it was found a moment ago");
                self.give_back(writing.offset, writing.len);
            }
        }
    }

    fn give_back(&mut self, offset: u64, len: u64) {
        self.space.give_back(offset, len);
        self.is_full = false;
    }

    #[cfg(test)]
    fn note_damage(&mut self) {
        self.damages += 1;
    }

    #[cfg(test)]
    pub(super) fn damages(&self) -> u64 {
        self.damages
    }

    fn is_idle(&self) -> bool {
        self.space.used() == 0 && self.writes.is_empty() && self.reads.is_empty()
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// The volume failed: it is left alone for a while, twice as long each time.
    fn refuse(&mut self, why: String, now: Duration) {
        if now > self.failed_at + self.retry + HEALTHY_AFTER {
            self.retry = RETRY_MIN;
        }
        // Several operations that were under way fail together: that is one failure.
        if matches!(self.volume, Volume::Refusing { again } if now < again) {
            return;
        }
        self.trouble = Some(why);
        self.volume = Volume::Refusing { again: now + self.retry };
        self.retry = (self.retry * 2).min(RETRY_MAX);
        self.failed_at = now;
    }

    /// It can be used; whether what failed before works again is not known yet.
    fn is_ready(&mut self) {
        self.volume = Volume::Ready;
    }
}

impl Group {
    /// Goes on with the spool: begins or ends spooling, and moves what is to be moved. Part of `advance`.
    pub(super) fn pump_spool(&mut self) {
        if !self.spool.exists() {
            return;
        }
        self.note_pressure();
        match &self.spool.volume {
            Volume::Refusing { again } if self.now.mono >= *again => {
                // Perhaps the volume was exchanged: a spool with nothing in it gets a new file.
                if self.spool.is_idle() {
                    self.open_spool();
                } else {
                    self.spool.is_ready();
                }
            }
            Volume::Ready if !self.spool.is_active && self.spool.is_used && self.spool.is_idle() => {
                self.spool.is_used = false;
                if Rule::EmptiedAlone.holds() {
                    self.spool.volume = Volume::Emptying;
                }
                self.actions.push_back(Action::EmptySpool);
            }
            Volume::Ready => self.move_to_spool(),
            _ => {}
        }
    }

    /// Asks for a new file.
    pub(super) fn open_spool(&mut self) {
        if self.spool.exists() {
            self.spool.volume = Volume::Opening;
            self.actions.push_back(Action::OpenSpool);
        }
    }

    /// The file that `Action::OpenSpool` asked for is there, or why not.
    pub fn spool_opened(&mut self, result: Result<(), String>) {
        self.spool.is_used = false;
        match result {
            Ok(()) => {
                self.spool.trouble = None;
                self.spool.is_ready();
            }
            Err(why) => self.spool.refuse(why, self.now.mono),
        }
    }

    /// The volume has back what the spool had, or why not.
    pub fn spool_emptied(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => self.spool.is_ready(),
            Err(why) => self.spool.refuse(why, self.now.mono),
        }
    }

    /// Why the spool takes nothing, where a fault is the reason.
    #[must_use]
    pub fn spool_trouble(&self) -> Option<&str> {
        self.spool.trouble()
    }

    /// The hysteresis between streaming and spooling.
    fn note_pressure(&mut self) {
        let (used, memory) = (self.queue.charged(), self.options.memory_bytes);
        if self.spool.is_active {
            self.spool.is_active = used + self.spool.stored() > memory / SPOOL_BELOW_SHARE;
        } else {
            self.spool.is_active = used > memory / SPOOL_ABOVE_SHARE;
        }
    }

    /// Finds room for a chunk and has it written. False: there is none.
    pub(super) fn write_chunk(&mut self, index: usize, mut chunk: Chunk) -> bool {
        let len = chunk.bytes.next_multiple_of(SPOOL_UNIT);
        let queued = &mut self.queue[index];
        let Some(offset) = self.spool.space.take(len) else {
            self.spool.is_full = true;
            queued.spool.late.extend(chunk.extents.iter().map(|moved| (moved.disk, moved.sector)));
            return false;
        };
        for moved in &mut chunk.extents {
            moved.record.offset += offset;
        }
        queued.spool.writing += 1;
        self.spool.is_used = true;
        let id = self.spool.next_id();
        let writing = Writing { epoch: queued.set.epoch(), offset, len, extents: chunk.extents };
        self.spool.writes.insert(id, writing);
        self.actions.push_back(Action::WriteSpool { id, offset, len, pieces: chunk.pieces });
        if !Rule::SpooledWhenWritten.holds() {
            let writing = self.spool.writes.remove(&id).expect("it was put there a moment ago");
            self.chunk_written(index, &writing);
        }
        true
    }

    /// A write to the spool has ended.
    pub fn spool_written(&mut self, id: u64, result: Result<(), String>) {
        let Some(writing) = self.spool.writes.remove(&id) else { return };
        let index = self.queue.index_of_epoch(writing.epoch);
        let counts = result.is_ok() || !Rule::FailedSpoolWritesStay.holds();
        match index {
            Some(index) if counts => self.chunk_written(index, &writing),
            Some(index) => {
                let spool = &mut self.queue[index].spool;
                spool.writing -= 1;
                spool.late.extend(writing.extents.iter().map(|moved| (moved.disk, moved.sector)));
                self.spool.give_back(writing.offset, writing.len);
            }
            // Its set has gone meanwhile.
            None => self.spool.give_back(writing.offset, writing.len),
        }
        match result {
            Ok(()) => self.spool.trouble = None,
            Err(why) => self.spool.refuse(why, self.now.mono),
        }
    }

    /// What was written leaves memory, but for parts that are just being put together or sent from there.
    fn chunk_written(&mut self, index: usize, writing: &Writing) {
        self.queue[index].spool.writing -= 1;
        let mut any = false;
        for moved in &writing.extents {
            let Moved { disk, sector, sectors, record } = *moved;
            if self.queue[index].is_with_link(disk, sector, sectors) {
                self.queue[index].spool.late.push_back((disk, sector));
                continue;
            }
            any = true;
            self.queue.change(index, |set| set.insert(disk, sector, sectors, Content::Spooled(Spooled::new(record))));
        }
        if any {
            self.queue[index].spool.chunks.push((writing.offset, writing.len));
        } else {
            self.spool.give_back(writing.offset, writing.len);
        }
    }

    /// Starts a read for a part that is being put together.
    pub(super) fn read_spool(&mut self, number: u64, part: u32, offset: u64, len: u32, records: Vec<Record>) {
        let id = self.spool.next_id();
        self.spool.reads.insert(id, Reading { number, part, phase: self.phase.0, offset, records });
        self.actions.push_back(Action::ReadSpool { id, offset, len });
    }

    /// A read from the spool has ended. What does not match the CRC it was captured with is not used (P6).
    pub fn spool_read(&mut self, id: u64, result: Result<Bytes, String>) {
        let Some(reading) = self.spool.reads.remove(&id) else { return };
        let key = (reading.number, reading.part);
        // The set is gone, and its room may be another's: what was read says nothing.
        if reading.phase != self.phase.0 || !self.assemblies.contains_key(&key) {
            return;
        }
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(why) => return self.spool_lost(why),
        };
        let mut read = Vec::with_capacity(reading.records.len());
        for record in &reading.records {
            let from = (record.offset - reading.offset) as usize;
            let content = bytes.slice(from..from + record.bytes as usize);
            let sum = crc32(&content);
            if sum != record.crc && Rule::SpoolIsChecked.holds() {
                #[cfg(test)]
                self.spool.note_damage();
                return self.spool_lost("it gives back other bytes than were written".into());
            }
            read.push((Record { crc: sum, ..*record }, content));
        }
        self.part_records_read(key, read);
    }

    /// What lies in the spool can't be had: sets give way to the bitmap, and the disks have it all.
    fn spool_lost(&mut self, why: String) {
        self.spool.refuse(why, self.now.mono);
        self.drop_everything(CatchUpReason::CacheVolume);
    }
}
