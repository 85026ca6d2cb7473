//! How much may be on its way: the congestion control of the link.
//!
//! A copy over a VPN loses a packet in a thousand to the air, not to congestion. Cubic takes every loss for congestion
//! and used 17 % of a link of 100 Mbit/s and 40 ms that lost 0.1 %. Here a loss counts only when there are many, and what
//! is filled is the link: its rate is measured, and a short queue kept in front of it. See `docs/congestion.md`.
//!
//! [`Pilot`](pilot::Pilot) decides, without a clock or a connection; `controller` is what quinn asks.

mod controller;
mod pilot;
mod round;
#[cfg(test)]
mod tests;

pub use controller::SteadyConfig;
