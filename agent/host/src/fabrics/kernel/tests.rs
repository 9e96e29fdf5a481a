//! Connecting and deleting against a kernel played by a fixture.

use std::sync::{Arc, mpsc};

use super::*;
use crate::fabrics::{ConnectFailure, ConnectOptions, HowDeleted};
use crate::fixtures::{FakeKernel, KernelAnswer, Tree, Volume};
use crate::name::{HostId, HostNqn, SubsystemNqn};

const NQN: &str = "nqn.2026-01.test:v1";
const ID: &str = "00000000-0000-0000-0000-000000000011";
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);

fn kernel() -> FakeKernel {
    let kernel = FakeKernel::start(Arc::new(Tree::new()));
    kernel.export(Volume {
        subsystem: NQN.to_owned(),
        uuid: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        dev: "259:1".to_owned(),
        size_bytes: 1 << 30,
    });
    kernel
}

fn request(portal: &str) -> ConnectRequest {
    let host_id = HostId::parse(ID).expect("valid");
    ConnectRequest {
        subsystem: SubsystemNqn::parse(NQN).expect("valid"),
        portal: portal.parse().expect("valid"),
        host_nqn: HostNqn::from_host_id(host_id),
        host_id,
        options: ConnectOptions::default(),
        secret: None,
    }
}

fn target(request: &ConnectRequest, connected: &Connected) -> ExactController {
    ExactController::of(&connected.controller, &request.subsystem, &request.host_nqn).expect("ours")
}

/// Waits until the tree shows this many controllers.
async fn until_controllers(kernel: &FakeKernel, count: usize) {
    let end = Instant::now() + LONG;
    loop {
        let found = kernel.tree().sysfs().read_blocking().expect("readable").controllers.len();
        if found == count {
            return;
        }
        assert!(Instant::now() < end, "{found} controllers, expected {count}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn the_option_string_has_every_setting_and_nothing_else() {
    let mut request = request("[fd00::1]:4420");
    let plain = option_string(&request);
    assert_eq!(
        *plain,
        format!(
            "nqn={NQN},transport=tcp,traddr=fd00::1,trsvcid=4420,\
             hostnqn=nqn.2014-08.org.nvmexpress:uuid:{ID},hostid={ID}"
        )
    );
    request.options = ConnectOptions {
        nr_io_queues: Some(4),
        reconnect_delay: Some(Duration::from_secs(1)),
        ctrl_loss_tmo: Some(LossTimeout::Never),
        keep_alive_tmo: Some(Duration::from_secs(5)),
        fast_io_fail_tmo: Some(Duration::from_secs(7)),
    };
    assert_eq!(
        option_string(&request).strip_prefix(plain.as_str()),
        Some(",nr_io_queues=4,reconnect_delay=1,ctrl_loss_tmo=-1,keep_alive_tmo=5,fast_io_fail_tmo=7")
    );
}

#[test]
fn only_an_answer_with_an_instance_names_a_controller() {
    assert_eq!(read_answer("instance=3,cntlid=7\n"), ControllerName::parse("nvme3").ok());
    for answer in ["", "instance=-1,cntlid=-1,transport=%s", "cntlid=7", "instance=x"] {
        assert_eq!(read_answer(answer), None, "{answer}");
    }
}

#[tokio::test]
async fn two_portals_at_once_give_two_controllers_and_deleting_leaves_none() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let (a, b) = (request("10.77.1.1:4420"), request("10.77.2.1:4420"));
    let (first, second) = tokio::join!(fabrics.connect(&a, LONG), fabrics.connect(&b, LONG));
    let (first, second) = (first.expect("connects"), second.expect("connects"));
    assert_ne!(first.controller.name, second.controller.name);
    assert!(!first.adopted && !second.adopted);
    let (first, second) = (target(&a, &first), target(&b, &second));
    for gone in [fabrics.disconnect(&first, LONG).await, fabrics.disconnect(&second, LONG).await] {
        let gone = gone.expect("deleted");
        assert!(gone.drained(), "{gone:?}");
    }
    let topology = kernel.tree().sysfs().read_blocking().expect("readable");
    assert!(topology.view(&a.subsystem).is_proven_absent(), "{topology:?}");
}

#[tokio::test]
async fn a_connection_that_exists_is_adopted_and_not_made_twice() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let request = request("10.77.1.1:4420");
    let made = fabrics.connect(&request, LONG).await.expect("connects");
    let again = fabrics.connect(&request, LONG).await.expect("adopts");
    assert!(again.adopted);
    assert_eq!(again.controller.incarnation, made.controller.incarnation);
    until_controllers(&kernel, 1).await;
}

