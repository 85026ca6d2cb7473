//! Rot on the target and verifications in the simulated world, and the judge of what they report.
//!
//! A difference may be reported only where a sector of it had rotted at some time since the verification began, rot that
//! was there all the time is reported or repaired, and nothing that was repaired is rotten but by rot that came later.

use std::collections::BTreeSet;

use proto::ids::DiskIndex;

use super::super::*;
use super::world::{DISKS, SECTORS, World};
use crate::control::GroupState;
use crate::send::ToLink;

/// A verification in progress, with what the judge must know of it.
#[derive(Debug)]
pub(super) struct Verifying {
    repairs: bool,
    /// Rotten when it began and ever since.
    stayed: BTreeSet<(u32, u64)>,
    /// Rotten at some time since it began.
    ever: BTreeSet<(u32, u64)>,
}

/// What verifications of a world came to.
#[derive(Debug, Default)]
pub(super) struct Verified {
    pub(super) ended: u64,
    pub(super) differences: u64,
    pub(super) repaired: u64,
}

/// The repair of a block is written without undo, whenever it arrives: no set with newer content of the block may be on
/// its way beside it, or the repair could land on top.
#[test]
fn nothing_newer_of_a_block_leaves_while_it_is_being_mended() {
    for seed in 0..20 {
        let mut world = World::new(seed * 4 + 1);
        world.settle();
        world.target.rot(0, 42);
        world.verify(true);
        let is_repair = |message: &ToLink| matches!(message, ToLink::Repair(_));
        world.until(|world| world.link.iter().any(is_repair));
        assert!(world.link.iter().any(is_repair), "seed {seed}: the rot is found");
        world.guest_writes_at(0, 40, 8, false);
        world.hold_the_link();
        assert!(world.guest.is_empty(), "seed {seed}: the guest does not wait for the repair");
        let touches = |message: &ToLink| match message {
            ToLink::Part(job) => {
                job.extents.iter().any(|extent| extent.disk.0 == 0 && (33..48).contains(&extent.sector))
            }
            _ => false,
        };
        assert!(!world.link.iter().any(touches), "seed {seed}: newer content overtakes the repair");
        world.until(|world| world.verifying.is_none());
        world.settle();
    }
}

/// The target names what it has lost: it comes again, without a verification, in the order of what guests write there.
#[test]
fn what_the_target_lost_is_sent_again() {
    for seed in 0..20 {
        let mut world = World::new(seed * 4 + 1);
        world.settle();
        (0..38).for_each(|at| world.target.rot(at as u32 % DISKS, at * 5));
        world.target.tell_missing();
        world.guest_writes_at(0, 40, 8, false);
        world.until(|world| world.target.rotten.is_empty());
        assert!(world.target.rotten.is_empty(), "seed {seed}: {:?} did not come", world.target.rotten);
        world.settle();
    }
}

impl World {
    /// Something rots, or somebody asks for a verification.
    pub(super) fn rot_or_verify(&mut self) {
        let disk = self.random.below(u64::from(DISKS)) as u32;
        // Mostly where the guest writes: there order counts.
        let sector = match self.random.one_in(4) {
            true => self.random.below(SECTORS),
            false => (self.hot + self.random.below(24)).min(SECTORS - 1),
        };
        match self.random.below(2) {
            0 => {
                self.target.rot(disk, sector);
                // Mostly only a verification finds it.
                if self.random.one_in(48) {
                    self.target.tell_missing();
                }
                if let Some(verifying) = &mut self.verifying {
                    verifying.ever.insert((disk, sector));
                }
            }
            _ => {
                let repairs = !self.random.one_in(3);
                self.verify(repairs);
            }
        }
    }

    fn verify(&mut self, repairs: bool) {
        let disks: Vec<DiskIndex> = (0..DISKS).map(DiskIndex).collect();
        if self.group.verify(&disks, repairs).is_ok() {
            let (stayed, ever) = (self.target.rotten.clone(), self.target.rotten.clone());
            self.verifying = Some(Verifying { repairs, stayed, ever });
        }
    }

    /// Before each step's end: rot that was overwritten has not stayed.
    pub(super) fn watch_rot(&mut self) {
        if let Some(verifying) = &mut self.verifying {
            verifying.stayed.retain(|sector| self.target.rotten.contains(sector));
        }
    }

    pub(super) fn verify_done(&mut self, found: Result<Vec<VerifiedDisk>, String>) {
        self.watch_rot();
        let verifying = self.verifying.take().expect("a verification that ends was begun");
        let Ok(disks) = found else { return };
        self.verified.ended += 1;
        for disk in &disks {
            let sectors_of = |found: Difference| found.offset / 512..(found.offset + found.length) / 512;
            for found in disk.differences() {
                self.verified.differences += 1;
                self.verified.repaired += u64::from(found.repaired);
                assert_eq!(found.repaired, verifying.repairs);
                let first = found.offset / 4096;
                for block in first..first + found.length.div_ceil(4096) {
                    let is_rot = (block * 8..block * 8 + 8).any(|at| verifying.ever.contains(&(disk.disk, at)));
                    assert!(is_rot, "a false alarm: disk {} block {block}", disk.disk);
                }
            }
            let told: BTreeSet<u64> = disk.differences().filter(|found| !found.repaired).flat_map(sectors_of).collect();
            let missed =
                verifying.stayed.iter().filter(|(on, at)| *on == disk.disk && !told.contains(at)).count() as u64;
            assert!(missed * 512 <= disk.unverified_bytes, "disk {}: {missed} rotten sectors are not found", disk.disk);
            let size = SECTORS * 512;
            assert_eq!(disk.compared_bytes + disk.unverified_bytes, size, "all of a disk is accounted for");
        }
    }

    /// No rot any more: a last verification mends all there is, and says so.
    pub(super) fn mend_all(&mut self) {
        self.until(|world| world.verifying.is_none() && world.group.state() == GroupState::Streaming);
        self.verify(true);
        assert!(self.verifying.is_some(), "a group that streams can be verified");
        self.until(|world| world.verifying.is_none());
        assert!(self.verifying.is_none() && self.target.rotten.is_empty(), "{:?}", self.target.rotten);
    }
}
