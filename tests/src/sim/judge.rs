//! Judges a simulated world from outside: its points, its marks, its memory, its log, and where it ends.
//!
//! A point is judged when it is first listed, against what the guest of its life remembers; what it showed then it must
//! show for as long as it is listed. It looks at both agents only through what an operator could ask them, and at the
//! disks.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use master_target::apply::MemDisks;
use master_target::journal::{Shrink, WhenFull};
use master_target::recover::PointReader;
use master_target::retention::PointInfo;
use proto::ids::SetNumber;
use proto::replication::{PointKind, SealSet};
use proto::time::Timestamp;

use super::history::{Content, Image, Tick};
use super::rot::Rot;
use super::source::Source;
use super::target::{SimJournal, Target};

/// Something that no sector was ever given.
const FOREIGN: Content = u64::MAX;

/// Number and time of a point: no two are the same, also where a target comes back from an image.
type Key = (u64, u64);

#[derive(Debug, Clone)]
struct Seen {
    image: Rc<Image>,
    /// Sectors that it refused, or may have shown wrong, when it was first seen.
    spoiled: BTreeSet<(u32, u64)>,
}

/// What a point shows, and the blocks that it refuses, with what it says of each.
struct Shown {
    image: Image,
    refused: BTreeMap<(u32, u64), String>,
}

/// What an image of the target means to the judge.
#[derive(Debug, Clone, Default)]
pub struct Known {
    seen: BTreeMap<Key, Seen>,
    rot: Rot,
}

/// The judge. See the module's documentation.
#[derive(Debug, Default)]
pub struct Judge {
    known: Known,
    /// Of each set that was sealed: which life of the source made it.
    lives: BTreeMap<Key, usize>,
    /// Points that were asked for: when, and the label.
    pub asked: BTreeMap<u64, (Tick, Option<String>)>,
    /// The volume was full at some time since the points were last looked at.
    pub was_tight: bool,
    /// How many points were judged.
    pub points: u64,
    /// How many sectors rotted, and how many blocks were refused for that.
    pub rotted: u64,
    pub refused: std::cell::Cell<u64>,
    /// Sectors that the source could not read once. The target keeps what it had (rule S17), until a verification mends
    /// them without undo (rule J11).
    unread: BTreeSet<(u32, u64)>,
}

/// What sectors hold, or `FOREIGN` where they are torn.
#[must_use]
pub fn contents(bytes: &[u8]) -> Vec<Content> {
    let of = |sector: &[u8]| {
        let (first, last) = (sector.first_chunk::<8>(), sector.last_chunk::<8>());
        match first.zip(last) {
            Some((first, last)) if first == last => Content::from_le_bytes(*first),
            _ => FOREIGN,
        }
    };
    bytes.chunks(512).map(of).collect()
}

fn read(journal: &Arc<SimJournal>, disks: &MemDisks, point: &PointInfo, sizes: &[u64]) -> Result<Shown, String> {
    let reader = PointReader::over(journal.clone(), disks.clone(), point);
    let mut reader = reader.map_err(|error| error.to_string())?;
    let mut shown = Shown { image: Vec::new(), refused: BTreeMap::new() };
    for (disk, size) in (0..).zip(sizes) {
        let mut bytes = vec![0; *size as usize];
        if reader.read(disk, 0, &mut bytes).is_err() {
            for (block, bytes) in (0..).zip(bytes.chunks_mut(4096)) {
                if let Err(why) = reader.read(disk, block * 4096, bytes) {
                    shown.refused.insert((disk, block), why.to_string());
                }
            }
        }
        shown.image.push(contents(&bytes));
    }
    if !shown.refused.is_empty() && journal.has_stopped() {
        return Err(format!("the journal has stopped: {:?}", shown.refused));
    }
    Ok(shown)
}

impl Shown {
    fn refuses(&self, disk: u32, sector: u64) -> bool {
        self.refused.contains_key(&(disk, sector / 8))
    }
}

fn key(point: &PointInfo) -> Key {
    (point.set.0, point.time.0)
}

impl Judge {
    /// What is known now, for an image of the target.
    #[must_use]
    pub fn known(&self) -> Known {
        self.known.clone()
    }

    /// The target came back from an image.
    pub fn restored(&mut self, known: Known) {
        self.known = known;
    }

    /// The source seals a set.
    pub fn sealed(&mut self, seal: &SealSet, life: usize) {
        self.lives.insert((seal.number, seal.cut_time_us), life);
    }

    /// Follows what became of the rot.
    pub fn watch_rot(&mut self, target: &Target) {
        self.known.rot.watch(target);
    }

    /// The target lost its power.
    pub fn power_lost(&mut self, target: &Target) {
        self.known.rot.look_for_blind(target);
    }

    /// The ledger of rot.
    pub fn rot(&mut self) -> &mut Rot {
        &mut self.known.rot
    }

