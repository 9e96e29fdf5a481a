//! The steps from what is to what should be. Pure: reads an observation, touches nothing.
//!
//! In: [`Observed`] and [`Export`]. Out: steps in an order that nvmet accepts and that never opens a door on the
//! way: hosts leave before others come, the list is in force before "any host" is lifted, links go before the
//! namespace goes and come after it has come.

use super::{Allow, Export, Observed, ObservedSubsystem, Portal, Step};

/// The ports that the export needs and that are not there yet.
pub fn ports(observed: &Observed, want: &Export) -> Vec<Step> {
    if !want.online {
        return Vec::new();
    }
    let mut used: Vec<u16> = observed.ports.keys().copied().collect();
    let mut steps = Vec::new();
    for portal in &want.portals {
        if port_of(observed, *portal).is_none()
            && let Some(id) = (1..=u16::MAX).find(|id| !used.contains(id))
        {
            used.push(id);
            steps.push(Step::CreatePort(id, *portal));
        }
    }
    steps
}

/// The steps that make the export so; none if it is so already.
pub fn export(observed: &Observed, want: &Export) -> Vec<Step> {
    let nqn = &want.nqn;
    let mut steps = Vec::new();
    let Some(subsystem) = &observed.subsystem else {
        if want.online {
            steps.push(Step::CreateSubsystem {
                nqn: nqn.clone(),
                serial: want.serial.clone(),
                model: want.model.clone(),
            });
            // A new subsystem lets nobody in.
            let fresh = ObservedSubsystem {
                any_host: false,
                hosts: Default::default(),
                secrets: Default::default(),
                namespace: None,
            };
            access(&fresh, want, &mut steps);
            steps.push(Step::SetNamespace(nqn.clone(), want.namespace.clone(), want.reservations));
            steps.push(Step::EnableNamespace(nqn.clone()));
            link(observed, want, true, &mut steps);
        }
        return steps;
    };
    access(subsystem, want, &mut steps);
    let enabled = subsystem.namespace.as_ref().is_some_and(|namespace| namespace.enabled);
    let same = subsystem.namespace.as_ref().is_some_and(|have| {
        have.namespace == want.namespace && have.reservations.is_none_or(|on| on == want.reservations)
    });
    let down = enabled && (!want.online && !want.keep_namespace || !same);
    for id in linked(observed, |portal| down || !want.online || !want.portals.contains(&portal)) {
        steps.push(Step::Unlink(id, nqn.clone()));
    }
    if down {
        steps.push(Step::DisableNamespace(nqn.clone()));
    }
    if want.online {
        if !same {
            steps.push(Step::SetNamespace(nqn.clone(), want.namespace.clone(), want.reservations));
        }
        if down || !enabled {
            steps.push(Step::EnableNamespace(nqn.clone()));
        }
        link(observed, want, down, &mut steps);
    }
    steps
}

/// The steps that take a subsystem away; none if there is none.
pub fn removal(observed: &Observed, nqn: &str) -> Vec<Step> {
    let Some(subsystem) = &observed.subsystem else {
        return Vec::new();
    };
    let mut steps: Vec<Step> =
        linked(observed, |_| true).map(|id| Step::Unlink(id, nqn.to_owned())).collect();
    if let Some(namespace) = &subsystem.namespace {
        if namespace.enabled {
            steps.push(Step::DisableNamespace(nqn.to_owned()));
        }
        steps.push(Step::RemoveNamespace(nqn.to_owned()));
    }
    steps.extend(subsystem.hosts.iter().map(|host| Step::DisallowHost(nqn.to_owned(), host.clone())));
    steps.push(Step::RemoveSubsystem(nqn.to_owned()));
    steps
}

