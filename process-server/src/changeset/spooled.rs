//! Content of a change set that lies in the spool: where, and which checksum it was captured with.
//!
//! A record is what one captured extent became when it was moved. The spool is read in whole records, so the CRC of the
//! capture is checked over all it was taken of before any part of it is used (P6).

use blockio::{SECTOR, Slice};

use super::content::Captured;

/// A captured buffer in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// First byte in the spool, a multiple of a sector.
    pub offset: u64,
    /// Bytes, whole sectors.
    pub bytes: u32,
    /// CRC-32 of all of them, as they were captured.
    pub crc: u32,
}

/// A run of sectors inside a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spooled {
    record: Record,
    first: u32,
    sectors: u32,
}

impl Spooled {
    /// All of a record.
    #[must_use]
    pub fn new(record: Record) -> Self {
        Self { record, first: 0, sectors: record.bytes / SECTOR as u32 }
    }

    /// The record that it lies in.
    #[must_use]
    pub fn record(&self) -> Record {
        self.record
    }

    /// The content, from the whole record.
    #[must_use]
    pub fn restore(&self, record: &Captured) -> Captured {
        assert_eq!(record.pinned(), u64::from(self.record.bytes), "a record is read as a whole");
        record.slice(u64::from(self.first), u64::from(self.sectors))
    }
}

impl Slice for Spooled {
    fn slice(&self, from: u64, len: u64) -> Self {
        assert!(from + len <= u64::from(self.sectors), "a slice lies inside what it is a slice of");
        // Both fit: they are at most `sectors`, which is a u32.
        Self { record: self.record, first: self.first + from as u32, sectors: len as u32 }
    }
}

#[cfg(test)]
mod tests {
    use blockio::crc32;
    use bytes::Bytes;
    use proto::frame::RawContent;

    use super::*;

    #[test]
    fn a_slice_is_restored_from_the_whole_record_and_only_where_that_is_intact() {
        let bytes: Bytes = [1u8, 2, 3].iter().flat_map(|value| [*value; 512]).collect::<Vec<u8>>().into();
        let sum = crc32(&bytes);
        let spooled = Spooled::new(Record { offset: 512, bytes: 1536, crc: sum });
        let slice = spooled.slice(1, 2).slice(1, 1);
        let Some(RawContent::Data { bytes: restored, crc }) =
            slice.restore(&Captured::new(bytes.clone(), sum)).to_raw()
        else {
            panic!("data")
        };
        assert_eq!((restored.to_vec(), crc), (vec![3; 512], crc32(&[3; 512])));
        let mut flipped = bytes.to_vec();
        flipped[0] ^= 1;
        assert!(
            slice.restore(&Captured::new(flipped.into(), sum)).to_raw().is_none(),
            "damage anywhere in the record counts"
        );
    }
}
