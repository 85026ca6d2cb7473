//! The guest's view: which contents a recovery point may show, judged from outside.
//!
//! Each write is noted with two ticks of one clock: *issued*, before its first byte is sent, and *acknowledged*, after its
//! reply has arrived. From these alone follow the rules that every point must keep (requirement P1):
//!
//! 1. Whatever the point shows of a write B, it holds every write A that was acknowledged before B was issued, on any
//!    disk of the group. So the newest issue tick among the writes that can be seen gives a *horizon*: all that was
//!    acknowledged before it must be there.
//! 2. A sector may show a write only if no write that must be there followed it: none that was issued after this one had
//!    ended and acknowledged before the horizon. Writes that overlapped in time may have landed in either order.
//! 3. A point taken by command has its horizon at the start of the command or later, and shows nothing that was issued
//!    after the command returned. A later point holds all that an earlier one holds.
//!
//! Sectors are judged one by one: a power cut may tear a write. Zeroes don't say which write they come from; any that fits
//! will do, and they don't move the horizon. So the judge never accuses wrongly and misses little.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sector::{self, SECTOR, Seen};

/// A moment in the order of things that the clients saw.
pub type Tick = u64;

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sectors that name the write.
    Data,
    /// Zeroes, by trim or by writing zeroes.
    Zero,
}

#[derive(Clone, Debug)]
struct Write {
    disk: u32,
    first_sector: u64,
    sectors: u64,
    kind: Kind,
    issued: Tick,
    /// When its success was seen: it must be in every point behind this.
    acknowledged: Option<Tick>,
    /// From when on it can't reach the disk any more: its reply, or the end of the agent that had it.
    ended: Option<Tick>,
}

#[derive(Default)]
struct State {
    now: Tick,
    writes: Vec<Write>,
}

/// Everything that the guest did to the disks of one group.
pub struct Model {
    disk_sectors: Vec<u64>,
    state: Mutex<State>,
}

/// What a point must and must not hold, besides what it shows itself.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// All that was acknowledged before this must be there.
    pub must_hold_before: Tick,
    /// Nothing that was issued after this may be there.
    pub nothing_after: Tick,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { must_hold_before: 0, nothing_after: Tick::MAX }
    }
}

/// A point that passed.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// All that was acknowledged before this is in the point, and must be in later ones.
    pub horizon: Tick,
    /// Sectors with data in them.
    pub data_sectors: u64,
}

