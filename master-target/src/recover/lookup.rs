//! Where each sector of a point is found: the content rule (rule J1), asked range by range.
//!
//! Nothing is built for a point but the content of the few segments that its set divides or that have no index yet;
//! all else is looked up in the indexes of the journal when it is wanted. What a look-up does not cover is on the disk.

use std::sync::Arc;

use blockio::{ExtentMap, Slice};
use proto::ids::SetNumber;

use crate::journal::index::{Entry, Flat, IndexFault, Place, SegmentIndex, visit_redo};
use crate::journal::limits::{BLOCK_BYTES, BLOCK_SECTORS, LOOKUP_SECTORS_MAX, SECTOR_BYTES};
use crate::journal::{Journal, JournalError, JournalResult, SegmentId, State, Volume, lock};
use crate::rules::Rule;

/// Where content is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub segment: SegmentId,
    pub place: Place,
}

impl Slice for Found {
    fn slice(&self, from: u64, len: u64) -> Self {
        Self { segment: self.segment, place: self.place.slice(from, len) }
    }
}

/// Why a look-up has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    /// An index can't be used: the look-up is to be made anew without it.
    #[error("{fault}")]
    Index { index: Arc<SegmentIndex>, fault: IndexFault },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The sets of a range of numbers.
#[derive(Debug, Default)]
struct RedoView {
    indexes: Vec<Arc<SegmentIndex>>,
    scanned: Vec<(SegmentId, Flat)>,
}

impl RedoView {
    /// An index holds the newest content of each sector, so it serves sets up to its highest; those before `first` are
    /// told by their numbers. Segments that `last` divides are read.
    fn of<V: Volume>(journal: &Journal<V>, first: u64, last: u64) -> JournalResult<Self> {
        let (indexes, runs, disks) = {
            let state = journal.state();
            if first > last {
                return Ok(Self::default());
            }
            let serves =
                |index: &Arc<SegmentIndex>| index.sets().is_some_and(|(_, high)| (first..=last).contains(&high));
            let has_none =
                |index: &Arc<SegmentIndex>| index.sets().is_none_or(|(low, high)| low > last || high < first);
            let of_redo = || state.indexes.values().filter(|index| index.segment().is_redo());
            let indexes: Vec<_> = of_redo().filter(|index| serves(index)).cloned().collect();
            let done: Vec<SegmentId> =
                of_redo().filter(|index| serves(index) || has_none(index)).map(|index| index.segment()).collect();
            let is_read = |segment: &SegmentId| done.binary_search(segment).is_err();
            let is_any = state.segments.keys().filter(|segment| segment.is_redo()).any(is_read);
            let runs = if is_any { state.runs_in(|segment| is_read(&segment), first, last) } else { Vec::new() };
            (indexes, runs, state.manifest.disks.len())
        };
        let mut scanned: Vec<(SegmentId, Flat)> = Vec::new();
        for (set, run) in runs {
            let at = match scanned.iter().position(|(segment, _)| *segment == run.segment) {
                Some(at) => at,
                None => {
                    scanned.push((run.segment, Flat::of_disks(disks)));
                    scanned.len() - 1
                }
            };
            visit_redo(journal.volume(), run, set, |entry| scanned[at].1.put_newer(entry))?;
        }
        Ok(Self { indexes, scanned })
    }

    /// The newest content of a range in sets after `after`.
    fn find<V: Volume>(&self, journal: &Journal<V>, range: Range, after: u64) -> Result<ExtentMap<Found>, LookupError> {
        let mut all: Vec<(SegmentId, Entry)> = Vec::new();
        for index in &self.indexes {
            let found = of_index(journal, index, range)?;
            all.extend(found.into_iter().map(|entry| (index.segment(), entry)));
        }
        for (segment, flat) in &self.scanned {
            all.extend(flat.overlapping(range.disk, range.sector, range.sectors).map(|entry| (*segment, entry)));
        }
        all.retain(|(_, entry)| entry.place.set > after);
        all.sort_by_key(|(_, entry)| entry.place.set);
        let mut newest = ExtentMap::new();
        for (segment, Entry { sector, sectors, place, .. }) in all {
            newest.insert(sector, sectors, Found { segment, place });
        }
        Ok(newest)
    }

