//! The binary itself: exit codes, signals, and a store that outlives `kill -9`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ended with the test, whatever happens.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn controller(dir: &Path, more: &[&str]) -> Command {
    let path = |name: &str| dir.join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(["rds".to_owned()]).unwrap();
    std::fs::write(dir.join("ca.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("password"), "secret").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cleat-controller"));
    command
        .args(["--csi-socket", &path("csi.sock"), "--grpc-listen", "127.0.0.1:0", "--plaintext"])
        .args(["--store", &format!("file:{}", path("records"))])
        // Nothing listens on the port of discard.
        .args(["--rds-url", "https://127.0.0.1:9", "--rds-password-file", &path("password")])
        .args(["--rds-ca", &path("ca.pem"), "--rds-files", "/pool/cleat"])
        .args(["--rds-portal", "10.0.0.1:4420"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Starts it, and reads its log until it serves; gives the log so far.
fn started(dir: &Path) -> (Process, BufReader<std::process::ChildStderr>, String) {
    let mut process = Process(controller(dir, &[]).spawn().unwrap());
    let mut log = BufReader::new(process.0.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("serving") {
        assert!(log.read_line(&mut said).unwrap() > 0, "it ended:\n{said}");
    }
    (process, log, said)
}

fn term(said: &str) -> u64 {
    let (_, rest) = said.split_once(" term=").expect("a term in the log");
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_wrong_configuration_exits_64_naming_option_and_value_before_anything_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    for (words, says) in [
        (&["--silence-deadline", "3s"][..], "--silence-deadline 3s"),
        (&["--rds-portal", "0.0.0.0:4420"], "--rds-portal 0.0.0.0:4420"),
        (&["--drain-bound", "soon"], "--drain-bound"),
        (&["--rds-password-file", "/none"], "/none"),
    ] {
        let words: Vec<&str> = words.iter().copied().chain(["--heartbeat-interval", "2s"]).collect();
        let mut command = controller(dir.path(), &[]);
        let given = words.clone();
        // An option that is given twice counts once: the later one is the one that is wrong.
        if words.contains(&"--rds-password-file") {
            std::fs::remove_file(dir.path().join("password")).unwrap();
        } else {
            command.args(&given);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{words:?}: {said}");
        let says = if says == "/none" { "password" } else { says };
        assert!(said.contains(says), "{said} should say {says}");
        assert!(!dir.path().join("csi.sock").exists());
    }
}

#[test]
fn sigterm_ends_it_cleanly_and_a_killed_one_is_followed_by_a_higher_term() {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, _log, said) = started(dir.path());
    let before = term(&said);
    first.0.kill().unwrap();
    assert_eq!(first.0.wait().unwrap().signal(), Some(9));

    let (mut second, mut log, said) = started(dir.path());
    assert!(term(&said) > before, "{said}");
    let twice = controller(dir.path(), &[]).output().unwrap();
    assert_eq!(twice.status.code(), Some(1), "a second one on the same store");
    assert!(String::from_utf8_lossy(&twice.stderr).contains("records"));

    let began = Instant::now();
    kill(Pid::from_raw(i32::try_from(second.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    let status = second.0.wait().unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(status.code(), Some(0), "{rest}");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!dir.path().join("csi.sock").exists());
}
