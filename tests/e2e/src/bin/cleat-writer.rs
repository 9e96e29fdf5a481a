//! `cleat-writer`: writes a sequence of records to a volume, and reads a sequence back and judges it.
//!
//! `write` ends with 0 if no write failed; `verify` ends with 0 if the sequence is whole, 1 if it is not, and 2 if
//! it could not be judged.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use cleat_e2e::writer::census::census;
use cleat_e2e::writer::engine::Engine;
use cleat_e2e::writer::overwrite::overwrite;
use cleat_e2e::writer::verify::verify;
use cleat_e2e::writer::{CensusArgs, OverwriteArgs, StopReason, VerifyArgs, WriteArgs};
use nix::sys::signal::{SigSet, Signal};

/// Writes successive 4 KiB records to a volume, or reads them back and checks them.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write records until `stop` on standard input, SIGTERM, or the end of the region
    Write(WriteArgs),
    /// Read all regions back; prints one JSON object
    Verify(VerifyArgs),
    /// Count what is there, run by run; prints one JSON object
    Census(CensusArgs),
    /// Write the same blocks over and over until one has stalled, and count those that an older write has overwritten;
    /// prints `ready`, waits for a line, and prints one JSON object
    Overwrite(OverwriteArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Write(args) => write(args),
        Command::Verify(args) => judge(&args),
        Command::Census(args) => count(&args),
        Command::Overwrite(args) => write_over(&args),
    };
    outcome.unwrap_or_else(|error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        let _ = writeln!(io::stderr(), "cleat-writer: {text}");
        ExitCode::from(2)
    })
}

fn write(args: WriteArgs) -> Result<ExitCode, Box<dyn Error>> {
    // Blocked before any thread is made, so that only the thread that waits for them gets them.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    let engine = Arc::new(Engine::open(args)?);
    let stopped = Arc::clone(&engine);
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            stopped.stop(StopReason::Signal);
        }
    });
    let asked = Arc::clone(&engine);
    std::thread::spawn(move || listen(&asked));
    let (_, sound) = engine.run(&mut io::stdout());
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes `go NUMBER` and `stop`. The end of the input says nothing: a writer may be started with none.
fn listen(engine: &Engine) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.trim().split_once(' ') {
            Some(("go", number)) => match number.parse() {
                Ok(number) => engine.go(number),
                Err(_) => engine.stop(StopReason::Asked),
            },
            None if line.trim() == "stop" => engine.stop(StopReason::Asked),
            _ => {}
        }
    }
}

fn write_over(args: &OverwriteArgs) -> Result<ExitCode, Box<dyn Error>> {
    let mut out = io::stdout();
    let found = overwrite(args, &mut out)?;
    serde_json::to_writer(&mut out, &found)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}

fn count(args: &CensusArgs) -> Result<ExitCode, Box<dyn Error>> {
    let mut out = io::stdout();
    serde_json::to_writer(&mut out, &census(args)?)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}

fn judge(args: &VerifyArgs) -> Result<ExitCode, Box<dyn Error>> {
    let report = verify(args)?;
    let mut out = io::stdout();
    serde_json::to_writer(&mut out, &report)?;
    writeln!(out)?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
