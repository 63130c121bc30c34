//! Settings of the whole machine, which no namespace has of its own: set for one scenario, which runs alone then.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use anyhow::{Context, Result, ensure};

use super::file::Scenario;
use crate::machine;

/// Held for reading by every scenario that leaves the machine as it is.
static MACHINE: RwLock<()> = RwLock::new(());

/// Why a scenario with such settings does not run on an ordinary machine.
const CHANGES: &str =
    "changes settings of the whole machine: `cargo xtask vm-test --group scenarios` runs it";

/// Why this machine cannot run it.
pub(super) fn impossible_here(scenario: &Scenario) -> Option<&'static str> {
    (!scenario.machine.is_empty() && !machine::is_disposable()).then_some(CHANGES)
}

/// The machine as a scenario wants it; as it was when dropped.
#[derive(Debug)]
pub(super) struct WholeMachine {
    /// Those that were set, with their values before, in the order of setting.
    before: Vec<(PathBuf, String)>,
    _turn: Turn,
}

/// Fields are never read: they are there to be held.
#[derive(Debug)]
#[expect(dead_code, reason = "guards are held, not read")]
enum Turn {
    Beside(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

impl WholeMachine {
    /// Waits until no other scenario needs it otherwise; changes nothing yet.
    pub(super) fn wait_for(settings: &BTreeMap<String, String>) -> Result<Self> {
        ensure!(settings.is_empty() || machine::is_disposable(), CHANGES);
        let turn = if settings.is_empty() {
            Turn::Beside(MACHINE.read().unwrap_or_else(PoisonError::into_inner))
        } else {
            Turn::Alone(MACHINE.write().unwrap_or_else(PoisonError::into_inner))
        };
        Ok(Self { before: Vec::new(), _turn: turn })
    }

    /// Sets them, by their dotted names.
    pub(super) fn set(&mut self, settings: &BTreeMap<String, String>) -> Result<()> {
        for (name, value) in settings {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            let before = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
            self.before.push((path.clone(), before));
            fs::write(&path, value).with_context(|| format!("set {name} to {value}"))?;
        }
        Ok(())
    }
}

impl Drop for WholeMachine {
    fn drop(&mut self) {
        for (path, value) in self.before.drain(..).rev() {
            if let Err(error) = fs::write(&path, value) {
                eprintln!("{} was not set back: {error}", path.display());
            }
        }
    }
}
