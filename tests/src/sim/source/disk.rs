//! A protected disk: what is written is there at once, and for good only after a flush.

use std::collections::BTreeMap;

use crate::random::Random;
use crate::sim::history::Content;

/// A disk that keeps, of each sector, what a loss of power may bring back.
#[derive(Debug, Clone)]
pub(super) struct SimDisk {
    pub(super) now: Vec<Content>,
    /// What sectors held before each write since the last flush, oldest first.
    pub(super) unflushed: BTreeMap<usize, Vec<Content>>,
}

impl SimDisk {
    pub(super) fn put(&mut self, sector: usize, content: Content) {
        self.unflushed.entry(sector).or_default().push(self.now[sector]);
        self.now[sector] = content;
    }

    /// A flush ended that began when the disk held `seen`.
    pub(super) fn flushed(&mut self, seen: &[Content]) {
        let now = &self.now;
        self.unflushed.retain(|sector, older| {
            if now[*sector] == seen[*sector] {
                return false;
            }
            if let Some(at) = older.iter().rposition(|content| *content == seen[*sector]) {
                older.drain(..at);
            }
            true
        });
    }

    /// A flush has failed: some of what was not flushed falls back, and is flushed no more. Nothing of writes that are
    /// under way does. Gives what sectors hold now that did.
    pub(super) fn falls_back(&mut self, is_busy: impl Fn(usize) -> bool, random: &mut Random) -> Vec<(usize, Content)> {
        let mut fallen = Vec::new();
        for (sector, older) in &mut self.unflushed {
            if is_busy(*sector) || random.below(3) > 0 {
                continue;
            }
            let kept = random.below(older.len() as u64) as usize;
            self.now[*sector] = older[kept];
            older.truncate(kept);
            fallen.push((*sector, self.now[*sector]));
        }
        self.unflushed.retain(|_, older| !older.is_empty());
        fallen
    }

    pub(super) fn lose_power(&mut self, random: &mut Random) {
        for (sector, older) in std::mem::take(&mut self.unflushed) {
            let choice = random.below(older.len() as u64 + 1) as usize;
            if let Some(content) = older.get(choice) {
                self.now[sector] = *content;
            }
        }
    }
}
