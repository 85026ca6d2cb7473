//! Verification: does the target hold what the source holds? Asked while guests write, without a false alarm.
//!
//! Units of 64 KiB are compared first. Where one differs its 4 KiB blocks are asked again, one by one, and only that answer
//! can count. It counts for a block that had nothing unacknowledged when it was read and was not written until the answer:
//! then nothing of it was on its way. Any other is asked again, ever later, and in the end counted as unverified. "Same"
//! always counts. The argument, and that of repairs, is docs/verify.md.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use blockio::{BLOCK, SECTOR, crc32};
use bytes::Bytes;
use proto::digest;
use proto::frame::{RawContent, RawExtent};
use proto::ids::DiskIndex;
use proto::replication::{BlocksCompared, RepairBlock};

use super::action::{Action, ReadOutcome};
use super::core::Group;
use super::findings::{PLACES_MAX, VerifiedDisk};
use super::sending::ReadPurpose;
use crate::control::GroupState;
use crate::rules::Rule;
use crate::send::{CompareJob, ToLink};

/// Blocks of one question: 1 MiB, one read.
const QUESTION_BLOCKS: u64 = (1 << 20) / BLOCK;
/// Blocks of a unit, whose blocks are asked one by one.
const UNIT_BLOCKS: u64 = digest::UNIT_BYTES as u64 / BLOCK;
/// Questions and repairs on their way: 8 MiB of buffers.
const QUESTIONS_MAX: usize = 8;
/// Places to be asked again before no new ones are looked at: a bound on memory.
const AGAIN_MAX: usize = 1024;
/// How often a block is asked before it counts as unverified.
const TRIES_MAX: u32 = 10;
/// First pause before a block is asked again; it doubles up to [`PAUSE_MAX`]: 27 s until a block is given up.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(6);
/// Sectors of a block.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// Blocks of one disk.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Which of the disks that are verified.
    index: usize,
    block: u64,
    blocks: u64,
}

/// Blocks to be asked one by one.
#[derive(Debug)]
struct Again {
    place: Place,
    tries: u32,
    at: Duration,
}

/// What was asked, from the read to the answer.
#[derive(Debug)]
struct Question {
    place: Place,
    /// Asked block by block, for this time; none: by units.
    tries: Option<u32>,
    /// One bit per block that is, or was since the read began, on its way. Of questions by blocks only.
    touched: u16,
    /// Content of the blocks, kept for a repair.
    content: Vec<Bytes>,
    is_sent: bool,
}

/// A verification from its beginning to its report.
#[derive(Debug)]
pub(super) struct Verify {
    repairs: bool,
    disks: Vec<VerifiedDisk>,
    next: (usize, u64),
    again: VecDeque<Again>,
    questions: BTreeMap<u32, Question>,
    /// Blocks that are being mended, by request.
    mending: BTreeMap<u32, Place>,
}

impl Group {
    /// Begins to verify these disks. `Action::VerifyDone` tells the end.
    ///
    /// # Errors
    /// Says why not, for the operator.
    pub fn verify(&mut self, disks: &[DiskIndex], repairs: bool) -> Result<(), String> {
        if self.verify.is_some() {
            return Err("the group is being verified: wait for that to end".into());
        }
        let state = self.state();
        if state != GroupState::Streaming {
            return Err(format!("the group is {state}: verify it when it is streaming"));
        }
        let disks = disks.iter().map(|disk| VerifiedDisk::new(disk.0)).collect();
        let (again, questions, mending) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        self.verify = Some(Verify { repairs, disks, next: (0, 0), again, questions, mending });
        Ok(())
    }

    /// Nobody waits for the verification any more.
    pub fn cancel_verify(&mut self) {
        self.verify = None;
    }

    /// Bytes that are done, and all there are, of the verification in progress.
    #[must_use]
    pub fn verify_progress(&self) -> Option<(u64, u64)> {
        let verify = self.verify.as_ref()?;
        let done = verify.disks.iter().map(|disk| disk.compared_bytes + disk.unverified_bytes).sum();
        let total = verify.disks.iter().map(|disk| self.disks[disk.disk as usize].spec.size).sum();
        Some((done, total))
    }

