//! nvme-cli played by shell scripts: good ones, failing ones, ones that hang.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::fabrics::{ConnectFailure, ConnectOptions, HowDeleted, LossTimeout};
use crate::fixtures::{ControllerSpec, FakeKernel, Tree};
use crate::name::{HostId, HostNqn};

const NQN: &str = "nqn.2026-01.test:v1";
const ID: &str = "00000000-0000-0000-0000-000000000011";
const LONG: Duration = Duration::from_secs(20);

struct Host {
    kernel: FakeKernel,
    dir: tempfile::TempDir,
}

impl Host {
    /// A host whose `nvme` is a script; `$TREE` is its sysfs.
    fn new(script: &str) -> (Self, NvmeCli) {
        let kernel = FakeKernel::start(Arc::new(Tree::new()));
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("nvme");
        let tree = kernel.tree().root().display();
        let text = format!("#!/bin/sh\nTREE={tree}\necho \"$@\" >>{}/ran\n{script}\n", dir.path().display());
        std::fs::write(&program, text).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("set");
        let cli = NvmeCli::new(program, kernel.tree().sysfs());
        (Self { kernel, dir }, cli)
    }

    fn ran(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("ran")).unwrap_or_default()
    }

    /// A controller that the script can let appear by linking it: as the kernel makes it.
    fn hidden_controller(&self) {
        let tree = self.kernel.tree();
        tree.subsystem(0, NQN);
        tree.controller(
            0,
            &ControllerSpec {
                instance: 0,
                subsystem: NQN,
                host_nqn: request().host_nqn.as_str(),
                host_id: ID,
                portal: ("10.77.1.1", 4420),
                state: "live",
            },
        );
        std::fs::remove_file(tree.root().join("class/nvme/nvme0")).expect("hidden");
    }
}

/// Lets the hidden controller appear.
const APPEAR: &str = "ln -s ../../devices/virtual/nvme-fabrics/ctl/nvme0 $TREE/class/nvme/nvme0";

fn request() -> ConnectRequest {
    let host_id = HostId::parse(ID).expect("valid");
    ConnectRequest {
        subsystem: NQN.parse().expect("valid"),
        portal: "10.77.1.1:4420".parse().expect("valid"),
        host_nqn: HostNqn::from_host_id(host_id),
        host_id,
        options: ConnectOptions::default(),
        secret: None,
    }
}

#[test]
fn the_command_line_has_every_setting() {
    let mut request = request();
    request.options.ctrl_loss_tmo = Some(LossTimeout::After(Duration::from_secs(600)));
    request.options.nr_io_queues = Some(4);
    request.options.fast_io_fail_tmo = Some(Duration::from_secs(7));
    assert_eq!(
        arguments(&request).join(" "),
        format!(
            "connect --transport=tcp --traddr=10.77.1.1 --trsvcid=4420 --nqn={NQN} \
             --hostnqn=nqn.2014-08.org.nvmexpress:uuid:{ID} --hostid={ID} --output-format=json \
             --nr-io-queues=4 --ctrl-loss-tmo=600"
        )
    );
}

#[tokio::test]
async fn what_sysfs_shows_is_a_success_whatever_the_exit_code_says() {
    let (host, cli) = Host::new(&format!("{APPEAR}; echo confused >&2; exit 1"));
    host.hidden_controller();
    let mut request = request();
    request.options.fast_io_fail_tmo = Some(Duration::from_secs(7));
    let connected = cli.connect(&request, LONG).await.expect("sysfs shows it");
    assert!(!connected.adopted);
    let set = host.kernel.tree().root().join("class/nvme/nvme0/fast_io_fail_tmo");
    assert_eq!(std::fs::read_to_string(set).ok().as_deref(), Some("7"), "what nvme-cli has no option for");
    assert!(cli.connect(&request, LONG).await.expect("still there").adopted);
}

#[tokio::test]
async fn what_sysfs_does_not_show_is_no_success_whatever_the_exit_code_says() {
    let (_host, cli) = Host::new("echo '{\"device\":\"nvme0\"}'");
    let error = cli.connect(&request(), LONG).await.expect_err("nothing there");
    assert!(matches!(error, ConnectError::NotAsAsked { .. }), "{error}");
}

