//! Sectors that say which write they come from.
//!
//! 512 bytes, all derived from (write, disk, sector):
//! ```text
//! 0 magic u64 | 8 write u64 | 16 disk u32 | 20 reserved u32 = 0 | 24 sector u64 | 32 filling, 480 bytes
//! ```
//! Half of the writes have a filling that compresses. A sector in the wrong place, torn inside, or of no write at all
//! is [`Seen::Foreign`].

use crate::random::Random;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

const MAGIC: u64 = 0x6261_636b_6861_756c;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Only zeroes.
    Zero,
    /// What this write put there.
    Write(u64),
    /// Nothing that any write put there.
    Foreign,
}

/// Fills `out`, one sector long, with what `write` puts at `sector` of `disk`.
pub fn fill(write: u64, disk: u32, sector: u64, out: &mut [u8]) {
    assert!(out.len() == SECTOR, "a sector is {SECTOR} bytes, not {}", out.len());
    out[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&write.to_le_bytes());
    out[16..20].copy_from_slice(&disk.to_le_bytes());
    out[20..24].fill(0);
    out[24..32].copy_from_slice(&sector.to_le_bytes());
    if write.is_multiple_of(2) {
        out[32..].fill(0x40 | (write & 0x3f) as u8);
        return;
    }
    let mut random = Random::new(write.wrapping_mul(0x1_0001) ^ (u64::from(disk) << 56) ^ sector);
    for word in out[32..].chunks_exact_mut(8) {
        word.copy_from_slice(&random.next_u64().to_le_bytes());
    }
}

/// The content of a whole write.
#[must_use]
pub fn content(write: u64, disk: u32, first_sector: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; sectors as usize * SECTOR];
    for (index, chunk) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        fill(write, disk, first_sector + index as u64, chunk);
    }
    bytes
}

/// Which write `bytes`, found at `sector` of `disk`, come from.
#[must_use]
pub fn identify(disk: u32, sector: u64, bytes: &[u8]) -> Seen {
    if bytes.iter().all(|&byte| byte == 0) {
        return Seen::Zero;
    }
    let write = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
    let mut expected = [0; SECTOR];
    fill(write, disk, sector, &mut expected);
    if bytes == expected { Seen::Write(write) } else { Seen::Foreign }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_names_the_write_that_made_it() {
        for write in [0, 1, 2, 77, u64::from(u32::MAX)] {
            let bytes = content(write, 3, 1000, 2);
            assert_eq!(identify(3, 1000, &bytes[..SECTOR]), Seen::Write(write));
            assert_eq!(identify(3, 1001, &bytes[SECTOR..]), Seen::Write(write));
        }
    }

    #[test]
    fn a_sector_in_the_wrong_place_is_foreign() {
        let bytes = content(5, 0, 8, 1);
        assert_eq!(identify(0, 9, &bytes), Seen::Foreign);
        assert_eq!(identify(1, 8, &bytes), Seen::Foreign);
    }

    #[test]
    fn a_sector_with_a_flipped_bit_is_foreign() {
        for write in [4, 5] {
            let mut bytes = content(write, 0, 8, 1);
            bytes[511] ^= 1;
            assert_eq!(identify(0, 8, &bytes), Seen::Foreign);
        }
    }

    #[test]
    fn zeroes_are_zeroes() {
        assert_eq!(identify(0, 0, &[0; SECTOR]), Seen::Zero);
    }
}
