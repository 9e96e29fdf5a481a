//! Who is at the other end: what a client's certificate says of its holder.
//!
//! Comes in: the certificates of a handshake. Goes out: a [`Peer`].
//!
//! Always holds: a name counts only where the certificate has exactly one as a URI (`cleat://node/NAME`,
//! `cleat://operator/NAME`), and only on the listener for this kind. Everything else is refused with what was
//! shown and what is needed.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// What comes before kind and name in the URI of a certificate.
const SCHEME: &str = "cleat://";
/// The year 9999: certificates cannot express anything later.
const MOST_SECONDS: u64 = 253_402_300_800;
/// The longest name, in bytes: that of a host (RFC 1035).
const NAME_BYTES: usize = 253;

/// What a client is, by its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// The agent of a node: `cleat://node/NAME`.
    Node,
    /// A person, or a program that acts for one: `cleat://operator/NAME`.
    Operator,
}

impl ClientKind {
    /// The kind as it appears in a URI.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Operator => "operator",
        }
    }

    /// The option that names the CA of this kind's certificates.
    #[must_use]
    pub fn ca_option(self) -> &'static str {
        match self {
            Self::Node => "--agent-client-ca",
            Self::Operator => "--operator-client-ca",
        }
    }

    /// The option that names the listener for this kind.
    #[must_use]
    pub fn listen_option(self) -> &'static str {
        match self {
            Self::Node => "--agent-listen",
            Self::Operator => "--operator-listen",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Node => Self::Operator,
            Self::Operator => Self::Node,
        }
    }
}

/// A name that a certificate proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Whether it is a node or an operator.
    pub kind: ClientKind,
    /// The last part of the URI: unique among its kind.
    pub name: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.kind.word(), self.name)
    }
}

/// What the connection proves about its other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Nothing: there is no TLS.
    Anybody,
    /// A certificate proves this name, and it is of the kind that this listener is for.
    Known(Subject),
    /// There is TLS, and nothing proves who it is: the calls have to.
    Unproven,
    /// A certificate of the cluster's client CA is this user's.
    User {
        /// The common name.
        name: String,
        /// The organizations.
        groups: Vec<String>,
    },
    /// It may do nothing here; the text says why.
    Refused(String),
}

/// The other end of a connection, as every request on it finds it among its extensions.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address and port that it came from.
    pub address: SocketAddr,
    /// What the connection proves about it.
    pub who: Who,
    /// When the first certificate of the connection ends, theirs or ours; the connection ends with it. `None`
    /// without TLS.
    pub until: Option<SystemTime>,
    /// Set by who admits a call of a client of which the connection proves nothing: until then it is a stranger's.
    pub admitted: Arc<AtomicBool>,
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Its distinguished name, for messages.
    pub(super) subject: String,
    /// All its URIs that begin with ours, unchanged.
    pub(super) uris: Vec<String>,
    /// The end of its validity.
    pub(super) not_after: SystemTime,
}

/// Reads a certificate; `None` if the bytes are none.
pub(super) fn read(certificate: &CertificateDer<'_>) -> Option<Said> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = match parsed.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.clone(),
        Ok(None) => Vec::new(),
        // It is there twice, or broken: nothing in it counts.
        Err(_) => return None,
    };
    let uris = names.into_iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(uri.to_owned()),
        _ => None,
    });
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Some(Said {
        subject: parsed.subject().to_string(),
        uris: uris.collect(),
        // The second that is named belongs to the validity (RFC 5280, 4.1.2.5).
        not_after: UNIX_EPOCH + Duration::from_secs(seconds.saturating_add(1).min(MOST_SECONDS)),
    })
}

/// The last moment at which all of these are valid.
pub(super) fn until(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    ends(chain).min()
}

/// When each of them ends; one that cannot be read has ended.
pub(super) fn ends(certificates: &[CertificateDer<'_>]) -> impl Iterator<Item = SystemTime> {
    certificates.iter().map(|certificate| read(certificate).map_or(UNIX_EPOCH, |said| said.not_after))
}

/// The user of a cluster that a certificate of its client CA names, as an API server reads it.
pub(super) fn user(certificate: &CertificateDer<'_>) -> Who {
    let refused = |why: &str| Who::Refused(format!("the client certificate {why}"));
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return refused("cannot be read") };
    let mut names = parsed.subject().iter_common_name().map(AttributeTypeAndValue::as_str);
    let (Some(Ok(name)), None) = (names.next(), names.next()) else {
        return refused("has not exactly one common name, which is the user's");
    };
    if name.is_empty() {
        return refused("has an empty common name");
    }
    let groups = parsed.subject().iter_organization().map(|group| group.as_str().map(str::to_owned));
    match groups.collect() {
        Ok(groups) => Who::User { name: name.to_owned(), groups },
        Err(_) => refused("has an organization that is no text"),
    }
}

