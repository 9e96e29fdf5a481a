//! What all programs share: arguments, logs, metrics and health endpoint, shutdown, TLS, gRPC transport.
//!
//! Comes in: command line and environment, signals, and files named on the command line. Goes out: validated
//! values and running listeners. Nothing here knows what a volume is.
//!
//! Always holds: configuration is checked before anything is bound or started, and every error names the
//! option, file or address that it is about.

pub mod authority;
pub mod date;
pub mod exit;
pub mod grpc;
pub mod http;
pub mod hush;
pub mod listen;
pub mod logs;
pub mod metrics;
pub mod options;
pub mod program;
pub mod readiness;
pub mod shutdown;
pub mod text;
pub mod tls;
pub mod unix;

pub use exit::Failure;
pub use program::{Common, Context, Program, run};

/// The version of this build, as `--version`, logs and metrics show it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `git describe` of the tree that this was built from; `None` where the build did not set
/// `CLEAT_GIT_DESCRIBE`.
pub const GIT_DESCRIBE: Option<&str> = option_env!("CLEAT_GIT_DESCRIBE");

/// Version and, where known, tree of this build, for a person.
pub fn build_info() -> String {
    match GIT_DESCRIBE {
        Some(tree) => format!("{VERSION} ({tree})"),
        None => VERSION.to_owned(),
    }
}
