//! The first sector of a sparse extent, and the place of everything before its grains: [`Header`].
//!
//! Bytes from a datastore become a checked header or a [`Damage`]; nothing behind it trusts a number that this file has
//! not bounded. The drawing is in `docs/vmdk.md`. It reads no file.

use blockio::SECTOR;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 512;
/// How a sparse extent begins.
pub(in crate::vmdk) const MAGIC: &[u8; 4] = b"KDMV";
/// Entries of a grain table: fixed by the format.
pub const TABLE_ENTRIES: u64 = 512;
/// Sectors of a grain table: 512 entries of 4 bytes.
pub const TABLE_SECTORS: u64 = 4;
/// Sectors of a grain of a new disk: 64 KiB, what VMware and QEMU make.
pub const GRAIN_SECTORS: u64 = 128;
/// Smallest grain: the format wants more than 8 sectors.
const GRAIN_SECTORS_MIN: u64 = 16;
/// Largest grain: 1 MiB, far beyond what is made.
const GRAIN_SECTORS_MAX: u64 = 2048;
/// Place and size of the descriptor in a new disk, sectors; as VMware and QEMU do.
pub(in crate::vmdk) const DESCRIPTOR_AT: u64 = 1;
pub(in crate::vmdk) const DESCRIPTOR_SECTORS: u64 = 20;
/// Largest descriptor that is taken, sectors: 64 KiB, as for a descriptor in a file of its own.
const DESCRIPTOR_SECTORS_MAX: u64 = super::super::DESCRIPTOR_BYTES_MAX as u64 / SECTOR;
/// Sectors that an entry of 32 bits can name, and so the end of every file.
pub const FILE_SECTORS_MAX: u64 = u32::MAX as u64;

/// What a header says besides places.
pub(in crate::vmdk) mod flag {
    /// The four bytes that a transfer as text would spoil are there.
    pub(in crate::vmdk) const NEWLINES: u32 = 1;
    /// There is a second grain directory with tables of its own.
    pub(in crate::vmdk) const REDUNDANT: u32 = 1 << 1;
    /// Table entry 1 is a grain of zeroes without a place.
    pub(in crate::vmdk) const ZEROED_GRAINS: u32 = 1 << 2;
    /// Grains are compressed.
    pub(in crate::vmdk) const COMPRESSED: u32 = 1 << 16;
    /// Grains and tables have markers before them.
    pub(in crate::vmdk) const MARKERS: u32 = 1 << 17;
}

/// `\n`, another character, `\r\n`: no longer so when somebody transferred the file as text.
pub(in crate::vmdk) const NEWLINES: &[u8; 4] = b"\n \r\n";

const _: () = assert!(TABLE_ENTRIES * 4 == TABLE_SECTORS * SECTOR);
const _: () = assert!(GRAIN_SECTORS >= GRAIN_SECTORS_MIN && GRAIN_SECTORS <= GRAIN_SECTORS_MAX);
const _: () = assert!(GRAIN_SECTORS_MAX * SECTOR <= blockio::IO_BYTES_MAX as u64);

/// Why a sparse disk can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A number in the header that can't be.
    #[error("its header is damaged ({0}): restore the disk, or convert it with `qemu-img convert`")]
    Header(&'static str),
    /// A version that isn't written.
    #[error(
        "its sparse format has version {0}, and only 1 and 2 are written: convert it with `qemu-img convert -O vmdk`"
    )]
    Version(u32),
    /// Compressed grains.
    #[error("its grains are compressed (streamOptimized): convert it with `qemu-img convert -O vmdk`")]
    Compressed,
    /// Line ends were changed.
    #[error("its line ends were changed by a transfer as text: copy the file again as binary data")]
    AsText,
    /// A table that is nowhere, beyond its room, or on top of something else.
    #[error(
        "its grain directory is damaged at entry {entry} ({what}): check it with `qemu-img check`, then restore or convert the disk"
    )]
    Directory {
        /// Which entry.
        entry: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A grain that is beyond its file, not on a grain's place, or taken twice.
    #[error(
        "the entry of grain {grain} is damaged ({what}): check it with `qemu-img check`, then restore or convert the disk"
    )]
    Grain {
        /// Which grain of the disk.
        grain: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The disk that the descriptor describes isn't the one of the header.
    #[error("its descriptor describes another disk than its header ({0}): restore the disk")]
    Descriptor(&'static str),
}

/// A checked header. Places and sizes are in sectors of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Size of the disk.
    pub capacity: u64,
    /// Size of a grain, a power of two.
    pub grain_sectors: u64,
    /// Where the descriptor begins.
    pub descriptor_at: u64,
    /// The place that it has.
    pub descriptor_sectors: u64,
    /// Where the grain directory begins.
    pub directory_at: u64,
    /// Where the redundant one begins, if there is one.
    pub redundant_at: Option<u64>,
    /// Where the grains begin; everything else lies before.
    pub overhead: u64,
    /// Whether entry 1 of a table is a grain of zeroes.
    pub has_zeroed_grains: bool,
    /// The last program that wrote it didn't close it.
    pub is_unclean: bool,
}

