//! What sockets are limited to, by sock_diag: `/proc/net` does not tell.
//!
//! The kernel loads a module to answer where that is not there yet, which would change the machine: it is asked only
//! where all of it is there.

use std::{collections::HashMap, fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::Limits;
use crate::kernel::rtnetlink::dump;

/// Limits by inode, of listening TCP and of UDP sockets; what could not be asked for is not in it.
pub(super) fn limits(proc: &Path) -> HashMap<u64, Limits> {
    let mut found = HashMap::new();
    for (module, protocol, states) in
        [("tcp_diag", IPPROTO_TCP, StateFlags::LISTEN), ("udp_diag", IPPROTO_UDP, StateFlags::all())]
    {
        if is_there(proc, "inet_diag") && is_there(proc, module) {
            // Without an answer the limits are not known.
            let _ = ask(protocol, &states, &mut found);
        }
    }
    found
}

/// Whether the kernel needs not load that module: it is loaded, or built in, or there are no modules.
fn is_there(proc: &Path, module: &str) -> bool {
    match fs::read_to_string(proc.join("modules")) {
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(_) => false,
        Ok(loaded) => is_loaded(&loaded, module) || is_built_in(proc, module).unwrap_or(false),
    }
}

fn is_loaded(modules: &str, module: &str) -> bool {
    modules.lines().any(|line| {
        let mut words = line.split(' ');
        words.next() == Some(module) && words.nth(3) == Some("Live")
    })
}

fn is_built_in(proc: &Path, module: &str) -> Option<bool> {
    let release = fs::read_to_string(proc.join("sys/kernel/osrelease")).ok()?;
    let list = Path::new("/lib/modules").join(release.trim()).join("modules.builtin");
    let file = format!("/{module}.ko");
    Some(fs::read_to_string(list).ok()?.lines().any(|line| line.ends_with(&file)))
}

fn ask(protocol: u8, states: &StateFlags, found: &mut HashMap<u64, Limits>) -> Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).context("open a sock_diag socket")?;
    socket.bind_auto().context("bind the sock_diag socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("connect the sock_diag socket")?;
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol,
            extensions: ExtensionFlags::empty(),
            states: states.clone(),
            socket_id,
        };
        dump(&socket, SockDiagMessage::InetRequest(request), |message| {
            if let SockDiagMessage::InetResponse(response) = message {
                found.insert(u64::from(response.header.inode), limits_of(&response));
            }
        })?;
    }
    Ok(())
}

fn limits_of(response: &InetResponse) -> Limits {
    let device = response.header.socket_id.interface_id;
    let v6_only = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::SkV6Only(only) => Some(*only),
        _ => None,
    });
    Limits { device: (device != 0).then_some(device), v6_only }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_that_would_load_a_module() {
        let proc = tempfile::tempdir().unwrap();
        assert!(is_there(proc.path(), "tcp_diag"), "a kernel without modules has all that it will have");
        let list = "tcp_diag 12288 0 - Live 0x0\nudp_diag 12288 0 - Loading 0x0\n";
        fs::write(proc.path().join("modules"), list).unwrap();
        assert!(is_there(proc.path(), "tcp_diag"));
        assert!(!is_there(proc.path(), "udp_diag") && !is_there(proc.path(), "inet_diag"));
    }
}
