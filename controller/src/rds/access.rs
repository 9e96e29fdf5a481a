//! Who may connect to a volume: the next step from what is to what is wanted. Pure.
//!
//! In come the volume as just read and a wish; out goes the next write, or none if the wish is met. What always
//! holds, after each single step as well as at the end: no host is admitted that was not before, but the one
//! that is to be. In particular an exported volume with an empty list would admit everybody, so the export goes
//! off before the list is emptied, and on only when the list is not empty.

use std::collections::BTreeSet;

use cleat_core::HostNqn;
use serde_json::{Map, Value};

use super::volume::Volume;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// This host may connect.
    Allow(HostNqn),
    /// This host may not connect.
    Deny(HostNqn),
    /// The hosts on the list (or, without lists, all) may connect.
    Export,
    /// Nobody may connect.
    Hide,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Set the list of hosts to exactly this.
    Hosts(BTreeSet<String>),
    /// Switch the export.
    Export(bool),
}

/// The export cannot go on: with an empty list everybody would be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WouldAdmitEverybody;

/// The next step, or `None` if the wish is met.
pub(super) fn next_step(volume: &Volume, wish: &Wish) -> Result<Option<Step>, WouldAdmitEverybody> {
    let (hosts, exported) = (&volume.hosts, volume.exported);
    Ok(match wish {
        Wish::Allow(host) if !hosts.contains(host.as_str()) => {
            let mut hosts = hosts.clone();
            hosts.insert(host.as_str().to_owned());
            Some(Step::Hosts(hosts))
        }
        Wish::Export if !exported && hosts.is_empty() => return Err(WouldAdmitEverybody),
        Wish::Allow(_) | Wish::Export => (!exported).then_some(Step::Export(true)),
        Wish::Hide => exported.then_some(Step::Export(false)),
        Wish::Deny(host) => {
            let others: BTreeSet<_> = hosts.iter().filter(|h| *h != host.as_str()).cloned().collect();
            if others.is_empty() && exported {
                Some(Step::Export(false))
            } else {
                (others != *hosts).then_some(Step::Hosts(others))
            }
        }
    })
}

impl Step {
    /// The properties to set.
    pub(super) fn properties(&self) -> Map<String, Value> {
        let (name, value) = match self {
            Self::Hosts(hosts) => {
                let list: Vec<&str> = hosts.iter().map(String::as_str).collect();
                ("nvme-tcp-server-allow-host-name", list.join(","))
            }
            Self::Export(on) => ("nvme-tcp-export", if *on { "yes" } else { "no" }.to_owned()),
        };
        Map::from_iter([(name.to_owned(), Value::String(value))])
    }

    /// Whether the volume, read back, shows what this step has set.
    pub(super) fn taken(&self, volume: &Volume) -> bool {
        match self {
            Self::Hosts(hosts) => *hosts == volume.hosts,
            Self::Export(on) => *on == volume.exported,
        }
    }

    /// Whether the step, should it take effect late, could admit this host.
    pub(super) fn could_admit(&self, host: Option<&HostNqn>) -> bool {
        match (self, host) {
            (Self::Export(on), _) => *on,
            (Self::Hosts(hosts), Some(host)) => hosts.is_empty() || hosts.contains(host.as_str()),
            // Without an export nobody is admitted, whatever the list says.
            (Self::Hosts(_), None) => false,
        }
    }

    /// Whether the step, should it take effect late, could open the volume to everybody.
    pub(super) fn could_open(&self) -> bool {
        matches!(self, Self::Hosts(hosts) if hosts.is_empty())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_core::VolumeId;

    use super::super::volume::ByteSize;
    use super::*;

    const NAMES: [&str; 3] = ["nqn.2026-01.test:a", "nqn.2026-01.test:b", "nqn.2026-01.test:c"];

    fn host(name: &str) -> HostNqn {
        HostNqn::new(name).unwrap()
    }

    fn volume(hosts: &[&str], exported: bool) -> Volume {
        Volume {
            id: VolumeId::new("v").unwrap(),
            item: "*1".into(),
            size: ByteSize(4096),
            nqn: "nqn.2000-02.com.mikrotik:v".into(),
            port: Some(4420),
            exported,
            mountable: false,
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
        }
    }

    fn apply(volume: &mut Volume, step: Step) {
        match step {
            Step::Hosts(hosts) => volume.hosts = hosts,
            Step::Export(on) => volume.exported = on,
        }
    }

    fn admitted(volume: &Volume) -> BTreeSet<&'static str> {
        let all_if_empty = volume.hosts.is_empty();
        NAMES.into_iter().filter(|h| volume.exported && (all_if_empty || volume.hosts.contains(*h))).collect()
    }

    /// Every state of three hosts and the export, every wish, every step in between: nobody gets in by accident.
    #[test]
    fn no_step_ever_admits_a_host_other_than_the_one_allowed() {
        for bits in 0..16u8 {
            let names: Vec<&str> = (0..3).filter(|i| bits >> i & 1 == 1).map(|i| NAMES[i]).collect();
            let start = volume(&names, bits >> 3 & 1 == 1);
            for wish in [Wish::Allow(host(NAMES[0])), Wish::Deny(host(NAMES[0])), Wish::Hide] {
                let mut now = start.clone();
                let mut steps = 0;
                while let Some(step) = next_step(&now, &wish).unwrap() {
                    apply(&mut now, step.clone());
                    assert!(step.taken(&now));
                    steps += 1;
                    assert!(steps <= 2, "{start:?} {wish:?}");
                    let mut may = admitted(&start);
                    if matches!(wish, Wish::Allow(_)) {
                        may.insert(NAMES[0]);
                        // On an export that was off, the list itself is the admission that somebody granted.
                        may.extend(names.iter());
                    }
                    assert!(admitted(&now).is_subset(&may), "{start:?} {wish:?} {step:?} {now:?}");
                }
                match wish {
                    Wish::Allow(_) => assert!(admitted(&now).contains(NAMES[0])),
                    Wish::Deny(_) => assert!(!admitted(&now).contains(NAMES[0])),
                    _ => assert!(admitted(&now).is_empty()),
                }
            }
        }
    }

    #[test]
    fn the_last_host_goes_export_first_and_comes_list_first() {
        let mut now = volume(&NAMES[..1], true);
        let deny = Wish::Deny(host(NAMES[0]));
        assert_eq!(next_step(&now, &deny), Ok(Some(Step::Export(false))));
        now.exported = false;
        assert_eq!(next_step(&now, &deny), Ok(Some(Step::Hosts(BTreeSet::new()))));
        now.hosts.clear();
        assert_eq!(next_step(&now, &deny), Ok(None));
        assert_eq!(next_step(&now, &Wish::Export), Err(WouldAdmitEverybody));
        let allow = Wish::Allow(host(NAMES[1]));
        assert_eq!(next_step(&now, &allow), Ok(Some(Step::Hosts([NAMES[1].to_owned()].into()))));
        now.hosts.insert(NAMES[1].to_owned());
        assert_eq!(next_step(&now, &allow), Ok(Some(Step::Export(true))));
    }
}
