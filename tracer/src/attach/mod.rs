//! Loads the kernel side and puts its probes in place. Everything here is gone when its descriptors are closed,
//! also after SIGKILL.

pub mod netfilter;
pub mod object;
