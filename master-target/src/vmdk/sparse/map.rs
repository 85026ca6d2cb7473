//! Where the grains of a sparse disk lie: the directory, the places that are taken, and a bounded cache of tables.
//!
//! Pure: bytes and numbers in, numbers out. `survey` and `io` read and write the file. Every place that an entry names is
//! checked against the file before it is handed out. A table that has an entry which isn't in the file yet stays in memory
//! until it was written; all others may leave and be read again.

use std::collections::HashMap;

use super::{
    Damage, Header,
    header::{FILE_SECTORS_MAX, TABLE_ENTRIES, TABLE_SECTORS},
};

/// Tables kept in memory: 2,048 are 4 MiB, and cover 64 GiB of a disk with grains of 64 KiB.
pub const TABLES_CACHED_MAX: usize = 2048;
/// Tables with entries that are not in the file yet; more, and they are written before more is allocated.
pub const TABLES_CHANGED_MAX: usize = 512;

const _: () = assert!(TABLES_CHANGED_MAX * 2 <= TABLES_CACHED_MAX);

/// The entries of a table.
pub type Entries = Box<[u32; TABLE_ENTRIES as usize]>;

/// Reads a table's bytes.
pub fn entries_of(bytes: &[u8]) -> Entries {
    let mut entries = Box::new([0; TABLE_ENTRIES as usize]);
    for (entry, field) in entries.iter_mut().zip(bytes.chunks_exact(4)) {
        *entry = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
    }
    entries
}

/// A table as it stands in the file.
pub fn bytes_of(entries: &Entries) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// Where the tables lie, in sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    main: Vec<u32>,
    redundant: Vec<u32>,
}

impl Directory {
    /// The directory of a new disk, whose tables follow their directory in order.
    pub fn of_new_disk(header: &Header) -> Directory {
        let tables_behind = |directory_at: u64| -> Vec<u32> {
            let first = directory_at + header.directory_sectors();
            (0..header.tables()).map(|table| (first + table * TABLE_SECTORS) as u32).collect()
        };
        let redundant = header.redundant_at.map(tables_behind).unwrap_or_default();
        Directory { main: tables_behind(header.directory_at), redundant }
    }

    /// Checks the bytes of both directories.
    ///
    /// # Errors
    /// A table is nowhere, behind the place of the grains, or on top of something else.
    pub fn parse(header: &Header, main: &[u8], redundant: Option<&[u8]>) -> Result<Directory, Damage> {
        let numbers = |bytes: &[u8]| -> Vec<u32> {
            let fields = bytes.chunks_exact(4).take(header.tables() as usize);
            fields.map(|field| u32::from_le_bytes([field[0], field[1], field[2], field[3]])).collect()
        };
        let directory = Directory { main: numbers(main), redundant: redundant.map(numbers).unwrap_or_default() };
        directory.check(header)?;
        Ok(directory)
    }

    fn check(&self, header: &Header) -> Result<(), Damage> {
        let damaged = |entry: usize, what| Damage::Directory { entry: entry as u64, what };
        // Start, length, and the entry to name.
        let mut parts: Vec<(u64, u64, usize)> = header.fixed_parts().map(|(at, len)| (at, len, 0)).collect();
        for copy in [&self.main, &self.redundant] {
            for (entry, &at) in copy.iter().enumerate() {
                if at == 0 {
                    return Err(damaged(entry, "its table is missing"));
                }
                if u64::from(at) + TABLE_SECTORS > header.overhead {
                    return Err(damaged(entry, "its table lies among the grains"));
                }
                parts.push((u64::from(at), TABLE_SECTORS, entry));
            }
        }
        parts.sort_unstable();
        match parts.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            Some(pair) => Err(damaged(pair[1].2, "its table lies on top of something else")),
            None => Ok(()),
        }
    }

    /// Number of tables.
    pub fn len(&self) -> u32 {
        self.main.len() as u32
    }

    /// Where a table lies.
    pub fn main(&self, table: u32) -> u64 {
        u64::from(self.main[table as usize])
    }

    /// Where its redundant copy lies, if there is one.
    pub fn redundant(&self, table: u32) -> Option<u64> {
        self.redundant.get(table as usize).map(|&at| u64::from(at))
    }

    /// The bytes of the directory, and of the redundant one.
    pub fn to_bytes(&self) -> [Vec<u8>; 2] {
        [&self.main, &self.redundant].map(|copy| copy.iter().flat_map(|at| at.to_le_bytes()).collect())
    }
}

