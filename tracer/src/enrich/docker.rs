//! Docker's list of running containers, asked over its socket within a short time or not at all.

use std::{
    io::{Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::model::Protocol;

/// How long one read or write on Docker's socket may take.
const PATIENCE: Duration = Duration::from_millis(150);
/// Larger answers are not read; a host with a thousand containers gives about 2 MB.
const LARGEST_ANSWER: u64 = 16 << 20;

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
pub(super) fn containers(socket: &Path) -> Result<Vec<Container>> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
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
    fn a_socket_that_never_answers_costs_little_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(containers(&path).is_err());
        assert!(containers(&dir.path().join("none")).is_err());
    }
}
