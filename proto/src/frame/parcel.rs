//! Parcels: what was sent of some blocks, compressed, kept by the source so that their next content can go as a delta.
//!
//! A parcel has up to 128 KiB of content and stands for itself: it is never a delta. It is made where a frame is encoded,
//! since the content is at hand there, and holds what was sent and nothing else. A frame that went out whole, compressed and of
//! no more than that is its own parcel: its payload is shared. Whether the target has it by now, and still has it, is for
//! others to know (the process-server's `group/recent.rs`). This says what lies where in a parcel, makes and opens it.

use std::sync::Arc;

use bytes::Bytes;

use super::FrameError;
use super::decode::Decoder;
use super::delta::{BASE_BYTES, BASE_SECTORS, Bases, Known};
use super::encode::{Compression, EncodedFrame, Encoder, RawContent, RawExtent};
use crate::ids::DiskIndex;
use crate::limits::{FRAME_GATHER_BYTES, SECTOR_BYTES};

/// Content of one parcel at most, bytes: as much as is gathered in a frame. More would have to be opened for a block of it.
pub const PARCEL_BYTES_MAX: usize = FRAME_GATHER_BYTES;
/// Parcels are compressed at the fastest level: most are never opened.
const LEVEL: i32 = 1;
/// Longer writes are copies of files, not pages that are changed, unless they were changed pages this time.
const PAGES_BYTES_MAX: usize = 64 << 10;
/// Of a parcel at most so many bytes are opened for each byte that may become a delta: a page of 8 KiB opens 128 KiB. zstd opens
/// three times as fast as it compresses (1,310 and 432 MB/s of PostgreSQL's WAL), so the worst delta costs about five times as
/// much as its content whole.
const OPENED_PER_BYTE_MAX: usize = 16;

/// Which parcels are made of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nothing,
    /// Of pages that guests write, even of what does not shrink: they may be encrypted, but they are written again.
    Pages,
    /// Of everything that shrinks. What does not is mostly files that are compressed themselves, which are not changed in place,
    /// and would take the room of several times as many pages.
    Shrinking,
}

/// A run of blocks in a parcel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParcelRun {
    /// Which disk of the group.
    pub disk: DiskIndex,
    /// First block.
    pub block: u64,
    /// How many.
    pub blocks: u32,
    /// Where the first one's content begins in that of the parcel, bytes.
    pub at: u32,
}

/// Content of blocks as it was sent, compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    packed: Bytes,
    raw_len: usize,
    /// CRC-32 of the content: a parcel that is damaged in memory is as good as none.
    crc: u32,
    is_zstd: bool,
    runs: Vec<ParcelRun>,
}

impl Parcel {
    /// The blocks in it.
    #[must_use]
    pub fn runs(&self) -> &[ParcelRun] {
        &self.runs
    }

    /// Bytes of memory of its content, as it is kept.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        self.packed.len()
    }

    /// Bytes of its content.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.raw_len
    }

    /// Its content, or `None` where it is not what was put in.
    #[must_use]
    pub fn open(&self, decoder: &mut Decoder) -> Option<Bytes> {
        let raw = match self.is_zstd {
            true => decoder.decompress(&self.packed, self.raw_len).ok()?,
            false => self.packed.clone(),
        };
        (crc32fast::hash(&raw) == self.crc).then_some(raw)
    }
}

/// Frames that were encoded together.
#[derive(Debug, Default)]
pub struct EncodedBatch {
    /// The frames, in order.
    pub frames: Vec<EncodedFrame>,
    /// What is kept of them.
    pub parcels: Vec<Arc<Parcel>>,
}

impl Encoder {
    /// Encodes frames of one part, content as deltas where that pays: only with compression, and only over what the target is
    /// known to have durably. Makes parcels of what goes out, with compression too.
    pub fn encode_batch(
        &mut self,
        (number, part): (u64, u32),
        frames: &[Vec<RawExtent>],
        level: Compression,
        bases: &Bases,
        keep: Keep,
    ) -> Result<EncodedBatch, FrameError> {
        let (known, keep) = match level {
            Compression::Off => (Known::default(), Keep::Nothing),
            Compression::Zstd(_) => (self.open_bases(bases, frames), keep),
        };
        let mut batch = EncodedBatch::default();
        for extents in frames {
            let extents = known.split(extents);
            let (frame, deltas) = self.encode_frame(number, part, &extents, level, &known)?;
            if keep != Keep::Nothing {
                self.keep(&extents, &frame, &deltas, keep, &mut batch.parcels)?;
            }
            batch.frames.push(frame);
        }
        Ok(batch)
    }

