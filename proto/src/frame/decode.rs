//! From a record to checked extents. Everything a peer or a damaged journal could put here ends in an error.

use bytes::Bytes;

use super::FrameError;
use super::delta::{ranges as delta_ranges, unlay};
use super::encode::{RawContent, RawExtent};
use crate::ids::DiskIndex;
use crate::limits::{
    DATA_SECTORS_MAX, DISK_SECTORS_MAX, FRAME_EXTENTS_MAX, FRAME_RAW_BYTES_MAX, RANGE_SECTORS_MAX, SECTOR_BYTES,
};
use crate::record::{Record, RecordKind};
use crate::replication::{Content, Encoding, Extent, FrameHeader};

/// Reads and validates the header of a frame without decoding its payload: what an index over a journal needs.
///
/// Afterwards every extent has a known content and a legal length and place, and `raw_length` is the sum of the
/// data extents and within its bound.
pub fn parse_header(record: &Record) -> Result<FrameHeader, FrameError> {
    if record.kind != RecordKind::Frame {
        return Err(FrameError::Kind { found: record.kind });
    }
    let header: FrameHeader = record.header_as()?;
    check_header(&header)?;
    Ok(header)
}

fn check_header(header: &FrameHeader) -> Result<(), FrameError> {
    let refused = |what: String| Err(FrameError::Header { what });
    let count = header.extents.len();
    if count == 0 || count > FRAME_EXTENTS_MAX {
        return refused(format!("{count} extents, 1 to {FRAME_EXTENTS_MAX} are allowed"));
    }
    if Encoding::try_from(header.encoding).is_err() {
        return refused(format!("unknown encoding {}", header.encoding));
    }
    let mut data_bytes = 0;
    for extent in &header.extents {
        check_extent(extent)?;
        data_bytes += extent_bytes(extent);
    }
    if data_bytes != header.raw_length as usize {
        return refused(format!("its extents hold {data_bytes} bytes, it declares {}", header.raw_length));
    }
    if header.packed_length > header.raw_length {
        return refused(format!("{} bytes would be packed into {}", header.raw_length, header.packed_length));
    }
    if header.base_set == 0 && header.extents.iter().any(|extent| extent.is_delta) {
        return refused("it has deltas, and does not say of which set their bases are".to_owned());
    }
    if data_bytes > FRAME_RAW_BYTES_MAX {
        return refused(format!("{data_bytes} bytes of data, {FRAME_RAW_BYTES_MAX} are allowed"));
    }
    Ok(())
}

fn check_extent(extent: &Extent) -> Result<(), FrameError> {
    let disk = DiskIndex(extent.disk);
    let refused = |what: String| Err(FrameError::Extent { disk, sector: extent.sector, what });
    if !disk.is_possible() {
        return refused("no group has a disk of this index".to_owned());
    }
    let Ok(content) = Content::try_from(extent.content) else {
        return refused(format!("unknown content {}", extent.content));
    };
    let max = if content == Content::Data { DATA_SECTORS_MAX } else { RANGE_SECTORS_MAX };
    if extent.sectors == 0 || extent.sectors > max {
        return refused(format!("{} sectors, 1 to {max} are allowed", extent.sectors));
    }
    if extent.sector.checked_add(u64::from(extent.sectors)).is_none_or(|end| end > DISK_SECTORS_MAX) {
        return refused("it ends beyond the largest disk".to_owned());
    }
    if content != Content::Data && extent.crc != 0 {
        return refused("it has a CRC but no data".to_owned());
    }
    if content != Content::Data && extent.is_delta {
        return refused("it is a delta but has no data".to_owned());
    }
    Ok(())
}

/// Bytes that an extent has in the raw payload. Checked extents only: at most 1 MiB.
pub(super) fn extent_bytes(extent: &Extent) -> usize {
    let has_data = extent.content == i32::from(Content::Data);
    if has_data { extent.sectors as usize * SECTOR_BYTES as usize } else { 0 }
}

/// Decodes frames; reusing one keeps its zstd context.
#[derive(Default)]
pub struct Decoder {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decoder {
    /// A decoder; its zstd context is made when first needed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Validates the header, decodes the payload into a buffer of the declared and bounded size, and checks the CRC
    /// of every data extent. A raw payload is not copied.
    ///
    /// Refuses deltas: what is stored has none.
    pub fn decode(&mut self, record: &Record) -> Result<DecodedFrame, FrameError> {
        let header = parse_header(record)?;
        if header.extents.iter().any(|extent| extent.is_delta) {
            return Err(FrameError::Header { what: "it has deltas, where content has to be whole".to_owned() });
        }
        let raw = self.payload(record, &header)?;
        let raw_length = header.raw_length as usize;
        let frame = DecodedFrame { header, raw };
        // A lone extent that is sent as it is has the CRC of the payload, which was computed when the record was parsed.
        let known = match (&frame.header.extents[..], frame.header.encoding()) {
            ([lone], Encoding::Raw) if raw_length > 0 => record.payload_crc().map(|crc| (lone, crc)),
            _ => None,
        };
        match known {
            Some((extent, found)) => compare(extent, found)?,
            None => frame.check_content()?,
        }
        Ok(frame)
    }

