//! The controller's binary.

use cleat_controller::{app, maintenance};

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).is_some_and(|word| maintenance::COMMANDS.contains(&word.as_str())) {
        return cleat_runtime::run(maintenance::run);
    }
    cleat_runtime::run(app::run)
}
