//! `monolithicSparse`: one file that grows, with its descriptor inside.
//!
//! `header` (the first sector and the places of all parts), `map` (where grains lie, as numbers), `survey` (may the tables be
//! trusted?), `tables` (the tables in their file, and what a loss of power leaves), `io` (the disk), `create` (a new file). `docs/vmdk.md` draws it.

mod create;
pub(in crate::vmdk) mod header;
mod io;
mod map;
mod survey;
mod tables;

pub use create::create_sparse;
pub use header::{Damage, Header};
pub use io::{SparseDisk, read_header};
pub use survey::{Survey, SurveyError, survey};
pub use tables::SparseError;
