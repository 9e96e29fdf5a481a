//! Reads the RDS's lists after a start: who may connect to which volume, for the core to hold against the records.
//!
//! In come lists of disks; out go [`Event::RdsListed`] and [`Event::RdsNotListed`]. Several are read over a time, for
//! one may lack a disk for a moment; after that they are read again for as long as this process decides: a controller
//! before it whose machine stood still goes on when that does, and the RDS takes what it asks for then. What callers look
//! up meanwhile is handed to the core as well ([`listed`]).

use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Event, HostNqn, ListedVolume};
use cleat_rds::{Freshness, Inventory, NOBODY, Priority, Rds, RdsVolume};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::input::Input;
use super::rds_in_doubt::RdsInDoubt;

/// After the start, and after each list that was had.
const PAUSES: [Duration; 3] = [Duration::from_secs(4), Duration::from_secs(8), Duration::from_secs(16)];
/// After one that was not.
const AGAIN: Duration = Duration::from_secs(2);
/// From then on.
const AFTERWARDS: Duration = Duration::from_secs(30);

/// Reads lists for as long as anybody decides by them.
pub(super) async fn run(
    rds: Arc<dyn Rds>,
    inbox: mpsc::Sender<Input>,
    in_doubt: RdsInDoubt,
    stop: CancellationToken,
) {
    let look = async {
        let mut pauses = PAUSES.into_iter();
        loop {
            let first = pauses.len() == PAUSES.len();
            let priority = if pauses.len() > 0 { Priority::Detach } else { Priority::List };
            in_doubt.look();
            let listed = rds.volumes(priority, Freshness::Now).await;
            let at_rest = in_doubt.at_rest();
            let (event, pause) = match listed {
                Ok(inventory) => {
                    let mut volumes = all(&inventory);
                    volumes.iter_mut().for_each(|listed| listed.at_rest = at_rest(&listed.volume));
                    (Event::RdsListed { volumes, whole: true }, pauses.next().unwrap_or(AFTERWARDS))
                }
                Err(error) => {
                    let error = cleat_runtime::exit::Causes(&error).to_string();
                    if first {
                        tracing::warn!(
                            error,
                            "cannot list the volumes of the RDS; granting nothing, and answering nothing as \
                             done, until it lists them"
                        );
                    } else {
                        tracing::warn!(error, "cannot list the volumes of the RDS again; trying again");
                    }
                    (
                        Event::RdsNotListed { error },
                        if first { AGAIN } else { pauses.next().unwrap_or(AFTERWARDS) },
                    )
                }
            };
            if inbox.send(Input::Event { event: Box::new(event), waiter: None }).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
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
        at_rest: false,
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
    // Whoever looked it up did not look for what is under way.
    ListedVolume { volume, hosts, exported, keeps_list, problem, at_rest: false }
}
