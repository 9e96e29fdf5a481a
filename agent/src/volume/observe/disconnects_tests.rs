//! What events show of connections, one at a time.

use super::*;
use crate::testing::kernel::{controller, nqn};

fn says(disconnects: &Disconnects, name: &str, action: Action, nvme_event: Option<&str>) {
    disconnects.take(&HostEvent::Device(DeviceEvent {
        action,
        kind: DeviceKind::NvmeController,
        name: name.to_owned(),
        dev: None,
        sequence: 1,
        nvme_event: nvme_event.map(str::to_owned),
    }));
}

fn connected(disconnects: &Disconnects, name: &str) {
    says(disconnects, name, Action::Change, Some("connected"));
}

/// A controller that is made while this process hears.
fn made(disconnects: &Disconnects, name: &str) {
    says(disconnects, name, Action::Add, None);
    connected(disconnects, name);
}

async fn deleted(disconnects: &Disconnects, name: &str) -> Option<&'static str> {
    let removal = disconnects.about_to_delete(name, &nqn("v"));
    says(disconnects, name, Action::Remove, None);
    disconnects.broken_before(&removal).await
}

#[tokio::test(start_paused = true)]
async fn one_connection_in_a_whole_life_is_unbroken() {
    let disconnects = Disconnects::default();
    made(&disconnects, "nvme0");
    says(&disconnects, "nvme0", Action::Change, Some("rediscover"));
    assert_eq!(deleted(&disconnects, "nvme0").await, None);
}

