//! What fencing rests on: the options, and what is made of them.
//!
//! In come the account of a probe, a key file, a duration; out go the target's abilities as the core knows them, and
//! the key of all secrets. What always holds: nothing is relied on that was not probed, or that an operator has not
//! said; and there are secrets only where they go over TLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cleat_core::{ReservationAbility, TargetAbilities};
use cleat_rds::secret::{KeyError, Keys, MasterKey};
use cleat_rds::{Abilities, AbilitiesError, HostAcl, ProbedAcl, ProbedReservations};
use cleat_runtime::options::duration;
use cleat_runtime::tls::ServerTransport;
use reqwest::Url;

/// Options for fencing.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Fencing")]
pub(super) struct FenceOptions {
    /// What the RDS was probed to do: the file that `cleatctl rds probe` writes. Without it, nothing is relied on but
    /// what --host-acl says
    #[arg(long, value_name = "FILE", env = "CLEAT_RDS_ABILITIES")]
    rds_abilities: Option<PathBuf>,

    /// Key from which the secrets of in-band authentication (DH-HMAC-CHAP) are made, one for each volume: a file of at
    /// least 32 random bytes that only we may read. Used where --rds-abilities say that the RDS asks hosts for them.
    /// Needs TLS towards the agents
    #[arg(long, value_name = "FILE", env = "CLEAT_SECRET_KEY_FILE")]
    secret_key_file: Option<PathBuf>,

    /// The key that --secret-key-file had before: volumes that are attached keep the secret that was made with it, until
    /// nobody has them
    #[arg(long, value_name = "FILE", env = "CLEAT_OLD_SECRET_KEY_FILE", requires = "secret_key_file")]
    old_secret_key_file: Option<PathBuf>,

    /// How long a node from which a volume is being detached may be silent, or not get it done, before it is fenced at
    /// the RDS
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = duration)]
    fence_after: Duration,

    /// The same for a node whose agent is heard and is at it. Kernels take up to about 100 s to let go of a path that
    /// drops packets
    #[arg(long, value_name = "DURATION", default_value = "3min", value_parser = duration)]
    fence_heard_after: Duration,
}

/// What is made of them.
pub(super) struct Fencing {
    pub(super) host_acl: HostAcl,
    pub(super) target: TargetAbilities,
    pub(super) fence_after_ms: u64,
    pub(super) fence_heard_after_ms: u64,
    pub(super) secrets: Option<Arc<Keys>>,
}

/// Why the options for fencing make no configuration.
#[derive(Debug, thiserror::Error)]
pub enum FencingError {
    /// What the RDS was probed to do is not known.
    #[error("cannot use --rds-abilities")]
    Abilities(#[from] AbilitiesError),
    /// No key for secrets.
    #[error("cannot use --secret-key-file")]
    SecretKey(#[source] KeyError),
    /// No key for secrets from before.
    #[error("cannot use --old-secret-key-file")]
    OldSecretKey(#[source] KeyError),
    /// Nothing was changed.
    #[error(
        "cannot use --old-secret-key-file: it holds the same key as --secret-key-file; put the key from before into it, or leave it out"
    )]
    SameKey,
    /// Secrets would go over the network in clear.
    #[error(
        "cannot use --secret-key-file with --plaintext: secrets go to agents over TLS only; give --tls-cert, --tls-key, \
         --agent-client-ca and --operator-client-ca, or leave the key out"
    )]
    SecretsInClear,
    /// Lists are asked for, and the probe has found that they are none.
    #[error(
        "cannot use --host-acl list: --rds-abilities say that the RDS {does}; leave it out, or probe again"
    )]
    NoLists {
        /// What it does instead.
        does: &'static str,
    },
    /// Too short to mean anything.
    #[error("cannot use --fence-after {}: it is too short; give at least 100ms", humantime::format_duration(*.0))]
    FenceAfter(Duration),
    /// A node that is heard would be fenced before one that is silent.
    #[error(
        "cannot use --fence-heard-after {}: it is shorter than --fence-after {}; give a longer one",
        humantime::format_duration(*heard), humantime::format_duration(*silent)
    )]
    FenceHeardAfter {
        /// `--fence-heard-after`.
        heard: Duration,
        /// `--fence-after`.
        silent: Duration,
    },
}

impl FenceOptions {
    pub(super) fn settings(
        self,
        rds: &Url,
        host_acl: Option<HostAcl>,
        transport: &ServerTransport,
    ) -> Result<Fencing, FencingError> {
        let Self { rds_abilities, secret_key_file, old_secret_key_file, fence_after, fence_heard_after } =
            self;
        if fence_after < Duration::from_millis(100) {
            return Err(FencingError::FenceAfter(fence_after));
        }
        if fence_heard_after < fence_after {
            return Err(FencingError::FenceHeardAfter { heard: fence_heard_after, silent: fence_after });
        }
        let abilities = rds_abilities.map(|path| Abilities::read(&path, rds.as_str())).transpose()?;
        let host_acl = lists(host_acl, abilities.as_ref())?;
        let secrets = keys(secret_key_file, old_secret_key_file)?.map(Arc::new);
        if secrets.is_some() && matches!(transport, ServerTransport::Plaintext) {
            return Err(FencingError::SecretsInClear);
        }
        Ok(Fencing {
            host_acl,
            target: target(host_acl, abilities.as_ref(), secrets.is_some()),
            fence_after_ms: u64::try_from(fence_after.as_millis()).unwrap_or(u64::MAX),
            fence_heard_after_ms: u64::try_from(fence_heard_after.as_millis()).unwrap_or(u64::MAX),
            secrets,
        })
    }
}