#[tokio::test]
async fn stderr_is_kept_and_tells_the_kind() {
    let (_host, cli) =
        Host::new("echo 'Failed to write to /dev/nvme-fabrics: Connection refused' >&2; exit 1");
    let error = cli.connect(&request(), LONG).await.expect_err("refused");
    assert_eq!(error.failure(), Some(ConnectFailure::Unreachable));
    let source = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(source.contains("Failed to write to /dev/nvme-fabrics"), "{source}");
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let tree = Tree::new();
    let cli = NvmeCli::new("/nowhere/nvme", tree.sysfs());
    let error = cli.connect(&request(), LONG).await.expect_err("no program");
    assert!(error.to_string().contains("/nowhere/nvme"), "{error}");
    assert!(NvmeCli::probe(Path::new("/nowhere/nvme")).await.is_err());
}

#[tokio::test]
async fn a_connect_that_hangs_is_killed_and_its_late_success_is_undone() {
    let (host, cli) = Host::new("exec sleep 600");
    host.hidden_controller();
    let overdue = cli.connect(&request(), Duration::from_millis(50)).await.expect_err("hangs");
    assert!(matches!(overdue, ConnectError::Overdue { .. }), "{overdue}");
    // The kernel finishes what the killed program had begun.
    let link = host.kernel.tree().root().join("class/nvme/nvme0");
    std::os::unix::fs::symlink("../../devices/virtual/nvme-fabrics/ctl/nvme0", &link).expect("linked");
    let deleted = host.kernel.tree().root().join("class/nvme/nvme0/delete_controller");
    let end = Instant::now() + LONG;
    while std::fs::read_to_string(&deleted).is_ok_and(|text| text.is_empty()) {
        assert!(Instant::now() < end, "left behind");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The tree has no kernel behind this controller: play its going.
    host.kernel.tree().remove_controller(0, 0);
}

#[tokio::test]
async fn one_at_a_time() {
    let (host, cli) = Host::new(
        "mkdir $TREE/running || { echo 'two at once' >&2; exit 9; }; sleep 0.02; rmdir $TREE/running; exit 3",
    );
    let mut other = request();
    other.portal = "10.77.2.1:4420".parse().expect("valid");
    let request = request();
    let (first, second) = tokio::join!(cli.connect(&request, LONG), cli.connect(&other, LONG));
    for result in [first, second] {
        let error = result.expect_err("the script connects nothing");
        let source = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(!source.contains("two at once"), "{source}");
    }
    assert_eq!(host.ran().lines().count(), 2);
}

#[tokio::test]
async fn a_disconnect_goes_by_device_after_the_names_were_compared() {
    let (host, cli) = Host::new("echo -n 1 >$TREE/class/nvme/nvme0/delete_controller");
    let request = request();
    let options = format!("nqn={NQN},traddr=10.77.1.1,trsvcid=4420,hostnqn={},hostid={ID}", request.host_nqn);
    host.kernel.connect_foreign(&options);
    let view = host.kernel.tree().sysfs().view_blocking(&request.subsystem).expect("readable");
    let target =
        ExactController::of(&view.controllers[0], &request.subsystem, &request.host_nqn).expect("ours");
    let foreign =
        ExactController { host_nqn: "nqn.2026-01.test:other".parse().expect("valid"), ..target.clone() };
    cli.disconnect(&foreign, LONG).await.expect_err("not that host's");
    assert_eq!(host.ran(), "", "nothing was run");
    let gone = cli.disconnect(&target, LONG).await.expect("deleted");
    assert!(matches!(gone.how, HowDeleted::Deleted(_)), "{gone:?}");
    assert_eq!(host.ran(), "disconnect --device=nvme0\n");
}

#[tokio::test]
async fn a_disconnect_that_fails_keeps_stderr() {
    let (host, cli) = Host::new("echo 'no such thing' >&2; exit 1");
    let request = request();
    host.kernel.connect_foreign(&format!(
        "nqn={NQN},traddr=10.77.1.1,trsvcid=4420,hostnqn={},hostid={ID}",
        request.host_nqn
    ));
    let view = host.kernel.tree().sysfs().view_blocking(&request.subsystem).expect("readable");
    let target =
        ExactController::of(&view.controllers[0], &request.subsystem, &request.host_nqn).expect("ours");
    let error = cli.disconnect(&target, LONG).await.expect_err("still there");
    let source = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(source.contains("no such thing"), "{source}");
}

#[tokio::test]
async fn a_secret_is_never_put_on_a_command_line() {
    let (host, cli) = Host::new("exit 0");
    let secret = DhchapSecret::parse(&format!("DHHC-1:00:{}:", "A".repeat(48))).expect("valid");
    let request = ConnectRequest { secret: Some(secret), ..request() };
    let error = cli.connect(&request, LONG).await.expect_err("refused");
    assert!(matches!(error, ConnectError::SecretUnsafe { .. }) && error.is_authentication(), "{error}");
    assert_eq!(host.ran(), "");
    assert!(!cli.authenticates());
}