/// Where an entry says that its grain lies; `None` for a grain without a place, which reads as zeroes.
///
/// # Errors
/// What is wrong with the place, in a file whose grains end before sector `end`.
pub fn place_of(header: &Header, entry: u32, end: u64) -> Result<Option<u64>, &'static str> {
    let at = u64::from(entry);
    match entry {
        0 => Ok(None),
        1 if header.has_zeroed_grains => Ok(None),
        _ if at < header.overhead => Err("it lies among the tables"),
        _ if !at.is_multiple_of(header.grain_sectors) => Err("it lies across two places of grains"),
        _ if at + header.grain_sectors > end => Err("it lies behind the end of the file"),
        _ => Ok(Some(at)),
    }
}

/// The places that grains have taken: no two may share one.
pub struct Taken {
    bits: Vec<u64>,
    file_sectors: u64,
    end: u64,
}

impl Taken {
    /// Nothing is taken in a file of this many sectors. Memory: one bit for each grain that the file has room for.
    pub fn new(header: &Header, file_sectors: u64) -> Taken {
        let file_sectors = file_sectors.min(FILE_SECTORS_MAX);
        let places = file_sectors / header.grain_sectors;
        Taken {
            bits: vec![0; places.div_ceil(64) as usize],
            file_sectors,
            end: header.overhead.next_multiple_of(header.grain_sectors),
        }
    }

    /// Takes the place that the entry of `grain` names.
    ///
    /// # Errors
    /// The place can't be, or is taken.
    pub fn take(&mut self, header: &Header, grain: u64, entry: u32) -> Result<(), Damage> {
        let damaged = |what| Damage::Grain { grain, what };
        let Some(at) = place_of(header, entry, self.file_sectors).map_err(damaged)? else { return Ok(()) };
        let place = at / header.grain_sectors;
        let (word, bit) = ((place / 64) as usize, 1 << (place % 64));
        if self.bits[word] & bit != 0 {
            return Err(damaged("another grain lies there"));
        }
        self.bits[word] |= bit;
        self.end = self.end.max(at + header.grain_sectors);
        Ok(())
    }

    /// The first sector behind every grain.
    pub fn end(&self) -> u64 {
        self.end
    }
}

/// A table in memory.
struct Table {
    entries: Entries,
    /// It has an entry that no write of the table to the file has taken along.
    is_changed: bool,
    /// It is being written.
    is_in_writing: bool,
    used: u64,
}

/// What is known of a grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It begins at this sector of the file.
    At(u64),
    /// It has no place and reads as zeroes.
    None,
    /// This table must be read first.
    Unread(u32),
}

/// The tables in memory, and where the next grain goes.
pub struct GrainMap {
    header: Header,
    /// The first sector behind every grain: the file is never longer.
    end: u64,
    tables: HashMap<u32, Table>,
    changed: usize,
    clock: u64,
}

impl GrainMap {
    /// A map of a disk whose grains end before sector `end`, with no table in memory.
    pub fn new(header: Header, end: u64) -> GrainMap {
        assert!(end >= header.overhead && end.is_multiple_of(header.grain_sectors), "grains end at a grain's place");
        GrainMap { header, end, tables: HashMap::new(), changed: 0, clock: 0 }
    }

    /// The first sector behind every grain.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The table that holds the entry of a grain.
    pub fn table_of(grain: u64) -> u32 {
        (grain / TABLE_ENTRIES) as u32
    }

