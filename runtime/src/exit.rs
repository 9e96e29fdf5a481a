//! How a binary ends: the few exit codes, and the failure that carries one.
//!
//! Comes in: whatever error stopped the program. Goes out: its exit code, and one line with every cause. A
//! bad configuration always differs from a failure at run time, because a restart does not mend it.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// The command line, or a file that it names, is wrong (`EX_USAGE` of sysexits.h).
pub const BAD_CONFIG: u8 = 64;
/// Something failed at run time.
pub const FAILED: u8 = 1;
/// `--shutdown-timeout` passed before everything had stopped (`EX_SOFTWARE` of sysexits.h).
pub const SHUTDOWN_TIMED_OUT: u8 = 70;

/// Why a program ends without success.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    source: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// The configuration is wrong: exit code 64.
    pub fn config(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { code: BAD_CONFIG, source: source.into() }
    }

    /// Something failed at run time: exit code 1.
    pub fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { code: FAILED, source: source.into() }
    }

    /// The exit code of the process.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Causes(self.source.as_ref()))
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        ExitCode::from(failure.code)
    }
}

/// An error with all its causes on one line, for the one place where it is logged.
///
/// A cause whose text already ends the line is not repeated (some errors include their source's text).
pub struct Causes<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read /x")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped: {0}")]
    struct SaysItsSource(#[source] std::io::Error);

    #[test]
    fn every_cause_is_on_the_line_once() {
        let failure = Failure::config(Outer(std::io::Error::other("gone")));
        assert_eq!(failure.to_string(), "cannot read /x: gone");
        assert_eq!(failure.code(), 64);
        let failure = Failure::failed(SaysItsSource(std::io::Error::other("gone")));
        assert_eq!(failure.to_string(), "wrapped: gone");
        assert_eq!(failure.code(), 1);
    }
}
