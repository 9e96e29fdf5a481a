//! Judges the clauses of the predicate, one after the other. Pure.

use super::{Clause, Expectation, LivePath, ReadyFacts, Selected, Unready};
use crate::blockio::{IoFacts, NodeFact, ReadFact};
use crate::name::ControllerName;
use crate::sysfs::{AnaState, Controller, Holder, HolderKind, Namespace, NamespaceKind, SubsystemView};

type Judged<T> = Result<T, Unready>;

/// A clause that fails now but may hold later.
fn not_yet<T>(clause: Clause, facts: String) -> Judged<T> {
    Err(Unready { clause, facts, may_heal: clause.may_heal() })
}

/// A clause that is contradicted: waiting does not help.
fn never<T>(clause: Clause, facts: String) -> Judged<T> {
    Err(Unready { clause, facts, may_heal: false })
}

/// Judges everything, in the order of [`Clause`].
///
/// # Errors
/// [`Unready`] with the first clause that fails.
pub fn evaluate(observed: &SubsystemView, expectation: &Expectation, io: &IoFacts) -> Judged<ReadyFacts> {
    subsystem(observed)?;
    let namespaces = namespaces(observed, expectation)?;
    size(&namespaces, expectation, io.size_bytes)?;
    read_only(&namespaces, expectation, io.read_only)?;
    let selected = paths_and_device(observed, expectation, &namespaces)?;
    let node = device_node(&selected, io)?;
    let (first_read, last_read) = direct_reads(&selected, io)?;
    holders(observed, expectation, &namespaces, io)?;
    let kubelet_loops = io.loops.iter().filter(|l| l.kubelet.is_some()).map(|l| l.name.clone()).collect();
    Ok(ReadyFacts { selected, node, first_read, last_read, kubelet_loops })
}

/// Judges what sysfs alone shows and says which device to read. [`evaluate`] judges it again together with
/// what the device answered.
///
/// # Errors
/// [`Unready`] with the first clause that fails.
pub fn select(observed: &SubsystemView, expectation: &Expectation) -> Judged<Selected> {
    subsystem(observed)?;
    let namespaces = namespaces(observed, expectation)?;
    size(&namespaces, expectation, None)?;
    read_only(&namespaces, expectation, None)?;
    paths_and_device(observed, expectation, &namespaces)
}

fn subsystem(observed: &SubsystemView) -> Judged<()> {
    if let Some(unreadable) = observed.unreadable.first() {
        let facts = format!("cannot read {}: {}", unreadable.path.display(), unreadable.error);
        return not_yet(Clause::Subsystem, facts);
    }
    if observed.controllers.is_empty() {
        return not_yet(Clause::Subsystem, format!("no controller is connected to {}", observed.nqn));
    }
    Ok(())
}

/// The devices of the one namespace that is meant: one head, or bare devices of the same namespace.
fn namespaces<'a>(observed: &'a SubsystemView, expectation: &Expectation) -> Judged<Vec<&'a Namespace>> {
    let clause = Clause::NamespaceIdentity;
    let all = || observed.namespaces.iter();
    let Some(first) = observed.namespaces.first() else {
        return not_yet(clause, format!("{} shows no namespace", observed.nqn));
    };
    if let Some(blank) = all().find(|namespace| namespace.identity.is_empty()) {
        return never(clause, format!("{} has neither UUID nor NGUID to know it by", blank.name));
    }
    let Some(pinned) = &expectation.identity else {
        let other = all().find(|n| n.identity != first.identity || n.nsid != first.nsid);
        return match other {
            None => Ok(all().collect()),
            Some(other) => never(
                clause,
                format!("{} and {} are two namespaces, and none was pinned", first.name, other.name),
            ),
        };
    };
    let meant: Vec<_> = all().filter(|n| pinned.contradiction(&n.identity).is_none()).collect();
    if meant.is_empty() {
        let found = pinned.contradiction(&first.identity).unwrap_or_default();
        return never(clause, format!("{}: {found}", first.name));
    }
    Ok(meant)
}

/// At least as large as expected, and the same on every path: somebody has grown a larger one.
fn size(namespaces: &[&Namespace], expectation: &Expectation, on_device: Option<u64>) -> Judged<()> {
    let Some(first) = namespaces.first() else { return Ok(()) };
    let wrong = |facts| never(Clause::Size, facts);
    for namespace in namespaces {
        let (name, found) = (&namespace.name, namespace.size_bytes);
        if let Some(expected) = expectation.size_bytes.filter(|expected| found < *expected) {
            return wrong(format!("{name} has {found} bytes, expected at least {expected}"));
        }
        if found != first.size_bytes {
            return wrong(format!("{name} has {found} bytes, and {} has {}", first.name, first.size_bytes));
        }
    }
    match on_device {
        Some(found) if found != first.size_bytes => {
            wrong(format!("the open device has {found} bytes, expected {} as in sysfs", first.size_bytes))
        }
        _ => Ok(()),
    }
}

