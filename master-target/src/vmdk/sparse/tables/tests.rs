//! The tables on a file that loses power: whatever it leaves is a sound disk that has all that was synced.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A file whose unsynced writes and size may or may not survive, sector by sector.
struct TornFile {
    inner: Mutex<Inner>,
}

#[derive(Clone, Default)]
struct Inner {
    /// What is read.
    now: Vec<u8>,
    /// What certainly survives.
    durable: Vec<u8>,
    syncs: usize,
    /// How many changes and syncs are still done before power is lost.
    left: Option<usize>,
    /// Syncs do nothing and say that they did.
    is_lying: bool,
}

impl TornFile {
    fn new(bytes: Vec<u8>) -> TornFile {
        TornFile { inner: Mutex::new(Inner { now: bytes.clone(), durable: bytes, ..Inner::default() }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// One more change or sync; fails when power is gone.
    fn step(&self) -> Result<MutexGuard<'_, Inner>, IoError> {
        let mut inner = self.inner();
        match &mut inner.left {
            Some(0) => Err(IoError::new("reach", Path::new("torn"), std::io::Error::other("no power"))),
            Some(left) => {
                *left -= 1;
                Ok(inner)
            }
            None => Ok(inner),
        }
    }

    /// What is there after a loss of power: each sector as it was synced or as it was written, and either size.
    fn after_power_loss(&self, mut survives: impl FnMut() -> bool) -> Vec<u8> {
        let Inner { now, durable, .. } = self.inner().clone();
        let len = if survives() { now.len() } else { durable.len() };
        let sector = |bytes: &[u8], at: usize| bytes.get(at..at + 512).map_or(vec![0; 512], <[u8]>::to_vec);
        (0..len).step_by(512).flat_map(|at| sector(if survives() { &now } else { &durable }, at)).collect()
    }
}

impl TableFile for TornFile {
    fn path(&self) -> &Path {
        Path::new("torn")
    }

    fn size(&self) -> u64 {
        self.inner().now.len() as u64
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), IoError> {
        buf.copy_from_slice(&self.inner().now[at as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), IoError> {
        self.step()?.now[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<(), IoError> {
        self.step()?.now.resize(size as usize, 0);
        Ok(())
    }

    fn sync(&self) -> Result<(), IoError> {
        let mut inner = self.step()?;
        if !inner.is_lying {
            inner.durable = inner.now.clone();
        }
        inner.syncs += 1;
        Ok(())
    }
}

/// Small grains keep the files of a test small.
const GRAIN: u64 = 16;
/// Three tables.
const GRAINS: u64 = 2 * TABLE_ENTRIES + 40;

fn header() -> Header {
    let mut header = Header::of_new_disk(GRAINS * 128).unwrap();
    (header.grain_sectors, header.capacity) = (GRAIN, GRAINS * GRAIN - 3);
    header
}

fn empty_disk() -> Vec<u8> {
    let header = header();
    let mut bytes = vec![0; (header.overhead * SECTOR) as usize];
    let [main, redundant] = Directory::of_new_disk(&header).to_bytes();
    for (at, part) in [(header.directory_at, main), (header.redundant_at.unwrap(), redundant)] {
        bytes[(at * SECTOR) as usize..][..part.len()].copy_from_slice(&part);
    }
    bytes
}

fn open(bytes: Vec<u8>) -> Tables<TornFile> {
    Tables::open(TornFile::new(bytes), header()).unwrap().0
}

/// Writes a value that fills the first sector of a grain, as a disk does.
fn write(tables: &Tables<TornFile>, grain: u64, value: u8) {
    tables.allot(grain..grain + 1).unwrap();
    let at = tables.run(grain..grain + 1).unwrap().0.expect("it has a place now");
    tables.file.write(&[value; 512], at * SECTOR).unwrap();
}

/// The value in the first sector of a grain; its other sectors must be zeroes.
fn read(tables: &Tables<TornFile>, grain: u64) -> u8 {
    let Some(at) = tables.run(grain..grain + 1).unwrap().0 else { return 0 };
    let mut content = [1; (GRAIN * SECTOR) as usize];
    tables.file.read(&mut content, at * SECTOR).unwrap();
    assert!(content[512..].iter().all(|&byte| byte == 0), "grain {grain} shows what nobody wrote");
    assert!(content[..512].iter().all(|&byte| byte == content[0]));
    content[0]
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u8),
    Sync,
    /// Power is lost; the seed says what survives.
    PowerLoss(u64),
    /// Power is lost after so many steps of a sync.
    PowerLossInSync(usize, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..GRAINS, 1u8..).prop_map(|(grain, value)| Step::Write(grain, value)),
        // Again and again the same grains.
        4 => (500u64..520, 1u8..).prop_map(|(grain, value)| Step::Write(grain, value)),
        2 => Just(Step::Sync),
        1 => any::<u64>().prop_map(Step::PowerLoss),
        3 => (0usize..8, any::<u64>()).prop_map(|(steps, seed)| Step::PowerLossInSync(steps, seed)),
    ];
    prop::collection::vec(step, 1..40)
}

/// A stream of bits out of a seed (xorshift).
fn bits(mut seed: u64) -> impl FnMut() -> bool {
    seed |= 1;
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed & 16 != 0
    }
}

/// What was written since is synced now.
fn settle(synced: &mut BTreeMap<u64, u8>, since: &mut BTreeMap<u64, Vec<u8>>) {
    for (grain, values) in std::mem::take(since) {
        synced.insert(grain, *values.last().expect("a grain that was written has a value"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_a_loss_of_power_leaves_is_sound_and_has_what_was_synced(steps in steps()) {
        let mut tables = open(empty_disk());
        // Per grain: what was synced, and what was written since.
        let mut synced: BTreeMap<u64, u8> = BTreeMap::new();
        let mut since: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for step in steps {
            let lost = match step {
                Step::Write(grain, value) => {
                    write(&tables, grain, value);
                    since.entry(grain).or_default().push(value);
                    None
                }
                Step::Sync => {
                    tables.sync().unwrap();
                    settle(&mut synced, &mut since);
                    None
                }
                Step::PowerLoss(seed) => Some(seed),
                Step::PowerLossInSync(steps, seed) => {
                    tables.file.inner().left = Some(steps);
                    if tables.sync().is_ok() {
                        settle(&mut synced, &mut since);
                    }
                    Some(seed)
                }
            };
            let Some(seed) = lost else { continue };
            let left = tables.file.after_power_loss(bits(seed));
            // Opening again fails if any entry is out of its file or shares its place.
            tables = open(left);
            for grain in 0..GRAINS {
                let value = read(&tables, grain);
                let before = synced.get(&grain).copied().unwrap_or(0);
                let may_be = since.get(&grain).is_some_and(|values| values.contains(&value));
                prop_assert!(value == before || may_be, "grain {} is {}, was {}", grain, value, before);
                if value != before {
                    synced.insert(grain, value);
                }
            }
            since.clear();
        }
        // What is applied again after a crash is there in the end.
        for (grain, values) in &since {
            prop_assert_eq!(read(&tables, *grain), *values.last().unwrap());
        }
    }
}

#[test]
fn no_entry_is_in_the_file_before_its_place_is_durable() {
    let tables = open(empty_disk());
    let metadata = (header().overhead * SECTOR) as usize;
    write(&tables, 7, 1);
    assert_eq!(tables.file.inner().now[..metadata], empty_disk()[..], "the entry waits for the sync");
    let before = tables.file.inner().syncs;
    tables.sync().unwrap();
    let inner = tables.file.inner().clone();
    assert_eq!((inner.syncs, inner.durable == inner.now), (before + 2, true));
    drop(inner);
    tables.sync().unwrap();
    assert_eq!(tables.file.inner().syncs, before + 3, "content alone needs one");
}

#[test]
fn a_file_that_lies_about_its_syncs_is_noticed() {
    let tables = open(empty_disk());
    write(&tables, 7, 1);
    tables.file.inner().is_lying = true;
    tables.sync().unwrap();
    // The entry survives, the size that it relies on does not.
    let mut is_first = true;
    let left = tables.file.after_power_loss(|| !std::mem::take(&mut is_first));
    let refused = Tables::open(TornFile::new(left), header()).err().unwrap();
    assert!(matches!(refused, SparseError::Damage(Damage::Grain { grain: 7, .. })), "{refused}");
}

#[test]
fn what_lies_behind_the_last_grain_is_cut_off_before_its_place_is_used_again() {
    let tables = open(empty_disk());
    write(&tables, 7, 1);
    tables.sync().unwrap();
    write(&tables, 8, 0xee);
    // Killed: the content of grain 8 is in the file, its entry is not.
    let left = tables.file.inner().now.clone();
    let tables = open(left.clone());
    assert_eq!((read(&tables, 7), read(&tables, 8)), (1, 0));
    assert_eq!(tables.file.size() as usize, left.len() - (GRAIN * SECTOR) as usize);
    tables.allot(9..10).unwrap();
    assert_eq!(read(&tables, 9), 0);
}

#[test]
fn redundant_tables_are_brought_in_line_with_the_others() {
    let tables = open(empty_disk());
    write(&tables, 600, 5);
    tables.sync().unwrap();
    let mut left = tables.file.inner().now.clone();
    let copy = (tables.directory.redundant(1).unwrap() * SECTOR) as usize;
    assert_ne!(left[copy..][..TABLE_BYTES], [0; TABLE_BYTES]);
    left[copy..][..TABLE_BYTES].fill(0x11);
    let (tables, differing) = Tables::open(TornFile::new(left), header()).unwrap();
    assert_eq!((differing, read(&tables, 600)), (1, 5));
    let inner = tables.file.inner();
    let main = (tables.directory.main(1) * SECTOR) as usize;
    assert_eq!(inner.durable[copy..][..TABLE_BYTES], inner.durable[main..][..TABLE_BYTES]);
}

#[test]
fn runs_of_grains_end_where_the_file_or_the_table_says() {
    let tables = open(empty_disk());
    assert_eq!(tables.run(0..GRAINS).unwrap(), (None, GRAINS));
    tables.allot(510..515).unwrap();
    let (first, run) = tables.run(510..GRAINS).unwrap();
    assert_eq!((first, run), (Some(header().overhead), 5), "across two tables");
    assert_eq!(tables.run(0..GRAINS).unwrap(), (None, 510));
    tables.allot(3..4).unwrap();
    assert_eq!(tables.run(3..5).unwrap(), (Some(header().overhead + 5 * GRAIN), 1));
}
