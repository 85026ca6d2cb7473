//! How much of the data of a set compression saves, as far as its frames tell.
//!
//! A frame that travelled compressed says it by its length, one that was sent raw by the estimate in its header. Derived from
//! what redo holds anyway, so a journal of before knows it too; older sources left no estimate.

use std::iter::Sum;
use std::ops::Add;

use proto::replication::{Encoding, FrameHeader};

/// Data before and after compression, where both are known. Zeroes and what was unreadable are no data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shrink {
    /// Bytes before.
    pub raw_bytes: u64,
    /// Bytes after.
    pub packed_bytes: u64,
}

impl Shrink {
    /// What one frame tells.
    #[must_use]
    pub fn of(header: &FrameHeader, payload_bytes: u64) -> Self {
        let raw_bytes = u64::from(header.raw_length);
        let packed_bytes = match header.encoding() {
            Encoding::Zstd => payload_bytes,
            Encoding::Raw => u64::from(header.packed_length),
        };
        if packed_bytes == 0 { Self::default() } else { Self { raw_bytes, packed_bytes: packed_bytes.min(raw_bytes) } }
    }

    /// The share that compression saves, 0 to 1; none where nothing was measured.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share; sets are far below 2^53 bytes")]
    pub fn compressibility(&self) -> Option<f64> {
        (self.raw_bytes > 0).then(|| 1.0 - self.packed_bytes as f64 / self.raw_bytes as f64)
    }
}

impl Add for Shrink {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            raw_bytes: self.raw_bytes.saturating_add(other.raw_bytes),
            packed_bytes: self.packed_bytes.saturating_add(other.packed_bytes),
        }
    }
}

impl Sum for Shrink {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(encoding: Encoding, raw_length: u32, packed_length: u32) -> FrameHeader {
        FrameHeader { encoding: encoding.into(), raw_length, packed_length, ..FrameHeader::default() }
    }

    #[test]
    fn compressed_frames_and_estimates_count_and_what_says_nothing_does_not() {
        let all = [
            Shrink::of(&frame(Encoding::Zstd, 1000, 0), 250),
            Shrink::of(&frame(Encoding::Raw, 1000, 750), 1000),
            Shrink::of(&frame(Encoding::Raw, 5000, 0), 5000),
            Shrink::of(&frame(Encoding::Raw, 0, 0), 0),
        ];
        let sum: Shrink = all.into_iter().sum();
        assert_eq!(sum, Shrink { raw_bytes: 2000, packed_bytes: 1000 });
        assert_eq!(sum.compressibility(), Some(0.5));
        assert_eq!(Shrink::default().compressibility(), None);
    }

    #[test]
    fn content_never_shrinks_to_more_than_it_is() {
        assert_eq!(Shrink::of(&frame(Encoding::Raw, 10, 500), 10).compressibility(), Some(0.0));
    }
}
