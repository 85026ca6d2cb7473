//! Tests of the journal as a whole, with apply and the point reader: `rules` shows each rule alone, `turn` the ways out of
//! a failback, `compare` comparison by digest, `disks` disks that come and go, `sums` what rots, `vouch` files that end early, `model` drives everything at random against full copies.
//! `rig` is what both stand on; `mount_time` counts what opening a point reads.
#![allow(clippy::unwrap_used)]

mod compare;
mod disks;
mod model;
mod mount_time;
pub(crate) mod rig;
mod room;
mod rules;
mod scrub;
mod source;
mod stopped;
mod sums;
mod thin;
mod turn;
mod vouch;