#[tokio::test]
async fn already_said_by_mistake_is_tried_again() {
    let kernel = kernel();
    kernel.answer(KernelAnswer::SayAlready);
    let connected = kernel.fabrics().connect(&request("10.77.1.1:4420"), LONG).await.expect("connects");
    assert!(!connected.adopted);
    assert_eq!(kernel.submitted().len(), 2);
}

#[tokio::test]
async fn refusals_say_what_kind_they_are() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    for (number, expected) in [
        (libc::ECONNREFUSED, ConnectFailure::Unreachable),
        (libc::EIO, ConnectFailure::Rejected),
        (libc::ENOKEY, ConnectFailure::SecretRequired),
        (libc::EINVAL, ConnectFailure::Options),
    ] {
        kernel.answer(KernelAnswer::Refuse(number));
        let error = fabrics.connect(&request("10.77.1.1:4420"), LONG).await.expect_err("refused");
        assert_eq!(error.failure(), Some(expected), "{error}");
        assert!(error.to_string().contains(NQN) && error.to_string().contains("10.77.1.1:4420"), "{error}");
    }
    until_controllers(&kernel, 0).await;
}

#[tokio::test]
async fn one_host_nqn_with_two_host_ids_is_explained() {
    let kernel = kernel();
    let request = request("10.77.1.1:4420");
    kernel.connect_foreign(&format!(
        "nqn=nqn.2026-01.other:x,traddr=10.0.0.9,trsvcid=4420,hostnqn={},\
         hostid=11111111-1111-1111-1111-111111111111",
        request.host_nqn
    ));
    kernel.answer(KernelAnswer::Refuse(libc::EINVAL));
    let error = kernel.fabrics().connect(&request, LONG).await.expect_err("refused");
    assert!(error.to_string().contains("11111111-1111"), "{error}");
}

#[tokio::test]
async fn a_late_connect_leaves_nothing_and_spares_the_retry() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let request = request("10.77.1.1:4420");
    let (release, late) = mpsc::channel();
    kernel.answer(KernelAnswer::ConnectAfter(late));
    let overdue = fabrics.connect(&request, SHORT).await.expect_err("too late");
    assert!(matches!(overdue, ConnectError::Overdue { .. }), "{overdue}");
    let waiting = fabrics.connect(&request, SHORT).await.expect_err("its turn has not come");
    assert!(matches!(waiting, ConnectError::EarlierAttempt { .. }), "{waiting}");
    let settled = tokio::time::timeout(SHORT, fabrics.settled(&request)).await;
    assert!(settled.is_err(), "the kernel is still at it");
    release.send(()).expect("the attempt waits");
    tokio::time::timeout(LONG, fabrics.settled(&request)).await.expect("undone");
    until_controllers(&kernel, 0).await;
    let retried = fabrics.connect(&request, LONG).await.expect("connects");
    assert!(!retried.adopted, "the late one was undone before");
    until_controllers(&kernel, 1).await;
    let topology = kernel.tree().sysfs().read_blocking().expect("readable");
    assert_eq!(topology.controllers[0].incarnation, retried.controller.incarnation);
}

#[tokio::test]
async fn a_cancelled_connect_is_undone() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let request = request("10.77.1.1:4420");
    let (release, late) = mpsc::channel();
    kernel.answer(KernelAnswer::ConnectAfter(late));
    {
        let mut cancelled = fabrics.connect(&request, LONG);
        let polled = tokio::time::timeout(SHORT, &mut cancelled).await;
        assert!(polled.is_err(), "it waits for the kernel");
    }
    drop(release);
    let end = Instant::now() + LONG;
    while kernel.submitted().is_empty() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The next attempt's turn comes only when the first has been undone.
    kernel.answer(KernelAnswer::Refuse(libc::ECONNREFUSED));
    fabrics.connect(&request, LONG).await.expect_err("refused");
    until_controllers(&kernel, 0).await;
}

