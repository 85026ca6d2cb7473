//! The error numbers that NBD allows on the wire, and how errors of the operating system map to them.
//!
//! They look like Linux's errno values but are the protocol's own; anything else becomes [`Errno::Io`].

use std::io;

/// An error number of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: the export is read-only.
    Perm = 1,
    /// Input or output failed.
    Io = 5,
    /// Out of memory.
    NoMem = 12,
    /// The request makes no sense.
    Inval = 22,
    /// No space, or a write beyond the end.
    NoSpc = 28,
    /// Too large to be answered in one piece.
    Overflow = 75,
    /// Can't be done (fast).
    NotSup = 95,
    /// The export is fenced or closing.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The number for an errno of Linux, as disks and files report it.
    pub const fn from_raw_os_error(errno: i32) -> Self {
        match errno {
            1 | 13 | 30 => Errno::Perm,    // EPERM, EACCES, EROFS
            12 => Errno::NoMem,            // ENOMEM
            22 => Errno::Inval,            // EINVAL
            27 | 28 | 122 => Errno::NoSpc, // EFBIG, ENOSPC, EDQUOT
            75 => Errno::Overflow,         // EOVERFLOW
            95 => Errno::NotSup,           // EOPNOTSUPP
            108 => Errno::Shutdown,        // ESHUTDOWN
            _ => Errno::Io,
        }
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Errno::from_raw_os_error(errno),
            None => Errno::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;
    use std::io;

    #[test]
    fn a_full_disk_is_told_as_no_space_whichever_way_it_is_full() {
        for errno in [27, 28, 122] {
            assert_eq!(Errno::from(&io::Error::from_raw_os_error(errno)), Errno::NoSpc);
        }
    }

    #[test]
    fn an_error_that_the_protocol_does_not_know_becomes_eio() {
        for errno in [0, -1, 2, 5, 61, 4096, i32::MIN] {
            assert_eq!(Errno::from_raw_os_error(errno).number(), 5);
        }
        assert_eq!(Errno::from(&io::Error::other("x")), Errno::Io);
    }
}
