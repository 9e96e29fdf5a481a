//! The CA of the controller's own certificate: made once for all replicas, kept in a Secret, published in a ConfigMap, and
//! replaced before it ends.
//!
//! In comes the time; out goes an [`Authority`] that signs. What holds:
//! - Each write is made against the version that was read, so of two replicas that begin at once one makes the CA.
//! - Whoever signs is in the ConfigMap, as it was read after the Secret said so; the next CA has been there for
//!   [`CaTimes::overlap`] before it signs, and the one before stays until it ends.
//! - A Secret with other content is named, and never written over.

mod certificates;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use crate::api::{ApiError, ApiServer};
use certificates::{Ca, CaCertificate};
pub use certificates::{CertificateError, ServingCertificate, check_name};

/// Under which key of the ConfigMap the CA's certificates are.
pub const PUBLISHED: &str = "ca.crt";
const CURRENT: [&str; 2] = ["ca.crt", "ca.key"];
const NEXT: [&str; 2] = ["next.crt", "next.key"];
const NEXT_PUBLISHED: &str = "next-published";
const PREVIOUS: &str = "previous.crt";
/// What says that a Secret is ours: a type is given once, and never changed.
const SECRET_TYPE: &str = "cleat.io/serving-ca";
/// A step is followed by the next one; more than these mean that somebody else keeps writing.
const MOST_STEPS: usize = 16;

/// How long a CA is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaTimes {
    /// How long one is valid.
    pub lifetime: Duration,
    /// How long before its end the next one is made.
    pub renew_before: Duration,
    /// How long the next one is published before it signs: longer than clients take to see it.
    pub overlap: Duration,
}

impl Default for CaTimes {
    fn default() -> Self {
        let day = Duration::from_secs(86_400);
        Self { lifetime: day * 365, renew_before: day * 90, overlap: day }
    }
}

/// Why there is no CA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The API server.
    #[error("cannot keep the CA in {what}: {source}")]
    Api {
        /// Which object.
        what: String,
        /// Its answer.
        #[source]
        source: ApiError,
    },
    /// It holds something else.
    #[error(
        "Secret {secret} does not hold the controller's CA: {source}. Nothing is written over it: mend it; or delete it, \
         and the controller makes a new CA"
    )]
    Content {
        /// Its namespace and name.
        secret: String,
        /// What is wrong.
        #[source]
        source: CertificateError,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Make(CertificateError),
    /// Others write, too.
    #[error("Secret {secret} and its ConfigMap were written by others again and again; asking again")]
    Busy {
        /// Its namespace and name.
        secret: String,
    },
}

/// Who may sign, and does not show it.
pub struct Authority {
    ca: Ca,
    published: String,
}

impl Authority {
    /// Signs a certificate for a server of these names; it ends with the CA at the latest.
    ///
    /// # Errors
    /// What the library says.
    pub fn issue(
        &self,
        names: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<ServingCertificate, CaError> {
        self.ca.issue(names, now, lifetime).map_err(CaError::Make)
    }

    /// When it ends.
    #[must_use]
    pub fn until(&self) -> SystemTime {
        self.ca.certificate.until
    }

    /// The certificates that clients are given, PEM.
    #[must_use]
    pub fn published(&self) -> &str {
        &self.published
    }

    /// Whether both sign by the same certificate.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.ca.certificate.der == other.ca.certificate.der
    }
}

/// Where the CA is kept.
#[derive(Clone)]
pub struct ServingCa {
    server: ApiServer,
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    namespace: String,
    secret: String,
    map: String,
    times: CaTimes,
}

/// What the Secret holds.
#[derive(Clone, PartialEq, Eq)]
struct Kept {
    current: Ca,
    next: Option<Next>,
    previous: Option<CaCertificate>,
}

#[derive(Clone, PartialEq, Eq)]
struct Next {
    ca: Ca,
    /// Since when it is known to be in the ConfigMap.
    published: Option<SystemTime>,
}

