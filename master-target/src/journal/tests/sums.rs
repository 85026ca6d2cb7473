//! Rot of the disks, of redo and of the tables of block sums: noticed, named, kept out of history, and healed (rule J11).

use std::collections::BTreeSet;

use bytes::Bytes;
use proto::ids::Phase;
use proto::replication::CompareRun;

use super::rig::{Rig, data, filled, noise, noise_bytes, options, zeroes};
use super::source::{Image, Source};
use crate::apply::ApplyError;
use crate::journal::manifest::Manifest;
use crate::journal::{JournalError, MANIFEST, MissingRange, Seeded, Sum, Volume};
use crate::recover::ReadError;
use crate::rules::Rule;

const TABLE: &str = "sums-00000000";

/// What reading a sector of a point gives: its first byte, or the error as text.
fn look(rig: &Rig, set: u64, sector: u64) -> Result<u8, String> {
    let mut bytes = [0; 512];
    let read = rig.reader(set).read(0, sector * 512, &mut bytes);
    read.map(|()| bytes[0]).map_err(|error| error.to_string())
}

fn flip(rig: &Rig, offset: u64) {
    let byte = rig.disks.content(0)[offset as usize] ^ 0x10;
    let sector = offset / 512 * 512;
    let mut bytes = rig.disks.content(0)[sector as usize..sector as usize + 512].to_vec();
    bytes[(offset - sector) as usize] = byte;
    rig.disks.overwrite(0, sector, &bytes);
}

/// Spoils content of the first frame of a set in redo, if it has any.
fn spoil_redo(rig: &Rig, set: u64) {
    let run = rig.journal.state().set(set).unwrap().runs[0];
    let mut payload_bytes = [0; 4];
    rig.volume.read_at(&run.segment.to_string(), run.offset + 12, &mut payload_bytes).unwrap();
    if payload_bytes == [0; 4] {
        return;
    }
    rig.volume.flip(&run.segment.to_string(), run.offset + run.len - 1);
}

fn damaged_points(rig: &Rig) -> Vec<u64> {
    rig.journal.points().iter().filter(|point| point.is_damaged).map(|point| point.set.0).collect()
}

#[test]
fn a_read_that_ends_at_a_rotten_disk_names_disk_and_offset() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 80, 16, 1)]);
    rig.set(1, 2, &[filled(0, 800, 8, 2)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 3, &[filled(0, 800, 8, 3)]);
    flip(&rig, 85 * 512 + 7);
    let refused = rig.reader(3).read(0, 80 * 512, &mut [0; 512]).unwrap_err();
    assert!(matches!(&refused, ReadError::Rotten { disk, offset } if disk == "d0" && *offset == 80 * 512), "{refused}");
    assert_eq!(look(&rig, 3, 88), Ok(1), "the block beside it is right");
    assert_eq!(look(&rig, 1, 85), Ok(1), "its own generation has it in redo");
}

#[test]
fn rot_does_not_become_history() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 16, 1)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 2, &[filled(0, 100, 8, 2)]);
    rig.apply_all();
    rig.rotate();
    flip(&rig, 700);
    rig.set(1, 3, &[filled(0, 0, 16, 3)]);
    rig.apply_all();
    for _ in 0..2 {
        let refused = look(&rig, 2, 0).unwrap_err();
        assert!(refused.contains("undo-00000003-00000001") && refused.contains("had rotted"), "{refused}");
        assert_eq!((look(&rig, 2, 8), look(&rig, 3, 0), look(&rig, 1, 0)), (Ok(1), Ok(3), Ok(1)));
        assert_eq!(damaged_points(&rig), [1, 2]);
        assert_eq!(rig.journal.take_untold_damage(), None, "it was overwritten: nobody has to send it");
        rig.crash(true);
    }
    let scrubbed = rig.journal.scrub(|_, _| std::ops::ControlFlow::Continue(())).unwrap().unwrap();
    assert_eq!(scrubbed.damages.len(), 1, "{:?}", scrubbed.damages);
    assert_eq!(scrubbed.damages[0].points, [1, 2, 3]);
}

