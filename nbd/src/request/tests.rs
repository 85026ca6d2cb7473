//! Requests: what is parsed, and what is refused with which error.

use super::{Command, ProtocolError, Request, Session};
use crate::{Errno, Replies};
use proptest::prelude::{any, proptest};

const SESSION: Session = Session {
    size: 1 << 30,
    block_max: 1 << 20,
    read_only: false,
    replies: Replies::Structured,
    meta_base_allocation: true,
};

fn bytes(flags: u16, command: u16, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn checked(session: &Session, flags: u16, command: u16, offset: u64, length: u32) -> Result<(), Errno> {
    let request = Request::parse(&bytes(flags, command, offset, length)).unwrap();
    request.check(session).map_err(|refusal| refusal.errno)
}

fn check(flags: u16, command: u16, offset: u64, length: u32) -> Result<(), Errno> {
    checked(&SESSION, flags, command, offset, length)
}

#[test]
fn a_request_is_read_field_by_field() {
    let request = Request::parse(&bytes(1, 1, 0x1_0000_0200, 512)).unwrap();
    assert_eq!(request.command, Command::Write);
    assert_eq!(request.cookie, 0x0102_0304_0506_0708);
    assert_eq!((request.offset, request.length), (0x1_0000_0200, 512));
    assert_eq!(request.payload_bytes(), 512);
    assert!(request.fua() && !request.no_hole());
}

#[test]
fn only_writes_carry_a_payload() {
    for command in (0..20).filter(|command| *command != 1) {
        assert_eq!(Request::parse(&bytes(0, command, 0, u32::MAX)).unwrap().payload_bytes(), 0);
    }
}

#[test]
fn a_wrong_magic_ends_the_connection() {
    let mut garbage = bytes(0, 0, 0, 512);
    garbage[0] = b'G';
    assert_eq!(Request::parse(&garbage), Err(ProtocolError::BadMagic(0x4760_9513)));
    assert_eq!(Request::parse(&[0; 28]), Err(ProtocolError::BadMagic(0)));
}

#[test]
fn a_write_too_long_to_be_read_ends_the_connection() {
    assert!(Request::parse(&bytes(0, 1, 0, 32 << 20)).is_ok());
    for length in [(32 << 20) + 1, u32::MAX] {
        assert_eq!(Request::parse(&bytes(0, 1, 0, length)), Err(ProtocolError::PayloadTooLong(length)));
    }
}

#[test]
fn requests_inside_the_export_are_accepted_to_its_last_byte() {
    for command in [0, 1, 4, 5, 6, 7] {
        assert_eq!(check(0, command, (1 << 30) - 512, 512), Ok(()), "{command}");
        assert_eq!(check(1, command, 0, 1), Ok(()), "FUA on {command}");
    }
    assert_eq!(check(0, 6, 0, 1 << 30), Ok(()), "zeroes have no payload, so no maximum");
}

#[test]
fn ranges_beyond_the_export_are_refused() {
    for (offset, length) in [((1 << 30) - 511, 512), (1 << 30, 1), (u64::MAX, 1), (u64::MAX - 1, 512)] {
        for command in [0, 4, 5, 7] {
            assert_eq!(check(0, command, offset, length), Err(Errno::Inval), "{command} at {offset}");
        }
        for command in [1, 6] {
            assert_eq!(check(0, command, offset, length), Err(Errno::NoSpc), "{command} at {offset}");
        }
    }
    assert_eq!(check(0, 0, u64::MAX, 0), Err(Errno::Inval), "an empty range has a place too");
}

#[test]
fn a_read_only_export_refuses_changes_and_allows_the_rest() {
    let session = Session { read_only: true, ..SESSION };
    for command in [1, 4, 6] {
        assert_eq!(checked(&session, 0, command, 0, 512), Err(Errno::Perm));
    }
    for command in [0, 5, 7] {
        assert_eq!(checked(&session, 0, command, 0, 512), Ok(()));
    }
}

#[test]
fn flags_are_refused_on_commands_they_do_not_belong_to() {
    for (flag, owner) in [(2, 6), (4, 0), (8, 7), (16, 6)] {
        for command in [0, 1, 4, 5, 6, 7] {
            let expected = if command == owner { Ok(()) } else { Err(Errno::Inval) };
            assert_eq!(check(flag, command, 0, 512), expected, "flag {flag} on {command}");
        }
    }
    assert_eq!(check(1 << 15, 0, 0, 512), Err(Errno::Inval));
}

#[test]
fn what_was_not_agreed_is_refused() {
    let plain = Session { replies: Replies::Simple, meta_base_allocation: false, ..SESSION };
    assert_eq!(checked(&plain, 4, 0, 0, 512), Err(Errno::Inval), "DF");
    assert_eq!(checked(&plain, 0, 7, 0, 512), Err(Errno::Inval), "block status");
    assert_eq!(checked(&plain, 0, 0, 0, 512), Ok(()));
}

#[test]
fn reads_and_writes_beyond_the_maximum_block_are_refused() {
    assert_eq!(check(0, 0, 0, (1 << 20) + 1), Err(Errno::Inval));
    assert_eq!(check(4, 0, 0, (1 << 20) + 1), Err(Errno::Overflow));
    assert_eq!(check(0, 1, 0, (1 << 20) + 1), Err(Errno::Inval));
    assert_eq!(check(4, 0, 0, 1 << 20), Ok(()));
}

#[test]
fn commands_that_are_not_known_are_refused_and_named() {
    for command in [8, 9, 0xffff] {
        assert_eq!(Request::parse(&bytes(0, command, 0, 0)).unwrap().command, Command::Unknown(command));
        assert_eq!(check(0, command, 0, 0), Err(Errno::Inval));
    }
}

#[test]
fn a_flush_with_a_range_and_an_empty_status_are_refused() {
    assert_eq!(check(0, 3, 0, 0), Ok(()));
    assert_eq!(check(0, 3, 512, 0), Err(Errno::Inval));
    assert_eq!(check(0, 3, 0, 512), Err(Errno::Inval));
    assert_eq!(check(0, 7, 0, 0), Err(Errno::Inval));
}

proptest! {
    #[test]
    fn no_28_bytes_make_it_panic_and_what_passes_lies_inside_the_export(
        raw in proptest::array::uniform28(any::<u8>()), with_magic: bool, small: bool, structured: bool,
    ) {
        let mut raw = raw;
        if with_magic {
            raw[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        }
        if small {
            raw[4] = 0;
            raw[6] = 0;
            raw[7] %= 8;
            raw[16..20].fill(0);
            raw[24..26].fill(0);
        }
        let Ok(request) = Request::parse(&raw) else { return Ok(()) };
        assert!(request.payload_bytes() <= 32 << 20);
        let session = Session { replies: Replies::from_structured(structured), ..SESSION };
        if request.check(&session).is_ok() && request.command != Command::Disconnect {
            assert!(request.offset + u64::from(request.length) <= session.size);
        }
    }
}