impl ServingCa {
    /// In that Secret, published in that ConfigMap.
    #[must_use]
    pub fn new(server: ApiServer, namespace: &str, secret: &str, map: &str, times: CaTimes) -> Self {
        Self {
            secrets: Api::namespaced(server.client.clone(), namespace),
            maps: Api::namespaced(server.client.clone(), namespace),
            server,
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            map: map.to_owned(),
            times,
        }
    }

    /// Does what is due, and gives whoever signs now.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn tend(&self, now: SystemTime) -> Result<Authority, CaError> {
        for _ in 0..MOST_STEPS {
            // In this order: what is written to the map is of a Secret that is newer than the map was.
            let map = self.read(&self.maps, "ConfigMap", &self.map).await?;
            let secret = self.read(&self.secrets, "Secret", &self.secret).await?;
            let published = map.as_ref().and_then(|map| map.data.as_ref()?.get(PUBLISHED).cloned());
            let kept = secret.as_ref().map(|secret| self.parse(secret)).transpose()?;
            let due = plan(kept.as_ref(), published.as_deref().unwrap_or_default(), now, self.times);
            if let Some(due) = due.map_err(CaError::Make)? {
                self.keep(secret, &due).await?;
                continue;
            }
            let Some(kept) = kept else { continue };
            let bundle = kept.bundle();
            if published.as_ref() == Some(&bundle) {
                return Ok(Authority { ca: kept.current, published: bundle });
            }
            self.publish(map, bundle).await?;
        }
        Err(CaError::Busy { secret: self.name(&self.secret) })
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace)
    }

    fn parse(&self, secret: &Secret) -> Result<Kept, CaError> {
        let ours = secret.type_.as_deref() == Some(SECRET_TYPE);
        let problem = || format!("it is {:?}, not {SECRET_TYPE:?}", secret.type_.as_deref().unwrap_or(""));
        let kept = match ours {
            true => Kept::parse(secret.data.as_ref().unwrap_or(&BTreeMap::new())),
            // Whatever is in it: it is somebody else's, and would be lost when it is written over.
            false => Err(CertificateError::Content { key: "type", problem: problem() }),
        };
        kept.map_err(|source| CaError::Content { secret: self.name(&self.secret), source })
    }

    async fn read<T>(&self, api: &Api<T>, kind: &str, name: &str) -> Result<Option<T>, CaError>
    where
        T: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        match self.server.ask(api.get(name)).await {
            Ok(there) => Ok(Some(there)),
            Err(ApiError::NotFound) => Ok(None),
            Err(source) => Err(CaError::Api { what: format!("{kind} {}", self.name(name)), source }),
        }
    }

    /// A conflict means that somebody else was first: what is there is read again.
    fn written<T>(&self, kind: &str, name: &str, answer: Result<T, ApiError>) -> Result<(), CaError> {
        match answer {
            Ok(_) | Err(ApiError::Conflict | ApiError::NotFound) => Ok(()),
            Err(source) => Err(CaError::Api { what: format!("{kind} {}", self.name(name)), source }),
        }
    }

    async fn keep(&self, there: Option<Secret>, kept: &Kept) -> Result<(), CaError> {
        let as_usual = PostParams::default();
        let data = Some(kept.texts());
        let answer = match there {
            Some(there) => {
                let mut secret = Secret { data, ..there };
                secret.metadata.managed_fields = None;
                self.server.ask(self.secrets.replace(&self.secret, &as_usual, &secret)).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(self.secret.clone()), ..ObjectMeta::default() };
                let type_ = Some(SECRET_TYPE.to_owned());
                let secret = Secret { metadata, data, type_, ..Secret::default() };
                self.server.ask(self.secrets.create(&as_usual, &secret)).await
            }
        };
        self.written("Secret", &self.secret, answer)
    }

    async fn publish(&self, there: Option<ConfigMap>, bundle: String) -> Result<(), CaError> {
        let as_usual = PostParams::default();
        let lines = BTreeMap::from([(PUBLISHED.to_owned(), bundle)]);
        let answer = match there {
            Some(mut map) => {
                map.metadata.managed_fields = None;
                map.data.get_or_insert_default().extend(lines);
                self.server.ask(self.maps.replace(&self.map, &as_usual, &map)).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(self.map.clone()), ..ObjectMeta::default() };
                let map = ConfigMap { metadata, data: Some(lines), ..ConfigMap::default() };
                self.server.ask(self.maps.create(&as_usual, &map)).await
            }
        };
        self.written("ConfigMap", &self.map, answer)
    }
}

