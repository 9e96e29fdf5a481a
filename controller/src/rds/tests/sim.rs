//! The client against rds-sim: RouterOS' shapes over TLS, acting on a target that keeps nvmet's rules.

use rds_sim::AclMode;
use rds_sim::faults::{Action, Fault as SimFault};
use rds_sim::testing::{Sim, start_with};

use super::*;

/// A simulated RDS that enforces lists of hosts, and our client to it.
async fn device() -> (Sim, RestRds, tempfile::TempDir) {
    let sim = start_with(|options| options.acl = AclMode::List).await.unwrap();
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
    let made = rds.create(&new("pvc-1", 64 << 20)).await.unwrap();
    assert_eq!((made.size, made.exported), (ByteSize(64 << 20), false));
    assert_eq!(admitted(&sim), None, "nobody is on the list yet, so it is not exported");

    rds.allow(&volume, &host("a"), Priority::Attach).await.unwrap();
    rds.allow(&volume, &host("b"), Priority::Attach).await.unwrap();
    let both = admitted(&sim).unwrap();
    assert!(both.contains("test:a") && both.contains("test:b"), "{both}");
    rds.deny(&volume, &host("a"), Priority::Detach).await.unwrap();
    let one = admitted(&sim).unwrap();
    assert!(!one.contains("test:a") && one.contains("test:b"), "{one}");
    rds.deny(&volume, &host("b"), Priority::Detach).await.unwrap();
    assert_eq!(admitted(&sim), None);
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
    let other = rds.create(&new("pvc-1", 1 << 19)).await.unwrap_err();
    assert!(matches!(other, RdsError::Conflict { .. }), "{other}");
}
