//! Want of room in the model: who fills the volume and makes room, what may be given up for it, and that the group
//! converges afterwards.

use std::collections::BTreeSet;

use proto::ids::Phase;
use proto::replication::{PartEnd, SealSet};

use super::super::source::sectors_in;
use super::{Failed, World, label_of};
use crate::journal::WhenFull;

impl World {
    /// Somebody fills the volume, or what is left of it.
    pub(super) fn tighten(&mut self) {
        self.rig.fill(self.random.below(60_000));
        (self.is_tight, self.was_tight) = (true, true);
    }

    /// Somebody makes room.
    pub(super) fn loosen(&mut self) {
        self.rig.volume.set_capacity(1 << 40);
        self.is_tight = false;
    }

    /// What a step made of want of room. False where that is not why it ended early.
    pub(super) fn takes_as_full(&mut self, reason: &str) -> bool {
        if reason.contains("was given up because") && self.rig.options.when_full == WhenFull::DropOldest {
            // Perhaps some time ago.
            self.reader = None;
        } else if !self.is_tight {
            return false;
        } else if reason.contains("the retention volume is full") {
            // The session ends; the source comes back in a new phase. Sometimes somebody makes room first.
            self.source.overflow();
            self.source.phase = 0;
            self.session = false;
            if self.rollback.is_some() || self.random.below(3) == 0 {
                self.loosen();
            }
        } else if reason.contains("make room on the retention volume") || reason.contains("stopped after a failure") {
            // Less room than was measured: opened again and checked, as after a failure, once there is some.
            if self.random.below(2) == 0 || self.rig.reopened().is_err() {
                self.loosen();
            }
            self.crash();
        } else {
            return false;
        }
        true
    }

    /// A full volume may have cost points, oldest first, but never the newest without a newer one.
    pub(super) fn gave_way(&mut self) {
        if !self.was_tight || self.rig.options.when_full == WhenFull::Pause {
            return;
        }
        self.was_tight = self.is_tight;
        let listed: BTreeSet<u64> = self.rig.point_sets().into_iter().collect();
        assert!(self.must.last() <= listed.last(), "{:?} went without a newer point", self.must.last());
        let oldest = listed.first().copied();
        assert!(
            self.must.iter().all(|set| listed.contains(set) || Some(*set) < oldest),
            "a point went before an older one"
        );
        self.must.retain(|set| listed.contains(set));
    }

    /// With room and without faults everything reaches the disks.
    pub(super) fn converge(&mut self) -> Result<(), Failed> {
        self.source.overflow();
        self.source.phase = 0;
        self.connect()?;
        self.source.cut(&mut self.random, self.bulk);
        self.send_queue()?;
        self.rig.apply_all();
        for (disk, expected) in (0..).zip(&self.source.guest) {
            assert!(self.rig.disks.content(disk) == *expected, "disk {disk} is not what the guest wrote");
        }
        Ok(())
    }

    /// All sets that wait arrive, and are committed.
    pub(super) fn send_queue(&mut self) -> Result<(), Failed> {
        let phase = self.source.phase;
        for sent in self.source.queue.clone() {
            for (index, part) in (0..).zip(&sent.parts) {
                for frame in part {
                    let record = self.rig.record(sent.number, index, frame);
                    self.rig.journal.append_frame(Phase(phase), sent.number, &record)?;
                }
                let end = PartEnd { frames: part.len() as u32, sectors: sectors_in(part) };
                self.rig.journal.end_part(Phase(phase), sent.number, index, end)?;
            }
            let sectors = sent.parts.iter().map(|part| sectors_in(part)).sum();
            let seal = self.rig.seal_of(phase, sent.number, sent.parts.len() as u32, sectors);
            let (closes_bulk, is_point) = (sent.closes_bulk, sent.is_point);
            self.rig.journal.seal(SealSet { closes_bulk, is_point, label: label_of(sent.number), ..seal })?;
        }
        self.commit()
    }
}
