//! Reads big-endian fields from bytes of a client, without ever reaching beyond them.

/// What was wrong with the bytes; a sentence part that is shown to the client.
pub(super) type Malformed = &'static str;

/// A position in the bytes of one message.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or("it is shorter than its fields say")?;
        self.rest = rest;
        Ok(taken)
    }

    /// A string behind its 32-bit length.
    pub(super) fn string(&mut self, len_max: usize) -> Result<&'a str, Malformed> {
        let len = self.u32()? as usize;
        if len > len_max {
            return Err("a string in it is too long");
        }
        std::str::from_utf8(self.bytes(len)?).map_err(|_| "a string in it is not UTF-8")
    }

    /// Nothing may follow the last field.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err("it is longer than its fields say") }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or("it is shorter than its fields say")?;
        self.rest = rest;
        Ok(*taken)
    }
}
