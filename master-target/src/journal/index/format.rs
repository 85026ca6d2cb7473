//! The bytes of an index file: pages of 4 KiB, the first with what the index is of, then entries, then keys over them.
//!
//! Pure. Every page has its own CRC and a tag of the file, so that a damaged or misplaced page is found when it is
//! read, not before.

use super::{Entry, Place};
use crate::journal::header::SegmentId;
use crate::journal::limits::INDEX_PAGE_BYTES;

/// The only version there is.
const VERSION: u32 = 1;
const MAGIC: &[u8; 4] = b"BHJX";
const PAGE: usize = INDEX_PAGE_BYTES;
const HEAD: usize = 16;
const ENTRY: usize = 40;
const KEY: usize = 16;
/// Entries of one page.
pub(super) const ENTRIES_MAX: usize = (PAGE - HEAD) / ENTRY;
/// Keys of one page.
pub(super) const KEYS_MAX: usize = (PAGE - HEAD) / KEY;
/// Levels of keys: 255 to the power of 4 pages are more than any file has.
const HEIGHT_MAX: u32 = 4;

/// Name of the index file of a segment.
pub(crate) fn index_name(id: SegmentId) -> String {
    format!("{id}.idx")
}

/// The segment of an index file; none for other files.
pub(super) fn segment_of(name: &str) -> Option<SegmentId> {
    SegmentId::of_name(name.strip_suffix(".idx")?)
}

/// What an index is of: one that says anything else is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// 16 random bytes of the journal.
    pub journal: [u8; 16],
    /// The segment.
    pub segment: SegmentId,
    /// Bytes of the segment that count.
    pub segment_bytes: u64,
    /// Runs of records that count in it.
    pub runs: u64,
    /// CRC over the places of these runs.
    pub fingerprint: u32,
}

impl Identity {
    /// Stands in each page, so that one of another file is noticed.
    fn tag(&self) -> u32 {
        blockio::crc32(&self.bytes())
    }

    fn bytes(&self) -> [u8; 52] {
        let mut bytes = [0; 52];
        bytes[..16].copy_from_slice(&self.journal);
        bytes[16..24].copy_from_slice(&self.segment.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.segment.index.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.segment_bytes.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.runs.to_le_bytes());
        bytes[48..].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes
    }
}

/// The first page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub identity: Identity,
    /// Lowest and highest set of which it has something; both 0 in undo and where it has nothing.
    pub sets: (u64, u64),
    /// Pages with entries; they stand after the first page.
    pub leaves: u32,
    /// All pages, the first included.
    pub pages: u32,
    /// Levels of keys over the entries; the last page is the root.
    pub height: u32,
}

/// Where a key leads: the first entry below it is this one or a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub disk: u32,
    pub page: u32,
    pub sector: u64,
}

/// An index as one file. The entries are sorted by disk and sector and do not overlap.
pub(super) fn encode(identity: &Identity, sets: (u64, u64), entries: &[Entry]) -> Vec<u8> {
    let tag = identity.tag();
    let mut file = vec![0; PAGE];
    let mut keys = Vec::new();
    for entries in entries.chunks(ENTRIES_MAX) {
        keys.push(Key { disk: entries[0].disk, page: page_count(&file), sector: entries[0].sector });
        push_page(&mut file, tag, 0, entries.iter().map(entry_bytes));
    }
    let leaves = keys.len() as u32;
    let mut height = 0;
    while keys.len() > 1 {
        height += 1;
        let mut above = Vec::new();
        for keys in keys.chunks(KEYS_MAX) {
            above.push(Key { page: page_count(&file), ..keys[0] });
            push_page(&mut file, tag, height, keys.iter().map(key_bytes));
        }
        keys = above;
    }
    let head = Head { identity: identity.clone(), sets, leaves, pages: page_count(&file), height };
    file[..PAGE].copy_from_slice(&head_bytes(&head));
    file
}

fn page_count(file: &[u8]) -> u32 {
    (file.len() / PAGE) as u32
}

fn push_page<const N: usize>(file: &mut Vec<u8>, tag: u32, level: u32, items: impl Iterator<Item = [u8; N]>) {
    let (start, number) = (file.len(), page_count(file));
    file.resize(start + PAGE, 0);
    let page = &mut file[start..];
    let mut count = 0u16;
    for item in items {
        let at = HEAD + usize::from(count) * N;
        page[at..at + N].copy_from_slice(&item);
        count += 1;
    }
    page[4..8].copy_from_slice(&tag.to_le_bytes());
    page[8..12].copy_from_slice(&number.to_le_bytes());
    page[12..14].copy_from_slice(&(level as u16).to_le_bytes());
    page[14..16].copy_from_slice(&count.to_le_bytes());
    let crc = blockio::crc32(&page[4..]);
    page[..4].copy_from_slice(&crc.to_le_bytes());
}

fn entry_bytes(entry: &Entry) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..4].copy_from_slice(&entry.disk.to_le_bytes());
    bytes[4..8].copy_from_slice(&(entry.sectors as u32).to_le_bytes());
    bytes[8..16].copy_from_slice(&entry.sector.to_le_bytes());
    bytes[16..24].copy_from_slice(&entry.place.set.to_le_bytes());
    bytes[24..32].copy_from_slice(&entry.place.offset.to_le_bytes());
    bytes[32..36].copy_from_slice(&entry.place.len.to_le_bytes());
    bytes[36..40].copy_from_slice(&entry.place.at.to_le_bytes());
    bytes
}