fn read_only(namespaces: &[&Namespace], expectation: &Expectation, on_device: Option<bool>) -> Judged<()> {
    let word = |flag| if flag { "read-only" } else { "writable" };
    let expected = expectation.read_only;
    // A read-only use of a writable device is the publisher's to enforce. A writable use of a read-only
    // device fails.
    let wrong = |found: bool| found && !expected;
    if let Some(namespace) = namespaces.iter().find(|namespace| wrong(namespace.read_only)) {
        let facts =
            format!("{} is {}, expected {}", namespace.name, word(namespace.read_only), word(expected));
        return never(Clause::ReadOnly, facts);
    }
    match on_device {
        Some(found) if wrong(found) => never(
            Clause::ReadOnly,
            format!("the open device is {}, expected {}", word(found), word(expected)),
        ),
        _ => Ok(()),
    }
}

fn paths_and_device(
    observed: &SubsystemView,
    expectation: &Expectation,
    namespaces: &[&Namespace],
) -> Judged<Selected> {
    // A controller that is being deleted may be anybody's, and carries no I/O any more.
    let controllers: Vec<&Controller> = observed.controllers.iter().filter(|c| !c.state.is_going()).collect();
    for controller in &controllers {
        let (name, expected) = (&controller.name, &expectation.host_nqn);
        if controller.host_nqn.as_deref() != Some(expected.as_str()) {
            let found = controller.host_nqn.as_deref().unwrap_or("none");
            return never(Clause::HostNqn, format!("{name} has host NQN {found}, expected {expected}"));
        }
    }
    for controller in &controllers {
        if controller.portal().is_none_or(|portal| !expectation.portals.contains(&portal)) {
            let found = controller.address.as_ref().map_or("none", |address| address.raw.as_str());
            let name = &controller.name;
            return never(Clause::Portal, format!("{name} goes to {found}, which is not an allowed portal"));
        }
    }
    let live_paths = live_paths(&controllers, expectation, namespaces)?;
    single_device(namespaces, live_paths)
}

fn live_paths(
    controllers: &[&Controller],
    expectation: &Expectation,
    namespaces: &[&Namespace],
) -> Judged<Vec<LivePath>> {
    let mut live: Vec<LivePath> = Vec::new();
    let mut missing = Vec::new();
    for portal in &expectation.portals {
        let there = controllers.iter().filter(|controller| controller.portal() == Some(*portal));
        let mut why = "not connected".to_owned();
        let mut usable = None;
        for controller in there {
            match path_state(namespaces, &controller.name) {
                _ if !controller.state.is_live() => {
                    why = format!("{} is {}", controller.name, controller.state)
                }
                None => why = format!("{} has no path to the namespace yet", controller.name),
                Some(Some(ana)) if !ana.is_usable() => why = format!("{} is {ana}", controller.name),
                Some(_) => usable = Some(controller.name.clone()),
            }
        }
        match usable {
            Some(controller) => live.push(LivePath { controller, portal: *portal }),
            None => missing.push(format!("{portal}: {why}")),
        }
    }
    let (found, of) = (live.len(), expectation.portals.len());
    let needed = expectation.paths.needed(of);
    if found < needed {
        let facts = format!("{found} of {of} portals live, {needed} needed; {}", missing.join("; "));
        return not_yet(Clause::LivePaths, facts);
    }
    Ok(live)
}

/// ANA state of the path through a controller: `None` without a path, `Some(None)` without ANA.
fn path_state<'a>(namespaces: &[&'a Namespace], name: &ControllerName) -> Option<Option<&'a AnaState>> {
    namespaces.iter().find_map(|namespace| match &namespace.kind {
        NamespaceKind::Head { paths } => {
            paths.iter().find(|path| path.controller == *name).map(|path| path.ana_state.as_ref())
        }
        NamespaceKind::Bare { controller, ana_state } => (controller == name).then_some(ana_state.as_ref()),
    })
}

