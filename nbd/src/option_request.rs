//! Parses the data of the negotiation options that carry some.
//!
//! Pure: the frame around the data and its length bound are [`handshake`](super::handshake)'s.

use super::fields::{Fields, Malformed};
use super::limits;
use super::wire::info;

/// The data of `INFO` and `GO`: a name and the facts that are asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub(super) name: &'a str,
    pub(super) wants_name: bool,
    pub(super) wants_description: bool,
    pub(super) wants_block_size: bool,
}

impl<'a> InfoRequest<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(data);
        let mut request = Self { name: fields.string(limits::STRING_BYTES_MAX)?, ..Self::default() };
        for _ in 0..fields.u16()? {
            match fields.u16()? {
                info::NAME => request.wants_name = true,
                info::DESCRIPTION => request.wants_description = true,
                info::BLOCK_SIZE => request.wants_block_size = true,
                _ => {}
            }
        }
        fields.end()?;
        Ok(request)
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MetaRequest<'a> {
    pub(super) name: &'a str,
    pub(super) queries: Vec<&'a str>,
}

/// Why the data of a metadata option isn't accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MetaError {
    Malformed(Malformed),
    TooManyQueries,
}

impl From<Malformed> for MetaError {
    fn from(what: Malformed) -> Self {
        MetaError::Malformed(what)
    }
}

impl<'a> MetaRequest<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, MetaError> {
        let mut fields = Fields::new(data);
        let name = fields.string(limits::STRING_BYTES_MAX)?;
        let count = fields.u32()?;
        if count > limits::QUERIES_MAX {
            return Err(MetaError::TooManyQueries);
        }
        let mut queries = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let query = fields.string(limits::STRING_BYTES_MAX)?;
            if !query.contains(':') {
                return Err(MetaError::Malformed("a query in it has no namespace"));
            }
            queries.push(query);
        }
        fields.end()?;
        Ok(Self { name, queries })
    }
}

/// The data of options as a client sends it.
#[cfg(test)]
pub(crate) mod encode {
    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
    }

    pub(crate) fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
        let mut data = string(name);
        data.extend((wanted.len() as u16).to_be_bytes());
        data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
        data
    }

    pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = string(name);
        data.extend((queries.len() as u32).to_be_bytes());
        data.extend(queries.iter().flat_map(|query| string(query)));
        data
    }
}

#[cfg(test)]
mod tests {
    use super::encode::{info, meta};
    use super::{InfoRequest, MetaError, MetaRequest};
    use proptest::prelude::{any, proptest};

    #[test]
    fn an_info_request_is_read_and_facts_that_are_not_known_are_ignored() {
        let data = info("web/os", &[0, 1, 3, 77]);
        let request = InfoRequest::parse(&data).unwrap();
        assert_eq!((request.name, request.wants_name, request.wants_block_size), ("web/os", true, true));
        assert!(!request.wants_description);
    }

    #[test]
    fn an_info_request_cut_anywhere_or_continued_is_refused() {
        let data = info("web/os", &[1, 2, 3]);
        for len in 0..data.len() {
            assert!(InfoRequest::parse(&data[..len]).is_err(), "cut to {len}");
        }
        assert!(InfoRequest::parse(&[data.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn lengths_that_reach_beyond_the_data_are_refused() {
        let mut data = info("web/os", &[]);
        for len in [7u32, 8, 4097, u32::MAX] {
            data[..4].copy_from_slice(&len.to_be_bytes());
            assert!(InfoRequest::parse(&data).is_err(), "{len}");
            assert!(MetaRequest::parse(&data).is_err(), "{len}");
        }
    }

    #[test]
    fn names_that_are_not_utf_8_are_refused() {
        let mut data = info("web/os", &[]);
        data[5] = 0xff;
        assert_eq!(InfoRequest::parse(&data), Err("a string in it is not UTF-8"));
    }

    #[test]
    fn metadata_queries_are_read_in_order() {
        let data = meta("os", &["base:allocation", "qemu:dirty-bitmap:x"]);
        let request = MetaRequest::parse(&data).unwrap();
        assert_eq!(request.queries, ["base:allocation", "qemu:dirty-bitmap:x"]);
        assert_eq!(MetaRequest::parse(&meta("", &[])).unwrap().queries, [""; 0]);
    }

    #[test]
    fn metadata_requests_that_are_cut_or_too_large_or_without_namespace_are_refused() {
        let data = meta("os", &["base:allocation"]);
        for len in 0..data.len() {
            assert!(MetaRequest::parse(&data[..len]).is_err(), "cut to {len}");
        }
        assert!(MetaRequest::parse(&[data.as_slice(), b"x"].concat()).is_err());
        assert!(matches!(MetaRequest::parse(&meta("os", &["allocation"])), Err(MetaError::Malformed(_))));
        assert_eq!(MetaRequest::parse(&meta("os", &["a:"; 65])), Err(MetaError::TooManyQueries));
        let mut lying = meta("os", &[]);
        lying[6..10].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(MetaRequest::parse(&lying), Err(MetaError::TooManyQueries));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(data: Vec<u8>) {
            let _ = InfoRequest::parse(&data);
            let _ = MetaRequest::parse(&data);
        }

        #[test]
        fn what_a_client_encodes_is_what_is_read(name in "[a-z/]{0,40}", wanted in proptest::collection::vec(any::<u16>(), 0..9)) {
            let data = info(&name, &wanted);
            let request = InfoRequest::parse(&data).unwrap();
            assert_eq!(request.name, name);
            assert_eq!(request.wants_block_size, wanted.contains(&3));
        }
    }
}
