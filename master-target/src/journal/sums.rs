//! The tables of block sums: what each 4 KiB block of the disks must hold, so that rot is known from content.
//!
//! A file per disk, beside the segments: a CRC-32 for each block, in pages of 4 KiB that have a CRC of their own. They
//! are written by the thread that writes the disks and asked by everybody who reads them; nothing of them stays in memory.
//!
//! Rule J11. A sum is *forgotten*, durably, before its block is written, and *kept* only after the disks were
//! synced. So a sum that is there is that of what the block durably holds, whatever a loss of power left of block and
//! table: block and page can't disagree but by rot. A block that was being written has no sum, and a page whose own CRC
//! is wrong has none at all. docs/block-sums.md says why this is enough.
//!
//! The rows of a table count only where its head has the number with which the manifest says the tables began: an older
//! agent, which writes disks without them, drops that number, and the tables begin anew.

use super::core::{Journal, lock};
use super::error::JournalResult;
use super::limits::{BLOCK_BYTES, SUMS_PER_PAGE};
use super::volume::{PLACED, Volume, VolumeError, VolumeResult};
use crate::rules::Rule;

const MAGIC: [u8; 4] = *b"BHBS";
const VERSION: u32 = 1;
const PAGE_BYTES: usize = 4096;
/// CRC and number of a page, before its sums.
const PAGE_HEAD_BYTES: usize = 8;
const _: () = assert!(PAGE_HEAD_BYTES + SUMS_PER_PAGE as usize * 4 == PAGE_BYTES);

/// What is known of the content of a block: nothing, that it is not right, or its CRC-32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(u32);

/// What a sum says of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is what was written.
    Right,
    /// Nothing.
    Unknown,
    /// It is not.
    Damaged,
}

impl Sum {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);
    /// The block is known not to hold what it should.
    pub const DAMAGED: Self = Self(1);

    /// The sum of content. The two CRCs that mean something else share the next value.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(blockio::crc32(content).max(2))
    }

    /// Whether a block with this sum may hold this content.
    #[must_use]
    pub fn judge(self, content: &[u8]) -> Verdict {
        match self {
            Self::UNKNOWN => Verdict::Unknown,
            sum if sum == Self::of(content) => Verdict::Right,
            _ => Verdict::Damaged,
        }
    }
}

/// One page of a table.
struct Page(Box<[u8; PAGE_BYTES]>);

impl Page {
    fn blank() -> Self {
        Self(Box::new([0; PAGE_BYTES]))
    }

    /// The page as it was read; none where its CRC or its number is wrong. A hole is a page without sums.
    fn parse(bytes: Box<[u8; PAGE_BYTES]>, number: u64) -> Option<Self> {
        let page = Self(bytes);
        let is_right = page.word(0) == blockio::crc32(&page.0[4..]) && page.word(4) == number as u32;
        (is_right || blockio::is_zero(&page.0[..])).then_some(page)
    }

    fn word(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(word)
    }

    fn sum(&self, block: u64) -> Sum {
        Sum(self.word(PAGE_HEAD_BYTES + (block % SUMS_PER_PAGE) as usize * 4))
    }

    fn set(&mut self, block: u64, sum: Sum) {
        let at = PAGE_HEAD_BYTES + (block % SUMS_PER_PAGE) as usize * 4;
        self.0[at..at + 4].copy_from_slice(&sum.0.to_le_bytes());
    }

    fn seal(&mut self, number: u64) -> &[u8] {
        self.0[4..8].copy_from_slice(&(number as u32).to_le_bytes());
        let crc = blockio::crc32(&self.0[4..]);
        self.0[..4].copy_from_slice(&crc.to_le_bytes());
        &self.0[..]
    }
}

/// What a page turned out to be.
enum Found {
    Right(Page),
    /// Not readable, or its CRC is wrong.
    Damaged,
    Missing,
}

/// Whether a disk has a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    /// Not looked at in this process.
    Unopened,
    Missing,
    /// Bytes of the file.
    Open(u64),
}

/// The tables of a journal.
#[derive(Debug)]
pub(crate) struct Sums {
    journal: Vec<u8>,
    /// The number with which they began.
    since: u64,
    tables: Vec<Table>,
    /// A table that was found could not be synced: a sync that succeeds after that says nothing (rule J13).
    is_unsynced: bool,
}

