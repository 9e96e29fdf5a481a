//! TLS of a listener whose certificate somebody else makes and renews, in memory, and whose clients mostly have none.
//!
//! Comes in: a certificate with its key, and the CA of such certificates as clients may show. Goes out: for each connection,
//! a stream and what the handshake proves of the client, which may be nothing.
//!
//! Always holds: without a certificate of ours no handshake succeeds; a certificate that a client shows is of the given CA,
//! or the handshake fails; no session is resumed, so that none outlives what proved it.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::peer::{self, Who};

/// TLS of one listener. Cheap to clone.
#[derive(Clone, Default)]
pub struct IssuedTls {
    current: Arc<Mutex<Option<Arc<ServerConfig>>>>,
}

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Our certificate and its key.
    #[error("cannot serve the certificate that was made")]
    Own(#[source] rustls::Error),
    /// The CA of clients.
    #[error("cannot use the cluster's client CA")]
    Clients(#[source] io::Error),
}

impl IssuedTls {
    /// From now on this certificate is served. Clients may show one of these CAs'; without any, none is asked for.
    ///
    /// # Errors
    /// Where they cannot be used; what was served before stays.
    pub fn serve(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        client_cas: &[CertificateDer<'static>],
    ) -> Result<(), IssueError> {
        super::install_provider();
        let builder = ServerConfig::builder();
        let builder = if client_cas.is_empty() {
            builder.with_no_client_auth()
        } else {
            let wrong = |error: &dyn fmt::Display| IssueError::Clients(io::Error::other(error.to_string()));
            let mut roots = RootCertStore::empty();
            for ca in client_cas {
                roots.add(ca.clone()).map_err(|error| wrong(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated();
            builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(&error))?)
        };
        let mut config = builder.with_single_cert(chain, key).map_err(IssueError::Own)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session shows no certificate, and would outlive it.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(config));
        Ok(())
    }

    /// Stops serving: the certificate has ended, and there is no other.
    pub fn withdraw(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Does the handshake. Returns the stream, what is known of who is there, and until when.
    ///
    /// # Errors
    /// What went wrong, as rustls says it.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<(TlsStream<S>, Who, Option<SystemTime>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config =
            current.ok_or_else(|| io::Error::other("this controller has no certificate of its CA yet"))?;
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let Some(own) = chain.first() else { return Ok((stream, Who::Unproven, None)) };
        let (who, until) = (peer::user(own), peer::until(chain));
        Ok((stream, who, until))
    }
}

// Keys must not reach a log by way of `{:?}`.
impl fmt::Debug for IssuedTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IssuedTls(..)")
    }
}
