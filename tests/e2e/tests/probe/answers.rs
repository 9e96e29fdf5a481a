//! Targets that answer differently, and what the probe writes of each.

use std::time::Duration;

use anyhow::ensure;
use cleat_e2e::world::{Connect, Kernels, RawHost, RawVolume, World};
use rds_sim::pretend::Pretend;
use serde_json::{Value, json};

use crate::probing::{Probe, play};

/// Long enough for two hosts to connect while a write is on its way, on an emulated machine.
const HELD: Duration = Duration::from_secs(6);
/// The volley's places; what the pulse writes is not held.
const FIRST_BYTES: u64 = 4 << 20;

/// What a target has by its kernel: options for rds-sim, and what is to be found then.
struct Has {
    options: Vec<&'static str>,
    in_band_auth: bool,
    reservations: &'static str,
}

fn has(kernels: Kernels) -> Has {
    let mut has = Has { options: Vec::new(), in_band_auth: false, reservations: "none" };
    if kernels.target >= (6, 12) {
        has.options.push("--in-band-auth");
        has.in_band_auth = kernels.nodes >= (6, 12);
    }
    if kernels.target >= (6, 13) {
        has.options.push("--reservations");
        has.reservations = if kernels.target >= (7, 2) { "abort-waits" } else { "held" };
    }
    has
}

/// What is found of a list, with everything else as bad as it can be.
fn nothing_but(change: Value) -> Value {
    let mut found = json!({
        "version": 1, "host_acl": "list", "export_cuts": true, "export_drains": "unknown", "uuid_kept": true,
        "password": true, "in_band_auth": false, "reservations": "none", "grow_online": false,
    });
    if let (Some(found), Value::Object(change)) = (found.as_object_mut(), change) {
        found.extend(change);
    }
    found
}

pub(crate) async fn a_target_that_does_everything_is_found_to_and_nobody_else_is_touched(
    world: &World,
) -> anyhow::Result<()> {
    let has = has(world.kernels());
    let options: Vec<&str> = ["--backing", "held"].into_iter().chain(has.options.iter().copied()).collect();
    play(world, &options).await?;
    let host = RawHost::on(world.a());
    let other = RawVolume::make(&world.rds, "bystander", 16 << 20, &[host.nqn()]).await?;
    host.connect(&other, &Connect::default()).await?;
    let before = host.controllers(&other).await?;

    let probe = Probe::again(world, &[]).await?;
    world.rds.hold_writes(&probe.scratch().await?.slot, HELD, FIRST_BYTES).await?;
    let probed = probe.ended().await?;
    probed.found(&nothing_but(json!({
        "export_drains": "seen", "in_band_auth": has.in_band_auth, "reservations": has.reservations,
    })))?;

    ensure!(host.controllers(&other).await? == before, "the bystander's connections have changed");
    ensure!(world.rds.disk(&other.slot).await?.export, "the bystander's disk has changed");
    host.delete_controllers(&other).await?;
    world.rds.remove_disk(&other.slot).await
}

pub(crate) async fn a_target_that_keeps_nobody_out_and_forgets_its_uuid(world: &World) -> anyhow::Result<()> {
    let probe = Probe::start(world, &["--acl", "ignored", "--uuid-random"], &[]).await?;
    let found = nothing_but(json!({ "host_acl": "ignored", "uuid_kept": false }));
    probe.ended().await?.found(&found)
}

pub(crate) async fn a_target_that_takes_one_host_and_only_says_that_it_cuts(
    world: &World,
) -> anyhow::Result<()> {
    play(world, &["--acl", "single", "--acl-empty-denies"]).await?;
    world.rds.pretend(Pretend::Cut).await?;
    let probed = Probe::again(world, &["--assume-drains"]).await?.ended().await?;
    world.rds.pretend_nothing().await?;
    // Nothing is assumed of a target that does not even cut.
    probed.found(&nothing_but(json!({ "host_acl": "single", "export_cuts": false })))
}

pub(crate) async fn a_target_that_only_says_that_it_takes_its_namespace_down(
    world: &World,
) -> anyhow::Result<()> {
    play(world, &["--backing", "held"]).await?;
    world.rds.pretend(Pretend::Drain).await?;
    let probe = Probe::again(world, &[]).await?;
    world.rds.hold_writes(&probe.scratch().await?.slot, HELD, FIRST_BYTES).await?;
    let probed = probe.ended().await?;
    world.rds.pretend_nothing().await?;
    // On 6.1 the next host's connect waits inside the target until the writes have landed: then nothing can be seen.
    let drains = if world.kernels().target < (6, 12) { "unknown" } else { "no" };
    probed.found(&nothing_but(json!({ "export_drains": drains })))
}

pub(crate) async fn what_cannot_be_seen_is_assumed_only_on_request(world: &World) -> anyhow::Result<()> {
    let has = has(world.kernels());
    let answers: Vec<&str> = ["--grow-online"].into_iter().chain(has.options.iter().copied()).collect();
    let probe = Probe::start(world, &answers, &["--assume-drains"]).await?;
    let probed = probe.ended().await?;
    // On a store this fast it cannot be seen that an abort waits, and nothing makes an assumption of it.
    let reservations = if has.reservations == "none" { "none" } else { "held" };
    probed.found(&nothing_but(json!({
        "export_drains": "assumed", "grow_online": true, "in_band_auth": has.in_band_auth,
        "reservations": reservations,
    })))?;
    for words in ["does not end its live session", "--rds-abilities /run/abilities.json", "an assumption"] {
        ensure!(probed.said.contains(words), "it does not say {words:?}: {}", probed.said);
    }
    Ok(())
}
