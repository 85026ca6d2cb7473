//! Marks that can't be written: the target is told that they are void before writes go on without them (REVIEW W8).
//!
//! While the state volume fails, writes to unmarked regions wait, and the target is asked to note that the marks of this
//! source are void. Once that is durable there, the writes go on, and any next start compares everything. When the volume
//! is back, all regions are marked durably and as a whole (rule S12); only then is the note taken back. A note has a
//! number, and only its own number or a later one takes it back, so the words of an old session do nothing.

use proto::replication::{MarksVoid, MarksVoided, VoidNote};

use super::action::Action;
use super::core::Group;
use crate::rules::Rule;
use crate::send::ToLink;

/// What the marks on the state volume are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// What they leave out is on the target for good.
    Good,
    /// They can't be written, or an earlier start has left a note: writes to unmarked regions wait. While commits fail,
    /// the target is asked for a note.
    Asking,
    /// The target has the note: writes go on without marks.
    Void,
    /// They are good again: the target is asked to take the note back.
    Lifting,
}

/// What this start and the target know of the worth of the marks.
#[derive(Debug)]
pub(super) struct Validity {
    worth: Worth,
    /// The newest note of this start.
    number: u64,
    /// The question or the word that it is over has been sent in this session.
    is_sent: bool,
    /// All regions must be marked durably before the note is taken back.
    needs_all: bool,
    /// A note of an earlier start was taken to heart.
    has_doubted: bool,
}

impl Validity {
    pub(super) fn new() -> Self {
        Self { worth: Worth::Good, number: 0, is_sent: false, needs_all: false, has_doubted: false }
    }

    /// Whether writes may go on without marks.
    pub(super) fn is_void(&self) -> bool {
        self.worth == Worth::Void
    }

    /// Whether marks may be taken away, and relied upon after a clean stop.
    pub(super) fn is_good(&self) -> bool {
        matches!(self.worth, Worth::Good | Worth::Lifting)
    }

    /// Whether the target has been asked for a note, or is to be.
    #[cfg(test)]
    pub(super) fn is_asking(&self) -> bool {
        self.worth == Worth::Asking
    }

    /// Whether a note that the target has would be news: it is of an earlier start, and this one has not heard of it.
    #[cfg(test)]
    pub(super) fn is_news(&self, is_of_this_start: bool) -> bool {
        self.is_good() || !is_of_this_start && !self.has_doubted
    }

    fn ask(&mut self) {
        self.worth = Worth::Asking;
        self.number += 1;
        self.is_sent = false;
    }
}

impl Group {
    /// Asks the target for what is due: a note while writes, or a doubt, wait for marks that can't be written; its end when
    /// they are good again.
    pub(super) fn pump_validity(&mut self) {
        let is_needed = self.tracked.has_waiting() || self.tracked.intent.is_in_doubt();
        if self.tracked.is_failing() && is_needed && self.tracked.validity.is_good() {
            self.tracked.validity.ask();
        }
        let Validity { worth, number, is_sent, .. } = self.tracked.validity;
        let valid = match worth {
            Worth::Asking if self.tracked.is_failing() => false,
            Worth::Lifting => true,
            _ => return,
        };
        if is_sent || !self.peer.is_open() {
            return;
        }
        self.tracked.validity.is_sent = true;
        let (group, phase) = (self.options.name.clone(), self.phase.0);
        let void = MarksVoid { group, phase, number, valid, marks: self.tracked.intent.committed() };
        self.actions.push_back(Action::Link(ToLink::MarksVoid(void)));
        if !valid && !Rule::VoidBeforeUnmarkedWrites.holds() {
            self.void_is_noted();
        }
    }

    /// The target has made durable what it was asked.
    pub(super) fn marks_voided(&mut self, answer: &MarksVoided) {
        let validity = &mut self.tracked.validity;
        if answer.number != validity.number {
            return;
        }
        match (validity.worth, answer.valid) {
            (Worth::Asking, false) => self.void_is_noted(),
            (Worth::Lifting, true) => validity.worth = Worth::Good,
            _ => {}
        }
    }

    /// Writes go on without marks; what there will be next is a whole image with everything marked.
    fn void_is_noted(&mut self) {
        self.tracked.validity.worth = Worth::Void;
        if Rule::AllMarkedBeforeLift.holds() {
            self.tracked.validity.needs_all = true;
            self.tracked.intent.want_anew();
        }
        self.restart_watch();
        self.release_waiting();
    }

    /// A commit is durable: is what the marks leave out known to be on the target again?
    pub(super) fn settle_validity(&mut self) {
        let Validity { worth, needs_all, .. } = self.tracked.validity;
        let is_over =
            matches!(worth, Worth::Asking | Worth::Void) && (!needs_all || self.tracked.intent.is_all_durable());
        if is_over {
            let validity = &mut self.tracked.validity;
            (validity.worth, validity.is_sent, validity.needs_all) = (Worth::Lifting, false, false);
        }
    }

    /// The target says which note it has. True: it is one of an earlier start, so nothing is known of the disks.
    pub(super) fn note_seen(&mut self, note: Option<&VoidNote>) -> bool {
        let start = self.options.source_start;
        let validity = &mut self.tracked.validity;
        validity.is_sent = false;
        match note {
            Some(note) if note.source_start == start => {
                match validity.worth {
                    Worth::Asking if note.number == validity.number => self.void_is_noted(),
                    // Asked for in a session that ended, and no longer needed.
                    Worth::Good => validity.worth = Worth::Lifting,
                    Worth::Void if note.number != validity.number => validity.ask(),
                    _ => {}
                }
                false
            }
            Some(_) if Rule::VoidIsDoubt.holds() => {
                let is_news = !validity.has_doubted || validity.worth == Worth::Good;
                if is_news {
                    validity.has_doubted = true;
                    validity.needs_all = true;
                }
                if is_news || validity.worth == Worth::Void {
                    validity.ask();
                }
                is_news
            }
            Some(_) => false,
            None => {
                match validity.worth {
                    // It was restored from an image without the note, or replaced.
                    Worth::Void if Rule::LostVoidIsRenewed.holds() => validity.ask(),
                    Worth::Lifting => validity.worth = Worth::Good,
                    _ => {}
                }
                false
            }
        }
    }
}