/// The file of a disk's table.
pub(super) fn name_of(disk: u32) -> String {
    format!("{PLACED}{disk:08}")
}

fn offset_of(page: u64) -> u64 {
    (page + 1) * PAGE_BYTES as u64
}

impl Sums {
    pub(super) fn new(journal: Vec<u8>, since: u64, disks: usize) -> Self {
        Self { journal, since, tables: vec![Table::Unopened; disks], is_unsynced: false }
    }

    /// Nothing is known any more: the manifest has this number now.
    pub(super) fn begin(&mut self, since: u64) {
        self.since = since;
        self.tables.fill(Table::Unopened);
    }

    fn head(&self, disk: u32) -> [u8; PAGE_BYTES] {
        let mut head = [0; PAGE_BYTES];
        head[12..16].copy_from_slice(&disk.to_le_bytes());
        head[16..32].copy_from_slice(&self.journal);
        head[32..40].copy_from_slice(&self.since.to_le_bytes());
        let crc = blockio::crc32(&head[12..]);
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&VERSION.to_le_bytes());
        head[8..12].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// The table of a disk, looked at for the first time: synced, since what is found may be in no more than a cache (rule
    /// J8). One of other times goes.
    fn table(&mut self, volume: &impl Volume, disk: u32) -> VolumeResult<Table> {
        let known = self.tables.get(disk as usize).copied().unwrap_or(Table::Missing);
        if known != Table::Unopened {
            return Ok(known);
        }
        let name = name_of(disk);
        let table = if volume.list()?.contains(&name) {
            if Rule::FoundSumsAreSynced.holds() {
                if self.is_unsynced {
                    let source = std::io::Error::other("it could not be synced before");
                    return Err(VolumeError { op: "trust", file: volume.describe(&name), offset: None, source });
                }
                volume.sync(&name).inspect_err(|_| self.is_unsynced = true)?;
            }
            let bytes = volume.len(&name)?;
            let mut head = [0; PAGE_BYTES];
            let is_ours = volume.read_at(&name, 0, &mut head).is_ok() && head == self.head(disk);
            if is_ours {
                Table::Open(bytes)
            } else {
                tracing::info!(
                    file = volume.describe(&name),
                    "block sums of another time, or without a head: forgotten"
                );
                volume.remove(&name)?;
                Table::Missing
            }
        } else {
            Table::Missing
        };
        self.tables[disk as usize] = table;
        Ok(table)
    }

    fn page(&mut self, volume: &impl Volume, disk: u32, number: u64) -> VolumeResult<Found> {
        let Table::Open(bytes) = self.table(volume, disk)? else { return Ok(Found::Missing) };
        let offset = offset_of(number);
        let mut page = Box::new([0; PAGE_BYTES]);
        let there = bytes.saturating_sub(offset).min(PAGE_BYTES as u64) as usize;
        if there == 0 {
            return Ok(Found::Missing);
        }
        let name = name_of(disk);
        let read = volume.read_at(&name, offset, &mut page[..there]);
        let found = read.map_err(|error| error.to_string());
        let found = found.and_then(|()| Page::parse(page, number).ok_or_else(|| "its CRC is wrong".to_owned()));
        Ok(match found {
            Ok(page) => Found::Right(page),
            Err(what) => {
                let file = volume.describe(&name);
                tracing::info!(file, offset, what, "a page of block sums is torn or damaged: its blocks are unknown");
                Found::Damaged
            }
        })
    }

    fn write(&mut self, volume: &impl Volume, disk: u32, number: u64, mut page: Page) -> VolumeResult<()> {
        let name = name_of(disk);
        if self.table(volume, disk)? == Table::Missing {
            volume.create(&name)?;
            self.tables[disk as usize] = Table::Open(0);
        }
        if self.table(volume, disk)? == Table::Open(0) {
            volume.write_at(&name, 0, &self.head(disk))?;
            self.tables[disk as usize] = Table::Open(PAGE_BYTES as u64);
        }
        volume.write_at(&name, offset_of(number), page.seal(number))?;
        if let Some(Table::Open(bytes)) = self.tables.get_mut(disk as usize) {
            *bytes = (*bytes).max(offset_of(number + 1));
        }
        Ok(())
    }

