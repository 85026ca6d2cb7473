//! Marks against the rules that they answer, and against a state volume that tears and loses commits.

use super::*;

const DISK: DiskIndex = DiskIndex(0);
const REGION_BLOCKS: u64 = REGION_BYTES / BLOCK;

fn layout() -> Layout {
    Layout::of([40 << 30, 5 << 20])
}

/// Marks of a group all of whose regions have been unmarked durably.
fn clean() -> Intent {
    let mut intent = Intent::unknown(layout());
    commit(&mut intent);
    for disk in [DiskIndex(0), DiskIndex(1)] {
        for region in 0..layout().regions(disk) {
            intent.unmark(disk, region);
        }
    }
    intent.learn(Key { lineage: Lineage([7; 16]), counter: Counter(5) });
    commit(&mut intent);
    intent.begin_watch();
    intent
}

fn commit(intent: &mut Intent) {
    while intent.begin_commit().is_some() {
        intent.commit_ended(true);
    }
}

#[test]
fn a_layout_gives_each_disk_pages_of_its_own() {
    let layout = layout();
    assert_eq!((layout.pages(), layout.regions(DISK), layout.regions(DiskIndex(1))), (3, 40_960, 5));
    assert_eq!([0, 1, 2].map(|page| layout.owner(page)), [(0, 0), (0, 1), (1, 0)]);
    assert_eq!(layout.place(DISK, PAGE_REGIONS), (1, 0));
    assert_eq!(layout.full_page(2)[0], 0b11111);
    assert_eq!(layout.full_page(2)[1], 0);
}

#[test]
fn a_write_waits_until_its_mark_is_durable() {
    let mut intent = clean();
    intent.want(DISK, 300, 8);
    assert!(!intent.covers(DISK, 300, 8));
    let commit = intent.begin_commit().unwrap();
    assert_eq!(commit.pages.len(), 1, "only the page that changed is written");
    assert!(!intent.covers(DISK, 300, 8), "under way is not durable");
    intent.commit_ended(true);
    assert!(intent.covers(DISK, 300, 8));
    assert!(!intent.covers(DISK, 510, 8), "the next region is not marked");
}

#[test]
fn a_region_that_is_being_unmarked_needs_a_new_mark() {
    let mut intent = clean();
    intent.want(DISK, 0, 1);
    commit(&mut intent);
    intent.unmark(DISK, 0);
    intent.begin_commit().unwrap();
    intent.want(DISK, 0, 1);
    assert!(!intent.covers(DISK, 0, 1), "the commit under way removes the mark");
    intent.commit_ended(true);
    assert!(!intent.covers(DISK, 0, 1));
    commit(&mut intent);
    assert!(intent.covers(DISK, 0, 1));
}

#[test]
fn a_region_unmarked_in_memory_only_needs_a_new_mark_too() {
    let mut intent = clean();
    intent.want(DISK, 0, 1);
    commit(&mut intent);
    intent.unmark(DISK, 0);
    assert!(!intent.covers(DISK, 0, 1));
    intent.want(DISK, 0, 1);
    assert!(intent.covers(DISK, 0, 1), "no commit has taken it away");
}

#[test]
fn after_a_failed_commit_nothing_of_it_counts_and_all_pages_are_tried_again() {
    let mut intent = clean();
    intent.want(DISK, 0, 1);
    intent.begin_commit().unwrap();
    intent.commit_ended(false);
    assert!(!intent.covers(DISK, 0, 1));
    let again = intent.begin_commit().unwrap();
    assert_eq!(again.pages.len(), layout().pages() as usize, "the volume may have lost the others");
    intent.commit_ended(true);
    assert!(intent.covers(DISK, 0, 1));
    // What a failed commit may have unmarked does not count as marked any more.
    intent.unmark(DISK, 0);
    intent.begin_commit().unwrap();
    intent.commit_ended(false);
    intent.want(DISK, 0, 1);
    assert!(!intent.covers(DISK, 0, 1));
}

#[test]
fn only_regions_that_nothing_came_to_are_at_rest() {
    let mut intent = clean();
    intent.want(DISK, 0, 1);
    intent.want(DISK, 10 * REGION_BLOCKS, 1);
    intent.want(DiskIndex(1), 3 * REGION_BLOCKS, 1);
    commit(&mut intent);
    assert_eq!(intent.next_at_rest(DISK, 0), None);
    intent.begin_watch();
    intent.want(DISK, 0, 1);
    assert_eq!(intent.next_at_rest(DISK, 0), Some(10));
    assert_eq!(intent.next_at_rest(DISK, 11), None);
    assert_eq!(intent.next_at_rest(DiskIndex(1), 0), Some(3));
    assert!(intent.is_at_rest(DISK, 10) && !intent.is_at_rest(DISK, 0));
    assert_eq!(intent.marked(DISK), [(0, 1), (10, 1)]);
}

fn volume(intent: &mut Intent) -> Vec<u8> {
    let bytes = intent.whole();
    intent.whole_is_durable();
    bytes
}

fn put(volume: &mut [u8], pages: &[(u32, Bytes)]) {
    for (page, bytes) in pages {
        let at = *page as usize * page::PAGE_BYTES;
        volume[at..at + page::PAGE_BYTES].copy_from_slice(bytes);
    }
}

#[test]
fn marks_come_back_with_the_counter_they_rely_on() {
    let mut intent = clean();
    let mut bytes = volume(&mut intent);
    intent.want(DISK, 33_000 * REGION_BLOCKS, 1);
    intent.learn(Key { lineage: Lineage([7; 16]), counter: Counter(8) });
    let commit = intent.begin_commit().unwrap();
    put(&mut bytes, &commit.pages);
    let back = Intent::read(layout(), &bytes).unwrap();
    assert_eq!(back.marked(DISK), [(33_000, 1)]);
    assert_eq!(back.key(), Some(Key { lineage: Lineage([7; 16]), counter: Counter(8) }));
    intent.commit_ended(true);
    assert_eq!(back.committed(), intent.committed());
    assert!(!back.has_changes());
}

#[test]
fn a_torn_page_counts_as_marked_everywhere_and_is_written_again() {
    let mut intent = clean();
    let mut bytes = volume(&mut intent);
    bytes[page::PAGE_BYTES + 700] ^= 1;
    let back = Intent::read(layout(), &bytes).unwrap();
    assert_eq!(back.marked(DISK), [(PAGE_REGIONS, 40_960 - PAGE_REGIONS)]);
    assert!(back.has_changes());
}

#[test]
fn pages_of_other_disks_or_of_two_lineages_are_no_marks() {
    let mut intent = clean();
    let mut bytes = volume(&mut intent);
    assert!(Intent::read(Layout::of([40 << 30, 6 << 20]), &bytes).is_none(), "another size");
    assert!(Intent::read(Layout::of([40 << 30]), &bytes).is_none(), "another number of disks");
    assert!(Intent::read(layout(), &[]).is_none());
    intent.learn(Key { lineage: Lineage([8; 16]), counter: Counter(0) });
    intent.want_all();
    let pages = intent.begin_commit().unwrap().pages;
    put(&mut bytes, &pages[..1]);
    assert!(Intent::read(layout(), &bytes).is_none(), "a new lineage reached one page only");
    put(&mut bytes, &pages);
    assert!(Intent::read(layout(), &bytes).is_some());
    bytes.fill(0);
    assert!(Intent::read(layout(), &bytes).is_none(), "nothing is readable");
}
