//! Reservations as the kernel's target keeps them, beside the model that every other check of Cleat believes.
//!
//! In: commands of hosts, which go by nvme-cli to the target and to `cleat_world::reservations`. Out: after which
//! command the two differ. What always holds: after each command the answers, the generation, the registrants in their
//! order, whether the namespace is held, and whose writes are carried out were compared; what cannot be understood of
//! the target is an error, never an answer.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cleat_e2e::world::{Connect, Look, Node, RawHost, RawVolume, TargetView, World, wait_for};
use cleat_rig::Network;
use cleat_world::reservations::{Conflict, Reservations};

const VOLUME_BYTES: u64 = 16 << 20;
/// For a host to be back after its connections were cut.
const BACK: Duration = Duration::from_secs(45);
/// What a report says of a namespace that is held Write Exclusive - All Registrants.
const ALL_REGISTRANTS: u64 = 5;

/// A registration of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Registrant {
    /// The host id, in hexadecimal digits alone.
    pub(crate) host_id: String,
    pub(crate) key: u64,
}

/// What a target reports of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReservationReport {
    pub(crate) generation: u64,
    /// How it is held; 0 if it is not.
    pub(crate) kind: u64,
    /// In the target's order.
    pub(crate) registrants: Vec<Registrant>,
}

/// What the target reports to a host about the namespace behind a device.
pub(crate) async fn report(node: &Node, device: &str) -> anyhow::Result<ReservationReport> {
    let text = node.sh(&format!("timeout 5 nvme resv-report {device} --eds -o json 2>&1")).await?;
    let report: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("a report of registrations: {text}"))?;
    let number = |name: &str| report[name].as_u64().with_context(|| format!("no {name}: {text}"));
    let registrant = |one: &serde_json::Value| {
        let host_id = digits(one["hostid"].as_str()?);
        Some(Registrant { host_id, key: one["rkey"].as_u64()? })
    };
    let list = ["regctlext", "regctl"].iter().find_map(|name| report[*name].as_array());
    let list = list.with_context(|| format!("no registrants: {text}"))?;
    let registrants = list
        .iter()
        .map(|one| registrant(one).with_context(|| format!("a registrant: {one}")))
        .collect::<Result<_, _>>()?;
    Ok(ReservationReport { generation: number("gen")?, kind: number("rtype")?, registrants })
}

fn digits(host_id: &str) -> String {
    host_id.replace('-', "").to_lowercase()
}

/// A command of a host; the first key is its own.
#[derive(Debug, Clone, Copy)]
enum Command {
    Register(u64),
    Replace(u64, u64),
    Unregister(u64),
    Reserve(u64),
    Release(u64),
    Preempt(u64, u64),
    PreemptAndAbort(u64, u64),
    Clear(u64),
}

use Command::{Clear, Preempt, PreemptAndAbort, Register, Release, Replace, Reserve, Unregister};

impl Command {
    /// As nvme-cli sends it.
    fn words(self, device: &str) -> String {
        match self {
            Register(key) => format!("resv-register {device} --nrkey={key:#x} --rrega=0"),
            Unregister(key) => format!("resv-register {device} --crkey={key:#x} --rrega=1"),
            Replace(old, key) => {
                format!("resv-register {device} --crkey={old:#x} --nrkey={key:#x} --rrega=2")
            }
            Reserve(key) => format!("resv-acquire {device} --crkey={key:#x} --rtype=5 --racqa=0"),
            Preempt(key, victim) => {
                format!("resv-acquire {device} --crkey={key:#x} --prkey={victim:#x} --rtype=5 --racqa=1")
            }
            PreemptAndAbort(key, victim) => {
                format!("resv-acquire {device} --crkey={key:#x} --prkey={victim:#x} --rtype=5 --racqa=2")
            }
            Release(key) => format!("resv-release {device} --crkey={key:#x} --rtype=5 --rrela=0"),
            Clear(key) => format!("resv-release {device} --crkey={key:#x} --rtype=5 --rrela=1"),
        }
    }

    /// As the model does it.
    fn modelled(self, kept: &mut Reservations<usize>, host: usize) -> Result<(), Conflict> {
        match self {
            Register(key) => kept.register(host, None, key),
            Unregister(key) => kept.unregister(host, key),
            Replace(old, key) => kept.register(host, Some(old), key),
            Reserve(key) => kept.reserve(host, key),
            Preempt(key, victim) | PreemptAndAbort(key, victim) => kept.preempt(host, key, victim).map(drop),
            Release(key) => kept.release(host, key),
            Clear(key) => kept.clear(host, key),
        }
    }
}

const A: usize = 0;
const B: usize = 1;
/// On B's machine, while B is not connected.
const C: usize = 2;