impl Header {
    /// The layout of a new disk: descriptor, redundant directory and its tables, directory and its tables, grains.
    ///
    /// `None` where 32 bits can't name the last of its grains.
    pub fn of_new_disk(capacity: u64) -> Option<Header> {
        let mut header = Header {
            capacity,
            grain_sectors: GRAIN_SECTORS,
            descriptor_at: DESCRIPTOR_AT,
            descriptor_sectors: DESCRIPTOR_SECTORS,
            directory_at: 0,
            redundant_at: Some(DESCRIPTOR_AT + DESCRIPTOR_SECTORS),
            overhead: 0,
            has_zeroed_grains: false,
            is_unclean: false,
        };
        let copy = header.directory_sectors() + header.tables() * TABLE_SECTORS;
        header.directory_at = DESCRIPTOR_AT + DESCRIPTOR_SECTORS + copy;
        header.overhead = (header.directory_at + copy).next_multiple_of(GRAIN_SECTORS);
        let end = header.overhead.checked_add(capacity.checked_next_multiple_of(GRAIN_SECTORS)?)?;
        (capacity > 0 && end <= FILE_SECTORS_MAX).then_some(header)
    }

    /// Grains of the disk; the last one may reach beyond its end.
    pub fn grains(&self) -> u64 {
        self.capacity.div_ceil(self.grain_sectors)
    }

    /// Tables of the disk, and so entries of its directory.
    pub fn tables(&self) -> u64 {
        self.grains().div_ceil(TABLE_ENTRIES)
    }

    /// Sectors of a directory.
    pub fn directory_sectors(&self) -> u64 {
        (self.tables() * 4).div_ceil(SECTOR)
    }

    /// Bytes of a grain.
    pub fn grain_bytes(&self) -> u64 {
        self.grain_sectors * SECTOR
    }

