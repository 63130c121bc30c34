//! Published ports: DNAT rules and the filter rules that must go with them, by whoever made them.

use crate::model::{CtState, DecidedBy, Finding, Hook, NetfilterStage, Verdict};

use super::{
    Answer, Case, Check, VERDICTS,
    case::decided,
    leg::Leg,
    ruleset::{DockerChains, Ending, Placed, RulesetView, Target, docker_chains},
    words,
};

const RESTART: &str = "systemctl restart docker  # Docker writes its chains again. To load your own rules without wiping Docker's: iptables-restore --noflush; rules about containers belong in DOCKER-USER";

/// The destination was rewritten, and then nothing in FORWARD lets the packet through.
pub(super) struct ForwardDropAfterDnat;

impl Check for ForwardDropAfterDnat {
    fn code(&self) -> &'static str {
        "forward-drop-after-dnat"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &VERDICTS
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let found = case.judge().and_then(|(leg, judge)| {
            let rewritten = leg.destination_rewritten()?;
            (case.is_original() && judge.hook == Hook::Forward && nothing_let_it_through(judge))
                .then_some((leg, judge, rewritten))
        });
        let Some((leg, judge, rewritten)) = found else { return Answer::No };
        let summary = format!(
            "{} was translated to {}, but nothing in FORWARD ({}) lets it through to there: {} dropped it.",
            words::packet(case.protocol(), rewritten.before),
            case.name_with_port(judge.before),
            words::backend(judge),
            taker(judge),
        );
        let mut evidence = vec![words::rewriting(rewritten), words::judgement(judge)];
        let chains = case.ruleset(leg.netns).map(|ruleset| docker_chains(ruleset, case.is_ipv6()));
        let wiped = matches!(chains, Some(DockerChains { nat: true, filter: false }));
        if wiped {
            evidence.push(
                "ruleset: nat still has Docker's chain DOCKER, but FORWARD reaches none of Docker's filter chains: they were wiped, as a rule restore or a flush does".to_owned(),
            );
        }
        let fix = if wiped { RESTART.to_owned() } else { words::accept_command(case, judge, None) };
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// The policy took it, or a rule that takes whatever no other rule wanted: one without conditions at the end of
/// FORWARD, or the one with which Docker ends its own chains.
fn nothing_let_it_through(judge: &NetfilterStage) -> bool {
    if decided(judge, DecidedBy::Policy) {
        return true;
    }
    let Some(rule) = words::deciding_rule(judge)
        .filter(|_| decided(judge, DecidedBy::Rule) && judge.verdict == Some(Verdict::Drop))
    else {
        return false;
    };
    let in_base = judge.chain.as_deref() == Some(rule.chain.as_str());
    let catch_all = rule.text.as_deref().is_some_and(|text| {
        let words: Vec<&str> = text.split(' ').filter(|word| *word != "counter").collect();
        matches!(words.as_slice(), ["-A", _, "-j", "DROP"] | ["drop"])
    });
    (in_base && catch_all) || rule.chain == "DOCKER"
}

fn taker(judge: &NetfilterStage) -> String {
    match words::deciding_rule(judge).filter(|_| judge.decided_by == Some(DecidedBy::Rule)) {
        Some(rule) => words::rule(rule),
        None => "its policy".to_owned(),
    }
}

/// A packet for a published port was not translated and ended at the host itself.
pub(super) struct PublishedPortNotTranslated;

impl Check for PublishedPortNotTranslated {
    fn code(&self) -> &'static str {
        "published-port-not-translated"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &["no-listener", "listener-on-other-address", "dropped-by-policy"]
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        look_published(self.code(), case).into()
    }
}

fn look_published(code: &'static str, case: &Case<'_>) -> Option<Finding> {
    let leg = case.last().filter(|leg| {
        case.is_bad() && case.opens() && !leg.starts_here() && leg.destination_rewritten().is_none()
    })?;
    let dropped_at_input =
        case.judge().is_some_and(|(_, stage)| stage.hook == Hook::Input && decided(stage, DecidedBy::Policy));
    if !case.found_no_socket() && !dropped_at_input {
        return None;
    }
    let port = leg.exit.destination_port?;
    let mut evidence = published(case, &leg, port)?;
    let summary = format!(
        "{} is for a published port, but no rule translated it to the container, so the host itself {} it.",
        words::packet(case.protocol(), leg.exit),
        words::ending(case),
    );
    let docker = case.ruleset(leg.netns).is_some_and(|ruleset| {
        let chains = docker_chains(ruleset, case.is_ipv6());
        chains.nat || chains.filter
    });
    if let Some(judge) = leg.judge() {
        evidence.push(words::judgement(judge));
    }
    let fix = if docker {
        RESTART
    } else {
        "# write the DNAT rule again, in nat PREROUTING, with conditions that this packet meets"
    };
    Some(words::finding(code, &summary, &evidence, fix))
}