/// Everything that Cleat's agents do, and what can come between; it ends with both registered and A holding.
const COMMANDS: &[(usize, Command)] = &[
    // Who is not registered may nothing but register.
    (A, Unregister(0xa)),
    (A, Replace(0xa, 0xaa)),
    (A, Reserve(0xa)),
    (A, Release(0xa)),
    (A, PreemptAndAbort(0xa, 0xa)),
    (A, Clear(0xa)),
    // Registered once, and again; another key only in place of the right one.
    (A, Register(0xa)),
    (A, Register(0xa)),
    (A, Register(0xaa)),
    (A, Replace(0xb, 0xaa)),
    (A, Unregister(0xb)),
    // Held by A, again and under another key; B is kept out, then shares, and cannot let go for A.
    (A, Reserve(0xb)),
    (A, Reserve(0xa)),
    (A, Reserve(0xa)),
    (B, Reserve(0xb)),
    (B, Register(0xb)),
    (B, Reserve(0xb)),
    (B, Release(0xb)),
    (A, Release(0xaa)),
    (A, Replace(0xa, 0xaa)),
    (A, Reserve(0xaa)),
    // The holder is preempted: B has what A held.
    (B, PreemptAndAbort(0xb, 0xa)),
    (B, PreemptAndAbort(0xa, 0xaa)),
    (B, PreemptAndAbort(0xb, 0xaa)),
    (B, PreemptAndAbort(0xb, 0xaa)),
    (A, Release(0xaa)),
    (B, Reserve(0xb)),
    // Let go and taken by A; the holder leaves first, then the last one.
    (A, Register(0xa)),
    (A, Reserve(0xa)),
    (B, Release(0xb)),
    (A, Reserve(0xa)),
    (A, Unregister(0xa)),
    (B, Reserve(0xb)),
    (B, Unregister(0xb)),
    // Preempting what nobody holds; oneself, with everybody who has the same key.
    (A, Register(0xa)),
    (B, Register(0xb)),
    (A, PreemptAndAbort(0xa, 0xb)),
    (A, Preempt(0xa, 0)),
    (B, Register(0xa)),
    (B, Preempt(0xa, 0xa)),
    // Key 0 is everybody else of who holds, and a key like others.
    (A, Register(0xa)),
    (A, Reserve(0xa)),
    (B, Register(0xb)),
    (B, Preempt(0xb, 0)),
    (B, Preempt(0xb, 0)),
    (B, Replace(0xb, 0)),
    (B, Reserve(0)),
    // Cleared by who does not hold.
    (A, Register(0xa)),
    (A, Clear(0xa)),
    (B, Register(0xb)),
    (A, Register(0xa)),
    (A, Reserve(0xa)),
];

/// After the restart: as if there had been nothing before.
const AFTERWARDS: &[(usize, Command)] =
    &[(A, Reserve(0xa)), (B, Register(0xb)), (B, Reserve(0xb)), (A, Register(0xa)), (A, Clear(0xa))];

/// While C is registered, and not connected: the oldest has what a holder leaves. Then C and B go by one key at once.
const BESIDE_THE_OLDEST: &[(usize, Command)] = &[
    (A, Register(0xa)),
    (B, Register(0xb)),
    (B, Reserve(0xb)),
    (B, Unregister(0xb)),
    (A, Reserve(0xa)),
    (A, Release(0xa)),
    (B, Register(0xc)),
    (A, PreemptAndAbort(0xa, 0xc)),
    (A, Reserve(0xa)),
    (B, Register(0xb)),
    (B, Clear(0xb)),
];

/// What is held of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    generation: u64,
    held: bool,
    /// Which host has which key, oldest first.
    registrants: Vec<(usize, u64)>,
    /// Whether A's and B's writes are carried out.
    lets_write: [bool; 2],
}

impl Held {
    fn of(kept: &Reservations<usize>) -> Self {
        Self {
            generation: kept.generation().into(),
            held: kept.is_held(),
            registrants: kept.registrants().to_vec(),
            lets_write: [A, B].map(|host| kept.lets_write(host)),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, held, registrants, lets_write } = self;
        write!(
            f,
            "generation {generation}, held: {held}, registrants {registrants:x?}, lets write: {lets_write:?}"
        )
    }
}

/// Hosts at one namespace of the kernel's target.
struct Real<'w> {
    hosts: [RawHost<'w>; 3],
    /// C's is none while B is connected.
    devices: [String; 3],
}