    /// The same of a frame with deltas, laid over their bases: the content of [`delta_ranges`], one after the other.
    ///
    /// # Errors
    /// [`FrameError::Base`] where the bases are not what the source took them for.
    pub fn decode_over(&mut self, record: &Record, base: &[u8]) -> Result<DecodedFrame, FrameError> {
        let mut header = parse_header(record)?;
        let mut raw = Vec::from(self.payload(record, &header)?);
        if !unlay(&header, &mut raw, base) {
            let (disk, sector, _) = delta_ranges(&header).next().unwrap_or_default();
            return Err(FrameError::Base { disk: DiskIndex(disk), sector });
        }
        header.extents.iter_mut().for_each(|extent| extent.is_delta = false);
        (header.base_set, header.base_crc) = (0, 0);
        let frame = DecodedFrame { header, raw: raw.into() };
        frame.check_content()?;
        Ok(frame)
    }

    /// The payload of a frame, decompressed, as long as its header declares.
    fn payload(&mut self, record: &Record, header: &FrameHeader) -> Result<Bytes, FrameError> {
        let raw_length = header.raw_length as usize;
        let raw = match header.encoding() {
            Encoding::Raw => record.payload.clone(),
            Encoding::Zstd => self.decompress(&record.payload, raw_length)?,
        };
        if raw.len() != raw_length {
            let what = format!("it holds {} bytes, the header declares {raw_length}", raw.len());
            return Err(FrameError::Payload { what });
        }
        Ok(raw)
    }

    pub(super) fn decompress(&mut self, payload: &[u8], raw_length: usize) -> Result<Bytes, FrameError> {
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(
                zstd::bulk::Decompressor::new().map_err(|error| FrameError::Context { what: error.to_string() })?,
            ),
        };
        let mut raw = Vec::with_capacity(raw_length);
        zstd.decompress_to_buffer(payload, &mut raw)
            .map_err(|error| FrameError::Payload { what: error.to_string() })?;
        Ok(raw.into())
    }
}

/// A frame whose header is valid and whose content has the CRCs of its capture.
#[derive(Debug, Clone)]
pub struct DecodedFrame {
    /// The header, validated.
    pub header: FrameHeader,
    /// The data extents back to back.
    pub raw: Bytes,
}

impl DecodedFrame {
    /// The extents in order, data extents with their bytes (shared, not copied).
    pub fn extents(&self) -> impl Iterator<Item = (&Extent, Option<Bytes>)> {
        let mut at = 0;
        self.header.extents.iter().map(move |extent| {
            let len = extent_bytes(extent);
            at += len;
            (extent, (len > 0).then(|| self.raw.slice(at - len..at)))
        })
    }

    /// The extents as an encoder takes them, with the CRCs of their capture.
    #[must_use]
    pub fn to_raw(&self) -> Vec<RawExtent> {
        let raw = |(extent, bytes): (&Extent, Option<Bytes>)| {
            let content = match bytes {
                Some(bytes) => RawContent::Data { bytes, crc: extent.crc },
                None if extent.content == i32::from(Content::Zero) => RawContent::Zero { sectors: extent.sectors },
                None => RawContent::Unreadable { sectors: extent.sectors },
            };
            RawExtent { disk: DiskIndex(extent.disk), sector: extent.sector, content }
        };
        self.extents().map(raw).collect()
    }

    /// Sectors of all extents, ranges included.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.header.extents.iter().map(|extent| u64::from(extent.sectors)).sum()
    }

    /// Refuses extents that lie beyond the disks of their group.
    pub fn check_disks(&self, disk_bytes: &[u64]) -> Result<(), FrameError> {
        for extent in &self.header.extents {
            let disk = DiskIndex(extent.disk);
            let refused = |what: &str| Err(FrameError::Extent { disk, sector: extent.sector, what: what.to_owned() });
            let Some(bytes) = disk_bytes.get(disk.position()) else { return refused("the group has no such disk") };
            if extent.sector + u64::from(extent.sectors) > bytes / SECTOR_BYTES {
                return refused("it ends beyond the end of the disk");
            }
        }
        Ok(())
    }

    fn check_content(&self) -> Result<(), FrameError> {
        for (extent, data) in self.extents() {
            compare(extent, data.map_or(0, |bytes| crc32fast::hash(&bytes)))?;
        }
        Ok(())
    }
}

/// Whether content has the CRC of its capture.
fn compare(extent: &Extent, found: u32) -> Result<(), FrameError> {
    if found == extent.crc {
        return Ok(());
    }
    let (disk, sector, expected) = (DiskIndex(extent.disk), extent.sector, extent.crc);
    Err(FrameError::ExtentCrc { disk, sector, expected, found })
}
