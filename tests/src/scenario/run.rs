//! Building a case's lab, sending its traffic, and comparing what pathtrace says.

use std::{
    env,
    net::{SocketAddr, TcpStream},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Case, apart,
    file::{Action, Attempt, Becomes, Docker, Listen, Send, ServerKind, Step},
    whole_machine::WholeMachine,
};
use crate::{
    expect, machine,
    netns::checked,
    pathtrace::{self, Pathtrace},
    ruleset::{self, Backend, DockerNetwork, Published},
    story,
    topology::Lab,
    traffic::{self, Answer, LONG, SHORT, Server},
};

/// A case's lab with its rules and servers.
#[derive(Debug)]
pub struct Stage<'a> {
    case: &'a Case,
    lab: Lab,
    _servers: Vec<Server>,
    _machine: WholeMachine,
}

impl Case {
    /// Builds the lab, loads the rules, starts the servers.
    ///
    /// # Errors
    /// When this process is not root, a tool refuses, or the machine is not to be changed as the case wants.
    pub fn build(&self) -> Result<Stage<'_>> {
        let mut machine = WholeMachine::wait_for(&self.scenario.machine)?;
        let lab = Lab::new(self.scenario.topology)?;
        for step in &self.scenario.prepare {
            self.take(&lab, step).with_context(|| format!("{}: prepare {}", self.name, step.space))?;
        }
        let servers = self.scenario.server.iter().map(|listen| start(&lab, listen)).collect::<Result<_>>()?;
        machine.set(&self.scenario.machine)?;
        Ok(Stage { case: self, lab, _servers: servers, _machine: machine })
    }

    fn take(&self, lab: &Lab, step: &Step) -> Result<()> {
        let netns = lab.netns(&step.space)?;
        let lines =
            |text: &str| text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
        match &step.action {
            Action::Restore(file) => ruleset::restore(netns, self.backend, self.family, file),
            Action::RestoreOther(file) => ruleset::restore(netns, self.backend.other(), self.family, file),
            Action::Iptables(commands) => {
                let commands: Vec<String> = lines(commands);
                commands.iter().try_for_each(|line| ruleset::iptables(netns, self.backend, self.family, line))
            }
            Action::Nft(script) => ruleset::nft(netns, script),
            Action::Docker(docker) => {
                ruleset::restore(netns, self.backend, self.family, &self.docker_rules(lab, docker)?)
            }
            Action::Sysctl(settings) => {
                settings.iter().try_for_each(|(name, value)| netns.set_sysctl(name, value))
            }
            Action::Run(commands) => {
                let commands: Vec<String> = lines(commands);
                commands.iter().try_for_each(|line| netns.exec(line).map(drop))
            }
        }
    }

    fn docker_rules(&self, lab: &Lab, docker: &Docker) -> Result<String> {
        let published = docker
            .publish
            .iter()
            .map(|p| Published { port: p.port.0, container: SocketAddr::new(p.to, p.to_port.0) })
            .collect();
        let mut networks = Vec::new();
        for (bridge, address) in lab.topology().bridges() {
            let subnet = lab.topology().subnet(address, self.family)?;
            networks.push(DockerNetwork { bridge: (*bridge).to_owned(), subnet, published: Vec::new() });
        }
        networks.first_mut().context("Docker's rules need a lab with bridges")?.published = published;
        Ok(ruleset::docker(docker.layout, &networks))
    }
}

fn start(lab: &Lab, listen: &Listen) -> Result<Server> {
    let netns = lab.netns(&listen.space)?;
    let address = SocketAddr::new(listen.address, listen.port.0);
    match listen.kind {
        ServerKind::Tcp => Server::tcp(netns, address),
        ServerKind::Udp => Server::udp(netns, address),
        ServerKind::TransparentTcp => Server::transparent_tcp(netns, address),
        ServerKind::TcpProxy => {
            let to = listen.to.zip(listen.to_port).context("a proxy needs `to` and `to_port`")?;
            Server::proxy(netns, address, SocketAddr::new(to.0, to.1.0))
        }
    }
}

/// An attempt whose connection is still open.
struct Held<'a> {
    attempt: &'a Attempt,
    connection: TcpStream,
}

impl Held<'_> {
    fn finish(self) -> Result<()> {
        let answer = traffic::exchange(self.connection, *LONG)?;
        self.attempt.check(answer).with_context(|| format!("{:?}", self.attempt))
    }
}

impl Attempt {
    fn check(&self, answer: Answer) -> Result<()> {
        match (self.result, answer) {
            (Some(Becomes::Answered), Answer::Answered { seen_as }) => {
                let differs = self.seen_as.is_some() && self.seen_as != seen_as;
                ensure!(!differs, "the server saw {seen_as:?}");
                Ok(())
            }
            (Some(Becomes::Refused), Answer::Refused)
            | (Some(Becomes::Unreachable), Answer::Unreachable)
            | (Some(Becomes::Silence) | None, Answer::Silence) => Ok(()),
            (_, other) => bail!("became {other:?}"),
        }
    }
}

