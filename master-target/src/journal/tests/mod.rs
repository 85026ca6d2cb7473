//! Tests of the journal as a whole, with apply and the point reader: `rules` shows each rule alone, `compare`
//! comparison by digest, `sums` what rots, `model` drives
//! everything at random against full copies. `rig` is what both stand on.
#![allow(clippy::unwrap_used)]

mod compare;
mod model;
mod rig;
mod room;
mod rules;
mod scrub;
mod source;
mod sums;
