//! `scenario`: one lab of the tests, to look at.

use std::collections::BTreeMap;

use anyhow::Result;
use tests::{scenario, show::Shown};

use crate::{build, shell::say};

/// Lists every scenario with its title and the number of its cases.
pub(crate) fn list() -> Result<()> {
    let mut titles: BTreeMap<String, (String, u32)> = BTreeMap::new();
    for case in scenario::all()? {
        let id = case.name.split('/').next().unwrap_or_default().to_owned();
        titles.entry(id).or_insert((case.scenario.title, 0)).1 += 1;
    }
    for (id, (title, cases)) in titles {
        println!("{id:24} {title} ({cases} cases)");
    }
    Ok(())
}

/// Shows the first case of that name in text; a second trace beside it compares with what is expected.
pub(crate) fn show(name: &str) -> Result<()> {
    build::command(true)?;
    let case = scenario::named(name)?.swap_remove(0);
    say(&format!("{}: {}", case.name, case.scenario.title));
    let stage = case.build()?;
    let arguments = stage.arguments()?;
    say(&format!("pathtrace {}", arguments.join(" ")));
    let shown = Shown::start(stage.lab().netns(&case.scenario.trace.space)?, &arguments)?;
    let compared = stage.check_trace();
    shown.stop()?;
    compared?;
    say("every journey that the scenario expects was there");
    Ok(())
}