#[test]
fn what_is_written_over_a_part_of_a_rotten_block_does_not_hide_the_rest() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 16, 1)]);
    rig.apply_all();
    rig.rotate();
    // Else a crash has it written once more, or takes its sum.
    rig.journal.sync_marks().unwrap();
    rig.journal.sync_sums(0).unwrap();
    flip(&rig, 700);
    rig.set(1, 2, &[filled(0, 4, 1, 2)]);
    for operations in 0..20 {
        rig.fuse.burn_after(operations);
        let _ = rig.applier.apply_next();
        rig.crash(operations % 2 == 0);
    }
    rig.apply_all();
    let missing = MissingRange { disk: 0, sector: 0, sectors: 8 };
    for _ in 0..2 {
        rig.crash(true);
        rig.open(1);
        assert_eq!(rig.journal.take_untold_damage(), Some(vec![missing]), "each session is told");
        assert_eq!(rig.journal.take_untold_damage(), None);
    }
    rig.rotate();
    rig.set(1, 3, &[filled(0, 200, 8, 3)]);
    rig.apply_all();
    assert!(look(&rig, 3, 1).unwrap_err().contains("d0"), "it is damaged still");
    assert_eq!(damaged_points(&rig), [1, 2, 3]);
    let right = [vec![1; 2048], vec![2; 512], vec![1; 1536]].concat();
    let crc = blockio::crc32(&right);
    rig.applier.repair(0, 0, Bytes::from(right), crc).unwrap();
    rig.applier.sync_bulk().unwrap();
    assert_eq!((look(&rig, 3, 1), look(&rig, 3, 4), damaged_points(&rig)), (Ok(1), Ok(2), vec![]));
    rig.crash(true);
    rig.open(1);
    assert_eq!(rig.journal.take_untold_damage(), None);
}

/// A block whose sum was not known has rotted, a part of it was overwritten, so the rot was saved; then it is mended while a part
/// of the next set has come. What that set's point shows of a sector of the block that no set wrote.
fn shown_after_a_repair() -> u8 {
    let mut rig = Rig::streaming();
    flip(&rig, 512);
    rig.set(1, 1, &[filled(0, 4, 1, 2)]);
    rig.apply_all();
    rig.send_part(1, 2, 0, &[filled(0, 200, 8, 3)]);
    let right = [vec![0; 2048], vec![2; 512], vec![0; 1536]].concat();
    let crc = blockio::crc32(&right);
    rig.applier.repair(0, 0, Bytes::from(right), crc).unwrap();
    rig.applier.sync_bulk().unwrap();
    rig.send_part(1, 2, 1, &[filled(0, 400, 8, 3)]);
    rig.journal.seal(rig.seal_of(1, 2, 2, 16)).unwrap();
    rig.journal.sync().unwrap();
    let before = look(&rig, 2, 1).unwrap();
    for power in [true, false] {
        assert_eq!((look(&rig, 2, 4), look(&rig, 2, 200), look(&rig, 2, 400)), (Ok(2), Ok(3), Ok(3)));
        rig.crash(power);
        rig.apply_all();
    }
    assert_eq!(look(&rig, 2, 1), Ok(before));
    before
}

#[test]
fn points_after_a_repair_do_not_read_what_was_saved_before_it() {
    assert_eq!(shown_after_a_repair(), 0);
    assert_eq!(Rule::RepairBeginsGeneration.off(shown_after_a_repair), 0x10, "what had rotted");
}

