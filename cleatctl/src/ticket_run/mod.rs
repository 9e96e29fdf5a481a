//! `cleatctl ticket run`: a command reads a volume's device for as long as it runs.
//!
//! Comes in: a volume and a command. Goes out: the command's exit code, or that it was interrupted, or that the ticket was
//! lost. It makes a ticket for this node, waits until that is satisfied here, makes a device over the volume
//! ([`cleat_host::ticket_device`]) and runs the command, while the ticket is renewed.
//!
//! Always holds: the device is given up before the ticket is deleted, and the ticket is deleted however this ends. The command
//! never runs without a ticket that was satisfied for this node, and nothing can be written through its device.

mod command;
mod error;
mod held;
mod keeper;
mod node;
mod wish;

use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::Duration;

use cleat_host::ticket_device::TicketDevice;
use cleat_host::{NamespaceIdentity, NamespaceUuid, Nguid, SubsystemNqn};
use cleat_kubernetes::own_tickets::{OwnTickets, OwnWish};
use cleat_proto::cleat::v1 as proto;
use cleat_runtime::exit::Causes;
use cleat_runtime::options::duration;
use cleat_runtime::text::harmless;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use self::command::{Running, Signals};
pub(crate) use self::error::TicketRunError;
use self::held::Held;
use self::keeper::{Heard, Keeper, Verdict};
use self::wish::Wish;
use crate::Console;
use crate::client::{AskError, Controller};
use crate::identity::ClusterArgs;

/// The command was interrupted, for whoever the volume is needed (`EX_TEMPFAIL` of sysexits.h): try again later.
const INTERRUPTED: u8 = 75;
/// The ticket was lost, and with it the device (`EX_UNAVAILABLE`).
const LOST: u8 = 69;
/// A ticket that is not renewed for so long is lost.
const RENEW: Duration = Duration::from_secs(30);
/// The wish is never changed.
const GENERATION: u64 = 1;
/// How often the controller is asked how the ticket stands.
const LOOK: Duration = Duration::from_secs(1);
/// How long the device may take to come, and to go.
const DEVICE: Duration = Duration::from_secs(20);
/// The longest holder that a ticket may have.
const HOLDER_LONGEST: usize = 253;
/// How long one call of the API server may take.
const API: Duration = Duration::from_secs(10);

const EXIT_CODES: &str = "\
Exit codes:
  75   interrupted: the volume was needed elsewhere; run it again later
  69   the ticket was lost: the controller was not reached for too long, or has given the ticket up
  1    there was no device, and the command did not run (or the command's own)
  126  the command is no program, 127: there is none of that name
  others are the command's own, with 128 and the signal's number where a signal has ended it";

/// What a ticket's command is for.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunType {
    /// A copy of the volume's content
    Backup,
    /// A snapshot that is made by reading
    Snapshot,
}

impl RunType {
    fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Snapshot => "snapshot",
        }
    }
}

/// Run a command that reads a volume. Runs on the node where the volume is, as root; a volume that is attached nowhere is
/// attached to this node first. The command gets the device's path as CLEAT_DEVICE: it is read-only, reads past the page
/// cache, and shows what a machine would find that lost power (CLEAT_CONSISTENCY=crash), while the volume may be written to. It
/// gives way when the volume is needed elsewhere: the command gets SIGTERM then, and SIGKILL after --grace
#[derive(clap::Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct TicketRun {
    /// What the command is for
    #[arg(long = "type", value_enum, default_value = "backup", value_name = "TYPE")]
    kind: RunType,

    /// Node that this machine is; the node whose agent has this machine's boot id where it is left out
    #[arg(long, value_name = "NODE")]
    node: Option<String>,

    /// In a cluster: the namespace of the volume's claim. The ticket is an object there, made as the user of the kubeconfig
    #[arg(long = "in", value_name = "NAMESPACE")]
    claim_namespace: Option<String>,

    /// Who wants it, for people
    #[arg(long, value_name = "NAME")]
    holder: Option<String>,

    /// Time limit for the device to be there
    #[arg(long, value_name = "DURATION", default_value = "5min", value_parser = duration)]
    wait: Duration,

    /// How long the command has to end once it was asked to
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    grace: Duration,

    /// Id of the volume
    volume: String,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How it went on while the ticket was ours.
enum Ended {
    /// The command has ended by itself.
    Command(ExitStatus),
    /// It could not be started; the exit code says why.
    NotStarted(u8),
    /// It was ended, for this reason.
    Stopped(Verdict),
    /// A signal came before the command was started.
    Signal(u8),
}

