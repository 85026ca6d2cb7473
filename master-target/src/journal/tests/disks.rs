//! R7: disks are added and removed while their group is protected, and the older points stay as they were.
//!
//! Shown one by one, and at random with crashes at any step, rotation, thinning and rollbacks, against a full copy of
//! each point's disks.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use proto::frame::{Compression, Decoder, RawExtent};
use proto::ids::{Counter, Lineage, Phase, SetNumber};
use proto::replication::{DiskSpec, PartEnd, SealSet};

use super::rig::{INSTANCE, Rig, data, filled, options, specs, zeroes};
use crate::apply::{Applier, ApplyError, Progress, Put};
use crate::journal::{History, Journal, JournalError, MemVolume, Options, PhaseError, Seeded, Standing, Turn};
use crate::recover::{PointReader, Ranges, ReadError};
use crate::retention::{ThinPolicy, ThinRule};

const BLOCKS: u64 = 12;
const DISK_BYTES: u64 = BLOCKS * 4096;
/// Indexes that a world has disks for.
const INDEXES: usize = 24;
const NAMES: u64 = 4;

fn spec(name: u64) -> DiskSpec {
    DiskSpec { name: format!("d{name}"), size: DISK_BYTES, logical_block: 512 }
}

impl Rig {
    /// Begins a journal of some of the disks that there are.
    fn begin_with(&mut self, disks: &[DiskSpec]) {
        self.volume = MemVolume::new(7, self.fuse.clone());
        self.journal = Arc::new(Journal::open(self.volume.clone(), disks, self.now, self.options.clone()).unwrap());
        self.applier = Applier::over(self.journal.clone(), self.disks.clone());
    }

    /// Opens the journal anew with the disks that it knows itself.
    fn opened_anew(&mut self) {
        self.fuse.replace();
        self.volume.fail_syncs(0);
        self.volume.drop_cache();
        let known = Journal::stored_disks(&self.volume).unwrap().unwrap();
        self.journal = Arc::new(Journal::open(self.volume.clone(), &known, self.now, self.options.clone()).unwrap());
        self.applier = Applier::over(self.journal.clone(), self.disks.clone());
    }

    fn change(&mut self, wanted: &[DiskSpec]) {
        self.opened_anew();
        assert!(self.journal.change_disks(wanted).unwrap());
        self.opened_anew();
    }
}

/// A rig of one disk, `d0`, that has room for three, with point 1.
fn one_of_three() -> Rig {
    let mut rig = Rig::new(1, &[DISK_BYTES; 3], options());
    rig.begin_with(&specs(&[DISK_BYTES]));
    rig.open(1);
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig
}

fn names(rig: &Rig, set: u64) -> Vec<String> {
    rig.journal.disks_of(set).into_iter().map(|(_, name)| name).collect()
}

/// The disks get everything of a catching-up, and the set that ends it.
fn catch_up(rig: &mut Rig, phase: u64, set: u64, extents: &[RawExtent]) {
    rig.open(phase);
    rig.apply_all();
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(extents);
    assert_eq!(rig.rest(phase, set, &[zeroes(1, 90, 1)]), set);
}

#[test]
fn r7_an_added_disk_is_part_of_the_points_from_its_first_set_on() {
    let mut rig = one_of_three();
    rig.change(&[spec(0), spec(1)]);
    assert_eq!((names(&rig, 1), names(&rig, 2)), (vec!["d0".to_owned()], vec!["d0".to_owned(), "d1".to_owned()]));
    let refused = rig.reader(1).read(1, 0, &mut [0; 512]).unwrap_err().to_string();
    assert!(refused.contains("was not in the group at this point"), "{refused}");
    let undo_before = rig.journal.state().undo.len();
    catch_up(&mut rig, 2, 2, &[filled(1, 0, 64, 7)]);
    assert_eq!(rig.journal.state().undo.len(), undo_before, "no point has it: there is nothing to save");
    assert_eq!((rig.image(1, 0)[0], rig.image(2, 0)[0], rig.image(2, 1)[0]), (1, 1, 7));
    rig.set(2, 3, &[filled(1, 0, 8, 8), filled(0, 0, 8, 2)]);
    rig.apply_all();
    rig.opened_anew();
    assert_eq!((rig.image(1, 0)[0], rig.image(2, 1)[0], rig.image(3, 1)[0]), (1, 7, 8));
}

