//! From extents to an encoded frame: gathers, checks each extent's CRC once more, compresses where it pays.

use bytes::{Bytes, BytesMut};

use super::FrameError;
use super::decode::Decoder;
use super::delta::{Known, lay};
use super::sample;
use crate::ids::DiskIndex;
use crate::limits::{
    DATA_SECTORS_MAX, DISK_SECTORS_MAX, FRAME_EXTENTS_MAX, FRAME_RAW_BYTES_MAX, RANGE_SECTORS_MAX, SECTOR_BYTES,
};
use crate::record::{Record, RecordKind};
use crate::replication::{Content, Encoding, Extent, FrameHeader};

/// A range of a disk and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawExtent {
    /// Which disk of the group.
    pub disk: DiskIndex,
    /// First sector.
    pub sector: u64,
    /// What the range holds; it tells the length.
    pub content: RawContent,
}

/// Content of an extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawContent {
    /// Bytes, a whole number of sectors, at most 1 MiB.
    Data {
        /// The bytes, shared with whoever captured them.
        bytes: Bytes,
        /// CRC-32 of the bytes as of their capture.
        crc: u32,
    },
    /// Zeroes.
    Zero {
        /// Sectors, at most 2^21.
        sectors: u32,
    },
    /// What the source can't read: the target keeps its old content.
    Unreadable {
        /// Sectors, at most 2^21.
        sectors: u32,
    },
}

impl RawExtent {
    /// Sectors of the extent.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        match &self.content {
            RawContent::Data { bytes, .. } => bytes.len() as u64 / SECTOR_BYTES,
            RawContent::Zero { sectors } | RawContent::Unreadable { sectors } => u64::from(*sectors),
        }
    }

    /// Bytes that the extent adds to a payload before compression.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        match &self.content {
            RawContent::Data { bytes, .. } => bytes.len(),
            RawContent::Zero { .. } | RawContent::Unreadable { .. } => 0,
        }
    }

    fn refused(&self, what: impl Into<String>) -> FrameError {
        FrameError::Extent { disk: self.disk, sector: self.sector, what: what.into() }
    }

    fn check(&self) -> Result<(), FrameError> {
        if !self.disk.is_possible() {
            return Err(self.refused("no group has a disk of this index"));
        }
        let max = match &self.content {
            RawContent::Data { bytes, .. } if !(bytes.len() as u64).is_multiple_of(SECTOR_BYTES) => {
                return Err(self.refused(format!("{} bytes are not whole sectors", bytes.len())));
            }
            RawContent::Data { .. } => DATA_SECTORS_MAX,
            RawContent::Zero { .. } | RawContent::Unreadable { .. } => RANGE_SECTORS_MAX,
        };
        let sectors = self.sectors();
        if sectors == 0 || sectors > u64::from(max) {
            return Err(self.refused(format!("{sectors} sectors, 1 to {max} are allowed")));
        }
        match self.sector.checked_add(sectors) {
            Some(end) if end <= DISK_SECTORS_MAX => Ok(()),
            _ => Err(self.refused("it ends beyond the largest disk")),
        }
    }

    /// The extent as it stands in a frame header, its CRC compared with the bytes.
    fn describe(&self) -> Result<Extent, FrameError> {
        self.check()?;
        let (content, crc) = match &self.content {
            RawContent::Data { bytes, crc } => {
                let found = crc32fast::hash(bytes);
                if found != *crc {
                    let (disk, sector, expected) = (self.disk, self.sector, *crc);
                    return Err(FrameError::ExtentCrc { disk, sector, expected, found });
                }
                (Content::Data, *crc)
            }
            RawContent::Zero { .. } => (Content::Zero, 0),
            RawContent::Unreadable { .. } => (Content::Unreadable, 0),
        };
        Ok(Extent {
            disk: self.disk.0,
            sector: self.sector,
            sectors: u32::try_from(self.sectors()).expect("checked against the bounds"),
            crc,
            content: content.into(),
            is_delta: false,
        })
    }
}

