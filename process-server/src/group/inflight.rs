//! Writes between arrival and completion, and their order on overlapping blocks.
//!
//! A write takes its place on every 4 KiB block it touches when it arrives and waits for all earlier ones there,
//! running or waiting (S2, S13): the copy ends up bit-identical to the disk because both see one order. In flight are
//! a few hundred writes at most (the driver bounds them), so a scan of one disk's list beats any index.

use proto::ids::{DiskIndex, Epoch};

use super::action::{Change, WriteId};
use crate::rules::Rule;

/// One write in flight.
#[derive(Debug)]
pub struct InFlight {
    /// Disk of the group.
    pub disk: DiskIndex,
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u64,
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// What it writes.
    pub change: Change,
    /// CRC-32 of the data as it arrived, when it was taken.
    pub crc: Option<u32>,
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// Earlier writes on its blocks that are unfinished.
    pub waits: u32,
    /// Copies of old content that are still being read.
    pub copies: u32,
}

/// All writes in flight of a group.
#[derive(Debug)]
pub struct WriteTable {
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    by_disk: Vec<Vec<u32>>,
    waiting: usize,
}

impl WriteTable {
    /// An empty table for a group of `disks` disks.
    #[must_use]
    pub fn new(disks: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), by_disk: vec![Vec::new(); disks], waiting: 0 }
    }

    /// Adds a write behind all earlier ones on its blocks and fills in how many it waits for.
    pub fn insert(&mut self, mut write: InFlight) -> WriteId {
        let list = &self.by_disk[write.disk.0 as usize];
        let end = write.block + write.blocks;
        let before = list.iter().filter(|slot| overlaps(&self.slots, **slot, write.block, end)).count() as u32;
        write.waits = if Rule::OverlapsWait.holds() { before } else { 0 };
        if write.waits > 0 {
            self.waiting += 1;
        }
        let disk = write.disk.0 as usize;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(write);
                slot
            }
            None => {
                self.slots.push(Some(write));
                (self.slots.len() - 1) as u32
            }
        };
        self.by_disk[disk].push(slot);
        WriteId(slot)
    }

    /// The write.
    #[must_use]
    pub fn at(&self, id: WriteId) -> &InFlight {
        self.slots[id.0 as usize].as_ref().expect("a write id is valid until its completion")
    }

    /// The write, to be changed.
    pub fn at_mut(&mut self, id: WriteId) -> &mut InFlight {
        self.slots[id.0 as usize].as_mut().expect("a write id is valid until its completion")
    }

    /// Takes a completed write out; `ready` gets the writes that waited for nothing else.
    pub fn remove(&mut self, id: WriteId, ready: &mut Vec<WriteId>) -> InFlight {
        let done = self.slots[id.0 as usize].take().expect("a write completes once");
        self.free.push(id.0);
        let list = &mut self.by_disk[done.disk.0 as usize];
        let position = list.iter().position(|slot| *slot == id.0).expect("a write in flight is listed");
        list.swap_remove(position);
        if self.waiting > 0 {
            let end = done.block + done.blocks;
            for slot in &self.by_disk[done.disk.0 as usize] {
                let write = self.slots[*slot as usize].as_mut().expect("a listed write is in flight");
                // Only a write that arrived later can wait here; earlier ones that overlap had made `done` wait.
                if write.waits > 0 && write.block < end && done.block < write.block + write.blocks {
                    write.waits -= 1;
                    if write.waits == 0 {
                        self.waiting -= 1;
                        ready.push(WriteId(*slot));
                    }
                }
            }
        }
        done
    }

    /// All writes in flight.
    pub fn iter(&self) -> impl Iterator<Item = &InFlight> {
        self.slots.iter().flatten()
    }
}

fn overlaps(slots: &[Option<InFlight>], slot: u32, block: u64, end: u64) -> bool {
    slots[slot as usize].as_ref().is_some_and(|write| write.block < end && block < write.block + write.blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(block: u64, blocks: u64) -> InFlight {
        InFlight {
            disk: DiskIndex(0),
            sector: block * 8,
            sectors: blocks * 8,
            block,
            blocks,
            change: Change::Zero,
            crc: None,
            epoch: Epoch(1),
            waits: 0,
            copies: 0,
        }
    }

    #[test]
    fn a_write_waits_for_every_earlier_one_on_its_blocks_running_or_waiting() {
        let mut table = WriteTable::new(1);
        let a = table.insert(write(0, 2));
        let b = table.insert(write(1, 2));
        let c = table.insert(write(2, 1));
        let apart = table.insert(write(9, 1));
        assert_eq!([a, b, c, apart].map(|id| table.at(id).waits), [0, 1, 1, 0]);
        let mut ready = Vec::new();
        table.remove(a, &mut ready);
        assert_eq!(ready, vec![b]);
        ready.clear();
        table.remove(b, &mut ready);
        assert_eq!(ready, vec![c]);
        assert_eq!(table.iter().count(), 2);
    }

    #[test]
    fn a_write_over_two_others_waits_for_both() {
        let mut table = WriteTable::new(1);
        let a = table.insert(write(0, 1));
        let b = table.insert(write(1, 1));
        let both = table.insert(write(0, 2));
        let mut ready = Vec::new();
        table.remove(b, &mut ready);
        assert!(ready.is_empty());
        table.remove(a, &mut ready);
        assert_eq!(ready, vec![both]);
    }
}
