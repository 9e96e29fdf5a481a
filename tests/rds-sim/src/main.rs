//! The binary: parse, check, open the device, serve until told to stop. Exports stay when it stops: they are the
//! kernel's, and a restart takes them over.

use std::io::{self, IsTerminal, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use clap::Parser;
use rds_sim::Rds;
use rds_sim::args::Args;
use rds_sim::faults::Faults;
use rds_sim::server::{serve_control, serve_rest};
use rds_sim::target::Nvmet;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// EX_USAGE of sysexits.h: the configuration is at fault, starting again will not help.
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
    let args = Args::parse();
    let prepared = args.credentials().and_then(|credentials| Ok((credentials, args.identity()?)));
    let (credentials, identity) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    match run(&args, credentials, &identity) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(
    args: &Args,
    credentials: rds_sim::Credentials,
    identity: &rds_sim::tls::Identity,
) -> anyhow::Result<()> {
    let fingerprint = identity.fingerprint()?;
    let tls = identity.server_config()?;
    let rest = TcpListener::bind(args.listen).with_context(|| format!("listen on {}", args.listen))?;
    let bind = |address| TcpListener::bind(address).with_context(|| format!("listen on {address}"));
    let control = args.control.map(bind).transpose()?;
    let rds = Rds::open(args.options(), Arc::new(Nvmet::at(&args.nvmet))).context("open the device")?;
    if args.print_fingerprint {
        writeln!(io::stdout(), "{fingerprint}").context("print the fingerprint")?;
    }
    let rds = Arc::new(Mutex::new(rds));
    let faults = Arc::new(Faults::default());
    let shutdown = stopped_by_signals()?;
    tracing::info!(listen = %args.listen, control = ?args.control, %fingerprint, "serving");
    let api = serve_rest(rest, tls, Arc::clone(&rds), credentials, Arc::clone(&faults), shutdown.clone());
    match control {
        Some(listener) => {
            tokio::try_join!(api, serve_control(listener, rds, faults, shutdown)).context("serve")?;
        }
        None => api.await.context("serve")?,
    }
    tracing::info!("stopped; exports stay");
    Ok(())
}

fn stopped_by_signals() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("watch for signals")?;
        let token = token.clone();
        tokio::spawn(async move {
            signals.recv().await;
            token.cancel();
        });
    }
    Ok(token)
}
