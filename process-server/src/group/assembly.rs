//! Puts parts of sealed sets together: from memory, from the protected disks, from the spool.
//!
//! A part whose content is all in memory goes to the link at once. For others the reads are started together; when the
//! last has ended the part is made from the set as it is then (S5). What is with the link stays in memory as it is, so
//! nothing of a part that is being put together moves to the spool meanwhile (`queue`).

use std::collections::BTreeMap;

use blockio::Slice;
use bytes::Bytes;
use proto::frame::{RawContent, RawExtent};
use proto::ids::DiskIndex;
use proto::replication::{PartBegin, PartKind};

use super::action::{Action, ReadOutcome};
use super::catchup::CatchUpReason;
use super::core::Group;
use super::queue::PartState;
use super::sending::{COMPRESSION, PendingRead, ReadPurpose, Window};
use crate::changeset::{Captured, Content, PartPlan, Record};
use crate::rules::Rule;
use crate::send::{PartJob, ToLink};
use crate::spool::limits::{CHUNK_BYTES_MAX, READ_GAP_MAX, SPOOL_UNIT};

/// The reads of one part that is being put together.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    left: u32,
    /// What was read of the protected disks, by disk and sector.
    disks: BTreeMap<(u32, u64), (u64, ReadOutcome)>,
    /// What was read of the spool, by offset.
    records: BTreeMap<u64, Captured>,
}

impl Assembly {
    pub(super) fn more_reads(&mut self, more: u32) {
        self.left += more;
    }
}

/// A range of the spool that is read at once, and the records in it.
#[derive(Debug, PartialEq, Eq)]
struct SpoolRange {
    offset: u64,
    end: u64,
    records: Vec<Record>,
}

impl Group {
    /// Hands one part to the link, or starts the reads it needs. False: no room for another part with own buffers.
    pub(super) fn begin_part(&mut self, index: usize, part: usize, window: &mut Window) -> bool {
        let plan = self.part(index, part).plan.clone();
        let number = self.queue[index].number.expect("only sealed sets are sent");
        let set = &self.queue[index].set;
        let (mut held, mut records) = (Vec::new(), Vec::new());
        for range in &plan.ranges {
            for (sector, sectors, content) in set.extents(range.disk).clipped(range.sector, range.sectors) {
                match content {
                    Content::OnDisk => held.push((range.disk, sector, sectors)),
                    Content::Spooled(spooled) => records.push(spooled.record()),
                    Content::Captured(_) | Content::Zero | Content::Unreadable => {}
                }
            }
        }
        let reads = spool_ranges(records);
        let left = (held.len() + reads.len()) as u32;
        if left > 0 && !window.takes_reads() {
            return false;
        }
        let state = self.part(index, part);
        state.has_own_buffers = left > 0;
        window.add(&plan, left > 0);
        if left == 0 {
            return self.hand_over(index, part, &Assembly::default());
        }
        state.state = PartState::Reading;
        let part = part as u32;
        self.assemblies.insert((number, part), Assembly { left, ..Assembly::default() });
        for (disk, sector, sectors) in held {
            self.start_read(ReadPurpose::Part { number, part }, disk, sector, sectors, true);
        }
        for SpoolRange { offset, end, records } in reads {
            self.read_spool(number, part, offset, (end - offset) as u32, records);
        }
        true
    }

    /// A read of a protected disk for a part has ended.
    pub(super) fn part_read_done(&mut self, number: u64, part: u32, read: &PendingRead, outcome: ReadOutcome) {
        let Some(assembly) = self.assemblies.get_mut(&(number, part)) else { return };
        assembly.disks.insert((read.disk.0, read.sector), (read.sectors, outcome));
        self.part_was_read((number, part));
    }

    /// Records for a part have come from the spool, checked.
    pub(super) fn part_records_read(&mut self, key: (u64, u32), read: Vec<(Record, Bytes)>) {
        let Some(assembly) = self.assemblies.get_mut(&key) else { return };
        let records = read.into_iter().map(|(record, bytes)| (record.offset, Captured::new(bytes, record.crc)));
        assembly.records.extend(records);
        self.part_was_read(key);
    }

    /// One read for a part has ended; after the last it goes to the link.
    fn part_was_read(&mut self, (number, part): (u64, u32)) {
        let Some(assembly) = self.assemblies.get_mut(&(number, part)) else { return };
        assembly.left -= 1;
        if assembly.left > 0 {
            return;
        }
        let assembly = self.assemblies.remove(&(number, part)).unwrap_or_default();
        let Some(index) = self.queue.index_of(number) else { return };
        if self.peer.is_open() {
            self.hand_over(index, part as usize, &assembly);
        } else {
            self.part(index, part as usize).state = PartState::Waiting;
        }
    }