#[test]
fn a_set_whose_redo_is_damaged_is_passed_and_the_source_is_asked_for_its_blocks() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 24, 1)]);
    rig.apply_all();
    rig.journal.sync_marks().unwrap();
    rig.rotate();
    rig.send_part(1, 2, 0, &[noise(0, 2, 8, 9), zeroes(0, 200, 8)]);
    rig.send_part(1, 2, 1, &[filled(0, 16, 8, 2)]);
    rig.journal.seal(rig.seal_of(1, 2, 2, 24)).unwrap();
    rig.journal.sync().unwrap();
    // From now on the manifest vouches for it: what rots is no torn tail.
    rig.crash(false);
    spoil_redo(&rig, 2);
    for operations in 0..20 {
        rig.fuse.burn_after(operations);
        let _ = rig.applier.apply_next();
        rig.crash(operations % 2 == 0);
    }
    rig.open(1);
    rig.apply_all();
    assert_eq!(rig.journal.applied_set().0, 2);
    assert_eq!(rig.journal.take_untold_damage(), Some(vec![MissingRange { disk: 0, sector: 0, sectors: 16 }]));
    assert_eq!((look(&rig, 1, 2), look(&rig, 1, 9)), (Ok(1), Ok(1)), "points before are right");
    assert_eq!(look(&rig, 2, 16), Ok(2), "the rest of the set was applied");
    assert!(look(&rig, 2, 2).is_err() && look(&rig, 2, 9).is_err());
    rig.rotate();
    rig.set(1, 3, &[filled(0, 80, 8, 3)]);
    rig.apply_all();
    assert!(look(&rig, 3, 2).is_err() && look(&rig, 3, 80).is_ok());
    assert_eq!(damaged_points(&rig), [2, 3]);
    rig.set(1, 4, &[filled(0, 0, 16, 4)]);
    rig.apply_all();
    assert_eq!((look(&rig, 4, 2), look(&rig, 1, 2), damaged_points(&rig)), (Ok(4), Ok(1), vec![2, 3]));
    assert!(look(&rig, 3, 2).is_err(), "what it should hold is lost for good");
    rig.open(1);
    assert_eq!(rig.journal.take_untold_damage(), None);
}

#[test]
fn blocks_that_are_asked_for_may_come_as_zeroes_over_a_hole() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[noise(0, 8, 8, 3)]);
    spoil_redo(&rig, 1);
    rig.apply_all();
    assert!(rig.journal.take_untold_damage().is_some());
    rig.set(1, 2, &[zeroes(0, 0, 64)]);
    rig.apply_all();
    rig.open(1);
    assert_eq!((rig.journal.take_untold_damage(), look(&rig, 2, 8)), (None, Ok(0)));
}

#[test]
fn a_frame_whose_header_is_damaged_stops_its_group() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    let run = rig.journal.state().set(1).unwrap().runs[0];
    rig.volume.flip(&run.segment.to_string(), run.offset + 30);
    let refused = rig.applier.apply_next().unwrap_err();
    assert!(matches!(refused, ApplyError::Journal(JournalError::Damaged { .. })), "{refused}");
    assert_eq!(rig.disks.content(0)[0], 0);
}

#[test]
fn a_damaged_page_of_a_table_is_named_by_scrub_and_says_nothing() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 2048, 1)]);
    rig.apply_all();
    assert_eq!(rig.check_sums(), 0);
    rig.volume.flip(TABLE, 4096 + 8 + 4 * 7);
    assert_eq!(rig.check_sums(), 256, "one page has all blocks of this disk");
    let scrubbed = rig.journal.scrub(|_, _| std::ops::ControlFlow::Continue(())).unwrap().unwrap();
    assert_eq!((scrubbed.damages.len(), &scrubbed.damages[0].file[..], scrubbed.damages[0].offset), (1, TABLE, 4096));
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    assert_eq!((rig.check_sums(), look(&rig, 1, 0)), (255, Ok(1)));
}

