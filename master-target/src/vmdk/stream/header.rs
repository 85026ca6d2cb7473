//! The bytes of a stream that are neither grains nor tables: header, footer and markers.
//!
//! The header can't know where the directory will lie, so it says *at the end*; the footer repeats it with the place.

use blockio::SECTOR;

use crate::vmdk::sparse::header::{
    DESCRIPTOR_AT, DESCRIPTOR_SECTORS, GRAIN_SECTORS, HEADER_BYTES, RawHeader, TABLE_ENTRIES, flag,
};

/// Where the grains begin: one grain's room for header and descriptor, as VMware leaves it.
pub(super) const OVERHEAD: u64 = GRAIN_SECTORS;
/// A header's place of a directory that stands in the footer.
const AT_END: u64 = u64::MAX;
/// The first version with markers.
const VERSION: u32 = 3;
/// RFC 1950, the only one there is.
const DEFLATE: u16 = 1;
/// Bytes before a compressed grain: its sector on the disk and its length.
pub(super) const GRAIN_MARKER_BYTES: usize = 12;

const _: () = assert!(DESCRIPTOR_AT + DESCRIPTOR_SECTORS <= OVERHEAD);

/// What follows a marker.
#[derive(Clone, Copy)]
pub(super) enum Marker {
    /// Nothing: the stream ends.
    End = 0,
    /// A grain table.
    Table = 1,
    /// The grain directory.
    Directory = 2,
    /// The footer.
    Footer = 3,
}

/// The sector before `sectors` of metadata.
pub(super) fn marker(kind: Marker, sectors: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    bytes[..8].copy_from_slice(&sectors.to_le_bytes());
    // Bytes 8 to 12 are a grain's length; 0 says that this is no grain.
    bytes[12..16].copy_from_slice(&(kind as u32).to_le_bytes());
    bytes
}

/// What stands before a compressed grain.
pub(super) fn grain_marker(sector: u64, len: u32) -> [u8; GRAIN_MARKER_BYTES] {
    let mut bytes = [0; GRAIN_MARKER_BYTES];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// The first sector of a disk of `capacity` sectors.
pub(super) fn header(capacity: u64) -> [u8; HEADER_BYTES] {
    raw(capacity, AT_END).to_bytes()
}

/// The last but one, which says where the directory lies.
pub(super) fn footer(capacity: u64, directory_at: u64) -> [u8; HEADER_BYTES] {
    raw(capacity, directory_at).to_bytes()
}

fn raw(capacity: u64, directory_at: u64) -> RawHeader {
    RawHeader {
        version: VERSION,
        flags: flag::NEWLINES | flag::COMPRESSED | flag::MARKERS,
        capacity,
        grain_sectors: GRAIN_SECTORS,
        descriptor_at: DESCRIPTOR_AT,
        descriptor_sectors: DESCRIPTOR_SECTORS,
        table_entries: TABLE_ENTRIES as u32,
        redundant_at: 0,
        directory_at,
        overhead: OVERHEAD,
        unclean: 0,
        compression: DEFLATE,
    }
}
