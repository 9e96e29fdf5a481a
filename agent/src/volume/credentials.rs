//! The secret of a volume's connections: where it is kept, and how controllers get another one.
//!
//! Comes in: the secret of an Attach, or of a Rekey with its generation. Goes out: connects that use it, and
//! proof that every controller has it.
//!
//! Always holds: a secret is only in this process's memory and the kernel's, never in the ledger or a log. An
//! older generation never replaces a newer one. An Attach of the same epoch does not replace a secret that
//! came by Rekey, since the Attach may be older.

use std::time::Duration;

use cleat_host::fabrics::{DhchapSecret, ExactController, RekeyError};
use cleat_host::sysfs::{Controller, SubsystemView};
use cleat_runtime::exit::Causes;
use futures_util::future::join_all;

use crate::ledger::rules::may_end;
use crate::name::Epoch;
use crate::volume::directive::GivenSecret;
use crate::volume::host::Host;
use crate::volume::outcome::Outcome;
use crate::volume::supersede::Superseded;
use crate::volume::{Volume, clause};

/// Longest that giving one controller a secret may take: the kernel waits for an authentication that is under
/// way.
const GIVE: Duration = Duration::from_secs(10);
/// How often the volume is searched for controllers without the secret: connects under way can make more.
const ROUNDS: u32 = 5;

/// The secret that connects authenticate with.
#[derive(Debug, Default)]
pub(super) struct Secret {
    value: Option<DhchapSecret>,
    /// Whether its generation is known: then one of unknown generation does not replace it under this epoch.
    is_dated: bool,
}

impl Secret {
    /// The secret; `None` where this process has none.
    pub(super) fn get(&self) -> Option<DhchapSecret> {
        self.value.clone()
    }
}

impl<H: Host> Volume<H> {
    /// Keeps the secret of an Attach. `new_epoch` says whether its epoch is a new one. `newest` is the newest
    /// generation that came under that epoch, this one included.
    pub(super) fn take_secret(&self, given: Option<GivenSecret>, new_epoch: bool, newest: Option<Epoch>) {
        let generation = given.as_ref().and_then(|given| given.generation);
        let mut memory = self.memory();
        let outdated = match generation {
            Some(generation) => Some(generation) < newest,
            None => memory.secret.is_dated || newest.is_some(),
        };
        if new_epoch || !outdated {
            let value = given.map(|given| given.secret);
            memory.secret = Secret { value, is_dated: generation.is_some() };
        }
    }

    /// Reads the secret from a controller that has it, where this process has none because the agent was
    /// restarted.
    pub(super) async fn learn_secret(&self, view: &SubsystemView) {
        if self.memory().secret.value.is_some() {
            return;
        }
        for (controller, target) in self.own(view) {
            let read = self.shared.host.fabrics().secret(&target, GIVE).await;
            if let Ok(Some(secret)) = read
                && controller.state.is_live()
            {
                self.memory().secret.value.get_or_insert(secret);
                return;
            }
        }
    }

    /// Gives the secret to every controller of ours; returns failures only, each with whether that controller
    /// was live.
    pub(super) async fn give_secret(
        &self,
        view: &SubsystemView,
        secret: &DhchapSecret,
    ) -> Vec<(bool, RekeyError)> {
        let given = self.own(view).into_iter().map(|(controller, target)| async move {
            let given = self.shared.host.fabrics().rekey(&target, secret, GIVE).await;
            (controller.state.is_live(), given)
        });
        let given = join_all(given).await.into_iter();
        given
            .filter_map(|(live, given)| match given {
                Ok(()) | Err(RekeyError::Gone { .. }) => None,
                Err(error) => Some((live, error)),
            })
            .collect()
    }

    fn own<'a>(&self, view: &'a SubsystemView) -> Vec<(&'a Controller, ExactController)> {
        let own = view.controllers.iter().filter(|one| !one.state.is_going());
        own.filter_map(|one| Some((one, ExactController::of(one, &self.subsystem, self.host_nqn())?)))
            .collect()
    }

    /// Carries out a Rekey. The caller has the gate.
    pub(super) async fn rekey(&self, epoch: Epoch, secret: &DhchapSecret, generation: Epoch) -> Outcome {
        let failed = |clause, message: String| Outcome::failed(clause::failed(clause, message));
        let known = match self.record().await {
            Ok(known) => known,
            Err(error) => return failed(clause::LEDGER, Causes(&error).to_string()),
        };
        if let Err(stale) = may_end(known.as_ref(), epoch) {
            return Outcome::StaleEpoch(stale);
        }
        let in_force = known.filter(|entry| entry.epoch == epoch && !entry.ended);
        let Some(mut entry) = in_force.filter(|entry| entry.boot_id == self.boot_id()) else {
            return failed(clause::GRANT, format!("this node has no grant {epoch} of the volume in force"));
        };
        if let Some(has) = entry.secret_generation.filter(|has| *has > generation) {
            let message = format!("this node has the secret of generation {has}, newer than {generation}");
            return failed(clause::SUPERSEDED, message);
        }
        if entry.secret_generation != Some(generation) {
            entry.secret_generation = Some(generation);
            if let Err(error) = self.keep(&entry).await {
                return failed(clause::LEDGER, Causes(&error).to_string());
            }
        }
        {
            let mut memory = self.memory();
            // From here on every connect uses it.
            memory.secret = Secret { value: Some(secret.clone()), is_dated: true };
            // A path that was lost because of the old secret is tried again soon.
            memory.repair = crate::volume::attach::backoff::Backoff::default();
        }
        match self.unless_superseded(epoch, self.spread(secret)).await {
            Ok(Ok(())) => Outcome::Rekeyed,
            Ok(Err((clause, message))) => failed(clause, message),
            Err(Superseded) => failed(clause::SUPERSEDED, "superseded by a later directive".to_owned()),
        }
    }

    /// Gives the secret to every controller until an observation finds none without it. Each has then ended
    /// the authentication that the new secret starts (`fabrics::secret`): a controller that is cut off in the
    /// middle of one, as a fence does next, would not come back.
    async fn spread(&self, secret: &DhchapSecret) -> Result<(), (&'static str, String)> {
        for _ in 0..ROUNDS {
            // A connect that began earlier uses the old secret, and its controller has to get the new one
            // too.
            let connecting = self.connects.are_running();
            let view = self.observe().await.map_err(|error| (clause::LOOK, Causes(&error).to_string()))?;
            let (live, others): (Vec<_>, Vec<_>) =
                self.give_secret(&view, secret).await.into_iter().partition(|(live, _)| *live);
            for (_, error) in others {
                tracing::warn!(volume = %self.id, error = %Causes(&error), "a controller that is not live \
                    did not accept the secret");
            }
            if !live.is_empty() {
                let problems: Vec<String> = live.iter().map(|(_, error)| Causes(error).to_string()).collect();
                return Err((clause::AUTHENTICATION, problems.join("; ")));
            }
            if !connecting {
                return Ok(());
            }
            self.connects.quiet().await;
        }
        Err((clause::AUTHENTICATION, "connects with an older secret kept coming".to_owned()))
    }
}
