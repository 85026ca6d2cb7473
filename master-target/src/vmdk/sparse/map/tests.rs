//! The map of grains: refusals, and what may leave memory.

use super::*;

/// A disk of `tables` full tables, and its directory.
fn disk(tables: u64) -> (Header, Directory) {
    let header = Header::of_new_disk(tables * TABLE_ENTRIES * 128).unwrap();
    let directory = Directory::of_new_disk(&header);
    (header, directory)
}

#[test]
fn the_directory_of_a_new_disk_is_sound_and_read_back() {
    let (header, directory) = disk(300);
    let [main, redundant] = directory.to_bytes();
    assert_eq!(Directory::parse(&header, &main, Some(&redundant)).unwrap(), directory);
    assert_eq!((directory.len(), directory.main(1) - directory.main(0)), (300, TABLE_SECTORS));
    assert!(directory.redundant(299).unwrap() + TABLE_SECTORS <= header.directory_at);
}

#[test]
fn tables_that_are_nowhere_or_on_top_of_others_are_refused() {
    let (header, directory) = disk(4);
    let refused = |copy: usize, entry: usize, at: u64| {
        let mut bytes = directory.to_bytes();
        bytes[copy][entry * 4..][..4].copy_from_slice(&(at as u32).to_le_bytes());
        Directory::parse(&header, &bytes[0], Some(&bytes[1])).unwrap_err()
    };
    for copy in [0, 1] {
        let top = "its table lies on top of something else";
        for (at, what) in [
            (0, "its table is missing"),
            (1, top),
            (header.directory_at, top),
            (header.directory_at - 1, top),
            (directory.main(3) + 1, top),
            (directory.redundant(3).unwrap() - 3, top),
            (header.overhead - 3, "its table lies among the grains"),
            (u64::from(u32::MAX), "its table lies among the grains"),
        ] {
            let error = refused(copy, 1, at);
            assert!(matches!(error, Damage::Directory { what: w, .. } if w == what), "copy {copy}, {at}: {error}");
        }
    }
}

#[test]
fn grains_that_are_outside_askew_or_share_a_place_are_refused() {
    let (header, _) = disk(1);
    let file_sectors = header.overhead + 3 * 128;
    let mut taken = Taken::new(&header, file_sectors);
    let first = header.overhead as u32;
    for (entry, what) in [
        (1, "it lies among the tables"),
        (first - 1, "it lies among the tables"),
        (first + 1, "it lies across two places of grains"),
        (first + 3 * 128, "it lies behind the end of the file"),
        (u32::MAX, "it lies across two places of grains"),
        (u32::MAX - 127, "it lies behind the end of the file"),
    ] {
        assert_eq!(taken.take(&header, 9, entry), Err(Damage::Grain { grain: 9, what }), "{entry}");
    }
    assert_eq!(taken.end(), header.overhead);
    taken.take(&header, 0, 0).unwrap();
    taken.take(&header, 1, first + 128).unwrap();
    assert_eq!(taken.end(), header.overhead + 256);
    let what = "another grain lies there";
    assert_eq!(taken.take(&header, 2, first + 128), Err(Damage::Grain { grain: 2, what }));
    let zeroed = Header { has_zeroed_grains: true, ..header };
    taken.take(&zeroed, 3, 1).unwrap();
}

#[test]
fn a_table_with_entries_that_are_not_in_the_file_never_leaves_memory() {
    let (header, _) = disk(TABLES_CACHED_MAX as u64 + 8);
    let mut map = GrainMap::new(header.clone(), header.overhead);
    assert_eq!(map.place(5), Place::Unread(0));
    let empty = || Box::new([0; TABLE_ENTRIES as usize]);
    map.take_in(0, empty()).unwrap();
    assert_eq!(map.place(5), Place::None);
    let at = map.allot(5);
    assert_eq!((at, map.place(5), map.end()), (header.overhead, Place::At(at), at + 128));
    let fill = |map: &mut GrainMap| (1..TABLES_CACHED_MAX as u32 + 8).for_each(|n| map.take_in(n, empty()).unwrap());
    fill(&mut map);
    assert_eq!((map.cached(), map.place(5)), (TABLES_CACHED_MAX, Place::At(at)), "changed");
    let tables = map.take_changed();
    assert_eq!((tables.len(), tables[0].0, tables[0].1[5]), (1, 0, at as u32));
    fill(&mut map);
    assert_eq!(map.place(5), Place::At(at), "in writing");
    // Changed again while it is written: it is written again.
    map.allot(6);
    map.written(&tables);
    fill(&mut map);
    assert_eq!(map.take_changed()[0].1[6], at as u32 + 128);
    map.not_written(&[(0, empty())]);
    let again = map.take_changed();
    assert_eq!(again.len(), 1, "what failed is written again");
    map.written(&again);
    assert!(map.take_changed().is_empty());
    fill(&mut map);
    assert_eq!(map.place(5), Place::Unread(0), "the table that was not used for longest");
}

#[test]
fn many_changed_tables_ask_to_be_written() {
    let (header, _) = disk(TABLES_CHANGED_MAX as u64 + 1);
    let mut map = GrainMap::new(header.clone(), header.overhead);
    for table in 0..TABLES_CHANGED_MAX as u32 {
        assert!(!map.must_write());
        map.take_in(table, Box::new([0; TABLE_ENTRIES as usize])).unwrap();
        map.allot(u64::from(table) * TABLE_ENTRIES);
    }
    assert!(map.must_write());
    map.take_changed();
    assert!(!map.must_write());
}

#[test]
fn a_table_that_was_changed_behind_our_back_is_not_taken_in() {
    let (header, _) = disk(2);
    let mut map = GrainMap::new(header.clone(), header.overhead + 128);
    let mut entries: Entries = Box::new([0; TABLE_ENTRIES as usize]);
    entries[7] = header.overhead as u32 + 128;
    let what = "it lies behind the end of the file";
    assert_eq!(map.take_in(1, entries), Err(Damage::Grain { grain: TABLE_ENTRIES + 7, what }));
}

#[test]
fn a_file_takes_grains_up_to_what_thirty_two_bits_can_name() {
    let (header, _) = disk(1);
    let last = FILE_SECTORS_MAX / 128 * 128;
    let map = GrainMap::new(header, last - 128);
    assert!(map.has_room(1) && !map.has_room(2));
}
