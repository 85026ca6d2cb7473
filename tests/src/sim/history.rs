//! What the guest remembers of one life of its machine, and so may rely on; and whether a point agrees with it.
//!
//! Each write has two ticks of one clock: *issued*, before it is given to the source, and *acknowledged*, when it is
//! answered. A point must be a prefix: where it shows a write, it holds everything that was acknowledged before that
//! write was issued, on all disks. Writes of one sector keep the order in which they arrived (rule S2). A write that
//! failed, or was never answered, may be there or not.

use std::collections::BTreeSet;

/// A moment in the order of things that the guest saw.
pub type Tick = u64;

/// What a sector holds: the number of the write that made it, or 0 for zeroes.
pub type Content = u64;

/// What all disks hold, by disk and sector.
pub type Image = Vec<Vec<Content>>;

#[derive(Debug, Clone, Copy)]
struct Entry {
    content: Content,
    write: u64,
    issued: Tick,
    /// `MAX` while, or if, it is not.
    acknowledged: Tick,
    /// Asked for by a flush that was answered.
    is_flushed: bool,
}

/// Everything that became, or may have become, the content of each sector, in order of arrival.
#[derive(Debug, Clone, Default)]
pub struct History {
    disks: Vec<Vec<Vec<Entry>>>,
    /// Sectors that the source could not read for a set: points need not agree with them.
    unreadable: BTreeSet<(u32, u64)>,
    /// What sectors fell back to with a flush that failed: any point may hold that.
    fallen: BTreeSet<(u32, u64, Content)>,
}

impl History {
    /// A life that begins with this on its disks.
    #[must_use]
    pub fn new(disks: &[Vec<Content>]) -> Self {
        let entry = |content: &Content| {
            vec![Entry { content: *content, write: 0, issued: 0, acknowledged: 0, is_flushed: true }]
        };
        Self { disks: disks.iter().map(|disk| disk.iter().map(entry).collect()).collect(), ..Self::default() }
    }

    /// The source could not read these sectors.
    pub fn unreadable(&mut self, disk: u32, sectors: std::ops::Range<u64>) {
        self.unreadable.extend(sectors.map(|sector| (disk, sector)));
    }

    /// The disk lost what it had not flushed.
    pub fn fell_back(&mut self, disk: u32, sector: u64, content: Content) {
        self.fallen.insert((disk, sector, content));
    }

    /// A write arrives at the source.
    pub fn issued(&mut self, disk: u32, sector: u64, content: &[Content], write: u64, now: Tick) {
        for (entries, content) in self.disks[disk as usize][sector as usize..].iter_mut().zip(content) {
            let content = *content;
            entries.push(Entry { content, write, issued: now, acknowledged: Tick::MAX, is_flushed: false });
        }
    }

    /// It was answered.
    pub fn acknowledged(&mut self, disk: u32, sector: u64, sectors: u64, write: u64, now: Tick) {
        for entries in &mut self.disks[disk as usize][sector as usize..(sector + sectors) as usize] {
            let own = entries.iter_mut().rev().find(|entry| entry.write == write);
            own.expect("what is answered was issued").acknowledged = now;
        }
    }

    /// A flush that was issued at `since` was answered.
    pub fn flushed(&mut self, disk: u32, since: Tick) {
        for entry in self.disks[disk as usize].iter_mut().flatten() {
            entry.is_flushed |= entry.acknowledged < since;
        }
    }

    /// Whether the disks may hold this after a loss of power: nothing that was flushed is gone.
    pub fn check_disks(&self, image: &Image) -> Result<(), String> {
        for (disk, (sectors, found)) in self.disks.iter().zip(image).enumerate() {
            for (sector, (entries, found)) in sectors.iter().zip(found).enumerate() {
                let flushed = entries.iter().rposition(|entry| entry.is_flushed).unwrap_or(0);
                let has_fallen = self.fallen.contains(&(disk as u32, sector as u64, *found));
                if !has_fallen && !entries[flushed..].iter().any(|entry| entry.content == *found) {
                    return Err(format!("disk {disk} sector {sector} holds {found}, older than what was flushed"));
                }
            }
        }
        Ok(())
    }

