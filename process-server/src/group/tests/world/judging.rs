//! What the core asks for, carried out, and the judgement of each set that became durable.

use super::*;

impl World {
    pub(in super::super) fn compare(&self) {
        for disk in 0..DISKS {
            for sector in 0..SECTORS {
                // Only a failback comes without a verification before it.
                if self.target.rotten.contains(&(disk, sector)) {
                    continue;
                }
                let copy = self.target.content[&(disk, sector)];
                let original = self.disks[disk as usize][sector as usize];
                assert_eq!(copy, original, "disk {disk} sector {sector} after everything has settled");
            }
        }
    }

    pub(super) fn turn(&mut self) {
        self.watch_rot();
        self.group.advance(self.now());
        while let Some(action) = self.group.poll() {
            match action {
                Action::Submit(id) => self.submit(id),
                Action::Read { id, disk, offset, len, may_be_hole } => {
                    let (sector, sectors) = (offset / SECTOR, u64::from(len) / SECTOR);
                    self.ops.push(DiskOp::Read { id, disk: disk.0, sector, sectors, seen: Vec::new(), may_be_hole });
                }
                Action::Link(message) if self.link_up => self.link.push_back(message),
                Action::Link(_) => {}
                Action::PointDone { .. } => self.answered += 1,
                Action::CommitMarks(commit) => self.ops.push(DiskOp::Marks { pages: commit.pages, written: 0 }),
                Action::FlushDisks { id, disks } => {
                    let disks: Vec<u32> = disks.into_iter().map(|disk| disk.0).collect();
                    let seen = disks.iter().map(|disk| self.disks[*disk as usize].clone()).collect();
                    let begun = self.volume.flush_begins();
                    self.ops.push(DiskOp::Flush { id: FlushOf::Core(id), disks, seen, begun });
                }
                Action::OpenSpool => self.cache.open(),
                Action::WriteSpool { id, offset, len, pieces } => self.cache.write(id, offset, len, &pieces),
                Action::ReadSpool { id, offset, len } => self.cache.read(id, offset, len),
                Action::EmptySpool => self.cache.empty(),
                Action::RoundEnded(_) => {}
                Action::VerifyDone(found) => self.verify_done(found),
                // The first attempt fails: the state volume is full.
                Action::PersistFence => {
                    self.fence_attempts += 1;
                    self.group.fence_persisted(self.fence_attempts > 1);
                }
                Action::LiftFence => {
                    self.lift_attempts += 1;
                    self.group.fence_lifted(self.lift_attempts > 1);
                }
            }
        }
        let memory = self.group.queue.charged();
        // Points that were asked for while the group caught up are cut all at once.
        assert!(memory <= self.group.options.memory_bytes + self.slack(), "sets pin {memory} bytes");
        self.judge_cache();
        self.judge_points();
    }

    /// Each set that has become durable is compared with what its epoch must hold.
    pub(super) fn judge_points(&mut self) {
        for durable in std::mem::take(&mut self.target.newly_durable) {
            let is_whole = durable.seal.unreadable_bytes == 0;
            if durable.seal.number != self.target.last_set || !durable.seal.is_point || !is_whole {
                continue;
            }
            let epoch = self.group.cuts[&durable.seal.cut_time_us];
            self.points += 1;
            let is_app = durable.seal.kind == PointKind::App as i32;
            assert_eq!(is_app, self.quiesced.contains(&epoch), "set {} of epoch {epoch}", durable.seal.number);
            for ((disk, sector), content) in &self.target.content {
                assert!(
                    self.target.rotten.contains(&(*disk, *sector))
                        || self.judge.allows(*disk, *sector, epoch, *content),
                    "set {} of epoch {epoch}: disk {disk} sector {sector} holds {content}",
                    durable.seal.number
                );
            }
        }
    }
}
