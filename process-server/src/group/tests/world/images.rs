//! What happens to whole machines: a state volume that fails for a while, and agents that are restored from an image.
//!
//! Left out is what nobody can notice: a target that is restored from an image without the note that the source's marks
//! are void, while the source crashes before it has written them again, or is restored from an image of that time
//! (docs/tracking.md, "Limits").

use super::*;

/// Disks and marks of a source at some moment.
pub(in super::super) type SourceImage = (Vec<Vec<Content>>, Vec<u8>);

/// The state volume, and the image of the source.
#[derive(Debug, Default)]
pub(super) struct Volume {
    /// Commits of marks fail.
    pub(super) is_bad: bool,
    /// Commits of marks never end.
    pub(super) is_stuck: bool,
    /// Flushes of this disk fail.
    bad_disk: Option<u32>,
    /// How many flushes have begun, and of each disk the last of these that ended well.
    begun: u64,
    good: [u64; DISKS as usize],
    /// The target was restored from an image that lacks the note, and has not got it again.
    note_is_lost: bool,
    /// Disks and marks as they were at some moment.
    image: Option<SourceImage>,
    pub(super) broken: Broken,
}

/// What was broken, how often.
#[derive(Debug, Default, Clone, Copy)]
pub(in super::super) struct Broken {
    /// Commits of marks that failed.
    pub(in super::super) failed_commits: u64,
    /// Notes of the target that marks are void.
    pub(in super::super) notes: u64,
    /// Starts of the source while there was a note.
    pub(in super::super) starts_with_note: u64,
    /// Sources that were restored from an image.
    pub(in super::super) restored: u64,
    /// Sectors that fell back with a flush that failed.
    pub(in super::super) fell_back: u64,
}

impl Broken {
    pub(in super::super) fn add(&mut self, more: Self) {
        self.failed_commits += more.failed_commits;
        self.notes += more.notes;
        self.starts_with_note += more.starts_with_note;
        self.restored += more.restored;
        self.fell_back += more.fell_back;
    }
}

impl Volume {
    /// Counts a flush that begins.
    pub(super) fn flush_begins(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// Nothing fails any more.
    pub(super) fn mend(&mut self) {
        (self.is_bad, self.bad_disk) = (false, None);
    }
}

impl World {
    /// What was broken so far.
    pub(in super::super) fn broken(&self) -> Broken {
        Broken { notes: self.target.notes, ..self.volume.broken }
    }

    /// A world that breaks does so once the first copy is made and regions are unmarked.
    pub(in super::super) fn warm_up(&mut self) {
        if self.breaks {
            self.until(|world| world.group.state() == GroupState::Streaming && world.unmarked() > 8);
        }
    }

    /// The state volume fails, or is back; time passes, so that commits are tried again.
    pub(super) fn break_something(&mut self) {
        // It is worth little while everything is marked.
        let chances = match self.volume.is_bad {
            true => 120,
            false if self.group.tracked.intent.is_all_wanted() => 1000,
            false => 60,
        };
        if self.random.one_in(chances) {
            self.volume.is_bad = !self.volume.is_bad;
            self.hot = self.random.below(SECTORS);
        }
        if self.random.one_in(if self.volume.is_bad { 8 } else { 40 }) {
            self.time_us += self.random.below(600_000);
        }
        let is_good = self.group.tracked.validity.is_good() && self.target.void.is_none();
        if self.random.one_in(150) {
            let disk = self.random.below(u64::from(DISKS)) as u32;
            self.volume.bad_disk = if self.volume.bad_disk.is_some() { None } else { Some(disk) };
        }
        if self.random.one_in(60) {
            let disk = self.random.below(u64::from(DISKS)) as u32;
            let id = FlushOf::Guest(self.group.flush_begins(DiskIndex(disk)));
            let seen = vec![self.disks[disk as usize].clone()];
            let begun = self.volume.flush_begins();
            self.ops.push(DiskOp::Flush { id, disks: vec![disk], seen, begun });
        }
        if self.volume.image.is_none() && is_good && self.random.one_in(200) {
            self.volume.image = Some((self.disks.clone(), self.marks.clone()));
        }
        if self.image.is_none() && self.random.one_in(200) {
            self.image = Some(self.target.image());
        }
        if self.link_up && self.random.one_in(300) {
            self.drop_link();
            self.judge_points();
            // A note that the source has not heard of yet would be lost for good.
            let validity = &self.group.tracked.validity;
            let is_unheard = self.target.void.is_some_and(|(start, _)| validity.is_news(start == self.starts));
            if !is_unheard && let Some(image) = self.image.take() {
                self.restore_target(image);
            }
        }
    }

