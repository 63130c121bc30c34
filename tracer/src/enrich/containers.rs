//! Names of containers and namespaces, for whatever belongs to one. All of it is a help, none is required: what
//! cannot be read has no name.

use std::{collections::BTreeMap, fs, net::IpAddr, os::unix::fs::MetadataExt, path::Path};

use crate::model::Protocol;

use super::{Roots, docker::Container};

/// Names by namespace and by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    by_netns: BTreeMap<u32, String>,
    by_address: BTreeMap<IpAddr, String>,
    by_port: BTreeMap<(u8, u16), String>,
}

impl Containers {
    /// Names from `/run/netns`, from the cgroups of processes outside this process's namespace, and from Docker.
    pub(super) fn read(roots: &Roots, docker: &[Container]) -> Self {
        let own = netns_inode(&roots.proc.join("self/ns/net"));
        let mut by_netns = BTreeMap::new();
        for process in processes(&roots.proc) {
            let Some(inode) = netns_inode(&process.join("ns/net")).filter(|inode| Some(*inode) != own) else {
                continue;
            };
            if let Some((runtime, id)) =
                fs::read_to_string(process.join("cgroup")).ok().as_deref().and_then(cgroup)
            {
                let name = docker
                    .iter()
                    .find(|container| container.id.starts_with(&id))
                    .map_or_else(|| format!("{runtime} {}", &id[..12]), |container| container.name.clone());
                by_netns.entry(inode).or_insert(name);
            }
        }
        for (inode, name) in named_namespaces(&roots.run.join("netns")) {
            by_netns.entry(inode).or_insert(name);
        }
        let (mut by_address, mut by_port) = (BTreeMap::new(), BTreeMap::new());
        for container in docker {
            by_address.extend(container.addresses.iter().map(|address| (*address, container.name.clone())));
            by_port.extend(
                container
                    .published
                    .iter()
                    .map(|(protocol, port)| ((protocol.0, *port), container.name.clone())),
            );
        }
        Self { by_netns, by_address, by_port }
    }

    /// From lists of names, for tests and recordings.
    #[must_use]
    pub fn with_names(
        by_netns: impl IntoIterator<Item = (u32, String)>,
        by_address: impl IntoIterator<Item = (IpAddr, String)>,
        by_port: impl IntoIterator<Item = ((Protocol, u16), String)>,
    ) -> Self {
        Self {
            by_netns: by_netns.into_iter().collect(),
            by_address: by_address.into_iter().collect(),
            by_port: by_port.into_iter().map(|((protocol, port), name)| ((protocol.0, port), name)).collect(),
        }
    }

    /// Container or `ip netns` name of a namespace, by inode number.
    #[must_use]
    pub fn of_netns(&self, inode: u32) -> Option<&str> {
        self.by_netns.get(&inode).map(String::as_str)
    }

    #[must_use]
    pub fn of_address(&self, address: IpAddr) -> Option<&str> {
        self.by_address.get(&address).map(String::as_str)
    }

    /// The container for which Docker publishes a port of the host.
    #[must_use]
    pub fn publishing(&self, protocol: Protocol, port: u16) -> Option<&str> {
        self.by_port.get(&(protocol.0, port)).map(String::as_str)
    }
}

fn netns_inode(path: &Path) -> Option<u32> {
    fs::metadata(path).ok()?.ino().try_into().ok()
}

fn processes(proc: &Path) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .map(|entry| entry.path())
}

fn named_namespaces(dir: &Path) -> impl Iterator<Item = (u32, String)> {
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?.replace(char::is_control, "?");
        Some((netns_inode(&entry.path())?, name))
    })
}

/// Runtime and id from a process's cgroup path: `/docker/ID`, `docker-ID.scope`, `cri-containerd-ID.scope`,
/// `libpod-ID.scope`, `/kubepods/.../ID`, `crio-ID.scope`.
fn cgroup(text: &str) -> Option<(&'static str, String)> {
    let runtimes = [
        ("docker", "docker"),
        ("libpod", "podman"),
        ("cri-containerd", "containerd"),
        ("crio", "cri-o"),
        ("kubepods", "kubernetes"),
        ("containerd", "containerd"),
    ];
    let id = text.split(['/', '-', ':', '.', '\n']).find(|word| is_container_id(word))?;
    let (_, runtime) = runtimes.into_iter().find(|(mark, _)| text.contains(mark))?;
    Some((runtime, id.to_owned()))
}

fn is_container_id(word: &str) -> bool {
    word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn cgroup_paths_of_the_common_runtimes_name_the_container() {
        for (path, runtime) in [
            (format!("0::/system.slice/docker-{ID}.scope\n"), "docker"),
            (format!("12:cpu:/docker/{ID}\n"), "docker"),
            (format!("0::/machine.slice/libpod-{ID}.scope/container\n"), "podman"),
            (format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n"), "containerd"),
        ] {
            assert_eq!(cgroup(&path), Some((runtime, ID.to_owned())), "{path}");
        }
        assert_eq!(cgroup("0::/user.slice/session-1.scope\n"), None);
        assert_eq!(cgroup(&format!("0::/unknown/{ID}\n")), None);
    }

    #[test]
    fn namespaces_are_named_after_containers_first() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { proc: dir.path().join("proc"), run: dir.path().join("run") };
        let ns = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            path
        };
        let (own, contained, plain) = (ns("own"), ns("contained"), ns("plain"));
        for (pid, ns, group) in [
            ("self", &own, "0::/"),
            ("5", &contained, &*format!("0::/docker/{ID}")),
            ("6", &plain, "0::/user.slice"),
        ] {
            let process = roots.proc.join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            symlink(ns, process.join("ns/net")).unwrap();
            fs::write(process.join("cgroup"), group).unwrap();
        }
        fs::create_dir_all(roots.run.join("netns")).unwrap();
        symlink(&plain, roots.run.join("netns/lab")).unwrap();
        let containers = Containers::read(&roots, &[]);
        assert_eq!(containers.of_netns(netns_inode(&contained).unwrap()), Some("docker 0123456789ab"));
        assert_eq!(containers.of_netns(netns_inode(&plain).unwrap()), Some("lab"));
        assert_eq!(containers.of_netns(netns_inode(&own).unwrap()), None);
    }
}
