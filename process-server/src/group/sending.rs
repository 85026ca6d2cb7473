//! Sealed sets on their way: reads of what is still on disk, parts to the link, acknowledgements.
//!
//! What a set holds on disk is read only once the set is sealed, and stays held until the target has acknowledged it
//! durably, sent or not (S4): a set that must be sent again finds the same content. A read that raced an overwrite
//! yields to the copy that the overwrite saved (S5). `assembly` puts the parts together.

use blockio::{BLOCK, SECTOR};
use proto::frame::Compression;
use proto::ids::{DiskIndex, Epoch};
use proto::replication::SealSet;

use super::action::{Action, ReadId, ReadOutcome, WriteId};
use super::core::{Group, Mode};
use super::limits::KEPT_SHARE;
use super::queue::{Part, PartState, QueuedSet};
use crate::changeset::{Captured, Content, PartPlan};
use crate::send::ToLink;

/// Bytes of ordered parts with the link and not yet durable. Their buffers are the sets' own, so this bounds only what
/// is repeated after a lost link; 64 MiB is 1.25 Gbit/s times 400 ms.
const ORDERED_BYTES_IN_FLIGHT: u64 = 64 << 20;
/// Ordered parts with the link and not yet durable.
const ORDERED_PARTS_IN_FLIGHT: usize = 128;
/// Of these, parts that were read from the disk or the spool and have buffers of their own: 32 MiB.
const READ_PARTS_IN_FLIGHT: usize = 8;
/// What the link compresses with: it decides for nothing where the link outruns the processor, for more where both have time.
pub(super) const COMPRESSION: Compression = Compression::Zstd(1);
/// Sectors in a block.
pub(super) const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// What a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadPurpose {
    /// Old content that older sets need, before this write may overwrite it.
    CopyBeforeWrite(WriteId),
    /// Content of a part of a sealed set.
    Part { number: u64, part: u32 },
    /// Content of a part of a round.
    Bulk(u32),
    /// Content that a verification compares.
    Verify(u32),
    /// A block that could not be read before.
    Retry,
    /// Blocks that the set of this epoch holds on disk, when it goes to the spool.
    Capture(Epoch),
}

/// A read that the driver has not answered yet.
#[derive(Debug)]
pub(super) struct PendingRead {
    purpose: ReadPurpose,
    pub(super) disk: DiskIndex,
    pub(super) sector: u64,
    pub(super) sectors: u64,
    /// The phase it was made for; a part of another phase is gone.
    phase: u64,
}

impl Group {
    /// Sends as much as windows and target allow.
    pub(super) fn pump(&mut self) {
        if !self.peer.is_open() {
            return;
        }
        self.send_sets();
        if matches!(self.mode, Mode::CatchingUp(_)) {
            self.pump_catch_up();
            self.send_sets();
        }
        self.pump_verify();
        self.report_fence();
    }

    /// A read that an `Action::Read` asked for has ended.
    pub fn read_done(&mut self, id: ReadId, outcome: ReadOutcome) {
        let Some(read) = self.reads.remove(&id) else { return };
        if let ReadPurpose::Verify(id) = read.purpose {
            return self.verify_read_done(id, outcome);
        }
        let is_of_phase = matches!(read.purpose, ReadPurpose::Part { .. } | ReadPurpose::Bulk(_));
        if is_of_phase && read.phase != self.phase.0 {
            // Its part is gone. Split, it would be counted for a part of today that has the same number.
            return;
        }
        if matches!(outcome, ReadOutcome::Failed) && read.sectors > BLOCK_SECTORS {
            self.read_block_by_block(&read);
            return;
        }
        // Old content that is lost before a write: older sets lack it until the write's own comes.
        let is_missed = !matches!(read.purpose, ReadPurpose::Retry);
        if is_missed && matches!(outcome, ReadOutcome::Failed) {
            self.is_unreadable(&read);
        }
        match read.purpose {
            ReadPurpose::Retry => self.retried(&read, &outcome),
            ReadPurpose::CopyBeforeWrite(write) => self.copy_done(write, &read, outcome),
            ReadPurpose::Capture(epoch) => self.capture_done(epoch, (read.disk, read.sector, read.sectors), outcome),
            ReadPurpose::Part { number, part } => self.part_read_done(number, part, &read, outcome),
            ReadPurpose::Bulk(part) => self.bulk_read_done(part, read.disk, read.sector, read.sectors, outcome),
            ReadPurpose::Verify(_) => unreachable!("answered above"),
        }
        self.check_budget();
    }

    /// The disk of a read that was asked for.
    #[must_use]
    pub fn read_of(&self, id: ReadId) -> Option<DiskIndex> {
        self.reads.get(&id).map(|read| read.disk)
    }

    /// Asks the driver for a read.
    pub(super) fn start_read(
        &mut self,
        purpose: ReadPurpose,
        disk: DiskIndex,
        sector: u64,
        sectors: u64,
        may_be_hole: bool,
    ) {
        self.reads_started += 1;
        let id = ReadId(self.reads_started);
        self.reads.insert(id, PendingRead { purpose, disk, sector, sectors, phase: self.phase.0 });
        let len = u32::try_from(sectors * SECTOR).expect("reads are of at most 1 MiB");
        self.actions.push_back(Action::Read { id, disk, offset: sector * SECTOR, len, may_be_hole });
    }