    /// The header as it stands in the file.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut flags = flag::NEWLINES;
        flags |= if self.redundant_at.is_some() { flag::REDUNDANT } else { 0 };
        flags |= if self.has_zeroed_grains { flag::ZEROED_GRAINS } else { 0 };
        let version = if self.has_zeroed_grains { 2 } else { 1 };
        RawHeader {
            version,
            flags,
            capacity: self.capacity,
            grain_sectors: self.grain_sectors,
            descriptor_at: self.descriptor_at,
            descriptor_sectors: self.descriptor_sectors,
            table_entries: TABLE_ENTRIES as u32,
            redundant_at: self.redundant_at.unwrap_or(0),
            directory_at: self.directory_at,
            overhead: self.overhead,
            unclean: u8::from(self.is_unclean),
            compression: 0,
        }
        .to_bytes()
    }

    /// Checks the first sector of a file.
    ///
    /// # Errors
    /// [`Damage`] says what can't be.
    pub fn parse(bytes: &[u8]) -> Result<Header, Damage> {
        let raw = RawHeader::parse(bytes)?;
        if raw.flags & (flag::COMPRESSED | flag::MARKERS) != 0 || raw.compression != 0 {
            return Err(Damage::Compressed);
        }
        if !(1..=2).contains(&raw.version) {
            return Err(Damage::Version(raw.version));
        }
        let grain = raw.grain_sectors;
        if !grain.is_power_of_two() || !(GRAIN_SECTORS_MIN..=GRAIN_SECTORS_MAX).contains(&grain) {
            return Err(Damage::Header("the size of its grains"));
        }
        if u64::from(raw.table_entries) != TABLE_ENTRIES {
            return Err(Damage::Header("the size of its tables"));
        }
        if raw.capacity == 0 || raw.capacity > FILE_SECTORS_MAX {
            return Err(Damage::Header("the size of the disk"));
        }
        if raw.overhead > FILE_SECTORS_MAX {
            return Err(Damage::Header("where its grains begin"));
        }
        if raw.descriptor_sectors == 0 || raw.descriptor_sectors > DESCRIPTOR_SECTORS_MAX {
            return Err(Damage::Header("the size of its descriptor"));
        }
        let header = Header {
            capacity: raw.capacity,
            grain_sectors: grain,
            descriptor_at: raw.descriptor_at,
            descriptor_sectors: raw.descriptor_sectors,
            directory_at: raw.directory_at,
            redundant_at: (raw.flags & flag::REDUNDANT != 0).then_some(raw.redundant_at),
            overhead: raw.overhead,
            has_zeroed_grains: raw.flags & flag::ZEROED_GRAINS != 0,
            is_unclean: raw.unclean != 0,
        };
        header.check_places()?;
        Ok(header)
    }

    /// What lies before the grains beside the tables, as start and length, in order of the header.
    pub(super) fn fixed_parts(&self) -> impl Iterator<Item = (u64, u64)> {
        let directories = [Some(self.directory_at), self.redundant_at].into_iter().flatten();
        let sectors = self.directory_sectors();
        let fixed = [(0, 1), (self.descriptor_at, self.descriptor_sectors)];
        fixed.into_iter().chain(directories.map(move |at| (at, sectors)))
    }

    fn check_places(&self) -> Result<(), Damage> {
        let mut parts: Vec<(u64, u64)> = self.fixed_parts().collect();
        parts.sort_unstable();
        let apart = parts.windows(2).all(|pair| pair[0].0.checked_add(pair[0].1).is_some_and(|end| end <= pair[1].0));
        let before_grains = parts.iter().all(|(at, len)| at.checked_add(*len).is_some_and(|end| end <= self.overhead));
        if apart && before_grains { Ok(()) } else { Err(Damage::Header("the places of its parts")) }
    }
}

/// The fields as they stand, unchecked but for magic and line ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::vmdk) struct RawHeader {
    pub(in crate::vmdk) version: u32,
    pub(in crate::vmdk) flags: u32,
    pub(in crate::vmdk) capacity: u64,
    pub(in crate::vmdk) grain_sectors: u64,
    pub(in crate::vmdk) descriptor_at: u64,
    pub(in crate::vmdk) descriptor_sectors: u64,
    pub(in crate::vmdk) table_entries: u32,
    pub(in crate::vmdk) redundant_at: u64,
    pub(in crate::vmdk) directory_at: u64,
    pub(in crate::vmdk) overhead: u64,
    pub(in crate::vmdk) unclean: u8,
    pub(in crate::vmdk) compression: u16,
}

