//! Flushes of the simulated source's disks: what they vouch for, and what is lost with one that fails (REVIEW W10).

use proto::ids::DiskIndex;

use super::{Op, Source};
use crate::random::Random;
use crate::sim::history::Content;
use crate::sim::trace;

impl Source {
    /// A flush has ended. What was there when it began is what it vouches for.
    pub(super) fn flush_ends(&mut self, index: usize, ok: bool, random: &mut Random) {
        match self.ops.swap_remove(index) {
            Op::Flush { id, disks, seen } => {
                for (disk, seen) in disks.iter().zip(&seen) {
                    self.disk_flushed(*disk, seen, ok, random);
                }
                let failed = if ok { Vec::new() } else { disks.into_iter().map(DiskIndex).collect() };
                self.group.disks_flushed(id, &failed);
            }
            Op::GuestFlush { id, disk, seen, since } => {
                self.disk_flushed(disk, &seen, ok, random);
                if ok {
                    self.life().flushed(disk, since);
                }
                self.group.flush_ended(DiskIndex(disk), id, ok);
            }
            _ => unreachable!("only flushes end here"),
        }
    }

    fn disk_flushed(&mut self, disk: u32, seen: &[Content], ok: bool, random: &mut Random) {
        if ok {
            return self.disks[disk as usize].flushed(seen);
        }
        let writes = &self.writes;
        let is_busy = |sector: usize| {
            let sector = sector as u64;
            writes.values().any(|write| {
                write.disk == disk && (write.sector..write.sector + write.content.len() as u64).contains(&sector)
            })
        };
        let fallen = self.disks[disk as usize].falls_back(is_busy, random);
        trace::step("a flush fails (disk, sectors that fall back)", disk.into(), fallen.len() as u64);
        for (sector, content) in fallen {
            self.life().fell_back(disk, sector as u64, content);
            // A flush under way vouches for what is still there.
            for op in &mut self.ops {
                match op {
                    Op::Flush { disks, seen, .. } => {
                        let of_disk = disks.iter().zip(seen).filter(|(on, _)| **on == disk);
                        of_disk.for_each(|(_, seen)| seen[sector] = content);
                    }
                    Op::GuestFlush { disk: on, seen, .. } if *on == disk => seen[sector] = content,
                    _ => {}
                }
            }
        }
    }
}