    /// What the verification relies on is gone. Repairs that were sent keep their place in the order.
    pub(super) fn verify_lost(&mut self, why: &str) {
        if self.verify.take().is_some() {
            let why = format!("the verification ended early: {why}; run it again when the group is streaming");
            self.actions.push_back(Action::VerifyDone(Err(why)));
        }
    }

    /// A write of these blocks was admitted.
    pub(super) fn verify_touched(&mut self, disk: DiskIndex, block: u64, blocks: u64) {
        let Some(verify) = &mut self.verify else { return };
        let Verify { questions, disks, .. } = verify;
        for question in questions.values_mut().filter(|_| Rule::TouchedIsAskedAgain.holds()) {
            if question.tries.is_some() && disks[question.place.index].disk == disk.0 {
                question.touched |= bits(question.place, block, blocks);
            }
        }
    }

    /// Asks as much as the window allows. Part of `pump`, after everything that is ordered.
    pub(super) fn pump_verify(&mut self) {
        if self.verify.is_none() {
            return;
        }
        let state = self.state();
        if state != GroupState::Streaming {
            return self.verify_lost(&format!("the group is {state}"));
        }
        while let Some(verify) = &mut self.verify {
            if let Some(full) = verify.disks.iter().find(|disk| disk.is_overfull()) {
                let name = self.disks[full.disk as usize].spec.name.clone();
                let what = format!("disk \"{name}\" differs from its target in more than {PLACES_MAX} places");
                return self.verify_lost(&what);
            }
            if verify.questions.len() + verify.mending.len() >= QUESTIONS_MAX {
                return;
            }
            let due = verify.again.iter().position(|again| again.at <= self.now.mono);
            if let Some(again) = due.and_then(|index| verify.again.remove(index)) {
                self.ask(again.place, Some(again.tries));
            } else if let Some(place) = self.next_place() {
                self.ask(place, None);
            } else {
                break;
            }
        }
        self.end_verify();
    }

    /// The next blocks that were not looked at yet.
    fn next_place(&mut self) -> Option<Place> {
        let verify = self.verify.as_mut().filter(|verify| verify.again.len() < AGAIN_MAX)?;
        let (index, block) = verify.next;
        let all = self.disks[verify.disks.get(index)?.disk as usize].blocks;
        let blocks = QUESTION_BLOCKS.min(all - block);
        verify.next = if block + blocks == all { (index + 1, 0) } else { (index, block + blocks) };
        Some(Place { index, block, blocks })
    }

    fn end_verify(&mut self) {
        let is_idle =
            |verify: &mut Verify| verify.questions.is_empty() && verify.again.is_empty() && verify.mending.is_empty();
        if let Some(verify) = self.verify.take_if(is_idle) {
            self.actions.push_back(Action::VerifyDone(Ok(verify.disks)));
        }
    }

    fn ask(&mut self, place: Place, tries: Option<u32>) {
        let Some(verify) = &self.verify else { return };
        let disk = DiskIndex(verify.disks[place.index].disk);
        let touched = if tries.is_some() { self.unsettled(disk, place) } else { 0 };
        let id = self.bulk_parts_used;
        self.bulk_parts_used += 1;
        let sectors = sectors_of(place, self.disks[disk.0 as usize].sectors);
        let question = Question { place, tries, touched, content: Vec::new(), is_sent: false };
        if let Some(verify) = &mut self.verify {
            verify.questions.insert(id, question);
        }
        self.start_read(ReadPurpose::Verify(id), disk, place.block * BLOCK_SECTORS, sectors, true);
    }

