//! Certificates that are renewed while the program runs, and how long the current ones last.
//!
//! Comes in: the files of a side. Goes out: its newest certificates, a metric, and a line in the log while
//! there is still time to act.
//!
//! Always holds: a file that cannot be used changes nothing that works. A renewal by rename or by symlink
//! swap, as the kubelet does it, is seen within [`EVERY`].

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use super::{ClientTlsArgs, ServerTls};
use crate::exit::Causes;
use crate::metrics::CERTIFICATE_EXPIRY;

/// Time between two readings of the files.
pub const EVERY: Duration = Duration::from_secs(2);
/// From how long before its end a certificate is complained about.
pub const SOON: Duration = Duration::from_secs(7 * 86_400);
/// Time between two complaints about one that ends soon.
const COMPLAIN_EVERY: Duration = Duration::from_secs(3600);

/// The end of a certificate, or of a file of CAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// What it is for: the metric's label.
    pub of: &'static str,
    /// The option that names its file, or who shows it.
    pub option: &'static str,
    /// The end of its validity.
    pub at: SystemTime,
}

impl Expiry {
    /// When the first of these certificates ends; `None` if there are none.
    #[must_use]
    pub fn of_first(
        of: &'static str,
        option: &'static str,
        certificates: &[CertificateDer<'_>],
    ) -> Option<Self> {
        Some(Self { of, option, at: super::peer::until(certificates)? })
    }

    /// How long it is still valid; zero if it is over.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.at.duration_since(SystemTime::now()).unwrap_or_default()
    }

    /// What to do, where it ends soon; `None` while there is time.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let left = Duration::from_secs(self.left().as_secs());
        let when = humantime::format_rfc3339_seconds(self.at);
        let Self { of, option, .. } = self;
        match left {
            Duration::ZERO => {
                Some(format!("the {of} certificate ({option}) expired at {when}: renew it now"))
            }
            left if left < SOON => Some(format!(
                "the {of} certificate ({option}) expires at {when}, in {}: renew it, which needs no restart",
                humantime::format_duration(left)
            )),
            _ => None,
        }
    }
}

/// Why changed files cannot be used.
pub type Unusable = Box<dyn std::error::Error + Send + Sync>;

/// Something that has certificates in files.
pub trait Renewable: Send + Sync + 'static {
    /// Reads the files again; true if anything was new. Blocks for as long as the disk does.
    ///
    /// # Errors
    /// Where a file cannot be used; what was read before stays.
    fn refresh(&self) -> Result<bool, Unusable>;

    /// When each certificate that was last read ends.
    fn expiries(&self) -> Vec<Expiry>;
}

impl Renewable for ServerTls {
    fn refresh(&self) -> Result<bool, Unusable> {
        Ok(Self::refresh(self)?)
    }

    fn expiries(&self) -> Vec<Expiry> {
        let own = self.until().map(|at| Expiry { of: "server", option: "--tls-cert", at });
        own.into_iter().chain(self.cas()).collect()
    }
}

impl Renewable for ClientTlsArgs {
    /// Each connect reads the files, so there is nothing to keep.
    fn refresh(&self) -> Result<bool, Unusable> {
        self.load()?;
        Ok(false)
    }

    fn expiries(&self) -> Vec<Expiry> {
        let files = [("client", "--tls-cert", &self.tls_cert), ("server-ca", "--tls-ca", &self.tls_ca)];
        let read = files.into_iter().filter_map(|(of, option, file)| {
            let pem = super::certificates(option, file.as_ref()?).ok()?;
            Expiry::of_first(of, option, &super::parsed(&pem))
        });
        read.collect()
    }
}

/// Reads the files again and again, until `stop`.
pub async fn keep_fresh(files: Arc<dyn Renewable>, stop: CancellationToken) {
    let mut complained: Option<tokio::time::Instant> = None;
    let mut trouble = String::new();
    loop {
        let looked = {
            let files = Arc::clone(&files);
            tokio::task::spawn_blocking(move || {
                (files.refresh().map_err(|error| Causes(error.as_ref()).to_string()), files.expiries())
            })
        };
        // A reading that panicked counts as none.
        if let Ok((refreshed, expiries)) = looked.await {
            match &refreshed {
                Ok(true) => tracing::info!("read renewed certificates, keys or CAs"),
                Ok(false) if !trouble.is_empty() => tracing::info!("TLS files are usable again"),
                Err(error) if *error != trouble => {
                    tracing::error!(%error, "cannot use the TLS files; keeping what was read before");
                }
                Ok(false) | Err(_) => {}
            }
            trouble = refreshed.err().unwrap_or_default();
            complain(&expiries, &mut complained);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

fn complain(expiries: &[Expiry], complained: &mut Option<tokio::time::Instant>) {
    for expiry in expiries {
        let at = expiry.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        metrics::gauge!(CERTIFICATE_EXPIRY.name, "use" => expiry.of).set(at);
    }
    if complained.is_some_and(|last| last.elapsed() < COMPLAIN_EVERY) {
        return;
    }
    let complaints: Vec<String> = expiries.iter().filter_map(Expiry::complaint).collect();
    *complained = (!complaints.is_empty()).then(tokio::time::Instant::now);
    for complaint in complaints {
        tracing::warn!("{complaint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_complained_of_days_before_it_comes() {
        let end =
            |left: Duration| Expiry { of: "server", option: "--tls-cert", at: SystemTime::now() + left };
        assert_eq!(end(Duration::from_secs(8 * 86_400)).complaint(), None);
        let soon = end(Duration::from_secs(3 * 86_400)).complaint().expect("soon");
        assert!(soon.contains("--tls-cert") && soon.contains("in 2days"), "{soon}");
        let over = Expiry { of: "client", option: "--tls-cert", at: UNIX_EPOCH }.complaint().expect("over");
        assert!(over.contains("expired at 1970-01-01T00:00:00Z"), "{over}");
    }
}
