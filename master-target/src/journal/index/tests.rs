//! Indexes against maps in memory, and bytes that are not an index.

use std::sync::Mutex;

use blockio::ExtentMap;
use proptest::prelude::{any, prop, proptest};

use super::format::{ENTRIES_MAX, Identity, Page, encode, index_name, parse_head, segment_of};
use super::{Entry, PageCache, Place, SegmentIndex};
use crate::journal::header::SegmentId;
use crate::journal::limits::INDEX_PAGE_BYTES;
use crate::journal::{Fuse, MemVolume, Volume};

fn identity() -> Identity {
    Identity { journal: [3; 16], segment: SegmentId::redo(7), segment_bytes: 4096, runs: 2, fingerprint: 9 }
}

fn place(set: u64) -> Place {
    Place { set, offset: set * 1000, len: 77, at: set as u32 % 50 }
}

/// A volume with the index of these entries.
fn written(entries: &[Entry]) -> MemVolume {
    let volume = MemVolume::new(1, Fuse::default());
    volume.replace(&index_name(identity().segment), &encode(&identity(), (1, 9), entries)).unwrap();
    volume
}

fn open(volume: &MemVolume, cache: &Mutex<PageCache>) -> SegmentIndex {
    SegmentIndex::open(volume, cache, &identity()).unwrap()
}

/// So many entries of 8 sectors with a hole of 8 behind each.
fn spread(disk: u32, count: u64) -> impl Iterator<Item = Entry> {
    (0..count).map(move |i| Entry { disk, sector: i * 16, sectors: 8, place: place(i + 1) })
}

fn all_of(disk: u32, map: &ExtentMap<Place>) -> Vec<Entry> {
    map.iter().map(|(sector, sectors, place)| Entry { disk, sector, sectors, place: *place }).collect()
}

proptest! {
    #[test]
    fn a_look_up_gives_what_a_map_gives(
        extents in prop::collection::vec((0u64..5000, 1u64..40), 0..600),
        asked in prop::collection::vec((0u64..5100, 1u64..200), 20),
    ) {
        let mut map = ExtentMap::new();
        for (i, (sector, sectors)) in (1..).zip(extents) {
            map.insert(sector, sectors, place(i));
        }
        // Others before and behind it, of which nothing may be found.
        let entries = [spread(1, 30).collect(), all_of(2, &map), spread(4, 30).collect()].concat();
        let volume = written(&entries);
        let cache = Mutex::new(PageCache::new(8));
        let index = open(&volume, &cache);
        for (sector, sectors) in asked {
            let found = index.overlapping(&volume, &cache, 2, (sector, sectors)).unwrap();
            let expected: Vec<_> = map.clipped(sector, sectors).collect();
            let found: Vec<_> = found.into_iter().map(|entry| (entry.sector, entry.sectors, entry.place)).collect();
            assert_eq!(found, expected);
            let next = map.overlapping(sector, 10_000).next().map(|(at, _, _)| at.max(sector));
            assert_eq!(index.next_at(&volume, &cache, 2, sector).unwrap(), next);
            assert!(index.overlapping(&volume, &cache, 3, (sector, sectors)).unwrap().is_empty());
        }
        assert!(cache.lock().unwrap().len() <= 8);
    }

    #[test]
    fn a_damaged_byte_is_noticed_or_of_no_account(at: u64, bit in 0u8..8) {
        let entries: Vec<Entry> = spread(0, 300).collect();
        let volume = written(&entries);
        let name = index_name(identity().segment);
        let at = at % volume.len(&name).unwrap();
        let mut file = vec![0; volume.len(&name).unwrap() as usize];
        volume.read_at(&name, 0, &mut file).unwrap();
        file[at as usize] ^= 1 << bit;
        volume.replace(&name, &file).unwrap();
        let cache = Mutex::new(PageCache::new(8));
        if let Ok(index) = SegmentIndex::open(&volume, &cache, &identity()) {
            assert!(at >= INDEX_PAGE_BYTES as u64);
            let found = index.overlapping(&volume, &cache, 0, (0, 300 * 16));
            // Only the page of keys may be passed by: reading in order needs its first key alone, after its CRC.
            assert!(found.is_err(), "byte {at} was not missed");
        }
    }

    #[test]
    fn bytes_that_are_no_index_are_refused(page in prop::collection::vec(any::<u8>(), INDEX_PAGE_BYTES)) {
        let first: [u8; INDEX_PAGE_BYTES] = page.clone().try_into().unwrap();
        assert!(parse_head(&first).is_err());
        assert!(Page::check(page.into(), &identity(), 1, 0).is_err());
    }
}

#[test]
fn a_look_up_reads_a_page_of_each_level() {
    let entries: Vec<Entry> = spread(0, 60_000).chain(spread(3, 60_000)).collect();
    let volume = written(&entries);
    let cache = Mutex::new(PageCache::new(4096));
    let index = open(&volume, &cache);
    for (disk, at) in [(0, 0), (0, 31_111), (3, 0), (3, 59_999)] {
        let before = cache.lock().unwrap().len();
        let found = index.overlapping(&volume, &cache, disk, (at * 16, 1)).unwrap();
        assert_eq!(found[0].place, place(at + 1));
        assert!(cache.lock().unwrap().len() <= before + 4, "two levels of keys and two neighbouring leaves");
    }
    assert!(index.overlapping(&volume, &cache, 2, (0, 1 << 40)).unwrap().is_empty());
    assert_eq!(index.next_at(&volume, &cache, 1, 0).unwrap(), None);
    assert_eq!(index.next_at(&volume, &cache, 3, 5).unwrap(), Some(5));
}

#[test]
fn an_index_of_anything_else_is_not_used() {
    let volume = written(&spread(0, ENTRIES_MAX as u64 + 1).collect::<Vec<_>>());
    let cache = Mutex::new(PageCache::new(8));
    open(&volume, &cache);
    let other = [
        Identity { journal: [4; 16], ..identity() },
        Identity { segment_bytes: 4097, ..identity() },
        Identity { runs: 3, ..identity() },
        Identity { fingerprint: 8, ..identity() },
    ];
    for other in other {
        let refused = SegmentIndex::open(&volume, &cache, &other).unwrap_err().to_string();
        assert!(refused.contains("other records"), "{refused}");
    }
    let name = index_name(identity().segment);
    volume.append(&name, &[0]).unwrap();
    assert!(SegmentIndex::open(&volume, &cache, &identity()).unwrap_err().to_string().contains("pages"));
    volume.truncate(&name, 100);
    SegmentIndex::open(&volume, &cache, &identity()).unwrap_err();
}

#[test]
fn an_index_of_nothing_has_one_page() {
    let volume = written(&[]);
    let cache = Mutex::new(PageCache::new(8));
    let index = open(&volume, &cache);
    assert_eq!(index.bytes(), INDEX_PAGE_BYTES as u64);
    assert!(index.overlapping(&volume, &cache, 0, (0, 100)).unwrap().is_empty());
    assert_eq!(index.next_at(&volume, &cache, 0, 0).unwrap(), None);
}

#[test]
fn names_of_indexes_are_no_segments_and_read_back() {
    for id in [SegmentId::redo(7), SegmentId { generation: 3, index: 12 }] {
        assert_eq!(segment_of(&index_name(id)), Some(id));
        assert_eq!(SegmentId::of_name(&index_name(id)), None, "an older agent leaves it alone");
    }
    assert_eq!(segment_of("redo-00000001"), None);
    assert_eq!(segment_of("manifest.idx"), None);
}
