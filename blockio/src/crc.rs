//! Checksums over raw content, and the test for zero blocks that zero ranges come from.

use crc32fast::Hasher;

/// CRC-32 (IEEE) of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC-32 of A followed by B, from `a` = CRC(A), `b` = CRC(B) and B's length in bytes.
pub fn crc32_combine(a: u32, b: u32, len_b: u64) -> u32 {
    let mut whole = Hasher::new_with_initial(a);
    whole.combine(&Hasher::new_with_initial_len(b, len_b));
    whole.finalize()
}

/// Whether every byte is zero; true for none at all.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Without a branch inside a chunk the compiler uses vector registers; most blocks that hold
    // anything are told by their first chunk.
    let (chunks, rest) = bytes.as_chunks::<256>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_polynomial_is_that_of_ethernet_and_zip() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn nothing_is_zero_and_one_bit_is_not() {
        assert!(is_zero(&[]));
        for len in [1, 255, 256, 257, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for place in [0, len / 2, len - 1] {
                bytes[place] = 1;
                assert!(!is_zero(&bytes), "byte {place} of {len}");
                bytes[place] = 0;
            }
        }
    }

    proptest! {
        #[test]
        fn combined_equals_the_crc_of_the_whole(a: Vec<u8>, b: Vec<u8>) {
            let whole = [a.clone(), b.clone()].concat();
            prop_assert_eq!(crc32_combine(crc32(&a), crc32(&b), b.len() as u64), crc32(&whole));
        }
    }
}
