//! How live migrations end, a process for each scene.
//!
//! | variable | |
//! | --- | --- |
//! | `CLEAT_SIM_LOG=FILTER` | what the programs log, too, of a scene that fails |

use std::process::{Command, ExitCode};

use cleat_sim::ends::{EndScene, SCENES, play};
use libtest_mimic::{Arguments, Failed, Trial};

/// In a process of its own: which scene.
const CHILD: &str = "CLEAT_SIM_SCENE";
/// Lines of the trace that are shown of a scene that failed.
const SHOWN: usize = 80;

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return SCENES.iter().find(|scene| scene.name == name).map_or(ExitCode::FAILURE, one);
    }
    let trial = |scene: &'static EndScene| Trial::test(scene.name, move || in_its_own_process(scene.name));
    libtest_mimic::run(&Arguments::from_args(), SCENES.iter().map(trial).collect()).exit_code()
}

/// Plays it in this process.
#[allow(clippy::print_stderr)]
fn one(scene: &EndScene) -> ExitCode {
    if let Ok(filter) = std::env::var("CLEAT_SIM_LOG") {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let (amiss, trace) = play(scene);
    let Some(amiss) = amiss else { return ExitCode::SUCCESS };
    for line in trace.iter().skip(trace.len().saturating_sub(SHOWN)) {
        eprintln!("{line}");
    }
    eprintln!("{amiss}");
    ExitCode::FAILURE
}

fn in_its_own_process(name: &str) -> Result<(), Failed> {
    let output = Command::new(std::env::current_exe()?).env(CHILD, name).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}