    /// A flush has ended: what was there when it began is safe, or what was not flushed before is lost in part.
    pub(super) fn flush_ends(&mut self, index: usize, fails: bool) {
        let DiskOp::Flush { id, disks, seen, begun } = self.ops.swap_remove(index) else { unreachable!() };
        let of_guest = DiskIndex(disks[0]);
        let mut failed = Vec::new();
        for (disk, seen) in disks.into_iter().zip(seen) {
            if fails || self.volume.bad_disk == Some(disk) {
                failed.push(DiskIndex(disk));
                self.falls_back(disk);
            } else if begun > self.volume.good[disk as usize] {
                // One that began before another which ended well takes nothing of that back.
                self.volume.good[disk as usize] = begun;
                self.flushed[disk as usize] = seen;
            }
        }
        match id {
            FlushOf::Core(id) => self.group.disks_flushed(id, &failed),
            FlushOf::Guest(id) => {
                self.group.flush_ended(of_guest, id, failed.is_empty());
            }
        }
    }

    /// A guest's flush of a disk fails, and some of what was written since the last good one falls back.
    pub(in super::super) fn guest_flush_fails(&mut self, disk: u32) {
        let id = self.group.flush_begins(DiskIndex(disk));
        self.falls_back(disk);
        self.group.flush_ended(DiskIndex(disk), id, false);
    }

    /// From now on no flush of this disk succeeds, or all do again.
    pub(in super::super) fn flushes_fail(&mut self, disk: Option<u32>) {
        self.volume.bad_disk = disk;
    }

    /// A disk loses some of what it had not flushed, but nothing of writes that are under way.
    pub(in super::super) fn falls_back(&mut self, disk: u32) {
        let index = disk as usize;
        for sector in 0..SECTORS {
            let kept = self.flushed[index][sector as usize];
            let is_busy = self.guest.values().any(|guest| {
                guest.disk == disk && (guest.sector..guest.sector + guest.content.len() as u64).contains(&sector)
            });
            if is_busy || kept == self.disks[index][sector as usize] || !self.random.one_in(3) {
                continue;
            }
            self.disks[index][sector as usize] = kept;
            self.judge.fell_back(disk, sector, kept);
            self.volume.broken.fell_back += 1;
        }
        // A flush under way vouches for what is still there.
        for op in &mut self.ops {
            if let DiskOp::Flush { disks, seen, .. } = op {
                for (_, seen) in disks.iter().zip(seen).filter(|(on, _)| **on == disk) {
                    seen.clone_from(&self.disks[index]);
                }
            }
        }
    }

    /// From now on no commit of marks ends.
    pub(in super::super) fn marks_get_stuck(&mut self) {
        self.volume.is_stuck = true;
    }

    /// Commits of marks that are under way come to nothing, and the volume works again.
    pub(in super::super) fn stuck_marks_are_lost(&mut self) {
        self.ops.retain(|op| !matches!(op, DiskOp::Marks { .. }));
        self.volume.is_stuck = false;
    }

    /// The target comes back from an image.
    pub(super) fn restore_target(&mut self, image: Image) {
        self.volume.note_is_lost |= self.target.void.is_some() && image.void.is_none();
        self.target.restore(image);
    }

    /// Whether a crash of the source could be noticed now.
    pub(super) fn may_crash(&mut self) -> bool {
        let validity = &self.group.tracked.validity;
        // A doubt that can be kept nowhere: the volume fails, and the target has no note yet.
        if self.volume.is_bad && self.group.tracked.intent.is_in_doubt() && self.target.void.is_none() {
            return false;
        }
        self.volume.note_is_lost &= self.target.void.is_none() && !validity.is_good();
        !self.volume.note_is_lost || self.group.peer.is_open() && !validity.is_asking()
    }

    /// The source starts: its volume works at that moment, and may be one from an image.
    pub(super) fn maybe_restore_source(&mut self) -> bool {
        self.volume.broken.starts_with_note += u64::from(self.target.void.is_some());
        self.volume.is_bad = self.breaks && self.random.one_in(4);
        if !self.breaks || !self.random.one_in(4) {
            return false;
        }
        let Some((disks, marks)) = self.volume.image.take() else { return false };
        (self.disks, self.marks) = (disks, marks);
        self.volume.broken.restored += 1;
        true
    }
}
