//! What source and target compare instead of content: a digest per unit of 64 KiB.
//!
//! Both agents call the functions of this file, so that a unit can't be cut or digested in two ways. BLAKE3, because a
//! guest may write what it likes: with a checksum it could make two blocks that differ and look the same, and the target
//! would keep the wrong one unnoticed. One core with AVX-512 digests 10 GB/s of such units, more than the disks here
//! read. The first 16 bytes leave 64 bits of work to whoever wants two blocks that collide. A unit of zeroes has 16 zero
//! bytes and is never digested.

use crate::limits::SECTOR_BYTES;
use crate::replication::CompareRun;

/// Bytes of a unit; the last one of a run may be short. Small enough that a changed block of 4 KiB costs little to
/// send again, large enough that the digests of a disk of 1 TiB are 256 MiB.
pub const UNIT_BYTES: usize = 64 << 10;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 16;

/// Digest of a unit.
pub type Digest = [u8; DIGEST_BYTES];

/// Digest of a unit of zeroes, of any length.
pub const ZERO: Digest = [0; DIGEST_BYTES];

static ZEROES: [u8; UNIT_BYTES] = [0; UNIT_BYTES];

/// Digest of one unit.
///
/// # Panics
/// On more bytes than a unit has.
#[must_use]
pub fn of_unit(bytes: &[u8]) -> Digest {
    assert!(bytes.len() <= UNIT_BYTES, "{} bytes are more than a unit", bytes.len());
    if *bytes == ZEROES[..bytes.len()] {
        return ZERO;
    }
    let hash = blake3::hash(bytes);
    let mut digest = ZERO;
    digest.copy_from_slice(&hash.as_bytes()[..DIGEST_BYTES]);
    digest
}

/// Digests of the units of a run one after the other, as [`CompareRun::digests`]: nothing where all of it is zero.
#[must_use]
pub fn of_run(bytes: &[u8]) -> Vec<u8> {
    let digests: Vec<u8> = bytes.chunks(UNIT_BYTES).flat_map(of_unit).collect();
    if digests.iter().all(|byte| *byte == 0) { Vec::new() } else { digests }
}

/// Units of a run of so many sectors.
#[must_use]
pub fn units(sectors: u32) -> usize {
    (u64::from(sectors) * SECTOR_BYTES).div_ceil(UNIT_BYTES as u64) as usize
}

/// Units of several runs together.
#[must_use]
pub fn units_of(runs: &[CompareRun]) -> usize {
    runs.iter().map(|run| units(run.sectors)).sum()
}

/// What a run says of its unit `unit`.
///
/// # Panics
/// On a unit that a checked run does not have.
#[must_use]
pub fn of_run_unit(run: &CompareRun, unit: usize) -> Digest {
    assert!(unit < units(run.sectors), "unit {unit} of a run of {} sectors", run.sectors);
    let mut digest = ZERO;
    if !run.digests.is_empty() {
        digest.copy_from_slice(&run.digests[unit * DIGEST_BYTES..][..DIGEST_BYTES]);
    }
    digest
}

/// What the bits of an answer say of a unit. What they leave out counts as different.
#[must_use]
pub fn differs(bits: &[u8], unit: usize) -> bool {
    bits.get(unit / 8).is_none_or(|byte| byte >> (unit % 8) & 1 == 1)
}

/// One bit per unit, in the order of runs and units, the lowest bit of a byte first: `BlocksCompared.differs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differs {
    bits: Vec<u8>,
    units: usize,
}

impl Differs {
    /// No unit differs.
    #[must_use]
    pub fn none(units: usize) -> Self {
        Self { bits: vec![0; units.div_ceil(8)], units }
    }

    /// The bits of an answer about so many units; `None` where they are not as many, or one beyond them is set.
    #[must_use]
    pub fn from_bits(bits: Vec<u8>, units: usize) -> Option<Self> {
        let is_whole = bits.len() == units.div_ceil(8);
        let beyond = if units.is_multiple_of(8) { 0 } else { bits.last().map_or(0, |last| last >> (units % 8)) };
        (is_whole && beyond == 0).then_some(Self { bits, units })
    }