/// What says that the port is published; `None` when nothing does.
fn published(case: &Case<'_>, leg: &Leg<'_>, port: u16) -> Option<Vec<String>> {
    let ruleset = case.ruleset(leg.netns);
    let listed = case
        .surroundings
        .iter()
        .find_map(|known| known.containers.known()?.publishing(case.protocol(), port))
        .map(|container| format!("Docker: container {container} publishes {} port {port}", case.protocol()));
    let relay = case.sockets(leg.netns).and_then(|sockets| {
        let socket = sockets.listeners(case.protocol(), port).find(|socket| {
            socket.owner.as_ref().is_some_and(|owner| RELAYS.contains(&owner.comm.as_str()))
        })?;
        Some(format!(
            "socket: {} listens on {}, which it does for published ports",
            socket.owner_text(),
            socket.local
        ))
    });
    let rule = ruleset.and_then(|ruleset| unused_rule(case, leg, ruleset, port));
    let left = ruleset.and_then(|ruleset| filter_without_nat(case, ruleset, port));
    let evidence: Vec<String> = listed.into_iter().chain(relay).chain(rule).chain(left).collect();
    (!evidence.is_empty()).then_some(evidence)
}

/// Programs that container engines start to listen on published ports.
const RELAYS: [&str; 4] = ["docker-proxy", "rootlessport", "rootlesskit", "conmon"];

/// A DNAT rule for this port that could not take this packet.
fn unused_rule(case: &Case<'_>, leg: &Leg<'_>, ruleset: &RulesetView, port: u16) -> Option<String> {
    let to_local = leg.is_local(leg.exit.destination, case.network(leg.netns));
    let question = case.question(leg, leg.exit, to_local);
    let for_port = |placed: &Placed<'_>| {
        let wanted = &placed.rule.facts.selectors;
        wanted.destination_port.as_ref().is_some_and(|condition| {
            !condition.negated
                && condition.any_of.iter().any(|(first, last)| (*first..=*last).contains(&port))
        }) && wanted.protocol.as_ref().is_none_or(|condition| condition.any_of.contains(&case.protocol()))
    };
    let could_take = ruleset.destination_nat_for(Hook::Prerouting, &question);
    let rule = ruleset
        .destination_nat(case.is_ipv6())
        .filter(for_port)
        .find(|placed| !could_take.iter().any(|taking| std::ptr::eq(taking.rule, placed.rule)))?;
    let (text, chain) = (&rule.rule.text, &rule.chain.name);
    Some(if rule.table.is_reached(chain) {
        format!(
            "ruleset: `{text}` is there, but it, or the way to its chain, asks for something that this packet is not"
        )
    } else {
        format!("ruleset: `{text}` is there, but no rule jumps to its chain {chain}")
    })
}

/// Docker's filter rules let packets through to containers, and nat translates to none of them.
fn filter_without_nat(case: &Case<'_>, ruleset: &RulesetView, port: u16) -> Option<String> {
    if !ruleset.unread.is_empty() || ruleset.destination_nat(case.is_ipv6()).next().is_some() {
        return None;
    }
    let accepts = |placed: &Placed<'_>| {
        let facts = &placed.rule.facts;
        placed.chain.name == "DOCKER"
            && placed.table.judges(case.is_ipv6())
            && facts.target == Target::Accept
            && facts.selectors.destination.is_some()
            && facts.selectors.protocol.as_ref().is_none_or(|wanted| wanted.any_of.contains(&case.protocol()))
    };
    let same_port = |placed: &Placed<'_>| {
        let wanted = placed.rule.facts.selectors.destination_port.as_ref();
        wanted.is_some_and(|wanted| wanted.any_of.contains(&(port, port)))
    };
    let rules: Vec<_> = ruleset.rules().filter(accepts).collect();
    let placed = rules.iter().find(|placed| same_port(placed)).or(rules.first())?;
    let doubt = if same_port(placed) {
        String::new()
    } else {
        format!("; if no container publishes port {port} (`docker ps`), then simply nothing listens there")
    };
    Some(format!(
        "ruleset: filter still lets packets through to a container (`{}`), but nat has no DNAT rule at all: it was emptied{doubt}",
        placed.rule.text
    ))
}

