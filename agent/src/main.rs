//! `cleat-agent`, the node agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    cleat_runtime::run(cleat_agent::run::run)
}
