//! The programs, by what they look at.

mod device;
mod forget;
mod free;
mod kprobe;
mod netfilter;
mod peek;
mod route;
mod socket;
mod verdict;
mod xdp;