    fn check_refused(&self, shown: &Shown, point: &PointInfo) {
        self.refused.set(self.refused.get() + shown.refused.len() as u64);
        for (place, why) in &shown.refused {
            let is_explained = self.known.rot.may_refuse(*place, point.set.0);
            assert!(is_explained, "point {} refuses {place:?}, which did not rot: {why}", point.id);
        }
    }

    /// Looks at what the target lists: every new point is judged, none is missing. False: it lists nothing now.
    pub fn look(&mut self, target: &Target, source: &Source, now: Timestamp) -> bool {
        self.unread.extend(&source.unread);
        let Some(journal) = target.journal.as_ref().filter(|_| !target.board.has_failed()) else { return false };
        self.watch_rot(target);
        let points = journal.points();
        assert!(points.is_sorted_by_key(|point| point.set), "points are listed in order");
        for point in &points {
            if !self.known.seen.contains_key(&key(point)) {
                self.first_sight(target, source, point);
            }
        }
        self.check_listed(target, &points, now);
        true
    }

    fn first_sight(&mut self, target: &Target, source: &Source, point: &PointInfo) {
        let Some(journal) = &target.journal else { return };
        let sizes: Vec<u64> = target.specs.iter().map(|spec| spec.size).collect();
        let shown = match read(journal, &target.disks, point, &sizes) {
            Ok(shown) => shown,
            // A failure that only a reader met: the journal is opened anew, and the point looked at then.
            Err(_) if journal.has_stopped() => return,
            Err(why) => panic!("point {} can't be read: {why}", point.id),
        };
        let life = self.lives.get(&key(point));
        let life = *life.unwrap_or_else(|| panic!("point {} was never sealed by the source", point.id));
        let horizon = point.label.as_ref().and_then(|label| {
            let asked = self.asked.values().find(|(_, asked)| asked.as_ref() == Some(label));
            asked.map(|(since, _)| *since)
        });
        self.check_refused(&shown, point);
        let rot = &self.known.rot;
        let is_void = |disk, sector| shown.refuses(disk, sector) || rot.may_show((disk, sector), point.set.0);
        let judged = source.lives[life].check_point(&shown.image, horizon.unwrap_or(0), is_void);
        let last = judged.unwrap_or_else(|why| panic!("point {} is no prefix: {why}", point.id));
        // The machines of an application-consistent point stand still while it is cut.
        let is_exact = point.kind == PointKind::App && horizon.is_some();
        assert!(!is_exact || Some(last) == horizon, "point {} shows what came after it was cut", point.id);
        self.points += 1;
        let places = (0..).zip(&shown.image).flat_map(|(disk, of)| (0..of.len() as u64).map(move |at| (disk, at)));
        let spoiled = places.filter(|(disk, sector)| is_void(*disk, *sector)).collect();
        self.known.seen.insert(key(point), Seen { image: Rc::new(shown.image), spoiled });
    }

    fn check_listed(&mut self, target: &Target, points: &[PointInfo], now: Timestamp) {
        let listed: BTreeSet<Key> = points.iter().map(key).collect();
        let may_give_way = self.was_tight && target.options.when_full == WhenFull::DropOldest;
        // What was listed was durable: no crash takes it away.
        let newest = self.known.seen.keys().last().copied();
        for gone in self.known.seen.keys().filter(|key| !listed.contains(*key)) {
            let is_old = Timestamp(gone.1) < now.minus(target.retention);
            assert!(is_old || may_give_way, "point {} is gone, and nothing says that it may be", gone.0);
        }
        if let Some(newest) = newest {
            assert!(listed.last() >= Some(&newest), "point {} went without a newer one", newest.0);
        }
        self.known.seen.retain(|key, _| listed.contains(key));
    }