impl Stage<'_> {
    /// Sends the traffic and checks what becomes of it.
    ///
    /// # Errors
    /// When an attempt ends otherwise than the scenario says.
    pub fn check_traffic(&self) -> Result<()> {
        self.send_all()?.into_iter().try_for_each(Held::finish)
    }

    /// Returns the connections that are to stay open for a while.
    fn send_all(&self) -> Result<Vec<Held<'_>>> {
        let mut held = Vec::new();
        for (number, attempt) in self.case.scenario.traffic.iter().enumerate() {
            let sent = self.send(attempt);
            held.extend(sent.with_context(|| format!("{}: traffic {number}: {attempt:?}", self.case.name))?);
        }
        Ok(held)
    }

    fn send<'a>(&self, attempt: &'a Attempt) -> Result<Option<Held<'a>>> {
        let netns = self.lab.netns(&attempt.space)?;
        let patience = if attempt.result == Some(Becomes::Silence) { SHORT } else { *LONG };
        let to =
            || Ok::<_, anyhow::Error>(SocketAddr::new(attempt.to, attempt.port.context("no port given")?.0));
        let answer = match attempt.send {
            Send::Tcp if attempt.hold => match traffic::open(netns, to()?, patience)? {
                Ok(connection) => return Ok(Some(Held { attempt, connection })),
                Err(answer) => answer,
            },
            Send::Tcp => traffic::tcp(netns, to()?, patience)?.0,
            Send::Udp => traffic::udp(netns, attempt.source_port, to()?, patience)?,
            Send::Ping => traffic::ping(netns, attempt.to, patience)?,
            Send::StrayAck => {
                traffic::stray_ack(netns, attempt.source.context("no source given")?, to()?)?;
                Answer::Silence
            }
            Send::Raw => {
                traffic::raw(netns, attempt.to, attempt.protocol.context("no protocol given")?, &[0x5a; 32])?;
                Answer::Silence
            }
        };
        attempt.check(answer)?;
        Ok(None)
    }

    /// Traces the traffic and compares every expected journey. The folder `PATHTRACE_STORIES` gets what was shown.
    ///
    /// # Errors
    /// The first expectation that is not met, with the journeys that come close.
    pub fn check_trace(&self) -> Result<()> {
        let trace =
            Pathtrace::start(Some(self.lab.netns(&self.case.scenario.trace.space)?), &self.arguments()?)?;
        let held = self.send_all()?;
        let nft_types = machine::has_nft_types() || !self.has_nft_rules();
        for expected in &self.case.scenario.journey {
            let mut pattern = Value::Object(expected.pattern.clone());
            if !nft_types {
                apart::without_nft_rules(&mut pattern, self.case.backend);
            }
            let met = trace.wait_for(&expected.about, |lines| expect::find(lines, &pattern).is_some());
            if let Err(error) = met {
                let lines = trace.lines();
                bail!(
                    "{}: {}\n{}\n({error:#})",
                    self.case.name,
                    expected.about,
                    expect::explain(&lines, &pattern)
                );
            }
        }
        self.check_doctor()?;
        held.into_iter().try_for_each(Held::finish)?;
        let report = trace.stop()?;
        ensure!(report.status.success(), "pathtrace ended with {}: {}", report.status, report.stderr);
        ensure!(report.summary()?["events_lost"] == 0, "events were lost: {}", report.summary()?);
        if let Some(folder) = env::var_os("PATHTRACE_STORIES") {
            story::write(Path::new(&folder), &self.case.name, &report.lines)?;
        }
        if self.case.scenario.healthy {
            let sick = report.journeys().into_iter().find(|journey| {
                journey["findings"] != Value::Array(Vec::new())
                    || !["delivered", "forwarded"].iter().any(|good| journey["outcome"]["result"] == *good)
            });
            ensure!(
                sick.is_none(),
                "a healthy scenario has:\n{}",
                expect::pretty(sick.unwrap_or(&Value::Null))
            );
        }
        Ok(())
    }

    /// Whether the case has rules of nft, so that their types are there by now if ever.
    fn has_nft_rules(&self) -> bool {
        let by_script = |step: &Step| matches!(step.action, Action::Nft(_) | Action::RestoreOther(_));
        self.case.backend == Backend::Nft || self.case.scenario.prepare.iter().any(by_script)
    }

    /// Compares every expected item of `pathtrace doctor` in the traced namespace.
    fn check_doctor(&self) -> Result<()> {
        let scenario = &self.case.scenario;
        if scenario.doctor.is_empty() {
            return Ok(());
        }
        let mut doctor = pathtrace::command(Some(self.lab.netns(&scenario.trace.space)?))?;
        let said: Value = serde_json::from_str(&checked(doctor.args(["doctor", "--json"]))?)?;
        let items = said["items"].as_array().context("doctor has no items")?;
        for pattern in &scenario.doctor {
            let met = items.iter().any(|item| expect::matches(pattern, item).is_ok());
            ensure!(met, "{}: doctor does not say {pattern}, but {}", self.case.name, said["items"]);
        }
        Ok(())
    }

    /// The lab, for those who trace it otherwise.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The scenario's arguments for pathtrace.
    ///
    /// # Errors
    /// When they name a namespace that the lab has not.
    pub fn arguments(&self) -> Result<Vec<&str>> {
        let words = self.case.scenario.trace.arguments.split_whitespace();
        words
            .map(|word| match word.strip_prefix('@') {
                Some(role) => Ok(self.lab.netns(role)?.name()),
                None => Ok(word),
            })
            .collect()
    }
}
