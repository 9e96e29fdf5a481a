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
/// Volumes that the core holds against its records in one step: whoever else wants something of it waits no longer for a long
/// list than for a short one.
const PART: usize = 1_000;

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
            let (events, pause) = match listed {
                Ok(inventory) => (in_parts(all(&inventory)), pauses.next().unwrap_or(AFTERWARDS)),
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
                        vec![Event::RdsNotListed { error }],
                        if first { AGAIN } else { pauses.next().unwrap_or(AFTERWARDS) },
                    )
                }
            };
            for mut event in events {
                let Ok(place) = inbox.reserve().await else { return };
                if let Event::RdsListed { volumes, .. } = &mut event {
                    volumes
                        .iter_mut()
                        .for_each(|listed| listed.at_rest = in_doubt.is_at_rest(&listed.volume));
                }
                place.send(Input::Event { event: Box::new(event), waiter: None });
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = look => {}
    }
}

/// The last part says that all were listed.
fn in_parts(mut volumes: Vec<ListedVolume>) -> Vec<Event> {
    let mut events = Vec::with_capacity(volumes.len() / PART + 1);
    while volumes.len() > PART {
        let part = volumes.split_off(volumes.len() - PART);
        events.push(Event::RdsListed { volumes: part, whole: false });
    }
    events.push(Event::RdsListed { volumes, whole: true });
    events
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_handed_on_in_parts_of_which_the_last_is_whole() {
        for (volumes, parts) in [(0, 1), (1, 1), (PART, 1), (PART + 1, 2), (3 * PART, 3)] {
            let listed = |number| ListedVolume {
                volume: cleat_core::VolumeId::new(format!("v-{number}")).unwrap(),
                hosts: Vec::new(),
                exported: true,
                keeps_list: true,
                problem: None,
                at_rest: false,
            };
            let events = in_parts((0..volumes).map(listed).collect());
            let mut seen = std::collections::BTreeSet::new();
            for (at, event) in events.iter().enumerate() {
                let Event::RdsListed { volumes, whole } = event else { panic!("{event:?}") };
                assert!(volumes.len() <= PART);
                assert_eq!(*whole, at + 1 == parts);
                seen.extend(volumes.iter().map(|listed| listed.volume.clone()));
            }
            assert_eq!((events.len(), seen.len()), (parts, volumes));
        }
    }
}
