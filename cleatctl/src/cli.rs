//! The command line: its commands, and which question each one asks.

use std::ffi::OsString;
use std::io::Write as _;
use std::time::Duration;

use clap::{ColorChoice, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use cleat_runtime::exit::{BAD_CONFIG, Causes, FAILED};
use cleat_runtime::options::duration;
use cleat_runtime::tls::ClientTlsArgs;

use crate::client::{AskError, Controller};
use crate::fence::{self, Fence, NodeCommand};
use crate::identity::ClusterArgs;
use crate::migration::Migration;
use crate::output::{Format, Output};
use crate::rds::{self, RdsCommand};
use crate::shell::{self, Shell};
use crate::ticket_commands::TicketCommand;
use crate::{Console, explain, json, screens, watch};

const SUCCESS: u8 = 0;

const EXIT_CODES: &str = "\
Exit codes:
  0   success
  1   the command failed, or doctor found problems
  64  wrong usage or configuration
  Those of `ticket run` stand in its own help.";

/// Show what the Cleat controller knows: what is attached where, on what evidence, and what waits for what
#[derive(Parser, Debug)]
#[command(name = "cleatctl", version = cleat_runtime::VERSION, after_help = EXIT_CODES, color = ColorChoice::Never)]
struct Cli {
    /// Address of the controller for operators (its --operator-listen)
    #[arg(long, value_name = "HOST:PORT", env = "CLEAT_CONTROLLER")]
    controller: Option<String>,

    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,

    /// Whether to colour states; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    color: ColorChoice,

    /// Time limit for an answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    timeout: Duration,

    // Last: what follows would stand under its heading.
    #[command(flatten)]
    tls: ClientTlsArgs,

    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List tracked volumes: where each is attached, and what it waits for
    Volumes,
    /// List nodes: whether their agents are connected, and what they hold
    Nodes,
    /// List the latest live migration of each volume, with its timeline
    Migrations,
    /// Draw one live migration: the phases of each volume, and what it waits for now
    Migration(Migration),
    /// Explain one volume: who may write to it, on what evidence, and what each request waits for
    Explain {
        /// Id of the volume
        volume: String,
    },
    /// Show what happens, as it happens, until interrupted
    Watch,
    /// Find problems: drift (kernels, grants and staging paths that disagree), duplicate nodes, certificates that end
    /// soon, missing keys. Exits with 1 if there are any
    Doctor,
    /// Fence a node from a volume, whatever it is doing there, and wait for the proof
    Fence(Fence),
    /// Commands about tickets: why volumes should be attached somewhere, and for whom each waits
    #[command(subcommand)]
    Ticket(TicketCommand),
    /// Commands about one node
    #[command(subcommand)]
    Node(NodeCommand),
    /// Commands about an RDS
    #[command(subcommand)]
    Rds(RdsCommand),
    /// Write what a shell needs to complete commands, volumes and nodes
    Completion {
        /// Shell that reads it
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// The command line. The options may stand on either side of the command.
pub(crate) fn command() -> clap::Command {
    Cli::command().mut_args(|option| option.global(true))
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches_from(words)?)
}

pub(crate) fn run(words: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> u8 {
    let cli = match parse(words) {
        Ok(cli) => cli,
        Err(error) => {
            let (out, code) =
                if error.use_stderr() { (&mut console.err, BAD_CONFIG) } else { (&mut console.out, SUCCESS) };
            // Where even this cannot be written, the exit code still shows it.
            let _ = write!(out, "{}", error.render());
            return code;
        }
    };
    let cli = match cli {
        Cli { command: Command::Rds(command), .. } => {
            console.complain(&rds::hand_over(command));
            return FAILED;
        }
        Cli { command: Command::Completion { shell }, .. } => {
            let written = shell::register(shell, console.out).map(|()| SUCCESS).map_err(AskError::Output);
            return exit_code(written, console);
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
    let outcome = runtime.block_on(ask(cli, console));
    // A name resolver that hangs is not waited for.
    runtime.shutdown_background();
    exit_code(outcome, console)
}

/// Reports the error, if there is one, and returns the exit code.
fn exit_code(outcome: Result<u8, AskError>, console: &mut Console<'_>) -> u8 {
    match outcome {
        Ok(code) => code,
        // The reader of our output has closed it.
        Err(AskError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => SUCCESS,
        Err(error) => {
            console.complain(&Causes(&error).to_string());
            let config = matches!(
                error,
                AskError::Tls(_)
                    | AskError::NoController
                    | AskError::PlaintextAndTls
                    | AskError::TwoIdentities
                    | AskError::Nobody
                    | AskError::Ca { .. }
            );
            if config { BAD_CONFIG } else { FAILED }
        }
    }
}

async fn ask(cli: Cli, console: &mut Console<'_>) -> Result<u8, AskError> {
    let Cli { controller, tls, cluster, output, color, timeout, command } = cli;
    let controller = controller.ok_or(AskError::NoController)?;
    let mut controller = Controller::connect(&controller, &tls, &cluster, timeout).await?;
    let color = match color {
        ColorChoice::Auto => console.color,
        ColorChoice::Always => true,
        ColorChoice::Never => false,
    };
    let output = match &command {
        Command::Migration(migration) if migration.json => Format::Json,
        Command::Ticket(command) if command.wants_json() => Format::Json,
        _ => output,
    };
    if let Command::Ticket(TicketCommand::Run(run)) = command {
        return run.run(&mut controller, &cluster, console).await;
    }
    let mut out = Output::new(output, color, console);
    let shown = match command {
        Command::Volumes => {
            let volumes = controller.volumes().await?;
            out.show(|| json::volumes(&volumes), |width| screens::volumes(&volumes, width))
        }
        Command::Nodes => {
            let nodes = controller.nodes().await?;
            out.show(|| json::nodes(&nodes), |width| screens::nodes(&nodes, width))
        }
        Command::Migrations => {
            let migrations = controller.migrations().await?;
            out.show(|| json::migrations(&migrations), |width| screens::migrations(&migrations, width))
        }
        Command::Migration(migration) => migration.run(&mut controller, &mut out).await,
        Command::Ticket(command) => command.run(&mut controller, &mut out).await,
        Command::Explain { volume } => {
            let volume = controller.volume(volume).await?;
            out.show(|| json::volume(&volume), |width| explain::volume(&volume, width))
        }
        Command::Watch => watch::run(&mut controller, &mut out).await,
        Command::Doctor => {
            let problems = controller.problems().await?;
            out.show(|| json::problems(&problems), |width| screens::problems(&problems, width))?;
            if problems.is_empty() { Ok(()) } else { Err(AskError::Problems(problems.len())) }
        }
        Command::Fence(fence) => fence::fence(&mut controller, &mut out, fence).await,
        Command::Node(command) => fence::node(&mut controller, &mut out, command).await,
        // Done before a controller was needed.
        Command::Rds(_) | Command::Completion { .. } => Ok(()),
    };
    shown.map(|()| SUCCESS)
}
