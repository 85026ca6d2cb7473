//! The cache volume of the simulated world: operations that take time and fail, a volume that is full for a while, reads
//! that give flipped bytes back; and the judge of what the core makes of it.
//!
//! Nothing orders operations: what lands last stays, as with a real engine. What the core takes for spooled must be there
//! at any time, to the byte; damage may be found only where a read was damaged; and neither memory nor the volume is used
//! beyond its bound.

use bytes::Bytes;

use super::{Random, World};
use crate::changeset::{Content, EXTENT_COST};
use crate::spool::limits::{CHUNK_BYTES_MAX, WRITES_IN_FLIGHT_MAX};

/// Bytes that move in one step.
const STEP: usize = 2048;

/// An operation under way.
#[derive(Debug)]
enum CacheOp {
    Open,
    Write {
        id: u64,
        offset: usize,
        data: Vec<u8>,
        landed: usize,
    },
    Read {
        id: u64,
        offset: usize,
        len: usize,
        seen: Vec<u8>,
    },
    /// Zeroes land step by step too.
    Empty {
        landed: usize,
    },
}

/// The volume.
#[derive(Debug)]
pub(in super::super) struct Cache {
    content: Vec<u8>,
    ops: Vec<CacheOp>,
    /// Writes fail for want of room for so many more.
    full_for: u32,
    /// Whether reads give flipped bytes back, and operations fail, now and then.
    flips: bool,
    fails: bool,
    /// What was done: writes and reads that ended well, reads that were flipped, operations that failed.
    pub(in super::super) written: u64,
    pub(in super::super) read: u64,
    pub(in super::super) flipped: u64,
    pub(in super::super) failed: u64,
    turns: u64,
}

impl Cache {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            content: vec![0; bytes as usize],
            ops: Vec::new(),
            full_for: 0,
            flips: false,
            fails: false,
            written: 0,
            read: 0,
            flipped: 0,
            failed: 0,
            turns: 0,
        }
    }

    /// Reads give flipped bytes back, operations fail, now and then.
    pub(super) fn fail(&mut self, flips: bool, fails: bool) {
        (self.flips, self.fails) = (flips, fails);
    }

    /// The next so many writes and openings find no room.
    pub(in super::super) fn fill(&mut self, failures: u32) {
        self.full_for = failures;
    }

    /// No more faults.
    pub(in super::super) fn heal(&mut self) {
        (self.flips, self.fails, self.full_for) = (false, false, 0);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ops.is_empty()
    }

    /// The process has ended: its file has no name, and is gone with it.
    pub(super) fn process_ends(&mut self) {
        self.ops.clear();
        self.content.fill(0x77);
    }

    pub(super) fn open(&mut self) {
        assert!(self.ops.is_empty(), "a new file is made when nothing is under way in the old one");
        self.ops.push(CacheOp::Open);
    }

    pub(super) fn write(&mut self, id: u64, offset: u64, len: u64, pieces: &[Bytes]) {
        let mut data = pieces.concat();
        assert!(data.len() as u64 <= len && len - (data.len() as u64) < 4096, "no room is wasted");
        data.resize(len as usize, 0);
        assert!(offset as usize + data.len() <= self.content.len(), "the spool is written within its bound");
        self.ops.push(CacheOp::Write { id, offset: offset as usize, data, landed: 0 });
        let writes = self.ops.iter().filter(|op| matches!(op, CacheOp::Write { .. })).count();
        // While a rule about writes is switched off, the core may lose count.
        assert!(writes <= 2 * WRITES_IN_FLIGHT_MAX, "{writes} writes to the spool at a time");
    }

    pub(super) fn read(&mut self, id: u64, offset: u64, len: u32) {
        assert!(u64::from(len) <= CHUNK_BYTES_MAX && offset.is_multiple_of(4096) && len.is_multiple_of(4096));
        self.ops.push(CacheOp::Read { id, offset: offset as usize, len: len as usize, seen: Vec::new() });
    }

    pub(super) fn empty(&mut self) {
        self.ops.push(CacheOp::Empty { landed: 0 });
    }

    /// One operation goes on; the number of the one that has ended.
    fn step(&mut self, random: &mut Random) -> Option<usize> {
        if self.ops.is_empty() {
            return None;
        }
        let index = random.below(self.ops.len() as u64) as usize;
        let steps = STEP * (1 + random.below(4) as usize);
        let ended = match &mut self.ops[index] {
            CacheOp::Open => {
                self.content.fill(0);
                true
            }
            CacheOp::Write { offset, data, landed, .. } => {
                let until = (*landed + steps).min(data.len());
                self.content[*offset + *landed..*offset + until].copy_from_slice(&data[*landed..until]);
                *landed = until;
                until == data.len()
            }
            CacheOp::Read { offset, len, seen, .. } => {
                let until = (seen.len() + steps).min(*len);
                seen.extend_from_slice(&self.content[*offset + seen.len()..*offset + until]);
                until == *len
            }
            CacheOp::Empty { landed } => {
                // On some volumes this takes as long as writing it all did.
                let pace = if self.fails { STEP } else { 8 * steps };
                let until = (*landed + pace).min(self.content.len());
                self.content[*landed..until].fill(0);
                *landed = until;
                until == self.content.len()
            }
        };
        ended.then_some(index)
    }
}

