//! Bad arguments and bad machines: a clear line and the exit code of the contract.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::Result;
use tests::{netns::Netns, pathtrace};

fn run(netns: &Netns, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    Ok(told(&pathtrace::command(Some(netns))?.args(arguments).output()?))
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn bad_arguments_exit_2_and_name_the_flag() -> Result<()> {
    let netns = Netns::new()?;
    for (arguments, flag) in [
        (&["--port", "70000"][..], "--port"),
        (&["--port", "80-70"], "--port"),
        (&["--port", ""], "--port"),
        (&["--host", "10.0.0.256"], "--host"),
        (&["--src", "10.0.0.1/33"], "--src"),
        (&["--dst", "web"], "--dst"),
        (&["--proto", "tcpp"], "--proto"),
        (&["--ct-state", "old"], "--ct-state"),
        (&["--rules", "guess"], "--rules"),
        (&["--count", "0"], "--count"),
        (&["--count", "-1"], "-1"),
        (&["--duration", "30"], "--duration"),
        (&["--duration", "soon"], "--duration"),
        (&["--netns", "a", "--all-netns"], "--all-netns"),
        (&["-4", "-6"], "-6"),
        (&["-4", "--host", "fd00::1"], "--host"),
        (&["--proto", "icmp", "--port", "80"], "--port"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let (code, stdout, stderr) = run(&netns, arguments)?;
        assert_eq!(code, Some(2), "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(flag), "{arguments:?}: {flag} is not named in: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
    }
    Ok(())
}

#[test]
fn what_does_not_exist_exits_1_with_its_name_and_what_to_do() -> Result<()> {
    let netns = Netns::new()?;
    for (arguments, name) in [
        (&["--netns", "no-such-netns"][..], "no-such-netns"),
        (&["--netns", "/no/such/path"], "/no/such/path"),
        (&["--netns", "pid:4294967294"], "4294967294"),
        (&["--iface", "no-such-dev"], "no-such-dev"),
    ] {
        let (code, stdout, stderr) = run(&netns, arguments)?;
        assert_eq!(code, Some(1), "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(name), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 2, "one line what is missing, one what to do: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
    }
    Ok(())
}

#[test]
fn help_and_version_exit_0_on_stdout() -> Result<()> {
    let netns = Netns::new()?;
    for (argument, part) in [("--help", "--port"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let (code, stdout, stderr) = run(&netns, &[argument])?;
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stdout.contains(part), "{stdout}");
    }
    Ok(())
}

/// A copy of the binary that everybody may execute, removed when dropped.
struct PublicCopy(PathBuf);

impl PublicCopy {
    fn new() -> Result<Self> {
        let copy = Path::new("/tmp").join(format!("pathtrace-{}", std::process::id()));
        fs::copy(pathtrace::binary()?, &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        Ok(Self(copy))
    }
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        // A failure leaves a file in /tmp.
        drop(fs::remove_file(&self.0));
    }
}

#[test]
fn without_root_it_exits_1_and_says_how() -> Result<()> {
    const NOBODY: u32 = 65534;
    let binary = PublicCopy::new()?;
    let (code, stdout, stderr) =
        told(&Command::new(&binary.0).args(["--port", "80"]).uid(NOBODY).gid(NOBODY).output()?);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("root") && stderr.contains("sudo"), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    Ok(())
}

#[test]
fn without_btf_it_exits_1_and_says_so() -> Result<()> {
    let binary = pathtrace::binary()?;
    let hidden = format!("mount -t tmpfs none /sys/kernel/btf && exec {} --port 80", binary.display());
    let (code, stdout, stderr) =
        told(&Command::new("unshare").args(["--mount", "sh", "-c", &hidden]).output()?);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("BTF"), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    Ok(())
}
