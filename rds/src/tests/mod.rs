//! The client against a RouterOS in memory that loses, delays and distorts answers.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cleat_ids::{HostNqn, VolumeId};
use serde_json::json;
use tokio::sync::Notify;

use super::*;
use router::{Fault, Router};

mod absence;
mod access;
mod late;
mod owners;
mod questions;
mod router;
mod sim;
mod transport;
mod volumes;

/// The request deadline in these tests: long beside a loopback exchange, short beside a test.
const TIMEOUT: Duration = Duration::from_secs(3);

struct Bench {
    router: Arc<Router>,
    rds: RestRds,
    dir: tempfile::TempDir,
    url: String,
}

impl Bench {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let router = Arc::new(Router::default());
        *router.password.lock().unwrap() = "secret".into();
        let port = Arc::clone(&router).serve().await;
        let dir = tempfile::tempdir().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let mut config = config(&url, &dir);
        change(&mut config);
        Self { router, rds: RestRds::new(config).unwrap(), dir, url }
    }

    fn password_file(&self) -> PathBuf {
        self.dir.path().join("password")
    }

    /// The hosts on the volume's list, the random part of nobody's name left out; and whether it is exported.
    fn shown(&self, slot: &str) -> (String, bool) {
        let disk = self.router.disk(slot).unwrap();
        let list = disk.get("nvme-tcp-server-allow-host-name").and_then(|list| list.as_str());
        let plain = |host: &str| match host.rsplit_once('.') {
            Some((nobody, random)) if host.starts_with(NOBODY) && random.len() == 32 => {
                format!("{nobody}.RANDOM")
            }
            _ => host.to_owned(),
        };
        let list: Vec<String> = list.unwrap_or_default().split(',').map(plain).collect();
        (list.join(","), disk["nvme-tcp-export"] == "yes")
    }

    async fn until_asked(&self, begins: &str) {
        let wait = async {
            loop {
                let arrived = self.router.arrived.notified();
                if self.router.log.lock().unwrap().iter().any(|line| line.starts_with(begins)) {
                    return;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect(begins);
    }
}

fn config(url: &str, dir: &tempfile::TempDir) -> Config {
    let password_file = dir.path().join("password");
    std::fs::write(&password_file, "secret\n").unwrap();
    Config {
        endpoint: Endpoint {
            url: url.parse().unwrap(),
            user: "cleat".into(),
            password_file,
            trust: Trust::Plaintext,
            timeout: TIMEOUT,
        },
        naming: Naming::new("/pool/cleat", "nqn.2000-02.com.mikrotik:", ClusterId::new("one").unwrap())
            .unwrap(),
        port: 4420,
        host_acl: HostAcl::List,
        settle: Duration::from_secs(60),
        absence_pause: Duration::from_millis(20),
    }
}

fn id(name: &str) -> VolumeId {
    VolumeId::new(name).unwrap()
}

fn host(name: &str) -> HostNqn {
    HostNqn::new(format!("nqn.2026-01.test:{name}")).unwrap()
}

fn new(name: &str, size: u64) -> NewVolume {
    NewVolume { id: id(name), size: ByteSize(size), parameters: VolumeParameters::default() }
}
