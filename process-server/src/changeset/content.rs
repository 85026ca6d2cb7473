//! The content of one extent of a change set: bytes in memory or in the spool, zeroes, or "still on the protected disk".
//!
//! Captured bytes are shared with the buffer the guest's write arrived in and carry the CRC that was taken there
//! (P6). A slice of a buffer keeps the CRC of the whole; the CRC of the slice is computed only after the whole has
//! been checked again, so no byte ever gets a fresh checksum without proof of the old one.

use blockio::{Slice, crc32};
use bytes::Bytes;
use proto::frame::RawContent;

use super::spooled::Spooled;

/// Bytes per sector, the unit of change sets.
const SECTOR: u64 = blockio::SECTOR;

/// What an extent of a change set holds. Lengths are those of the extent, in sectors.
#[derive(Debug, Clone)]
pub enum Content {
    /// The bytes, in memory.
    Captured(Captured),
    /// The bytes, in the spool.
    Spooled(Spooled),
    /// All bytes are zero.
    Zero,
    /// To be read from the protected disk when it is sent; a write to it copies the old content first.
    OnDisk,
    /// The protected disk could not read it before it was overwritten; the set is not a point (S17).
    Unreadable,
}

/// A run of sectors inside a checksummed buffer.
#[derive(Debug, Clone)]
pub struct Captured {
    whole: Bytes,
    crc: u32,
    first: u32,
    sectors: u32,
}

impl Captured {
    /// Takes a whole buffer and its CRC-32. The buffer's length is a multiple of the sector.
    #[must_use]
    pub fn new(whole: Bytes, crc: u32) -> Self {
        assert!(whole.len().is_multiple_of(SECTOR as usize), "captured buffers are whole sectors");
        let sectors =
            u32::try_from(whole.len() as u64 / SECTOR).expect("a write is admitted in pieces of at most 1 MiB");
        Self { whole, crc, first: 0, sectors }
    }

    /// Takes a buffer and computes its CRC-32.
    #[must_use]
    pub fn checksummed(whole: Bytes) -> Self {
        let crc = crc32(&whole);
        Self::new(whole, crc)
    }

    /// Bytes of memory that the underlying buffer pins, however small the slice is.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        self.whole.len() as u64
    }

    /// The bytes with their CRC-32, or `None` when the buffer no longer matches the CRC it was captured with.
    #[must_use]
    pub fn to_raw(&self) -> Option<RawContent> {
        let whole_sectors = self.whole.len() as u64 / SECTOR;
        if u64::from(self.sectors) == whole_sectors {
            return Some(RawContent::Data { bytes: self.whole.clone(), crc: self.crc });
        }
        if crc32(&self.whole) != self.crc {
            return None;
        }
        let from = self.first as usize * SECTOR as usize;
        let bytes = self.whole.slice(from..from + self.sectors as usize * SECTOR as usize);
        let crc = crc32(&bytes);
        Some(RawContent::Data { bytes, crc })
    }
}

impl Slice for Content {
    fn slice(&self, from: u64, len: u64) -> Self {
        match self {
            Self::Captured(captured) => Self::Captured(captured.slice(from, len)),
            Self::Spooled(spooled) => Self::Spooled(spooled.slice(from, len)),
            Self::Zero => Self::Zero,
            Self::OnDisk => Self::OnDisk,
            Self::Unreadable => Self::Unreadable,
        }
    }
}

impl Slice for Captured {
    fn slice(&self, from: u64, len: u64) -> Self {
        assert!(from + len <= u64::from(self.sectors), "a slice lies inside what it is a slice of");
        // Both fit: they are at most `sectors`, which is a u32.
        Self { whole: self.whole.clone(), crc: self.crc, first: self.first + from as u32, sectors: len as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sectors(values: &[u8]) -> Bytes {
        values.iter().flat_map(|value| [*value; 512]).collect::<Vec<u8>>().into()
    }

    #[test]
    fn a_whole_buffer_keeps_the_checksum_it_was_captured_with() {
        let captured = Captured::new(sectors(&[1, 2]), 0xdead_beef);
        let Some(RawContent::Data { crc, .. }) = captured.to_raw() else { panic!("data") };
        assert_eq!(crc, 0xdead_beef);
    }

    #[test]
    fn a_slice_of_a_slice_has_its_own_checksum() {
        let captured = Captured::checksummed(sectors(&[1, 2, 3, 4]));
        let slice = captured.slice(1, 3).slice(1, 1);
        let Some(RawContent::Data { bytes, crc }) = slice.to_raw() else { panic!("data") };
        assert_eq!(bytes, sectors(&[3]));
        assert_eq!(crc, crc32(&sectors(&[3])));
        assert_eq!(slice.pinned(), 2048);
    }

    #[test]
    fn a_slice_of_a_buffer_that_changed_is_refused() {
        let captured = Captured::new(sectors(&[1, 2]), 0xdead_beef);
        assert!(captured.slice(0, 1).to_raw().is_none());
    }
}