#[test]
fn tables_that_another_agent_did_not_keep_up_are_forgotten() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 2048, 1)]);
    rig.apply_all();
    rig.journal.sync_marks().unwrap();
    let mut manifest = Manifest::load(&rig.volume).unwrap().unwrap();
    manifest.sums_since = 0;
    rig.volume.replace(MANIFEST, &manifest.encode_file()).unwrap();
    rig.disks.overwrite(0, 0, &[9; 4096]);
    rig.crash(true);
    assert_eq!(rig.check_sums(), 256);
    rig.open(1);
    rig.set(1, 2, &[filled(0, 800, 8, 2)]);
    rig.apply_all();
    assert_eq!(rig.check_sums(), 255);
    rig.crash(false);
    assert_eq!(rig.check_sums(), 255);
}

#[test]
fn disks_that_somebody_else_wrote_are_not_taken_for_rotten() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 2048, 1)]);
    rig.apply_all();
    rig.disks.overwrite(0, 0, &[9; 4096]);
    rig.journal.begin_lineage(proto::ids::Lineage([8; 16])).unwrap();
    assert_eq!(rig.check_sums(), 256);
    rig.crash(true);
    assert_eq!(rig.check_sums(), 256);
}

#[test]
fn a_comparison_fills_in_what_is_not_known() {
    let mut rig = Rig::streaming();
    rig.disks.overwrite(0, 0, &noise_bytes(16, 5));
    let digests = proto::digest::of_run(&noise_bytes(16, 5));
    let run = CompareRun { disk: 0, sector: 0, sectors: 16, digests };
    assert!(!rig.applier.compare(std::slice::from_ref(&run)).unwrap().contains(0));
    rig.applier.sync_bulk().unwrap();
    assert_eq!(rig.check_sums(), 256 - 2);
    rig.disks.overwrite(0, 512, &[1; 512]);
    assert!(rig.applier.compare(&[run]).unwrap().contains(0));
    let refused = {
        rig.set(1, 1, &[filled(0, 800, 8, 1)]);
        rig.apply_all();
        look(&rig, 1, 0).unwrap_err()
    };
    assert!(refused.contains("offset 0"), "{refused}");
}

/// Random rot: what a point gives is right or refused, and the source brings everything back that was found.
pub(super) struct Rotting {
    rig: Rig,
    source: Source,
    random: Seeded,
    number: u64,
    refused: u32,
}

const BLOCKS: u64 = 24;

impl Rotting {
    pub(super) fn new(seed: u64) -> Self {
        let sizes = [BLOCKS * 4096 - 1024];
        let rig = Rig::new(seed, &sizes, options());
        rig.open(1);
        Self { rig, source: Source::new(&sizes), random: Seeded::new(seed + 1), number: 0, refused: 0 }
    }

    pub(super) fn run(&mut self) {
        for step in 0..40 {
            (0..=self.random.below(3)).for_each(|_| self.source.write(&mut self.random));
            self.send();
            match self.random.below(8) {
                0 => self.rig.rotate(),
                1 => spoil_redo(&self.rig, self.number),
                2 => self.rot(),
                3 => {
                    // The commit of a set after it says that a rotten one was synced.
                    self.source.write(&mut self.random);
                    self.send();
                    self.rig.apply_all();
                    // Else a loss of power takes sums of the last batch, and what rotted before it is not known.
                    self.rig.journal.sync_sums(0).unwrap();
                    self.rig.crash(self.random.below(2) == 0);
                    self.rig.open(1);
                }
                _ => {}
            }
            if self.random.below(3) > 0 {
                self.rig.apply_all();
            }
            if step % 4 == 0 {
                self.judge();
            }
        }
        self.judge();
        // Nothing rots any more: what was found is healed by what the source sends.
        for _ in 0..3 {
            self.rig.apply_all();
            self.send();
        }
        self.rig.apply_all();
        self.rig.open(1);
        assert_eq!(self.rig.journal.take_untold_damage(), None);
    }

