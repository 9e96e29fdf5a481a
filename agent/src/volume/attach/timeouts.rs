//! Controllers that somebody else made get this agent's times.
//!
//! A connect by hand, or a distribution's autoconnect, gives a controller other times than this agent's, and
//! Cleat takes it over as it is. So each observation of such a controller compares them.
//!
//! Comes in: an observation of a volume. Goes out: nothing; what cannot be set is logged with the
//! controller's name.

use std::time::Duration;

use cleat_host::fabrics::{ExactController, LossTimeout};
use cleat_host::sysfs::{Controller, SubsystemView};
use cleat_runtime::exit::Causes;

use crate::volume::Volume;
use crate::volume::host::Host;

/// Longest that setting the times of one controller may take.
const PATIENCE: Duration = Duration::from_secs(2);

impl<H: Host> Volume<H> {
    /// Gives the volume's controllers this agent's times, where theirs differ.
    pub(in crate::volume) async fn bring_times_up_to_date(&self, view: &SubsystemView) {
        for controller in
            view.controllers.iter().filter(|one| !one.state.is_going() && self.has_other_times(one))
        {
            let Some(target) = ExactController::of(controller, &self.subsystem, self.host_nqn()) else {
                continue;
            };
            let options = &self.shared.identity.connect;
            match self.shared.host.fabrics().set_timeouts(&target, options, PATIENCE).await {
                Ok(false) => {}
                Ok(true) => tracing::info!(
                    volume = %self.id, controller = %target.controller,
                    "replaced the connection's timeouts, which were not ours"
                ),
                Err(error) => tracing::warn!(
                    volume = %self.id, error = %Causes(&error), "cannot set the connection's timeouts; the \
                        kernel may give this path up earlier or later"
                ),
            }
        }
    }

    fn has_other_times(&self, controller: &Controller) -> bool {
        let ours = &self.shared.identity.connect;
        let delay = ours.reconnect_delay.map(|delay| delay.as_secs());
        let other_delay = delay.is_some_and(|ours| controller.reconnect_delay_s.map(u64::from) != Some(ours));
        let step = delay.unwrap_or(1).max(1);
        let loss = ours.ctrl_loss_tmo.map(|limit| match limit {
            LossTimeout::After(time) => (time.as_secs().div_ceil(step) * step).to_string(),
            LossTimeout::Never => "off".to_owned(),
        });
        other_delay || loss.is_some_and(|ours| controller.ctrl_loss_tmo.as_deref() != Some(ours.as_str()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {

    use crate::testing::agent::{Agent, Machine};

    #[tokio::test]
    async fn a_controller_with_other_times_than_ours_gets_ours() {
        let machine = Machine::new();
        machine.kernel.change(|world| {
            let name = world.connect("nqn.2026-01.io.cleat:v", 1, crate::testing::kernel::HOST);
            let by_hand = world.controllers.iter_mut().find(|one| one.name.to_string() == name).unwrap();
            (by_hand.reconnect_delay_s, by_hand.ctrl_loss_tmo) = (Some(10), Some("30".into()));
        });
        let agent = Agent::with_times(&machine.kernel, machine.dir.path(), 1, 600);
        agent.ready(1, &[1, 2]).await;
        let times = |one: &cleat_host::sysfs::Controller| (one.reconnect_delay_s, one.ctrl_loss_tmo.clone());
        let all: Vec<_> = machine.kernel.world().controllers.iter().map(times).collect();
        assert_eq!(all, [(Some(1), Some("600".into())), (Some(1), Some("600".into()))]);
        assert_eq!(machine.kernel.world().retimed, 1, "the one that was made by hand");
    }
}
