//! A bad link between the agents: a UDP proxy that delays, loses, repeats, reorders and swallows datagrams.
//!
//! The process-server is told the proxy's address in place of the master-target's. [`weather`](self::Weather) decides
//! what becomes of each datagram, from a seed; [`Proxy`] carries them. It counts what each side sent, as a judge of the
//! link's cap, and it can move to another source address in mid-connection, as a NAT does. It looks into no datagram.

mod carrier;
mod weather;

pub use carrier::Proxy;
pub use weather::Weather;
