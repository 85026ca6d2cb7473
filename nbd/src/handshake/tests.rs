//! The handshake as a pure state machine: what each option gets, and what a client may not do.

use super::{Agreed, GREETING, Handshake, HandshakeError, OptionHeader, Step};
use crate::option_request::encode::{info as go, meta};
use crate::wire::{info, option, rep};
use crate::{Export, Exports, NoExport};
use proptest::prelude::{any, proptest};

fn exports(names: &[&str]) -> Exports {
    let export = |name: &&str| Export {
        name: (*name).to_owned(),
        size: 5 << 20,
        description: format!("disk {name}"),
        block_min: 512,
        block_preferred: 4096,
        block_max: 32 << 20,
        read_only: false,
    };
    Exports::new(names.iter().map(export).collect()).unwrap()
}

fn ready(exports: &Exports) -> Handshake<'_> {
    let mut handshake = Handshake::plain(exports);
    handshake.handle_client_flags([0, 0, 0, 3]).unwrap();
    handshake
}

/// Decodes answers, by the protocol's document: (option, reply type, data).
fn answers(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let len = number(16) as usize;
        all.push((number(8), number(12), bytes[20..20 + len].to_vec()));
        bytes = &bytes[20 + len..];
    }
    all
}

fn ask(handshake: &mut Handshake<'_>, code: u32, data: &[u8]) -> (Step, Vec<(u32, Vec<u8>)>) {
    let mut out = Vec::new();
    let step = handshake.handle_option(code, data, &mut out).unwrap();
    let replies = answers(&out).into_iter().map(|(echoed, reply, data)| {
        assert_eq!(echoed, code);
        (reply, data)
    });
    (step, replies.collect())
}

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn the_greeting_offers_fixed_newstyle_without_padding() {
    assert_eq!(&GREETING, b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn go_describes_the_export_and_enters_transmission() {
    let exports = exports(&["web/os", "web/data"]);
    let (step, replies) = ask(&mut ready(&exports), option::GO, &go("web/data", &[0, 1, 2, 3]));
    assert_eq!(step, Step::Enter(Agreed { export: 1, structured: false, meta_base_allocation: false }));
    assert_eq!(kinds(&replies), [rep::INFO, rep::INFO, rep::INFO, rep::INFO, rep::ACK]);
    assert_eq!(replies[0].1, [0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0x0d, 0x6d]);
    assert_eq!(replies[1].1, b"\0\x01web/data");
    assert_eq!(replies[2].1, b"\0\x02disk web/data");
    assert_eq!(replies[3].1, [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(u16::from_be_bytes([replies[3].1[0], replies[3].1[1]]), info::BLOCK_SIZE);
}

#[test]
fn info_describes_only_what_was_asked_for_and_goes_on() {
    let exports = exports(&["web/os"]);
    let (step, replies) = ask(&mut ready(&exports), option::INFO, &go("", &[]));
    assert_eq!((step, kinds(&replies)), (Step::Continue, vec![rep::INFO, rep::ACK]));
}

#[test]
fn an_unknown_export_is_told_and_the_client_may_try_another() {
    let exports = exports(&["web/os", "db/os"]);
    let mut handshake = ready(&exports);
    for name in ["nope", "os", ""] {
        let (step, replies) = ask(&mut handshake, option::GO, &go(name, &[]));
        assert_eq!((step, kinds(&replies)), (Step::Continue, vec![rep::ERR_UNKNOWN]), "{name:?}");
        assert!(String::from_utf8_lossy(&replies[0].1).contains("GROUP/DISK") || name == "nope");
    }
    assert!(matches!(ask(&mut handshake, option::GO, &go("db/os", &[])).0, Step::Enter(_)));
}

#[test]
fn list_names_each_export_with_its_description() {
    let exports = exports(&["web/os", "web/data"]);
    let (_, replies) = ask(&mut ready(&exports), option::LIST, &[]);
    assert_eq!(kinds(&replies), [rep::SERVER, rep::SERVER, rep::ACK]);
    assert_eq!(replies[0].1, b"\0\0\0\x06web/osdisk web/os");
}

#[test]
fn export_name_answers_in_the_old_form_with_padding_unless_declined() {
    let exports = exports(&["web/os"]);
    let answer_len = |flags| {
        let mut handshake = Handshake::plain(&exports);
        handshake.handle_client_flags(flags).unwrap();
        let mut out = Vec::new();
        let step = handshake.handle_option(option::EXPORT_NAME, b"os", &mut out).unwrap();
        assert!(matches!(step, Step::Enter(Agreed { export: 0, .. })));
        out.len()
    };
    assert_eq!(answer_len([0, 0, 0, 0]), 10 + 124);
    assert_eq!(answer_len([0, 0, 0, 1]), 10 + 124);
    assert_eq!(answer_len([0, 0, 0, 3]), 10);
}

#[test]
fn export_name_without_such_an_export_ends_the_connection() {
    let exports = exports(&["web/os"]);
    let mut out = Vec::new();
    let refused = |name: &[u8]| ready(&exports).handle_option(option::EXPORT_NAME, name, &mut Vec::new()).unwrap_err();
    assert!(matches!(refused(b"nope"), HandshakeError::NoExport { reason: NoExport::Unknown, .. }));
    assert_eq!(refused(b"\xff"), HandshakeError::BadName);
    assert_eq!(refused(&[b'n'; 4097]), HandshakeError::BadName);
    let long = refused(&[b'n'; 4000]).to_string();
    assert!(long.len() < 300, "a log line stays short: {long}");
    assert!(ready(&exports).handle_option(option::EXPORT_NAME, b"nope", &mut out).is_err() && out.is_empty());
}

#[test]
fn structured_replies_and_metadata_are_agreed_for_the_export_they_were_asked_for() {
    let exports = exports(&["web/os", "web/data"]);
    let mut handshake = ready(&exports);
    assert_eq!(kinds(&ask(&mut handshake, option::STRUCTURED_REPLY, &[]).1), [rep::ACK]);
    let (_, replies) = ask(&mut handshake, option::SET_META_CONTEXT, &meta("web/os", &["base:allocation", "x:y"]));
    assert_eq!(kinds(&replies), [rep::META_CONTEXT, rep::ACK]);
    assert_eq!(replies[0].1, b"\0\0\0\x01base:allocation");
    let (step, replies) = ask(&mut handshake, option::GO, &go("os", &[]));
    assert_eq!(step, Step::Enter(Agreed { export: 0, structured: true, meta_base_allocation: true }));
    assert_eq!(replies[0].1[10..], [0x0d, 0xed], "DF is promised");
    let (step, _) = ask(&mut handshake, option::GO, &go("data", &[]));
    assert_eq!(step, Step::Enter(Agreed { export: 1, structured: true, meta_base_allocation: false }));
}

#[test]
fn a_later_metadata_request_replaces_the_earlier_one_even_when_it_fails() {
    let exports = exports(&["web/os"]);
    for second in [meta("web/os", &[]), meta("nope", &["base:allocation"]), b"garbage".to_vec(), meta("os", &["base:"])]
    {
        let mut handshake = ready(&exports);
        ask(&mut handshake, option::STRUCTURED_REPLY, &[]);
        ask(&mut handshake, option::SET_META_CONTEXT, &meta("web/os", &["base:allocation"]));
        ask(&mut handshake, option::SET_META_CONTEXT, &second);
        let (step, _) = ask(&mut handshake, option::GO, &go("", &[]));
        assert_eq!(step, Step::Enter(Agreed { export: 0, structured: true, meta_base_allocation: false }));
    }
}

#[test]
fn metadata_contexts_are_listed_for_no_query_and_for_wildcards() {
    let exports = exports(&["web/os"]);
    let mut handshake = ready(&exports);
    ask(&mut handshake, option::STRUCTURED_REPLY, &[]);
    for queries in [&[][..], &["base:"], &["x:", "base:allocation"]] {
        let (_, replies) = ask(&mut handshake, option::LIST_META_CONTEXT, &meta("os", queries));
        assert_eq!(kinds(&replies), [rep::META_CONTEXT, rep::ACK]);
        assert_eq!(replies[0].1, b"\0\0\0\0base:allocation");
    }
    let (_, replies) = ask(&mut handshake, option::LIST_META_CONTEXT, &meta("os", &["qemu:"]));
    assert_eq!(kinds(&replies), [rep::ACK]);
}

#[test]
fn metadata_without_structured_replies_or_with_bad_data_is_refused() {
    let exports = exports(&["web/os"]);
    let mut handshake = ready(&exports);
    for code in [option::SET_META_CONTEXT, option::LIST_META_CONTEXT] {
        assert_eq!(kinds(&ask(&mut handshake, code, &meta("os", &["base:allocation"])).1), [rep::ERR_INVALID]);
    }
    ask(&mut handshake, option::STRUCTURED_REPLY, &[]);
    for code in [option::SET_META_CONTEXT, option::LIST_META_CONTEXT] {
        assert_eq!(kinds(&ask(&mut handshake, code, &meta("os", &["no namespace"])).1), [rep::ERR_INVALID]);
        assert_eq!(kinds(&ask(&mut handshake, code, &meta("os", &["a:"; 65])).1), [rep::ERR_TOO_BIG]);
        assert_eq!(kinds(&ask(&mut handshake, code, &meta("nope", &[])).1), [rep::ERR_UNKNOWN]);
        assert_eq!(kinds(&ask(&mut handshake, code, b"").1), [rep::ERR_INVALID]);
    }
}

#[test]
fn options_that_are_not_known_are_declined_and_the_next_ones_work() {
    let exports = exports(&["web/os"]);
    let mut handshake = ready(&exports);
    for code in [0, 4, 11, 0xffff_ffff] {
        assert_eq!(ask(&mut handshake, code, b"whatever").0, Step::Continue);
        assert_eq!(kinds(&ask(&mut handshake, code, &[]).1), [rep::ERR_UNSUP]);
    }
    assert!(matches!(ask(&mut handshake, option::GO, &go("", &[])).0, Step::Enter(_)));
}

#[test]
fn data_on_options_that_take_none_is_refused() {
    let exports = exports(&["web/os"]);
    let mut handshake = ready(&exports);
    for code in [option::LIST, option::STRUCTURED_REPLY] {
        assert_eq!(kinds(&ask(&mut handshake, code, b"x").1), [rep::ERR_INVALID]);
    }
    let (step, _) = ask(&mut handshake, option::GO, &go("", &[]));
    assert_eq!(step, Step::Enter(Agreed { export: 0, structured: false, meta_base_allocation: false }));
    assert_eq!(ask(&mut ready(&exports), option::ABORT, b"bye").0, Step::Leave);
}

#[test]
fn a_malformed_go_is_told_and_reveals_nothing() {
    let exports = exports(&["web/os"]);
    for data in [&b""[..], b"\0\0\0\xffweb/os\0\0", b"\0\0\0\x06web/os", b"\0\0\0\x06web/os\0\x01", b"\0\0\0\0\0\0!"] {
        let (step, replies) = ask(&mut ready(&exports), option::GO, data);
        assert_eq!((step, kinds(&replies)), (Step::Continue, vec![rep::ERR_INVALID]));
    }
}

#[test]
fn where_tls_is_required_nothing_is_revealed_before_it() {
    let exports = exports(&["web/os"]);
    let mut handshake = Handshake::with_tls(&exports);
    handshake.handle_client_flags([0, 0, 0, 3]).unwrap();
    for code in [option::LIST, option::INFO, option::GO, option::STRUCTURED_REPLY, option::SET_META_CONTEXT, 99] {
        assert_eq!(kinds(&ask(&mut handshake, code, &go("", &[])).1), [rep::ERR_TLS_REQD]);
    }
    let refused = handshake.handle_option(option::EXPORT_NAME, b"web/os", &mut Vec::new());
    assert_eq!(refused, Err(HandshakeError::TlsRequired));
    assert_eq!(kinds(&ask(&mut handshake, option::STARTTLS, b"x").1), [rep::ERR_INVALID]);
    assert_eq!(ask(&mut handshake, option::STARTTLS, &[]).0, Step::StartTls);
    handshake.handle_tls_established();
    assert_eq!(kinds(&ask(&mut handshake, option::STARTTLS, &[]).1), [rep::ERR_INVALID]);
    assert!(matches!(ask(&mut handshake, option::GO, &go("", &[])).0, Step::Enter(_)));
}

#[test]
fn where_tls_is_off_starttls_is_declined() {
    let exports = exports(&["web/os"]);
    let (step, replies) = ask(&mut ready(&exports), option::STARTTLS, &[]);
    assert_eq!((step, kinds(&replies)), (Step::Continue, vec![rep::ERR_POLICY]));
}

#[test]
fn a_client_without_fixed_newstyle_may_only_name_an_export() {
    let exports = exports(&["web/os"]);
    let mut handshake = Handshake::plain(&exports);
    handshake.handle_client_flags([0; 4]).unwrap();
    let refused = handshake.handle_option(option::GO, &go("", &[]), &mut Vec::new());
    assert_eq!(refused, Err(HandshakeError::NotFixedNewstyle(option::GO)));
}

#[test]
fn client_flags_that_were_not_offered_end_the_connection() {
    let exports = exports(&["web/os"]);
    for flags in [[0, 0, 0, 4], [0x80, 0, 0, 3], *b"GET "] {
        assert!(matches!(Handshake::plain(&exports).handle_client_flags(flags), Err(HandshakeError::UnknownFlags(_))));
    }
}

#[test]
fn option_frames_are_checked_before_their_data_is_read() {
    let exports = exports(&["web/os"]);
    let mut handshake = ready(&exports);
    let mut frame = [0; 16];
    assert_eq!(handshake.handle_option_header(&frame), Err(HandshakeError::BadMagic(0)));
    frame[..8].copy_from_slice(b"IHAVEOPT");
    frame[11] = 7;
    frame[12..].copy_from_slice(&16384u32.to_be_bytes());
    assert_eq!(handshake.handle_option_header(&frame), Ok(OptionHeader { code: 7, len: 16384 }));
    for len in [16385, u32::MAX] {
        frame[12..].copy_from_slice(&len.to_be_bytes());
        assert_eq!(handshake.handle_option_header(&frame), Err(HandshakeError::OptionTooLong(len)));
    }
}

#[test]
fn a_client_can_not_negotiate_for_ever() {
    let exports = exports(&["web/os"]);
    let mut handshake = ready(&exports);
    let frame = *b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    assert!((0..1024).all(|_| handshake.handle_option_header(&frame).is_ok()));
    assert_eq!(handshake.handle_option_header(&frame), Err(HandshakeError::TooManyOptions));
}

proptest! {
    #[test]
    fn no_option_makes_it_panic_and_all_are_answered(
        options in proptest::collection::vec((0u32..12, any::<Vec<u8>>()), 1..8), tls: bool,
    ) {
        let exports = exports(&["web/os", "web/data"]);
        let mut handshake = if tls { Handshake::with_tls(&exports) } else { Handshake::plain(&exports) };
        handshake.handle_client_flags([0, 0, 0, 3]).unwrap();
        for (code, data) in options {
            let mut out = Vec::new();
            if handshake.handle_option(code, &data, &mut out).is_err() {
                return Ok(());
            }
            if code != option::EXPORT_NAME {
                let kinds = answers(&out);
                let last = kinds.last().unwrap().1;
                assert!(last == rep::ACK || last > 1 << 31);
            }
        }
    }
}