    fn next_at<V: Volume>(&self, journal: &Journal<V>, disk: u32, sector: u64) -> Result<Option<u64>, LookupError> {
        let mut next = self.scanned.iter().filter_map(|(_, flat)| flat.next_at(disk, sector)).min();
        for index in &self.indexes {
            next = earlier(next, next_of_index(journal, index, disk, sector)?);
        }
        Ok(next)
    }
}

/// Sectors of a disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub disk: u32,
    pub sector: u64,
    pub sectors: u64,
}

/// Undo of one segment.
enum UndoSource {
    Index(Arc<SegmentIndex>),
    Tail(SegmentId),
}

/// What the journal has of a point.
#[derive(Debug)]
pub(super) struct Lookup {
    generation: u64,
    /// The first set of the generation.
    first: u64,
    own: RedoView,
    /// Apply may lag behind a rotation: sets of earlier generations that the disks did not have.
    lagging: RedoView,
}

/// The generation in which a point stands; none where there is no such point.
pub(super) fn generation_of(state: &State, set: u64) -> Option<u64> {
    if state.point_of_set(set).is_some() {
        return state.manifest.generation_of(set).map(|generation| generation.id);
    }
    state.start_points().find(|(_, start)| start.number == set).map(|(generation, _)| generation)
}

impl Lookup {
    /// Finds what is needed for the point after `set`, in `generation`.
    pub fn of<V: Volume>(journal: &Journal<V>, generation: u64, set: u64) -> JournalResult<Self> {
        let (first, applied) = {
            let state = journal.state();
            let own = state.manifest.generations.iter().find(|candidate| candidate.id == generation);
            // A generation that is gone has no content; its reader's pin says so.
            (own.map_or(set + 1, |own| own.first), state.applied)
        };
        let own = RedoView::of(journal, first, set)?;
        let lagging = RedoView::of(journal, applied + 1, first - 1)?;
        Ok(Self { generation, first, own, lagging })
    }

    /// Whether sets of earlier generations may be read, that go once they are applied.
    pub fn may_lag(&self, applied: u64) -> bool {
        applied + 1 < self.first
    }

    /// Where the content of a range is, as far as the journal has it. `applied` was read before.
    pub fn find<V: Volume>(
        &self,
        journal: &Journal<V>,
        range: Range,
        applied: u64,
    ) -> Result<ExtentMap<Found>, LookupError> {
        let mut found = self.own.find(journal, range, self.first - 1)?;
        self.fill_undo(journal, range, &mut found)?;
        if self.may_lag(applied) && Rule::EarlierRedoIsRead.holds() && found.units() < range.sectors {
            for (sector, sectors, place) in self.lagging.find(journal, range, applied)?.iter() {
                found.fill(sector, sectors, *place);
            }
        }
        Ok(found)
    }

    /// Adds undo where nothing was found: of the point's generation first, of two records in one the first (rule J9).
    pub fn fill_undo<V: Volume>(
        &self,
        journal: &Journal<V>,
        range: Range,
        found: &mut ExtentMap<Found>,
    ) -> Result<(), LookupError> {
        for source in self.undo(journal) {
            if found.units() >= range.sectors {
                return Ok(());
            }
            match source {
                UndoSource::Index(index) => {
                    let entries = of_index(journal, &index, range)?;
                    fill(found, index.segment(), entries);
                }
                UndoSource::Tail(segment) => {
                    let tail = journal.undo_tail(segment)?;
                    let tail = lock(&tail);
                    fill(found, segment, tail.flat.overlapping(range.disk, range.sector, range.sectors));
                }
            }
        }
        Ok(())
    }

    fn undo<V: Volume>(&self, journal: &Journal<V>) -> Vec<UndoSource> {
        let state = journal.state();
        let from = SegmentId { generation: self.generation, index: 0 };
        let segments = state.segments.keys().copied().filter(|segment| *segment >= from);
        segments
            .map(|segment| match state.indexes.get(&segment) {
                Some(index) => UndoSource::Index(index.clone()),
                None => UndoSource::Tail(segment),
            })
            .collect()
    }

    /// The first sector at or after `sector` of which the journal may have content.
    fn next_at<V: Volume>(&self, journal: &Journal<V>, disk: u32, sector: u64) -> Result<Option<u64>, LookupError> {
        let own = self.own.next_at(journal, disk, sector)?;
        let mut next = earlier(own, self.lagging.next_at(journal, disk, sector)?);
        for source in self.undo(journal) {
            next = earlier(
                next,
                match source {
                    UndoSource::Index(index) => next_of_index(journal, &index, disk, sector)?,
                    UndoSource::Tail(segment) => lock(&*journal.undo_tail(segment)?).flat.next_at(disk, sector),
                },
            );
        }
        Ok(next)
    }