    /// One bad block must not cost its neighbours: the range is read again in blocks.
    fn read_block_by_block(&mut self, read: &PendingRead) {
        let mut at = read.sector;
        let end = read.sector + read.sectors;
        let mut more = 0;
        while at < end {
            let next = ((at / BLOCK_SECTORS + 1) * BLOCK_SECTORS).min(end);
            self.start_read(read.purpose, read.disk, at, next - at, false);
            more += 1;
            at = next;
        }
        // One read has become several: whoever counts them must know.
        match read.purpose {
            ReadPurpose::CopyBeforeWrite(write) => self.writes.at_mut(write).copies += more - 1,
            ReadPurpose::Part { number, part } => {
                if let Some(assembly) = self.assemblies.get_mut(&(number, part)) {
                    assembly.more_reads(more - 1);
                }
            }
            ReadPurpose::Bulk(part) => self.bulk_reads_added(part, more - 1),
            ReadPurpose::Capture(epoch) => self.captures_added(epoch, more - 1),
            ReadPurpose::Verify(_) => unreachable!("a verification splits by itself"),
            ReadPurpose::Retry => unreachable!("it is of one block"),
        }
    }

    /// Old content has been read before a write: every older set that still needs it takes it.
    fn copy_done(&mut self, id: WriteId, read: &PendingRead, outcome: ReadOutcome) {
        let epoch = self.writes.at(id).epoch;
        let old = match outcome {
            ReadOutcome::Data(bytes) => Content::Captured(Captured::checksummed(bytes)),
            ReadOutcome::Hole => Content::Zero,
            ReadOutcome::Failed => Content::Unreadable,
        };
        for index in 0..self.queue.len() {
            if self.queue[index].set.epoch().0 >= epoch.0 {
                break;
            }
            self.save_in(index, read.disk, read.sector, read.sectors, &old);
        }
        let (block, blocks) = (read.sector / BLOCK_SECTORS, read.sectors.div_ceil(BLOCK_SECTORS));
        if !self.queue.iter().any(|queued| queued.set.holds(read.disk, block, blocks)) {
            self.disks[read.disk.0 as usize].held.clear(block, blocks);
        }
        let write = self.writes.at_mut(id);
        write.copies -= 1;
        if write.copies == 0 {
            self.submit_when_marked(id);
        }
    }

    /// Old content is saved in a set, as far as that still holds it on disk.
    pub(super) fn save_in(&mut self, index: usize, disk: DiskIndex, sector: u64, sectors: u64, old: &Content) {
        let mut saved = Vec::new();
        self.queue.change(index, |set| saved = set.save(disk, sector, sectors, old));
        let queued = &mut self.queue[index];
        match old {
            Content::Unreadable => queued.is_point &= saved.is_empty(),
            Content::Captured(_) => saved.iter().for_each(|(start, _)| queued.became_captured(disk, *start)),
            _ => {}
        }
    }

    /// Begins parts of sealed sets, oldest first, and seals each set whose parts are all with the link.
    pub(super) fn send_sets(&mut self) {
        let mut index = 0;
        let mut window = self.window();
        while index < self.queue.len() {
            let queued = &mut self.queue[index];
            let Some(number) = queued.number else { return };
            if self.mends.values().any(|(disk, block)| queued.touches(*disk, *block)) {
                return;
            }
            if queued.parts.is_none() {
                let plans = PartPlan::of(&queued.set, self.options.part_bytes);
                queued.parts = Some(plans.into_iter().map(Part::new).collect());
            }
            let parts = queued.parts.as_ref().map_or(0, Vec::len);
            for part in 0..parts {
                if self.part(index, part).state != PartState::Waiting {
                    continue;
                }
                if !window.takes(&self.part(index, part).plan) || !self.begin_part(index, part, &mut window) {
                    return;
                }
            }
            let queued = &self.queue[index];
            let all_with_link = queued.parts.iter().flatten().all(|part| part.state >= PartState::Sent);
            if all_with_link && !queued.seal_sent {
                let seal = self.seal_message(queued, number);
                self.queue[index].seal_sent = true;
                self.queue[index].told.get_or_insert((seal.is_point, seal.unreadable_bytes));
                self.actions.push_back(Action::Link(ToLink::Seal(seal)));
            }
            index += 1;
        }
    }

    pub(super) fn part(&mut self, set: usize, part: usize) -> &mut Part {
        let parts = self.queue[set].parts.as_mut().expect("a set that is sent has been planned");
        &mut parts[part]
    }

    /// Bytes that may be with the link. What is there can't go to the spool, so it is no more than stays in memory anyway.
    fn window_bytes(&self) -> u64 {
        match self.spool.exists() {
            true => ORDERED_BYTES_IN_FLIGHT.min(self.options.memory_bytes / KEPT_SHARE),
            false => ORDERED_BYTES_IN_FLIGHT,
        }
    }