#[tokio::test(start_paused = true)]
async fn the_second_connection_of_a_life_is_a_break() {
    let disconnects = Disconnects::default();
    made(&disconnects, "nvme0");
    made(&disconnects, "nvme1");
    connected(&disconnects, "nvme0");
    assert!(deleted(&disconnects, "nvme0").await.is_some_and(|why| why.contains("had broken")));
    assert_eq!(deleted(&disconnects, "nvme1").await, None);
    made(&disconnects, "nvme0");
    assert_eq!(deleted(&disconnects, "nvme0").await, None, "another one of that name");
    made(&disconnects, "nvme0");
    connected(&disconnects, "nvme0");
    tokio::time::advance(LATELY).await;
    assert_eq!(deleted(&disconnects, "nvme0").await, None, "as long as a write may be held, and no longer");
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_a_break_before_the_kernel_says_so() {
    let disconnects = Disconnects::default();
    made(&disconnects, "nvme0");
    disconnects.events_arrive();
    for name in ["nvme0", "nvme1"] {
        disconnects.about_to_reset(name);
        assert!(deleted(&disconnects, name).await.is_some_and(|why| why.contains("had broken")), "{name}");
    }
    made(&disconnects, "nvme0");
    assert_eq!(deleted(&disconnects, "nvme0").await, None, "another one of that name");
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_never_says_connected_proves_nothing() {
    let disconnects = Disconnects::default();
    says(&disconnects, "nvme0", Action::Add, None);
    tokio::time::advance(LATELY * 2).await;
    assert!(deleted(&disconnects, "nvme0").await.is_some_and(|why| why.contains("does not say")));
}

#[tokio::test(start_paused = true)]
async fn where_no_event_arrives_nothing_is_proven() {
    let disconnects = Disconnects::default();
    let (uevents, _source) = Uevents::scripted();
    let _hearing = disconnects.listen(Some(&uevents));
    let removal = disconnects.about_to_delete("nvme0", &nqn("v"));
    assert!(
        disconnects.broken_before(&removal).await.is_some_and(|why| why.contains("removal was not heard"))
    );
}

#[tokio::test(start_paused = true)]
async fn one_from_before_this_process_needs_events_that_were_shown_to_arrive() {
    let disconnects = Disconnects::default();
    assert!(deleted(&disconnects, "nvme3").await.is_some_and(|why| why.contains("has no proof that")));
    made(&disconnects, "nvme0");
    assert_eq!(deleted(&disconnects, "nvme3").await, None, "the kernel was heard to say so of another");
    let disconnects = Disconnects::default();
    disconnects.events_arrive();
    assert_eq!(deleted(&disconnects, "nvme3").await, None);
    connected(&disconnects, "nvme3");
    assert!(deleted(&disconnects, "nvme3").await.is_some(), "it had one before");
}

#[tokio::test(start_paused = true)]
async fn a_connected_event_just_before_the_removal_counts() {
    let (disconnects, (uevents, source)) = (Disconnects::default(), Uevents::scripted());
    let _hearing = disconnects.listen(Some(&uevents));
    made(&disconnects, "nvme0");
    let removal = disconnects.about_to_delete("nvme0", &nqn("v"));
    // In the socket, and not taken in when the deletion has ended.
    for (action, nvme_event) in [(Action::Change, Some("connected")), (Action::Remove, None)] {
        let event = DeviceEvent {
            action,
            kind: DeviceKind::NvmeController,
            name: "nvme0".into(),
            dev: None,
            sequence: 1,
            nvme_event: nvme_event.map(str::to_owned),
        };
        assert!(source.send(HostEvent::Device(event)).is_ok());
    }
    assert!(disconnects.broken_before(&removal).await.is_some_and(|why| why.contains("had broken")));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_heard_counts_as_a_break() {
    let disconnects = Disconnects::default();
    made(&disconnects, "nvme0");
    made(&disconnects, "nvme1");
    disconnects.take(&HostEvent::Overrun);
    assert!(deleted(&disconnects, "nvme0").await.is_some_and(|why| why.contains("lost")));
    tokio::time::advance(LATELY).await;
    assert_eq!(deleted(&disconnects, "nvme1").await, None);
    made(&disconnects, "nvme0");
    let (uevents, source) = Uevents::scripted();
    let hearing = disconnects.listen(Some(&uevents));
    drop((uevents, source));
    assert!(hearing.await.is_ok());
    assert!(deleted(&disconnects, "nvme0").await.is_some(), "no more events come");
}

const EPOCH: Epoch = Epoch { term: 1, seq: 1 };

/// One that is receiving events, which were proven to arrive.
fn hearing() -> (Disconnects, (Uevents, AbortOnDropHandle<()>)) {
    let (disconnects, (uevents, _)) = (Disconnects::default(), Uevents::scripted());
    let hearing = disconnects.listen(Some(&uevents));
    disconnects.events_arrive();
    (disconnects, (uevents, hearing))
}

/// Whether volume `v`, which has controllers 0 and 1, is shown unbroken.
fn shown(disconnects: &Disconnects, begun_here: bool) -> bool {
    let controllers = [controller(0, 1, "live"), controller(1, 2, "live")];
    disconnects.belong(disconnects.reading_begins(), &controllers);
    let names = controllers.iter().map(|one| &one.name);
    disconnects.show_unbroken(&nqn("v"), EPOCH, begun_here, names)
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_came_in_this_process_is_unbroken_until_something_breaks() {
    let (disconnects, _hearing) = hearing();
    assert!(!shown(&disconnects, true), "nobody has heard of its controllers");
    made(&disconnects, "nvme0");
    made(&disconnects, "nvme1");
    assert!(shown(&disconnects, true));
    assert!(!shown(&disconnects, false), "what befell the grant before is not known");
    connected(&disconnects, "nvme1");
    assert!(!shown(&disconnects, true));
    tokio::time::advance(LATELY).await;
    assert!(shown(&disconnects, true), "no target holds what was on its way");
    assert!(shown(&disconnects, false), "nor from before this process");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_seen_without_its_connection_has_broken() {
    for state in ["connecting", "resetting"] {
        let (disconnects, _hearing) = hearing();
        made(&disconnects, "nvme0");
        made(&disconnects, "nvme1");
        assert!(shown(&disconnects, true));
        disconnects.belong(disconnects.reading_begins(), &[controller(0, 1, state)]);
        // It is live, and the event is on its way.
        assert!(!shown(&disconnects, true), "{state}");
        assert!(deleted(&disconnects, "nvme0").await.is_some_and(|why| why.contains("had broken")));
    }
    let (disconnects, _hearing) = hearing();
    disconnects.carry(&nqn("v"), EPOCH);
    assert!(shown(&disconnects, false));
    disconnects.belong(disconnects.reading_begins(), &[controller(1, 2, "connecting")]);
    assert!(!shown(&disconnects, false), "also one from before this process");
}

#[tokio::test(start_paused = true)]
async fn a_reading_that_began_before_it_was_connected_shows_no_break() {
    let (disconnects, _hearing) = hearing();
    made(&disconnects, "nvme1");
    says(&disconnects, "nvme0", Action::Add, None);
    let began = disconnects.reading_begins();
    connected(&disconnects, "nvme0");
    disconnects.belong(began, &[controller(0, 1, "connecting")]);
    assert!(shown(&disconnects, true), "it had no connection when that was read");
    assert_eq!(deleted(&disconnects, "nvme0").await, None);
    // And one of the same name that has gone since.
    disconnects.belong(began, &[controller(0, 1, "live")]);
    disconnects.belong(began, &[controller(0, 1, "connecting")]);
    made(&disconnects, "nvme0");
    assert!(shown(&disconnects, true), "that was read of the one before");
    disconnects.belong(disconnects.reading_begins(), &[controller(0, 1, "connecting")]);
    assert!(!shown(&disconnects, true), "and this was read of it");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_made_or_deleted_has_not_broken() {
    let (disconnects, _hearing) = hearing();
    disconnects.belong(disconnects.reading_begins(), &[controller(0, 1, "connecting")]);
    says(&disconnects, "nvme0", Action::Add, None);
    disconnects.belong(disconnects.reading_begins(), &[controller(0, 1, "connecting")]);
    connected(&disconnects, "nvme0");
    made(&disconnects, "nvme1");
    assert!(shown(&disconnects, true), "it had no connection before");
    disconnects.belong(disconnects.reading_begins(), &[controller(2, 2, "live")]);
    let removal = disconnects.about_to_delete("nvme2", &nqn("v"));
    disconnects.belong(disconnects.reading_begins(), &[controller(2, 2, "deleting")]);
    says(&disconnects, "nvme2", Action::Remove, None);
    assert_eq!(disconnects.broken_before(&removal).await, None);
    assert!(shown(&disconnects, true), "what deletes it says whether it was proof");
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_by_another_hand_is_a_loss() {
    let (disconnects, _hearing) = hearing();
    for name in ["nvme0", "nvme1", "nvme2"] {
        made(&disconnects, name);
    }
    assert!(shown(&disconnects, true));
    disconnects.belong(disconnects.reading_begins(), &[controller(2, 2, "live")]);
    says(&disconnects, "nvme2", Action::Remove, None);
    assert!(!shown(&disconnects, true), "a controller of this volume went");
    let (disconnects, _hearing) = hearing();
    for name in ["nvme0", "nvme1", "nvme2"] {
        made(&disconnects, name);
    }
    says(&disconnects, "nvme3", Action::Add, None);
    says(&disconnects, "nvme3", Action::Remove, None);
    assert!(shown(&disconnects, true), "one that was never connected has carried nothing");
    says(&disconnects, "nvme2", Action::Remove, None);
    assert!(!shown(&disconnects, true), "of one that nobody knows anything may have gone");
}

#[tokio::test(start_paused = true)]
async fn another_volumes_loss_costs_this_one_nothing() {
    let (disconnects, _hearing) = hearing();
    for name in ["nvme0", "nvme1", "nvme2"] {
        made(&disconnects, name);
    }
    let mut other = controller(2, 1, "live");
    other.subsystem_nqn = Some(nqn("w").as_str().to_owned());
    disconnects.belong(disconnects.reading_begins(), &[other]);
    connected(&disconnects, "nvme2");
    says(&disconnects, "nvme2", Action::Remove, None);
    assert!(shown(&disconnects, true));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_a_loss_unless_it_was_proof() {
    let (disconnects, _hearing) = hearing();
    for name in ["nvme0", "nvme1", "nvme2"] {
        made(&disconnects, name);
    }
    assert_eq!(deleted(&disconnects, "nvme2").await, None);
    assert!(shown(&disconnects, true));
    made(&disconnects, "nvme2");
    let removal = disconnects.about_to_delete("nvme2", &nqn("v"));
    says(&disconnects, "nvme2", Action::Remove, None);
    drop(removal);
    assert!(!shown(&disconnects, true));
}

#[tokio::test(start_paused = true)]
async fn what_was_carried_over_is_of_one_grant() {
    let (disconnects, _hearing) = hearing();
    assert!(!shown(&disconnects, false));
    disconnects.carry(&nqn("v"), EPOCH);
    assert!(shown(&disconnects, false));
    let names = [controller(0, 1, "live").name];
    let next = Epoch { term: 1, seq: 2 };
    assert!(!disconnects.show_unbroken(&nqn("v"), next, false, names.iter()));
    connected(&disconnects, "nvme0");
    assert!(!shown(&disconnects, false), "it broke since");
}

#[tokio::test(start_paused = true)]
async fn whoever_hears_nothing_shows_nothing() {
    let (disconnects, _hearing) = hearing();
    made(&disconnects, "nvme0");
    made(&disconnects, "nvme1");
    disconnects.take(&HostEvent::Overrun);
    assert!(!shown(&disconnects, true), "events were lost");
    let silent = Disconnects::default();
    silent.events_arrive();
    assert!(!shown(&silent, true), "nobody listens");
    let (deaf, hearing) = hearing();
    made(&deaf, "nvme0");
    made(&deaf, "nvme1");
    drop(hearing.0);
    assert!(hearing.1.await.is_ok());
    assert!(!shown(&deaf, true), "no more events come");
}
