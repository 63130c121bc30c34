//! Comparing what pathtrace said with what was expected: a pattern is JSON that names only what matters.
//!
//! * an object matches when each of its keys does; keys that it leaves out may hold anything;
//! * a list matches item by item, and must be as long, except `stages`: its patterns must be met in their order,
//!   with others in between, and `no_stages`: none of them may be met;
//! * `findings` is the list of all of them, in any order: their codes, or objects with more of a finding;
//! * `"null"` stands for null, `"any"` for anything that is not null, `"~text"` for a string that has `text`
//!   in it, `"!text"` for any other string than `text`; a string also matches a number that is written so.

use serde_json::{Map, Value};

/// Whether `actual` fits; otherwise what does not, with the way to it.
///
/// # Errors
/// The first difference, in words.
pub fn matches(pattern: &Value, actual: &Value) -> Result<(), String> {
    at("", pattern, actual)
}

fn at(path: &str, pattern: &Value, actual: &Value) -> Result<(), String> {
    match (pattern, actual) {
        (Value::Object(wanted), Value::Object(found)) => object(path, wanted, found),
        (Value::Array(wanted), Value::Array(found)) => list(path, wanted, found),
        (Value::String(wanted), _) => text(path, wanted, actual),
        _ if pattern == actual => Ok(()),
        _ => Err(format!("{path}: expected {pattern}, found {actual}")),
    }
}

fn object(path: &str, wanted: &Map<String, Value>, found: &Map<String, Value>) -> Result<(), String> {
    for (key, pattern) in wanted {
        let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let actual = found.get(key).unwrap_or(&Value::Null);
        match (key.as_str(), pattern) {
            ("stages", Value::Array(patterns)) => in_order(patterns, actual)?,
            ("no_stages", Value::Array(patterns)) => none_of(patterns, &found["stages"])?,
            ("findings", Value::Array(codes)) => findings(codes, actual)?,
            _ => at(&inner, pattern, actual)?,
        }
    }
    Ok(())
}

fn list(path: &str, wanted: &[Value], found: &[Value]) -> Result<(), String> {
    if wanted.len() != found.len() {
        return Err(format!(
            "{path}: expected {} items, found {}: {}",
            wanted.len(),
            found.len(),
            Value::from(found)
        ));
    }
    wanted.iter().zip(found).enumerate().try_for_each(|(i, (p, a))| at(&format!("{path}[{i}]"), p, a))
}

fn text(path: &str, wanted: &str, actual: &Value) -> Result<(), String> {
    let fits = match (wanted, actual) {
        ("null", _) => actual.is_null(),
        ("any", _) => !actual.is_null(),
        (_, Value::String(found)) => match (wanted.strip_prefix('~'), wanted.strip_prefix('!')) {
            (Some(part), _) => found.contains(part),
            (_, Some(other)) => found != other,
            _ => wanted == found,
        },
        (_, Value::Number(found)) => found.to_string() == wanted,
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("{path}: expected {wanted:?}, found {actual}")) }
}

fn in_order(patterns: &[Value], stages: &Value) -> Result<(), String> {
    let stages = stages.as_array().ok_or("stages: not a list")?;
    let mut from = 0;
    for (number, pattern) in patterns.iter().enumerate() {
        let found = stages[from..].iter().position(|stage| at("", pattern, stage).is_ok());
        match found {
            Some(offset) => from += offset + 1,
            None => return Err(missing_stage(number, pattern, &stages[from..])),
        }
    }
    Ok(())
}

/// Explains with the stage that fits best, by the same hook and table or kind.
fn missing_stage(number: usize, pattern: &Value, rest: &[Value]) -> String {
    let near = |stage: &&Value| {
        ["kind", "hook", "table", "direction"]
            .iter()
            .all(|key| pattern[key].is_null() || pattern[key] == stage[key])
    };
    let why = rest.iter().find(near).map_or_else(
        || "no stage like it from there on".to_owned(),
        |stage| at("", pattern, stage).err().unwrap_or_default(),
    );
    format!("stages: expected stage {number}, {pattern}, is not there: {why}")
}

fn none_of(patterns: &[Value], stages: &Value) -> Result<(), String> {
    let stages = stages.as_array().ok_or("stages: not a list")?;
    let met = patterns.iter().find(|pattern| stages.iter().any(|stage| at("", pattern, stage).is_ok()));
    met.map_or(Ok(()), |pattern| Err(format!("no_stages: a stage is there that must not: {pattern}")))
}

fn findings(wanted: &[Value], actual: &Value) -> Result<(), String> {
    let found = actual.as_array().map(Vec::as_slice).unwrap_or_default();
    let is = |pattern: &Value, finding: &Value| match pattern {
        Value::String(_) => at("", pattern, &finding["code"]).is_ok(),
        _ => at("", pattern, finding).is_ok(),
    };
    let all_there = wanted.iter().all(|pattern| found.iter().any(|finding| is(pattern, finding)));
    let none_more = found.iter().all(|finding| wanted.iter().any(|pattern| is(pattern, finding)));
    if all_there && none_more && wanted.len() == found.len() {
        return Ok(());
    }
    let shown = if wanted.iter().all(Value::is_string) {
        found.iter().map(|finding| finding["code"].clone()).collect()
    } else {
        actual.clone()
    };
    Err(format!("findings: expected {}, found {shown}", Value::from(wanted)))
}

