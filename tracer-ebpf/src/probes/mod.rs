//! The programs, by what they look at.

mod device;
mod free;
mod netfilter;
mod peek;
mod route;
mod socket;
