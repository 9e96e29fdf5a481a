//! Certificates that are renewed while the program runs, and how long the current ones last.
//!
//! Comes in: the files of a side. Goes out: its newest certificates, a metric, and a line in the log while
//! there is still time to act.
//!
//! Always holds: a file that cannot be used changes nothing that works. A renewal by rename or by symlink
//! swap, as the kubelet does it, is seen within [`EVERY`].

use std::path::PathBuf;
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
    /// When a chain ends, with the first of its certificates; `None` if there are none.
    #[must_use]
    pub fn of_chain(of: &'static str, option: &'static str, chain: &[CertificateDer<'_>]) -> Option<Self> {
        Some(Self { of, option, at: super::peer::until(chain)? })
    }

    /// When a file of CAs ends, with the last of them; `None` if there are none. The others may be those of before, which
    /// stay there until they end: as long as one is valid, whoever shows a certificate of that one is believed.
    #[must_use]
    pub fn of_cas(of: &'static str, option: &'static str, cas: &[CertificateDer<'_>]) -> Option<Self> {
        Some(Self { of, option, at: super::peer::ends(cas).max()? })
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
        let read = |option, file: &Option<PathBuf>| {
            let pem = super::certificates(option, file.as_ref()?).ok()?;
            Some(super::parsed(&pem))
        };
        let own = read("--tls-cert", &self.tls_cert);
        let cas = read("--tls-ca", &self.tls_ca);
        let own = own.and_then(|chain| Expiry::of_chain("client", "--tls-cert", &chain));
        let cas = cas.and_then(|cas| Expiry::of_cas("server-ca", "--tls-ca", &cas));
        own.into_iter().chain(cas).collect()
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

    fn ending_in(year: i32) -> String {
        let mut params = rcgen::CertificateParams::new(vec![]).expect("params");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().expect("key")).expect("certificate").pem()
    }

    #[test]
    fn a_ca_file_is_complained_of_with_its_last_ca_and_a_chain_with_its_first() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("certificates.pem");
        let client =
            ClientTlsArgs { tls_ca: Some(file.clone()), tls_cert: Some(file.clone()), ..Default::default() };
        let (over, valid) = (ending_in(2000), ending_in(2999));
        for (pem, complained_of) in [
            (format!("{over}{valid}"), &["client"][..]),
            (format!("{valid}{over}"), &["client"]),
            (valid.clone(), &[]),
            (over.clone(), &["client", "server-ca"]),
        ] {
            std::fs::write(&file, &pem).expect("write");
            let ends = client.expiries();
            assert_eq!(ends.iter().map(|end| end.of).collect::<Vec<_>>(), ["client", "server-ca"]);
            let said: Vec<_> =
                ends.iter().filter(|end| end.complaint().is_some()).map(|end| end.of).collect();
            assert_eq!(said, complained_of, "{pem}");
        }
    }
}
