//! Rule attribution: the live ruleset's structure (index), the walk that a set of moved counters tells (path),
//! and each rule's text (text).

pub mod index;
pub mod nftrace;
pub mod path;
pub mod resolve;
pub mod text;