/// A rule in INPUT is meant for packets that, being translated, never pass INPUT.
pub(super) struct RuleOnUnusedChain;

impl Check for RuleOnUnusedChain {
    fn code(&self) -> &'static str {
        "rule-on-unused-chain"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let opening = case.is_fine() && case.opens() && matches!(case.state(), None | Some(CtState::New));
        let found = case.legs().into_iter().filter(|_| opening).find_map(|leg| {
            let rewritten = leg.destination_rewritten().filter(|_| leg.is_forwarded())?;
            let ruleset = case.ruleset(leg.netns)?;
            Some((leg, rewritten, unused_input_rule(case, &leg, rewritten, ruleset)?))
        });
        let Some((leg, rewritten, rule)) = found else { return Answer::No };
        let summary = format!(
            "`{}` never sees {}: the packet is translated to {} in PREROUTING and forwarded, so it passes FORWARD, not INPUT.",
            rule.rule.text,
            words::packet(case.protocol(), rewritten.before),
            case.name_with_port(rewritten.after),
        );
        let evidence = vec![
            words::rewriting(rewritten),
            format!("FORWARD: left by {}; no INPUT hook on the way", leg.output().unwrap_or("a device")),
            format!("ruleset: rule {} of {} would have stopped it", rule.rule.position, rule.chain.name),
        ];
        Answer::Found(words::finding(
            self.code(),
            &summary,
            &evidence,
            &where_it_belongs(case, rewritten, &rule),
        ))
    }
}

/// The INPUT rule that would have stopped the packet, had it come by there: one that asks for its port or
/// address, not one that takes everything.
fn unused_input_rule<'a>(
    case: &Case<'_>,
    leg: &Leg<'_>,
    rewritten: &NetfilterStage,
    ruleset: &'a RulesetView,
) -> Option<Placed<'a>> {
    // People write the port that is published, or the one inside.
    [rewritten.before, rewritten.after].into_iter().find_map(|tuple| {
        let question = super::ruleset::Question {
            output: None,
            state: Some(CtState::New),
            ..case.question(leg, tuple, true)
        };
        ruleset.base_chains(Hook::Input, case.is_ipv6()).find_map(|(table, chain)| {
            let walk = table.walk(chain, &question).filter(|walk| !walk.may_accept)?;
            let Ending::Rule { chain, rule, verdict: Verdict::Drop | Verdict::Reject } = walk.ending else {
                return None;
            };
            let wanted = &rule.facts.selectors;
            let meant = wanted.destination_port.is_some() || wanted.source.is_some();
            meant.then_some(Placed { table, chain, rule })
        })
    })
}

fn where_it_belongs(case: &Case<'_>, rewritten: &NetfilterStage, rule: &Placed<'_>) -> String {
    let docker = rule.table.chain("DOCKER-USER").is_some();
    match words::iptables(Some(rule.table.backend), case.is_ipv6()) {
        Some(binary) => {
            let chain = if docker { "DOCKER-USER" } else { "FORWARD" };
            let port = match rewritten.before.destination_port {
                Some(port) => format!(" --ctorigdstport {port}"),
                None => String::new(),
            };
            format!(
                "{binary} -I {chain} -p {} -m conntrack --ctdir ORIGINAL --ctorigdst {}{port} -j DROP  # add the conditions of your INPUT rule (source, interface)",
                case.protocol(),
                rewritten.before.destination
            )
        }
        None => format!(
            "nft insert rule {} {} FORWARD-CHAIN {} drop  # in your base chain with `hook forward`; add the conditions of your input rule",
            rule.table.family.name(),
            words::quoted(&rule.table.name),
            words::nft_selectors(case.protocol(), None, rewritten.after)
        ),
    }
}