    /// The sums of a range of blocks.
    pub(crate) fn read(&mut self, volume: &impl Volume, disk: u32, block: u64, blocks: u64) -> VolumeResult<Vec<Sum>> {
        let mut sums = Vec::with_capacity(blocks as usize);
        let (mut at, end) = (block, block + blocks);
        while at < end {
            let number = at / SUMS_PER_PAGE;
            let stop = end.min((number + 1) * SUMS_PER_PAGE);
            match self.page(volume, disk, number)? {
                Found::Right(page) => sums.extend((at..stop).map(|block| page.sum(block))),
                Found::Damaged | Found::Missing => sums.resize(sums.len() + (stop - at) as usize, Sum::UNKNOWN),
            }
            at = stop;
        }
        Ok(sums)
    }

    /// Forgets the sums of blocks, in order. True where the table has to be synced for that.
    fn forget(&mut self, volume: &impl Volume, disk: u32, blocks: &[u64]) -> VolumeResult<bool> {
        let mut is_changed = false;
        for of_page in blocks.chunk_by(|a, b| a / SUMS_PER_PAGE == b / SUMS_PER_PAGE) {
            let number = of_page[0] / SUMS_PER_PAGE;
            let page = match self.page(volume, disk, number)? {
                Found::Missing => continue,
                // It could be read better another time.
                Found::Damaged => Page::blank(),
                Found::Right(mut page) => {
                    let is_known = |block: &&u64| ![Sum::UNKNOWN, Sum::DAMAGED].contains(&page.sum(**block));
                    let known: Vec<u64> = of_page.iter().filter(is_known).copied().collect();
                    if known.is_empty() {
                        continue;
                    }
                    known.into_iter().for_each(|block| page.set(block, Sum::UNKNOWN));
                    page
                }
            };
            self.write(volume, disk, number, page)?;
            is_changed = true;
        }
        Ok(is_changed)
    }

    fn keep(&mut self, volume: &impl Volume, disk: u32, sums: &[(u64, Sum)]) -> VolumeResult<()> {
        for of_page in sums.chunk_by(|a, b| a.0 / SUMS_PER_PAGE == b.0 / SUMS_PER_PAGE) {
            let number = of_page[0].0 / SUMS_PER_PAGE;
            let mut page = match self.page(volume, disk, number)? {
                Found::Right(page) => page,
                Found::Damaged | Found::Missing => Page::blank(),
            };
            of_page.iter().for_each(|(block, sum)| page.set(*block, *sum));
            self.write(volume, disk, number, page)?;
        }
        Ok(())
    }
}

impl<V: Volume> Journal<V> {
    /// What is known of a range of blocks.
    pub(crate) fn sums(&self, disk: u32, block: u64, blocks: u64) -> JournalResult<Vec<Sum>> {
        self.read_sums(&mut lock(&self.sums), disk, block, blocks)
    }

    /// The same, with the tables locked: one that can't be synced stops the journal (rule J13).
    fn read_sums(&self, sums: &mut Sums, disk: u32, block: u64, blocks: u64) -> JournalResult<Vec<Sum>> {
        let read = sums.read(&self.volume, disk, block, blocks);
        read.map_err(|error| if sums.is_unsynced { self.stop(error) } else { error.into() })
    }

    /// Forgets the sums of blocks, in order: they are about to be written. What is known to be damaged stays so until it
    /// was written whole.
    pub(crate) fn forget_sums(&self, disk: u32, blocks: &[u64]) -> JournalResult<()> {
        self.check_running()?;
        if !Rule::SumsAreForgotten.holds() {
            return Ok(());
        }
        let mut sums = lock(&self.sums);
        let mut forgotten = sums.forget(&self.volume, disk, blocks);
        if matches!(forgotten, Ok(true)) && Rule::SumsAreForgottenDurably.holds() {
            // Durable before the block is written, or a loss of power could bring the old sum back to the new content.
            forgotten = self.volume.sync(&name_of(disk)).map(|()| true);
        }
        forgotten.map(|_| ()).map_err(|error| self.stop(error))
    }