impl Kept {
    fn parse(data: &BTreeMap<String, ByteString>) -> Result<Self, CertificateError> {
        let text = |key: &'static str| {
            let text = data.get(key).map(|bytes| std::str::from_utf8(&bytes.0));
            let wrong = |_| CertificateError::Content { key, problem: "this is no text".into() };
            text.transpose().map_err(wrong)
        };
        let needed = |key: &'static str| {
            let missing = || CertificateError::Content { key, problem: "it is missing".into() };
            text(key)?.ok_or_else(missing)
        };
        let ours = [CURRENT[0], CURRENT[1], NEXT[0], NEXT[1], NEXT_PUBLISHED, PREVIOUS];
        if let Some(key) = data.keys().find(|key| !ours.contains(&key.as_str())) {
            return Err(CertificateError::Content {
                key: "data",
                problem: format!("{key:?} is none of ours"),
            });
        }
        let pair = |keys: [&'static str; 2]| Ca::parse(keys, needed(keys[0])?, needed(keys[1])?);
        let next = if text(NEXT[0])?.is_some() || text(NEXT[1])?.is_some() {
            let wrong =
                |_| CertificateError::Content { key: NEXT_PUBLISHED, problem: "this is no time".into() };
            let published = text(NEXT_PUBLISHED)?.map(humantime::parse_rfc3339).transpose().map_err(wrong)?;
            Some(Next { ca: pair(NEXT)?, published })
        } else {
            None
        };
        let previous = text(PREVIOUS)?.map(|pem| CaCertificate::parse(PREVIOUS, pem)).transpose()?;
        Ok(Self { current: pair(CURRENT)?, next, previous })
    }

    fn texts(&self) -> BTreeMap<String, ByteString> {
        let pair = |keys: [&'static str; 2], ca: &Ca| {
            keys.into_iter().zip([ca.certificate.pem.clone(), ca.key.clone()]).collect::<Vec<_>>()
        };
        let mut texts = pair(CURRENT, &self.current);
        if let Some(next) = &self.next {
            texts.extend(pair(NEXT, &next.ca));
            let published = next.published.map(|at| humantime::format_rfc3339_seconds(at).to_string());
            texts.extend(published.map(|at| (NEXT_PUBLISHED, at)));
        }
        texts.extend(self.previous.as_ref().map(|previous| (PREVIOUS, previous.pem.clone())));
        texts.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()
    }

    /// What clients are given: who signs first.
    fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.ca.certificate);
        let all = [Some(&self.current.certificate), next, self.previous.as_ref()];
        all.into_iter().flatten().map(|certificate| format!("{}\n", certificate.pem.trim())).collect()
    }

    fn promoted(self, ca: Ca) -> Self {
        Self { current: ca, next: None, previous: Some(self.current.certificate) }
    }
}