impl RawHeader {
    pub(in crate::vmdk) fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(MAGIC);
        put(&self.version.to_le_bytes());
        put(&self.flags.to_le_bytes());
        for field in [self.capacity, self.grain_sectors, self.descriptor_at, self.descriptor_sectors] {
            put(&field.to_le_bytes());
        }
        put(&self.table_entries.to_le_bytes());
        for field in [self.redundant_at, self.directory_at, self.overhead] {
            put(&field.to_le_bytes());
        }
        put(&[self.unclean]);
        put(NEWLINES);
        put(&self.compression.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<RawHeader, Damage> {
        if bytes.len() < HEADER_BYTES || &bytes[..4] != MAGIC {
            return Err(Damage::Header("how it begins"));
        }
        let mut rest = &bytes[4..];
        let mut take = |len: usize| {
            let (field, after) = rest.split_at(len);
            rest = after;
            let mut wide = [0; 8];
            wide[..len].copy_from_slice(field);
            u64::from_le_bytes(wide)
        };
        let (version, flags) = (take(4) as u32, take(4) as u32);
        let (capacity, grain_sectors, descriptor_at, descriptor_sectors) = (take(8), take(8), take(8), take(8));
        let table_entries = take(4) as u32;
        let (redundant_at, directory_at, overhead) = (take(8), take(8), take(8));
        let unclean = take(1) as u8;
        let newlines = take(4) as u32;
        let compression = take(2) as u16;
        if flags & flag::NEWLINES != 0 && newlines.to_le_bytes() != *NEWLINES {
            return Err(Damage::AsText);
        }
        Ok(RawHeader {
            version,
            flags,
            capacity,
            grain_sectors,
            descriptor_at,
            descriptor_sectors,
            table_entries,
            redundant_at,
            directory_at,
            overhead,
            unclean,
            compression,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 21;

    #[test]
    fn a_new_header_is_read_back_and_laid_out_as_the_format_says() {
        let header = Header::of_new_disk(GIB).unwrap();
        assert_eq!((header.grains(), header.tables(), header.directory_sectors()), (16_384, 32, 1));
        assert_eq!((header.redundant_at, header.directory_at), (Some(21), 21 + 1 + 128));
        assert_eq!(header.overhead, 384, "279 sectors of tables, rounded up to a grain");
        assert_eq!(Header::parse(&header.to_bytes()).unwrap(), header);
    }

    #[test]
    fn disks_that_thirty_two_bits_can_not_address_are_not_laid_out() {
        assert_eq!(Header::of_new_disk(0), None);
        assert!(Header::of_new_disk(FILE_SECTORS_MAX - (1 << 20)).is_some());
        for sectors in [FILE_SECTORS_MAX, 1 << 32, u64::MAX] {
            assert_eq!(Header::of_new_disk(sectors), None, "{sectors}");
        }
    }

    #[test]
    fn headers_that_can_not_be_are_refused() {
        let good = Header::of_new_disk(GIB).unwrap().to_bytes();
        let refused = |at: usize, bytes: &[u8]| {
            let mut bad = good;
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            Header::parse(&bad).unwrap_err()
        };
        assert_eq!(refused(0, b"VMDK"), Damage::Header("how it begins"));
        assert_eq!(Header::parse(&good[..511]), Err(Damage::Header("how it begins")));
        assert_eq!(refused(4, &3u32.to_le_bytes()), Damage::Version(3));
        assert_eq!(refused(8, &(3u32 | 1 << 16).to_le_bytes()), Damage::Compressed);
        assert_eq!(refused(77, &1u16.to_le_bytes()), Damage::Compressed);
        assert_eq!(refused(73, b"\n \n\n"), Damage::AsText);
        for grain in [0, 8, 100, 4096, u64::MAX] {
            assert_eq!(refused(20, &u64::to_le_bytes(grain)), Damage::Header("the size of its grains"), "{grain}");
        }
        for capacity in [0, 1 << 32, u64::MAX] {
            assert_eq!(refused(12, &u64::to_le_bytes(capacity)), Damage::Header("the size of the disk"));
        }
        assert_eq!(refused(44, &1024u32.to_le_bytes()), Damage::Header("the size of its tables"));
        assert_eq!(refused(64, &u64::MAX.to_le_bytes()), Damage::Header("where its grains begin"));
        for size in [0, 129, u64::MAX] {
            assert_eq!(refused(36, &u64::to_le_bytes(size)), Damage::Header("the size of its descriptor"));
        }
        // The descriptor at the header's place or at the end of all numbers, and directories on top of others.
        for (at, place) in [(28, 0), (28, u64::MAX), (48, 2), (56, 21), (56, u64::MAX), (56, 384)] {
            assert_eq!(
                refused(at, &u64::to_le_bytes(place)),
                Damage::Header("the places of its parts"),
                "{at} {place}"
            );
        }
    }
}