fn access(subsystem: &ObservedSubsystem, want: &Export, steps: &mut Vec<Step>) {
    let nqn = &want.nqn;
    match &want.allow {
        Allow::Any => {
            steps.extend(subsystem.hosts.iter().map(|host| Step::DisallowHost(nqn.clone(), host.clone())));
            if !subsystem.any_host {
                steps.push(Step::SetAnyHost(nqn.clone(), true));
            }
        }
        Allow::Hosts(wanted) => {
            if subsystem.any_host {
                steps.push(Step::SetAnyHost(nqn.clone(), false));
            }
            // A secret is taken back only together with its host: nvmet has no other way.
            let stripped = |host: &&String| want.secret.is_none() && subsystem.secrets.contains_key(*host);
            let gone = subsystem.hosts.iter().filter(|host| !wanted.contains(*host) || stripped(host));
            steps.extend(gone.map(|host| Step::DisallowHost(nqn.clone(), host.clone())));
            for host in wanted {
                if let Some(secret) =
                    want.secret.as_ref().filter(|secret| subsystem.secrets.get(host) != Some(*secret))
                {
                    steps.push(Step::SetSecret(host.clone(), secret.clone()));
                }
                if !subsystem.hosts.contains(host) || stripped(&host) {
                    steps.push(Step::AllowHost(nqn.clone(), host.clone()));
                }
            }
        }
    }
}

fn link(observed: &Observed, want: &Export, all: bool, steps: &mut Vec<Step>) {
    for portal in &want.portals {
        if let Some(id) = port_of(observed, *portal)
            && (all || !observed.ports[&id].linked)
        {
            steps.push(Step::Link(id, want.nqn.clone()));
        }
    }
}

fn linked(observed: &Observed, choose: impl Fn(Portal) -> bool) -> impl Iterator<Item = u16> {
    let chosen =
        observed.ports.iter().filter(move |(_, port)| port.linked && port.portal.is_none_or(&choose));
    chosen.map(|(id, _)| *id).collect::<Vec<_>>().into_iter()
}