/// What the Secret should hold instead; `None`: what it holds.
fn plan(
    kept: Option<&Kept>,
    published: &str,
    now: SystemTime,
    times: CaTimes,
) -> Result<Option<Kept>, CertificateError> {
    let Some(kept) = kept else {
        let current = Ca::make(now, times.lifetime)?;
        return Ok(Some(Kept { current, next: None, previous: None }));
    };
    let mut due = kept.clone();
    due.previous = due.previous.filter(|previous| !previous.ended(now));
    // One that ended before it ever signed.
    due.next = due.next.filter(|next| !next.ca.certificate.ended(now));
    let overlap_ends = |at: SystemTime| at + times.overlap <= now;
    match due.next.clone() {
        None if kept.current.certificate.until <= now + times.renew_before => {
            let ca = Ca::make(now, times.lifetime)?;
            due.next = Some(Next { ca, published: None });
        }
        None => {}
        Some(Next { ca, published: None }) if published.contains(ca.certificate.pem.trim()) => {
            due.next = Some(Next { ca, published: Some(now) });
        }
        // With the current one over nobody can be served but by the next one.
        Some(Next { ca, published: Some(at) }) if overlap_ends(at) || kept.current.certificate.ended(now) => {
            due = due.promoted(ca);
            due.previous = due.previous.filter(|previous| !previous.ended(now));
        }
        Some(_) => {}
    }
    Ok((due != *kept).then_some(due))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const TIMES: CaTimes = CaTimes {
        lifetime: Duration::from_secs(30 * 86_400),
        renew_before: Duration::from_secs(10 * 86_400),
        overlap: DAY,
    };

    fn step(kept: Option<&Kept>, published: &str, now: SystemTime) -> Option<Kept> {
        let due = plan(kept, published, now, TIMES).unwrap();
        // What is written is what is read.
        due.inspect(|due| assert!(Kept::parse(&due.texts()).unwrap() == *due))
    }

    fn whole_seconds() -> SystemTime {
        let since = SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        std::time::UNIX_EPOCH + Duration::from_secs(since.as_secs())
    }

    #[test]
    fn the_next_ca_signs_only_after_it_was_published_for_the_overlap() {
        let begun = whole_seconds();
        let first = step(None, "", begun).unwrap();
        assert!(step(Some(&first), &first.bundle(), begun + DAY * 19).is_none(), "there is time");
        let due = begun + DAY * 21;
        let prepared = step(Some(&first), &first.bundle(), due).unwrap();
        assert!(prepared.current == first.current && prepared.next.is_some());
        assert!(prepared.bundle().contains(&first.bundle()), "both are published");
        // However long it takes: it is not published, so it does not sign.
        assert!(step(Some(&prepared), &first.bundle(), due + DAY * 5).is_none());
        let noted = step(Some(&prepared), &prepared.bundle(), due + DAY).unwrap();
        assert!(noted.current == first.current);
        assert!(step(Some(&noted), &noted.bundle(), due + DAY + DAY / 2).is_none());
        let after = step(Some(&noted), &noted.bundle(), due + DAY * 2).unwrap();
        assert!(after.current == prepared.next.unwrap().ca && after.next.is_none());
        assert!(after.bundle().contains(&first.bundle()), "what the one before has signed is believed");
        let gone = step(Some(&after), &after.bundle(), begun + DAY * 30).unwrap();
        assert!(gone.previous.is_none() && gone.current == after.current);
        assert!(step(Some(&gone), &gone.bundle(), begun + DAY * 30).is_none());
    }

    #[test]
    fn a_ca_that_has_ended_is_followed_without_waiting() {
        let begun = whole_seconds();
        let (first, late) = (step(None, "", begun).unwrap(), begun + DAY * 60);
        let prepared = step(Some(&first), &first.bundle(), late).unwrap();
        let noted = step(Some(&prepared), &prepared.bundle(), late).unwrap();
        let after = step(Some(&noted), &noted.bundle(), late).unwrap();
        assert!(!after.current.certificate.ended(late) && after.previous.is_none() && after.next.is_none());
    }

    #[test]
    fn a_secret_of_somebody_else_is_refused_by_the_key_that_is_wrong() {
        let whole = step(None, "", whole_seconds()).unwrap().texts();
        for (key, text, said) in [
            ("ca.crt", None, "ca.crt: it is missing"),
            ("ca.key", None, "ca.key: it is missing"),
            ("ca.key", Some("x"), "ca.key"),
            ("next.crt", Some("x"), "next.key: it is missing"),
            ("next.key", Some("x"), "next.crt: it is missing"),
            ("previous.crt", Some("x"), "previous.crt"),
            ("tls.crt", Some("x"), "tls.crt"),
        ] {
            let mut texts = whole.clone();
            texts.remove(key);
            texts.extend(text.map(|text| (key.to_owned(), ByteString(text.into()))));
            let refused = Kept::parse(&texts).map(drop).unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
        assert!(Kept::parse(&BTreeMap::new()).is_err(), "an empty Secret is somebody's, too");
    }
}
