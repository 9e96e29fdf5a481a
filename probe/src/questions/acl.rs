//! The list of hosts: does it keep others out, does it accept several, what does it match.

use cleat_rds::ProbedAcl;

use super::Bench;
use crate::findings::Remarked;
use crate::node::{NewHost, Trial};
use crate::trouble::QuestionError;

/// What the tries showed. Each host was admitted or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    /// With one host's NQN as the value: that host, and a stranger.
    one: (bool, bool),
    /// With a longer NQN that begins with the host's: that host.
    longer: bool,
    /// With several NQNs and commas: the first, the second, a stranger.
    two: (bool, bool, bool),
    /// With an empty value: a stranger.
    none: bool,
}

pub(crate) async fn ask(bench: &Bench) -> Result<Remarked<ProbedAcl>, QuestionError> {
    let [a, b, stranger] = [(); 3].map(|()| bench.node.fresh_host());
    let enters = async |value: &str, host: &NewHost| -> Result<bool, QuestionError> {
        bench.scratch.set_list(value).await?;
        Ok(bench.node.trial(host, None).await? == Trial::Admitted)
    };
    let own = a.nqn.as_str();
    let one = (enters(own, &a).await?, enters(own, &stranger).await?);
    if !one.0 && enters(&a.id.to_string(), &a).await? {
        return Err(QuestionError::unclear(
            "it matches the host identifier, not the host NQN, and Cleat writes host NQNs",
        ));
    }
    let longer = format!("{own}0");
    // As the controller writes it while a VM migrates: both hosts, and the name that no host has.
    let both = format!("{own},{},{}", b.nqn, bench.scratch.nobody());
    let shown = Shown {
        one,
        longer: enters(&longer, &a).await?,
        two: (enters(&both, &a).await?, enters(&both, &b).await?, enters(&both, &stranger).await?),
        none: enters("", &stranger).await?,
    };
    verdict(shown).map_err(QuestionError::unclear)
}

/// The answer that follows. Pure.
fn verdict(shown: Shown) -> Result<Remarked<ProbedAcl>, &'static str> {
    let empty = if shown.none { "an empty list lets anybody in" } else { "an empty list lets nobody in" };
    match shown {
        Shown { one: (false, _), .. } => Err("a host was kept out although its NQN alone was on the list"),
        Shown { one: (true, true), .. } => Ok(Remarked::new(ProbedAcl::Ignored, "")),
        Shown { longer: true, .. } => {
            let remark =
                "a host gets in whose NQN is only a part of what is on the list: that keeps nobody out";
            Ok(Remarked::new(ProbedAcl::Ignored, remark))
        }
        Shown { two: (true, true, true), .. } => {
            Ok(Remarked::new(ProbedAcl::Ignored, "with two hosts on it, it lets anybody in"))
        }
        Shown { two: (true, true, false), .. } => Ok(Remarked::new(ProbedAcl::List, empty)),
        Shown { two: (_, _, true), .. } => {
            Err("with two hosts on the list, a third got in that was not on it")
        }
        Shown { two: (false, false, false), .. } => Ok(Remarked::new(ProbedAcl::Single, empty)),
        Shown { two: (first, _, false), .. } => {
            let which = if first { "first" } else { "second" };
            Ok(Remarked::new(
                ProbedAcl::Single,
                format!("of several with commas it takes the {which}; {empty}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: Shown = Shown { one: (true, false), longer: false, two: (true, true, false), none: false };

    fn acl(shown: Shown) -> Option<ProbedAcl> {
        verdict(shown).ok().map(|found| found.is)
    }

    #[test]
    fn every_outcome_has_its_meaning_and_admitting_a_stranger_is_no_list() {
        assert_eq!(acl(LIST), Some(ProbedAcl::List));
        assert_eq!(acl(Shown { two: (false, false, false), ..LIST }), Some(ProbedAcl::Single));
        assert_eq!(acl(Shown { two: (true, false, false), ..LIST }), Some(ProbedAcl::Single));
        assert_eq!(acl(Shown { one: (true, true), ..LIST }), Some(ProbedAcl::Ignored));
        assert_eq!(acl(Shown { longer: true, ..LIST }), Some(ProbedAcl::Ignored));
        assert_eq!(acl(Shown { one: (false, false), ..LIST }), None);
        for bits in 0..128_u8 {
            let bit = |number: u8| bits >> number & 1 == 1;
            let shown =
                Shown { one: (bit(0), bit(1)), longer: bit(2), two: (bit(3), bit(4), bit(5)), none: bit(6) };
            let strangers = shown.one.1 || shown.two.2 || shown.longer;
            if strangers {
                assert!(matches!(acl(shown), None | Some(ProbedAcl::Ignored)), "{shown:?}");
            }
        }
    }
}