fn keys(current: Option<PathBuf>, old: Option<PathBuf>) -> Result<Option<Keys>, FencingError> {
    let Some(current) = current else { return Ok(None) };
    let current = MasterKey::load(&current).map_err(FencingError::SecretKey)?;
    let old = old.map(|old| MasterKey::load(&old)).transpose().map_err(FencingError::OldSecretKey)?;
    if old.as_ref().is_some_and(|old| old.id() == current.id()) {
        return Err(FencingError::SameKey);
    }
    Ok(Some(Keys::new(current, old)))
}

/// Whether host lists are kept: as asked for, else as probed, else not.
fn lists(asked: Option<HostAcl>, abilities: Option<&Abilities>) -> Result<HostAcl, FencingError> {
    match (asked, abilities.map(|abilities| abilities.host_acl)) {
        (Some(HostAcl::List), Some(ProbedAcl::Single)) => {
            Err(FencingError::NoLists { does: "takes one host NQN and not a list" })
        }
        (Some(HostAcl::List), Some(ProbedAcl::Ignored)) => {
            Err(FencingError::NoLists { does: "lets in hosts that are not on it" })
        }
        (Some(asked), _) => Ok(asked),
        (None, Some(ProbedAcl::List)) => Ok(HostAcl::List),
        (None, Some(ProbedAcl::Single | ProbedAcl::Ignored) | None) => Ok(HostAcl::None),
    }
}

/// What the core may rely on.
fn target(host_acl: HostAcl, abilities: Option<&Abilities>, secrets: bool) -> TargetAbilities {
    // With --host-acl list an operator has said that lists are enforced; everything else is known by probing alone.
    let acl = host_acl == HostAcl::List;
    let Some(probed) = abilities else { return TargetAbilities { acl, ..TargetAbilities::default() } };
    TargetAbilities {
        probed: true,
        acl,
        export_cuts: probed.export_cuts,
        export_drains: probed.drains(),
        secret: secrets && probed.password && probed.in_band_auth,
        reservations: match probed.reservations {
            ProbedReservations::None => ReservationAbility::None,
            ProbedReservations::Held => ReservationAbility::Held,
            ProbedReservations::AbortWaits => ReservationAbility::AbortWaits,
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {

    use super::*;

    fn probed(host_acl: ProbedAcl) -> Abilities {
        Abilities {
            host_acl,
            export_cuts: true,
            export_drains: cleat_rds::ProbedDrain::Seen,
            password: true,
            in_band_auth: true,
            reservations: ProbedReservations::Held,
            ..Abilities::nothing("https://rds".into(), "2026-11-20T10:00:00Z".into())
        }
    }

    #[test]
    fn nothing_is_relied_on_that_was_not_probed() {
        assert_eq!(target(HostAcl::None, None, true), TargetAbilities::default());
        assert_eq!(
            target(HostAcl::List, None, true),
            TargetAbilities { acl: true, ..TargetAbilities::default() }
        );
        let nothing = Abilities::nothing("https://rds".into(), String::new());
        let none = TargetAbilities { probed: true, ..TargetAbilities::default() };
        assert_eq!(target(HostAcl::None, Some(&nothing), true), none);
        let all = probed(ProbedAcl::List);
        let expected = TargetAbilities {
            probed: true,
            acl: true,
            export_cuts: true,
            export_drains: true,
            secret: true,
            reservations: ReservationAbility::Held,
        };
        assert_eq!(target(HostAcl::List, Some(&all), true), expected);
        assert_eq!(target(HostAcl::List, Some(&all), false), TargetAbilities { secret: false, ..expected });
        let ignored = Abilities { in_band_auth: false, ..all };
        assert!(!target(HostAcl::List, Some(&ignored), true).secret, "a password that nobody asks for");
    }

    #[test]
    fn lists_are_kept_where_they_were_probed_and_never_where_they_are_none() {
        let [list, single, ignored] = [ProbedAcl::List, ProbedAcl::Single, ProbedAcl::Ignored].map(probed);
        assert_eq!(lists(None, None).unwrap(), HostAcl::None);
        assert_eq!(lists(None, Some(&list)).unwrap(), HostAcl::List);
        assert_eq!(lists(Some(HostAcl::None), Some(&list)).unwrap(), HostAcl::None);
        assert_eq!(lists(Some(HostAcl::List), None).unwrap(), HostAcl::List);
        for other in [single, ignored] {
            assert_eq!(lists(None, Some(&other)).unwrap(), HostAcl::None);
            assert!(matches!(lists(Some(HostAcl::List), Some(&other)), Err(FencingError::NoLists { .. })));
        }
    }
}
