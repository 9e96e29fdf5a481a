//! Where a list of disks is long, a volume is asked for alone, or with others that are asked for at once.

use rds_sim::AclMode;
use rds_sim::disk::Disk;
use rds_sim::store::{Saved, Store};
use rds_sim::testing::{Sim, start_with};
use rds_sim::value::ItemId;

use super::*;

/// More than a list has that is read for everybody.
const MANY: u32 = 300;

fn slot(number: u32) -> String {
    format!("pvc-{number}")
}

/// One with many disks, of which the last list was long.
async fn many() -> Bench {
    let bench = Bench::start().await;
    for number in 0..MANY {
        let slot = slot(number);
        bench.router.add_disk(json!({
            "slot": slot, "type": "file", "file-path": format!("/pool/cleat/{slot}.img"), "file-size": "4096",
            "mount-filesystem": "no", "nvme-tcp-export": "no", "comment": "cleat cluster=one",
            "nvme-tcp-server-nqn": format!("nqn.2000-02.com.mikrotik:{slot}"),
        }));
    }
    bench.rds.volumes(Priority::List, Freshness::Now).await.unwrap();
    bench.router.log();
    bench
}

#[tokio::test]
async fn beyond_a_short_list_a_change_reads_its_own_disk() {
    let bench = many().await;
    // So whoever reads the list does not find it.
    bench.router.lacking.lock().unwrap().push(slot(7));
    bench.rds.allow(&id("pvc-7"), &host("a"), Priority::Attach).await.unwrap();
    assert_eq!(
        bench.shown("pvc-7"),
        ("nqn.2026-01.io.cleat:nobody.pvc-7.RANDOM,nqn.2026-01.test:a".into(), true)
    );
    let log = bench.router.log();
    let reads = log.iter().filter(|line| line.starts_with("GET disk")).count();
    assert_eq!(reads, log.iter().filter(|line| line.starts_with("PATCH")).count() + 1, "{log:?}");
}

#[tokio::test]
async fn what_a_question_does_not_find_is_looked_for_as_before() {
    let bench = many().await;
    let gone = bench.rds.volume(&id("gone"), Priority::Attach, Freshness::Now).await.unwrap_err();
    assert!(matches!(gone, RdsError::NotFound { .. }), "{gone}");
    let reads = bench.router.log().iter().filter(|line| *line == "GET disk").count();
    assert!(reads >= 5, "the question, the list, and each denial: {reads}");
    bench.router.add_disk(json!({
        "slot": "theirs", "type": "file", "file-path": "/pool/cleat/theirs.img", "comment": "cleat cluster=two",
    }));
    let theirs = bench.rds.volume(&id("theirs"), Priority::Attach, Freshness::Now).await.unwrap_err();
    assert!(matches!(theirs, RdsError::Conflict { .. }), "{theirs}");
}

#[tokio::test]
async fn an_rds_that_takes_no_question_is_read_as_a_whole() {
    let bench = many().await;
    bench.router.fault("GET disk", Fault::Answer(400, r#"{"error": 400, "detail": "no such command"}"#));
    bench.rds.volume(&id("pvc-7"), Priority::Attach, Freshness::Now).await.unwrap();
    assert_eq!(bench.router.log(), ["GET disk", "GET disk"]);
}

/// The same, as a device over TLS that understands RouterOS' queries.
async fn device() -> (Sim, RestRds, tempfile::TempDir) {
    let disk = |number: u32| Disk {
        id: ItemId(2 + number),
        slot: slot(number),
        file_path: format!("pool/cleat/{}.img", slot(number)),
        size_bytes: 4096,
        mount_filesystem: false,
        mount_read_only: false,
        compress: false,
        export: false,
        port: None,
        nqn: None,
        allow_host_name: None,
        password: None,
        comment: Some("cleat cluster=one".to_owned()),
        uuid: uuid::Uuid::from_u128(1 + u128::from(number)),
    };
    let mut saved = Saved::empty();
    saved.disks = (0..MANY).map(disk).collect();
    saved.next_disk_id += MANY;
    let filled = |options: &mut rds_sim::rds::Options| {
        options.acl = AclMode::List;
        std::fs::create_dir_all(&options.files).unwrap();
        Store::in_directory(&options.files).save(&saved).unwrap();
    };
    let sim = start_with(filled).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&sim.url, &dir);
    std::fs::write(&config.endpoint.password_file, &sim.password).unwrap();
    config.endpoint.user.clone_from(&sim.user);
    config.endpoint.trust = Trust::Pinned(sim.fingerprint.parse().unwrap());
    (sim, RestRds::new(config).unwrap(), dir)
}

#[tokio::test]
async fn volumes_that_are_asked_for_at_once_are_one_question() {
    let (sim, rds, _dir) = device().await;
    rds.volumes(Priority::List, Freshness::Now).await.unwrap();
    let lists = sim.count("GET /rest/disk");
    let find = |number: u32| {
        let rds = rds.clone();
        async move { rds.volume(&id(&slot(number)), Priority::Attach, Freshness::Now).await }
    };
    let found = tokio::join!(find(1), find(2), find(3), find(4));
    for (number, found) in [found.0, found.1, found.2, found.3].into_iter().zip(1..) {
        assert_eq!(number.unwrap().id, id(&slot(found)));
    }
    let asked = sim.count("GET /rest/disk") - lists + sim.count("POST /rest/disk/print");
    assert!(asked <= 2 && sim.count("POST /rest/disk/print") >= 1, "{asked}");
}