#[tokio::test]
async fn a_connect_to_another_subsystem_fails_and_leaves_its_controller() {
    let kernel = kernel();
    kernel.answer(KernelAnswer::ConnectTo("nqn.2026-01.other:x".to_owned()));
    let error = kernel.fabrics().connect(&request("10.77.1.1:4420"), LONG).await.expect_err("wrong");
    assert!(matches!(error, ConnectError::NotAsAsked { .. }), "{error}");
    assert!(error.to_string().contains("nqn.2026-01.other:x"), "{error}");
}

#[tokio::test]
async fn a_foreign_controller_is_never_deleted() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let request = request("10.77.1.1:4420");
    let foreign =
        format!("nqn={NQN},traddr=10.77.1.1,trsvcid=4420,hostnqn=nqn.2026-01.other:host,hostid={ID}");
    let instance = kernel.connect_foreign(&foreign);
    let target = ExactController {
        controller: ControllerName::from_instance(instance),
        subsystem: request.subsystem.clone(),
        host_nqn: request.host_nqn.clone(),
        incarnation: None,
    };
    let error = fabrics.disconnect(&target, LONG).await.expect_err("not ours");
    assert!(matches!(error, DisconnectError::NotTheTarget { .. }), "{error}");
    assert!(error.to_string().contains("nqn.2026-01.other:host"), "{error}");
    until_controllers(&kernel, 1).await;
}

#[tokio::test]
async fn a_number_that_lives_again_is_not_the_controller_that_was_meant() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let request = request("10.77.1.1:4420");
    let first = target(&request, &fabrics.connect(&request, LONG).await.expect("connects"));
    fabrics.disconnect(&first, LONG).await.expect("deleted");
    let second = fabrics.connect(&request, LONG).await.expect("connects");
    assert_eq!(second.controller.name, first.controller, "the number is used again");
    let stale = fabrics.disconnect(&first, LONG).await.expect("the one meant is gone");
    assert_eq!(stale.how, HowDeleted::AlreadyGone);
    assert!(!stale.drained());
    until_controllers(&kernel, 1).await;
}

#[tokio::test]
async fn a_hanging_deletion_goes_on_and_keeps_its_facts_for_a_later_caller() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let request = request("10.77.1.1:4420");
    let target = target(&request, &fabrics.connect(&request, LONG).await.expect("connects"));
    kernel.hold_deletes(true);
    for _ in 0..2 {
        let error = fabrics.disconnect(&target, SHORT).await.expect_err("still detaching");
        assert!(matches!(error, DisconnectError::StillDetaching { .. }), "{error}");
    }
    let asked = kernel.tree().root().join("class/nvme/nvme0/delete_controller");
    let end = Instant::now() + LONG;
    while std::fs::read(&asked).is_ok_and(|written| written.is_empty()) {
        assert!(Instant::now() < end, "the deletion was never asked for");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The kernel shows it as on its way out by now; what counts is what it was at the beginning.
    kernel.tree().set(0, "state", "deleting");
    kernel.hold_deletes(false);
    until_controllers(&kernel, 0).await;
    let gone = fabrics.disconnect(&target, LONG).await.expect("gone");
    let HowDeleted::Deleted(facts) = &gone.how else { panic!("{gone:?}") };
    assert_eq!(facts.state, crate::sysfs::ControllerState::Live);
    assert_eq!(facts.portal, Some(request.portal));
    let again = fabrics.disconnect(&target, LONG).await.expect("still gone");
    assert_eq!(again.how, HowDeleted::AlreadyGone, "the facts are told once");
}

#[tokio::test]
async fn a_deletion_blocked_in_the_kernel_shows_its_age_and_delays_nobody() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let (a, b) = (request("10.77.1.1:4420"), request("10.77.2.1:4420"));
    let wedged = target(&a, &fabrics.connect(&a, LONG).await.expect("connects"));
    kernel.block_delete(0, true);
    let still = fabrics.disconnect(&wedged, SHORT).await.expect_err("blocked");
    let DisconnectError::StillDetaching { since, .. } = still else { panic!("{still}") };
    assert!(since >= SHORT, "{since:?}");
    for _ in 0..3 {
        let free = target(&b, &fabrics.connect(&b, LONG).await.expect("connects"));
        let gone = fabrics.disconnect(&free, LONG).await.expect("deleted");
        assert!(gone.drained(), "{gone:?}");
    }
    let still = fabrics.disconnect(&wedged, SHORT).await.expect_err("blocked");
    let DisconnectError::StillDetaching { state, since: later, .. } = still else { panic!("{still}") };
    assert!(later > since && state.is_some_and(|state| state.is_live()), "the one that was begun first");
    until_controllers(&kernel, 1).await;
    kernel.block_delete(0, false);
    let gone = fabrics.disconnect(&wedged, LONG).await.expect("the kernel has let go");
    assert!(matches!(gone.how, HowDeleted::Deleted(_)), "{gone:?}");
    until_controllers(&kernel, 0).await;
}