fn single_device(namespaces: &[&Namespace], live_paths: Vec<LivePath>) -> Judged<Selected> {
    let clause = Clause::SingleDevice;
    let names = || namespaces.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    let Some(first) = namespaces.first() else {
        return not_yet(clause, "no device".to_owned());
    };
    let heads = namespaces.iter().filter(|n| matches!(n.kind, NamespaceKind::Head { .. })).count();
    let (device, dev) = match (heads, namespaces.len()) {
        (1, 1) => (first.name.clone(), first.dev),
        (0, _) => match common_map(namespaces) {
            Some(holder) => match holder.dev {
                Some(dev) => (holder.name.clone(), dev),
                None => return not_yet(clause, format!("{} has no device number", holder.name)),
            },
            None if namespaces.len() == 1 && live_paths.len() == 1 => (first.name.clone(), first.dev),
            None => {
                let facts = format!(
                    "bare devices {} of one namespace without one dm-multipath map over all of them",
                    names().join(", ")
                );
                return not_yet(clause, facts);
            }
        },
        _ => return never(clause, format!("more than one device for one namespace: {}", names().join(", "))),
    };
    Ok(Selected {
        device,
        dev,
        namespaces: names(),
        identity: first.identity,
        size_bytes: first.size_bytes,
        read_only: first.read_only,
        live_paths,
    })
}

/// The dm-multipath map that has all the bare devices, if there is exactly one.
fn common_map<'a>(namespaces: &[&'a Namespace]) -> Option<&'a Holder> {
    let is_map = |holder: &&Holder| matches!(holder.kind, HolderKind::DmMultipath { .. });
    let first = namespaces.first()?;
    let mut maps = first.holders.iter().filter(is_map);
    let map = maps.next().filter(|_| maps.next().is_none())?;
    let over = |namespace: &&Namespace| namespace.holders.iter().any(|holder| holder.name == map.name);
    namespaces.iter().all(over).then_some(map)
}

fn device_node(selected: &Selected, io: &IoFacts) -> Judged<std::path::PathBuf> {
    let clause = Clause::DeviceNode;
    match &io.node {
        NodeFact::Missing { looked_for } => {
            not_yet(clause, format!("{} does not exist", looked_for.display()))
        }
        NodeFact::Wrong { path, found } => {
            let path = path.display();
            not_yet(clause, format!("{path} is {found}, expected block device {}", selected.dev))
        }
        NodeFact::Unreadable { reason } => not_yet(clause, reason.clone()),
        NodeFact::Verified { path, dev } if *dev == selected.dev => Ok(path.clone()),
        NodeFact::Verified { path, dev } => {
            let path = path.display();
            not_yet(clause, format!("{path} was opened as {dev}, the volume is {} now", selected.dev))
        }
    }
}

fn direct_reads(selected: &Selected, io: &IoFacts) -> Judged<(std::time::Duration, std::time::Duration)> {
    let judge = |which: &str, fact: &ReadFact| match fact {
        ReadFact::Done { took } => Ok(*took),
        other => {
            let facts = format!("direct read of the {which} block of {}: {other}", selected.device);
            not_yet(Clause::DirectRead, facts)
        }
    };
    let first = judge("first", &io.first_read)?;
    let last = judge("last", &io.last_read)?;
    if io.size_bytes.is_none() || io.read_only.is_none() {
        let facts = format!("{} did not report its size or read-only flag", selected.device);
        return not_yet(Clause::DirectRead, facts);
    }
    Ok((first, last))
}

fn holders(
    observed: &SubsystemView,
    expectation: &Expectation,
    namespaces: &[&Namespace],
    io: &IoFacts,
) -> Judged<()> {
    let native = observed.multipath == crate::sysfs::NativeMultipath::On;
    let asked = |holder: &Holder| {
        let map = matches!(holder.kind, HolderKind::DmMultipath { .. });
        (map && !native) || expectation.asked_holders.contains(&holder.name)
    };
    for namespace in namespaces {
        if let Some(holder) = namespace.holders.iter().find(|holder| !asked(holder)) {
            return never(Clause::Holders, format!("{} is held by {holder}", namespace.name));
        }
    }
    if let Some(holder) = io.map_holders.iter().find(|holder| !asked(holder)) {
        return never(Clause::Holders, format!("the multipath map is held by {holder}"));
    }
    if let Some(blind) = &io.loops_unknown {
        return not_yet(Clause::Holders, format!("could not look for loop devices: {blind}"));
    }
    // A loop device that is neither the kubelet's nor a ticket's means that somebody else uses the volume.
    match io.loops.iter().find(|one| one.kubelet.is_none() && one.ticket.is_none()) {
        Some(one) => {
            never(Clause::Holders, format!("{} is a loop device over it ({})", one.name, one.backing_file))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
