//! `cleatctl` as the process that is installed.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn cleatctl(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cleatctl"));
    command.args(words).env_remove("CLEAT_CONTROLLER").output().unwrap()
}

#[test]
fn bad_usage_exits_64_and_says_why_on_standard_error() {
    for words in [&["volumes"] as &[_], &["sideways"], &["--timeout", "x", "nodes"]] {
        let end = cleatctl(words);
        assert_eq!(end.status.code(), Some(64), "{words:?}: {end:?}");
        assert!(end.stdout.is_empty() && !end.stderr.is_empty(), "{words:?}: {end:?}");
    }
}

#[test]
fn help_and_version_exit_0_on_standard_output() {
    for words in ["--help", "--version"] {
        let end = cleatctl(&[words]);
        assert_eq!(end.status.code(), Some(0), "{end:?}");
        assert!(!end.stdout.is_empty() && end.stderr.is_empty(), "{end:?}");
    }
}

#[test]
fn a_controller_out_of_reach_exits_1_and_is_named() {
    // Port 1 of this machine: nobody listens.
    let end = cleatctl(&["--plaintext", "--controller", "127.0.0.1:1", "volumes"]);
    assert_eq!(end.status.code(), Some(1), "{end:?}");
    assert!(String::from_utf8(end.stderr).unwrap().contains("127.0.0.1:1"));
}