/// How a payload may be encoded. The encoder still sends raw what does not shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    Off,
    /// zstd at this level.
    Zstd(i32),
}

/// A frame ready to send: `payload` follows `head` as it is.
#[derive(Debug, Clone)]
pub struct EncodedFrame {
    /// Prefix and header of the record.
    pub head: Bytes,
    /// Payload of the record; the captured memory itself where that was possible.
    pub payload: Bytes,
    /// Bytes of data before compression.
    pub raw_bytes: u64,
    /// Sectors of all extents, ranges included.
    pub sectors: u64,
    /// Whether the payload is compressed.
    pub(super) is_zstd: bool,
}

impl EncodedFrame {
    fn of(header: &FrameHeader, payload: Bytes, sum: u32, extents: &[RawExtent]) -> Self {
        let head = Record::encode_head_summed(RecordKind::Frame, header, &payload, sum);
        let sectors = extents.iter().map(RawExtent::sectors).sum();
        let is_zstd = header.encoding() == Encoding::Zstd;
        Self { head, payload, raw_bytes: u64::from(header.raw_length), sectors, is_zstd }
    }

    /// The frame as a record, as if it had arrived.
    #[must_use]
    pub fn to_record(&self) -> Record {
        let bytes = Bytes::from([&self.head[..], &self.payload[..]].concat());
        Record::parse(&bytes).expect("what was just encoded is a record").0
    }

    /// Bytes that the frame takes on the wire and in a journal.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        (self.head.len() + self.payload.len()) as u64
    }
}

/// Encodes frames. Reusing one keeps its zstd context and buffers: fresh contexts cost a third of the throughput.
#[derive(Default)]
pub struct Encoder {
    zstd: Option<Zstd>,
    gathered: BytesMut,
    compressed: Vec<u8>,
    /// Opens what deltas are laid over.
    pub(super) decoder: Decoder,
}

struct Zstd {
    context: zstd::bulk::Compressor<'static>,
    level: i32,
}

impl Encoder {
    /// An encoder; its zstd context is made when first needed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes extents as one frame of part `part` of set `number` (0 for bulk).
    ///
    /// Refuses extents beyond the bounds of a frame, and content that no longer has the CRC it was captured with.
    pub fn encode(
        &mut self,
        number: u64,
        part: u32,
        extents: &[RawExtent],
        level: Compression,
    ) -> Result<EncodedFrame, FrameError> {
        Ok(self.encode_frame(number, part, extents, level, &Known::default())?.0)
    }

    /// The same, content as deltas over what is known where that pays. Says which extents are deltas.
    pub(super) fn encode_frame(
        &mut self,
        number: u64,
        part: u32,
        extents: &[RawExtent],
        level: Compression,
        known: &Known,
    ) -> Result<(EncodedFrame, Vec<usize>), FrameError> {
        if extents.is_empty() || extents.len() > FRAME_EXTENTS_MAX {
            let what = format!("{} extents, 1 to {FRAME_EXTENTS_MAX} are allowed", extents.len());
            return Err(FrameError::Header { what });
        }
        let raw_len: usize = extents.iter().map(RawExtent::data_bytes).sum();
        if raw_len > FRAME_RAW_BYTES_MAX {
            let what = format!("{raw_len} bytes of data, {FRAME_RAW_BYTES_MAX} are allowed");
            return Err(FrameError::Header { what });
        }
        let mut described = extents.iter().map(RawExtent::describe).collect::<Result<Vec<_>, _>>()?;
        if let Some(laid) = lay(extents, raw_len, known)
            && let Some(payload) = self.compress(&laid.raw, level)?
        {
            laid.deltas.iter().for_each(|index| described[*index].is_delta = true);
            let header = FrameHeader {
                number,
                part,
                encoding: Encoding::Zstd.into(),
                raw_length: raw_len as u32,
                extents: described,
                packed_length: 0,
                base_set: laid.base_set,
                base_crc: laid.base_crc,
            };
            let sum = crc32fast::hash(&payload);
            return Ok((EncodedFrame::of(&header, payload, sum, extents), laid.deltas));
        }
        let raw = self.gather(extents, raw_len);
        let (encoding, payload, packed) = match self.compress(&raw, level)? {
            Some(compressed) => (Encoding::Zstd, compressed, 0),
            None if level != Compression::Off => (Encoding::Raw, raw, raw_len),
            // What a catching-up sends is part of no point.
            None if number == 0 => (Encoding::Raw, raw, 0),
            None => {
                let packed = self.estimate(&raw, described.iter().find(|extent| extent.crc != 0))?;
                (Encoding::Raw, raw, packed)
            }
        };
        // Content that goes as it was captured was summed a moment ago.
        let sum = match (&described[..], encoding) {
            ([lone], Encoding::Raw) if !payload.is_empty() => lone.crc,
            _ => crc32fast::hash(&payload),
        };
        let header = FrameHeader {
            number,
            part,
            encoding: encoding.into(),
            raw_length: u32::try_from(raw_len).expect("checked against the bounds"),
            extents: described,
            packed_length: u32::try_from(packed).expect("at most the raw length"),
            base_set: 0,
            base_crc: 0,
        };
        Ok((EncodedFrame::of(&header, payload, sum, extents), Vec::new()))
    }

