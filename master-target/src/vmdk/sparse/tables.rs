//! The tables of a sparse disk in its file: read when they are needed, written in an order that a loss of power can't spoil.
//!
//! ```text
//! bad:   an entry is durable before its file is that long, or before what lay at its place is gone
//! rule:  file grown and synced, then the entries (redundant copy first), then synced again
//! ```
//!
//! A grain gets its place behind all others, where the file reads as zeroes, so an entry that is durable without its
//! content says what no entry said. An entry that was lost takes its content along: nobody relied on it before
//! [`Tables::sync`]. At open, what lies behind the last grain that has an entry is cut off, and redundant tables follow the
//! others: each entry that one copy has alone names such a place.
//!
//! [`TableFile`] is what it needs of a file; `tests` has one that loses power.

use std::{
    ops::Range,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use blockio::{BlockFile, IoError, SECTOR};

use super::{
    Damage, Header, SurveyError,
    header::{TABLE_ENTRIES, TABLE_SECTORS},
    map::{Directory, Entries, GrainMap, Place, bytes_of, entries_of},
    survey::survey,
};

const TABLE_BYTES: usize = (TABLE_SECTORS * SECTOR) as usize;

/// Most grains of a run that is looked for at once: the map is locked meanwhile, for well under a millisecond.
const RUN_GRAINS_MAX: u64 = 16 * TABLE_ENTRIES;

/// Why a sparse disk can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SparseError {
    /// Its metadata can't be trusted.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The file can't be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl From<SurveyError<IoError>> for SparseError {
    fn from(error: SurveyError<IoError>) -> Self {
        match error {
            SurveyError::Damage(damage) => damage.into(),
            SurveyError::Read(error) => error.into(),
        }
    }
}

/// A file with tables in it. What was written, and its size, are durable after [`TableFile::sync`] only.
pub(super) trait TableFile {
    fn path(&self) -> &Path;
    fn size(&self) -> u64;
    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), IoError>;
    fn write(&self, bytes: &[u8], at: u64) -> Result<(), IoError>;
    fn resize(&self, size: u64) -> Result<(), IoError>;
    fn sync(&self) -> Result<(), IoError>;
}

impl TableFile for std::sync::Arc<BlockFile> {
    fn path(&self) -> &Path {
        BlockFile::path(self)
    }

    fn size(&self) -> u64 {
        BlockFile::size(self)
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), IoError> {
        self.read_exact_at(buf, at)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), IoError> {
        self.write_all_at(bytes, at)
    }

    fn resize(&self, size: u64) -> Result<(), IoError> {
        BlockFile::resize(self, size)
    }

    fn sync(&self) -> Result<(), IoError> {
        BlockFile::sync(self)
    }
}

/// The tables of an open disk.
pub(super) struct Tables<F> {
    file: F,
    header: Header,
    directory: Directory,
    map: Mutex<GrainMap>,
    /// Held while tables are written: of two syncs the later one starts with what the earlier one left.
    writing: Mutex<()>,
}

/// Whether tables were written that are not durable yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WroteTables {
    None,
    Some,
}