#[test]
fn r7_a_removed_disk_is_kept_for_its_points_and_let_go_with_the_last_of_them() {
    let mut rig = one_of_three();
    rig.change(&[spec(0), spec(1)]);
    catch_up(&mut rig, 2, 2, &[filled(1, 0, 64, 7)]);
    rig.change(&[spec(1)]);
    assert_eq!((names(&rig, 2), names(&rig, 3)), (vec!["d0".to_owned(), "d1".to_owned()], vec!["d1".to_owned()]));
    catch_up(&mut rig, 3, 3, &[filled(1, 0, 8, 9)]);
    assert_eq!((rig.image(1, 0)[0], rig.image(2, 0)[0], rig.image(2, 1)[0], rig.image(3, 1)[0]), (1, 1, 7, 9));
    assert_eq!(rig.journal.unneeded_disks(), [0_u32; 0], "points 1 and 2 have it");
    let before: Vec<Standing> = rig.journal.disks().iter().map(|disk| disk.standing).collect();
    assert_eq!(before, [Standing::Kept, Standing::Current]);
    rig.set(3, 4, &[filled(1, 0, 8, 10)]);
    rig.apply_all();
    rig.rotate();
    rig.set(3, 5, &[filled(1, 0, 8, 11)]);
    rig.apply_all();
    rig.journal.sync_marks().unwrap();
    let reader = rig.reader(2);
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    rig.journal.prune(rig.now, Duration::from_secs(1)).unwrap();
    drop(reader);
    rig.journal.prune(rig.now, Duration::from_secs(1)).unwrap();
    assert!(rig.point_sets().iter().all(|set| *set > 2), "{:?}", rig.point_sets());
    assert_eq!(rig.journal.unneeded_disks(), [0]);
    rig.journal.forget_disk(0).unwrap();
    rig.opened_anew();
    assert_eq!((rig.journal.disks()[0].standing, rig.journal.unneeded_disks().len()), (Standing::Gone, 0));
}

#[test]
fn r7_a_disk_that_comes_back_while_it_is_kept_leaves_its_older_points_as_they_were() {
    let mut rig = one_of_three();
    rig.change(&[spec(1)]);
    catch_up(&mut rig, 2, 2, &[filled(1, 0, 64, 7)]);
    rig.change(&[spec(0), spec(1)]);
    assert_eq!(rig.journal.disks().len(), 2, "it is the same entry");
    assert_eq!((names(&rig, 1), names(&rig, 2)), (vec!["d0".to_owned()], vec!["d1".to_owned()]));
    assert_eq!(names(&rig, 3).len(), 2);
    catch_up(&mut rig, 3, 3, &[filled(0, 0, 64, 5)]);
    assert_eq!((rig.image(1, 0)[0], rig.image(3, 0)[0]), (1, 5), "what a point had there was saved");
}

#[test]
fn r7_a_disk_of_another_size_and_too_many_are_refused_and_change_nothing() {
    let mut rig = one_of_three();
    rig.opened_anew();
    let larger = DiskSpec { size: DISK_BYTES + 4096, ..spec(0) };
    let refused = rig.journal.change_disks(&[larger.clone(), spec(1)]).unwrap_err().to_string();
    assert!(refused.contains("resize it back, or give it another name"), "{refused}");
    let many: Vec<DiskSpec> = (1..=64).map(spec).collect();
    let refused = rig.journal.change_disks(&many).unwrap_err().to_string();
    assert!(refused.contains("a journal takes 64"), "{refused}");
    assert_eq!(rig.journal.disks().len(), 1);
    assert!(!rig.journal.change_disks(&[spec(0)]).unwrap());
    rig.change(&[spec(1)]);
    let refused = rig.journal.change_disks(&[larger, spec(1)]).unwrap_err();
    assert!(matches!(refused, JournalError::WrongDisks { .. }), "also while it is kept: {refused}");
}

#[test]
fn r7_disks_are_not_changed_in_a_session_or_a_failback() {
    let mut rig = one_of_three();
    assert!(matches!(rig.journal.change_disks(&[spec(1)]), Err(JournalError::State { .. })));
    rig.opened_anew();
    rig.apply_all();
    rig.journal.begin_rollback(SetNumber(1), Lineage([3; 16]), rig.now).unwrap();
    assert!(matches!(rig.journal.change_disks(&[spec(1)]), Err(JournalError::State { .. })));
}

