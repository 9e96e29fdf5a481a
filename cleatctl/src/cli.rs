//! The command line: its words, and which question each command asks.

use std::ffi::OsString;
use std::io::Write as _;

use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use cleat_runtime::exit::{BAD_CONFIG, Causes, FAILED};
use cleat_runtime::tls::ClientTlsArgs;

use crate::client::{AskError, Controller};
use crate::fence::{self, Fence, NodeCommand};
use crate::output::{Format, Output};
use crate::rds::{self, RdsCommand};
use crate::{Console, explain, json, table, watch};

const SUCCESS: u8 = 0;

/// Shows what the Cleat controller knows: what is attached where, on what evidence, and what waits for what
#[derive(Parser, Debug)]
#[command(name = "cleatctl", version = cleat_runtime::VERSION)]
struct Cli {
    /// The controller's address for operators (its --operator-listen)
    #[arg(long, value_name = "HOST:PORT", env = "CLEAT_CONTROLLER")]
    controller: Option<String>,

    #[command(flatten)]
    tls: ClientTlsArgs,

    /// How to show it
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,

    /// How long the controller may take to answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Every volume that is tracked: where it is attached, and how far that has come
    Volumes,
    /// Every node: whether its agent is heard, and what it holds
    Nodes,
    /// Every volume's latest live migration, with its timeline
    Migrations,
    /// One volume in plain words: who may write to it, on what evidence, and what each request waits for
    Explain {
        /// The volume's id
        volume: String,
    },
    /// What happens, as it happens, until interrupted
    Watch,
    /// What is where it should not be, or will not go on: sessions without a grant, grants without a session, other
    /// devices staged, two nodes of one identity, certificates that end soon, secrets whose key is missing. Exits with 1
    /// if there is anything
    Doctor,
    /// Makes a node unable to write to a volume, whatever it is doing, and waits for the proof
    Fence(Fence),
    /// About one node
    #[command(subcommand)]
    Node(NodeCommand),
    /// About an RDS
    #[command(subcommand)]
    Rds(RdsCommand),
}

/// The options may stand on either side of the command.
fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let command = Cli::command().mut_args(|option| option.global(true));
    Cli::from_arg_matches(&command.try_get_matches_from(words)?)
}

pub(crate) fn run(words: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> u8 {
    let cli = match parse(words) {
        Ok(cli) => cli,
        Err(error) => {
            let (out, code) =
                if error.use_stderr() { (&mut console.err, BAD_CONFIG) } else { (&mut console.out, SUCCESS) };
            // Where even this cannot be written, the exit code still says it.
            let _ = write!(out, "{}", error.render());
            return code;
        }
    };
    let cli = match cli {
        Cli { command: Command::Rds(command), .. } => {
            console.complain(&rds::hand_over(command));
            return FAILED;
        }
        cli => cli,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            console.complain(&format!("cannot start: {error}"));
            return FAILED;
        }
    };
    match runtime.block_on(ask(cli, console)) {
        Ok(()) => SUCCESS,
        // Whoever reads us has had enough.
        Err(AskError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => SUCCESS,
        Err(error) => {
            console.complain(&Causes(&error).to_string());
            let config =
                matches!(error, AskError::Tls(_) | AskError::NoController | AskError::PlaintextAndTls);
            if config { BAD_CONFIG } else { FAILED }
        }
    }
}

async fn ask(cli: Cli, console: &mut Console<'_>) -> Result<(), AskError> {
    let Cli { controller, tls, output, timeout, command } = cli;
    let controller = controller.ok_or(AskError::NoController)?;
    let mut controller = Controller::dial(&controller, &tls, timeout).await?;
    let mut out = Output::new(output, console);
    match command {
        Command::Volumes => {
            let volumes = controller.volumes().await?;
            out.show(|| json::volumes(&volumes), || table::volumes(&volumes))
        }
        Command::Nodes => {
            let nodes = controller.nodes().await?;
            out.show(|| json::nodes(&nodes), || table::nodes(&nodes))
        }
        Command::Migrations => {
            let migrations = controller.migrations().await?;
            out.show(|| json::migrations(&migrations), || table::migrations(&migrations))
        }
        Command::Explain { volume } => {
            let volume = controller.volume(volume).await?;
            out.show(|| json::volume(&volume), || explain::volume(&volume))
        }
        Command::Watch => watch::run(&mut controller, &mut out).await,
        Command::Doctor => {
            let ghosts = controller.ghosts().await?;
            out.show(|| json::ghosts(&ghosts), || table::ghosts(&ghosts))?;
            if ghosts.is_empty() { Ok(()) } else { Err(AskError::Ghosts(ghosts.len())) }
        }
        Command::Fence(fence) => fence::fence(&mut controller, &mut out, fence).await,
        Command::Node(command) => fence::node(&mut controller, &mut out, command).await,
        // Handed over before a controller was asked for.
        Command::Rds(_) => Ok(()),
    }
}
