//! Segments: files of records that are appended to by one process and scanned when a journal is opened.
//!
//! A segment is either *closed* (the manifest says how many of its bytes count, and all of those must be right) or it
//! is the last one of its process, whose unsynced tail may be torn: there the scan ends at the first bad record. A
//! commit record that claims a bad place as synced turns it from a torn tail into damage (REVIEW J4).
//! What the records mean is not known here.

use bytes::{Bytes, BytesMut};
use prost::Message;
use proto::limits::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES_MAX, RECORD_PREFIX_BYTES};
use proto::record::{MAGIC, Prefix, Record, RecordKind};

use super::error::{JournalError, JournalResult};
use super::header::{CommitHeader, SegmentHeader, SegmentId};
use super::limits::APPEND_BUFFER_BYTES;
use super::volume::{Volume, VolumeResult};

/// The end of a segment that this process writes.
#[derive(Debug)]
pub struct SegmentWriter {
    id: SegmentId,
    name: String,
    buffer: BytesMut,
    written: u64,
    synced: u64,
}

impl SegmentWriter {
    /// Makes the file; its head is the first record.
    pub fn create(volume: &impl Volume, id: SegmentId, head: &SegmentHeader) -> VolumeResult<Self> {
        let name = id.to_string();
        volume.create(&name)?;
        let mut writer = Self { id, name, buffer: BytesMut::new(), written: 0, synced: 0 };
        writer.append(volume, &Record::encode(RecordKind::SegmentHead, head, &[]))?;
        Ok(writer)
    }

    /// The segment.
    #[must_use]
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// Bytes appended, those in memory included.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Bytes known to be durable.
    #[must_use]
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Appends a record and says at which offset it stands. It can be read after the next [`SegmentWriter::flush`].
    pub fn append(&mut self, volume: &impl Volume, record: &[u8]) -> VolumeResult<u64> {
        let offset = self.len();
        self.buffer.extend_from_slice(record);
        if self.buffer.len() >= APPEND_BUFFER_BYTES {
            self.flush(volume)?;
        }
        Ok(offset)
    }