/// What a change has done, or had to leave, when the power went.
#[derive(Debug)]
struct Failed(#[expect(dead_code, reason = "shown by a failing assertion")] String);

macro_rules! failed_from {
    ($($error:ty),*) => { $(impl From<$error> for Failed { fn from(error: $error) -> Self { Failed(error.to_string()) } })* };
}
failed_from!(JournalError, PhaseError, ApplyError, ReadError);

/// The disks of a point, by index.
type Copies = BTreeMap<u32, Vec<u8>>;

struct World {
    rig: Rig,
    random: Seeded,
    /// The protected disks, by name.
    source: BTreeMap<u64, Vec<u8>>,
    /// Names of the disks that the source replicates.
    wanted: Vec<u64>,
    phase: u64,
    is_streaming: bool,
    copies: BTreeMap<u64, Copies>,
    /// Points that were acknowledged and not removed.
    must: BTreeSet<u64>,
    forgotten: BTreeSet<u32>,
    lineages: u8,
    changes: usize,
    let_go: usize,
    rolled: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Seeded::new(seed);
        let options = Options { segment_bytes: 4000 + random.below(60_000), ..options() };
        let mut rig = Rig::new(seed, &[DISK_BYTES; INDEXES], options);
        rig.begin_with(&[spec(0), spec(1)]);
        let source = (0..NAMES).map(|name| (name, vec![name as u8 + 1; DISK_BYTES as usize])).collect();
        Self {
            rig,
            random,
            source,
            wanted: vec![0, 1],
            phase: 0,
            is_streaming: false,
            copies: BTreeMap::new(),
            must: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            lineages: 0,
            changes: 0,
            let_go: 0,
            rolled: 0,
        }
    }

    /// Index and name of each disk that is replicated.
    fn current(&self) -> Vec<(u32, u64)> {
        let disks = (0..).zip(self.rig.journal.disks()).filter(|(_, disk)| disk.standing == Standing::Current);
        disks.map(|(index, disk)| (index, disk.name[1..].parse().unwrap())).collect()
    }

    fn copy(&self) -> Copies {
        self.current().into_iter().map(|(index, name)| (index, self.source[&name].clone())).collect()
    }

    /// The guests write somewhere; gives the extents by indexes of the journal.
    fn guest_writes(&mut self) -> Vec<RawExtent> {
        let mut extents = Vec::new();
        for (index, name) in self.current() {
            if self.random.below(3) == 0 {
                continue;
            }
            let sector = self.random.below(BLOCKS * 8);
            let sectors = 1 + self.random.below((BLOCKS * 8 - sector).min(20));
            let value = self.random.below(255) as u8;
            let bytes = vec![value; sectors as usize * 512];
            let at = sector as usize * 512;
            self.source.get_mut(&name).unwrap()[at..at + bytes.len()].copy_from_slice(&bytes);
            extents.push(data(index, sector, bytes));
        }
        extents
    }

    fn set(&mut self, extents: &[RawExtent], closes_bulk: bool) -> Result<(), Failed> {
        let number = self.rig.journal.last_durable_set().0 + 1;
        let phase = Phase(self.phase);
        self.copies.insert(number, self.copy());
        let mut sectors = 0;
        for (part, extent) in (0..).zip(extents) {
            let record = self.rig.record(number, part, std::slice::from_ref(extent));
            let of_part = super::rig::sectors_of(extent);
            self.rig.journal.append_frame(phase, number, &record)?;
            self.rig.journal.end_part(phase, number, part, PartEnd { frames: 1, sectors: of_part })?;
            sectors += of_part;
        }
        let seal = self.rig.seal_of(self.phase, number, extents.len() as u32, sectors);
        self.rig.journal.seal(SealSet { closes_bulk, ..seal })?;
        if closes_bulk {
            self.rig.journal.sync()?;
            self.rig.applier.sync_bulk()?;
        }
        if self.rig.journal.sync()?.last_set == number {
            self.must.insert(number);
        }
        Ok(())
    }

    /// The source connects with its disks: they are changed where they are others, and compared.
    fn connect(&mut self) -> Result<(), Failed> {
        let wanted: Vec<DiskSpec> = self.wanted.iter().map(|name| spec(*name)).collect();
        let known = self.rig.journal.disks().len();
        if !self.rig.journal.has_disks(&wanted) {
            self.rig.opened_anew();
        }
        if known + self.wanted.len() > INDEXES {
            self.wanted = self.current().into_iter().map(|(_, name)| name).collect();
        } else if self.rig.journal.change_disks(&wanted)? {
            self.changes += 1;
            self.rig.opened_anew();
            for index in known..self.rig.journal.disks().len() {
                let old = vec![self.random.below(256) as u8; 4096 * 3];
                self.rig.disks.overwrite(index as u32, 4096, &old);
            }
        }
        self.phase += 1;
        self.rig.journal.open_phase(Phase(self.phase), 1, &INSTANCE)?;
        self.rig.journal.greet(Counter(0))?;
        while self.rig.applier.apply_next()? != Progress::Idle {}
        self.rig.journal.begin_bulk(self.rig.now)?;
        // Whatever differs is sent, some of it in rounds and some in the last set, with guests writing meanwhile.
        for round in 0..2 {
            let mut differing = Vec::new();
            for (index, name) in self.current() {
                let there = self.rig.disks.content(index);
                for block in 0..BLOCKS {
                    let range = block as usize * 4096..(block as usize + 1) * 4096;
                    let content = &self.source[&name][range.clone()];
                    if there[range] != *content {
                        differing.push(data(index, block * 8, content.to_vec()));
                    }
                }
            }
            if round == 1 {
                self.set(&differing, true)?;
                break;
            }
            let kept = self.random.below(differing.len() as u64 + 1) as usize;
            for extent in &differing[..kept] {
                let frame = self.rig.encoder.encode(0, 0, std::slice::from_ref(extent), Compression::Zstd(1)).unwrap();
                let whole = [&frame.head[..], &frame.payload[..]].concat().into();
                let record = proto::record::Record::parse(&whole).unwrap().0;
                self.rig.applier.apply_bulk(&[Decoder::new().decode(&record).unwrap()])?;
            }
            self.guest_writes();
        }
        self.is_streaming = true;
        Ok(())
    }

    /// Retention, rotation, and letting go of what no point has.
    fn maintain(&mut self) -> Result<(), Failed> {
        self.rig.now = self.rig.now.plus(Duration::from_secs(self.random.below(3000)));
        self.rig.journal.rotate_if_due(self.rig.now.plus(Duration::from_secs(self.random.below(7200))))?;
        self.rig.journal.build_index(|| false)?;
        let seconds = 1 + self.random.below(6000);
        match self.random.below(3) {
            0 => {
                let age = Duration::from_secs(seconds);
                let policy = ThinPolicy::new(vec![ThinRule { after: age, keep: age }]).expect("one rule");
                // Points may be gone, whatever the outcome.
                self.must.clear();
                self.rig.journal.thin(self.rig.now, &policy)?;
                while self.rig.journal.merge_thinned(self.rig.now, &policy, || true)? {}
            }
            1 => {
                self.must.clear();
                self.rig.journal.prune(self.rig.now, Duration::from_secs(seconds))?;
            }
            _ => {}
        }
        for disk in self.rig.journal.unneeded_disks() {
            self.rig.journal.forget_disk(disk)?;
            self.forget(disk);
        }
        Ok(())
    }

    /// A disk that was let go is somebody else's.
    fn forget(&mut self, disk: u32) {
        self.let_go += usize::from(self.forgotten.insert(disk));
        self.rig.disks.overwrite(disk, 0, &vec![0xdd; DISK_BYTES as usize]);
    }

    /// A failback to any point, given up again.
    fn roll_back(&mut self) -> Result<(), Failed> {
        self.is_streaming = false;
        self.rig.journal.sync()?;
        if !self.rig.journal.bulk_open() {
            while self.rig.applier.apply_next()? != Progress::Idle {}
        }
        let points = self.rig.point_sets();
        if points.is_empty() {
            return Ok(());
        }
        let set = points[self.random.below(points.len() as u64) as usize];
        let lacking: Vec<(u32, Vec<u8>)> = (0..)
            .zip(self.rig.journal.disks())
            .filter(|(index, _)| !self.copies[&set].contains_key(index))
            .map(|(index, _)| (index, self.rig.disks.content(index)))
            .collect();
        self.lineages += 1;
        self.rig.journal.begin_rollback(SetNumber(set), Lineage([self.lineages; 16]), self.rig.now)?;
        let point = self.rig.point(set);
        let mut reader = PointReader::over(self.rig.journal.clone(), self.rig.disks.clone(), &point)?;
        let put = self.rig.applier.put_point(&mut reader, &Ranges::default(), |_, _| ControlFlow::Continue(()))?;
        assert_eq!(put, Put::Done);
        drop(reader);
        for (disk, copy) in &self.copies[&set] {
            let is_kept = !self.forgotten.contains(disk);
            assert!(!is_kept || self.rig.disks.content(*disk) == *copy, "disk {disk} is not at point {set}");
        }
        for (disk, before) in lacking {
            assert!(self.rig.disks.content(disk) == before, "disk {disk}, which point {set} lacks, was written");
        }
        self.rolled += 1;
        self.leave()
    }

    fn leave(&mut self) -> Result<(), Failed> {
        if self.rig.journal.rollback().is_some() {
            self.lineages += 1;
            let lineage = Some(Lineage([self.lineages; 16]));
            self.rig
                .journal
                .turn(Turn { record: None, lineage, cancelled: None, history: History::Kept }, self.rig.now)?;
        }
        Ok(())
    }

    fn choose(&mut self) {
        let chosen: Vec<u64> = (0..NAMES).filter(|_| self.random.below(2) == 0).collect();
        self.wanted = if chosen.is_empty() { vec![self.random.below(NAMES)] } else { chosen };
        self.is_streaming = false;
    }

    fn step(&mut self) -> Result<(), Failed> {
        match self.random.below(12) {
            0 => self.choose(),
            1 => return self.roll_back(),
            2 | 3 => return self.maintain(),
            4 => drop(self.rig.applier.apply_next()?),
            _ if !self.is_streaming => {
                self.leave()?;
                return self.connect();
            }
            _ => {
                let extents = self.guest_writes();
                return self.set(&extents, false);
            }
        }
        Ok(())
    }

    fn crash(&mut self) {
        self.is_streaming = false;
        if self.random.below(3) > 0 {
            self.rig.volume.lose_power();
            self.rig.disks.lose_power();
        }
        self.rig.opened_anew();
        for (index, disk) in (0..).zip(self.rig.journal.disks()) {
            if disk.standing == Standing::Gone && !self.forgotten.contains(&index) {
                self.forget(index);
            }
        }
    }

    fn check(&mut self) {
        let listed: BTreeSet<u64> = self.rig.point_sets().into_iter().collect();
        assert!(self.must.is_subset(&listed), "of {:?} only {listed:?} are left", self.must);
        for set in listed {
            let copies = &self.copies[&set];
            let has: BTreeSet<u32> = self.rig.journal.disks_of(set).into_iter().map(|(disk, _)| disk).collect();
            let should: BTreeSet<u32> = copies.keys().copied().collect();
            assert_eq!(has, should, "point {set} has other disks: {:?}", self.rig.journal.state().manifest.disks);
            for (disk, copy) in copies {
                let mut bytes = vec![0; DISK_BYTES as usize];
                self.rig.reader(set).read(*disk, 0, &mut bytes).unwrap();
                assert!(bytes == *copy, "disk {disk} of point {set} is not what it was");
            }
        }
    }

    fn run(mut self) -> Self {
        for step in 0..90 {
            if self.random.below(4) == 0 {
                self.rig.fuse.burn_after(self.random.below(80) as u32);
            }
            let done = self.step();
            assert!(
                done.is_ok() || self.rig.fuse.is_burnt() || self.rig.journal.has_stopped(),
                "step {step}: {done:?}"
            );
            if done.is_err() || self.rig.fuse.is_burnt() {
                self.crash();
            }
            self.rig.fuse.replace();
            if step % 5 == 0 || done.is_err() {
                self.check();
            }
        }
        self.check();
        self
    }
}

#[test]
fn r7_every_point_keeps_its_disks_while_disks_come_and_go_through_crashes() {
    let seed = std::env::var("DISKS_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = seed.map_or(0..60, |seed| seed..seed + 1);
    let (mut changes, mut let_go, mut rolled) = (0, 0, 0);
    for seed in seeds.clone() {
        let run = std::panic::AssertUnwindSafe(|| World::new(seed).run());
        match std::panic::catch_unwind(run) {
            Ok(world) => {
                (changes, let_go, rolled) = (changes + world.changes, let_go + world.let_go, rolled + world.rolled);
            }
            Err(panic) => {
                eprintln!(
                    "seed {seed} failed; replay: DISKS_SEED={seed} cargo test -p master-target disks_come_and_go"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{changes} changes, {let_go} disks let go, {rolled} rollbacks");
    let shows = changes > 50 && let_go > 10 && rolled > 50;
    assert!(seeds.count() < 10 || shows, "the seeds show nothing: {changes}, {let_go}, {rolled}");
}
