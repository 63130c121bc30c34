//! Rule attribution: the live ruleset's structure (index), the walk that a set of moved counters tells (path),
//! and each rule's text (text).

mod effect;
pub mod index;
pub mod late;
mod legacy;
pub mod live;
mod nft;
pub mod nftrace;
pub mod path;
pub mod probes;
pub mod resolve;
pub mod text;
