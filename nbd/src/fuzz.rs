//! Entry points for fuzzing: what a hostile client can send, as pure functions of bytes.
//!
//! They must neither panic nor take memory by the client's word, and they assert what the write path relies on.

use super::export::{Export, Exports};
use super::handshake::{Handshake, OptionHeader, Step};
use super::limits::PAYLOAD_BYTES_MAX;
use super::reply::Replies;
use super::request::{Command, Request, Session};

/// Bytes as requests, one behind the other. What passes the check lies inside the export.
pub fn requests(bytes: &[u8]) {
    let session = Session {
        size: 1 << 30,
        block_max: 1 << 20,
        read_only: false,
        replies: Replies::Structured,
        meta_base_allocation: true,
    };
    let mut rest = bytes;
    while let Some((head, behind)) = rest.split_first_chunk::<{ Request::BYTES }>() {
        let Ok(request) = Request::parse(head) else { return };
        assert!(request.payload_bytes() <= PAYLOAD_BYTES_MAX);
        if request.check(&session).is_ok() && request.command != Command::Disconnect {
            assert!(request.offset + u64::from(request.length) <= session.size);
        }
        rest = behind.get(request.payload_bytes() as usize..).unwrap_or_default();
    }
}

/// Bytes as a negotiation: the client's flags, then options. Each one that is accepted is answered.
pub fn negotiation(bytes: &[u8]) {
    let export = |name: &str| Export {
        name: name.to_owned(),
        size: 1 << 30,
        description: "a disk".to_owned(),
        block_min: 512,
        block_preferred: 4096,
        block_max: 32 << 20,
        read_only: false,
    };
    let Ok(exports) = Exports::new(vec![export("web/os"), export("web/data"), export("db/os")]) else {
        unreachable!("the exports are well-formed");
    };
    for mut handshake in [Handshake::plain(&exports), Handshake::with_tls(&exports)] {
        let Some((flags, mut rest)) = bytes.split_first_chunk::<4>() else { return };
        if handshake.handle_client_flags(*flags).is_err() {
            continue;
        }
        let mut out = Vec::new();
        while let Some((head, behind)) = rest.split_first_chunk::<{ OptionHeader::BYTES }>() {
            let Ok(header) = handshake.handle_option_header(head) else { break };
            let Some((data, behind)) = behind.split_at_checked(header.len as usize) else { break };
            out.clear();
            match handshake.handle_option(header.code, data, &mut out) {
                Ok(Step::Continue) => assert!(!out.is_empty()),
                Ok(Step::StartTls) => handshake.handle_tls_established(),
                Ok(Step::Enter(agreed)) => {
                    assert!(exports.iter().nth(agreed.export).is_some());
                    break;
                }
                Ok(Step::Leave) | Err(_) => break,
            }
            rest = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn any_requests_are_survived(heads in proptest::collection::vec((0u16..32, 0u16..10, any::<u64>(), any::<u32>()), 0..5)) {
            let mut bytes = Vec::new();
            for (flags, command, offset, length) in heads {
                bytes.extend(0x2560_9513u32.to_be_bytes());
                bytes.extend(flags.to_be_bytes());
                bytes.extend(command.to_be_bytes());
                bytes.extend(7u64.to_be_bytes());
                bytes.extend((offset >> (offset % 64)).to_be_bytes());
                bytes.extend((length >> (length % 32)).to_be_bytes());
            }
            super::requests(&bytes);
        }

        #[test]
        fn any_negotiation_is_survived(options in proptest::collection::vec((0u32..12, any::<Vec<u8>>()), 0..8), cut: u8) {
            let mut bytes = vec![0, 0, 0, 3];
            for (code, data) in options {
                bytes.extend(b"IHAVEOPT");
                bytes.extend(code.to_be_bytes());
                bytes.extend((data.len() as u32).to_be_bytes());
                bytes.extend(data);
            }
            bytes.truncate(bytes.len().saturating_sub(usize::from(cut) % 32));
            super::negotiation(&bytes);
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            super::requests(&bytes);
            super::negotiation(&bytes);
        }
    }
}
