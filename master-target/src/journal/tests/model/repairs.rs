//! Comparisons and repairs in the model.

use bytes::Bytes;
use proto::replication::CompareRun;

use super::{Failed, SIZES, World};
use crate::apply::Progress;

impl World {
    /// Asks whether the disks hold what the guest has in a dirty place. "The same" is an acknowledgement (rule L4).
    pub(super) fn compare(&mut self) -> Result<(), Failed> {
        let mut dirty: Vec<(u32, u64)> = self.source.dirty.iter().copied().collect();
        if self.random.below(2) == 0 {
            // Where they do: what a lost session sent, synced or not.
            let held = [self.rig.disks.content(0), self.rig.disks.content(1)];
            let sector_of = |image: &[Vec<u8>], (disk, sector): (u32, u64)| {
                image[disk as usize][sector as usize * 512..(sector as usize + 1) * 512].to_vec()
            };
            dirty.retain(|place| {
                let there = sector_of(&held, *place);
                there == sector_of(&self.source.guest, *place) && there.iter().any(|byte| *byte != 0)
            });
        }
        let Some(&(disk, sector)) = dirty.get(self.random.below(dirty.len().max(1) as u64) as usize) else {
            return Ok(());
        };
        let sectors = (1 + self.random.below(16)).min(SIZES[disk as usize] / 512 - sector);
        let content = &self.source.guest[disk as usize][sector as usize * 512..(sector + sectors) as usize * 512];
        let digests = proto::digest::of_run(content);
        let run = CompareRun { disk, sector, sectors: sectors as u32, digests };
        let is_same = !self.rig.applier.compare(&[run])?.contains(0);
        self.acked_counter = self.acked_counter.max(self.rig.applier.durable_counter()?.0);
        if is_same {
            let was_seen = |(on, at): &(u32, u64)| *on == disk && (sector..sector + sectors).contains(at);
            self.source.dirty.retain(|place| !was_seen(place));
        }
        Ok(())
    }

    /// A block rots and is repaired, with nothing of it on its way.
    pub(super) fn repair(&mut self) -> Result<(), Failed> {
        while self.rig.applier.apply_next()? != Progress::Idle {}
        let disk = self.random.below(2) as u32;
        let block = self.random.below(SIZES[disk as usize].div_ceil(4096));
        let content = self.rig.disks.content(disk);
        let right = content[block as usize * 4096..content.len().min((block as usize + 1) * 4096)].to_vec();
        self.mending = Some((disk, block * 4096, right.clone()));
        self.rig.disks.overwrite(disk, block * 4096, &vec![0xee; right.len()]);
        let crc = blockio::crc32(&right);
        self.rig.applier.repair(disk, block * 8, Bytes::from(right), crc)?;
        self.rig.applier.sync_bulk()?;
        self.mending = None;
        Ok(())
    }
}