    /// The disks are about to be somebody else's, who knows no sums: all are forgotten, durably. What is damaged stays so.
    pub(crate) fn forget_all_sums(&self) -> JournalResult<()> {
        self.check_running()?;
        if !Rule::HandedOverIsForgotten.holds() {
            return Ok(());
        }
        let sizes: Vec<u64> = self.state().manifest.disks.iter().map(|disk| disk.size).collect();
        for (disk, size) in (0..).zip(sizes) {
            for number in 0..size.div_ceil(BLOCK_BYTES).div_ceil(SUMS_PER_PAGE) {
                let blocks: Vec<u64> = (number * SUMS_PER_PAGE..(number + 1) * SUMS_PER_PAGE).collect();
                let forgotten = lock(&self.sums).forget(&self.volume, disk, &blocks);
                forgotten.map_err(|error| self.stop(error))?;
            }
            self.sync_sums(disk)?;
        }
        Ok(())
    }

    /// Keeps the sums of blocks, in order: the disk was synced since they were written. Durable with the next that are
    /// forgotten. Without room they stay unknown.
    pub(crate) fn keep_sums(&self, disk: u32, sums: &[(u64, Sum)]) -> JournalResult<()> {
        self.check_running()?;
        match lock(&self.sums).keep(&self.volume, disk, sums) {
            Err(error) if !error.is_full() => Err(self.stop(error)),
            _ => Ok(()),
        }
    }

    /// Records durably that blocks, in order, do not hold what they should.
    pub(crate) fn condemn(&self, disk: u32, blocks: &[u64]) -> JournalResult<()> {
        self.check_running()?;
        let damaged: Vec<(u64, Sum)> = blocks.iter().map(|block| (*block, Sum::DAMAGED)).collect();
        let mut sums = lock(&self.sums);
        let kept = sums.keep(&self.volume, disk, &damaged).and_then(|()| self.volume.sync(&name_of(disk)));
        kept.map_err(|error| self.stop(error))
    }

    /// Makes all sums of a disk durable.
    pub(super) fn sync_sums(&self, disk: u32) -> JournalResult<()> {
        let mut sums = lock(&self.sums);
        if sums.table(&self.volume, disk)? == Table::Missing {
            return Ok(());
        }
        self.volume.sync(&name_of(disk)).map_err(|error| self.stop(error))
    }

    /// Judges a block that another thread may be writing: nobody does while its sum is known and the tables are locked.
    /// A block that looked wrong is read once more then.
    pub(crate) fn judge_at_rest<E: From<super::JournalError>>(
        &self,
        disk: u32,
        block: u64,
        read: impl FnOnce() -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Verdict, E> {
        let mut sums = lock(&self.sums);
        let known = self.read_sums(&mut sums, disk, block, 1)?;
        let sum = known.first().copied().unwrap_or(Sum::UNKNOWN);
        if sum == Sum::UNKNOWN {
            return Ok(Verdict::Unknown);
        }
        Ok(read()?.map_or(Verdict::Unknown, |content| sum.judge(&content)))
    }

    /// Nothing is known of the disks any more. The caller changes the manifest with what this gives, before anything else.
    pub(super) fn next_sums_number(&self) -> u64 {
        let mut state = self.state();
        state.counter_given += 1;
        state.counter_given
    }

    /// Checks the pages of all tables and gives their number: `damaged` is told file, offset and what is wrong.
    pub(super) fn scrub_sums(&self, mut damaged: impl FnMut(String, u64, String)) -> JournalResult<u64> {
        let sizes: Vec<u64> = self.state().manifest.disks.iter().map(|disk| disk.size).collect();
        let mut tables = 0;
        for (disk, size) in (0..).zip(sizes) {
            tables += u64::from(lock(&self.sums).table(&self.volume, disk)? != Table::Missing);
            for number in 0..size.div_ceil(BLOCK_BYTES).div_ceil(SUMS_PER_PAGE) {
                match lock(&self.sums).page(&self.volume, disk, number)? {
                    Found::Right(_) | Found::Missing => {}
                    Found::Damaged => {
                        let what =
                            "a page of block sums is damaged: its blocks are unknown until they are written".to_owned();
                        damaged(self.volume.describe(&name_of(disk)), offset_of(number), what);
                    }
                }
            }
        }
        Ok(tables)
    }
}