    /// How many points were listed last.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.known.seen.len() as u64
    }

    /// A point must show what it showed before.
    pub fn look_again(&self, target: &Target, which: u64) {
        let Some(journal) = target.journal.as_ref().filter(|_| !target.board.has_failed()) else { return };
        let points = journal.points();
        if points.is_empty() {
            return;
        }
        let point = &points[(which % points.len() as u64) as usize];
        let Some(seen) = self.known.seen.get(&key(point)) else { return };
        let sizes: Vec<u64> = target.specs.iter().map(|spec| spec.size).collect();
        let shown = match read(journal, &target.disks, point, &sizes) {
            Ok(shown) => shown,
            Err(_) if journal.has_stopped() => return,
            Err(why) => panic!("point {} can't be read any more: {why}", point.id),
        };
        self.check_refused(&shown, point);
        let rot = &self.known.rot;
        let is_void = |place: (u32, u64)| {
            self.unread.contains(&place) || shown.refuses(place.0, place.1) || rot.may_show(place, point.set.0)
        };
        seen.compare(&shown.image, is_void, &format!("point {} has changed", point.id));
    }

    /// The disks must hold this point.
    pub fn disks_hold(&self, target: &Target, id: &str) {
        let found = self.known.seen.iter().find(|((set, _), _)| set.to_string() == id);
        let (_, seen) = found.unwrap_or_else(|| panic!("point {id} was never listed"));
        let image: Image = target.disks.image().iter().map(|disk| contents(disk)).collect();
        seen.compare(&image, |place| self.unread.contains(&place), &format!("the disks are not at point {id}"));
    }

    /// Every block in which the disks of source and target differ must be known to the source as such.
    pub fn check_marks(&mut self, target: &Target, source: &Source) {
        self.watch_rot(target);
        let ours = source.image();
        let (dirty, suspect) = source.group.exact();
        let mut marked: Vec<Vec<bool>> = ours.iter().map(|disk| vec![false; disk.len().div_ceil(8)]).collect();
        for (disk, block, blocks) in dirty.into_iter().chain(suspect).chain(source.in_flight()) {
            let marks = &mut marked[disk as usize];
            let end = (block + blocks).min(marks.len() as u64);
            marks[block as usize..end as usize].fill(true);
        }
        for head in self.heads(target) {
            for (disk, (ours, theirs)) in (0..).zip(ours.iter().zip(&head.image)) {
                for (sector, (ours, theirs)) in (0..).zip(ours.iter().zip(theirs)) {
                    let is_known = marked[disk as usize][sector as usize / 8];
                    let place = (disk, sector);
                    let is_void = self.known.rot.is_on_disk(place) || source.unread.contains(&place);
                    let is_void = is_void || head.refuses(disk, sector);
                    assert!(
                        ours == theirs || is_known || is_void,
                        "disk {disk} sector {sector} holds {ours}, on the target {theirs}, and nothing marks it"
                    );
                }
            }
        }
    }

    /// What the target has: with all that is durable applied; and what of it a loss of power would leave.
    fn heads(&self, target: &Target) -> Vec<Shown> {
        let of = |disks: Vec<Vec<u8>>| {
            let image = disks.iter().map(|disk| contents(disk)).collect();
            Shown { image, refused: BTreeMap::new() }
        };
        let Some(journal) = target.journal.as_ref().filter(|_| !target.board.has_failed()) else { return Vec::new() };
        let last = journal.last_durable_set();
        if journal.bulk_open() || last == SetNumber(0) {
            return vec![of(target.disks.image()), of(target.disks.synced())];
        }
        if journal.applied_set() == last {
            return vec![of(target.disks.image())];
        }
        let newest = PointInfo {
            id: String::new(),
            set: last,
            time: Timestamp(0),
            kind: PointKind::Crash,
            label: None,
            changed_bytes: 0,
            stored_bytes: 0,
            unreadable_bytes: 0,
            shrink: Shrink::default(),
            span: None,
            is_damaged: false,
        };
        let sizes: Vec<u64> = target.specs.iter().map(|spec| spec.size).collect();
        // A full volume may have taken the way there; the disks will show it when it is applied.
        let shown = read(journal, &target.disks, &newest, &sizes).ok();
        shown.inspect(|shown| self.check_refused(shown, &newest)).into_iter().collect()
    }

    /// Rot is over: the newest point refuses nothing, and holds what the source does.
    pub fn newest_is_whole(&self, target: &Target, source: &Source) {
        let journal = target.journal.as_ref().expect("the group streams");
        let points = journal.points();
        let newest = points.last().expect("a point was asked for");
        let sizes: Vec<u64> = target.specs.iter().map(|spec| spec.size).collect();
        let shown = read(journal, &target.disks, newest, &sizes).unwrap_or_else(|why| panic!("{why}"));
        assert!(shown.refused.is_empty(), "a point from after the repair refuses {:?}", shown.refused);
        for (disk, (ours, theirs)) in (0..).zip(source.image().iter().zip(&shown.image)) {
            for (sector, (ours, theirs)) in (0..).zip(ours.iter().zip(theirs)) {
                let is_void = self.unread.contains(&(disk, sector));
                assert!(ours == theirs || is_void, "disk {disk} sector {sector} is {ours}, in the new point {theirs}");
            }
        }
    }

    /// Source and target hold the same.
    pub fn check_same(&mut self, target: &Target, source: &Source) {
        self.watch_rot(target);
        for (disk, ours) in (0..).zip(source.image()) {
            let theirs = target.disks.look(disk, contents);
            for (sector, (ours, theirs)) in (0..).zip(ours.iter().zip(&theirs)) {
                let is_void = source.unread.contains(&(disk, sector));
                assert!(
                    ours == theirs || is_void,
                    "disk {disk} sector {sector} ends with {ours}, its copy with {theirs}"
                );
            }
        }
    }
}

impl Seen {
    fn compare(&self, image: &Image, is_void: impl Fn((u32, u64)) -> bool, what: &str) {
        for (disk, (before, now)) in (0..).zip(self.image.iter().zip(image)) {
            for (sector, (before, now)) in (0..).zip(before.iter().zip(now)) {
                let is_void = self.spoiled.contains(&(disk, sector)) || is_void((disk, sector));
                assert!(before == now || is_void, "{what}: disk {disk} sector {sector} holds {now}, not {before}");
            }
        }
    }
}
