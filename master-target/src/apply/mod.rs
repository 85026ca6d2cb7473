//! From the journal to the disks: durable sets in order, and the content of a catching-up as it comes.
//!
//! Each round reads what is about to be overwritten for the first time in its generation, saves it durably, and only
//! then writes (rule J15). A set is applied again from the mark after a crash; doing it twice gives the same disks.
//! [`GroupDisks`] is what apply needs of the disks; `content` merges frames, `round` turns them into reads, undo and
//! writes, `pace` says how hard the disks are used, `compare` tells
//! what of the source's content they hold already, [`Applier`] drives them all.

mod applier;
mod compare;
mod content;
mod disks;
mod error;
mod mem_disks;
mod pace;
mod round;

pub use applier::{Applier, Progress, Put};
pub use disks::GroupDisks;
pub use error::ApplyError;
pub use mem_disks::MemDisks;
