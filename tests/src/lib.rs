//! What the whole-system tests share: a site with both agents, NBD clients, a model of the guest's view, outside judges.
//!
//! A test builds a [`site::Site`] (keys, configurations, disks in one temporary folder), starts the real binaries,
//! lets clients write, and judges what it finds with [`guest::Model`] or with qemu-img, nbdinfo and fio. Fakes and
//! checkers live in separate files: [`load`] writes, [`guest`] judges, and neither looks into the agents.
//!
//! The binaries are those next to the test executable: `cargo build --workspace --bins` makes them, and `make test`
//! does that first. A harness that can't go on panics with what it was doing: there is nobody to hand an error to.

#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "the harness is a driver: it waits for real processes on a real clock")]

pub mod agent;
pub mod changing;
pub mod faulty_disk;
pub mod file_system;
pub mod folder;
pub mod guest;
pub mod image;
pub mod load;
pub mod loop_device;
pub mod mounted;
pub mod mounts;
pub mod namespaces;
pub mod nbd;
pub mod nbdfuse;
pub mod postgres;
pub mod proxy;
pub mod random;
pub mod rogue;
pub mod sector;
pub mod sim;
pub mod site;
pub mod tool;
pub mod torture;
pub mod verdict;
pub mod wait;