    /// Puts a part together and gives it to the link. False when captured data no longer matches its checksum: then
    /// everything that was captured is dropped and read again from the disk (P6).
    fn hand_over(&mut self, index: usize, part: usize, read: &Assembly) -> bool {
        let plan = self.part(index, part).plan.clone();
        let Some((extents, complete)) = self.extents_of(index, &plan, read) else {
            self.drop_everything(CatchUpReason::DamagedCapture);
            return false;
        };
        self.queue[index].is_point &= complete;
        if !self.queue[index].is_point && self.is_belied() && Rule::BeliedIsToldAnew.holds() {
            self.tell_anew();
            return false;
        }
        let queued = &mut self.queue[index];
        let begin = PartBegin {
            group: self.options.name.clone(),
            phase: self.phase.0,
            kind: PartKind::Ordered as i32,
            number: queued.number.expect("only sealed sets are sent"),
            part: part as u32,
            // Their seal says it.
            marks: 0,
        };
        let (bases, keep) = (self.bases_of(index, &plan), self.keep_of(index, part));
        self.part(index, part).state = PartState::Sent;
        let job = PartJob { begin, extents, level: COMPRESSION, bases, keep };
        self.actions.push_back(Action::Link(ToLink::Part(job)));
        true
    }

    /// The content of a part, and whether all of it could be read. `None`: some no longer matches its checksum.
    fn extents_of(&self, index: usize, plan: &PartPlan, read: &Assembly) -> Option<(Vec<RawExtent>, bool)> {
        let mut extents = Vec::with_capacity(plan.ranges.len());
        let mut complete = true;
        for range in &plan.ranges {
            let set = &self.queue[index].set;
            for (sector, sectors, content) in set.extents(range.disk).clipped(range.sector, range.sectors) {
                let mut push = |sector, content| extents.push(RawExtent { disk: range.disk, sector, content });
                match content {
                    Content::Captured(captured) => push(sector, captured.to_raw()?),
                    Content::Spooled(spooled) => {
                        let record = read.records.get(&spooled.record().offset);
                        let record = record.expect("nothing of a part that is being put together moves to the spool");
                        push(sector, spooled.restore(record).to_raw()?);
                    }
                    Content::Zero => push(sector, RawContent::Zero { sectors: sectors as u32 }),
                    Content::Unreadable => push(sector, RawContent::Unreadable { sectors: sectors as u32 }),
                    Content::OnDisk => complete &= read_content(&read.disks, range.disk, sector, sectors, push),
                }
            }
        }
        Some((extents, complete))
    }
}

/// Records in ranges of whole units, of at most 1 MiB, which are read at once.
fn spool_ranges(mut records: Vec<Record>) -> Vec<SpoolRange> {
    records.sort_unstable_by_key(|record| record.offset);
    // An extent that two ranges of the part share.
    records.dedup_by_key(|record| record.offset);
    let mut ranges: Vec<SpoolRange> = Vec::new();
    for record in records {
        let offset = record.offset / SPOOL_UNIT * SPOOL_UNIT;
        let end = (record.offset + u64::from(record.bytes)).next_multiple_of(SPOOL_UNIT);
        match ranges.last_mut() {
            Some(last) if offset <= last.end + READ_GAP_MAX && end - last.offset <= CHUNK_BYTES_MAX => {
                last.end = last.end.max(end);
                last.records.push(record);
            }
            _ => ranges.push(SpoolRange { offset, end, records: vec![record] }),
        }
    }
    ranges
}

/// Puts what was read of `[sector, sector + sectors)` on the part. False if some of it could not be read.
fn read_content(
    reads: &BTreeMap<(u32, u64), (u64, ReadOutcome)>,
    disk: DiskIndex,
    sector: u64,
    sectors: u64,
    mut push: impl FnMut(u64, RawContent),
) -> bool {
    let mut complete = true;
    let mut at = sector;
    let end = sector + sectors;
    while at < end {
        let covering = reads
            .range(..=(disk.0, at))
            .next_back()
            .filter(|((on, start), (len, _))| *on == disk.0 && at < start + len);
        let Some(((_, start), (len, outcome))) = covering else {
            unreachable!("what was on disk when the part began was read, and nothing becomes on-disk in a sealed set");
        };
        let until = (start + len).min(end);
        let content = match outcome {
            ReadOutcome::Data(bytes) => {
                let captured = Captured::checksummed(bytes.clone());
                let slice = captured.slice(at - start, until - at);
                slice.to_raw().expect("a buffer that was just summed matches its sum")
            }
            ReadOutcome::Hole => RawContent::Zero { sectors: (until - at) as u32 },
            ReadOutcome::Failed => {
                complete = false;
                RawContent::Unreadable { sectors: (until - at) as u32 }
            }
        };
        push(at, content);
        at = until;
    }
    complete
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_records_are_read_together_and_distant_ones_apart() {
        let record = |offset, bytes| Record { offset, bytes, crc: 0 };
        let all = vec![record(5120, 512), record(0, 4096), record(4096, 1024), record(0, 4096), record(900_000, 512)];
        let ranges = spool_ranges(all);
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        assert_eq!((ranges[0].offset, ranges[0].end, ranges[0].records.len()), (0, 8192, 3));
        assert_eq!((ranges[1].offset, ranges[1].end), (897_024, 901_120));
    }

    #[test]
    fn no_read_is_longer_than_a_mebibyte() {
        let records = (0..600).map(|at| Record { offset: at * 4096, bytes: 4096, crc: 0 }).collect();
        let ranges = spool_ranges(records);
        assert!(ranges.iter().all(|range| range.end - range.offset <= 1 << 20));
        assert_eq!(ranges.iter().map(|range| range.records.len()).sum::<usize>(), 600);
        let whole = vec![Record { offset: 4096, bytes: 1 << 20, crc: 0 }];
        assert_eq!(spool_ranges(whole)[0].end - 4096, 1 << 20);
    }
}