    /// Blocks that have something on its way to the target: a write, a set, a dirty or suspect bit, a repair; and those that a
    /// disk which can't be flushed may have lost, which are read again later.
    fn unsettled(&self, disk: DiskIndex, place: Place) -> u16 {
        if !Rule::UnsettledIsAskedAgain.holds() {
            return 0;
        }
        let state = &self.disks[disk.0 as usize];
        let mut touched = 0;
        for write in self.writes.iter().filter(|write| write.disk == disk) {
            touched |= bits(place, write.block, write.blocks);
        }
        for (block, blocks) in self.doubtful_since_flush(disk) {
            touched |= bits(place, block, blocks);
        }
        for block in place.block..place.block + place.blocks {
            let maps = [&state.dirty, &state.suspect, &state.unreadable];
            let marked = maps.iter().any(|map| map.contains(block));
            let mended = self.mends.values().any(|mend| *mend == (disk, block));
            if marked || mended || self.queue.iter().any(|queued| queued.touches(disk, block)) {
                touched |= bits(place, block, 1);
            }
        }
        touched
    }

    /// What is to be compared has been read.
    pub(super) fn verify_read_done(&mut self, id: u32, outcome: ReadOutcome) {
        let Some(verify) = &mut self.verify else { return };
        let Some(question) = verify.questions.get_mut(&id) else { return };
        let (place, now) = (question.place, self.now.mono);
        let disk = DiskIndex(verify.disks[place.index].disk);
        let sectors = sectors_of(place, self.disks[disk.0 as usize].sectors);
        let by_blocks = question.tries.is_some();
        let bytes = match outcome {
            ReadOutcome::Data(bytes) => Some(bytes),
            ReadOutcome::Hole if by_blocks => Some(vec![0; (sectors * SECTOR) as usize].into()),
            ReadOutcome::Hole => None,
            ReadOutcome::Failed => {
                verify.questions.remove(&id);
                return verify.could_not_read(place, sectors * SECTOR, now);
            }
        };
        question.is_sent = true;
        let data = |bytes: Bytes| RawContent::Data { crc: crc32(&bytes), bytes };
        let first = place.block * BLOCK_SECTORS;
        let extents = match bytes {
            Some(bytes) if by_blocks => {
                let cut = |at: usize| bytes.slice(at..(at + BLOCK as usize).min(bytes.len()));
                question.content = (0..bytes.len()).step_by(BLOCK as usize).map(cut).collect();
                let blocks = (first..).step_by(BLOCK_SECTORS as usize).zip(&question.content);
                blocks.map(|(sector, bytes)| RawExtent { disk, sector, content: data(bytes.clone()) }).collect()
            }
            Some(bytes) => vec![RawExtent { disk, sector: first, content: data(bytes) }],
            None => vec![RawExtent { disk, sector: first, content: RawContent::Zero { sectors: sectors as u32 } }],
        };
        let job = CompareJob { group: self.options.name.clone(), phase: self.phase.0, request: id, extents };
        self.actions.push_back(Action::Link(ToLink::Compare(job)));
    }

    /// The target has compared. False: it was not asked by a verification.
    pub(super) fn verify_compared(&mut self, answer: &BlocksCompared) -> bool {
        let Some(verify) = &mut self.verify else { return false };
        let Some(question) = verify.questions.remove(&answer.request) else { return false };
        assert!(question.is_sent, "only what was sent is answered");
        let grain = if question.tries.is_some() { 1 } else { UNIT_BLOCKS };
        let disk = DiskIndex(verify.disks[question.place.index].disk);
        let disk_bytes = self.disks[disk.0 as usize].spec.size;
        let Place { index, block: first, blocks } = question.place;
        for (unit, block) in (first..first + blocks).step_by(grain as usize).enumerate() {
            let place = Place { index, block, blocks: grain.min(first + blocks - block) };
            let differs = digest::differs(&answer.differs, unit);
            let Some(verify) = &mut self.verify else { return true };
            let found = &mut verify.disks[index];
            let bytes = (place.blocks * BLOCK).min(disk_bytes - block * BLOCK);
            match question.tries {
                _ if !differs => found.compared_bytes += bytes,
                None => verify.again.push_back(Again { place, tries: 0, at: self.now.mono }),
                Some(tries) if question.touched & bits(question.place, block, 1) != 0 => {
                    verify.ask_later(place, tries + 1, bytes, self.now.mono);
                }
                Some(_) if verify.repairs => self.mend(disk, place, question.content[unit].clone()),
                Some(_) => {
                    found.compared_bytes += bytes;
                    found.differs(block * BLOCK, bytes, false);
                }
            }
        }
        true
    }

