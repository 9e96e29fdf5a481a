//! The client against rds-sim: RouterOS' shapes over TLS, acting on a target that keeps nvmet's rules.

use rds_sim::AclMode;
use rds_sim::faults::{Action, Fault as SimFault};
use rds_sim::testing::{Sim, start_with};

use super::*;
use crate::secret::Secret;

/// A simulated RDS that enforces lists of hosts, and our client to it.
async fn device() -> (Sim, RestRds, tempfile::TempDir) {
    device_with(|_| {}).await
}

async fn device_with(adjust: impl FnOnce(&mut rds_sim::rds::Options)) -> (Sim, RestRds, tempfile::TempDir) {
    let adjust = |options: &mut rds_sim::rds::Options| {
        options.acl = AclMode::List;
        adjust(options);
    };
    let sim = start_with(adjust).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&sim.url, &dir);
    std::fs::write(&config.endpoint.password_file, &sim.password).unwrap();
    config.endpoint.user.clone_from(&sim.user);
    config.endpoint.trust = Trust::Pinned(sim.fingerprint.parse().unwrap());
    (sim, RestRds::new(config).unwrap(), dir)
}

/// The hosts that the target itself lets in, or `None` if it serves the volume on no portal.
fn admitted(sim: &Sim) -> Option<String> {
    let state = sim.state().unwrap();
    let disk = state.disks.first().unwrap();
    let subsystem = disk.subsystem.as_ref().filter(|_| !disk.linked.is_empty())?;
    assert!(!subsystem.any_host, "everybody is admitted");
    Some(subsystem.hosts.iter().cloned().collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn a_volumes_whole_life() {
    let (sim, rds, _dir) = device().await;
    let version = rds.resource().await.unwrap().version;
    assert!(version.starts_with("7."), "{version}");
    let volume = id("pvc-1");
    let made = rds.create(&new("pvc-1", 64 << 20)).await.unwrap().volume;
    assert_eq!((made.size, made.exported), (ByteSize(64 << 20), true));
    let nobody = admitted(&sim).unwrap();
    assert!(nobody.starts_with("nqn.2026-01.io.cleat:nobody.pvc-1."), "{nobody}");

    rds.allow(&volume, &host("a"), Priority::Attach).await.unwrap();
    rds.allow(&volume, &host("b"), Priority::Attach).await.unwrap();
    let both = admitted(&sim).unwrap();
    assert!(both.contains("test:a") && both.contains("test:b"), "{both}");
    rds.deny(&volume, &host("a"), Priority::Detach).await.unwrap();
    let one = admitted(&sim).unwrap();
    assert!(!one.contains("test:a") && one.contains("test:b"), "{one}");
    rds.hide(&volume, Priority::Fence).await.unwrap();
    assert_eq!(admitted(&sim), None);
    rds.show(&volume, Priority::Fence).await.unwrap();
    assert_eq!(admitted(&sim).unwrap(), one);
    rds.deny(&volume, &host("b"), Priority::Detach).await.unwrap();
    assert_eq!(admitted(&sim).unwrap(), nobody);
    rds.allow(&volume, &host("c"), Priority::Attach).await.unwrap();
    assert!(admitted(&sim).unwrap().contains("test:c"));

    rds.delete(&volume).await.unwrap();
    rds.delete(&volume).await.unwrap();
    let gone = rds.volume(&volume, Priority::List, Freshness::Now).await;
    assert!(matches!(gone, Err(RdsError::NotFound { .. })));
    assert!(sim.state().unwrap().disks.is_empty());
    rds.create(&new("pvc-1", 64 << 20)).await.expect("no file was left behind");
}

#[tokio::test]
async fn lost_replies_at_every_request_of_a_life_leave_one_volume_and_then_none() {
    for lost in 0..12 {
        let (sim, rds, _dir) = device().await;
        let life = async || -> Result<(), RdsError> {
            let volume = id("pvc-1");
            rds.create(&new("pvc-1", 1 << 20)).await?;
            rds.allow(&volume, &host("a"), Priority::Attach).await?;
            assert!(admitted(&sim).unwrap().contains("test:a"));
            Ok(())
        };
        sim.fault(SimFault::next(lost, Action::Slow { delay_ms: 0 }));
        sim.fault(SimFault::next(1, Action::LoseReply));
        let first = life().await;
        life().await.unwrap_or_else(|error| panic!("{lost}: {first:?}, then {error}"));
        assert_eq!(sim.state().unwrap().disks.len(), 1, "{lost}");
        rds.delete(&id("pvc-1")).await.unwrap();
        assert!(sim.state().unwrap().disks.is_empty(), "{lost}");
    }
}

#[tokio::test]
async fn each_failure_of_the_device_has_its_kind() {
    let (sim, rds, dir) = device().await;
    let drop_connection = || SimFault::next(2, Action::Drop);
    sim.fault(drop_connection());
    let lost = rds.resource().await.unwrap_err();
    assert!(matches!(lost, RdsError::Unreachable { way: Way::Lost, .. }), "{lost}");
    sim.fault(SimFault::next(1, Action::Drop));
    rds.resource().await.expect("a read is repeated once on a new connection");
    sim.next_request(Action::Hang);
    let silent = rds.resource().await.unwrap_err();
    assert!(matches!(silent, RdsError::Unreachable { way: Way::Timeout, .. }), "{silent}");
    std::fs::write(dir.path().join("password"), "wrong").unwrap();
    rds.resource().await.expect("the password that was accepted is kept until it is refused");

    let (sim, rds, _dir) = device().await;
    sim.restart(|options| options.capacity_bytes = Some(1 << 20)).unwrap();
    let full = rds.create(&new("pvc-1", 2 << 20)).await.unwrap_err();
    assert!(matches!(full, RdsError::Full { .. }), "{full}");
    rds.create(&new("pvc-1", 1 << 20)).await.unwrap();
    let other = rds.create(&new("pvc-1", (1 << 20) + 4096)).await.unwrap_err();
    assert!(matches!(other, RdsError::Conflict { .. }), "{other}");
}

#[tokio::test]
async fn each_volume_gets_its_secret_which_is_read_back_and_replaced() {
    let (sim, rds, _dir) = device_with(|options| options.in_band_auth = true).await;
    let [first, second] = [1, 2].map(Secret::for_test);
    for (name, secret) in [("pvc-1", &first), ("pvc-2", &second)] {
        rds.create(&new(name, 1 << 20)).await.unwrap();
        rds.set_secret(&id(name), secret, Priority::Attach).await.unwrap();
    }
    rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await.unwrap();
    let writes = sim.count("PATCH /rest/disk/*");
    rds.set_secret(&id("pvc-1"), &first, Priority::Fence).await.unwrap();
    assert_eq!(sim.count("PATCH /rest/disk/*"), writes, "it is there already");
    rds.set_secret(&id("pvc-1"), &second, Priority::Fence).await.unwrap();
    rds.hide(&id("pvc-1"), Priority::Fence).await.unwrap();
    rds.show(&id("pvc-1"), Priority::Fence).await.unwrap();
    let missing = rds.set_secret(&id("pvc-3"), &first, Priority::Fence).await.unwrap_err();
    assert!(matches!(missing, RdsError::NotFound { .. }), "{missing}");
}

#[tokio::test]
async fn a_secret_is_not_proven_while_an_earlier_one_may_still_take_its_place() {
    let (sim, rds, _dir) = device().await;
    rds.create(&new("pvc-1", 1 << 20)).await.unwrap();
    let [old, new] = [1, 2].map(Secret::for_test);
    sim.fault(SimFault::next(1, Action::Hang).only("PATCH", "/rest/disk"));
    let lost = rds.set_secret(&id("pvc-1"), &old, Priority::Fence).await.unwrap_err();
    assert!(lost.outcome_unknown(), "{lost}");
    let doubtful = rds.set_secret(&id("pvc-1"), &new, Priority::Fence).await.unwrap_err();
    assert!(matches!(doubtful, RdsError::InDoubt { .. }), "{doubtful}");
    let said = format!("{lost} {lost:?} {doubtful} {doubtful:?}");
    assert!(!said.contains(old.reveal()) && !said.contains(new.reveal()), "{said}");

    sim.fault(SimFault::next(1, Action::LoseReply).only("PATCH", "/rest/disk"));
    rds.create(&self::new("pvc-2", 1 << 20)).await.unwrap();
    rds.set_secret(&id("pvc-2"), &old, Priority::Fence).await.unwrap_err();
    rds.set_secret(&id("pvc-2"), &old, Priority::Fence).await.expect("it is seen to have been set");
    rds.set_secret(&id("pvc-2"), &new, Priority::Fence).await.expect("and is in doubt no more");
}
