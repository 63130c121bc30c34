//! The programs, by what they look at.