impl Real<'_> {
    async fn send(&self, by: usize, command: Command) -> anyhow::Result<Result<(), Conflict>> {
        let words = command.words(&self.devices[by]);
        let script = format!("timeout 30 nvme {words} 2>&1; echo exit code $?");
        let said = self.hosts[by].node().sh(&script).await?;
        match said.trim().rsplit_once("exit code ") {
            Some((_, "0")) if !said.contains("NVMe status") => Ok(Ok(())),
            Some(_) if said.contains("Reservation Conflict") => Ok(Err(Conflict)),
            _ => bail!("nvme {words}: {said}"),
        }
    }

    async fn held(&self, by: usize) -> anyhow::Result<Held> {
        let report = report(self.hosts[by].node(), &self.devices[by]).await?;
        let mut registrants = Vec::new();
        for one in report.registrants {
            let whose = self.hosts.iter().position(|host| digits(host.id()) == one.host_id);
            registrants.push((whose.with_context(|| format!("whose is {one:?}?"))?, one.key));
        }
        let held = match report.kind {
            0 => false,
            ALL_REGISTRANTS => true,
            other => bail!("held in another way: {other}"),
        };
        let (a, b) = tokio::try_join!(self.writes(A), self.writes(B))?;
        Ok(Held { generation: report.generation, held, registrants, lets_write: [a, b] })
    }

    /// Whether a write of a host is carried out.
    async fn writes(&self, host: usize) -> anyhow::Result<bool> {
        let device = &self.devices[host];
        let write = format!("dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct conv=notrunc");
        let script = format!("timeout 30 {write} 2>&1; echo exit code $?");
        let said = self.hosts[host].node().sh(&script).await?;
        match said.trim().rsplit_once("exit code ") {
            Some((_, "0")) => Ok(true),
            // EBADE, what the kernel makes of a reservation conflict.
            Some(_) if said.contains("Invalid exchange") => Ok(false),
            _ => bail!("{write}: {said}"),
        }
    }

    /// Sends commands to the target and to the model; both have to answer and to hold the same after each.
    async fn compare(
        &self,
        commands: &[(usize, Command)],
        kept: &mut Reservations<usize>,
    ) -> anyhow::Result<()> {
        for (at, &(by, command)) in commands.iter().enumerate() {
            let what = format!("command {at}, {command:x?} of host {by}");
            let modelled = command.modelled(kept, by);
            let said = self.send(by, command).await.with_context(|| what.clone())?;
            ensure!(said == modelled, "{what}: the target answers {said:?}, the model {modelled:?}");
            let (model, real) = (Held::of(kept), self.held(by).await.with_context(|| what.clone())?);
            ensure!(real == model, "{what}: the target has {real}; the model has {model}");
        }
        Ok(())
    }
}

/// Whatever the hosts do: the target answers, reports and refuses writes as the model does. A restart leaves nothing.
pub(crate) async fn after_each_command_the_target_holds_what_the_model_holds(
    world: &World,
) -> anyhow::Result<()> {
    let rds_args = vec!["--reservations".to_owned()];
    world.rds.view(&TargetView { rds_args, ..TargetView::default() }).await?;
    let hosts = [RawHost::on(world.a()), RawHost::on(world.b()), RawHost::another_on(world.b())];
    let nqns = hosts.each_ref().map(RawHost::nqn);
    let volume = RawVolume::make(&world.rds, "reservations", VOLUME_BYTES, &nqns).await?;
    let how = Connect::default();
    let (a, b) = tokio::try_join!(hosts[A].connect(&volume, &how), hosts[B].connect(&volume, &how))?;
    let mut real = Real { hosts, devices: [a, b, String::new()] };

    let mut kept = Reservations::default();
    ensure!(real.held(A).await? == Held::of(&kept), "a new namespace: {}", real.held(A).await?);
    real.compare(COMMANDS, &mut kept).await?;

    let before = Held::of(&kept);
    ensure!(before.held && before.registrants.len() == 2, "nothing to forget: {before}");
    // To the namespace, off and on is what a restart is (nvmet keeps no registration through it: ptpls is 0).
    world.rds.set_export(&volume.slot, false).await?;
    world.rds.set_export(&volume.slot, true).await?;
    let nothing = Held { generation: 0, held: false, registrants: Vec::new(), lets_write: [true; 2] };
    wait_for("the namespace to be back, with nobody registered", BACK, async || {
        let left = real.held(A).await?;
        Ok(Look::holds(left == nothing, left))
    })
    .await?;
    for host in [A, B] {
        real.hosts[host].wait_live(&volume, Network::STORAGE.len()).await?;
    }
    kept.forget();
    ensure!(Held::of(&kept) == nothing, "the model keeps something: {}", Held::of(&kept));
    real.compare(AFTERWARDS, &mut kept).await?;

    // A registration is the host's, not its connection's.
    real.hosts[B].delete_controllers(&volume).await?;
    real.devices[C] = real.hosts[C].connect(&volume, &how).await?;
    let registered = [real.send(C, Register(0xc)).await?, Register(0xc).modelled(&mut kept, C)];
    ensure!(registered == [Ok(()), Ok(())], "C is not registered: {registered:?}");
    real.hosts[C].delete_controllers(&volume).await?;
    real.devices[B] = real.hosts[B].connect(&volume, &how).await?;
    let (model, left) = (Held::of(&kept), real.held(A).await?);
    ensure!(left == model, "with C gone the target has {left}; the model has {model}");
    real.compare(BESIDE_THE_OLDEST, &mut kept).await?;
    for host in [A, B] {
        real.hosts[host].delete_controllers(&volume).await?;
    }
    Ok(())
}