    /// The data extents back to back: the memory of a lone one itself, a copy of several.
    fn gather(&mut self, extents: &[RawExtent], raw_len: usize) -> Bytes {
        let mut data = extents.iter().filter_map(|extent| match &extent.content {
            RawContent::Data { bytes, .. } => Some(bytes),
            RawContent::Zero { .. } | RawContent::Unreadable { .. } => None,
        });
        let Some(first) = data.next() else { return Bytes::new() };
        if first.len() == raw_len {
            return first.clone();
        }
        self.gathered.reserve(raw_len);
        self.gathered.extend_from_slice(first);
        data.for_each(|bytes| self.gathered.extend_from_slice(bytes));
        self.gathered.split().freeze()
    }

    /// The content compressed, or `None` where that saves less than a sixteenth.
    pub(super) fn compress(&mut self, raw: &[u8], level: Compression) -> Result<Option<Bytes>, FrameError> {
        let Compression::Zstd(level) = level else { return Ok(None) };
        if raw.is_empty() {
            return Ok(None);
        }
        // A buffer without room for more than is worth sending: zstd gives up when it is full.
        let worth = raw.len() - raw.len().div_ceil(16);
        let len = self.pack(raw, level, worth)?;
        Ok(len.map(|len| Bytes::copy_from_slice(&self.compressed[..len])))
    }

    /// About how many bytes zstd would leave of content that is sent raw, by samples of it; at least 1 where there is any.
    fn estimate(&mut self, raw: &Bytes, first: Option<&Extent>) -> Result<usize, FrameError> {
        let seed = first.map_or(0, |extent| extent.crc as usize);
        let (mut sampled, mut packed) = (0, 0);
        for range in sample::ranges(raw.len(), seed) {
            let len = range.len();
            sampled += len;
            packed += self.pack(&raw[range], sample::LEVEL, len)?.unwrap_or(len);
        }
        Ok((raw.len() * packed).checked_div(sampled).map_or(0, |packed| packed.max(1)))
    }

    /// Compresses into the buffer, and gives the bytes in it, or `None` where `room` is not enough.
    fn pack(&mut self, raw: &[u8], level: i32, room: usize) -> Result<Option<usize>, FrameError> {
        let context = |error: std::io::Error| FrameError::Context { what: error.to_string() };
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(Zstd { context: zstd::bulk::Compressor::new(level).map_err(context)?, level }),
        };
        if zstd.level != level {
            zstd.context.set_compression_level(level).map_err(context)?;
            zstd.level = level;
        }
        if self.compressed.len() < room {
            self.compressed.resize(room, 0);
        }
        Ok(zstd.context.compress_to_buffer(raw, &mut self.compressed[..room]).ok())
    }
}
