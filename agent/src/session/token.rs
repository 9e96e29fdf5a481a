//! The token by which the API server knows this agent: read from its file for each session, and again while one stands,
//! since the kubelet renews it.
//!
//! Comes in: a file. Goes out: a [`Token`], which nothing ever shows.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};

/// How long reading the file may take.
const READ: Duration = Duration::from_secs(2);
/// Larger than any token of an API server.
const MOST_BYTES: usize = 12 << 10;

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile(pub PathBuf);

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

// It must not reach a log by way of `{:?}`.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token {} (--token-file)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// There is something else in it.
    #[error("cannot use {} (--token-file): it holds no token", path.display())]
    None {
        /// The file.
        path: PathBuf,
    },
}

impl TokenFile {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read in time, or holds no token.
    pub async fn read(&self) -> Result<Token, TokenError> {
        let path = || self.0.clone();
        let read = timeout(READ, tokio::fs::read_to_string(&self.0)).await;
        let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the file system does not answer");
        let text =
            read.map_err(late).flatten().map_err(|source| TokenError::Read { path: path(), source })?;
        let token = text.trim();
        let plain = |byte: u8| byte.is_ascii_graphic();
        if token.is_empty() || token.len() > MOST_BYTES || !token.bytes().all(plain) {
            return Err(TokenError::None { path: path() });
        }
        Ok(Token(token.to_owned()))
    }
}

impl Token {
    /// As it goes into a call.
    pub(super) fn header(&self) -> Option<MetadataValue<Ascii>> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", self.0).parse().ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// As it goes into a message.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_without_a_token_is_named_and_a_token_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile(dir.path().join("token"));
        assert!(file.read().await.unwrap_err().to_string().contains("--token-file"));
        for wrong in ["", "\n", "two words", "line\nline", "\u{e9}"] {
            std::fs::write(&file.0, wrong).unwrap();
            assert!(matches!(file.read().await, Err(TokenError::None { .. })), "{wrong:?}");
        }
        std::fs::write(&file.0, "a.b-c_d.e\n").unwrap();
        let token = file.read().await.unwrap();
        assert_eq!(token.header().unwrap(), "Bearer a.b-c_d.e");
        assert!(!format!("{token:?} {:?}", token.header()).contains("a.b"));
    }
}
