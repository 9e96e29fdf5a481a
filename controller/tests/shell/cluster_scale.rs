//! A start with very many records on a real API server: how long until the first answer, and how much memory that takes.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cleat_api_server::{Cluster, at_once};
use cleat_core::{NodeRecord, VolumeRecord};
use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::definitions;
use cleat_kubernetes::lease::{Candidate, Standby};
use cleat_kubernetes::records::{ClusterRecords, Kind, RecordWrite};
use cleat_proto::csi::v1 as csi;
use rds_sim::AclMode;
use rds_sim::disk::Disk;
use rds_sim::store::{Saved, Store};
use rds_sim::testing::{Sim, start_with};
use rds_sim::value::ItemId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::process::{Process, arguments};
use crate::world::{Csi, PREFIX};

const VOLUMES: usize = 10_000;
const NODES: usize = 100;
const LEASE: Duration = Duration::from_secs(15);
/// For what has no number to it: a machine that does nothing else needs a part of this.
const PATIENCE: Duration = Duration::from_secs(300);
/// What it is to take in a release build, on a machine that does nothing else. That is measured, and said: how fast a machine is
/// fails no test.
const GOAL: Duration = Duration::from_secs(10);
/// Volumes in one answer.
const PAGE: i32 = 1000;

fn node(number: usize) -> String {
    format!("node-{:03}", number % NODES)
}

fn volume(number: usize) -> String {
    format!("pvc-{number:05}")
}

fn host_nqn(number: usize) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", host_id(number))
}

fn host_id(number: usize) -> Uuid {
    Uuid::from_u128(1 + (number % NODES) as u128)
}

fn boot_id(number: usize) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_DNS, node(number).as_bytes())
}

/// As a record of that type says it.
fn valid<T: DeserializeOwned + Serialize>(record: Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(record).unwrap()).unwrap()
}

fn volume_record(number: usize, epoch: &str) -> Value {
    let id = volume(number);
    let record = json!({
        "spec": {
            "id": id, "access": "RWO", "subsystemNqn": format!("{PREFIX}{id}"), "sizeBytes": 1 << 30,
            "portals": ["10.77.1.1:4420", "10.77.2.1:4420"],
        },
        "identity": {"namespaceUuid": Uuid::from_u128(1 + number as u128), "nguid": null},
        "attachments": [{
            "node": node(number), "hostNqn": host_nqn(number), "epoch": epoch, "role": "primary", "readOnly": false,
            "phase": {"type": "ready"}, "since": 1, "proven": true, "bootId": boot_id(number), "mayLandUntil": null,
        }],
        "migration": null,
        "pastEvidence": [],
    });
    json!({"record": valid::<VolumeRecord>(record), "unsettled": false})
}

fn node_record(number: usize) -> Value {
    let record = json!({
        "node": node(number),
        "identity": {
            "hostNqn": host_nqn(number), "hostId": host_id(number), "bootId": boot_id(number),
            "storageAddresses": [format!("10.0.1.{}", number + 1), format!("10.0.2.{}", number + 1)],
        },
    });
    json!({"record": valid::<NodeRecord>(record)})
}

/// Records as a leader of that term leaves them.
async fn records(server: &ApiServer, term: u64) {
    let install = async || definitions::install(server).await;
    at_once(std::iter::once(()), async |()| install().await).await;
    let records = ClusterRecords::new(server.clone());
    let write = async |kind, name: String, value: Value| {
        let value = value.as_object();
        let write = RecordWrite { kind, name: &name, before: None, value, lets_in: true };
        records.write(term, &write, || true).await.map(drop)
    };
    at_once(0..NODES, async |n| write(Kind::Node, node(*n), node_record(*n)).await).await;
    at_once(0..VOLUMES, async |n| {
        write(Kind::Volume, volume(*n), volume_record(*n, &format!("{term}.{}", n + 1))).await
    })
    .await;
}

/// An RDS that has all the volumes, each with its host on the list.
async fn rds() -> Sim {
    let disk = |number: usize| Disk {
        id: ItemId(2 + u32::try_from(number).unwrap()),
        slot: volume(number),
        file_path: format!("pool/cleat/{}.img", volume(number)),
        size_bytes: 1 << 30,
        mount_filesystem: false,
        mount_read_only: false,
        compress: false,
        export: true,
        port: Some(4420),
        nqn: Some(format!("{PREFIX}{}", volume(number))),
        allow_host_name: Some(host_nqn(number)),
        password: None,
        comment: Some("cleat cluster=one".to_owned()),
        uuid: Uuid::from_u128(1 + number as u128),
    };
    let mut saved = Saved::empty();
    saved.disks = (0..VOLUMES).map(disk).collect();
    saved.next_disk_id += u32::try_from(VOLUMES).unwrap();
    start_with(|options| {
        options.acl = AclMode::List;
        std::fs::create_dir_all(&options.files).unwrap();
        Store::in_directory(&options.files).save(&saved).unwrap();
    })
    .await
    .unwrap()
}