    fn window(&self) -> Window {
        let mut window = Window { bytes_max: self.window_bytes(), ..Window::default() };
        for queued in self.queue.iter().take_while(|queued| queued.is_started()) {
            for part in queued.parts.iter().flatten() {
                if matches!(part.state, PartState::Reading | PartState::Sent) {
                    window.add(&part.plan, part.has_own_buffers);
                }
            }
        }
        window
    }

    fn seal_message(&self, queued: &QueuedSet, number: u64) -> SealSet {
        let mark = queued.set.cut_mark().expect("a sealed set has been cut");
        SealSet {
            group: self.options.name.clone(),
            phase: self.phase.0,
            number,
            parent: number - 1,
            parts: queued.parts.as_ref().map_or(0, |parts| parts.len() as u32),
            sectors: queued.set.sectors(),
            cut_time_us: mark.time.0,
            kind: mark.kind as i32,
            label: mark.label.clone().unwrap_or_default(),
            closes_bulk: queued.closes_bulk,
            is_point: queued.is_point,
            marks: self.tracked.intent.committed(),
            unreadable_bytes: self.unreadable_bytes_at(queued.set.epoch()),
        }
    }

    /// Whether the target was told something of a set, in this phase, that what is sent now would belie: it keeps the first seal.
    pub(super) fn is_belied(&self) -> bool {
        let mut told = self.queue.iter().filter_map(|queued| Some((queued, queued.told?)));
        told.any(|(queued, (is_point, unreadable_bytes))| {
            let epoch = queued.set.epoch();
            (is_point && !queued.is_point) || unreadable_bytes < self.unreadable_bytes_at(epoch)
        })
    }

    /// Everything that is not acknowledged is sent anew, in a phase in which nothing was said yet (L2, S17).
    pub(super) fn tell_anew(&mut self) {
        self.leave_phase("a block of the protected disk could not be read");
        self.reopen();
    }

    /// Begins a phase in which nothing was said yet: sets in memory are to be sent again, rounds go back to the bitmap.
    pub(super) fn leave_phase(&mut self, why: &str) {
        if !self.bulk.is_empty() {
            self.next_number = None;
        }
        self.verify_lost(why);
        self.return_bulk();
        self.forget_told();
        self.new_phase();
    }

    /// No part of a set and no seal counts as sent.
    pub(super) fn forget_told(&mut self) {
        self.assemblies.clear();
        for index in 0..self.queue.len() {
            let queued = &mut self.queue[index];
            (queued.seal_sent, queued.told) = (false, None);
            for part in queued.parts.iter_mut().flatten() {
                (part.state, part.was_sent) = (PartState::Waiting, false);
            }
        }
    }

    /// A part of a set is durable on the target.
    pub(super) fn part_durable(&mut self, number: u64, part: u32) {
        let Some(index) = self.queue.index_of(number) else { return };
        if let Some(part) = self.queue[index].parts.as_mut().and_then(|parts| parts.get_mut(part as usize)) {
            // While it is read for another time, its content has to stay where it is.
            if part.state != PartState::Reading {
                part.state = PartState::Durable;
            }
        }
    }

    /// All sets up to `number` are durable on the target: they are gone from here.
    pub(super) fn sets_durable(&mut self, number: u64) {
        let mut any = false;
        while let Some(front) = self.queue.front() {
            let Some(own) = front.number.filter(|own| *own <= number) else { break };
            let Some(queued) = self.queue.pop_front() else { break };
            any = true;
            self.assemblies.retain(|(set, _), _| *set != own);
            self.remember(&queued, own);
            self.spool.release(&queued);
            self.healed_through(queued.set.epoch());
            self.points_durable(&queued, own);
            self.counters.set_acked(own, queued.set.cut_mark(), self.now);
            if queued.closes_bulk {
                self.peer.bulk_closed();
            }
        }
        if any {
            self.release_held();
        }
    }

    /// Once no set holds anything on disk, the filter for copy before write is empty again.
    pub(super) fn release_held(&mut self) {
        if self.queue.iter().all(|queued| queued.set.on_disk_blocks() == 0) {
            for disk in self.disks.iter_mut().filter(|disk| !disk.held.is_empty()) {
                disk.held.clear_all();
            }
        }
    }
}

/// What the window of ordered parts holds.
#[derive(Debug, Default)]
pub(super) struct Window {
    bytes_max: u64,
    bytes: u64,
    parts: usize,
    read_parts: usize,
}

impl Window {
    pub(super) fn add(&mut self, plan: &PartPlan, has_own_buffers: bool) {
        self.bytes += plan.bytes;
        self.parts += 1;
        self.read_parts += usize::from(has_own_buffers);
    }

    /// Whether another part may be read into buffers of its own.
    pub(super) fn takes_reads(&self) -> bool {
        self.read_parts < READ_PARTS_IN_FLIGHT
    }

    fn takes(&self, plan: &PartPlan) -> bool {
        self.parts == 0 || (self.bytes + plan.bytes <= self.bytes_max && self.parts < ORDERED_PARTS_IN_FLIGHT)
    }
}
