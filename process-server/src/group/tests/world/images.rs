//! What happens to whole machines: a state volume that fails for a while, and agents that are restored from an image.
//!
//! Left out is what nobody can notice: a target that is restored from an image without the note that the source's marks
//! are void, while the source crashes before it has written them again, or is restored from an image of that time
//! (docs/tracking.md, "Limits").

use super::*;

/// The state volume, and the image of the source.
#[derive(Debug, Default)]
pub(super) struct Volume {
    /// Commits of marks fail.
    pub(super) is_bad: bool,
    /// The target was restored from an image that lacks the note, and has not got it again.
    note_is_lost: bool,
    /// Disks and marks as they were at some moment.
    image: Option<(Vec<Vec<Content>>, Vec<u8>)>,
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
}

impl Broken {
    pub(in super::super) fn add(&mut self, more: Self) {
        self.failed_commits += more.failed_commits;
        self.notes += more.notes;
        self.starts_with_note += more.starts_with_note;
        self.restored += more.restored;
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
        if self.volume.image.is_none() && is_good && self.random.one_in(200) {
            self.volume.image = Some((self.disks.clone(), self.marks.clone()));
        }
        if self.image.is_none() && self.random.one_in(200) {
            self.image = Some(self.target.image());
        }
        if self.link_up && self.random.one_in(300) {
            self.drop_link();
            self.judge_points();
            if let Some(image) = self.image.take() {
                self.restore_target(image);
            }
        }
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