    /// Judges a point that must hold what was acknowledged before `horizon`. Sectors for which `is_void` says so are not
    /// looked at. Gives the least horizon that explains the image: nothing that it shows was issued later.
    pub fn check_point(
        &self,
        image: &Image,
        horizon: Tick,
        is_void: impl Fn(u32, u64) -> bool,
    ) -> Result<Tick, String> {
        let mut horizon = horizon;
        let places = || {
            let disks = (0..).zip(self.disks.iter().zip(image));
            let sectors = disks.flat_map(|(disk, (sectors, found))| {
                (0..)
                    .zip(sectors.iter().zip(found))
                    .map(move |(sector, (entries, found))| (disk, sector, entries, *found))
            });
            sectors.filter(|(disk, sector, entries, found)| {
                // Most sectors were never written.
                let has_fallen = || self.fallen.contains(&(*disk, *sector, *found));
                let is_void = || is_void(*disk, *sector) || self.unreadable.contains(&(*disk, *sector)) || has_fallen();
                (entries.len() > 1 || entries[0].content != *found) && !is_void()
            })
        };
        // What is seen moves the horizon. Where several writes made the same content (zeroes), it is the newest up to the
        // horizon, or the next one after what the horizon says must be there: the least that explains the image.
        loop {
            let mut next = horizon;
            for (disk, sector, entries, found) in places() {
                let made = |entry: &Entry| entry.content == found;
                let shown = entries.iter().rposition(|entry| made(entry) && entry.issued <= next);
                let Some(shown) = shown.or_else(|| entries.iter().position(made)) else {
                    return Err(format!("disk {disk} sector {sector} holds {found}, which nobody wrote there"));
                };
                next = next.max(entries[shown].issued);
                let later = &entries[shown + 1..];
                if let Some(lost) = later.iter().rposition(|entry| entry.acknowledged < next) {
                    let Some(after) = later[lost + 1..].iter().find(|entry| made(entry)) else {
                        let Entry { content, acknowledged, .. } = later[lost];
                        return Err(format!(
                            "disk {disk} sector {sector} holds {found}; {content} was acknowledged at {acknowledged}, before {next}"
                        ));
                    };
                    next = after.issued;
                }
            }
            if next == horizon {
                return Ok(horizon);
            }
            horizon = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(image: &[Content], horizon: Tick) -> Result<Tick, String> {
        let mut history = History::new(&[vec![1, 2, 3]]);
        history.issued(0, 0, &[10], 1, 1);
        history.acknowledged(0, 0, 1, 1, 2);
        history.issued(0, 1, &[20], 2, 3);
        history.issued(0, 2, &[0], 3, 4);
        history.acknowledged(0, 2, 1, 3, 5);
        history.issued(0, 2, &[30], 4, 6);
        history.check_point(&vec![image.to_vec()], horizon, |_, _| false)
    }

    #[test]
    fn a_prefix_passes_and_a_hole_in_it_does_not() {
        for good in [[1, 2, 3], [10, 2, 3], [10, 20, 3], [10, 2, 0], [10, 20, 0], [10, 20, 30], [10, 2, 30]] {
            assert!(check(&good, 0).is_ok(), "{good:?}");
        }
        for bad in [[1, 20, 3], [1, 2, 0], [10, 2, 99], [1, 2, 30]] {
            assert!(check(&bad, 0).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_point_by_command_holds_what_was_acknowledged_before_it() {
        assert!(check(&[1, 2, 3], 3).is_err());
        assert!(check(&[10, 2, 3], 5).is_ok() && check(&[10, 2, 3], 6).is_err());
    }

    #[test]
    fn what_was_flushed_is_there_after_a_loss_of_power() {
        let mut history = History::new(&[vec![1]]);
        history.issued(0, 0, &[10], 1, 1);
        history.acknowledged(0, 0, 1, 1, 2);
        assert!(history.check_disks(&vec![vec![1]]).is_ok());
        history.flushed(0, 3);
        assert!(history.check_disks(&vec![vec![1]]).is_err() && history.check_disks(&vec![vec![10]]).is_ok());
    }
}