/// The subject that a URI names; `None` for a URI of another form.
fn subject(uri: &str) -> Option<Subject> {
    let (kind, name) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    let kind = [ClientKind::Node, ClientKind::Operator].into_iter().find(|known| known.word() == kind)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'@');
    let good = (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(plain);
    good.then(|| Subject { kind, name: name.to_owned() })
}

/// Judges a certificate on the listener for `kind`. `ours` says whether the CA of this kind has signed it.
pub(super) fn judge(kind: ClientKind, ours: bool, certificate: &CertificateDer<'_>) -> Who {
    let needed = format!(
        "here one of {} with the URI {SCHEME}{}/NAME is needed (subjectAltName; see docs/operating.md)",
        kind.ca_option(),
        kind.word()
    );
    let Some(said) = read(certificate) else {
        return Who::Refused(format!("cannot read the certificate; {needed}"));
    };
    let [uri] = said.uris.as_slice() else {
        let shown = if said.uris.is_empty() { "no".to_owned() } else { said.uris.join(" and ") };
        return Who::Refused(format!(
            "the certificate of {:?} has {shown} URI of the form {SCHEME}KIND/NAME; {needed}",
            said.subject
        ));
    };
    let Some(subject) = subject(uri) else {
        return Who::Refused(format!("the certificate's URI {uri:?} names nobody; {needed}"));
    };
    if subject.kind != kind {
        let other = kind.other();
        return Who::Refused(format!(
            "{subject} is the certificate of another kind: {}s are served at {}; {needed}",
            other.word(),
            other.listen_option()
        ));
    }
    if !ours {
        return Who::Refused(format!(
            "{subject} is signed by the CA of {}; {needed}",
            kind.other().ca_option()
        ));
    }
    Who::Known(subject)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["host.test".to_owned()]).expect("params");
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().expect("ascii")));
        }
        let key = KeyPair::generate().expect("key");
        params.self_signed(&key).expect("certificate").der().clone()
    }

    #[test]
    fn a_name_counts_as_its_kind_and_only_by_its_own_ca() {
        let node = certificate(&["https://elsewhere.test/x", "cleat://node/worker-1"]);
        let known = Subject { kind: ClientKind::Node, name: "worker-1".into() };
        assert_eq!(judge(ClientKind::Node, true, &node), Who::Known(known));
        for (kind, ours, words) in [
            (ClientKind::Node, false, ["cleat://node/worker-1", "--operator-client-ca"]),
            (ClientKind::Operator, true, ["cleat://node/worker-1", "--agent-listen"]),
            (ClientKind::Operator, false, ["cleat://node/worker-1", "cleat://operator/NAME"]),
        ] {
            let Who::Refused(why) = judge(kind, ours, &node) else { panic!("let in: {words:?}") };
            assert!(words.iter().all(|word| why.contains(word)), "{why}");
        }
    }

    #[test]
    fn a_cluster_s_user_is_the_common_name_and_its_groups_the_organizations() {
        let made = |names: &[(rcgen::DnType, &str)]| {
            let mut params = CertificateParams::new(vec![]).expect("params");
            params.distinguished_name = rcgen::DistinguishedName::new();
            for (kind, name) in names {
                params.distinguished_name.push(kind.clone(), *name);
            }
            let key = KeyPair::generate().expect("key");
            user(params.self_signed(&key).expect("certificate").der())
        };
        let (common, group) = (rcgen::DnType::CommonName, rcgen::DnType::OrganizationName);
        let known = Who::User { name: "alice".into(), groups: vec!["admins".into()] };
        assert_eq!(made(&[(common.clone(), "alice"), (group.clone(), "admins")]), known);
        for names in [&[][..], &[(group, "admins")], &[(common, "")]] {
            assert!(matches!(made(names), Who::Refused(_)), "{names:?}");
        }
        assert!(matches!(user(&CertificateDer::from(vec![1, 2])), Who::Refused(_)));
    }

    #[test]
    fn no_name_two_names_and_no_name_at_all_are_refused() {
        for (uris, said) in [
            (&[][..], "has no URI"),
            (&["cleat://node/a", "cleat://node/b"], "cleat://node/a and cleat://node/b"),
            (&["cleat://node/a", "cleat://operator/a"], "cleat://operator/a"),
            (&["cleat://node/"], "names nobody"),
            (&["cleat://node/a/b"], "names nobody"),
            (&["cleat://node/a%20b"], "names nobody"),
            (&["cleat://cluster/a"], "names nobody"),
        ] {
            let who = judge(ClientKind::Node, true, &certificate(uris));
            let Who::Refused(why) = who else { panic!("{uris:?} is let in as {who:?}") };
            assert!(why.contains(said) && why.contains("--agent-client-ca"), "{why}");
        }
        assert!(matches!(judge(ClientKind::Node, true, &CertificateDer::from(vec![1, 2])), Who::Refused(_)));
    }
}