/// The journeys among `lines`.
pub fn journeys(lines: &[Value]) -> impl Iterator<Item = &Value> {
    lines.iter().filter(|line| line["type"] == "journey")
}

/// The first journey that fits.
#[must_use]
pub fn find<'a>(lines: &'a [Value], pattern: &Value) -> Option<&'a Value> {
    journeys(lines).find(|journey| matches(pattern, journey).is_ok())
}

/// Explains why no journey fits: those whose packet and direction do, each with its first difference and in full;
/// then all in one line each.
#[must_use]
pub fn explain(lines: &[Value], pattern: &Value) -> String {
    let mut identity = pattern.clone();
    if let Some(keys) = identity.as_object_mut() {
        keys.retain(|key, _| key == "packet" || key == "direction");
    }
    let close: Vec<String> = journeys(lines)
        .filter(|journey| matches(&identity, journey).is_ok())
        .map(|journey| {
            let difference = matches(pattern, journey).err().unwrap_or_default();
            format!("{difference}\nin journey {}", pretty(journey))
        })
        .collect();
    let close = if close.is_empty() {
        format!("no journey of such a packet ({identity})")
    } else {
        close.join("\n\n")
    };
    let all: Vec<String> = journeys(lines).map(one_line).collect();
    format!("{close}\nall {} journeys:\n{}", all.len(), all.join("\n"))
}

/// A journey in full, one stage a line.
#[must_use]
pub fn pretty(journey: &Value) -> String {
    let stages: Vec<String> =
        journey["stages"].as_array().into_iter().flatten().map(|stage| format!("    {stage}")).collect();
    format!(
        "{}\n  packet {}\n  stages\n{}\n  conntrack {}\n  outcome {}\n  findings {}",
        one_line(journey),
        journey["packet"],
        stages.join("\n"),
        journey["conntrack"],
        journey["outcome"],
        journey["findings"]
    )
}

fn one_line(journey: &Value) -> String {
    let packet = &journey["packet"];
    format!(
        "#{} flow {} {} {} {}:{} -> {}:{} {} {}",
        journey["id"],
        journey["flow"],
        journey["direction"],
        packet["protocol"],
        packet["source"],
        packet["source_port"],
        packet["destination"],
        packet["destination_port"],
        packet["tcp_flags"],
        journey["outcome"]["result"]
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::matches;

    #[test]
    fn a_pattern_names_only_what_matters() {
        let journey = json!({"id": 7, "packet": {"source": "10.1.0.2", "source_port": 40000, "ip_id": null}});
        assert!(
            matches(&json!({"packet": {"source": "10.1.0.2", "source_port": "40000"}}), &journey).is_ok()
        );
        assert!(matches(&json!({"packet": {"ip_id": "null", "source": "any"}}), &journey).is_ok());
        assert!(matches(&json!({"packet": {"source": "~1.0"}}), &journey).is_ok());
        assert!(matches(&json!({"packet": {"source": "!10.1.0.3"}}), &journey).is_ok());
        assert!(matches(&json!({"packet": {"source": "!10.1.0.2"}}), &journey).is_err());
        let wrong = matches(&json!({"packet": {"source": "10.1.0.3"}}), &journey).unwrap_err();
        assert!(wrong.contains("packet.source") && wrong.contains("10.1.0.2"), "{wrong}");
        assert!(matches(&json!({"packet": {"destination": "any"}}), &journey).is_err());
    }

    #[test]
    fn stages_are_met_in_order_with_others_between() {
        let journey = json!({"stages": [{"hook": "prerouting"}, {"kind": "route"}, {"hook": "forward"}]});
        assert!(matches(&json!({"stages": [{"hook": "prerouting"}, {"hook": "forward"}]}), &journey).is_ok());
        assert!(
            matches(&json!({"stages": [{"hook": "forward"}, {"hook": "prerouting"}]}), &journey).is_err()
        );
        assert!(matches(&json!({"no_stages": [{"hook": "input"}]}), &journey).is_ok());
        assert!(matches(&json!({"no_stages": [{"hook": "forward"}]}), &journey).is_err());
    }

    #[test]
    fn rules_and_findings_must_be_complete() {
        let stage = json!({"rules": [{"position": 1}, {"position": 2}]});
        assert!(matches(&json!({"rules": [{"position": 1}]}), &stage).is_err());
        let journey = json!({"findings": [{"code": "a"}, {"code": "b"}]});
        assert!(matches(&json!({"findings": ["b", "a"]}), &journey).is_ok());
        assert!(matches(&json!({"findings": []}), &journey).is_err());
        assert!(matches(&json!({"findings": ["a", "c"]}), &journey).is_err());
    }

    #[test]
    fn a_finding_may_be_told_by_more_than_its_code() {
        let journey =
            json!({"findings": [{"code": "a", "evidence": ["count = 2", "seen"], "fix": "raise it"}]});
        let finding = |evidence: &str| json!({"findings": [{"code": "a", "evidence": [evidence, "seen"]}]});
        assert!(matches(&finding("~= 2"), &journey).is_ok());
        let wrong = matches(&finding("~= 3"), &journey).unwrap_err();
        assert!(wrong.contains("= 3") && wrong.contains("count = 2"), "{wrong}");
    }
}
