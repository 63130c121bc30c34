//! Running programs, and saying so.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Says what comes next; its output follows.
pub(crate) fn say(what: &str) {
    eprintln!("==> {what}");
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a step whose output the user sees, and says how long it took.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    let started = Instant::now();
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{what}: {command:?} ended with {status}");
    eprintln!("    done in {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// What a program prints; none where it is missing or fails.
pub(crate) fn printed(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where a program lies; administrators' folders are searched too, whatever PATH says.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