impl<F: TableFile> Tables<F> {
    /// Surveys a locked file, brings its redundant tables in line, and cuts off what lies behind its last grain. Returns
    /// how many redundant tables differed, too.
    pub(super) fn open(file: F, header: Header) -> Result<(Tables<F>, usize), SparseError> {
        let found = survey(&header, file.size() / SECTOR, |at, buf| file.read(buf, at))?;
        let mut table = [0; TABLE_BYTES];
        for &number in &found.differing {
            let copy = found.directory.redundant(number).expect("a table without a copy doesn't differ from it");
            file.read(&mut table, found.directory.main(number) * SECTOR)?;
            file.write(&table, copy * SECTOR)?;
        }
        if file.size() != found.end * SECTOR {
            file.resize(found.end * SECTOR)?;
        }
        // What was found is relied upon from now on, also what a killed process wrote a moment ago (rule J8).
        file.sync()?;
        let map = Mutex::new(GrainMap::new(header.clone(), found.end));
        let tables = Tables { file, header, directory: found.directory, map, writing: Mutex::new(()) };
        Ok((tables, found.differing.len()))
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn file(&self) -> &F {
        &self.file
    }

    fn map(&self) -> MutexGuard<'_, GrainMap> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the first of these grains lies, in sectors of the file, and how many lie behind it in one run; `None` for a run
    /// of grains without a place. A long run ends early.
    pub(super) fn run(&self, grains: Range<u64>) -> Result<(Option<u64>, u64), IoError> {
        let mut map = self.map();
        let first = self.place(&mut map, grains.start)?;
        let run_max = (grains.end - grains.start).min(RUN_GRAINS_MAX);
        let mut run = 1;
        while run < run_max {
            let next = self.place(&mut map, grains.start + run)?;
            if next != first.map(|at| at + run * self.header.grain_sectors) {
                break;
            }
            run += 1;
        }
        Ok((first, run))
    }

    /// Gives places to those of the grains that have none.
    pub(super) fn allot(&self, grains: Range<u64>) -> Result<(), IoError> {
        let mut next = grains.start;
        while next < grains.end {
            if self.map().must_write() {
                self.write()?;
            }
            // One table at a time, so that at most one more is changed than is allowed.
            let end = ((next / TABLE_ENTRIES + 1) * TABLE_ENTRIES).min(grains.end);
            self.allot_in_table(next..end)?;
            next = end;
        }
        Ok(())
    }

    /// Makes content and tables durable.
    pub(super) fn sync(&self) -> Result<(), IoError> {
        match self.write()? {
            WroteTables::None => Ok(()),
            WroteTables::Some => self.file.sync(),
        }
    }

    /// Where a grain lies; reads its table if need be.
    fn place(&self, map: &mut GrainMap, grain: u64) -> Result<Option<u64>, IoError> {
        loop {
            match map.place(grain) {
                Place::At(sector) => return Ok(Some(sector)),
                Place::None => return Ok(None),
                Place::Unread(number) => {
                    let at = self.directory.main(number) * SECTOR;
                    let mut bytes = [0; TABLE_BYTES];
                    self.file.read(&mut bytes, at)?;
                    map.take_in(number, entries_of(&bytes)).map_err(|damage| {
                        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, damage);
                        IoError::at("trust the grain table of", self.file.path(), at, source)
                    })?;
                }
            }
        }
    }

    fn allot_in_table(&self, grains: Range<u64>) -> Result<(), IoError> {
        let mut map = self.map();
        let mut missing = Vec::new();
        for grain in grains {
            if self.place(&mut map, grain)?.is_none() {
                missing.push(grain);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let count = missing.len() as u64;
        if !map.has_room(count) {
            let why = "a sparse VMDK ends at 2 TiB, and it has no more room: copy it with `qemu-img convert -O vmdk`, or use \
                       a flat kind";
            let source = std::io::Error::new(std::io::ErrorKind::StorageFull, why);
            return Err(IoError::new("allocate in", self.file.path(), source));
        }
        // Before an entry names the place: a failure leaves no entry without a place.
        self.file.resize((map.end() + count * self.header.grain_sectors) * SECTOR)?;
        for grain in missing {
            map.allot(grain);
        }
        Ok(())
    }

    /// Makes grown file and content durable, then writes the changed tables. They are durable after one more sync.
    fn write(&self) -> Result<WroteTables, IoError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before the sync: an entry that comes in later may name a place that this sync doesn't cover.
        let tables = self.map().take_changed();
        let outcome = self.file.sync().and_then(|()| tables.iter().try_for_each(|table| self.write_table(table)));
        match outcome {
            Ok(()) => self.map().written(&tables),
            Err(_) => self.map().not_written(&tables),
        }
        outcome.map(|()| if tables.is_empty() { WroteTables::None } else { WroteTables::Some })
    }

    fn write_table(&self, (number, entries): &(u32, Entries)) -> Result<(), IoError> {
        let bytes = bytes_of(entries);
        if let Some(copy) = self.directory.redundant(*number) {
            self.file.write(&bytes, copy * SECTOR)?;
        }
        self.file.write(&bytes, self.directory.main(*number) * SECTOR)
    }
}

#[cfg(test)]
mod tests;
