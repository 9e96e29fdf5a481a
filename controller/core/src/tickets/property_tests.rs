//! What always holds of a decision, over any tickets, any holders and any time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::decide::{LetGo, TicketDecision};
use super::testing::*;
use super::{CsiUse, Holding, HoldingState, InterruptedBy, Ticket, TicketStanding, TicketType, TicketWait};
use crate::{Access, NodeId, Role, TicketId, UnixMillis};

const NODES: [&str; 4] = ["a", "b", "c", "d"];
const TICKETS: usize = 6;
/// The name of a ticket that nothing is known of.
const STRANGER: &str = "stranger";

fn node() -> impl Strategy<Value = NodeId> {
    select(NODES.to_vec()).prop_map(n)
}

fn tickets() -> impl Strategy<Value = Vec<Ticket>> {
    let of_each = (
        select(TicketType::ALL.to_vec()),
        option::weighted(0.8, node()),
        (0_u64..4, 900_u64..1_100, option::of(1_u64..200), 1_u64..3),
    );
    vec(of_each, 0..TICKETS).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        let tickets = numbered.map(|(number, (kind, node, (since, renewed, renew_ms, generation)))| Ticket {
            id: id(&format!("t{number}")),
            // A csi ticket always names a node.
            node: if kind == TicketType::Csi { node.or(Some(n("a"))) } else { node },
            kind,
            holder: String::new(),
            generation,
            since: UnixMillis(since),
            renewed: UnixMillis(renewed),
            renew_ms,
            waits_since: UnixMillis(since),
        });
        tickets.collect()
    })
}

fn holding() -> impl Strategy<Value = Holding> {
    let entries = btree_map(
        prop_oneof![
            9 => (0..TICKETS).prop_map(|number| id(&format!("t{number}"))),
            1 => Just(id(STRANGER)),
        ],
        1_u64..3,
        0..3,
    );
    let by = prop_oneof![
        Just(InterruptedBy::Unpublish),
        Just(InterruptedBy::Silence),
        node().prop_map(|node| InterruptedBy::Workload { ticket: id("t0"), node }),
    ];
    let interrupted = (by, 900_u64..1_200).prop_map(|(by, until)| interruption(by, UnixMillis(until)));
    let ready = HoldingState::Ready;
    let others = [HoldingState::Coming, HoldingState::Leaving, HoldingState::Unknown];
    let state = select([&[ready; 3][..], &others].concat());
    let csi = select(vec![CsiUse::Nothing, CsiUse::Nothing, CsiUse::Published, CsiUse::Unpublishing]);
    (state, csi, entries, option::of(interrupted)).prop_map(|(state, csi, tickets, interrupted)| Holding {
        node: n("a"),
        state,
        role: Role::Primary,
        csi,
        tickets,
        interrupted,
        unheard: false,
    })
}

/// A volume in any state, which at most as many nodes have as may.
fn volume() -> impl Strategy<Value = Bench> {
    let access = select(vec![Access::Rwo, Access::RwxBlock]);
    let barred = proptest::collection::btree_set(select(NODES.to_vec()), 0..2);
    (access, tickets(), vec(holding(), 0..3), any::<Index>(), barred).prop_map(
        |(access, tickets, mut holdings, first, barred)| {
            holdings.truncate(access.limit());
            for (number, holding) in holdings.iter_mut().enumerate() {
                holding.node = n(NODES[(first.index(NODES.len()) + number) % NODES.len()]);
                holding.role = if number == 0 { Role::Primary } else { Role::MigrationTarget };
            }
            let barred = barred.into_iter().map(silent).collect();
            Bench { tickets, holdings, barred, ..Bench::new(access) }
        },
    )
}

fn known(b: &Bench, id: &TicketId) -> Option<Ticket> {
    b.tickets.iter().find(|ticket| ticket.id == *id).cloned()
}

