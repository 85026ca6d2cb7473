//! A model of a source: what the guest wrote, what of it was sent, and a full copy for each set it ever sealed.

use std::collections::{BTreeMap, BTreeSet};

use proto::frame::RawExtent;

use super::rig::{data, sectors_of, zeroes};
use crate::journal::Seeded;

pub type Image = Vec<Vec<u8>>;

/// A set that is not acknowledged.
#[derive(Clone)]
pub struct Sent {
    pub number: u64,
    /// Parts, of frames, of extents.
    pub parts: Vec<Vec<Vec<RawExtent>>>,
    pub sectors: BTreeSet<(u32, u64)>,
    pub closes_bulk: bool,
    pub is_point: bool,
}

pub struct Source {
    pub phase: u64,
    pub guest: Image,
    pub dirty: BTreeSet<(u32, u64)>,
    pub queue: Vec<Sent>,
    pub next: u64,
    pub images: BTreeMap<u64, (Image, bool)>,
    /// Bulk content that was sent and not acknowledged.
    pub in_flight: BTreeSet<(u32, u64)>,
    value: u8,
}

impl Source {
    pub fn new(sizes: &[u64]) -> Self {
        let mut source = Self {
            phase: 0,
            guest: sizes.iter().map(|size| vec![0; *size as usize]).collect(),
            dirty: BTreeSet::new(),
            queue: Vec::new(),
            next: 1,
            images: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            value: 0,
        };
        source.all_dirty();
        source
    }

    pub fn all_dirty(&mut self) {
        for (disk, content) in (0..).zip(&self.guest) {
            self.dirty.extend((0..content.len() as u64 / 512).map(|sector| (disk, sector)));
        }
    }

    /// The guest writes something, sometimes zeroes, sometimes what was there already.
    pub fn write(&mut self, random: &mut Seeded) {
        let disk = random.below(self.guest.len() as u64) as u32;
        let sectors = self.guest[disk as usize].len() as u64 / 512;
        let longest = if random.below(3) == 0 { 40 } else { 5 };
        let len = 1 + random.below(longest);
        let sector = random.below(sectors);
        let len = len.min(sectors - sector);
        self.value = self.value.wrapping_add(1);
        let value = if random.below(4) == 0 { 0 } else { self.value };
        for at in sector..sector + len {
            let from = at as usize * 512;
            self.guest[disk as usize][from..from + 512].fill(value);
            self.dirty.insert((disk, at));
        }
    }

    /// What these sectors hold now, as extents.
    pub fn extents(&self, sectors: &BTreeSet<(u32, u64)>) -> Vec<RawExtent> {
        let mut extents: Vec<RawExtent> = Vec::new();
        let all: Vec<(u32, u64)> = sectors.iter().copied().collect();
        let next_to = |a: &(u32, u64), b: &(u32, u64)| a.0 == b.0 && a.1 + 1 == b.1;
        for run in all.chunk_by(next_to) {
            for piece in run.chunks(16) {
                let (disk, sector) = piece[0];
                let from = sector as usize * 512;
                let bytes = self.guest[disk as usize][from..from + piece.len() * 512].to_vec();
                extents.push(if bytes.iter().all(|byte| *byte == 0) {
                    zeroes(disk, sector, piece.len() as u32)
                } else {
                    data(disk, sector, bytes)
                });
            }
        }
        extents
    }

    /// Everything dirty becomes a set.
    pub fn cut(&mut self, random: &mut Seeded, closes_bulk: bool) {
        let sectors = std::mem::take(&mut self.dirty);
        let extents = self.extents(&sectors);
        let frames: Vec<Vec<RawExtent>> =
            extents.chunks(1 + random.below(6) as usize).map(<[RawExtent]>::to_vec).collect();
        let parts = frames.chunks(1 + random.below(4) as usize).map(<[Vec<RawExtent>]>::to_vec).collect();
        let is_point = closes_bulk || random.below(8) > 0;
        let number = self.next;
        self.next += 1;
        self.images.insert(number, (self.guest.clone(), is_point));
        self.queue.push(Sent { number, parts, sectors, closes_bulk, is_point });
    }

    /// Everything unacknowledged becomes dirty (rule S8).
    pub fn overflow(&mut self) {
        for sent in self.queue.drain(..) {
            self.dirty.extend(sent.sectors);
        }
        self.dirty.append(&mut self.in_flight);
    }

    /// The target says which sets it has.
    pub fn acknowledged(&mut self, last: u64) {
        self.queue.retain(|sent| sent.number > last);
    }

    /// A new phase: numbers go on after the target's last set.
    pub fn restart_numbers(&mut self, last: u64) {
        self.next = last + 1;
        self.images.split_off(&self.next);
    }
}

pub fn sectors_in(part: &[Vec<RawExtent>]) -> u64 {
    part.iter().flatten().map(sectors_of).sum()
}
