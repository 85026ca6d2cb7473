//! Rollbacks to changing choices, broken off and crashed, with strangers that write the disks in between; and the ways
//! out of them.

use std::ops::ControlFlow;

use proto::ids::Lineage;

use super::*;
use crate::apply::Put;
use crate::journal::{History, Turn};
use crate::recover::Range;

/// Sectors by which strangers' writes are noticed.
const UNIT_SECTORS: u64 = 8;

impl World {
    pub(super) fn choose_rollback(&mut self) -> Result<(), Failed> {
        let points = self.rig.point_sets();
        if points.is_empty() {
            return Ok(());
        }
        self.session = false;
        self.reader = None;
        self.commit()?;
        if !self.rig.journal.bulk_open() {
            while self.rig.applier.apply_next()? != Progress::Idle {}
        }
        self.rollback = Some(points[self.random.below(points.len() as u64) as usize]);
        Ok(())
    }

    /// Puts a point onto the disks; may be cut short, by a crash or since another one is chosen, and may be left.
    pub(super) fn roll_back(&mut self) -> Result<(), Failed> {
        if self.random.below(3) == 0 {
            self.rig.fuse.burn_after(self.random.below(60) as u32);
        }
        match self.random.below(12) {
            0 => return self.leave(),
            1..6 => self.stranger_writes(),
            _ => {}
        }
        let points = self.rig.point_sets();
        let points: Vec<u64> = points.into_iter().filter(|set| self.is_whole(*set)).collect();
        if points.is_empty() {
            return self.leave();
        }
        let set = points[self.random.below(points.len() as u64) as usize];
        if !self.rig.journal.bulk_open() {
            while self.rig.applier.apply_next()? != Progress::Idle {}
        }
        self.lineages = self.lineages.wrapping_add(1);
        self.rig.journal.sync()?;
        self.rig.journal.begin_rollback(SetNumber(set), Lineage([self.lineages; 16]), self.rig.now)?;
        let mut reader = self.rig.reader(set);
        let mut pieces = if self.random.below(3) == 0 { 1 + self.random.below(6) } else { u64::MAX };
        let put = self.rig.applier.put_point(&mut reader, &self.spoilt, |_, _| {
            pieces -= 1;
            if pieces == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if put == Put::BrokenOff {
            assert_eq!(self.rig.journal.rollback().map(|rollback| rollback.is_done), Some(false));
            return Ok(());
        }
        let image = &self.source.images[&set].0;
        for (disk, expected) in (0..).zip(image) {
            assert!(self.rig.disks.content(disk) == *expected, "the disks are not at point {set}");
        }
        assert_eq!(self.rig.journal.rollback().map(|rollback| rollback.is_done), Some(true));
        Ok(())
    }

    /// A machine ran on the disks. What it wrote is known by units.
    fn stranger_writes(&mut self) {
        if self.rig.fuse.is_burnt() || self.rig.journal.rollback().is_none_or(|rollback| !rollback.is_done) {
            return;
        }
        let disk = self.random.below(2) as u32;
        let units = SIZES[disk as usize] / 512 / UNIT_SECTORS;
        let unit = self.random.below(units);
        self.rig.disks.overwrite(disk, unit * UNIT_SECTORS * 512, &[0xee; 700]);
        self.spoilt.add(disk, unit * UNIT_SECTORS, UNIT_SECTORS);
    }

    /// Whether nothing of a point is read from what a stranger wrote.
    pub(super) fn is_whole(&self, set: u64) -> bool {
        if self.spoilt.is_empty() {
            return true;
        }
        let mut reader = self.rig.reader(set);
        self.spoilt.iter().all(|Range(disk, sector, sectors)| reader.holds(disk, sector, sectors).unwrap())
    }

    /// The failback is over: the source comes back, compares everything and goes on.
    fn leave(&mut self) -> Result<(), Failed> {
        let is_kept = self.spoilt.is_empty() && !self.rig.point_sets().is_empty() && self.random.below(4) > 0;
        let history = if is_kept { History::Kept } else { History::Discarded };
        self.lineages = self.lineages.wrapping_add(1);
        let lineage = Some(Lineage([self.lineages; 16]));
        if !self.rig.journal.bulk_open() {
            while self.rig.applier.apply_next()? != Progress::Idle {}
        }
        self.is_leaving = true;
        self.rig.journal.turn(Turn { record: None, lineage, cancelled: Some(1), history }, self.rig.now)?;
        self.left_or_not();
        assert!(self.rollback.is_none(), "it was left");
        Ok(())
    }

    /// After a crash while leaving, one or the other is durable.
    pub(super) fn left_or_not(&mut self) {
        if !std::mem::take(&mut self.is_leaving) || self.rig.journal.lineage() != Lineage([self.lineages; 16]) {
            return;
        }
        assert_eq!((self.rig.journal.rollback(), self.rig.journal.cancelled_fence()), (None, Some(1)));
        if self.rig.point_sets().is_empty() {
            self.must.clear();
            self.pinned.clear();
            self.discarded = self.rig.journal.last_durable_set().0;
            self.spoilt = Ranges::default();
        }
        self.rollback = None;
        self.session = false;
        self.source.overflow();
        self.source.phase = 0;
        self.source.all_dirty();
    }
}
