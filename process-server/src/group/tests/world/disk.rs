//! Operations of the disks and of the state volume: some sectors at a time, in any order, with failures.

use super::*;

impl World {
    /// One operation goes on by some sectors, or ends.
    pub(in super::super) fn disk_progress(&mut self) {
        if self.ops.is_empty() {
            return;
        }
        let index = self.random.below(self.ops.len() as u64) as usize;
        let steps = 1 + self.random.below(if self.slow.1 { 60 } else { 12 });
        let is_marks = matches!(self.ops[index], DiskOp::Marks { .. });
        let fails = self.faults > 0 && self.random.one_in(self.faults) || is_marks && self.volume.is_bad;
        match &mut self.ops[index] {
            DiskOp::Write { landed, lands, disk, sector, .. } => {
                let until = (*landed + steps).min(lands.len() as u64);
                for at in *landed..until {
                    self.disks[*disk as usize][(*sector + at) as usize] = lands[at as usize];
                }
                *landed = until;
                if until == lands.len() as u64 || fails {
                    self.write_ends(index, !fails);
                }
            }
            DiskOp::Marks { .. } if self.volume.is_stuck => {}
            DiskOp::Marks { pages, written } if *written < pages.len() => {
                let (page, bytes) = &pages[*written];
                put_page(&mut self.marks, *page, bytes);
                *written += 1;
            }
            DiskOp::Marks { .. } => {
                self.ops.swap_remove(index);
                if !fails {
                    self.synced_marks.clone_from(&self.marks);
                }
                self.volume.broken.failed_commits += u64::from(fails);
                self.group.marks_committed(!fails);
                self.just_marked = 20;
            }
            DiskOp::Flush { .. } => self.flush_ends(index, fails),
            DiskOp::Read { disk, sector, sectors, seen, .. } => {
                for _ in 0..steps {
                    if (seen.len() as u64) < *sectors {
                        seen.push(self.disks[*disk as usize][*sector as usize + seen.len()]);
                    }
                }
                if seen.len() as u64 == *sectors {
                    self.read_ends(index);
                }
            }
        }
    }

    pub(super) fn write_ends(&mut self, index: usize, ok: bool) {
        let DiskOp::Write { id, .. } = self.ops.swap_remove(index) else { unreachable!() };
        let guest = self.guest.remove(&id).unwrap();
        let open = self.group.epochs.current().0;
        for (at, content) in guest.content.iter().enumerate() {
            let sector = guest.sector + at as u64;
            if ok {
                self.judge.became(guest.disk, sector, guest.epoch, *content);
            } else {
                let there = self.disks[guest.disk as usize][sector as usize];
                self.judge.failed(guest.disk, sector, guest.epoch, open, there);
            }
        }
        self.group.write_done(id, ok);
    }

    pub(super) fn read_ends(&mut self, index: usize) {
        let DiskOp::Read { id, seen, may_be_hole, .. } = self.ops.swap_remove(index) else { unreachable!() };
        let may_fail = self.reads_may_fail && self.faults > 0;
        let fails = self.reads_fail || may_fail && self.random.one_in(self.faults);
        let outcome = if fails {
            ReadOutcome::Failed
        } else if may_be_hole && seen.iter().all(|content| *content == 0) {
            ReadOutcome::Hole
        } else {
            ReadOutcome::Data(bytes_of(&seen))
        };
        self.group.read_done(id, outcome);
    }
}
