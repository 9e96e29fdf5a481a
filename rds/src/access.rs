//! Who may connect to a volume: the next step from what is to what is wanted. Pure.
//!
//! Comes in: the volume as just read, and a wish. Goes out: the next write, or none if the wish is met.
//! Always holds, after each single step as well as at the end: no host is admitted that was not admitted
//! before, except the one that the wish names. An exported volume with an empty list would admit everybody,
//! so no step ever empties a list. From a volume's creation its list has a host NQN of nobody; hosts come and
//! go beside it with one write each, and the export stays as it is. A volume that was made without it gets it
//! with the first step that touches its list, and is not exported before.

use std::collections::BTreeSet;

use cleat_ids::{HostNqn, VolumeId};
use serde_json::{Map, Value};

use super::volume::RdsVolume;
use crate::secret::Secret;

/// The beginning of the host NQN that no host has, before the volume id. It keeps the volume's list from
/// being empty. No host may use such a name.
///
/// Each volume has one of its own: a target may keep one secret per host NQN (Linux' does), and volumes have
/// different secrets. A random part follows the id, which only the volume's own list has: whoever could guess
/// the name would be admitted.
pub const NOBODY: &str = "nqn.2026-01.io.cleat:nobody.";
const RANDOM_DIGITS: usize = 32;

/// A new host NQN that no host has, for a volume's list.
pub(super) fn nobody(volume: &VolumeId) -> String {
    format!("{NOBODY}{volume}.{}", uuid::Uuid::new_v4().simple())
}