    /// All ranges of which the journal has content for the point after a set, in order, as long as they can be.
    pub fn held<V: Volume>(&self, journal: &Journal<V>, set: u64) -> Result<Vec<Range>, LookupError> {
        let (sizes, applied) = {
            let state = journal.state();
            let disks = (0..).zip(&state.manifest.disks).filter(|(_, disk)| disk.is_of(set));
            (disks.map(|(index, disk)| (index, disk.size)).collect::<Vec<(u32, u64)>>(), state.applied)
        };
        let mut ranges: Vec<Range> = Vec::new();
        for (disk, size) in sizes {
            let (mut at, end) = (0, size / SECTOR_BYTES);
            while let Some(next) = self.next_at(journal, disk, at)?.filter(|next| *next < end) {
                let sectors = LOOKUP_SECTORS_MAX.min(end - next);
                let found = self.find(journal, Range { disk, sector: next, sectors }, applied)?;
                for (sector, sectors, _) in found.iter() {
                    match ranges.last_mut() {
                        Some(last) if last.disk == disk && last.sector + last.sectors == sector => {
                            last.sectors += sectors
                        }
                        _ => ranges.push(Range { disk, sector, sectors }),
                    }
                }
                at = next + sectors;
            }
        }
        Ok(ranges)
    }
}

fn of_index<V: Volume>(
    journal: &Journal<V>,
    index: &Arc<SegmentIndex>,
    range: Range,
) -> Result<Vec<Entry>, LookupError> {
    let found = index.overlapping(journal.volume(), &journal.pages, range.disk, (range.sector, range.sectors));
    found.map_err(|fault| LookupError::Index { index: index.clone(), fault })
}

fn next_of_index<V: Volume>(
    journal: &Journal<V>,
    index: &Arc<SegmentIndex>,
    disk: u32,
    sector: u64,
) -> Result<Option<u64>, LookupError> {
    let next = index.next_at(journal.volume(), &journal.pages, disk, sector);
    next.map_err(|fault| LookupError::Index { index: index.clone(), fault })
}

fn fill(found: &mut ExtentMap<Found>, segment: SegmentId, entries: impl IntoIterator<Item = Entry>) {
    for Entry { sector, sectors, place, .. } in entries {
        match Rule::FirstRecordWins.holds() {
            true => drop(found.fill(sector, sectors, Found { segment, place })),
            false => found.insert(sector, sectors, Found { segment, place }),
        }
    }
}

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// Makes a look-up and does something with it; both anew without an index that can't be used, until none is bad.
pub(super) fn with_lookup<V: Volume, T, E: From<JournalError>>(
    journal: &Journal<V>,
    generation: u64,
    set: u64,
    mut work: impl FnMut(&Lookup) -> Result<T, LookupError>,
) -> Result<T, E> {
    loop {
        let lookup = Lookup::of(journal, generation, set)?;
        match work(&lookup) {
            Ok(done) => return Ok(done),
            Err(LookupError::Journal(error)) => return Err(error.into()),
            Err(LookupError::Index { index, fault }) => journal.drop_index(&index, &fault),
        }
    }
}

impl<V: Volume> Journal<V> {
    /// What the journal holds of a point: what a rollback may have to write.
    pub(super) fn ranges_of_rollback(&self, to: SetNumber) -> JournalResult<Vec<Range>> {
        let generation = generation_of(&self.state(), to.0);
        let generation = generation.ok_or(JournalError::State { what: "the point is not in the journal" })?;
        with_lookup::<V, _, JournalError>(self, generation, to.0, |lookup| lookup.held(self, to.0))
    }

    /// Most undo that putting a point onto the disks can need: each block of which the journal holds a part.
    pub(crate) fn undo_bytes_of_rollback(&self, to: SetNumber) -> JournalResult<u64> {
        let blocks =
            |range: &Range| (range.sector + range.sectors).div_ceil(BLOCK_SECTORS) - range.sector / BLOCK_SECTORS;
        Ok(self.ranges_of_rollback(to)?.iter().map(|range| blocks(range) * (BLOCK_BYTES + 8)).sum())
    }
}