    /// A block of which something is known rots.
    fn rot(&mut self) {
        let offset = self.random.below(BLOCKS * 4096 - 1024);
        if self.rig.journal.sums(0, offset / 4096, 1).unwrap() != [Sum::UNKNOWN] {
            flip(&self.rig, offset);
        }
    }

    /// The next set, with what the target asked for.
    fn send(&mut self) {
        let missing = self.rig.journal.take_untold_damage().unwrap_or_default();
        for range in missing {
            self.source.dirty.extend((range.sector..range.sector + range.sectors).map(|sector| (range.disk, sector)));
        }
        let sectors: BTreeSet<(u32, u64)> = std::mem::take(&mut self.source.dirty);
        let extents = self.source.extents(&sectors);
        if extents.iter().all(|extent| super::rig::sectors_of(extent) == 0) {
            return;
        }
        self.number += 1;
        self.source.images.insert(self.number, (self.source.guest.clone(), true));
        self.rig.set(1, self.number, &extents);
    }

    fn judge(&mut self) {
        for set in self.rig.point_sets() {
            let (image, _): &(Image, bool) = &self.source.images[&set];
            let Ok(mut reader) = crate::recover::PointReader::over(
                self.rig.journal.clone(),
                self.rig.disks.clone(),
                &self.rig.point(set),
            ) else {
                self.refused += 1;
                continue;
            };
            for (block, expected) in (0..).zip(image[0].chunks(4096)) {
                let mut bytes = vec![0; expected.len()];
                match reader.read(0, block * 4096, &mut bytes) {
                    Ok(()) => assert!(bytes == expected, "block {block} of point {set} is wrong"),
                    Err(_) => self.refused += 1,
                }
            }
        }
    }
}

#[test]
fn the_last_block_of_a_disk_may_be_short_and_rot() {
    let size = 4096 * 3 + 512 * 3;
    let mut rig = Rig::new(3, &[size], options());
    rig.open(1);
    rig.set(1, 1, &[data(0, 0, noise_bytes(size / 512, 7))]);
    rig.apply_all();
    assert_eq!(rig.check_sums(), 0);
    rig.rotate();
    flip(&rig, size - 1);
    rig.set(1, 2, &[zeroes(0, size / 512 - 1, 1)]);
    rig.apply_all();
    assert!(look(&rig, 1, size / 512 - 2).is_ok(), "redo has it");
    let _ = rig.journal.open_phase(Phase(1), 1, &super::rig::INSTANCE).unwrap();
    assert_eq!(rig.journal.take_untold_damage(), Some(vec![MissingRange { disk: 0, sector: 24, sectors: 3 }]));
}

/// Disks that were handed over are a machine's: what it wrote is no rot, and what was damaged before is so still.
#[test]
fn what_somebody_else_wrote_is_not_called_rot() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 16, 1), filled(0, 80, 8, 5)]);
    rig.apply_all();
    rig.rotate();
    flip(&rig, 85 * 512 + 7);
    rig.set(1, 2, &[filled(0, 82, 1, 2)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 3, &[filled(0, 200, 8, 3)]);
    rig.apply_all();
    rig.journal.sync_marks().unwrap();
    rig.applier.forget_sums().unwrap();
    flip(&rig, 700);
    for _ in 0..2 {
        assert_eq!(rig.journal.sums(0, 0, 2).unwrap(), [Sum::UNKNOWN; 2]);
        assert_eq!(rig.journal.sums(0, 10, 1).unwrap(), [Sum::DAMAGED]);
        assert_eq!(look(&rig, 3, 1), Ok(1));
        assert!(look(&rig, 3, 85).unwrap_err().contains("d0"), "it is damaged still");
        rig.crash(true);
    }
    rig.open(1);
    rig.set(1, 4, &[filled(0, 4, 1, 4)]);
    rig.apply_all();
    let missing = MissingRange { disk: 0, sector: 80, sectors: 8 };
    assert_eq!(rig.journal.take_untold_damage(), Some(vec![missing]), "nothing else is");
}
