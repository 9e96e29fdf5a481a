//! Plays scripts in a cluster: each step's writes in their order, and the UIDs that come back.

use std::time::SystemTime;

use anyhow::Context;

use crate::patch::Patch;
use crate::scenes::Cue;
use crate::script::{Script, Step};

/// Where the writes go.
pub trait Api {
    /// Writes. Says which UID the cluster gave an object that was made.
    fn write(&self, patch: &Patch) -> impl Future<Output = anyhow::Result<Option<String>>> + Send;
}

/// Plays one step.
///
/// # Errors
/// The step cannot come now, or the cluster does not take a write.
pub async fn play_step(api: &impl Api, script: &mut Script, step: &Step) -> anyhow::Result<()> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    for patch in script.next(step, &now)? {
        if let Some(uid) = api.write(&patch).await? {
            script.made(patch.of(), &uid);
        }
    }
    Ok(())
}

/// Plays all of them, each after what is waited for before it.
///
/// # Errors
/// A step cannot come then, the cluster does not take a write, or the wait has failed.
pub async fn play(
    api: &impl Api,
    scripts: &mut [Script],
    cues: &[Cue],
    mut before: impl AsyncFnMut(&Cue) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for cue in cues {
        before(cue).await?;
        let script = scripts.get_mut(cue.vm).context("cannot play: a step is of no VM; name more of them")?;
        let name = script.plan().name.clone();
        play_step(api, script, &cue.step)
            .await
            .with_context(|| format!("VM {name} has come to {:?}", cue.step))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::patch::Kind;
    use crate::scenes::Scene;
    use crate::script::{Disk, VmPlan};
    use crate::stored::Stored;

    #[derive(Default)]
    struct InMemory(Mutex<(Stored, usize)>);

    impl Api for InMemory {
        async fn write(&self, patch: &Patch) -> anyhow::Result<Option<String>> {
            let mut inner = self.0.lock().expect("nobody panics with it");
            inner.1 += 1;
            Ok(inner.0.apply(patch, "2026-11-30T09:00:00Z"))
        }
    }

    #[tokio::test]
    async fn a_scene_is_played_in_its_order_with_the_clusters_uids() {
        let disks = vec![
            Disk { claim: "root".into(), hotplugged: false },
            Disk { claim: "data".into(), hotplugged: true },
        ];
        let vms = [VmPlan { namespace: "vms".into(), name: "web".into(), disks }];
        let cues = Scene::Hotplugged.cues(&vms, &["a".into(), "b".into()]).expect("it is enough");
        let (api, mut scripts) = (InMemory::default(), vms.map(Script::new));
        let mut heard = Vec::new();
        let before = async |cue: &Cue| {
            heard.push(cue.at_ms);
            Ok::<_, anyhow::Error>(())
        };
        play(&api, &mut scripts, &cues, before).await.expect("all of it");
        assert!(heard.len() == cues.len() && heard.is_sorted());
        let (stored, writes) = api.0.into_inner().expect("nobody panicked");
        let vm = stored.all(Kind::VirtualMachineInstance).next().expect("the VM");
        let migration = stored.all(Kind::VirtualMachineInstanceMigration).next().expect("its migration");
        assert_eq!(vm["status"]["nodeName"], "b");
        assert_eq!(vm["status"]["migrationState"]["migrationUid"], migration["metadata"]["uid"]);
        assert!(writes > cues.len(), "{writes}");
        let early =
            play_step(&InMemory::default(), &mut scripts[0], &Step::Accepted).await.expect_err("early");
        assert!(early.to_string().contains("there is no migration"), "{early}");
    }
}