    /// Hands everything to the volume.
    pub fn flush(&mut self, volume: &impl Volume) -> VolumeResult<()> {
        if !self.buffer.is_empty() {
            volume.append(&self.name, &self.buffer)?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Makes everything durable.
    pub fn sync(&mut self, volume: &impl Volume) -> VolumeResult<()> {
        self.flush(volume)?;
        if self.synced < self.written {
            volume.sync(&self.name)?;
            self.synced = self.written;
        }
        Ok(())
    }
}

/// A record that a scan came across. Its payload is not read unless it has to be verified.
#[derive(Debug, Clone)]
pub struct Scanned {
    /// What it is.
    pub kind: RecordKind,
    /// Its protobuf header, whose CRC is right.
    pub header: Bytes,
    /// Where it begins.
    pub offset: u64,
    /// Bytes of the whole record.
    pub len: u64,
    /// Bytes of the payload, at its end.
    pub payload_len: u32,
}

/// What is known of a segment before it is scanned.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The segment.
    pub id: SegmentId,
    /// Identity of the journal.
    pub journal: &'a [u8],
    /// Bytes that count, where the manifest knows; else the tail may be torn.
    pub closed_bytes: Option<u64>,
}

/// Reads the records of a segment in order and gives the bytes that count. Payloads are verified where the manifest
/// does not vouch for the segment; those of a closed one are when they are used.
pub fn scan(
    volume: &impl Volume,
    expected: Expected<'_>,
    mut visit: impl FnMut(Scanned) -> Result<(), String>,
) -> JournalResult<u64> {
    let name = expected.id.to_string();
    let damaged = |offset, what| JournalError::Damaged { file: volume.describe(&name), offset, what };
    let file_bytes = volume.len(&name)?;
    let end = expected.closed_bytes.unwrap_or(file_bytes);
    if end > file_bytes {
        return Err(damaged(file_bytes, format!("the file ends here, but {end} bytes were synced")));
    }
    let mut reader = Reader::new(volume, &name, end);
    let verify = expected.closed_bytes.is_none();
    let mut offset = 0;
    while offset < end {
        let record = match reader.record(offset, verify)? {
            Ok(record) => record,
            Err(what) if expected.closed_bytes.is_some() => return Err(damaged(offset, what)),
            Err(what) => {
                let is_claimed = is_claimed(volume, &name, offset, file_bytes, expected.journal)?;
                // Content that rotted is found again, and named, by whoever needs it: the rest of the journal is right.
                if let (true, Ok(record)) = (is_claimed, reader.record(offset, false)?)
                    && matches!(record.kind, RecordKind::Frame | RecordKind::Undo)
                {
                    tracing::error!(file = volume.describe(&name), offset, "{what}, although it was synced");
                    offset += record.len;
                    visit(record).map_err(|what| damaged(offset, what))?;
                    continue;
                }
                if is_claimed {
                    return Err(damaged(offset, format!("{what}, although it was synced")));
                }
                tracing::info!(file = volume.describe(&name), offset, "an unsynced tail ends here: {what}");
                return Ok(offset);
            }
        };
        if offset == 0 {
            check_head(&record, expected).map_err(|what| damaged(0, what))?;
        }
        offset += record.len;
        let at = record.offset;
        visit(record).map_err(|what| damaged(at, what))?;
    }
    Ok(offset)
}

fn check_head(record: &Scanned, expected: Expected<'_>) -> Result<(), String> {
    let head = (record.kind == RecordKind::SegmentHead).then(|| SegmentHeader::decode(&record.header[..]));
    match head {
        Some(Ok(head)) if head.journal != expected.journal => Err("it belongs to another journal".to_owned()),
        Some(Ok(head)) if (head.generation, head.index) != (expected.id.generation, expected.id.index) => {
            Err(format!("it is segment {} of generation {}", head.index, head.generation))
        }
        Some(Ok(_)) => Ok(()),
        _ => Err("it does not begin with the head of a segment".to_owned()),
    }
}

/// Reads one record whole and checks it.
pub fn read_record(volume: &impl Volume, id: SegmentId, offset: u64, len: u64) -> JournalResult<Record> {
    let name = id.to_string();
    let damaged = |what| JournalError::Damaged { file: volume.describe(&name), offset, what };
    let bytes = usize::try_from(len).ok().filter(|len| *len <= RECORD_BYTES_MAX);
    let mut buffer = vec![0; bytes.ok_or_else(|| damaged(format!("a record of {len} bytes is too long")))?];
    volume.read_at(&name, offset, &mut buffer)?;
    let (record, used) = Record::parse(&buffer.into()).map_err(|error| damaged(error.to_string()))?;
    if used as u64 == len { Ok(record) } else { Err(damaged(format!("the record has {used} bytes instead of {len}"))) }
}

/// Reads the length of the record at `offset`, and its header, verified.
pub fn read_header(volume: &impl Volume, id: SegmentId, offset: u64, end: u64) -> JournalResult<Scanned> {
    let name = id.to_string();
    let found = Reader::new(volume, &name, end).record(offset, false)?;
    found.map_err(|what| JournalError::Damaged { file: volume.describe(&name), offset, what })
}

/// A window over a file, so that small records do not cost a system call each.
pub struct Reader<'a, V> {
    volume: &'a V,
    name: &'a str,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// Bytes that are read at least: most headers are shorter, and payloads are skipped.
const WINDOW_BYTES: usize = 4 << 10;

impl<'a, V: Volume> Reader<'a, V> {
    /// A reader of the first `end` bytes.
    pub fn new(volume: &'a V, name: &'a str, end: u64) -> Self {
        Self { volume, name, end, window: Vec::new(), window_at: 0 }
    }

    /// `len` bytes at `offset`, which are inside the file.
    fn bytes(&mut self, offset: u64, len: usize) -> VolumeResult<&[u8]> {
        let inside = offset >= self.window_at && offset + len as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let take = (self.end - offset).min(len.max(WINDOW_BYTES) as u64);
            self.window.resize(usize::try_from(take).unwrap_or(0), 0);
            self.volume.read_at(self.name, offset, &mut self.window)?;
            self.window_at = offset;
        }
        let from = (offset - self.window_at) as usize;
        Ok(&self.window[from..from + len])
    }

