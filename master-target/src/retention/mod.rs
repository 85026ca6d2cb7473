//! What history there is to go back to, and when it ends.
//!
//! [`points`](self) lists and resolves recovery points, `pins` keeps some of them; `policy` decides which stay as they grow
//! older, `thin` carries that out, `prune` removes the oldest generations whole; `compressibility` marks where content begins
//! to look encrypted. Content is read by `crate::recover`.

mod compressibility;
mod forecast;
mod pins;
mod points;
mod policy;
mod prune;
mod thin;

pub use compressibility::drops;
pub use forecast::Forecast;
pub use pins::PinError;
pub use points::{PointInfo, ResolveError};
pub use policy::{ThinError, ThinPolicy, ThinRule};
pub use prune::time_for_ages;