impl TicketRun {
    /// Runs it; returns the exit code.
    pub(crate) async fn run(
        self,
        controller: &mut Controller,
        cluster: &ClusterArgs,
        console: &mut Console<'_>,
    ) -> Result<u8, AskError> {
        let mut signals = Signals::listen().map_err(TicketRunError::Signals)?;
        let node = node::this(controller, self.node.as_deref()).await?;
        let mut wish = self.wish(cluster, &node.name).await?;
        let ended = self.hold(controller, console, &mut signals, &node, &mut wish).await;
        if let Err(trouble) = wish.delete(controller).await {
            let (id, within) = (wish.id(), humantime::format_duration(RENEW));
            console.complain(&format!(
                "cannot delete ticket {id}: {trouble}; nobody renews it, and it is lost by itself after {within}"
            ));
        }
        Ok(match ended? {
            Ended::Command(status) => command::code(status),
            Ended::NotStarted(code) | Ended::Signal(code) => code,
            Ended::Stopped(Verdict::Interrupted(_)) => INTERRUPTED,
            Ended::Stopped(Verdict::Lost(_)) => LOST,
        })
    }

    /// Who wants it. A node's name may be as long as a holder.
    fn holder(&self, node: &str) -> String {
        let usual = || format!("cleatctl ticket run on {node}").chars().take(HOLDER_LONGEST).collect();
        self.holder.clone().unwrap_or_else(usual)
    }

    /// The ticket that the command needs.
    async fn wish(&self, cluster: &ClusterArgs, node: &str) -> Result<Wish, AskError> {
        let holder = self.holder(node);
        let put = proto::PutTicketRequest {
            id: format!("run.{}", uuid::Uuid::new_v4().simple()),
            volume_id: self.volume.clone(),
            kind: self.kind.name().to_owned(),
            node_id: node.to_owned(),
            holder: holder.clone(),
            generation: GENERATION,
            renew_ms: u64::try_from(RENEW.as_millis()).unwrap_or(u64::MAX),
            ..Default::default()
        };
        let Some(namespace) = &self.claim_namespace else { return Ok(Wish::of_controller(put)) };
        let kubectl = cluster.kubectl().await?;
        let tickets = OwnTickets::of(&kubectl, namespace, API).map_err(TicketRunError::NoClient)?;
        let object = OwnWish {
            volume: self.volume.clone(),
            kind: self.kind.name().to_owned(),
            node: node.to_owned(),
            holder,
            renew_seconds: RENEW.as_secs(),
        };
        Ok(Wish::of_cluster(put, tickets, object))
    }

    async fn hold(
        &self,
        controller: &mut Controller,
        console: &mut Console<'_>,
        signals: &mut Signals,
        node: &node::ThisNode,
        wish: &mut Wish,
    ) -> Result<Ended, AskError> {
        let mut keeper = Keeper::new(&node.name, GENERATION, RENEW, Instant::now());
        let came = tokio::select! {
            came = self.until_satisfied(controller, console, wish, &mut keeper) => came,
            signal = signals.next() => return Ok(Ended::Signal(command::code_of_signal(signal))),
        };
        came?;
        let subsystem = format!("{}{}", node.nqn_prefix, self.volume);
        let subsystem = SubsystemNqn::parse(&subsystem).map_err(TicketRunError::Name)?;
        let identity = identity(controller, &self.volume).await?;
        let device = TicketDevice::make(wish.id(), &subsystem, identity, DEVICE).await;
        let mut device = device.map_err(TicketRunError::Device)?;
        let ended = match Running::start(&self.command, device.path(), device.open()) {
            Ok(running) => {
                let mut held = Held { controller: &mut *controller, wish, keeper };
                self.watch(&mut held, &mut device, console, signals, running).await
            }
            Err(error) => {
                let program = self.command.first().cloned().unwrap_or_default();
                console.complain(&format!("cannot run {}: {error}", program.to_string_lossy()));
                Ok(Ended::NotStarted(command::code_of_start(&error)))
            }
        };
        match device.close(DEVICE).await {
            Ok(others) if others.is_empty() => {}
            Ok(others) => {
                let others = others.join("; ");
                console.complain(&format!(
                    "the command left others behind that read the device; ended {others}"
                ));
            }
            Err(error) => console.complain(&format!("the device is not gone: {}", Causes(&error))),
        }
        ended
    }

    /// Makes the ticket, and waits until its device is on this node.
    async fn until_satisfied(
        &self,
        controller: &mut Controller,
        console: &mut Console<'_>,
        wish: &mut Wish,
        keeper: &mut Keeper,
    ) -> Result<(), AskError> {
        let until = Instant::now() + self.wait;
        let ticket = wish.put(controller).await?;
        let (mut heard, mut said) = (Heard::Ticket(Box::new(ticket)), String::new());
        loop {
            let why = match &heard {
                Heard::Ticket(ticket) if keeper.has(ticket) => {
                    keeper.heard(Instant::now(), heard);
                    return Ok(());
                }
                Heard::Ticket(ticket) if keeper.is_elsewhere(ticket) => {
                    let (volume, node) = (self.volume.clone(), ticket.node_id.clone());
                    return Err(TicketRunError::Elsewhere { volume, node }.into());
                }
                Heard::Ticket(ticket) => waits_for(ticket),
                Heard::Nothing(why) => format!("the controller: {why}"),
            };
            if Instant::now() >= until {
                let volume = self.volume.clone();
                return Err(TicketRunError::NotInTime { volume, wait: self.wait, why }.into());
            }
            if why != said {
                say(console, &format!("waits for {why}"));
                said = why;
            }
            sleep(LOOK).await;
            heard = wish.look(controller, keeper).await;
        }
    }

