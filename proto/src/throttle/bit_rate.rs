//! A number of bits a second, as operators write it and as the bucket counts it.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Bits a second: "50 Mbit/s", "500 kbit/s", "6 MB/s", "4 MiB/s".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(pub u64);

/// Far above any link, so that the bucket's arithmetic has room.
const BIT_RATE_MAX: u64 = 1_000_000_000_000;

/// Units with the bits that one of them stands for, the shortest way to write a rate first.
const UNITS: [(&str, u64); 11] = [
    ("Gbit/s", 1_000_000_000),
    ("Mbit/s", 1_000_000),
    ("kbit/s", 1000),
    ("bit/s", 1),
    ("GiB/s", 8 << 30),
    ("MiB/s", 8 << 20),
    ("KiB/s", 8 << 10),
    ("GB/s", 8_000_000_000),
    ("MB/s", 8_000_000),
    ("kB/s", 8000),
    ("B/s", 8),
];

impl FromStr for BitRate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.strip_prefix(' ').unwrap_or(unit);
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, bits)| *bits);
        let rate = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale?));
        rate.filter(|rate| *rate <= BIT_RATE_MAX).map(Self).ok_or_else(|| {
            format!(
                "{text:?} is not a rate: write a whole number and bit/s, kbit/s, Mbit/s or Gbit/s, or B/s, kB/s, MB/s, \
                 GB/s, KiB/s, MiB/s or GiB/s, such as \"50 Mbit/s\""
            )
        })
    }
}

impl<'de> Deserialize<'de> for BitRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// In the largest decimal unit that keeps it whole.
impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, bits): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*bits);
        let (name, bits) = UNITS[..4].iter().find(fits).unwrap_or(&("bit/s", 1));
        write!(f, "{} {name}", self.0 / bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_in_bits_and_in_bytes() {
        for (text, bits) in [
            ("50 Mbit/s", 50_000_000),
            ("50Mbit/s", 50_000_000),
            ("1 Gbit/s", 1_000_000_000),
            ("512 kbit/s", 512_000),
            ("300000 bit/s", 300_000),
            ("6 MB/s", 48_000_000),
            ("4 MiB/s", 4 * 8 * 1024 * 1024),
            ("100 kB/s", 800_000),
            ("64 KiB/s", 524_288),
            ("1 GB/s", 8_000_000_000),
            ("1 GiB/s", 8 << 30),
            ("9 B/s", 72),
        ] {
            assert_eq!(text.parse(), Ok(BitRate(bits)), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            "",
            "50",
            "Mbit/s",
            "50 Mbit",
            "50 Mb/s",
            "50 mbit/s",
            "50 Mbps",
            "50 MBit/s",
            "50 KB/s",
            "50 M",
            "1.5 Mbit/s",
            "-1 Mbit/s",
            "50  Mbit/s",
            " 50 Mbit/s",
            "50 Mbit/s ",
            "1e6 bit/s",
            "1001 Gbit/s",
            "99999999999999999999 B/s",
        ] {
            let refused = text.parse::<BitRate>().expect_err(text);
            assert!(refused.contains("50 Mbit/s"), "the remedy: {refused}");
        }
    }

    #[test]
    fn a_rate_is_written_in_the_largest_unit_that_keeps_it_whole() {
        for (bits, text) in
            [(0, "0 bit/s"), (1500, "1500 bit/s"), (20_000_000, "20 Mbit/s"), (1_500_000, "1500 kbit/s")]
        {
            assert_eq!(BitRate(bits).to_string(), text);
        }
    }
}