/// Why a point can't be a state that the guest has seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation(String);

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Model {
    /// A group whose disks have these sizes, in bytes, and hold nothing but zeroes.
    #[must_use]
    pub fn new(disk_sizes: &[u64]) -> Self {
        let disk_sectors = disk_sizes.iter().map(|size| size / SECTOR as u64).collect();
        let state = State { now: 1, writes: Vec::new() };
        Self { disk_sectors, state: Mutex::new(state) }
    }

    /// Sectors of a disk.
    #[must_use]
    pub fn sectors(&self, disk: u32) -> u64 {
        self.disk_sectors[disk as usize]
    }

    /// Notes that a write is about to be sent, and returns its number.
    pub fn issue(&self, disk: u32, first_sector: u64, sectors: u64, kind: Kind) -> u64 {
        assert!(first_sector + sectors <= self.sectors(disk), "a guest writes inside its disk");
        let mut state = self.state();
        state.now += 1;
        let issued = state.now;
        state.writes.push(Write { disk, first_sector, sectors, kind, issued, acknowledged: None, ended: None });
        state.writes.len() as u64 - 1
    }

    /// Notes that the success of a write was seen.
    pub fn acknowledge(&self, write: u64) {
        let mut state = self.state();
        state.now += 1;
        let now = state.now;
        let write = &mut state.writes[write as usize];
        (write.acknowledged, write.ended) = (Some(now), Some(now));
    }

    /// Notes that a write failed, or was lost with its connection, and can't reach the disk from now on.
    pub fn give_up(&self, write: u64) {
        let mut state = self.state();
        state.now += 1;
        let now = state.now;
        state.writes[write as usize].ended = Some(now);
    }

    /// The present tick.
    #[must_use]
    pub fn now(&self) -> Tick {
        let mut state = self.state();
        state.now += 1;
        state.now
    }

    /// How many writes there were.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.state().writes.len()
    }

    /// The content that a write of this number must send.
    #[must_use]
    pub fn content(&self, write: u64) -> Vec<u8> {
        let (disk, first, sectors) = {
            let state = self.state();
            let write = &state.writes[write as usize];
            (write.disk, write.first_sector, write.sectors)
        };
        sector::content(write, disk, first, sectors)
    }

    /// Judges the images of all disks of the group at one point.
    ///
    /// # Errors
    /// With the first sector that breaks a rule, and what would have been right.
    pub fn judge(&self, images: &[&[u8]], bounds: Bounds) -> Result<Verdict, Violation> {
        let writes = self.state().writes.clone();
        assert!(images.len() == self.disk_sectors.len(), "a group is judged as a whole");
        let mut horizon = bounds.must_hold_before;
        let mut data_sectors = 0;
        for (disk, image) in images.iter().enumerate() {
            if image.len() as u64 != self.disk_sectors[disk] * SECTOR as u64 {
                return Err(Violation(format!("disk {disk} has {} bytes", image.len())));
            }
            for (sector, bytes) in image.chunks_exact(SECTOR).enumerate() {
                if let Some(seen) = self.seen(&writes, disk as u32, sector as u64, bytes, bounds)? {
                    horizon = horizon.max(writes[seen].issued);
                    data_sectors += 1;
                }
            }
        }
        for (disk, image) in images.iter().enumerate() {
            judge_order(&writes, disk as u32, image, horizon)?;
        }
        Ok(Verdict { horizon, data_sectors })
    }

    /// The write that a sector shows, if it shows data; rule 3's second half.
    fn seen(
        &self,
        writes: &[Write],
        disk: u32,
        sector: u64,
        bytes: &[u8],
        bounds: Bounds,
    ) -> Result<Option<usize>, Violation> {
        let place = format!("disk {disk} sector {sector}");
        match sector::identify(disk, sector, bytes) {
            Seen::Zero => Ok(None),
            Seen::Foreign => Err(Violation(format!("{place} holds what nobody wrote there: {:02x?}...", &bytes[..32]))),
            Seen::Write(number) => {
                let known = writes.get(number as usize).filter(|write| {
                    write.disk == disk
                        && write.kind == Kind::Data
                        && (write.first_sector..write.first_sector + write.sectors).contains(&sector)
                });
                match known {
                    None => Err(Violation(format!("{place} shows write {number}, which never was"))),
                    Some(write) if write.issued > bounds.nothing_after => Err(Violation(format!(
                        "{place} shows write {number}, issued at {} after the point was taken at {}",
                        write.issued, bounds.nothing_after
                    ))),
                    Some(_) => Ok(Some(number as usize)),
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rules 1 and 2 for one disk.
fn judge_order(writes: &[Write], disk: u32, image: &[u8], horizon: Tick) -> Result<(), Violation> {
    // Which writes touched each sector, oldest first.
    let mut history: Vec<Vec<u32>> = vec![Vec::new(); image.len() / SECTOR];
    for (number, write) in writes.iter().enumerate().filter(|(_, write)| write.disk == disk) {
        for touched in &mut history[write.first_sector as usize..(write.first_sector + write.sectors) as usize] {
            touched.push(number as u32);
        }
    }
    for (sector, bytes) in image.chunks_exact(SECTOR).enumerate() {
        let touched = &history[sector];
        // The newest that must be there: what ended before it was issued can't be seen any more.
        let newest = touched
            .iter()
            .filter(|&&number| writes[number as usize].acknowledged.is_some_and(|tick| tick < horizon))
            .max_by_key(|&&number| writes[number as usize].issued);
        let Some(&newest) = newest else { continue };
        let barrier = writes[newest as usize].issued;
        let fits = |write: &Write| write.ended.is_none_or(|ended| ended >= barrier);
        let (fine, shown) = match sector::identify(disk, sector as u64, bytes) {
            Seen::Write(number) => (fits(&writes[number as usize]), format!("write {number}")),
            _ => {
                let zeroes = |&&number: &&u32| writes[number as usize].kind == Kind::Zero;
                let fine = touched.iter().filter(zeroes).any(|&number| fits(&writes[number as usize]));
                (fine, "zeroes".to_owned())
            }
        };
        if !fine {
            return Err(Violation(format!(
                "disk {disk} sector {sector} shows {shown}, but write {newest} ({:?}) must be there, as the point holds \
                 a write that was issued later (horizon {horizon})",
                writes[newest as usize]
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 8 * SECTOR as u64;

    /// A group of two disks and the images that a test builds of them.
    struct Group {
        model: Model,
        images: [Vec<u8>; 2],
    }

    impl Group {
        fn new() -> Self {
            Self { model: Model::new(&[SIZE, SIZE]), images: [vec![0; SIZE as usize], vec![0; SIZE as usize]] }
        }

        fn issue(&self, disk: u32, sector: u64, sectors: u64) -> u64 {
            self.model.issue(disk, sector, sectors, Kind::Data)
        }

        fn done(&self, disk: u32, sector: u64, sectors: u64) -> u64 {
            let write = self.issue(disk, sector, sectors);
            self.model.acknowledge(write);
            write
        }

        fn show(&mut self, disk: u32, sector: u64, write: u64) {
            let at = sector as usize * SECTOR;
            sector::fill(write, disk, sector, &mut self.images[disk as usize][at..at + SECTOR]);
        }

        fn judge(&self, bounds: Bounds) -> Result<Verdict, Violation> {
            self.model.judge(&[&self.images[0], &self.images[1]], bounds)
        }

        #[track_caller]
        fn refused(&self, bounds: Bounds) {
            self.judge(bounds).expect_err("the judge lets a wrong point pass");
        }
    }

    #[test]
    fn an_empty_point_is_fine_before_anything_must_be_there() {
        let group = Group::new();
        group.done(0, 0, 1);
        group.judge(Bounds::default()).expect("a point from before the write");
    }

    #[test]
    fn a_point_by_command_must_hold_what_was_acknowledged_before_it() {
        let mut group = Group::new();
        let write = group.done(0, 0, 1);
        let bounds = Bounds { must_hold_before: group.model.now(), nothing_after: Tick::MAX };
        group.refused(bounds);
        group.show(0, 0, write);
        group.judge(bounds).expect("it holds the write");
    }

    #[test]
    fn b_on_one_disk_is_never_without_a_on_the_other() {
        let mut group = Group::new();
        let a = group.done(0, 3, 1);
        let b = group.issue(1, 5, 1);
        group.show(1, 5, b);
        group.refused(Bounds::default());
        group.show(0, 3, a);
        group.judge(Bounds::default()).expect("both are there");
    }

    #[test]
    fn a_write_that_was_not_acknowledged_may_be_missing() {
        let mut group = Group::new();
        group.issue(0, 3, 1);
        let b = group.issue(1, 5, 1);
        group.show(1, 5, b);
        group.judge(Bounds::default()).expect("nobody was told that the first was done");
    }

    #[test]
    fn overlapping_writes_in_flight_may_land_in_either_order() {
        let mut group = Group::new();
        let first = group.issue(0, 0, 2);
        let second = group.issue(0, 0, 2);
        group.model.acknowledge(first);
        group.model.acknowledge(second);
        let bounds = Bounds { must_hold_before: group.model.now(), nothing_after: Tick::MAX };
        group.show(0, 0, first);
        group.show(0, 1, second);
        group.judge(bounds).expect("they overlapped in time");
    }

    #[test]
    fn an_overwritten_content_must_not_come_back() {
        let mut group = Group::new();
        let old = group.done(0, 0, 1);
        let new = group.done(0, 0, 1);
        let bounds = Bounds { must_hold_before: group.model.now(), nothing_after: Tick::MAX };
        group.show(0, 0, old);
        group.refused(bounds);
        group.show(0, 0, new);
        group.judge(bounds).expect("the newer one");
    }

    #[test]
    fn a_write_lost_in_a_crash_may_show_but_not_over_a_later_one() {
        let mut group = Group::new();
        let lost = group.issue(0, 0, 1);
        group.model.give_up(lost);
        group.show(0, 0, lost);
        group.judge(Bounds::default()).expect("it may have reached the disk");
        group.done(0, 0, 1);
        group.refused(Bounds { must_hold_before: group.model.now(), nothing_after: Tick::MAX });
    }

    #[test]
    fn zeroes_must_have_been_written() {
        let mut group = Group::new();
        let data = group.done(0, 0, 1);
        let before = Bounds { must_hold_before: group.model.now(), nothing_after: Tick::MAX };
        group.refused(before);
        let zero = group.model.issue(0, 0, 1, Kind::Zero);
        group.judge(before).expect("the zeroes may have landed already");
        group.model.acknowledge(zero);
        group.show(0, 0, data);
        group.refused(Bounds { must_hold_before: group.model.now(), nothing_after: Tick::MAX });
    }

    #[test]
    fn nothing_from_after_the_command_may_show() {
        let mut group = Group::new();
        let bounds = Bounds { must_hold_before: 0, nothing_after: group.model.now() };
        let late = group.done(0, 0, 1);
        group.show(0, 0, late);
        group.refused(bounds);
    }

    #[test]
    fn foreign_content_is_refused() {
        let mut group = Group::new();
        group.images[0][17] = 1;
        group.refused(Bounds::default());
        let mut group = Group::new();
        group.show(0, 0, 99);
        group.refused(Bounds::default());
    }
}
