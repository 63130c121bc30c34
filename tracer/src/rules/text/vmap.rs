//! What a verdict map may decide, from the map's own elements as `nft` prints them. The kernel keeps a set in one of
//! half a dozen structures; its text is the same for all.

use crate::{
    model::Verdict,
    rules::index::{ChainRef, Effect, TableIndex},
};

/// The effects of a rule with this text: one for each verdict that its verdict map holds. `None` unless the text has
/// exactly one such map, and all of it is understood.
///
/// `elements` gives the elements of a named map.
pub(super) fn effects<'a>(
    table: &TableIndex,
    text: &str,
    elements: impl Fn(&str) -> Option<&'a str>,
) -> Option<Vec<Effect>> {
    let text = unquoted(text);
    let (_, map) = text.split_once(" vmap ")?;
    let (inside, behind) = match map.strip_prefix('{') {
        Some(map) => map.split_once('}')?,
        None => {
            let (name, behind) = map.split_once(' ').unwrap_or((map, ""));
            (elements(name.strip_prefix('@')?)?, behind)
        }
    };
    if behind.contains(" vmap ") {
        return None;
    }
    let mut effects = Vec::new();
    // A key may be nothing but a quoted name.
    for element in unquoted(inside).split(',').filter(|element| !element.trim().is_empty()) {
        let effect = effect(table, element.rsplit_once(" : ")?.1.trim())?;
        if !effects.contains(&effect) {
            effects.push(effect);
        }
    }
    Some(effects)
}

pub(super) fn effect(table: &TableIndex, verdict: &str) -> Option<Effect> {
    let chain = |name: &str| table.chains.iter().position(|chain| chain.name == name).map(ChainRef);
    let last = |verdict, target: &str| Some(Effect::Final { verdict, target: target.to_owned() });
    match verdict.split_once(' ') {
        None => match verdict {
            "accept" => last(Verdict::Accept, verdict),
            "drop" => last(Verdict::Drop, verdict),
            "continue" => Some(Effect::Continue { target: None }),
            "return" => Some(Effect::Return),
            _ => None,
        },
        Some(("jump", name)) => chain(name).map(Effect::Jump),
        Some(("goto", name)) => chain(name).map(Effect::Goto),
        Some(_) => None,
    }
}

/// Without what stands in double quotes: comments may say anything.
fn unquoted(text: &str) -> String {
    text.split('"').step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Backend, TableFamily},
        rules::{index::Chain, probes::Probes},
    };

    fn table() -> TableIndex {
        let chain =
            |name: &str| Chain { name: name.into(), base: None, rules: Vec::new(), end_counter: None };
        TableIndex {
            backend: Backend::Nftables,
            family: TableFamily::Inet,
            name: "fw".into(),
            chains: vec![chain("in"), chain("web")],
            counters: Vec::new(),
            check: None,
            probes: Probes::default(),
            offloads: false,
        }
    }

    fn of(text: &str) -> Option<Vec<Effect>> {
        effects(&table(), text, |name| {
            (name == "ports").then_some("22 comment \"a : drop, b\" : jump web, 80-90 : goto in")
        })
    }

    #[test]
    fn every_verdict_once() {
        let accept = Effect::Final { verdict: Verdict::Accept, target: "accept".into() };
        let drop = Effect::Final { verdict: Verdict::Drop, target: "drop".into() };
        assert_eq!(
            of("ct state vmap { invalid : drop, established : accept, related : accept }"),
            Some(vec![drop, accept])
        );
        assert_eq!(
            of("counter ip6 saddr . tcp dport vmap { fd00::1 . 22 : continue, fd00::/64 . 23 : return }"),
            Some(vec![Effect::Continue { target: None }, Effect::Return])
        );
    }

    #[test]
    fn a_named_map_s_elements() {
        assert_eq!(
            of("tcp dport vmap @ports comment \"x vmap @ports\""),
            Some(vec![Effect::Jump(ChainRef(1)), Effect::Goto(ChainRef(0))])
        );
        assert_eq!(of("tcp dport vmap @gone"), None);
        assert_eq!(of("iifname vmap { \"web\" : jump web }"), Some(vec![Effect::Jump(ChainRef(1))]));
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        for text in [
            "accept",
            "accept comment \"tcp dport vmap { 1 : drop }\"",
            "ct state vmap { new : jump nowhere }",
            "ct state vmap { new : queue }",
            "ct state vmap { new : drop",
            "ct state vmap { new }",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
