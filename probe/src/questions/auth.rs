//! Password and in-band authentication: is a host without the secret, or with a wrong one, refused, and a
//! host with the right one admitted?

use cleat_host::fabrics::DhchapSecret;
use cleat_rds::RdsError;
use cleat_rds::secret::Secret;

use super::Bench;
use crate::findings::{Finding, Remarked};
use crate::node::Trial;
use crate::trouble::QuestionError;

/// Whether a disk accepts a password, and whether hosts have to authenticate with it.
pub(crate) type Answers = (Finding<Remarked<bool>>, Finding<Remarked<bool>>);

/// What the tries showed. Each host was admitted or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    without: bool,
    wrong: bool,
    right: bool,
}

pub(crate) async fn ask(bench: &Bench) -> Result<Answers, QuestionError> {
    let host = bench.node.fresh_host();
    bench.scratch.admit(&[&host]).await?;
    if bench.node.trial(&host, None).await? != Trial::Admitted {
        return Err(QuestionError::unclear("the host was refused before there was a password"));
    }
    let right = bench.scratch.secret(1);
    match bench.scratch.set_secret(&right).await {
        Ok(()) => {}
        Err(refused @ (RdsError::Refused { .. } | RdsError::Malformed { .. })) => {
            let password = Finding::Found(Remarked::new(false, refused.to_string()));
            return Ok((password, Finding::Unknown("no password could be set and read back".to_owned())));
        }
        Err(error) => return Err(error.into()),
    }
    let taken = Finding::Found(Remarked::new(true, "it is taken in the DHHC-1 form and read back"));
    let in_band = match in_band(bench, &host, &right).await {
        Ok(shown) => Finding::Found(verdict(shown)),
        Err(trouble) => Finding::Unknown(cleat_runtime::exit::Causes(&trouble).to_string()),
    };
    bench.scratch.clear_password().await?;
    Ok((taken, in_band))
}

async fn in_band(bench: &Bench, host: &crate::node::NewHost, right: &Secret) -> Result<Shown, QuestionError> {
    let without = bench.node.trial(host, None).await? == Trial::Admitted;
    if without {
        // However the RDS uses the password, it keeps nobody out.
        return Ok(Shown { without, wrong: false, right: false });
    }
    if !bench.node.authenticates() {
        return Err(QuestionError::unclear(
            "a host without the secret is refused, but this node's kernel has no DH-HMAC-CHAP",
        ));
    }
    let secret = |secret: &Secret| {
        DhchapSecret::parse(secret.reveal()).map_err(|error| QuestionError::unclear(error.to_string()))
    };
    let wrong = bench.node.trial(host, Some(&secret(&bench.scratch.secret(2))?)).await? == Trial::Admitted;
    let right = bench.node.trial(host, Some(&secret(right)?)).await? == Trial::Admitted;
    Ok(Shown { without, wrong, right })
}

/// The answer that follows. Pure.
fn verdict(shown: Shown) -> Remarked<bool> {
    match shown {
        Shown { without: true, .. } => Remarked::new(false, "a host without the secret gets in"),
        Shown { wrong: true, .. } => Remarked::new(false, "a host with a wrong secret gets in"),
        Shown { right: false, .. } => Remarked::new(
            false,
            "the host with the secret is refused, too: the RDS makes something else of it",
        ),
        Shown { right: true, .. } => {
            Remarked::new(true, "no secret and a wrong one are refused, the right one is not")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_three_together_are_authentication() {
        for bits in 0..8_u8 {
            let shown = Shown { without: bits & 1 == 1, wrong: bits & 2 == 2, right: bits & 4 == 4 };
            assert_eq!(verdict(shown).is, bits == 4, "{shown:?}");
        }
    }
}
