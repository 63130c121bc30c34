//! Laboratories for pathtrace: network namespaces with real devices, rules and traffic, the real binary beside
//! them, and readable assertions on what it says. Everything here needs root; nothing here outlives its test.

pub mod docker;
pub mod expect;
pub mod foreign;
pub mod machine;
pub mod netns;
pub mod pathtrace;
pub mod published;
pub mod random;
pub mod ruleset;
pub mod scenario;
pub mod show;
pub mod story;
pub mod topology;
pub mod traffic;
pub mod wait;
