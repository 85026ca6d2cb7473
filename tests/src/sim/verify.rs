//! Rot on the target's disks and verifications in the simulated world, and the judge of what they report.
//!
//! A difference may be reported only where something had rotted at some time since the verification began, and rot that
//! was there all the time is reported or repaired.

use std::collections::BTreeSet;

use process_server::control::GroupState;
use process_server::group::VerifiedDisk;
use proto::ids::DiskIndex;

use super::trace;
use super::world::{SECTORS, World};

/// A verification in progress, with what the judge must know of it.
#[derive(Debug)]
pub struct Verifying {
    repairs: bool,
    /// Rotten when it began and ever since.
    stayed: BTreeSet<(u32, u64)>,
    /// Rotten at some time since it began.
    ever: BTreeSet<(u32, u64)>,
}

impl World {
    /// Somebody asks for a verification.
    pub(super) fn ask_to_verify(&mut self) {
        let repairs = !self.random.percent(30);
        self.verify(repairs);
    }

    fn verify(&mut self, repairs: bool) {
        let disks: Vec<DiskIndex> = (0..SECTORS.len() as u32).map(DiskIndex).collect();
        if self.source.group.verify(&disks, repairs).is_ok() {
            trace::step("a verification begins (repairs)", repairs.into(), 0);
            self.judge.watch_rot(&self.target);
            let rot = self.judge.rot();
            let stayed = rot.sectors();
            let ever = stayed.iter().copied().chain(rot.suspects()).collect();
            self.verifying = Some(Verifying { repairs, stayed, ever });
        }
    }

    /// Rot that was overwritten has not stayed.
    pub(super) fn watch_verifying(&mut self) {
        if let Some(verifying) = &mut self.verifying {
            let rotten = self.judge.rot().sectors();
            verifying.stayed.retain(|place| rotten.contains(place));
        }
    }

    /// Something rots: a verification that is under way may find it.
    pub(super) fn may_be_found(&mut self, disk: u32, sector: u64) {
        if let Some(verifying) = &mut self.verifying {
            verifying.ever.insert((disk, sector));
        }
    }

    pub(super) fn verify_done(&mut self, found: Result<Vec<VerifiedDisk>, String>) {
        self.judge.watch_rot(&self.target);
        self.watch_verifying();
        let Some(verifying) = self.verifying.take() else { return };
        trace::step("a verification ends (well)", found.is_ok().into(), 0);
        // A target that came back from an image is another one.
        let Some(disks) = found.ok().filter(|_| !self.is_rewound) else { return };
        self.verified += 1;
        for disk in &disks {
            let mut told = BTreeSet::new();
            for found in disk.differences() {
                assert_eq!(found.repaired, verifying.repairs);
                let first = found.offset / 4096;
                for block in first..first + found.length.div_ceil(4096) {
                    let differs =
                        |at| verifying.ever.contains(&(disk.disk, at)) || self.source.unread.contains(&(disk.disk, at));
                    let is_rot = (block * 8..block * 8 + 8).any(differs);
                    assert!(is_rot, "a false alarm: disk {} block {block}", disk.disk);
                }
                if !found.repaired {
                    told.extend(found.offset / 512..(found.offset + found.length) / 512);
                }
            }
            let on_disk = verifying.stayed.iter().filter(|(on, _)| *on == disk.disk);
            let missed = on_disk.filter(|(_, at)| !told.contains(at)).count() as u64;
            assert!(missed * 512 <= disk.unverified_bytes, "disk {}: {missed} rotten sectors are not found", disk.disk);
            let size = SECTORS[disk.disk as usize] * 512;
            assert_eq!(disk.compared_bytes + disk.unverified_bytes, size, "all of a disk is accounted for");
        }
    }

    /// No rot any more: a last verification mends all there is, and says so.
    pub(super) fn mend_all(&mut self) {
        self.until("the end of the verification", |world| {
            world.verifying.is_none() && world.source.group.state() == GroupState::Streaming
        });
        self.verify(true);
        assert!(self.verifying.is_some(), "a group that streams can be verified");
        self.until("the end of the last verification", |world| world.verifying.is_none() && world.target.is_idle());
        self.judge.watch_rot(&self.target);
        let left = self.judge.rot().sectors();
        assert!(left.is_empty(), "rot is left: {left:?}");
        self.ask_for_point();
        self.until("a point after the repair", |world| world.answered == world.asked && world.target.is_idle());
        self.judge.newest_is_whole(&self.target, &self.source);
    }
}
