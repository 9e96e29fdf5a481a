//! A namespace that the kernel does not show because it has another one with the same UUID.
//!
//! Comes in: an attach that found a controller and no namespace. Goes out: the same failure, with the device
//! that has the UUID.

use cleat_host::readiness::Clause;

use crate::ledger::Grant;
use crate::volume::Volume;
use crate::volume::clause::FailedClause;
use crate::volume::host::Host;

impl<H: Host> Volume<H> {
    /// Adds to the failure of an attach which device has the UUID that its namespace should have.
    pub(in crate::volume) async fn name_the_duplicate(
        &self,
        mut unready: FailedClause,
        grant: &Grant,
    ) -> FailedClause {
        let Some(uuid) = grant.identity.uuid.filter(|_| unready.clause == Clause::NamespaceIdentity.as_str())
        else {
            return unready;
        };
        // Where the topology cannot be read, nothing is added.
        let Ok(all) = self.shared.host.topology().await else { return unready };
        let own = all.view(&self.subsystem);
        if own.controllers.is_empty() || !own.namespaces.is_empty() {
            return unready;
        }
        let same = all.namespaces.iter().find(|other| other.namespace.identity.uuid == Some(uuid));
        if let Some(other) = same {
            unready.message.push_str(&format!(
                ": the kernel shows one namespace of a UUID, and {} of {} has {uuid}; detach that one, or give one of the \
                 two disks another UUID",
                other.namespace.name, other.subsystem_nqn
            ));
        }
        unready
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use crate::testing::agent::{Machine, grant};
    use crate::testing::kernel::{HOST, UUID};
    use crate::volume::outcome::Outcome;

    #[tokio::test]
    async fn an_attach_names_the_device_that_has_the_same_uuid() {
        for other in [true, false] {
            let machine = Machine::new();
            machine.kernel.change(|world| {
                if other {
                    world.connect("nqn.2026-01.com.example:other", 3, HOST);
                }
                world.hidden.insert("nqn.2026-01.io.cleat:v".into());
            });
            let agent = machine.agent();
            let failed = agent.attach_by(1, grant(&[1]), Duration::from_millis(300)).await;
            let Outcome::Failed(failed) = failed else { panic!("{failed:?}") };
            let message = failed.unready.message;
            assert!(message.contains("shows no namespace"), "{message}");
            let named =
                ["nvme0n1 of nqn.2026-01.com.example:other", UUID].iter().all(|word| message.contains(word));
            assert_eq!(named, other, "{message}");
        }
    }
}