fn port_of(observed: &Observed, portal: Portal) -> Option<u16> {
    observed.ports.iter().find(|(_, port)| port.portal == Some(portal)).map(|(id, _)| *id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{FakeTarget, Namespace, TargetKernel, reconcile, withdraw};
    use super::*;
    use uuid::Uuid;

    const NQN: &str = "nqn.2026-01.test:v";

    fn want() -> Export {
        Export {
            nqn: NQN.into(),
            serial: "S".into(),
            model: "M".into(),
            namespace: Namespace { path: "/f".into(), uuid: Uuid::from_u128(1), nguid: Uuid::from_u128(2) },
            reservations: false,
            allow: Allow::Any,
            secret: None,
            online: true,
            keep_namespace: false,
            portals: ["10.77.1.1:4420", "10.77.2.1:4420"].map(|p| p.parse().unwrap()).into(),
        }
    }

    fn hosts(names: &[&str]) -> Allow {
        Allow::Hosts(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn an_export_is_made_once_and_then_left_alone() {
        let target = FakeTarget::new();
        reconcile(&target, &want()).unwrap();
        let taken = target.take_steps();
        assert_eq!(taken.len(), 8, "{taken:?}");
        assert!(matches!(taken.last(), Some(Step::Link(2, _))));
        reconcile(&target, &want()).unwrap();
        assert_eq!(target.take_steps(), vec![]);
    }

    #[test]
    fn going_offline_unlinks_every_port_before_the_namespace_goes_down() {
        let target = FakeTarget::new();
        reconcile(&target, &want()).unwrap();
        target.take_steps();
        reconcile(&target, &Export { online: false, ..want() }).unwrap();
        let nqn = NQN.to_owned();
        let expected = vec![
            Step::Unlink(1, nqn.clone()),
            Step::Unlink(2, nqn.clone()),
            Step::DisableNamespace(nqn.clone()),
        ];
        assert_eq!(target.take_steps(), expected);
        reconcile(&target, &want()).unwrap();
        let expected =
            vec![Step::EnableNamespace(nqn.clone()), Step::Link(1, nqn.clone()), Step::Link(2, nqn)];
        assert_eq!(target.take_steps(), expected);
    }

    #[test]
    fn a_namespace_that_is_kept_stays_up_while_the_links_go_and_come() {
        let target = FakeTarget::new();
        let kept = Export { keep_namespace: true, ..want() };
        reconcile(&target, &kept).unwrap();
        target.take_steps();
        reconcile(&target, &Export { online: false, ..kept.clone() }).unwrap();
        reconcile(&target, &kept).unwrap();
        let nqn = || NQN.to_owned();
        let expected =
            vec![Step::Unlink(1, nqn()), Step::Unlink(2, nqn()), Step::Link(1, nqn()), Step::Link(2, nqn())];
        assert_eq!(target.take_steps(), expected);
    }

    #[test]
    fn a_secret_is_in_force_before_its_host_is_let_in_and_goes_with_it() {
        let target = FakeTarget::new();
        let with = |secret: Option<&str>| Export {
            allow: hosts(&["a"]),
            secret: secret.map(crate::secret::Secret::of_password),
            ..want()
        };
        reconcile(&target, &with(Some("one"))).unwrap();
        let steps = target.take_steps();
        let asked = steps.iter().position(|step| matches!(step, Step::SetSecret(..))).unwrap();
        let allowed = steps.iter().position(|step| matches!(step, Step::AllowHost(..))).unwrap();
        assert!(asked < allowed, "{steps:?}");
        reconcile(&target, &with(Some("two"))).unwrap();
        assert!(matches!(target.take_steps()[..], [Step::SetSecret(..)]), "a live host stays on the list");
        reconcile(&target, &with(None)).unwrap();
        assert!(matches!(target.take_steps()[..], [Step::DisallowHost(..), Step::AllowHost(..)]));
        assert!(target.observe(NQN).unwrap().subsystem.unwrap().secrets.is_empty());
    }

    #[test]
    fn the_acl_goes_any_to_list_to_list_to_nobody_to_any_as_nvmet_accepts_it() {
        let target = FakeTarget::new();
        for allow in [Allow::Any, hosts(&["a"]), hosts(&["b", "c"]), hosts(&[]), hosts(&["a"]), Allow::Any] {
            reconcile(&target, &Export { allow: allow.clone(), ..want() }).unwrap();
            let subsystem = target.observe(NQN).unwrap().subsystem.unwrap();
            match allow {
                Allow::Any => assert!(subsystem.any_host && subsystem.hosts.is_empty()),
                Allow::Hosts(hosts) => assert!(!subsystem.any_host && subsystem.hosts == hosts),
            }
        }
        let nqn = || NQN.to_owned();
        let changes = target.take_steps();
        let leaves = changes.iter().position(|step| *step == Step::DisallowHost(nqn(), "a".into()));
        let comes = changes.iter().position(|step| *step == Step::AllowHost(nqn(), "b".into()));
        assert!(leaves < comes, "{changes:?}");
    }

    #[test]
    fn another_identity_takes_the_namespace_down_with_no_session_left() {
        let target = FakeTarget::new();
        reconcile(&target, &want()).unwrap();
        target.take_steps();
        let mut other = want();
        other.namespace.uuid = Uuid::from_u128(3);
        reconcile(&target, &other).unwrap();
        let names: Vec<_> = target.take_steps().iter().map(|step| format!("{step:?}")).collect();
        let kinds: Vec<_> = names.iter().map(|name| name.split('(').next().unwrap()).collect();
        assert_eq!(
            kinds,
            ["Unlink", "Unlink", "DisableNamespace", "SetNamespace", "EnableNamespace", "Link", "Link"]
        );
    }

    #[test]
    fn withdrawing_leaves_the_ports_and_nothing_else() {
        let target = FakeTarget::new();
        reconcile(&target, &Export { allow: hosts(&["a", "b"]), ..want() }).unwrap();
        withdraw(&target, NQN).unwrap();
        let observed = target.observe(NQN).unwrap();
        assert_eq!(observed.subsystem, None);
        assert_eq!(observed.ports.len(), 2);
        withdraw(&target, NQN).unwrap();
    }
}