/// Whether this is such a host NQN of the volume, with its random part.
fn is_nobody(volume: &VolumeId, host: &str) -> bool {
    let random =
        host.strip_prefix(NOBODY).and_then(|rest| rest.strip_prefix(volume.as_str())?.strip_prefix('.'));
    random.is_some_and(|random| {
        random.len() == RANDOM_DIGITS && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Who is to be able to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// This host may connect.
    Allow(HostNqn),
    /// This host may not connect.
    Deny(HostNqn),
    /// This host may not connect, and the export goes off with it: it was the last one.
    Close(HostNqn),
    /// The hosts on the list may connect.
    Show,
    /// Nobody may connect.
    Hide,
}

/// A single write of a disk's properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AccessStep {
    /// Set the list of hosts to exactly this.
    Hosts(BTreeSet<String>),
    /// Switch the export on or off.
    Export(bool),
    /// Both in one write.
    HostsAndExport(BTreeSet<String>, bool),
    /// Set the secret with which hosts have to authenticate.
    Secret(Secret),
}

/// The next step; `None` if the wish is met. `fresh` is a new host NQN of nobody, for a list without one.
pub(super) fn next_step(volume: &RdsVolume, wish: &Wish, fresh: &str) -> Option<AccessStep> {
    let mut hosts = volume.hosts.clone();
    let kept = hosts.iter().find(|host| is_nobody(&volume.id, host)).cloned();
    hosts.retain(|host| !host.starts_with(NOBODY));
    match wish {
        Wish::Hide => return volume.exported.then_some(AccessStep::Export(false)),
        // With an empty list, or one whose nobody can be guessed, showing it would show it to everybody.
        Wish::Show if kept.is_none() => {}
        Wish::Show => return (!volume.exported).then_some(AccessStep::Export(true)),
        Wish::Allow(host) => {
            hosts.insert(host.as_str().to_owned());
        }
        Wish::Deny(host) | Wish::Close(host) => {
            hosts.remove(host.as_str());
        }
    }
    let sound = kept.is_some();
    hosts.insert(kept.unwrap_or_else(|| fresh.to_owned()));
    if hosts != volume.hosts {
        // The RDS may apply the two in either order: with the list as it was, or with the export off, nobody
        // is admitted who was not before. An empty list, or one whose nobody can be guessed, would admit
        // others for that moment.
        return Some(match wish {
            Wish::Close(_) if volume.exported => AccessStep::HostsAndExport(hosts, false),
            Wish::Allow(_) if !volume.exported && sound => AccessStep::HostsAndExport(hosts, true),
            _ => AccessStep::Hosts(hosts),
        });
    }
    if matches!(wish, Wish::Close(_)) {
        return volume.exported.then_some(AccessStep::Export(false));
    }
    (matches!(wish, Wish::Allow(_)) && !volume.exported).then_some(AccessStep::Export(true))
}

/// The properties of a new volume that say who may connect: nobody.
pub(super) fn nobody_yet(volume: &VolumeId) -> [(&'static str, String); 2] {
    [(EXPORT, "yes".to_owned()), (HOSTS, nobody(volume))]
}

pub(super) const EXPORT: &str = "nvme-tcp-export";
pub(super) const PASSWORD: &str = "nvme-tcp-server-password";
const HOSTS: &str = "nvme-tcp-server-allow-host-name";

impl AccessStep {
    /// The properties of the disk item that the step sets.
    pub(super) fn properties(&self) -> Map<String, Value> {
        let list = |hosts: &BTreeSet<String>| hosts.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let switch = |on: &bool| if *on { "yes" } else { "no" }.to_owned();
        let set = match self {
            Self::Hosts(hosts) => vec![(HOSTS, list(hosts))],
            Self::Export(on) => vec![(EXPORT, switch(on))],
            Self::HostsAndExport(hosts, on) => vec![(HOSTS, list(hosts)), (EXPORT, switch(on))],
            Self::Secret(secret) => vec![(PASSWORD, secret.reveal().to_owned())],
        };
        set.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))).collect()
    }

    /// Whether it switches the export, and to what.
    pub(super) fn switches(&self) -> Option<bool> {
        match self {
            Self::Export(on) | Self::HostsAndExport(_, on) => Some(*on),
            Self::Hosts(_) | Self::Secret(_) => None,
        }
    }

    /// Whether the volume, read back, shows what this step set.
    pub(super) fn taken(&self, volume: &RdsVolume) -> bool {
        match self {
            Self::Hosts(hosts) => *hosts == volume.hosts,
            Self::Export(on) => *on == volume.exported,
            Self::HostsAndExport(hosts, on) => *hosts == volume.hosts && *on == volume.exported,
            // A list does not show the secret: that is read by itself.
            Self::Secret(_) => false,
        }
    }

    /// Whether the step, if it takes effect late, could admit this host (`None`: anybody).
    pub(super) fn could_admit(&self, host: Option<&HostNqn>) -> bool {
        match (self, host) {
            (Self::Hosts(hosts) | Self::HostsAndExport(hosts, _), Some(host)) => {
                hosts.contains(host.as_str())
            }
            // A host that is off the list stays out, exported or not: no list is ever empty.
            (Self::Export(_), Some(_)) => false,
            (Self::Export(on) | Self::HostsAndExport(_, on), None) => *on,
            // Without an export nobody is admitted, whatever the list says.
            (Self::Hosts(_), None) => false,
            // It admits hosts that know it, but none that is off the list, and none to a volume that is not
            // exported.
            (Self::Secret(_), _) => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::owner::VolumeParameters;
    use super::super::volume::ByteSize;
    use super::*;

    const V_NOBODY: &str = "nqn.2026-01.io.cleat:nobody.v.0123456789abcdef0123456789abcdef";
    const FRESH: &str = "nqn.2026-01.io.cleat:nobody.v.ffffffffffffffffffffffffffffffff";
    /// As earlier versions had it.
    const GUESSED: &str = "nqn.2026-01.io.cleat:nobody.v";
    const NAMES: [&str; 6] =
        ["nqn.2026-01.test:a", "nqn.2026-01.test:b", "nqn.2026-01.test:c", V_NOBODY, GUESSED, FRESH];

    fn next_step(volume: &RdsVolume, wish: &Wish) -> Option<AccessStep> {
        super::next_step(volume, wish, FRESH)
    }

    fn host(name: &str) -> HostNqn {
        HostNqn::new(name).unwrap()
    }

    fn volume(hosts: &[&str], exported: bool) -> RdsVolume {
        RdsVolume {
            id: VolumeId::new("v").unwrap(),
            item: "*1".into(),
            size: ByteSize(4096),
            nqn: "nqn.2000-02.com.mikrotik:v".into(),
            port: Some(4420),
            exported,
            mountable: false,
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            parameters: VolumeParameters::default(),
        }
    }

    fn apply(volume: &mut RdsVolume, step: AccessStep) {
        match step {
            AccessStep::Hosts(hosts) => volume.hosts = hosts,
            AccessStep::Export(on) => volume.exported = on,
            AccessStep::HostsAndExport(hosts, on) => (volume.hosts, volume.exported) = (hosts, on),
            AccessStep::Secret(_) => panic!("no wish is about secrets"),
        }
    }

    fn admitted(volume: &RdsVolume) -> BTreeSet<&'static str> {
        let all_if_empty = volume.hosts.is_empty();
        NAMES.into_iter().filter(|h| volume.exported && (all_if_empty || volume.hosts.contains(*h))).collect()
    }

    /// Every state of three hosts, the placeholder and the export, every wish, every step in between: nobody gets in
    /// by accident, and nothing that is still on its way to the RDS could let anybody in later.
    #[test]
    fn no_step_ever_admits_a_host_other_than_the_one_allowed() {
        for bits in 0..64u8 {
            let names: Vec<&str> = (0..5).filter(|i| bits >> i & 1 == 1).map(|i| NAMES[i]).collect();
            let start = volume(&names, bits >> 5 & 1 == 1);
            let a = || host(NAMES[0]);
            for wish in [Wish::Allow(a()), Wish::Deny(a()), Wish::Close(a()), Wish::Hide, Wish::Show] {
                let mut now = start.clone();
                let mut steps = 0;
                while let Some(step) = next_step(&now, &wish) {
                    if let AccessStep::Hosts(hosts) | AccessStep::HostsAndExport(hosts, _) = &step {
                        assert!(
                            hosts.contains(V_NOBODY) != hosts.contains(FRESH),
                            "{start:?} {wish:?} {step:?}"
                        );
                        assert!(!hosts.contains(GUESSED), "{start:?} {wish:?} {step:?}");
                    }
                    apply(&mut now, step.clone());
                    assert!(step.taken(&now));
                    steps += 1;
                    assert!(steps <= 2, "{start:?} {wish:?}");
                    let mut may = admitted(&start);
                    match wish {
                        // On an export that was off, the list itself is the admission that somebody granted.
                        Wish::Allow(_) => may.extend(names.iter().copied().chain([NAMES[0]])),
                        Wish::Show => may.extend(names.iter()),
                        Wish::Deny(_) | Wish::Close(_) | Wish::Hide => {}
                    }
                    // Being no host, it may be admitted.
                    may.extend([V_NOBODY, FRESH]);
                    assert!(admitted(&now).is_subset(&may), "{start:?} {wish:?} {step:?} {now:?}");
                }
                match wish {
                    Wish::Allow(_) => assert!(admitted(&now).contains(NAMES[0])),
                    Wish::Deny(_) => assert!(!admitted(&now).contains(NAMES[0])),
                    Wish::Close(_) => assert!(admitted(&now).is_empty() && !now.hosts.contains(NAMES[0])),
                    Wish::Hide => assert!(admitted(&now).is_empty()),
                    Wish::Show if start.exported && names.contains(&V_NOBODY) => {}
                    Wish::Show => assert!(now.exported && !now.hosts.is_empty()),
                }
            }
        }
    }

    #[test]
    fn a_host_comes_and_goes_with_one_write_each() {
        let mut now = volume(&[V_NOBODY], true);
        let allow = Wish::Allow(host(NAMES[0]));
        assert_eq!(
            next_step(&now, &allow),
            Some(AccessStep::Hosts([NAMES[0].to_owned(), V_NOBODY.to_owned()].into()))
        );
        now.hosts.insert(NAMES[0].to_owned());
        assert_eq!(next_step(&now, &allow), None);
        let deny = Wish::Deny(host(NAMES[0]));
        assert_eq!(next_step(&now, &deny), Some(AccessStep::Hosts([V_NOBODY.to_owned()].into())));
        now.hosts.remove(NAMES[0]);
        assert_eq!(next_step(&now, &deny), None);
    }

    #[test]
    fn the_last_host_and_the_export_go_and_come_with_one_write_each() {
        let mut now = volume(&[NAMES[0], V_NOBODY], true);
        let close = Wish::Close(host(NAMES[0]));
        assert_eq!(
            next_step(&now, &close),
            Some(AccessStep::HostsAndExport([V_NOBODY.to_owned()].into(), false))
        );
        let step = next_step(&now, &close).unwrap();
        apply(&mut now, step);
        assert_eq!(next_step(&now, &close), None);
        let allow = Wish::Allow(host(NAMES[1]));
        let both = [NAMES[1].to_owned(), V_NOBODY.to_owned()];
        assert_eq!(next_step(&now, &allow), Some(AccessStep::HostsAndExport(both.into(), true)));
    }

    #[test]
    fn a_volume_without_the_placeholder_gets_it_before_anybody_sees_it() {
        let mut now = volume(&[], false);
        assert_eq!(next_step(&now, &Wish::Show), Some(AccessStep::Hosts([FRESH.to_owned()].into())));
        now.hosts.insert(FRESH.to_owned());
        assert_eq!(next_step(&now, &Wish::Show), Some(AccessStep::Export(true)));
        // One that is open to everybody is closed by the first step about anybody.
        let open = volume(&[], true);
        for wish in [Wish::Deny(host(NAMES[0])), Wish::Show] {
            assert_eq!(
                next_step(&open, &wish),
                Some(AccessStep::Hosts([FRESH.to_owned()].into())),
                "{wish:?}"
            );
        }
    }

    #[test]
    fn nobody_of_a_volume_cannot_be_guessed() {
        let id = VolumeId::new("v").unwrap();
        let (one, two) = (nobody(&id), nobody(&id));
        assert_ne!(one, two);
        assert!(is_nobody(&id, &one) && !is_nobody(&id, GUESSED));
        assert!(!is_nobody(&VolumeId::new("v-2").unwrap(), &one));
    }

    #[test]
    fn a_late_export_lets_nobody_in_who_was_taken_off_the_list() {
        let a = host(NAMES[0]);
        assert!(
            !AccessStep::Export(true).could_admit(Some(&a)) && AccessStep::Export(true).could_admit(None)
        );
        assert!(AccessStep::Hosts([NAMES[0].to_owned()].into()).could_admit(Some(&a)));
        assert!(!AccessStep::Hosts([V_NOBODY.to_owned()].into()).could_admit(Some(&a)));
    }
}
