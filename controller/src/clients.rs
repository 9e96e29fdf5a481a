//! Who may call what: agents their sessions, operators everything else, each by its certificate.
//!
//! In come requests with what the listener knows of their other end; out go requests with a [`Caller`], or a refusal
//! that says what was shown and what is needed. What always holds: without a [`Caller`] no service does anything.

use std::sync::Arc;
use std::time::SystemTime;

use cleat_runtime::hush::Hush;
use cleat_runtime::tls::{ClientKind, Peer, ServerTransport, Who};
use tonic::{Request, Status};

use crate::metrics;

/// How clients are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// By their certificates.
    Certified,
    /// Not at all: each is taken for who it says it is. For tests.
    Anybody,
}

impl From<&ServerTransport> for Clients {
    fn from(transport: &ServerTransport) -> Self {
        match transport {
            ServerTransport::Plaintext => Self::Anybody,
            ServerTransport::Tls(_) => Self::Certified,
        }
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Its certificate proves this name, until then.
    Known {
        /// The name among its kind.
        name: String,
        /// The last moment at which that is proven.
        until: Option<SystemTime>,
    },
    /// Nothing proves who it is, and nothing has to.
    Anybody {
        /// From where it calls.
        from: String,
    },
}

impl Caller {
    /// Who calls, as an interceptor has found out.
    ///
    /// # Errors
    /// If none has: then nobody may do anything.
    #[allow(clippy::result_large_err)] // tonic's own
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("this service does not learn who calls"))
    }

    /// In whose name something is done.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Known { name, .. } => name.clone(),
            Self::Anybody { from } => format!("anybody (no TLS), from {from}"),
        }
    }
}

impl Clients {
    /// What stands in front of a service for clients of one kind.
    #[allow(clippy::result_large_err)] // tonic's own
    pub fn admit(
        self,
        kind: ClientKind,
    ) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync {
        let hush = Arc::new(Hush::default());
        move |mut request: Request<()>| {
            let caller = self.judge(kind, &request).inspect_err(|status| {
                metrics::client_refused(kind);
                hush.warn(|skipped| {
                    let from = from(&request);
                    tracing::warn!(
                        kind = kind.word(),
                        from,
                        skipped,
                        reason = status.message(),
                        "client refused"
                    );
                });
            })?;
            request.extensions_mut().insert(caller);
            Ok(request)
        }
    }

    #[allow(clippy::result_large_err)] // tonic's own
    fn judge(self, kind: ClientKind, request: &Request<()>) -> Result<Caller, Status> {
        let peer = request.extensions().get::<Peer>();
        match (self, peer.map(|peer| (&peer.who, peer.until))) {
            (Self::Anybody, Some((Who::Anybody, _)) | None) => Ok(Caller::Anybody { from: from(request) }),
            (_, Some((Who::Known(subject), until))) if subject.kind == kind => {
                Ok(Caller::Known { name: subject.name.clone(), until })
            }
            (_, Some((Who::Refused(why), _))) => Err(Status::permission_denied(why.clone())),
            (_, Some((Who::Known(subject), _))) => {
                Err(Status::permission_denied(format!("{subject} is not a {}", kind.word())))
            }
            (Self::Certified, Some((Who::Anybody, _)) | None) => Err(Status::permission_denied(format!(
                "no certificate was shown; cleat://{}/NAME is needed",
                kind.word()
            ))),
        }
    }
}

fn from<T>(request: &Request<T>) -> String {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.address).or_else(|| request.remote_addr());
    peer.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_runtime::tls::Subject;
    use tonic::Code;

    use super::*;

    fn request(who: Option<Who>) -> Request<()> {
        let mut request = Request::new(());
        if let Some(who) = who {
            let address = ([10, 0, 0, 1], 4000).into();
            request.extensions_mut().insert(Peer { address, who, until: None });
        }
        request
    }

    fn known(kind: ClientKind) -> Who {
        Who::Known(Subject { kind, name: "a".into() })
    }

    #[test]
    fn only_a_certificate_of_the_services_own_kind_makes_a_caller() {
        let admit = Clients::Certified.admit(ClientKind::Operator);
        let caller = Caller::of(&admit(request(Some(known(ClientKind::Operator)))).unwrap()).unwrap();
        assert_eq!(caller, Caller::Known { name: "a".into(), until: None });
        let refused = Who::Refused("cleat://node/x".into());
        for who in [None, Some(Who::Anybody), Some(known(ClientKind::Node)), Some(refused)] {
            assert_eq!(admit(request(who)).unwrap_err().code(), Code::PermissionDenied);
        }
        assert!(Caller::of(&request(Some(known(ClientKind::Operator)))).is_err(), "nobody has looked");
    }

    #[test]
    fn without_tls_a_caller_is_anybody_and_is_called_so() {
        let admit = Clients::Anybody.admit(ClientKind::Operator);
        let caller = Caller::of(&admit(request(Some(Who::Anybody))).unwrap()).unwrap();
        assert_eq!(caller.name(), "anybody (no TLS), from 10.0.0.1:4000");
        assert!(admit(request(Some(known(ClientKind::Node)))).is_err());
    }
}
