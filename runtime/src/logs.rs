//! Logs: their options, and the one global subscriber.
//!
//! Everything goes to standard error, so that standard output stays free for answers. A panic anywhere in the
//! process is logged in the same form as everything else, with its place.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text for people.
    #[default]
    Text,
    /// One JSON object a line, its fields flat.
    Json,
}

/// Options for logs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// Form of log lines on standard error
    #[arg(long, value_enum, default_value_t, env = "CLEAT_LOG_FORMAT")]
    pub log_format: LogFormat,

    /// What to log: a level, or directives such as `info,cleat_agent=debug`
    #[arg(long, value_name = "DIRECTIVES", default_value = "info", env = "CLEAT_LOG")]
    pub log_filter: String,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter has a directive that is not valid.
    #[error("cannot use --log-filter (or CLEAT_LOG) {filter:?}")]
    Filter {
        /// The filter that was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has a global subscriber already.
    #[error("cannot set up logs")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

impl LogArgs {
    /// Installs the global subscriber, and a panic hook that logs through it.
    ///
    /// # Errors
    /// Where the filter is not valid, or a subscriber is installed already.
    pub fn init(&self) -> Result<(), LogError> {
        let filter = EnvFilter::try_new(&self.log_filter)
            .map_err(|source| LogError::Filter { filter: self.log_filter.clone(), source })?;
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => lines.with_ansi(false).finish().try_init(),
            LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).finish().try_init(),
        }
        .map_err(LogError::AlreadySet)?;
        log_panics();
        Ok(())
    }
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let payload = panic.payload();
        let said = payload.downcast_ref::<&str>().copied();
        let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        tracing::error!(
            place,
            thread = thread.name().unwrap_or("unnamed"),
            message = said.unwrap_or("panicked without a message"),
        );
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_by_name_before_anything_is_set() {
        let args = LogArgs { log_format: LogFormat::Text, log_filter: "cleat=loudest".into() };
        let error = args.init().expect_err("the filter is nonsense");
        assert!(error.to_string().contains("cleat=loudest"), "{error}");
    }
}
