//! The answers in plain words, and the settings to use.
//!
//! Comes in: findings. Goes out: lines of text. Always holds: a "no" and a "could not be found out" read
//! differently.

use cleat_rds::{Abilities, ProbedAcl, ProbedDrain, ProbedReservations};

use crate::findings::{Cut, Finding, Findings, Remarked};

/// The account, one line per question.
#[must_use]
pub fn account(findings: &Findings, assume_drains: bool) -> Vec<String> {
    let mut lines =
        vec![
            line("Host list", &findings.host_acl, |acl| match acl {
                ProbedAcl::List => {
                    "is enforced: takes several host NQNs, matches each as a whole, keeps others out"
                }
                ProbedAcl::Single => "takes one host NQN and no list, so it cannot serve a live migration",
                ProbedAcl::Ignored => "keeps nobody out",
            }),
            line("Taking a host off the list", &remarked(&findings.removal_cuts), |cuts| {
                if *cuts { "ends its live session" } else { "does not end its live session" }
            }),
            cut_line(&findings.cut),
            line("Namespace UUID over that", &findings.uuid_kept, |kept| {
                if *kept { "stays" } else { "does not stay" }
            }),
            line("Export off, with writes in flight", &findings.drains, |drains| {
                if *drains { "waits until they have landed" } else { "does not wait for them" }
            }),
        ];
    if findings.probed_drain(assume_drains) == ProbedDrain::Assumed {
        lines.push(
            "    (--assume-drains: taken to wait, as Linux' NVMe target has done since 4.8; an assumption, and named as one \
             in every evidence that rests on it)"
                .to_owned(),
        );
    }
    lines.extend([
        line("Reservations", &findings.reservations, |worth| match worth {
            ProbedReservations::None => "cannot be used",
            ProbedReservations::Held => "can be used, but not alone",
            ProbedReservations::AbortWaits => "can be used alone",
        }),
        line("Growing a disk that is in use", &findings.grow_online, |grows| {
            if *grows { "works, and the host sees the new size" } else { "does not work" }
        }),
        line(
            "Password on a disk",
            &findings.password,
            |taken| if *taken { "can be set" } else { "cannot be set" },
        ),
        line("In-band authentication with it", &findings.in_band_auth, |asked| {
            if *asked { "is enforced" } else { "is not enforced" }
        }),
    ]);
    lines
}

fn remarked<T: Clone>(answer: &Finding<T>) -> Finding<Remarked<T>> {
    match answer {
        Finding::Found(found) => Finding::Found(Remarked::new(found.clone(), "")),
        Finding::Unknown(why) => Finding::Unknown(why.clone()),
    }
}

fn line<T>(subject: &str, answer: &Finding<Remarked<T>>, words: impl Fn(&T) -> &'static str) -> String {
    match answer {
        Finding::Found(Remarked { is, remark }) if remark.is_empty() => format!("{subject}: {}.", words(is)),
        Finding::Found(Remarked { is, remark }) => format!("{subject}: {} ({remark}).", words(is)),
        Finding::Unknown(why) => format!("{subject}: could not be found out, because {why}."),
    }
}

fn cut_line(cut: &Finding<Cut>) -> String {
    const SUBJECT: &str = "Taking the export off";
    match cut {
        Finding::Found(Cut::After(time)) => {
            format!("{SUBJECT}: ends live sessions, the last one after {} ms.", time.as_millis())
        }
        Finding::Found(Cut::Stays) => format!("{SUBJECT}: does not end live sessions; writes went on."),
        Finding::Unknown(why) => format!("{SUBJECT}: could not be found out, because {why}."),
    }
}

/// What that means for `cleat-controller`, given the file that was written.
#[must_use]
pub fn settings(abilities: &Abilities, file: &str) -> Vec<String> {
    let mut lines = vec![format!("    --rds-abilities {file}")];
    let mut advise = |text: &str| lines.push(format!("    {text}"));
    match abilities.host_acl {
        ProbedAcl::List => advise("--host-acl list (which is the default with this file)"),
        ProbedAcl::Single | ProbedAcl::Ignored => {
            advise("--host-acl none; keep other hosts off the storage networks by other means");
        }
    }
    if abilities.password && abilities.in_band_auth {
        advise("--secret-key-file FILE, with TLS towards the agents: then secrets fence, too");
    }
    let acl = abilities.host_acl == ProbedAcl::List;
    let secret = abilities.password && abilities.in_band_auth;
    let mut rungs = Vec::new();
    match abilities.reservations {
        ProbedReservations::None => {}
        ProbedReservations::Held => rungs.push("reservations (with a cut and a drain)"),
        ProbedReservations::AbortWaits => rungs.push("reservations (alone)"),
    }
    if abilities.export_cuts && acl {
        rungs.push("host list, cut and drain");
    }
    if abilities.export_cuts && secret {
        rungs.push("secret, cut and drain");
    }
    if abilities.export_cuts {
        rungs.push("export off");
    }
    let rungs = if rungs.is_empty() {
        "none: a silent node is waited for until a person declares it gone".to_owned()
    } else {
        rungs.join("; ")
    };
    advise(&format!("Fences that are possible: {rungs}"));
    if abilities.export_cuts && !abilities.drains() {
        advise("Whether a cut drains is not known, so --drain-bound is waited out after each");
    }
    if !abilities.uuid_kept {
        advise(
            "The namespace's identity does not survive a cut, or is not known to: a volume may have to be \
             attached again after one",
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_no_and_an_unknown_read_differently() {
        let unknown = account(&Findings::default(), false).join("\n");
        assert_eq!(
            unknown.matches("could not be found out, because it was not asked").count(),
            9,
            "{unknown}"
        );
        let cut = Finding::Found(Cut::After(Duration::from_millis(41)));
        let removal_cuts = Finding::Found(false);
        let findings = Findings { cut, removal_cuts, ..Findings::default() };
        let text = account(&findings, true).join("\n");
        assert!(text.contains("after 41 ms") && text.contains("does not end its live session"), "{text}");
        assert!(text.contains("--assume-drains"), "{text}");
        assert!(!account(&findings, false).join("\n").contains("--assume-drains"));
    }

    #[test]
    fn what_cannot_fence_is_not_advised() {
        let nothing = Abilities::nothing("https://rds".into(), "2026-11-21T00:00:00Z".into());
        let text = settings(&nothing, "/etc/cleat/rds.json").join("\n");
        assert!(
            text.contains("--rds-abilities /etc/cleat/rds.json") && text.contains("none: a silent"),
            "{text}"
        );
        let able = Abilities { host_acl: ProbedAcl::List, export_cuts: true, ..nothing };
        let text = settings(&able, "f").join("\n");
        assert!(text.contains("host list, cut and drain") && text.contains("--drain-bound"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
