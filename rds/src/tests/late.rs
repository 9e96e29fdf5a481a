//! What the kernel still delivers of a request that was given up: over a real TCP, in a network namespace of our own,
//! with packets that are dropped for a while.

use std::net::SocketAddr;
use std::process::Command;

use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep};

use super::*;
use crate::http::Request;
use crate::metrics::Op;

const NAME: &str = "tests::late::a_write_that_was_given_up_is_not_delivered_once_the_network_heals";
/// Set where this test runs a second time, inside.
const INSIDE: &str = "CLEAT_TEST_INSIDE_NAMESPACE";
const DROP: &str = "nft 'add table inet cleat; \
    add chain inet cleat incoming { type filter hook input priority 0; policy drop; }'";
/// As /proc/net/tcp has it.
const TIME_WAIT: &str = "06";
const HEAL: &str = "nft delete table inet cleat";

fn sh(script: &str) {
    let done = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Whether the kernel has a socket that may still send something to this port.
fn has_sockets_to(port: u16) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    sockets.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(2);
        let (to, state) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        to.ends_with(&remote) && state != TIME_WAIT
    })
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that cannot be made here says so")]
fn a_write_that_was_given_up_is_not_delivered_once_the_network_heals() {
    if std::env::var_os(INSIDE).is_none() {
        let can = format!("ip link set lo up && {DROP} && {HEAL}");
        let tried = Command::new("unshare").args(["-Urn", "sh", "-c", &can]).output();
        if let Some(why) = match tried {
            Ok(tried) if tried.status.success() => None,
            Ok(tried) => Some(String::from_utf8_lossy(&tried.stderr).into_owned()),
            Err(error) => Some(error.to_string()),
        } {
            eprintln!("SKIPPED {NAME}: no network namespace with nft can be had here: {why}");
            return;
        }
        let own = std::env::current_exe().unwrap();
        let inside = Command::new("unshare")
            .arg("-Urn")
            .arg(own)
            .args([NAME, "--exact", "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = said(&inside.stdout) + &said(&inside.stderr);
        assert!(inside.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    sh("ip link set lo up");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(inside());
}

async fn inside() {
    let bench = Bench::with(|config| config.endpoint.timeout = Duration::from_secs(2)).await;
    let server: SocketAddr = bench.url.trim_start_matches("http://").parse().unwrap();
    bench.router.add_disk(json!({"slot": "pvc-1", "nvme-tcp-export": "no"}));
    // The connections are there before anything is lost.
    bench.rds.resource().await.unwrap();
    let mut other = tokio::net::TcpStream::connect(server).await.unwrap();

    sh(DROP);
    let http = &bench.rds.inner.http;
    let request = Request {
        op: Op::SetDisk,
        method: reqwest::Method::PATCH,
        path: "disk/*1".into(),
        query: vec![],
        body: json!({"nvme-tcp-export": "yes"}).as_object().cloned(),
        what: "let everybody in".into(),
    };
    let turn = http.turn(Priority::Attach, Op::SetDisk, "let everybody in").await.unwrap();
    let lost = http.send(&turn, &request).await.unwrap_err();
    drop(turn);
    assert!(lost.outcome_unknown(), "{lost}");
    let given_up = Instant::now();
    // The same by somebody who leaves the kernel to it, which delivers what it could not before.
    let late = "PATCH /rest/disk/*1 HTTP/1.1\r\nhost: rds\r\nauthorization: Basic Y2xlYXQ6c2VjcmV0\r\n\
                content-type: application/json\r\ncontent-length: 18\r\n\r\n{\"comment\":\"late\"}";
    other.write_all(late.as_bytes()).await.unwrap();

    // What `settle` counts on, from when the request was given up.
    sleep((given_up + http.delivers_for()).saturating_duration_since(Instant::now())).await;
    sh(HEAL);
    let delivered = async {
        while !bench.router.log.lock().unwrap().iter().any(|line| line == "PATCH disk/*1 comment=late") {
            sleep(Duration::from_millis(50)).await;
        }
        drop(other);
        while has_sockets_to(server.port()) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), delivered)
        .await
        .expect("what a kernel is left to do is done");
    let log = bench.router.log();
    assert!(!log.iter().any(|line| line.contains("nvme-tcp-export=yes")), "it came late: {log:?}");
    bench.rds.resource().await.expect("on a new connection");
}