fn key_bytes(key: &Key) -> [u8; KEY] {
    let mut bytes = [0; KEY];
    bytes[..4].copy_from_slice(&key.disk.to_le_bytes());
    bytes[4..8].copy_from_slice(&key.page.to_le_bytes());
    bytes[8..16].copy_from_slice(&key.sector.to_le_bytes());
    bytes
}

fn head_bytes(head: &Head) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[..4].copy_from_slice(MAGIC);
    page[8..12].copy_from_slice(&VERSION.to_le_bytes());
    page[12..64].copy_from_slice(&head.identity.bytes());
    page[64..72].copy_from_slice(&head.sets.0.to_le_bytes());
    page[72..80].copy_from_slice(&head.sets.1.to_le_bytes());
    page[80..84].copy_from_slice(&head.leaves.to_le_bytes());
    page[84..88].copy_from_slice(&head.pages.to_le_bytes());
    page[88..92].copy_from_slice(&head.height.to_le_bytes());
    let crc = blockio::crc32(&page[8..]);
    page[4..8].copy_from_slice(&crc.to_le_bytes());
    page
}

/// Bytes as an index of `identity`, with what is checked made right: for fuzzing.
pub(super) fn mended(identity: &Identity, bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes.to_vec();
    file.resize(bytes.len().next_multiple_of(PAGE).max(PAGE), 0);
    let (first, rest) = file.split_at_mut(PAGE);
    first[..4].copy_from_slice(MAGIC);
    first[8..12].copy_from_slice(&VERSION.to_le_bytes());
    first[12..64].copy_from_slice(&identity.bytes());
    let crc = blockio::crc32(&first[8..]);
    first[4..8].copy_from_slice(&crc.to_le_bytes());
    for (number, page) in (1u32..).zip(rest.chunks_mut(PAGE)) {
        page[4..8].copy_from_slice(&identity.tag().to_le_bytes());
        page[8..12].copy_from_slice(&number.to_le_bytes());
        let crc = blockio::crc32(&page[4..]);
        page[..4].copy_from_slice(&crc.to_le_bytes());
    }
    file
}

/// Reads the first page; the text says what is wrong with it.
pub(super) fn parse_head(page: &[u8; PAGE]) -> Result<Head, String> {
    if &page[..4] != MAGIC {
        return Err("it is no index".to_owned());
    }
    if u32_at(page, 4) != blockio::crc32(&page[8..]) {
        return Err("its first page is damaged".to_owned());
    }
    let version = u32_at(page, 8);
    if version != VERSION {
        return Err(format!("it has version {version}, this agent knows {VERSION}"));
    }
    let mut journal = [0; 16];
    journal.copy_from_slice(&page[12..28]);
    let head = Head {
        identity: Identity {
            journal,
            segment: SegmentId { generation: u64_at(page, 28), index: u64_at(page, 36) },
            segment_bytes: u64_at(page, 44),
            runs: u64_at(page, 52),
            fingerprint: u32_at(page, 60),
        },
        sets: (u64_at(page, 64), u64_at(page, 72)),
        leaves: u32_at(page, 80),
        pages: u32_at(page, 84),
        height: u32_at(page, 88),
    };
    let is_consistent = head.leaves < head.pages && head.height <= HEIGHT_MAX && (head.leaves > 1) == (head.height > 0);
    if is_consistent { Ok(head) } else { Err("its first page contradicts itself".to_owned()) }
}

/// A page that was checked: its content is what was written, for this file and place.
#[derive(Debug)]
pub(crate) struct Page(Box<[u8]>);

impl Page {
    /// Checks a page that is wanted as page `number` of level `level`.
    pub(super) fn check(bytes: Box<[u8]>, identity: &Identity, number: u32, level: u32) -> Result<Self, String> {
        assert_eq!(bytes.len(), PAGE, "pages are read whole");
        if u32_at(&bytes, 0) != blockio::crc32(&bytes[4..]) {
            return Err(format!("page {number} is damaged"));
        }
        if u32_at(&bytes, 4) != identity.tag() || u32_at(&bytes, 8) != number || u32::from(u16_at(&bytes, 12)) != level
        {
            return Err(format!("page {number} belongs elsewhere"));
        }
        let page = Self(bytes);
        let most = if level == 0 { ENTRIES_MAX } else { KEYS_MAX };
        if (1..=most).contains(&page.len()) { Ok(page) } else { Err(format!("page {number} has {} items", page.len())) }
    }

    /// 0 for entries.
    pub(super) fn level(&self) -> u32 {
        u32::from(u16_at(&self.0, 12))
    }

    /// Entries, or keys.
    pub(super) fn len(&self) -> usize {
        usize::from(u16_at(&self.0, 14))
    }

    /// An entry of a page of level 0.
    pub(super) fn entry(&self, index: usize) -> Entry {
        let bytes = &self.0[HEAD + index * ENTRY..][..ENTRY];
        let place =
            Place { set: u64_at(bytes, 16), offset: u64_at(bytes, 24), len: u32_at(bytes, 32), at: u32_at(bytes, 36) };
        Entry { disk: u32_at(bytes, 0), sector: u64_at(bytes, 8), sectors: u64::from(u32_at(bytes, 4)), place }
    }

    /// A key of a page of a higher level.
    pub(super) fn key(&self, index: usize) -> Key {
        let bytes = &self.0[HEAD + index * KEY..][..KEY];
        Key { disk: u32_at(bytes, 0), page: u32_at(bytes, 4), sector: u64_at(bytes, 8) }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    (0..4).fold(0, |number, index| number | u32::from(bytes[at + index]) << (8 * index))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

const _: () = assert!(HEAD + ENTRIES_MAX * ENTRY <= PAGE && HEAD + KEYS_MAX * KEY <= PAGE);
