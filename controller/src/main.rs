//! The controller's binary.

fn main() -> std::process::ExitCode {
    cleat_runtime::run(cleat_controller::app::run)
}
