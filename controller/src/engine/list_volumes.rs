//! Reads the RDS's lists after a start: who may connect to which volume, for the core to hold against the records.
//!
//! In come lists of disks; out go [`Event::RdsListed`] and [`Event::RdsNotListed`]. Several are read over a time, for
//! one may lack a disk for a moment; after that only while there is something in them that cannot be understood. What
//! callers look up later is handed to the core as well ([`listed`]).

use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Event, HostNqn, ListedVolume};
use cleat_rds::{Freshness, Inventory, NOBODY, Priority, Rds, RdsVolume};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::input::Input;

/// After the start, and after each list that was had.
const PAUSES: [Duration; 3] = [Duration::from_secs(4), Duration::from_secs(8), Duration::from_secs(16)];
/// After one that was not.
const AGAIN: Duration = Duration::from_secs(2);
/// While something in it cannot be understood.
const UNREADABLE: Duration = Duration::from_secs(30);

/// Reads lists until they say all that they are asked for.
pub(super) async fn run(rds: Arc<dyn Rds>, inbox: mpsc::Sender<Input>, stop: CancellationToken) {
    let look = async {
        let mut pauses = PAUSES.into_iter();
        loop {
            let (event, pause) = match rds.volumes(Priority::Detach, Freshness::Now).await {
                Ok(inventory) => {
                    let volumes = all(&inventory);
                    let unreadable = volumes.iter().any(|listed| listed.problem.is_some());
                    let pause = pauses.next().or(unreadable.then_some(UNREADABLE));
                    (Event::RdsListed { volumes, whole: true }, pause)
                }
                Err(error) => {
                    let error = cleat_runtime::exit::Causes(&error).to_string();
                    tracing::warn!(
                        error,
                        "cannot list the volumes of the RDS; granting nothing, and answering nothing as \
                         done, until it lists them"
                    );
                    (Event::RdsNotListed { error }, Some(AGAIN))
                }
            };
            if inbox.send(Input::Event { event: Box::new(event), waiter: None }).await.is_err() {
                return;
            }
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return,
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = look => {}
    }
}

fn all(inventory: &Inventory) -> Vec<ListedVolume> {
    let unreadable = inventory.unreadable().map(|(volume, why)| ListedVolume {
        volume: volume.clone(),
        hosts: Vec::new(),
        exported: true,
        keeps_list: false,
        problem: Some(why.to_owned()),
    });
    inventory.volumes().map(listed).chain(unreadable).collect()
}

/// What a volume's entry says of who may connect.
pub(super) fn listed(volume: &RdsVolume) -> ListedVolume {
    let mut problem = None;
    let mut hosts = Vec::new();
    for host in volume.hosts.iter().filter(|host| !host.starts_with(NOBODY)) {
        match HostNqn::new(host.as_str()) {
            Ok(host) => hosts.push(host),
            Err(error) => problem = Some(format!("its list of hosts has {host:?}: {error}")),
        }
    }
    let (volume, exported, keeps_list) = (volume.id.clone(), volume.exported, !volume.hosts.is_empty());
    ListedVolume { volume, hosts, exported, keeps_list, problem }
}
