//! The bpf system call, for what aya does not know.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use aya_obj::generated::bpf_cmd;

/// The bpf system call for commands that return a descriptor.
pub(super) fn bpf<T>(command: bpf_cmd, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(io::Error::other)?) })
}

/// The bpf system call.
pub(super) fn call<T>(command: bpf_cmd, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: attr is a live structure of the given size, as the command expects.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
