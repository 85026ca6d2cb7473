//! Every bound of the NBD server, with the reason beside it.
//!
//! A client can make the server hold at most one option (or one reply) per negotiation; what it can pin while it
//! transmits is bounded by the owner of the connection, from [`PAYLOAD_BYTES_MAX`] and [`CONNECTIONS_MAX`].

use std::time::Duration;

/// Longest data of one negotiation option. The longest sensible one carries a name of [`STRING_BYTES_MAX`] and a few
/// metadata queries.
pub const OPTION_BYTES_MAX: u32 = 16 << 10;

/// Options in one negotiation. A client that lists and inspects every export needs a few for each.
pub const OPTIONS_MAX: u32 = 1024;

/// The protocol's own bound for every string.
pub const STRING_BYTES_MAX: usize = 4096;

/// Metadata queries in one option; the server knows one context.
pub const QUERIES_MAX: u32 = 64;

/// Exports behind one address. A client reads the whole list in one go.
pub const EXPORTS_MAX: usize = 512;

/// Time for the whole negotiation, TLS handshake included: a client that stops half-way frees its place.
pub const NEGOTIATION_TIME_MAX: Duration = Duration::from_secs(20);

/// Connections of one address that negotiate at the same time.
pub const NEGOTIATING_MAX: usize = 64;

/// Connections of one address in transmission. QEMU uses one for a disk, nbdcopy four, fio one for a job.
pub const CONNECTIONS_MAX: usize = 128;

/// Connections that wait to be accepted.
pub const BACKLOG: i32 = 64;

/// Longest data of one read or write: what the protocol tells clients to keep to without other agreement. A longer
/// write ends the connection, because its data would have to be read to reach the next request.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Smallest `block_max` an export may advertise: the protocol wants at least 1 MiB to be accepted.
pub const BLOCK_MAX_LEAST: u32 = 1 << 20;

/// Largest minimum block that the protocol allows.
pub const BLOCK_MIN_MOST: u32 = 64 << 10;

/// Descriptors in one block status reply (8 bytes each). The protocol lets a server stop early; clients ask again.
pub const STATUS_DESCRIPTORS_MAX: usize = 4096;

/// Longest message inside an error.
pub const MESSAGE_BYTES_MAX: usize = 512;

/// Copy buffer of a TLS connection, for each direction.
pub const TLS_COPY_BYTES: usize = 128 << 10;

const _: () = assert!(OPTION_BYTES_MAX as usize >= 2 * STRING_BYTES_MAX);
const _: () = assert!(OPTIONS_MAX as usize > EXPORTS_MAX, "a client may ask for each listed export");
const _: () = assert!(BLOCK_MAX_LEAST <= PAYLOAD_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX <= STRING_BYTES_MAX && MESSAGE_BYTES_MAX <= u16::MAX as usize);