    /// Where a grain lies.
    pub fn place(&mut self, grain: u64) -> Place {
        self.clock += 1;
        let number = Self::table_of(grain);
        let Some(table) = self.tables.get_mut(&number) else { return Place::Unread(number) };
        table.used = self.clock;
        let entry = table.entries[(grain % TABLE_ENTRIES) as usize];
        // Checked when the table was taken in.
        place_of(&self.header, entry, self.end).ok().flatten().map_or(Place::None, Place::At)
    }

    /// Takes in a table that was read from the file; another one leaves for it.
    ///
    /// # Errors
    /// It names a place that can't be: the file was changed since it was surveyed.
    pub fn take_in(&mut self, number: u32, entries: Entries) -> Result<(), Damage> {
        let first = u64::from(number) * TABLE_ENTRIES;
        for (grain, &entry) in (first..self.header.grains()).zip(entries.iter()) {
            place_of(&self.header, entry, self.end).map_err(|what| Damage::Grain { grain, what })?;
        }
        if self.tables.len() >= TABLES_CACHED_MAX {
            let idle = self.tables.iter().filter(|(_, table)| !table.is_changed && !table.is_in_writing);
            if let Some(oldest) = idle.min_by_key(|(_, table)| table.used).map(|(&number, _)| number) {
                self.tables.remove(&oldest);
            }
        }
        self.clock += 1;
        let table = Table { entries, is_changed: false, is_in_writing: false, used: self.clock };
        self.tables.entry(number).or_insert(table);
        Ok(())
    }

    /// Whether changed tables should be written before more grains get a place.
    pub fn must_write(&self) -> bool {
        self.changed >= TABLES_CHANGED_MAX
    }

    /// Whether a grain more fits into what 32 bits can address.
    pub fn has_room(&self, grains: u64) -> bool {
        self.end + grains * self.header.grain_sectors <= FILE_SECTORS_MAX
    }

    /// Gives a grain the next place, which the file must already reach, and returns it. Its table must be in memory.
    pub fn allot(&mut self, grain: u64) -> u64 {
        assert!(self.has_room(1) && grain < self.header.grains(), "grain {grain} was checked to have room");
        let at = self.end;
        let table = self.tables.get_mut(&Self::table_of(grain)).expect("the table was read to find no place");
        let entry = &mut table.entries[(grain % TABLE_ENTRIES) as usize];
        assert!(*entry <= 1, "grain {grain} has a place");
        *entry = u32::try_from(at).expect("there is room");
        self.changed += usize::from(!table.is_changed);
        table.is_changed = true;
        self.end += self.header.grain_sectors;
        at
    }

    /// The changed tables in order, to be written; each stays in memory until [`GrainMap::written`] or
    /// [`GrainMap::not_written`] has been told of it.
    pub fn take_changed(&mut self) -> Vec<(u32, Entries)> {
        let changed = self.tables.iter_mut().filter(|(_, table)| table.is_changed);
        let mut taken: Vec<(u32, Entries)> = changed
            .map(|(&number, table)| {
                (table.is_changed, table.is_in_writing) = (false, true);
                (number, table.entries.clone())
            })
            .collect();
        self.changed = 0;
        taken.sort_unstable_by_key(|(number, _)| *number);
        taken
    }

    /// These tables stand in the file as they were taken.
    pub fn written(&mut self, tables: &[(u32, Entries)]) {
        for (number, _) in tables {
            self.tables.get_mut(number).expect("it stays until it is written").is_in_writing = false;
        }
    }

    /// These tables may not stand in the file as they were taken: they are still to be written.
    pub fn not_written(&mut self, tables: &[(u32, Entries)]) {
        for (number, _) in tables {
            let table = self.tables.get_mut(number).expect("it stays until it is written");
            self.changed += usize::from(!table.is_changed);
            (table.is_changed, table.is_in_writing) = (true, false);
        }
    }

    #[cfg(test)]
    fn cached(&self) -> usize {
        self.tables.len()
    }
}

#[cfg(test)]
mod tests;
