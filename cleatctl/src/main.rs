//! `cleatctl`, the operator's command line.

fn main() -> std::process::ExitCode {
    cleatctl::main()
}
