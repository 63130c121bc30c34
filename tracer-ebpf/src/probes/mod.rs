//! The programs, by what they look at.

pub(crate) mod peek;
