//! The programs, by what they look at.
<<<<<<< HEAD
#![allow(unreachable_pub, reason = "programs are entry points of the object, not of a crate")]

mod device;
mod free;
mod netfilter;
mod route;
mod socket;
=======

pub(crate) mod peek;
>>>>>>> facts