    /// Watches the ticket and the command until the command has ended.
    async fn watch(
        &self,
        held: &mut Held<'_>,
        device: &mut TicketDevice,
        console: &mut Console<'_>,
        signals: &mut Signals,
        mut running: Running,
    ) -> Result<Ended, AskError> {
        let verdict = {
            let kept = held.until_lost();
            tokio::pin!(kept);
            loop {
                tokio::select! {
                    status = running.ended() => break Err(status.map_err(TicketRunError::Wait)?),
                    verdict = &mut kept => break Ok(verdict),
                    signal = signals.next() => {
                        // It may come of who cuts the ticket off, who kills whoever keeps the device. The command has it open.
                        if signal == Signal::SIGTERM {
                            device.let_go();
                        }
                        running.pass_on(signal);
                    }
                }
            }
        };
        match verdict {
            Ok(verdict) => {
                say(console, &format!("{verdict}; the command is asked to end"));
                device.let_go();
                running.end(self.grace).await.map_err(TicketRunError::Wait)?;
                Ok(Ended::Stopped(verdict))
            }
            // Whoever cuts a ticket off ends who reads its device. The command may be the first to know, or may take what it
            // has read by then for the whole: only the ticket says that nothing is missing.
            Err(status) => Ok(match held.at_end().await {
                Some(verdict) => {
                    say(
                        console,
                        &format!("{verdict}; the command has ended, and may have read a part alone"),
                    );
                    Ended::Stopped(verdict)
                }
                None => Ended::Command(status),
            }),
        }
    }
}

/// Says something that is no error.
fn say(console: &mut Console<'_>, text: &str) {
    // If it cannot be written, the command runs all the same.
    let _ = writeln!(console.err, "cleatctl: {}", harmless(text, &[]));
}

fn waits_for(ticket: &proto::TicketInfo) -> String {
    match (&*ticket.waits_for, &*ticket.waits_on) {
        ("", "") => "the controller, which has not said anything of it yet".to_owned(),
        ("", whom) => whom.to_owned(),
        (what, _) => what.to_owned(),
    }
}

/// What the volume's namespace is, as the controller has pinned it.
async fn identity(controller: &mut Controller, volume: &str) -> Result<NamespaceIdentity, AskError> {
    let known = controller.volume(volume.to_owned()).await?.identity.unwrap_or_default();
    let identity = NamespaceIdentity {
        uuid: NamespaceUuid::parse(&known.namespace_uuid).ok(),
        nguid: Nguid::parse(&known.nguid).ok(),
    };
    match identity.is_empty() {
        true => Err(TicketRunError::NoIdentity(volume.to_owned()).into()),
        false => Ok(identity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the whole command line makes of these words.
    fn parsed(words: &str) -> Option<TicketRun> {
        use clap::FromArgMatches as _;
        let matches = crate::cli::command().try_get_matches_from(words.split(' ')).ok()?;
        let (_, ticket) = matches.subcommand()?;
        let (_, run) = ticket.subcommand()?;
        TicketRun::from_arg_matches(run).ok()
    }

    #[test]
    fn what_follows_the_dashes_is_the_command_with_its_own_options() {
        let run = parsed("cleatctl --namespace x ticket run --type backup pvc-1 -- dd --timeout 1 -- bs=4M");
        let run = run.expect("a command line");
        assert_eq!((run.kind, run.volume.as_str(), &run.claim_namespace), (RunType::Backup, "pvc-1", &None));
        assert_eq!(run.command, ["dd", "--timeout", "1", "--", "bs=4M"]);
        let there =
            parsed("cleatctl ticket run --in shop --type snapshot pvc-1 -- true").expect("a command line");
        assert_eq!((there.kind, there.claim_namespace.as_deref()), (RunType::Snapshot, Some("shop")));
        for wrong in ["pvc-1", "pvc-1 --", "--type csi pvc-1 -- true", "-- true"] {
            assert!(parsed(&format!("cleatctl ticket run {wrong}")).is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_usual_holder_is_one_that_a_ticket_may_have() {
        let run = parsed("cleatctl ticket run pvc-1 -- true").expect("a command line");
        assert_eq!(run.holder("node-a"), "cleatctl ticket run on node-a");
        assert_eq!(run.holder(&"n".repeat(253)).len(), HOLDER_LONGEST);
        let named = parsed("cleatctl ticket run --holder me pvc-1 -- true").expect("a command line");
        assert_eq!(named.holder("node-a"), "me");
    }
}
