//! A Detach that is to end who uses tickets' devices first.

use std::time::Duration;

use tokio::time::Instant;

use crate::testing::agent::{Agent, Machine, absent};
use crate::testing::kernel::World;
use crate::volume::directive::Ask;
use crate::volume::outcome::Outcome;

const LOOP: &str = "loop0 of ticket run.1";
const LONG: Duration = Duration::from_secs(20);
const VM: &str = "process 42 (qemu-kvm)";

/// A volume that a ticket's command reads.
async fn backed_up(change: impl FnOnce(&mut World)) -> (Machine, Agent) {
    let (machine, agent) = Machine::holding(1, &[1, 2]).await;
    machine.kernel.change(|world| {
        world.ticket_users = vec![LOOP.into(), "process 43 (backup)".into()];
        change(world);
    });
    (machine, agent)
}

fn holders(outcome: Outcome) -> Vec<String> {
    let Outcome::Busy(busy) = outcome else { panic!("not busy: {outcome:?}") };
    busy.holders
}

#[tokio::test]
async fn without_a_cut_a_tickets_device_keeps_the_volume_there_by_name() {
    let (machine, agent) = backed_up(|_| {}).await;
    assert_eq!(holders(agent.detach(1).await)[0], LOOP);
    let world = machine.kernel.world();
    assert_eq!((world.cuts, world.controllers.len()), (0, 2));
}

#[tokio::test]
async fn with_a_cut_who_uses_the_tickets_device_is_ended_and_the_volume_goes() {
    let (machine, agent) = backed_up(|_| {}).await;
    assert_eq!(absent(agent.detach_from_tickets(1).await).len(), 2);
    let world = machine.kernel.world();
    assert_eq!((world.cuts, world.controllers.len()), (1, 0));
}

#[tokio::test]
async fn a_cut_leaves_whoever_else_uses_the_device_where_it_is() {
    let (machine, agent) = backed_up(|world| world.users.push(VM.into())).await;
    assert_eq!(holders(agent.detach_from_tickets(1).await), [VM]);
    assert_eq!(machine.kernel.world().controllers.len(), 2);
}

#[tokio::test]
async fn a_tickets_device_that_does_not_go_keeps_the_volume_there() {
    let (machine, agent) = backed_up(|world| world.tickets_stay = true).await;
    assert_eq!(holders(agent.detach_from_tickets(1).await)[0], LOOP);
    let world = machine.kernel.world();
    assert_eq!((world.cuts, world.controllers.len()), (1, 2));
}

#[tokio::test]
async fn a_detach_of_an_earlier_grant_cuts_nobody_off() {
    let (machine, agent) = Machine::holding(1, &[1]).await;
    agent.detach(1).await;
    agent.ready(2, &[1]).await;
    machine.kernel.change(|world| world.ticket_users = vec![LOOP.into()]);
    let stale = agent.detach_from_tickets(1).await;
    assert!(matches!(stale, Outcome::StaleEpoch(_)), "{stale:?}");
    let world = machine.kernel.world();
    assert_eq!((world.cuts, world.ticket_users.len()), (0, 1));
}

#[tokio::test]
async fn a_cut_that_hangs_holds_up_no_revoke() {
    let (machine, agent) = backed_up(|world| world.cuts_hang = true).await;
    let cut = agent.directive(1, Ask::Detach { deadline: Instant::now() + LONG, cut_tickets: true });
    agent.submit(&cut);
    machine.until("the cut has begun", |world| world.cuts == 1).await;
    agent.submit(&agent.directive(1, Ask::Revoke { deadline: Instant::now() + LONG }));
    let (first, second) = (agent.result().await, agent.result().await);
    let revoked = if first.operation == cut.operation { second } else { first };
    absent(revoked.outcome);
    assert!(machine.kernel.world().controllers.is_empty());
}
