//! Looks at all tables of a sparse disk once, before it is trusted: [`survey`].
//!
//! Reads through a function, so that the same code judges a file and the bytes of a fuzzer. Memory: the directory, a bit for
//! each place of a grain, and a run of tables. It changes nothing; `io` brings redundant tables in line.

use blockio::SECTOR;

use super::{
    Damage, Header,
    header::{TABLE_ENTRIES, TABLE_SECTORS},
    map::{Directory, Taken, entries_of},
};

/// Tables read at a time where they lie in a row.
const RUN_TABLES: u32 = 256;
const TABLE_BYTES: usize = (TABLE_SECTORS * SECTOR) as usize;

/// What the tables say.
#[derive(Debug)]
pub struct Survey {
    /// Where the tables lie.
    pub directory: Directory,
    /// The first sector behind every grain.
    pub end: u64,
    /// The tables whose redundant copy says something else.
    pub differing: Vec<u32>,
}

/// Why there is no survey.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError<E> {
    /// The tables can't be trusted.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// They can't be read.
    #[error("{0}")]
    Read(E),
}

/// Reads and checks directory and tables of a file of `file_sectors`. `read` fills a buffer from a byte of the file on.
///
/// # Errors
/// [`SurveyError`]: an entry names a place that can't be, or the file can't be read.
pub fn survey<E>(
    header: &Header,
    file_sectors: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Survey, SurveyError<E>> {
    if header.overhead > file_sectors {
        return Err(Damage::Header("the file ends before its grains begin").into());
    }
    let mut directory_bytes = |at: u64| {
        let mut bytes = vec![0; (header.directory_sectors() * SECTOR) as usize];
        read(at * SECTOR, &mut bytes).map(|()| bytes).map_err(SurveyError::Read)
    };
    let main = directory_bytes(header.directory_at)?;
    let redundant = header.redundant_at.map(directory_bytes).transpose()?;
    let directory = Directory::parse(header, &main, redundant.as_deref())?;
    drop((main, redundant));
    let mut taken = Taken::new(header, file_sectors);
    let mut differing = Vec::new();
    let mut first = 0;
    while first < directory.len() {
        let tables = run_at(&directory, first);
        let mut bytes = vec![0; tables as usize * TABLE_BYTES];
        read(directory.main(first) * SECTOR, &mut bytes).map_err(SurveyError::Read)?;
        if let Some(at) = directory.redundant(first) {
            let mut copies = vec![0; bytes.len()];
            read(at * SECTOR, &mut copies).map_err(SurveyError::Read)?;
            let pairs = bytes.chunks(TABLE_BYTES).zip(copies.chunks(TABLE_BYTES));
            differing.extend((first..).zip(pairs).filter(|(_, (table, copy))| table != copy).map(|(number, _)| number));
        }
        for (number, table) in (first..).zip(bytes.chunks(TABLE_BYTES)) {
            let grains = u64::from(number) * TABLE_ENTRIES..header.grains();
            for (grain, &entry) in grains.zip(entries_of(table).iter()) {
                taken.take(header, grain, entry)?;
            }
        }
        first += tables;
    }
    Ok(Survey { directory, end: taken.end(), differing })
}

/// How many tables from `first` on lie in a row, in both copies.
fn run_at(directory: &Directory, first: u32) -> u32 {
    let follows = |table: u32| {
        directory.main(table) == directory.main(table - 1) + TABLE_SECTORS
            && directory.redundant(table) == directory.redundant(table - 1).map(|at| at + TABLE_SECTORS)
    };
    let end = (first + RUN_TABLES).min(directory.len());
    (first + 1..end).find(|&table| !follows(table)).unwrap_or(end) - first
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Header, descriptor, directories and tables of a small disk.
    const SMALL: &[u8] = include_bytes!("../../../tests/golden/vmdk/created-monolithic-sparse.vmdk");

    /// Surveys bytes, behind which a file of `file_sectors` reads as zeroes.
    fn surveyed(bytes: &[u8], file_sectors: u64) -> Result<Option<(Header, Survey)>, Damage> {
        let header = Header::parse(bytes)?;
        let read = |at: u64, buf: &mut [u8]| {
            buf.fill(0);
            let start = (at as usize).min(bytes.len());
            let end = start.saturating_add(buf.len()).min(bytes.len());
            buf[..end - start].copy_from_slice(&bytes[start..end]);
            if at / SECTOR < file_sectors { Ok(()) } else { Err(()) }
        };
        match survey(&header, file_sectors, read) {
            Ok(found) => Ok(Some((header, found))),
            Err(SurveyError::Damage(damage)) => Err(damage),
            Err(SurveyError::Read(())) => Ok(None),
        }
    }

    #[test]
    fn the_golden_disk_is_sound_and_ends_behind_its_second_grain() {
        let (header, found) = surveyed(SMALL, SMALL.len() as u64 / SECTOR).unwrap().unwrap();
        assert_eq!((found.end, found.directory.len(), found.differing.len()), (header.overhead + 256, 1, 0));
        let cut = surveyed(SMALL, 100).unwrap_err();
        assert_eq!(cut, Damage::Header("the file ends before its grains begin"));
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_it_is_refused_or_names_only_places_inside_it(
            changes in prop::collection::vec((prop_oneof![0usize..80, 0x2a00usize..0x3c00], any::<u8>()), 1..6),
            words in prop::collection::vec((0x2a00usize / 4..0x3c00 / 4, prop_oneof![0u32..600, any::<u32>()]), 0..6),
        ) {
            let mut bytes = SMALL[..0x3e00].to_vec();
            for (at, value) in changes {
                bytes[at] = value;
            }
            for (at, value) in words {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
            }
            let file_sectors = SMALL.len() as u64 / SECTOR;
            if let Ok(Some((header, found))) = surveyed(&bytes, file_sectors) {
                prop_assert!(found.end >= header.overhead && found.end <= file_sectors.next_multiple_of(header.grain_sectors));
                prop_assert!(found.differing.iter().all(|&table| table < found.directory.len()));
                prop_assert!(header.overhead <= file_sectors);
            }
        }
    }
}