/// Whether nobody may take the volume from that node: a workload has it there, or somebody who is not interruptible, or
/// nobody knows who.
fn is_kept(b: &Bench, holding: &Holding) -> bool {
    let wants = |id: &TicketId| {
        known(b, id).is_none_or(|ticket| {
            let elsewhere = ticket.kind.is_workload() && ticket.node.is_some_and(|node| node != holding.node);
            !ticket.kind.is_interruptible() && !elsewhere
        })
    };
    holding.csi == CsiUse::Published
        || holding.state == HoldingState::Unknown
        || holding.tickets.keys().any(wants)
}

/// The nodes that a decision adds to those that have the volume.
fn added(b: &Bench, decision: &TicketDecision) -> BTreeSet<NodeId> {
    let had = b.nodes();
    let granted = decision.standings.values().filter_map(|standing| match standing {
        TicketStanding::AttachOn(node) => Some(node.clone()),
        _ => None,
    });
    granted.filter(|node| !had.contains(node)).collect()
}

/// How the tickets stand, and who is detached.
fn shape(decision: &TicketDecision) -> (BTreeMap<TicketId, TicketStanding>, BTreeMap<NodeId, LetGo>) {
    (decision.standings.clone(), decision.detach.clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_order_in_which_facts_come_changes_nothing(b in volume(), tickets: Index, holdings: Index) {
        let mut other = b.clone();
        if !b.tickets.is_empty() {
            other.tickets.rotate_left(tickets.index(b.tickets.len()));
            other.tickets.reverse();
        }
        if !b.holdings.is_empty() {
            other.holdings.rotate_left(holdings.index(b.holdings.len()));
        }
        prop_assert_eq!(b.decide(), other.decide());
    }

    #[test]
    fn every_ticket_stands_somehow(b in volume()) {
        let decision = b.decide();
        let all: BTreeSet<&TicketId> = b.tickets.iter().map(|ticket| &ticket.id).collect();
        prop_assert_eq!(decision.standings.keys().collect::<BTreeSet<_>>(), all);
    }

    #[test]
    fn nobody_who_keeps_the_volume_is_interrupted_or_detached(b in volume()) {
        let decision = b.decide();
        for holding in b.holdings.iter().filter(|holding| is_kept(&b, holding)) {
            prop_assert!(!decision.interrupted.contains_key(&holding.node), "{:?}", decision);
            prop_assert!(!decision.detach.contains_key(&holding.node), "{:?}", decision);
        }
        for (id, standing) in &decision.standings {
            if let TicketStanding::Interrupt { .. } = standing {
                prop_assert!(known(&b, id).is_some_and(|ticket| ticket.kind.is_interruptible()));
            }
        }
    }

    #[test]
    fn nobody_is_cut_before_its_time(b in volume()) {
        let decision = b.decide();
        for (node, why) in &decision.detach {
            let holding = b.holdings.iter().find(|holding| holding.node == *node).expect("a holding");
            prop_assert!(matches!(holding.state, HoldingState::Coming | HoldingState::Ready));
            if let LetGo::Interrupted(_) = why {
                let had_its_time = holding.interrupted.as_ref().is_some_and(|i| i.until <= b.now);
                prop_assert!(had_its_time || holding.state == HoldingState::Coming, "{:?}", decision);
            }
        }
        for (node, new) in &decision.interrupted {
            let holding = b.holdings.iter().find(|holding| holding.node == *node).expect("a holding");
            if holding.state == HoldingState::Ready {
                let given = holding.interrupted.as_ref().map_or(b.now.plus(GRACE_MS), |before| before.until);
                prop_assert_eq!(new.until, given);
            }
        }
    }

    #[test]
    fn nothing_moves_for_what_is_no_workload(mut b in volume()) {
        b.tickets.retain(|ticket| !ticket.kind.is_workload());
        let decision = b.decide();
        for interruption in decision.interrupted.values() {
            prop_assert!(!matches!(interruption.by, InterruptedBy::Workload { .. }), "{:?}", decision);
        }
        prop_assert!(b.holdings.is_empty() || added(&b, &decision).is_empty(), "{:?}", decision);
    }

    #[test]
    fn no_more_nodes_are_given_the_volume_than_may_have_it(b in volume()) {
        let decision = b.decide();
        let added = added(&b, &decision);
        prop_assert!(b.holdings.len() + added.len() <= b.access.limit(), "{:?}", decision);
        if let (Some(second), [first]) = (added.first(), &b.holdings[..]) {
            let for_csi = |ticket: &Ticket| ticket.kind == TicketType::Csi && ticket.node.as_ref() == Some(second);
            prop_assert!(b.tickets.iter().any(for_csi), "a second node is for a migration alone");
            prop_assert!(first.csi != CsiUse::Nothing && first.state != HoldingState::Unknown);
        }
        for node in &added {
            prop_assert!(!b.barred.contains_key(node), "{:?}", decision);
        }
    }

    #[test]
    fn satisfied_is_what_is_ready_for_this_generation_of_the_ticket(b in volume()) {
        for (id, standing) in b.decide().standings {
            let TicketStanding::Satisfied { node, generation } = standing else { continue };
            let ticket = known(&b, &id).expect("a ticket");
            let holding = b.holdings.iter().find(|holding| holding.node == node).expect("a holding");
            prop_assert_eq!(holding.state, HoldingState::Ready);
            prop_assert_eq!(generation, ticket.generation);
            if ticket.kind == TicketType::Csi {
                prop_assert_eq!(holding.csi, CsiUse::Published);
            } else {
                prop_assert_eq!(holding.tickets.get(&id), Some(&ticket.generation));
            }
            if ticket.kind.is_workload() {
                prop_assert!(ticket.node.is_none_or(|wanted| wanted == node), "nowhere else");
            }
        }
    }

    #[test]
    fn time_alone_changes_nothing_before_it_is_said_to(mut b in volume(), later: Index) {
        b.settle();
        let before = b.decide();
        let span = before.again_at.map_or(1_000_000, |at| at.since(b.now));
        b.now = b.now.plus(later.index(usize::try_from(span).expect("a span")) as u64);
        prop_assert_eq!(shape(&b.decide()), shape(&before));
    }

    #[test]
    fn every_volume_comes_to_rest_and_who_waits_then_waits_for_somebody(mut b in volume()) {
        b.rest();
        let decision = b.decide();
        prop_assert_eq!(&decision.detach, &BTreeMap::new());
        for (id, standing) in &decision.standings {
            let ticket = known(&b, id).expect("a ticket");
            let TicketStanding::Waits { wait, .. } = standing else {
                let satisfied = matches!(standing, TicketStanding::Satisfied { .. });
                prop_assert!(satisfied, "{id} is not left on its way: {standing:?}");
                continue;
            };
            match wait {
                TicketWait::Elsewhere { nodes } => {
                    for node in nodes {
                        let holding = b.holdings.iter().find(|holding| holding.node == *node);
                        prop_assert!(holding.is_some_and(|holding| is_kept(&b, holding)), "{:?}", b);
                    }
                }
                TicketWait::Node(_) => prop_assert!(!b.barred.is_empty()),
                TicketWait::AnyNode => prop_assert!(b.holdings.is_empty() && ticket.node.is_none()),
                TicketWait::Renewal { since } => prop_assert_eq!(*since, ticket.renewed),
                // A node from which it is to be taken, and that somebody keeps who is not interruptible.
                TicketWait::Detaches { node } => {
                    let holding = b.holdings.iter().find(|holding| holding.node == *node);
                    let kept = holding.is_some_and(|h| h.csi == CsiUse::Unpublishing && is_kept(&b, h));
                    prop_assert!(kept, "{:?}", b);
                }
                TicketWait::Queue { .. }
                | TicketWait::Yielding { .. }
                | TicketWait::YieldsTo { .. }
                | TicketWait::Room { .. }
                | TicketWait::RoomOfAll { .. } => {
                    let why = format!("{id} waits for what has come to rest: {wait:?} in {b:?}");
                    return Err(TestCaseError::fail(why));
                }
            }
        }
    }
}
