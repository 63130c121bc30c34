//! From the rules that matched to the way that led to the verdict.

use crate::model::MatchedRule;

/// The chain of jumps that ends in the last rule: a rule of a chain that is being walked takes the place of the
/// earlier rule of that chain, since the walk came back to it.
pub(super) fn jumps_to_last(rules: &[MatchedRule]) -> Vec<&MatchedRule> {
    let mut way: Vec<&MatchedRule> = Vec::new();
    for rule in rules {
        let depth = way.iter().position(|above| above.chain == rule.chain);
        way.truncate(depth.unwrap_or(way.len()));
        way.push(rule);
    }
    way
}

/// The chain that a rule jumps or goes to.
pub(super) fn entered_chain(rule: &MatchedRule) -> Option<&str> {
    let (word, chain) = rule.action.as_deref()?.split_once(' ')?;
    matches!(word, "jump" | "goto").then_some(chain)
}

/// Rules that did something (LOG, MARK, ...) and let the walk go on.
pub(super) fn side_effects(passed: &[MatchedRule]) -> impl Iterator<Item = (&MatchedRule, &str)> {
    passed.iter().filter_map(|rule| {
        let action = rule.action.as_deref()?;
        let word = action.split_whitespace().next()?;
        let only_leads_on =
            ["jump", "goto", "return", "continue"].iter().any(|w| word.eq_ignore_ascii_case(w));
        (!only_leads_on).then_some((rule, action))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(chain: &str, position: u32, action: &str) -> MatchedRule {
        MatchedRule { chain: chain.into(), position, handle: None, text: None, action: Some(action.into()) }
    }

    fn way(rules: &[MatchedRule]) -> Vec<String> {
        jumps_to_last(rules).iter().map(|r| format!("{} #{}", r.chain, r.position)).collect()
    }

    #[test]
    fn chains_that_returned_are_not_on_the_way() {
        let rules = [
            rule("FORWARD", 1, "jump DOCKER-USER"),
            rule("DOCKER-USER", 1, "RETURN"),
            rule("FORWARD", 2, "jump DOCKER-FORWARD"),
            rule("DOCKER-FORWARD", 1, "jump DOCKER-CT"),
            rule("DOCKER-FORWARD", 4, "jump DOCKER"),
            rule("DOCKER", 7, "ACCEPT"),
        ];
        assert_eq!(way(&rules), ["FORWARD #2", "DOCKER-FORWARD #4", "DOCKER #7"]);
    }

    #[test]
    fn a_rule_of_the_base_chain_alone() {
        assert_eq!(way(&[rule("INPUT", 1, "LOG"), rule("INPUT", 2, "DROP")]), ["INPUT #2"]);
        assert!(way(&[]).is_empty());
    }

    #[test]
    fn side_effects_are_told_from_the_walk() {
        let rules = [
            rule("INPUT", 1, "LOG"),
            rule("INPUT", 2, "jump A"),
            rule("A", 1, "MARK"),
            rule("A", 2, "RETURN"),
            rule("INPUT", 3, "goto B"),
        ];
        let found: Vec<_> = side_effects(&rules).map(|(rule, action)| (rule.position, action)).collect();
        assert_eq!(found, [(1, "LOG"), (1, "MARK")]);
    }
}
