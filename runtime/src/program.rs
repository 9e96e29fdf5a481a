//! From `main` to the end of the process: arguments, logs, endpoint, signals, and then the program itself.
//!
//! Comes in: a clap parser that embeds [`Common`]. Goes out: an exit code (see [`crate::exit`]). A wrong
//! command line ends with 64 before any socket is bound.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use clap::error::ErrorKind;
use tokio_util::sync::CancellationToken;

use crate::exit::{BAD_CONFIG, Causes, Failure, SHUTDOWN_TIMED_OUT};
use crate::http::{HttpArgs, HttpListener, install_recorder};
use crate::logs::LogArgs;
use crate::metrics::Metric;
use crate::options;
use crate::readiness::Readiness;
use crate::shutdown::Shutdown;
use crate::{build_info, tls};

/// How long blocking threads have to end once the program has returned; one of them may be stuck in the
/// kernel.
const BLOCKING_GRACE: Duration = Duration::from_millis(500);

/// Options that every long-running binary has; flatten it into the binary's own arguments.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Options for logs.
    #[command(flatten)]
    pub logs: LogArgs,

    /// Options of the metrics and health endpoint.
    #[command(flatten)]
    pub http: HttpArgs,

    /// Time to stop after SIGTERM; then the process ends regardless
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = options::duration)]
    pub shutdown_timeout: Duration,
}

/// The command line of a long-running binary.
pub trait Program: clap::Parser {
    /// The binary's name, for logs.
    const NAME: &'static str;
    /// The tables of its own metrics; every program also has [`crate::metrics::COMMON`].
    const METRICS: &'static [&'static [Metric]] = &[];

    /// The options that all binaries share.
    fn common(&self) -> &Common;
}

/// What a running program gets from the process.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Cancelled when the program must stop. The program may cancel it itself, to end without a failure.
    pub stop: CancellationToken,
    /// Where the program sets what it is still waiting for.
    pub readiness: Readiness,
    /// How a part without a caller ends the program.
    pub giving_up: GivingUp,
}

/// Ends the program with a failure, from a part that has no caller to return its error to.
#[derive(Clone, Debug, Default)]
pub struct GivingUp {
    stop: CancellationToken,
    why: Arc<OnceLock<Failure>>,
}

impl GivingUp {
    /// Makes one that cancels `stop`.
    #[must_use]
    pub fn by(stop: CancellationToken) -> Self {
        Self { stop, why: Arc::default() }
    }

    /// Stops the program. It then ends with this failure, even if all its parts end well. The first failure
    /// counts.
    pub fn because(&self, failure: Failure) {
        tracing::error!(error = %failure, "giving up");
        // A second failure is often a consequence of the first.
        let _ = self.why.set(failure);
        self.stop.cancel();
    }

    /// The failure with which the program was stopped; `None` if it was not.
    #[must_use]
    pub fn why(&self) -> Option<&Failure> {
        self.why.get()
    }
}

/// Runs a program from its command line to its exit code. `main` is one call of this.
pub fn run<P, F>(program: impl FnOnce(P, Context) -> F) -> ExitCode
where
    P: Program,
    F: Future<Output = Result<(), Failure>>,
{
    let args = match P::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    if let Err(error) = args.common().logs.init() {
        eprint_line(&format!("{}: {}", P::NAME, Causes(&error)));
        return ExitCode::from(BAD_CONFIG);
    }
    tls::install_provider();
    prepare_process();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = %error, "cannot start the async runtime");
            return ExitCode::from(crate::exit::FAILED);
        }
    };
    tracing::info!(program = P::NAME, version = build_info(), "starting");
    let code = runtime.block_on(supervise(args, program));
    // Not `drop`: that waits without end for blocking work, and a detach may be asleep in the kernel.
    runtime.shutdown_timeout(BLOCKING_GRACE);
    code
}

/// Raises the limit of descriptors as far as allowed, since limits of connections follow from it. Keeps this
/// process's memory, which has keys and passwords, out of core dumps and from other processes of the same
/// user.
fn prepare_process() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of descriptors; fewer connections are possible");
    }
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "cannot keep other processes from reading this one's memory");
    }
}

async fn supervise<P, F>(args: P, program: impl FnOnce(P, Context) -> F) -> ExitCode
where
    P: Program,
    F: Future<Output = Result<(), Failure>>,
{
    let common = args.common().clone();
    let started = async {
        let shutdown = Shutdown::listen(common.shutdown_timeout).map_err(Failure::failed)?;
        let (stop, readiness) = (shutdown.token(), Readiness::default());
        let context = Context { giving_up: GivingUp::by(stop.clone()), stop, readiness };
        if let Some(addr) = common.http.metrics_listen {
            let listener = HttpListener::bind(addr).await.map_err(Failure::failed)?;
            let metrics = install_recorder(P::METRICS).map_err(Failure::failed)?;
            tracing::info!(addr = %listener.addr(), "metrics and health endpoint");
            let serving = listener.serve(metrics, context.readiness.clone(), context.stop.clone());
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(error = %Causes(&error), "the metrics and health endpoint has ended");
                }
            });
        }
        Ok::<_, Failure>((shutdown, context))
    };
    let (shutdown, context) = match started.await {
        Ok(started) => started,
        Err(failure) => return end(&failure),
    };
    let giving_up = context.giving_up.clone();
    tokio::select! {
        ended = program(args, context) => match (ended, giving_up.why()) {
            (Err(failure), _) => end(&failure),
            (Ok(()), Some(failure)) => end(failure),
            (Ok(()), None) => { tracing::info!("stopped"); ExitCode::SUCCESS }
        },
        () = shutdown.deadline() => ExitCode::from(SHUTDOWN_TIMED_OUT),
    }
}

fn end(failure: &Failure) -> ExitCode {
    tracing::error!(error = %failure, code = failure.code(), "ending");
    failure.into()
}

fn usage(error: &clap::Error) -> ExitCode {
    // Where even this cannot be written, the exit code still shows it.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(BAD_CONFIG),
    }
}

#[allow(clippy::print_stderr)] // logs are not up yet
fn eprint_line(line: &str) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Idle {
        #[command(flatten)]
        common: Common,
    }

    impl Program for Idle {
        const NAME: &'static str = "idle";

        fn common(&self) -> &Common {
            &self.common
        }
    }

    #[tokio::test]
    async fn a_program_that_gives_up_ends_with_an_error_code_however_it_stops() {
        let idle = || <Idle as clap::Parser>::parse_from(["idle"]);
        let until_stopped = async |_, context: Context| {
            context.stop.cancelled().await;
            Ok(())
        };
        let stopped = supervise(idle(), |args, context: Context| {
            context.stop.cancel();
            until_stopped(args, context)
        });
        assert_eq!(stopped.await, ExitCode::SUCCESS);
        let gave_up = supervise(idle(), |args, context: Context| {
            context.giving_up.because(Failure::failed("its socket is gone"));
            until_stopped(args, context)
        });
        assert_eq!(gave_up.await, ExitCode::from(crate::exit::FAILED));
    }
}