    /// Sends what a damaged block must hold. Nothing of the block is on its way, and what is written from now on follows
    /// the answer.
    fn mend(&mut self, disk: DiskIndex, place: Place, content: Bytes) {
        let request = self.bulk_parts_used;
        self.bulk_parts_used += 1;
        self.mends.insert(request, (disk, place.block));
        // It may be newer than what the sets that were acknowledged left there.
        self.recent.forget(disk, place.block * BLOCK_SECTORS, BLOCK_SECTORS);
        if let Some(verify) = &mut self.verify {
            verify.mending.insert(request, place);
        }
        let repair = RepairBlock {
            group: self.options.name.clone(),
            phase: self.phase.0,
            request,
            disk: disk.0,
            sector: place.block * BLOCK_SECTORS,
            crc: crc32(&content),
            data: content.into(),
        };
        self.actions.push_back(Action::Link(ToLink::Repair(repair)));
    }

    /// A block is mended durably: what was held back behind it may go.
    pub(super) fn block_repaired(&mut self, request: u32) {
        self.mends.remove(&request);
        let Some(verify) = &mut self.verify else { return };
        let Some(place) = verify.mending.remove(&request) else { return };
        let found = &mut verify.disks[place.index];
        let bytes = BLOCK.min(self.disks[found.disk as usize].spec.size - place.block * BLOCK);
        found.compared_bytes += bytes;
        found.differs(place.block * BLOCK, bytes, true);
    }
}

impl Verify {
    /// A block that was on its way is asked again after a pause, or given up.
    fn ask_later(&mut self, place: Place, tries: u32, bytes: u64, now: Duration) {
        if tries >= TRIES_MAX {
            self.disks[place.index].unverified_bytes += bytes;
            return;
        }
        let at = now + PAUSE.saturating_mul(1 << tries).min(PAUSE_MAX);
        // Neighbours that were asked together are asked together again.
        match self.again.back_mut() {
            Some(Again { place: last, tries: same, at: then })
                if last.index == place.index
                    && last.block + last.blocks == place.block
                    && last.blocks < UNIT_BLOCKS
                    && (*same, *then) == (tries, at) =>
            {
                last.blocks += 1;
            }
            _ => self.again.push_back(Again { place, tries, at }),
        }
    }

    /// One bad block must not cost its neighbours their verification: what is left is asked in smaller places.
    fn could_not_read(&mut self, place: Place, bytes: u64, now: Duration) {
        if place.blocks == 1 {
            self.disks[place.index].unverified_bytes += bytes;
            return;
        }
        let smaller = if place.blocks > UNIT_BLOCKS { UNIT_BLOCKS } else { 1 };
        let end = place.block + place.blocks;
        for block in (place.block..end).step_by(smaller as usize) {
            let place = Place { block, blocks: smaller.min(end - block), ..place };
            self.again.push_back(Again { place, tries: 0, at: now });
        }
    }
}

/// Which of the first 16 blocks of a place are among these.
fn bits(place: Place, block: u64, blocks: u64) -> u16 {
    let (from, to) = (block.max(place.block), (block + blocks).min(place.block + place.blocks.min(16)));
    (from..to).fold(0, |bits, block| bits | 1 << (block - place.block))
}

/// Sectors of a place; the last block of a disk may be short.
fn sectors_of(place: Place, disk_sectors: u64) -> u64 {
    (place.blocks * BLOCK_SECTORS).min(disk_sectors - place.block * BLOCK_SECTORS)
}
