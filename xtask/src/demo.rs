//! `demo`: a host like Docker makes it, and three requests.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tests::{
    ruleset::{self, Backend, DockerLayout, DockerNetwork, Published},
    show::Shown,
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, SHORT, Server},
};

use crate::{build, setup::setup, shell::say};

const PORT: u16 = 18443;
const INNER_PORT: u16 = 8443;
const UNUSED_PORT: u16 = 9090;

/// Somebody's own rules, restored the way that forgets about Docker.
const OWN_RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                         -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n";

/// Builds the lab, shows three journeys, leaves nothing behind.
pub(crate) fn demo() -> Result<()> {
    setup()?;
    build::command(true)?;
    let docker = DockerHost::new()?;

    say(&format!(
        "A client asks the host for port {PORT}, which Docker publishes from a container's {INNER_PORT}."
    ));
    docker.request(PORT, &["--count", "2"], Wanted::Answer)?;

    say("Somebody restores a rule file of their own: Docker's filter chains are gone. The same request:");
    ruleset::restore(docker.lab.netns("host")?, Backend::Nft, Family::Ipv4, OWN_RULES)?;
    docker.request(PORT, &["--drops", "--count", "1"], Wanted::Silence)?;

    say(&format!("And port {UNUSED_PORT}, where nobody listens:"));
    docker.request(UNUSED_PORT, &["--drops", "--count", "1"], Wanted::Refusal)?;

    drop(docker);
    say("The lab is gone; nothing is left of it.");
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Answer,
    Silence,
    Refusal,
}

struct DockerHost {
    lab: Lab,
    _web: Server,
}

impl DockerHost {
    fn new() -> Result<Self> {
        let lab = Lab::new(Topology::Docker)?;
        let container = SocketAddr::new(lab.address("web", Family::Ipv4)?, INNER_PORT);
        let network = DockerNetwork {
            bridge: "docker0".to_owned(),
            subnet: lab.topology().subnet("bridge", Family::Ipv4)?,
            published: vec![Published { port: PORT, container }],
        };
        let rules = ruleset::docker(DockerLayout::Before28, &[network]);
        ruleset::restore(lab.netns("host")?, Backend::Nft, Family::Ipv4, &rules)?;
        let web = Server::tcp(lab.netns("web")?, container)?;
        Ok(Self { lab, _web: web })
    }

    /// Traces one request of the client in text.
    fn request(&self, port: u16, stop: &[&str], wanted: Wanted) -> Result<()> {
        let port_text = port.to_string();
        let arguments = [&["--port", port_text.as_str()], stop].concat();
        say(&format!("pathtrace {}", arguments.join(" ")));
        let shown = Shown::start(self.lab.netns("host")?, &arguments)?;
        let to = SocketAddr::new(self.lab.address("host", Family::Ipv4)?, port);
        let patience = if wanted == Wanted::Silence { SHORT } else { *LONG };
        let (answer, _) = traffic::tcp(self.lab.netns("client")?, to, patience)?;
        let as_wanted = match wanted {
            Wanted::Answer => matches!(answer, Answer::Answered { .. }),
            Wanted::Silence => answer == Answer::Silence,
            Wanted::Refusal => answer == Answer::Refused,
        };
        ensure!(as_wanted, "the request became {answer:?}");
        shown.wait()
    }
}
