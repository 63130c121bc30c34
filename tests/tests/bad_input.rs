//! Bad arguments and bad machines: a clear line and the exit code of the contract.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;
use tests::{
    netns::Netns,
    pathtrace::{self, Pathtrace},
};

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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let copy = Path::new("/tmp").join(format!("pathtrace-{}-{number}", std::process::id()));
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

/// Makes the command find a kernel that knows no BPF links of this kind (CONFIG_NETFILTER_BPF_LINK is not set, or Linux is
/// older than 6.4): `BPF_LINK_CREATE` gives EINVAL there.
fn without_links(command: &mut Command) {
    const BPF_LINK_CREATE: u32 = 28;
    const ARGUMENT: u32 = 16;
    const RETURN: u16 = 0x06;
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const ALLOW: u32 = 0x7fff_0000;
    const FAIL: u32 = 0x0005_0000;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let bpf = u32::try_from(libc::SYS_bpf).expect("a small number");
    let filter = [
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 3, bpf),
        step(LOAD, 0, 0, ARGUMENT),
        step(JUMP_IF_EQUAL, 0, 1, BPF_LINK_CREATE),
        step(RETURN, 0, 0, FAIL | libc::EINVAL.unsigned_abs()),
        step(RETURN, 0, 0, ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: 6, filter: filter.as_ptr().cast_mut() };
        // SAFETY: root may install a filter; the kernel copies it.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(install) };
}

#[test]
fn without_netfilter_links_it_exits_1_and_says_so() -> Result<()> {
    let netns = Netns::new()?;
    let mut command = pathtrace::command(Some(&netns))?;
    without_links(&mut command);
    let (code, stdout, stderr) = told(&command.args(["--port", "80"]).output()?);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("netfilter") && stderr.contains("6.4"), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "one line what is missing, one what to do: {stderr}");
    assert_eq!(stdout, "");
    Ok(())
}

#[test]
fn root_of_a_container_alone_exits_1_and_says_so() -> Result<()> {
    let binary = PublicCopy::new()?;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]).arg(&binary.0).args(["--port", "80"]);
    let (code, stdout, stderr) = told(&command.output()?);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("user namespace"), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "one line what is missing, one what to do: {stderr}");
    assert_eq!(stdout, "");
    Ok(())
}

#[test]
fn the_only_traced_namespace_vanishes() -> Result<()> {
    let going = Netns::new()?;
    let name = going.name().to_owned();
    let trace = Pathtrace::start(None, &["--netns", &name])?;
    drop(going);
    let report = trace.wait()?;
    assert!(report.status.success(), "{}: {}", report.status, report.stderr);
    let said: Vec<&str> =
        report.of_type("notice").iter().filter_map(|notice| notice["message"].as_str()).collect();
    assert_eq!(said, [format!("namespace {name} has gone"), "no namespace is left to trace".to_owned()]);
    report.summary()?;
    Ok(())
}