    /// Opens the parcels that are worth it for these frames, each once.
    fn open_bases(&mut self, bases: &Bases, frames: &[Vec<RawExtent>]) -> Known {
        let mut known = Known::default();
        for (parcel, blocks) in bases.by_parcel(frames) {
            let is_worth = parcel.raw_len <= blocks.len() * BASE_BYTES * OPENED_PER_BYTE_MAX;
            if let Some(content) = is_worth.then(|| parcel.open(&mut self.decoder)).flatten() {
                known.add(&content, blocks);
            }
        }
        known
    }

    /// Makes parcels of a frame.
    fn keep(
        &mut self,
        extents: &[RawExtent],
        frame: &EncodedFrame,
        deltas: &[usize],
        keep: Keep,
        parcels: &mut Vec<Arc<Parcel>>,
    ) -> Result<(), FrameError> {
        let is_kept = |index: usize, bytes: &Bytes| {
            keep == Keep::Shrinking || bytes.len() <= PAGES_BYTES_MAX || deltas.contains(&index)
        };
        let is_own_parcel = frame.is_zstd && deltas.is_empty() && frame.raw_bytes <= PARCEL_BYTES_MAX as u64;
        let (mut open, mut sum, mut at) = (Packing::default(), crc32fast::Hasher::new(), 0);
        for (index, extent) in extents.iter().enumerate() {
            let RawContent::Data { bytes, .. } = &extent.content else { continue };
            let first = extent.sector.div_ceil(BASE_SECTORS);
            let from = ((first * BASE_SECTORS - extent.sector) * SECTOR_BYTES) as usize;
            let blocks = bytes.get(from..).unwrap_or_default().chunks_exact(BASE_BYTES);
            if is_own_parcel {
                sum.update(bytes);
            }
            if is_kept(index, bytes) {
                for (block, content) in (first..).zip(blocks) {
                    if is_own_parcel {
                        open.refer((extent.disk, block), at + from + (block - first) as usize * BASE_BYTES);
                        continue;
                    }
                    if open.content.len() == PARCEL_BYTES_MAX {
                        parcels.extend(self.close(&mut open, keep)?);
                    }
                    open.put((extent.disk, block), content);
                }
            }
            at += bytes.len();
        }
        if is_own_parcel && !open.runs.is_empty() {
            let (packed, raw_len, crc, runs) = (frame.payload.clone(), at, sum.finalize(), open.runs);
            parcels.push(Arc::new(Parcel { packed, raw_len, crc, is_zstd: true, runs }));
        } else if !open.runs.is_empty() {
            parcels.extend(self.close(&mut open, keep)?);
        }
        Ok(())
    }

    /// Closes a parcel, and leaves the next one empty.
    fn close(&mut self, open: &mut Packing, keep: Keep) -> Result<Option<Arc<Parcel>>, FrameError> {
        let Packing { content, runs } = std::mem::take(open);
        let (packed, is_zstd) = match self.compress(&content, Compression::Zstd(LEVEL))? {
            Some(packed) => (packed, true),
            None if keep == Keep::Shrinking => return Ok(None),
            None => (Bytes::copy_from_slice(&content), false),
        };
        let crc = crc32fast::hash(&content);
        Ok(Some(Arc::new(Parcel { packed, raw_len: content.len(), crc, is_zstd, runs })))
    }
}

/// A parcel that is being filled.
#[derive(Default)]
struct Packing {
    content: Vec<u8>,
    runs: Vec<ParcelRun>,
}

impl Packing {
    fn put(&mut self, place: (DiskIndex, u64), content: &[u8]) {
        self.refer(place, self.content.len());
        self.content.extend_from_slice(content);
    }

    /// Notes that a block lies there.
    fn refer(&mut self, (disk, block): (DiskIndex, u64), at: usize) {
        let at = at as u32;
        match self.runs.last_mut() {
            Some(run)
                if (run.disk, run.block + u64::from(run.blocks)) == (disk, block)
                    && run.at + run.blocks * BASE_BYTES as u32 == at =>
            {
                run.blocks += 1;
            }
            _ => self.runs.push(ParcelRun { disk, block, blocks: 1, at }),
        }
    }
}
