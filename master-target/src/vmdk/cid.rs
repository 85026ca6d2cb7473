//! The content id (CID) of a VMDK: 32 bits that every program changes when it begins to write the disk.
//!
//! A snapshot names its parent's CID, and this agent compares the CID that it left with the one that it finds: they are
//! how somebody else's writes are noticed. This file holds the number and how it is chosen; `stamp` puts it on disk.

use std::fmt;

/// A content id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid(u32);

impl Cid {
    /// What `parentCID` says when a disk has no parent.
    pub const NO_PARENT: Cid = Cid(u32::MAX);
    /// What VMware gives to a disk that was never written.
    const NEVER_WRITTEN: u32 = u32::MAX - 1;
    /// Hexadecimal digits of the widest content id.
    pub const DIGITS_MAX: usize = 8;

    /// The id with this value.
    pub const fn new(value: u32) -> Self {
        Cid(value)
    }

    /// The id as a number.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// Parses 1 to 8 hexadecimal digits; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.len() <= Self::DIGITS_MAX && text.bytes().all(|b| b.is_ascii_hexdigit());
        if digits { u32::from_str_radix(text, 16).ok().map(Cid) } else { None }
    }

    /// An id for new content that fits `digits` hexadecimal digits and differs from `self`.
    ///
    /// `random` is taken modulo the room; values with a meaning (no parent, never written, zero) are stepped over.
    /// Programs that don't pad write one disk in sixteen with seven digits: keeping the width lets the id be replaced
    /// where it stands, and costs nothing, because a foreign writer draws from all 32 bits.
    pub(crate) fn next(self, random: u32, digits: usize) -> Cid {
        assert!((1..=Self::DIGITS_MAX).contains(&digits), "a content id has 1 to 8 digits");
        let mask = u32::MAX >> (32 - 4 * digits as u32);
        let mut value = random & mask;
        while value == 0 || value == self.0 || value >= Self::NEVER_WRITTEN {
            value = value.wrapping_add(1) & mask;
        }
        Cid(value)
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cid({self})")
    }
}

/// VMware's 128-bit content id (`ddb.longContentID`), whose low 32 bits are the [`Cid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentId {
    high: [u8; 12],
    cid: Cid,
}

impl ContentId {
    /// Random high bits before the given id.
    pub fn new(high: [u8; 12], cid: Cid) -> Self {
        ContentId { high, cid }
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.high {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "{}", self.cid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_id_is_printed_with_eight_digits_and_parsed_with_fewer() {
        assert_eq!(Cid::new(0x1a2b).to_string(), "00001a2b");
        assert_eq!(Cid::parse("1a2b"), Some(Cid::new(0x1a2b)));
        assert_eq!(Cid::parse("FFFFFFFF"), Some(Cid::NO_PARENT));
    }

    #[test]
    fn text_that_is_not_up_to_eight_hexadecimal_digits_is_no_content_id() {
        for text in ["", "123456789", "+1234", "0x12", "12 34", "g"] {
            assert_eq!(Cid::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_new_content_id_differs_keeps_its_width_and_has_no_special_meaning() {
        let old = Cid::new(0x1234567);
        assert_eq!(old.next(0x1234567, 7), Cid::new(0x1234568));
        assert_eq!(old.next(0xabcdef01, 7), Cid::new(0xbcdef01));
        assert_eq!(old.next(u32::MAX, 8), Cid::new(1));
        assert_eq!(Cid::new(1).next(u32::MAX - 1, 8), Cid::new(2));
        assert_eq!(Cid::new(1).next(0, 1), Cid::new(2));
    }

    #[test]
    fn the_long_content_id_ends_with_the_content_id() {
        let long = ContentId::new([0xab; 12], Cid::new(0xfe));
        assert_eq!(long.to_string(), "abababababababababababab000000fe");
    }
}