    /// Marks a unit.
    ///
    /// # Panics
    /// On a unit beyond the last.
    pub fn set(&mut self, unit: usize) {
        assert!(unit < self.units, "unit {unit} of {}", self.units);
        self.bits[unit / 8] |= 1 << (unit % 8);
    }

    /// Whether a unit differs.
    ///
    /// # Panics
    /// On a unit beyond the last.
    #[must_use]
    pub fn contains(&self, unit: usize) -> bool {
        assert!(unit < self.units, "unit {unit} of {}", self.units);
        differs(&self.bits, unit)
    }

    /// The bits as they travel.
    #[must_use]
    pub fn into_bits(self) -> Vec<u8> {
        self.bits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 251 values over and over, as in the test vectors that the authors of BLAKE3 publish.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn digests_are_those_of_the_published_test_vectors() {
        for (len, expected) in [
            (1023, "10108970eeda3eb932baac1428c7a216"),
            (1024, "42214739f095a406f3fc83deb889744a"),
            (31744, "62b6960e1a44bcc1eb1a611a8d6235b6"),
        ] {
            assert_eq!(hex(&of_unit(&pattern(len))), expected, "{len} bytes");
        }
    }

    #[test]
    fn zeroes_of_any_length_have_the_zero_digest_and_one_bit_more_has_not() {
        for len in [512, 4096, UNIT_BYTES - 512, UNIT_BYTES] {
            assert_eq!(of_unit(&vec![0; len]), ZERO);
            for at in [0, len / 2, len - 1] {
                let mut bytes = vec![0; len];
                bytes[at] = 0x80;
                assert_ne!(of_unit(&bytes), ZERO, "byte {at} of {len}");
            }
        }
    }

    #[test]
    fn a_run_has_one_digest_per_unit_and_none_where_all_of_it_is_zero() {
        let mut bytes = pattern(2 * UNIT_BYTES + 512);
        bytes[UNIT_BYTES..2 * UNIT_BYTES].fill(0);
        let digests = of_run(&bytes);
        let run = CompareRun { disk: 0, sector: 0, sectors: 257, digests };
        assert_eq!((run.digests.len(), units(257)), (3 * DIGEST_BYTES, 3));
        assert_eq!(of_run_unit(&run, 0), of_unit(&bytes[..UNIT_BYTES]));
        assert_eq!(of_run_unit(&run, 1), ZERO);
        assert_eq!(of_run_unit(&run, 2), of_unit(&bytes[2 * UNIT_BYTES..]));
        assert!(of_run(&vec![0; UNIT_BYTES + 512]).is_empty());
        assert_eq!(of_run_unit(&CompareRun { digests: Vec::new(), ..run }, 2), ZERO);
    }

    #[test]
    fn units_are_counted_from_the_first_sector_of_a_run() {
        for (sectors, expected) in [(1, 1), (127, 1), (128, 1), (129, 2), (u32::MAX, 33_554_432)] {
            assert_eq!(units(sectors), expected, "{sectors} sectors");
        }
    }

    #[test]
    fn bits_that_are_not_those_of_the_question_are_refused() {
        assert!(Differs::from_bits(vec![0], 9).is_none());
        assert!(Differs::from_bits(vec![0, 0], 8).is_none());
        assert!(Differs::from_bits(vec![0, 0b10], 9).is_none());
        assert!(Differs::from_bits(vec![0, 0b01], 9).is_some_and(|differs| differs.contains(8)));
        assert!(Differs::from_bits(Vec::new(), 0).is_some());
    }

    proptest! {
        #[test]
        fn what_is_set_is_what_is_read_after_the_way(
            units in 1usize..100,
            chosen in proptest::collection::btree_set(0usize..100, 0..20),
        ) {
            let mut differs = Differs::none(units);
            chosen.iter().filter(|unit| **unit < units).for_each(|unit| differs.set(*unit));
            let read = Differs::from_bits(differs.into_bits(), units).unwrap();
            for unit in 0..units {
                prop_assert_eq!(read.contains(unit), chosen.contains(&unit));
            }
        }
    }
}