    /// The record at `offset`, or what is wrong with it.
    pub fn record(&mut self, offset: u64, verify_payload: bool) -> VolumeResult<Result<Scanned, String>> {
        let left = self.end.saturating_sub(offset);
        if left < RECORD_PREFIX_BYTES as u64 {
            return Ok(Err(format!("{left} bytes are too few for a record")));
        }
        let mut fixed = [0; RECORD_PREFIX_BYTES];
        fixed.copy_from_slice(self.bytes(offset, RECORD_PREFIX_BYTES)?);
        let prefix = match Prefix::parse(&fixed) {
            Ok(prefix) => prefix,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let len = prefix.record_len() as u64;
        if len > left {
            return Ok(Err(format!("a record of {len} bytes is cut short after {left}")));
        }
        let header_len = prefix.header_len as usize;
        let header = Bytes::copy_from_slice(self.bytes(offset + RECORD_PREFIX_BYTES as u64, header_len)?);
        if header_crc(&fixed, &header) != prefix.header_crc {
            return Ok(Err("the header of a record is damaged".to_owned()));
        }
        if verify_payload && prefix.payload_len > 0 {
            let at = offset + (RECORD_PREFIX_BYTES + header_len) as u64;
            if blockio::crc::crc32(self.bytes(at, prefix.payload_len as usize)?) != prefix.payload_crc {
                return Ok(Err("the payload of a record is damaged".to_owned()));
            }
        }
        Ok(Ok(Scanned { kind: prefix.kind, header, offset, len, payload_len: prefix.payload_len }))
    }
}

fn header_crc(fixed: &[u8; RECORD_PREFIX_BYTES], header: &[u8]) -> u32 {
    let (covered, _) = fixed.split_at(RECORD_PREFIX_BYTES - 4);
    let combined =
        blockio::crc::crc32_combine(blockio::crc::crc32(covered), blockio::crc::crc32(header), header.len() as u64);
    if header.is_empty() { blockio::crc::crc32(covered) } else { combined }
}

/// Whether a commit record behind `bad` says that the bytes at `bad` had been synced.
fn is_claimed(volume: &impl Volume, name: &str, bad: u64, end: u64, journal: &[u8]) -> VolumeResult<bool> {
    const LONGEST: usize = RECORD_PREFIX_BYTES + RECORD_HEADER_BYTES_MAX;
    let mut reader = Reader::new(volume, name, end);
    let mut at = bad + 1;
    while at + RECORD_PREFIX_BYTES as u64 <= end {
        let take = (end - at).min(LONGEST as u64) as usize;
        let window = reader.bytes(at, take)?;
        let Some(found) = window.windows(4).position(|four| four == MAGIC.to_le_bytes()) else {
            at += take as u64 - 3;
            continue;
        };
        at += found as u64;
        if let Ok(record) = reader.record(at, false)?
            && matches!(record.kind, RecordKind::Phase | RecordKind::Applied | RecordKind::BulkMark)
            && let Ok(commit) = CommitHeader::decode(&record.header[..])
            && commit.journal == journal
            && commit.synced_bytes > bad
        {
            return Ok(true);
        }
        at += 1;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::mem_volume::{Fuse, MemVolume};

    const JOURNAL: [u8; 16] = [9; 16];

    fn commit(synced_bytes: u64) -> Bytes {
        let header = CommitHeader { counter: 1, synced_bytes, applied: 0, journal: JOURNAL.to_vec(), other: None };
        Record::encode(RecordKind::Phase, &header, &[])
    }

    fn segment() -> (MemVolume, SegmentWriter) {
        let volume = MemVolume::new(1, Fuse::default());
        let head = SegmentHeader { journal: JOURNAL.to_vec(), generation: 0, index: 1, phase: 2 };
        let writer = SegmentWriter::create(&volume, SegmentId::redo(1), &head).unwrap();
        (volume, writer)
    }

    fn scanned(volume: &MemVolume, closed_bytes: Option<u64>) -> JournalResult<(usize, u64)> {
        let mut records = 0;
        let expected = Expected { id: SegmentId::redo(1), journal: &JOURNAL, closed_bytes };
        let bytes = scan(volume, expected, |_| {
            records += 1;
            Ok(())
        })?;
        Ok((records, bytes))
    }

    fn undo(payload: &[u8]) -> Bytes {
        Record::encode(RecordKind::Undo, &super::super::header::UndoHeader::default(), payload)
    }

    #[test]
    fn what_was_appended_is_scanned_in_order_and_read_back() {
        let (volume, mut writer) = segment();
        let at = writer.append(&volume, &undo(b"old")).unwrap();
        writer.append(&volume, &commit(0)).unwrap();
        writer.sync(&volume).unwrap();
        assert_eq!(scanned(&volume, None).unwrap(), (3, writer.len()));
        assert_eq!(scanned(&volume, Some(writer.len())).unwrap(), (3, writer.len()));
        let record = read_record(&volume, SegmentId::redo(1), at, undo(b"old").len() as u64).unwrap();
        assert_eq!(&record.payload[..], b"old");
    }

    #[test]
    fn a_torn_tail_ends_the_scan_without_an_error() {
        let (volume, mut writer) = segment();
        writer.sync(&volume).unwrap();
        let good = writer.len();
        writer.append(&volume, &undo(&[7; 5000])).unwrap();
        writer.flush(&volume).unwrap();
        for cut in [good + 1, good + 30, good + 4000] {
            volume.truncate("redo-00000001", cut);
            assert_eq!(scanned(&volume, None).unwrap(), (1, good));
        }
    }

    #[test]
    fn a_bad_record_that_a_later_commit_calls_synced_is_damage() {
        let (volume, mut writer) = segment();
        let bad = writer.append(&volume, &undo(&[7; 5000])).unwrap();
        writer.sync(&volume).unwrap();
        writer.append(&volume, &commit(writer.synced())).unwrap();
        writer.sync(&volume).unwrap();
        volume.flip("redo-00000001", bad + 21);
        match scanned(&volume, None) {
            Err(JournalError::Damaged { offset, .. }) => assert_eq!(offset, bad),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn content_that_rotted_does_not_hide_what_follows() {
        let (volume, mut writer) = segment();
        let bad = writer.append(&volume, &undo(&[7; 5000])).unwrap();
        writer.sync(&volume).unwrap();
        writer.append(&volume, &commit(writer.synced())).unwrap();
        writer.sync(&volume).unwrap();
        volume.flip("redo-00000001", bad + 1000);
        assert_eq!(scanned(&volume, None).unwrap(), (3, writer.len()));
    }

    #[test]
    fn a_commit_of_another_journal_inside_the_content_claims_nothing() {
        let (volume, mut writer) = segment();
        writer.sync(&volume).unwrap();
        let header = CommitHeader { counter: 1, synced_bytes: u64::MAX, applied: 0, journal: vec![1; 16], other: None };
        let forged = Record::encode(RecordKind::Phase, &header, &[]);
        let bad = writer.append(&volume, &undo(&forged)).unwrap();
        writer.flush(&volume).unwrap();
        volume.flip("redo-00000001", bad + 21);
        assert_eq!(scanned(&volume, None).unwrap(), (1, bad));
    }

    #[test]
    fn a_closed_segment_must_be_whole() {
        let (volume, mut writer) = segment();
        let bad = writer.append(&volume, &undo(b"x")).unwrap();
        writer.sync(&volume).unwrap();
        volume.truncate("redo-00000001", bad + 3);
        assert!(scanned(&volume, Some(writer.len())).unwrap_err().to_string().contains("redo-00000001"));
        volume.truncate("redo-00000001", bad);
        assert_eq!(scanned(&volume, Some(bad)).unwrap(), (1, bad));
    }

    #[test]
    fn a_segment_of_another_place_is_refused() {
        let (volume, mut writer) = segment();
        writer.sync(&volume).unwrap();
        let other = Expected { id: SegmentId::redo(1), journal: &[1; 16], closed_bytes: None };
        assert!(scan(&volume, other, |_| Ok(())).unwrap_err().to_string().contains("another journal"));
    }

    #[test]
    fn a_record_that_declares_too_much_is_refused_before_it_is_read() {
        let (volume, _) = segment();
        assert!(read_record(&volume, SegmentId::redo(1), 0, u64::MAX).is_err());
    }
}
