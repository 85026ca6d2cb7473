//! The rules of the journal, one by one.

mod bulk;
mod conversation;
mod faults;
mod points;
mod writes;
