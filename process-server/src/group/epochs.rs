//! The group's epoch counter and the number of unfinished writes of each epoch.
//!
//! A set may be sealed when no write of its own or an older epoch is unfinished (S1). Epochs are few at a time: one
//! per cut that still has unfinished writes.

use std::collections::VecDeque;

use proto::ids::Epoch;

/// See the module's documentation.
#[derive(Debug)]
pub struct Epochs {
    /// Unfinished writes of the epochs `current - counts.len() + 1 ..= current`, oldest first.
    counts: VecDeque<u32>,
    current: u64,
}

impl Epochs {
    /// Starts at epoch 1 with nothing unfinished.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: VecDeque::from([0]), current: 1 }
    }

    /// The epoch a write that arrives now belongs to.
    #[must_use]
    pub fn current(&self) -> Epoch {
        Epoch(self.current)
    }

    /// Reads the epoch and counts a write in it: one step.
    pub fn enter(&mut self) -> Epoch {
        *self.counts.back_mut().expect("the current epoch is always counted") += 1;
        self.current()
    }

    /// A write of `epoch` has completed.
    pub fn leave(&mut self, epoch: Epoch) {
        let index = self.counts.len() as u64 - 1 - (self.current - epoch.0);
        let count = &mut self.counts[index as usize];
        assert!(*count > 0, "a write leaves the epoch it entered");
        *count -= 1;
        while self.counts.len() > 1 && self.counts[0] == 0 {
            self.counts.pop_front();
        }
    }

    /// Ends the current epoch and begins the next.
    pub fn cut(&mut self) -> Epoch {
        let ended = self.current();
        self.current += 1;
        self.counts.push_back(0);
        while self.counts.len() > 1 && self.counts[0] == 0 {
            self.counts.pop_front();
        }
        ended
    }

    /// Whether no write of `epoch` or an older one is unfinished.
    #[must_use]
    pub fn is_quiet_up_to(&self, epoch: Epoch) -> bool {
        let oldest = self.current - (self.counts.len() as u64 - 1);
        oldest > epoch.0 || (self.counts.len() == 1 && self.counts[0] == 0)
    }

    /// Unfinished writes of all epochs.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_not_quiet_while_a_write_of_an_older_epoch_is_unfinished() {
        let mut epochs = Epochs::new();
        let first = epochs.enter();
        epochs.cut();
        let second = epochs.enter();
        epochs.cut();
        epochs.leave(second);
        assert!(!epochs.is_quiet_up_to(first));
        assert!(!epochs.is_quiet_up_to(second));
        epochs.leave(first);
        assert!(epochs.is_quiet_up_to(second));
        assert_eq!(epochs.unfinished(), 0);
    }

    #[test]
    fn an_epoch_without_writes_is_quiet_at_once() {
        let mut epochs = Epochs::new();
        let ended = epochs.cut();
        assert!(epochs.is_quiet_up_to(ended));
    }

    #[test]
    fn writes_of_the_current_epoch_do_not_disturb_a_cut_one() {
        let mut epochs = Epochs::new();
        let ended = epochs.cut();
        epochs.enter();
        assert!(epochs.is_quiet_up_to(ended));
        assert!(!epochs.is_quiet_up_to(epochs.current()));
    }
}