#[tokio::test]
async fn a_controller_that_was_not_live_is_gone_but_not_drained() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let request = request("10.77.1.1:4420");
    let target = target(&request, &fabrics.connect(&request, LONG).await.expect("connects"));
    kernel.tree().set(0, "state", "connecting");
    let gone = fabrics.disconnect(&target, LONG).await.expect("deleted");
    assert!(matches!(gone.how, HowDeleted::Deleted(_)) && !gone.drained(), "{gone:?}");
}

#[tokio::test]
async fn a_missing_device_names_the_module() {
    let fabrics = KernelFabrics::new("/nowhere/nvme-fabrics", Tree::new().sysfs());
    let error = fabrics.connect(&request("10.77.1.1:4420"), LONG).await.expect_err("no device");
    assert!(error.to_string().contains("modprobe nvme-tcp"), "{error}");
}

fn secret() -> DhchapSecret {
    DhchapSecret::parse(&format!("DHHC-1:00:{}:", "A".repeat(48))).expect("valid")
}

#[tokio::test]
async fn a_secret_is_handed_to_the_kernel_and_shown_nowhere() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    assert!(fabrics.authenticates());
    let request = ConnectRequest { secret: Some(secret()), ..request("10.77.1.1:4420") };
    let connected = fabrics.connect(&request, LONG).await.expect("connects");
    let submitted = kernel.submitted().pop().expect("submitted");
    assert!(submitted.ends_with(&format!(",dhchap_secret=DHHC-1:00:{}:", "A".repeat(48))), "{submitted}");
    assert!(!format!("{request:?}").contains("AAAA"), "{request:?}");
    let of = fabrics.secret(&target(&request, &connected), LONG).await;
    assert_eq!(of.expect("reads"), Some(secret()));
}

#[tokio::test]
async fn failures_of_authentication_have_their_own_errors() {
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let with = ConnectRequest { secret: Some(secret()), ..request("10.77.1.1:4420") };
    let cases = [
        (libc::ENOKEY, request("10.77.1.1:4420"), Some(ConnectFailure::SecretRequired)),
        (libc::EKEYREJECTED, with.clone(), Some(ConnectFailure::Authentication)),
        (libc::EPROTONOSUPPORT, request("10.77.1.1:4420"), Some(ConnectFailure::NoAuthentication)),
        (libc::EIO, with, Some(ConnectFailure::Rejected)),
    ];
    for (number, request, failure) in cases {
        kernel.answer(KernelAnswer::Refuse(number));
        let error = fabrics.connect(&request, LONG).await.expect_err("refused");
        assert_eq!(error.failure(), failure, "{error}");
        assert_eq!(error.is_authentication(), number != libc::EIO);
        assert_eq!(
            number == libc::EIO,
            error.to_string().contains("or it did not accept the secret"),
            "{error}"
        );
        assert!(!format!("{error:?}").contains("AAAA"), "{error:?}");
    }
}

#[tokio::test]
async fn a_refused_connection_at_a_working_portal_is_a_refused_secret() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let portal = listener.local_addr().expect("an address").to_string();
    let kernel = kernel();
    let fabrics = kernel.fabrics();
    let with = ConnectRequest { secret: Some(secret()), ..request(&portal) };
    kernel.answer(KernelAnswer::Refuse(libc::ECONNREFUSED));
    let error = fabrics.connect(&with, LONG).await.expect_err("refused");
    assert_eq!(error.failure(), Some(ConnectFailure::Authentication));
    kernel.answer(KernelAnswer::Refuse(libc::ECONNREFUSED));
    let error = fabrics.connect(&request(&portal), LONG).await.expect_err("refused");
    assert_eq!(error.failure(), Some(ConnectFailure::Unreachable), "no secret was given");
    drop(listener);
    kernel.answer(KernelAnswer::Refuse(libc::ECONNREFUSED));
    let error = fabrics.connect(&with, LONG).await.expect_err("refused");
    assert_eq!(error.failure(), Some(ConnectFailure::Unreachable), "nobody listens");
}
