//! A host that writes more than its target can take, and what becomes of it.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::sequence::Census;
use cleat_e2e::world::{
    Burden, Connect, Look, Node, RawHost, RawVolume, TargetView, World, Writer, wait_for,
};
use cleat_e2e::writer::WriteArgs;
use uuid::Uuid;

/// Each run's part of a volume.
pub(crate) const REGION_BYTES: u64 = 32 << 20;
/// Room for three runs.
pub(crate) const VOLUME_BYTES: u64 = 3 * REGION_BYTES;
/// How long the store holds a write: long enough that no fence without a barrier takes so long.
pub(crate) const HOLD: Duration = Duration::from_secs(6);
/// After a write's time is over it lands within this, on a busy emulated machine.
const SETTLE: Duration = Duration::from_secs(3);
/// For what should take a second or two.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// rds-sim's arguments for stores that hold writes.
pub(crate) fn held() -> Vec<String> {
    ["--backing", "held"].map(str::to_owned).into()
}

/// And that take four requests at a time: what else a host has sent stays in the target's sockets.
pub(crate) fn held_and_narrow() -> Vec<String> {
    ["--backing", "held", "--backing-depth", "4"].map(str::to_owned).into()
}

/// With reservations.
pub(crate) fn held_with_reservations() -> Vec<String> {
    ["--backing", "held", "--reservations"].map(str::to_owned).into()
}

/// A volume that two hosts are connected to, and a flood of the first one's writes.
pub(crate) struct Flood<'w> {
    pub(crate) world: &'w World,
    pub(crate) volume: RawVolume,
    pub(crate) a: RawHost<'w>,
    pub(crate) b: RawHost<'w>,
    /// The second host's device.
    pub(crate) b_device: String,
    /// The first host's writer.
    _writer: Writer,
    /// Its run.
    run: Uuid,
    /// How long the store holds its writes.
    hold: Duration,
    file: std::path::PathBuf,
}

impl<'w> Flood<'w> {
    /// Makes the volume on an RDS with these arguments, connects both hosts, and lets the first write 200 blocks at
    /// once, which the store then holds.
    pub(crate) async fn begin(world: &'w World, slot: &str, arguments: Vec<String>) -> anyhow::Result<Self> {
        Self::begin_with(world, slot, arguments, HOLD, false).await
    }

    /// The same, on a store that holds writes for so long.
    pub(crate) async fn begin_held_for(world: &'w World, slot: &str, hold: Duration) -> anyhow::Result<Self> {
        Self::begin_with(world, slot, held(), hold, false).await
    }

    /// The same, with both hosts registered (keys 0xa and 0xb) and the namespace reserved for registrants.
    pub(crate) async fn begin_reserved(
        world: &'w World,
        slot: &str,
        arguments: Vec<String>,
    ) -> anyhow::Result<Self> {
        Self::begin_with(world, slot, arguments, HOLD, true).await
    }

    async fn begin_with(
        world: &'w World,
        slot: &str,
        arguments: Vec<String>,
        hold: Duration,
        reserved: bool,
    ) -> anyhow::Result<Self> {
        world.rds.view(&TargetView { rds_args: arguments, ..TargetView::default() }).await?;
        let (a, b) = (RawHost::on(world.a()), RawHost::on(world.b()));
        let volume = RawVolume::make(&world.rds, slot, VOLUME_BYTES, &[a.nqn(), b.nqn()]).await?;
        // A short keep-alive, so that a host that is cut off soon notices it.
        let how = Connect { keep_alive: Some(2), ..Connect::default() };
        let a_device = a.connect(&volume, &how).await?;
        let b_device = b.connect(&volume, &how).await?;
        if reserved {
            a.register(&a_device, 0xa).await?;
            b.register(&b_device, 0xb).await?;
            a.reserve(&a_device, 0xa).await?;
        }
        world.rds.hold_writes(slot, hold, REGION_BYTES).await?;
        let mut writer = write(a.node(), &a_device, slot, 0, 200, 0).await?;
        let seen = writer.wait("to begin", SOON, |seen| seen.facts.is_some()).await?;
        let run = seen.facts.context("a run")?.nonce;
        let file = world.rds.disk(slot).await?.file;
        Ok(Self { world, volume, a, b, b_device, _writer: writer, run, hold, file })
    }

    /// Waits until the target has this much of it on its hands.
    pub(crate) async fn wait_burden(
        &self,
        what: &str,
        enough: impl Fn(Burden) -> bool,
    ) -> anyhow::Result<Burden> {
        wait_for(what, SOON, async || {
            let burden = self.world.rds.burden().await?;
            Ok(Look::some(Some(burden).filter(|burden| enough(*burden)), format!("{burden:?}")))
        })
        .await
        .map_err(Into::into)
    }

    /// What the target holds at this moment.
    pub(crate) async fn census(&self) -> anyhow::Result<Census> {
        self.world.rds.census(&self.file).await
    }

    /// Waits until a write of the first host has landed since an earlier moment: the fence of that moment was none.
    pub(crate) async fn seen_to_fail(&self, then: &Census) -> anyhow::Result<u64> {
        let what =
            "a write of the fenced host to land: this control must be seen to fail, and its fence held";
        wait_for(what, self.hold + SETTLE, async || {
            let late = self.census().await?.landed_since(then, self.run);
            Ok(Look::some(Some(late).filter(|late| *late > 0), "no write that landed late"))
        })
        .await
        .map_err(Into::into)
    }

    /// Looks on for longer than the store holds a write: none of the first host may land.
    pub(crate) async fn seen_to_hold(&self, then: &Census) -> anyhow::Result<()> {
        let watched = wait_for("a late write", self.hold + SETTLE, async || {
            let late = self.census().await?.landed_since(then, self.run);
            Ok(Look::some(Some(late).filter(|late| *late > 0), "none"))
        })
        .await;
        let late = watched.unwrap_or(0);
        ensure!(late == 0, "{late} writes of {} landed after the fence", self.a.node().name());
        // And the store has nothing left that could still land.
        let burden = self.wait_burden("the stores to be at rest", |burden| burden.in_flight == 0).await?;
        let late = self.census().await?.landed_since(then, self.run);
        ensure!(late == 0 && burden.in_flight == 0, "{late} writes landed with the last");
        Ok(())
    }

    /// The host list without the first host.
    pub(crate) async fn exclude_a(&self) -> anyhow::Result<()> {
        self.world.rds.set_allowed_hosts(&self.volume.slot, &[self.b.nqn()]).await
    }

    /// Export off and on.
    pub(crate) async fn toggle_export(&self) -> anyhow::Result<()> {
        self.world.rds.set_export(&self.volume.slot, false).await?;
        self.world.rds.set_export(&self.volume.slot, true).await
    }
}

/// A writer on a raw device.
pub(crate) async fn write(
    node: &Node,
    device: &str,
    slot: &str,
    region: u32,
    depth: u16,
    interval_us: u64,
) -> anyhow::Result<Writer> {
    let mut args = WriteArgs::new(device, slot.parse()?, node.name().parse()?, region);
    args.start_seq = Some(1 + u64::from(region) * 1_000_000);
    (args.region_bytes, args.queue_depth, args.interval_us) = (REGION_BYTES, depth, interval_us);
    node.write_with(&args).await
}
