//! Real processes, with what they have open in a fixture tree.

use std::process::{Child, Command, ExitStatus, Stdio};

use super::super::tests::{HEAD, Host, LONG};
use super::*;

/// A loop device of a ticket over the head, and a process of this machine that is said to have it open.
fn opened(host: &Host, ticket: &str, child: &Child) {
    let place = format!("run/cleat/tickets/{ticket}/device");
    host.tree.write(&format!("host/proc/1/root/{place}"), "block 259:1");
    host.tree.write("class/block/loop7/dev", "7:7");
    host.tree.write("class/block/loop7/loop/backing_file", &format!("/{place}"));
    host.tree.write("host/dev/loop7", "block 7:7");
    host.process(child.id(), "backup", "mnt:[1]");
    host.opens(child.id(), 3, "loop7");
}

/// As the kernel does once the process has ended: nothing is open any more, and the loop device goes.
fn clears(host: &Host, child: &Child) {
    let root = host.tree.root();
    std::fs::remove_dir_all(root.join(format!("host/proc/{}", child.id()))).expect("it has ended");
    std::fs::remove_dir_all(root.join("class/block/loop7")).expect("autoclear");
}

fn started(script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("a shell")
}

/// Cuts while the process is waited for.
async fn cut(host: Host, mut child: Child, within: Duration) -> (Result<Vec<String>, CutError>, ExitStatus) {
    let (openers, input) = (host.openers.clone(), child.stdin.take());
    let cut = tokio::spawn(async move { openers.cut_tickets(HEAD, None, Instant::now() + within).await });
    let status = tokio::task::spawn_blocking(move || {
        let status = child.wait().expect("a child of ours");
        clears(&host, &child);
        drop(input);
        (host, status)
    });
    let (cut, waited) = tokio::join!(cut, status);
    let (host, status) = waited.expect("no panic");
    drop(host);
    (cut.expect("no panic"), status)
}

fn signal_of(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[tokio::test]
async fn who_has_a_tickets_loop_open_is_asked_to_end_and_the_loop_goes() {
    let (host, child) = (Host::new(), started("read line"));
    opened(&host, "run.1", &child);
    let expected = format!("process {} (backup)", child.id());
    let (cut, status) = cut(host, child, LONG).await;
    assert_eq!(cut.expect("cut"), [expected]);
    assert_eq!(signal_of(status), Some(libc::SIGTERM));
}

#[tokio::test]
async fn who_does_not_end_when_asked_is_killed() {
    use std::io::Read as _;
    let (host, mut child) = (Host::new(), started("trap '' TERM; echo ready; read line"));
    child.stdout.as_mut().expect("piped").read_exact(&mut [0; 5]).expect("it ignores SIGTERM by now");
    opened(&host, "run.1", &child);
    let (cut, status) = cut(host, child, Duration::from_secs(6)).await;
    assert!(cut.is_ok(), "{cut:?}");
    assert_eq!(signal_of(status), Some(libc::SIGKILL));
}

#[tokio::test]
async fn who_uses_the_device_without_a_ticket_is_left_alone() {
    let (host, mut child) = (Host::new(), started("read line"));
    host.process(child.id(), "qemu-kvm", "mnt:[1]");
    host.opens(child.id(), 3, "nvme0n1");
    let plain = host.tree.write("host/elsewhere", "block 259:1");
    host.tree.write("class/block/loop1/dev", "7:1");
    host.tree.write("class/block/loop1/loop/backing_file", &plain.display().to_string());
    let ended = host.openers.cut_tickets(HEAD, None, Instant::now() + LONG).await.expect("nothing to cut");
    assert!(ended.is_empty() && child.try_wait().expect("a child of ours").is_none());
    child.kill().and_then(|()| child.wait()).expect("ended");
}

#[tokio::test]
async fn what_does_not_go_in_time_is_named_and_another_ticket_is_left_alone() {
    let (host, mut child) = (Host::new(), started("read line"));
    opened(&host, "run.1", &child);
    let by = Instant::now;
    let other = host.openers.cut_tickets(HEAD, Some("run.2"), by()).await;
    assert!(other.expect("not its loop").is_empty());
    // Within half a second nobody is signalled.
    let left = host.openers.cut_tickets(HEAD, Some("run.1"), by()).await.expect_err("it is still open");
    assert!(left.to_string().contains("loop7 of ticket run.1; process"), "{left}");
    assert!(child.try_wait().expect("a child of ours").is_none());
    child.kill().and_then(|()| child.wait()).expect("ended");
}

#[tokio::test]
async fn where_process_ids_are_not_the_hosts_nobody_is_signalled() {
    let (host, mut child) = (Host::new(), started("read line"));
    opened(&host, "run.1", &child);
    std::fs::remove_file(host.tree.root().join("host/proc/self/ns/pid")).expect("removed");
    host.link("proc/self/ns/pid", "pid:[4026532200]");
    let refused = host.openers.cut_tickets(HEAD, None, Instant::now() + LONG).await.expect_err("not ours");
    assert!(refused.to_string().contains("hostPID"), "{refused}");
    assert!(child.try_wait().expect("a child of ours").is_none());
    child.kill().and_then(|()| child.wait()).expect("ended");
}
