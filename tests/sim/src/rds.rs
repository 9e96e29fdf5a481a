//! The RDS as the controller's own client sees it: RouterOS' REST API over the world's target, with a management that
//! can be away, slow, lose answers, or carry requests out long after they were sent.
//!
//! Comes in: requests, as they would go out by HTTP. Goes out: answers. What the client makes of them (what it reads
//! back, what it takes to be in doubt) is the client that ships.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cleat_rds::{
    ClusterId, Config, Endpoint, Fingerprint, HostAcl, Naming, OutgoingRequest, RestRds, Transport, Trust,
    Way,
};
use serde_json::{Map, Value, json};
use tokio::time::sleep;
use tonic::codegen::http::StatusCode;

use crate::world::target::Change;
use crate::world::{self, Universe, VolumeIx};

/// How long a request without an answer is waited for.
pub const TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long such a request is taken to be able to come into force; longer than [`world::management::LATE`].
pub const SETTLE: Duration = Duration::from_millis(8_000);
/// Between two looks at the world of who waits for it.
const LOOK: Duration = Duration::from_millis(10);
/// Where the volumes' files are.
const BASE: &str = "/pool/cleat";
/// Whose they are.
const CLUSTER: &str = "simulated";

/// The controller's client to it.
///
/// # Errors
/// If its password cannot be written.
pub fn client(
    universe: Universe,
    scratch: &Path,
    acl: bool,
) -> Result<RestRds, Box<dyn std::error::Error + Send + Sync>> {
    let password_file = scratch.join("rds-password");
    std::fs::write(&password_file, "simulated")?;
    let fingerprint: Fingerprint = ["00"; 32].join(":").parse()?;
    let config = Config {
        endpoint: Endpoint {
            url: "https://rds".parse()?,
            user: "cleat".into(),
            password_file,
            trust: Trust::Pinned(fingerprint),
            timeout: TIMEOUT,
        },
        naming: Naming::new(BASE, world::PREFIX, ClusterId::new(CLUSTER)?)?,
        port: 4420,
        host_acl: if acl { HostAcl::List } else { HostAcl::None },
        settle: SETTLE,
        absence_pause: Duration::from_millis(200),
    };
    Ok(RestRds::played(config, Arc::new(RouterOs(universe)))?)
}

/// RouterOS.
#[derive(Debug)]
struct RouterOs(Universe);

impl RouterOs {
    /// Reads, somewhere between question and answer.
    async fn read(&self, what: impl FnOnce(&Self) -> Value) -> Result<Value, Way> {
        let (there, back) = {
            let mut world = self.0.lock();
            if world.rds.away {
                return Err(Way::Connect);
            }
            let takes = world.chance.within(2, 15) + world.rds.slow_ms;
            let there = world.chance.within(0, takes);
            (there, takes - there)
        };
        sleep(Duration::from_millis(there)).await;
        let read = what(self);
        sleep(Duration::from_millis(back)).await;
        if self.0.lock().rds.away { Err(Way::Lost) } else { Ok(read) }
    }

    fn list(&self, query: &[(&'static str, String)]) -> Value {
        let slot = query.iter().find(|(name, _)| *name == "slot").map(|(_, slot)| slot.as_str());
        let count = self.0.lock().target.luns.len();
        let volumes = (0..count).filter(|volume| slot.is_none_or(|slot| slot == world::volume_id(*volume)));
        volumes.map(|volume| self.item(volume)).collect()
    }

    fn item(&self, volume: VolumeIx) -> Value {
        let world = self.0.lock();
        let lun = &world.target.luns[volume];
        let (id, flag) = (world::volume_id(volume), |on| if on { "true" } else { "false" });
        let hosts = lun.hosts();
        let secret = lun.volume.secret.as_ref().map(|secret| secret.text.clone()).unwrap_or_default();
        json!({
            ".id": format!("*{:X}", volume + 1),
            "slot": id,
            "type": "file",
            "file-path": format!("{BASE}/{id}.img"),
            "size": world::SIZE.to_string(),
            "mount-filesystem": "false",
            "nvme-tcp-export": flag(lun.volume.is_on()),
            "nvme-tcp-server-port": "4420",
            "nvme-tcp-server-nqn": format!("{}{id}", world::PREFIX),
            "nvme-tcp-server-allow-host-name": hosts.join(","),
            "nvme-tcp-server-password": secret,
            "comment": format!("cleat cluster={CLUSTER}"),
        })
    }

    async fn set(&self, volume: VolumeIx, properties: &Map<String, Value>) -> Result<Value, Way> {
        let changes: Option<Vec<Change>> =
            properties.iter().map(|(name, value)| Change::of(name, value.as_str()?)).collect();
        // What the world does not know would be lost in silence.
        let changes = changes.unwrap_or_else(|| panic!("properties that are not simulated: {properties:?}"));
        let hides = changes.contains(&Change::Export(false));
        let fate = {
            let mut world = self.0.lock();
            if world.rds.away {
                return Err(Way::Connect);
            }
            world.send(volume, changes)
        };
        let Some(number) = fate.number else { return std::future::pending().await };
        // Whoever asks gives up before this could take for ever.
        while self.0.lock().on_its_way(number) || (hides && self.0.lock().target.still_drains(volume)) {
            sleep(LOOK).await;
        }
        if !fate.answered {
            return std::future::pending().await;
        }
        if self.0.lock().rds.away { Err(Way::Lost) } else { Ok(self.item(volume)) }
    }
}

#[tonic::async_trait]
impl Transport for RouterOs {
    async fn exchange(&self, request: OutgoingRequest<'_>) -> Result<(StatusCode, Vec<u8>), Way> {
        let item = request.path.strip_prefix("disk/*").and_then(|at| usize::from_str_radix(at, 16).ok());
        let answer = match (request.method, request.path, item) {
            ("GET", "disk", _) => self.read(|rds| rds.list(request.query)).await?,
            ("GET", _, Some(item)) => self.read(|rds| rds.item(item - 1)).await?,
            ("GET", "system/resource", _) => {
                self.read(|_| json!({"version": "7.24 (simulated)", "board-name": "simulated"})).await?
            }
            ("PATCH", _, Some(item)) => self.set(item - 1, request.body.unwrap_or(&Map::new())).await?,
            (method, path, _) => panic!("a request that is not simulated: {method} {path}"),
        };
        Ok((StatusCode::OK, answer.to_string().into_bytes()))
    }
}
