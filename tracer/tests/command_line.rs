//! The real binary's answers to bad arguments and calls for help. None of these needs root.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::{Command, Output, Stdio};

fn pathtrace(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pathtrace")).args(arguments).output().unwrap()
}

#[test]
fn bad_arguments_exit_2_and_name_the_flag() {
    let cases: [(&[&str], &str); 9] = [
        (&["--port", "0"], "--port"),
        (&["--count", "0"], "--count"),
        (&["--count", "-1"], "--count"),
        (&["--duration", "-1s"], "--duration"),
        (&["--port", "-80"], "--port"),
        (&["-4", "--dst", "fd00::/8"], "--dst"),
        (&["--proto", "esp", "--sport", "500"], "--sport"),
        (&["--netns", "a", "--all-netns"], "--netns"),
        (&["--what"], "--what"),
    ];
    for (arguments, flag) in cases {
        let output = pathtrace(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.starts_with("error: ") && said.contains(flag), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "results only on standard output");
    }
}

#[test]
fn help_shows_every_flag_of_the_contract() {
    let output = pathtrace(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    let flags = "--host --src --dst --port --sport --dport --proto --iface -4 -6 --ct-state --netns --all-netns \
                 --rules --json --drops --every --count --duration --xdp --clsact --probes --verbose --color doctor";
    for flag in flags.split(' ') {
        assert!(help.contains(flag), "{flag} is missing: {help}");
    }
}

#[test]
fn help_into_a_closed_pipe_is_quiet() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pathtrace"))
        .arg("--help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
