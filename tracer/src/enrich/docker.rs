//! Docker's list of running containers, asked over its socket; a daemon that does not answer soon is left alone for a while.

use std::{
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::model::Protocol;

/// How long one read or write on Docker's socket may take: a busy daemon with many containers needs its time, and what is
/// told of a packet waits for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a daemon that took longer is not asked again.
const REST: Duration = Duration::from_secs(60);
/// Larger answers are not read; a host with a thousand containers gives about 2 MB.
const LARGEST_ANSWER: u64 = 16 << 20;

/// What Docker said last.
#[derive(Debug, Default)]
pub(super) struct Docker {
    containers: Vec<Container>,
    /// Until then the last answer has to do.
    rests_until: Option<Instant>,
}

impl Docker {
    /// The containers that run `now`; those of the last answer where the daemon takes too long, none where there is no daemon.
    pub(super) fn containers(&mut self, socket: &Path, now: Instant) -> &[Container] {
        self.ask(socket, now, PATIENCE)
    }

    fn ask(&mut self, socket: &Path, now: Instant, patience: Duration) -> &[Container] {
        if self.rests_until.is_none_or(|until| now >= until) {
            self.rests_until = None;
            match containers(socket, patience) {
                Ok(containers) => self.containers = containers,
                Err(error) if took_too_long(&error) => self.rests_until = Some(now + REST),
                Err(_) => self.containers.clear(),
            }
        }
        &self.containers
    }
}

fn took_too_long(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    /// Ports of the host that lead to it.
    pub(super) published: Vec<(Protocol, u16)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    network_settings: Networks,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Port {
    public_port: Option<u16>,
    #[serde(rename = "Type")]
    protocol: String,
}

#[derive(Default, Deserialize)]
struct Networks {
    #[serde(default, rename = "Networks")]
    by_name: std::collections::BTreeMap<String, Attachment>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(default, rename = "IPAddress")]
    v4: String,
    #[serde(default, rename = "GlobalIPv6Address")]
    v6: String,
}

/// # Errors
/// When there is no such socket, it may not be opened, or it does not answer in time with what Docker answers.
fn containers(socket: &Path, patience: Duration) -> Result<Vec<Container>> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    // HTTP/1.0 so that the answer is neither chunked nor kept open.
    stream.write_all(b"GET /containers/json HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(LARGEST_ANSWER).read_to_string(&mut answer).context("read Docker's answer")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("Docker's answer has no body")?;
    parse(body)
}

fn parse(body: &str) -> Result<Vec<Container>> {
    let listed: Vec<Listed> =
        serde_json::from_str(body).context("Docker's answer is not a container list")?;
    Ok(listed
        .into_iter()
        .map(|container| Container {
            name: container.names.first().map_or_else(
                || container.id.chars().take(12).collect(),
                |name| name.trim_start_matches('/').replace(char::is_control, "?"),
            ),
            id: container.id,
            addresses: (container.network_settings.by_name.into_values())
                .flat_map(|network| [network.v4, network.v6])
                .filter_map(|address| address.parse().ok())
                .collect(),
            published: container.ports.iter().filter_map(published).collect(),
        })
        .collect())
}

fn published(port: &Port) -> Option<(Protocol, u16)> {
    let protocol = match port.protocol.as_str() {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "sctp" => Protocol::SCTP,
        _ => return None,
    };
    Some((protocol, port.public_port?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const BODY: &str = r#"[{"Id":"abc","Names":["/web"],"Ports":[{"PrivatePort":80,"PublicPort":8080,"Type":"tcp"},
        {"PrivatePort":81,"Type":"tcp"}],"NetworkSettings":{"Networks":
        {"bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":""}}}},{"Id":"0123456789abcdef"}]"#;

    #[test]
    fn the_list_gives_names_and_addresses() {
        let containers = parse(BODY).unwrap();
        assert_eq!(containers[0].name, "web");
        assert_eq!(containers[0].addresses, ["172.17.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(containers[0].published, [(Protocol::TCP, 8080)]);
        assert_eq!(containers[1].name, "0123456789ab");
        assert!(parse("{}").is_err());
    }

    #[test]
    fn a_daemon_that_hangs_is_left_alone_for_a_while_and_its_last_answer_stands() {
        const BRIEF: Duration = Duration::from_millis(20);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut docker = Docker { containers: parse(BODY).unwrap(), rests_until: None };
        let asked = Instant::now();
        assert_eq!(docker.ask(&path, asked, BRIEF).len(), 2);
        drop(listener.accept().unwrap());
        // No second question until a minute has passed: nobody is there to answer, and the answer stays.
        drop(listener);
        let soon = asked + REST.checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(docker.ask(&path, soon, BRIEF).len(), 2);
        assert_eq!(docker.ask(&path, asked + REST, BRIEF), []);
        assert_eq!(Docker::default().ask(&dir.path().join("none"), asked, BRIEF), []);
    }
}
