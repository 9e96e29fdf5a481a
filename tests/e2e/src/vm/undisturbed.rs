//! A migration in which nothing goes wrong, over disks that somebody else has attached: what a floor and a benchmark time.
//!
//! In: a world, and where the disks are on either node. Out: what the target saw of it. What always holds: the guest writes
//! from before the migration until after it, and a run in which a write was lost, doubled or late gives no figures.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::task::block_in_place;

use super::arrivals::{self, ArrivalVerdict};
use super::migrate::{self, MigrateEnd, MigrateSettings, Migrated};
use super::qemu::Vm;
use super::{on_nodes, trace};
use crate::world::World;

/// Writes on either side, in dots of 64.
const SOME_DOTS: usize = 4;
/// They take seconds on emulated nodes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that writes on node-a.
#[derive(Debug)]
pub struct Writing<'w> {
    world: &'w World,
    name: String,
    /// The subsystem of its first disk.
    nqn: String,
    source: Vm,
}

/// The same on node-b.
#[derive(Debug)]
pub struct Moved<'w> {
    world: &'w World,
    source: Option<Vm>,
    target: Vm,
    from: BTreeSet<u32>,
    to: BTreeSet<u32>,
    /// What QEMU says of it.
    pub migrated: Migrated,
}

impl<'w> Writing<'w> {
    /// Boots it from the first of these disks, which has that NQN and size.
    ///
    /// # Errors
    /// If its guest does not come to write.
    pub async fn begin(
        world: &'w World,
        name: &str,
        (nqn, bytes): (&str, u64),
        disks: &[String],
    ) -> anyhow::Result<Self> {
        let program = on_nodes::program(bytes);
        let source = on_nodes::boot(name, world.rds.machine(), world.a(), disks, &program).await?;
        Ok(Self { world, name: name.to_owned(), nqn: nqn.to_owned(), source })
    }

    /// Moves it to node-b, which has its disks there.
    ///
    /// # Errors
    /// If QEMU's migration does not complete.
    pub async fn moves(self, disks: &[String]) -> anyhow::Result<Moved<'w>> {
        let Self { world, name, nqn, source } = self;
        let (a, b) = (world.a(), world.b());
        let target = on_nodes::receive(&name, b, disks)?;
        on_nodes::writes_on(&source, SOME_DOTS, PATIENCE).await?;
        let (from, to) = (a.controller_ids(&nqn).await?, b.controller_ids(&nqn).await?);
        let settings = MigrateSettings::default();
        let listen = on_nodes::listens_at(b);
        let migrated = block_in_place(|| migrate::migrate(source.qmp(), target.qmp(), listen, &settings))?;
        match &migrated.end {
            MigrateEnd::Completed => {}
            MigrateEnd::Failed(why) => bail!("QEMU's migration failed: {why}"),
            MigrateEnd::Cancelled => bail!("QEMU's migration was cancelled"),
        }
        on_nodes::writes_on(&target, SOME_DOTS, PATIENCE).await?;
        Ok(Moved { world, source: Some(source), target, from, to, migrated })
    }
}

impl Moved<'_> {
    /// Ends QEMU on node-a, whose volumes may be detached then.
    ///
    /// # Errors
    /// If it does not end.
    pub fn end_source(&mut self) -> anyhow::Result<()> {
        match self.source.take() {
            Some(source) => block_in_place(|| source.quit()),
            None => Ok(()),
        }
    }

    /// Ends what is left of it, and says what the target saw.
    ///
    /// # Errors
    /// If a QEMU does not end, or the order of arrivals is not what it has to be.
    pub fn judge(mut self) -> anyhow::Result<ArrivalVerdict> {
        self.end_source()?;
        block_in_place(|| self.target.halt())?;
        let noted = block_in_place(|| trace::end(self.world.rds.machine()))?;
        block_in_place(|| self.target.quit())?;
        let arrived = arrivals::parse(&noted)?;
        let order = arrivals::judge(&arrived, &self.from, &self.to);
        ensure!(order.is_clean() && order.repeats == 0, "the order of arrivals: {order:?}");
        Ok(order)
    }
}

/// From the last write of the source to the first of the target node, milliseconds.
///
/// # Errors
/// If one of them has not written.
pub fn gap_ms(order: &ArrivalVerdict) -> anyhow::Result<f64> {
    let gap = order.switch_gap_us.context("one of the nodes has written nothing")?;
    Ok(gap as f64 / 1000.0)
}