impl World {
    /// Something happens on the cache volume.
    pub(in super::super) fn cache_progress(&mut self) {
        if self.cache.fails && self.random.one_in(2000) {
            self.cache.full_for = 1 + self.random.below(6) as u32;
        }
        let fails = self.cache.fails && self.random.one_in(100);
        let Some(index) = self.cache.step(&mut self.random) else { return };
        let op = self.cache.ops.swap_remove(index);
        let needs_room = matches!(op, CacheOp::Write { .. } | CacheOp::Open);
        let is_full = needs_room && self.cache.full_for > 0;
        self.cache.full_for -= u32::from(is_full);
        let result = if fails || is_full { Err("no space left on device".to_owned()) } else { Ok(()) };
        self.cache.failed += u64::from(result.is_err());
        match op {
            CacheOp::Open => self.group.spool_opened(result),
            CacheOp::Empty { .. } => self.group.spool_emptied(result),
            CacheOp::Write { id, offset, data, .. } => {
                self.cache.written += u64::from(result.is_ok());
                if result.is_err() {
                    // What a failed write leaves is anybody's guess.
                    let torn = self.random.below(data.len() as u64) as usize;
                    self.cache.content[offset + torn..offset + data.len()].fill(0x33);
                }
                self.group.spool_written(id, result);
            }
            CacheOp::Read { id, mut seen, .. } => {
                self.cache.read += u64::from(result.is_ok());
                if self.cache.flips && self.random.one_in(4) {
                    let at = self.random.below(seen.len() as u64) as usize;
                    seen[at] ^= 1 << self.random.below(8);
                    self.cache.flipped += 1;
                }
                self.group.spool_read(id, result.map(|()| Bytes::from(seen)));
            }
        }
    }

    /// What the core believes of the spool is so.
    pub(super) fn judge_cache(&mut self) {
        let (stored, limit) = (self.group.spool.stored(), self.group.spool.limit());
        assert!(stored <= limit && limit <= self.cache.content.len() as u64, "{stored} bytes of {limit} are spooled");
        let damages = self.group.spool.damages();
        assert!(damages <= self.cache.flipped, "damage is found where there was none");
        self.cache.turns += 1;
        if !self.cache.turns.is_multiple_of(8) || stored == 0 {
            return;
        }
        for queued in self.group.queue.iter() {
            for disk in (0..queued.set.disks() as u32).map(proto::ids::DiskIndex) {
                for (sector, _, content) in queued.set.extents(disk).iter() {
                    let Content::Spooled(spooled) = content else { continue };
                    let record = spooled.record();
                    let (from, len) = (record.offset as usize, record.bytes as usize);
                    let sum = blockio::crc32(&self.cache.content[from..from + len]);
                    assert_eq!(sum, record.crc, "disk {} sector {sector} is not what was captured", disk.0);
                }
            }
        }
    }

    /// What memory is used beyond the budget, at the most: one request, and a set for each point that was asked for.
    pub(super) fn slack(&self) -> u64 {
        let asked = self.group.points.len() as u64 * crate::changeset::SET_COST;
        8192 + 20 * EXTENT_COST + asked
    }
}