/// The shipped controller.
fn start(dir: &Path, cluster: &Cluster, sim: &Sim) -> Process {
    std::fs::write(dir.join("password"), &sim.password).unwrap();
    let log = dir.join("log");
    let mut usual = arguments(dir);
    let store = usual.iter().position(|word| word == "--store").unwrap();
    usual[store + 1] = "kubernetes".to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cleat-controller"));
    command
        .args(usual)
        .args(["--namespace", "default", "--plaintext", "--rds-user", &sim.user])
        .args(["--kubeconfig".into(), cluster.kubeconfig()])
        .args([format!("--rds-url={}", sim.url), format!("--rds-fingerprint={}", sim.fingerprint)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap());
    Process { child: command.spawn().unwrap(), log }
}

/// Asks until the answer is one that counts.
async fn until<T>(process: &mut Process, ask: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        let ended = process.child.try_wait().unwrap();
        assert!(ended.is_none() && Instant::now() < deadline, "no answer:\n{}", process.said());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn page(csi: &Csi, token: &str) -> Result<csi::ListVolumesResponse, tonic::Status> {
    let request = csi::ListVolumesRequest { max_entries: PAGE, starting_token: token.into() };
    Ok(csi.client.clone().list_volumes(request).await?.into_inner())
}

/// What the kernel says of the process's memory, in MiB: now, and the most so far.
fn memory(process: &Process) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    };
    (mib("VmRSS:"), mib("VmHWM:"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server, for itself: hack/test --full --only api-server"]
#[allow(clippy::print_stdout)] // what was measured is for whoever runs it
async fn with_ten_thousand_attached_volumes_a_start_comes_to_its_first_answer() {
    let cluster = Cluster::own();
    let server = cleat_api_server::connect(&cluster.kubeconfig(), Duration::from_secs(20)).await;
    let candidate = Candidate {
        namespace: "default".into(),
        name: "cleat-controller".into(),
        identity: "before".into(),
        duration: LEASE,
    };
    let (standby, stop) = (watch::channel(Standby::default()).0, CancellationToken::new());
    let before = candidate.acquire(server.clone(), &standby, &stop).await.unwrap().unwrap();
    let filling = Instant::now();
    records(&server, before.term()).await;
    let attached: Vec<_> =
        (0..VOLUMES).map(|n| (volume(n), node(n), format!("{}.{}", before.term(), n + 1))).collect();
    cluster.attached_already(&attached).await;
    println!("filled in {} s", filling.elapsed().as_secs());

    let (sim, dir) = (rds().await, tempfile::tempdir().unwrap());
    let began = Instant::now();
    let mut process = start(dir.path(), &cluster, &sim);
    let socket = dir.path().join("csi.sock");
    until(&mut process, async || socket.exists().then_some(())).await;
    let csi = Csi::dial(&socket).await;
    // It has listed who is to have what, and has seen who leads: from here on it waits for nothing but the Lease.
    until(&mut process, async || page(&csi, "").await.err().filter(|said| said.message().contains("leads;")))
        .await;
    let standby = began.elapsed();
    let handed_over = Instant::now();
    before.release().await;
    let mut answer = until(&mut process, async || page(&csi, "").await.ok()).await;
    let leads = handed_over.elapsed();
    let (now, most) = memory(&process);
    println!(
        "{VOLUMES} volumes: ready after {} ms, {now} MiB ({} ms from the start to a standby that has all \
         VolumeAttachments, {} ms from the Lease that it was handed to the first page of ListVolumes; at most {most} MiB; {})",
        (standby + leads).as_millis(),
        standby.as_millis(),
        leads.as_millis(),
        if cfg!(debug_assertions) { "debug build" } else { "release build" },
    );
    let reached = if standby + leads <= GOAL { "reached" } else { "missed" };
    println!("goal {} s: {reached}", GOAL.as_secs());

    // Where the time went.
    for line in process.said().lines().filter(|line| line.contains("cleat_controller::stored")) {
        println!("{line}");
    }

    let mut published = BTreeSet::new();
    loop {
        for entry in answer.entries {
            published.insert((entry.volume.unwrap().volume_id, entry.status.unwrap().published_node_ids));
        }
        if answer.next_token.is_empty() {
            break;
        }
        answer = page(&csi, &answer.next_token).await.unwrap();
    }
    let expected = (0..VOLUMES).map(|n| (volume(n), vec![node(n)]));
    assert!(published == expected.collect(), "{} of them are known", published.len());
}
