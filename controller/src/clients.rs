//! Who may call what: agents their sessions, operators everything else, each by its certificate, or as the cluster says.
//!
//! In come requests with what the listener knows of their other end; out go requests with a [`Caller`], or a refusal
//! that says what was shown and what is needed. What always holds: without a [`Caller`] no service does anything.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::SystemTime;

use cleat_kubernetes::reviews::{ClusterUser, Right};
use cleat_runtime::hush::Hush;
use cleat_runtime::listen::network;
use cleat_runtime::tls::{ClientKind, Peer, ServerTransport, Who};
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Status};
use tower::Service;

use crate::metrics;
use crate::trust::{ClusterTrust, KnownAgent};

/// How clients are known.
#[derive(Clone, Debug)]
pub enum Clients {
    /// By their certificates.
    Certified,
    /// By the cluster.
    OfCluster(ClusterTrust),
    /// Not at all: each is taken for who it says it is. For tests.
    Anybody,
}

impl From<&ServerTransport> for Clients {
    fn from(transport: &ServerTransport) -> Self {
        match transport {
            ServerTransport::Plaintext => Self::Anybody,
            ServerTransport::Tls(_) | ServerTransport::Issued(_) => Self::Certified,
        }
    }
}

/// Who calls.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Its certificate proves this name, until then.
    Known {
        /// The name among its kind.
        name: String,
        /// The last moment at which that is proven.
        until: Option<SystemTime>,
    },
    /// An agent, by its token.
    Agent {
        /// What the token proves.
        agent: KnownAgent,
        /// Who judges the next one.
        trust: ClusterTrust,
        /// From where it calls.
        from: IpAddr,
    },
    /// A user of the cluster.
    User {
        /// Who.
        user: Arc<ClusterUser>,
        /// Who says what he may do.
        trust: ClusterTrust,
    },
    /// Nothing proves who it is, and nothing has to.
    Anybody {
        /// From where it calls.
        from: String,
    },
}

impl Caller {
    /// Who calls, as was found out before.
    ///
    /// # Errors
    /// If it was not: then nobody may do anything.
    #[allow(clippy::result_large_err)] // tonic's own
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("this service does not learn who calls"))
    }

    /// In whose name something is done.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Known { name, .. } => name.clone(),
            Self::Agent { agent, .. } => agent.node.clone(),
            Self::User { user, .. } => user.name.clone(),
            Self::Anybody { from } => format!("anybody (no TLS), from {from}"),
        }
    }

    /// Which Node an agent's token was made on, where the cluster says it.
    pub(crate) fn node_uid(&self) -> Option<&str> {
        match self {
            Self::Agent { agent, .. } => agent.node_uid.as_deref(),
            Self::Known { .. } | Self::User { .. } | Self::Anybody { .. } => None,
        }
    }

    /// Until when that is proven.
    pub(crate) fn until(&self) -> Option<SystemTime> {
        match self {
            Self::Known { until, .. } => *until,
            Self::Agent { agent, .. } => Some(agent.until),
            Self::User { .. } | Self::Anybody { .. } => None,
        }
    }

    /// Checks that this operator may do that. Who has a certificate for operators, and nothing else, may do everything.
    ///
    /// # Errors
    /// If he may not, or nobody knows whether he may.
    #[allow(clippy::result_large_err)] // tonic's own
    pub(crate) async fn may(&self, right: Right) -> Result<(), Status> {
        match self {
            Self::User { user, trust } => trust.may(user, &right).await,
            Self::Known { .. } | Self::Anybody { .. } => Ok(()),
            Self::Agent { .. } => Err(Status::permission_denied("an agent is no operator")),
        }
    }
}

/// What a call shows of who makes it.
struct Shown {
    peer: Option<Peer>,
    address: Option<IpAddr>,
    from: String,
    token: Option<String>,
}

impl Shown {
    fn of(extensions: &Extensions, headers: &mut HeaderMap) -> Self {
        let peer = extensions.get::<Peer>().cloned();
        let plain = || extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let address = peer.as_ref().map(|peer| peer.address).or_else(plain);
        // It goes no further than this.
        let token = headers.remove(AUTHORIZATION).and_then(|value| {
            let text = value.to_str().ok()?;
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
        });
        let from = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        Self { peer, address: address.map(|address| address.ip()), from, token }
    }
}

impl Clients {
    /// A service for clients of one kind, behind what finds out who they are.
    pub(crate) fn admit<S>(&self, kind: ClientKind, service: S) -> Admitted<S> {
        Admitted { clients: self.clone(), kind, hush: Arc::default(), service }
    }

    #[allow(clippy::result_large_err)] // tonic's own
    async fn judge(&self, kind: ClientKind, shown: Shown) -> Result<Caller, Status> {
        let Shown { peer, address, from, token } = shown;
        let known = peer.map(|peer| (peer.who, peer.until));
        let network = network(address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()));
        match (self, known) {
            (_, Some((Who::Refused(why), _))) => Err(Status::permission_denied(why)),
            (Self::Anybody, Some((Who::Anybody, _)) | None) => Ok(Caller::Anybody { from }),
            (Self::OfCluster(trust), Some((who @ (Who::Unproven | Who::User { .. }), _))) => {
                of_cluster(trust, kind, who, token.as_deref(), network).await
            }
            (Self::Certified, Some((Who::Known(subject), until))) if subject.kind == kind => {
                Ok(Caller::Known { name: subject.name, until })
            }
            (_, Some((Who::Known(subject), _))) => {
                Err(Status::permission_denied(format!("{subject} is not a {}", kind.word())))
            }
            (Self::Certified, _) => Err(Status::permission_denied(format!(
                "no certificate was shown; cleat://{}/NAME is needed",
                kind.word()
            ))),
            (Self::Anybody | Self::OfCluster(_), _) => {
                Err(Status::permission_denied("this listener does not find out who calls"))
            }
        }
    }
}

#[allow(clippy::result_large_err)] // tonic's own
async fn of_cluster(
    trust: &ClusterTrust,
    kind: ClientKind,
    who: Who,
    token: Option<&str>,
    from: IpAddr,
) -> Result<Caller, Status> {
    let trust = trust.clone();
    match (kind, who, token) {
        (ClientKind::Node, _, token) => {
            let agent = trust.agent(token, from).await?;
            Ok(Caller::Agent { agent, trust, from })
        }
        // What is said in the call counts before what the connection shows.
        (ClientKind::Operator, _, Some(token)) => {
            let user = Arc::new(trust.operator(token, from).await?);
            Ok(Caller::User { user, trust })
        }
        (ClientKind::Operator, Who::User { name, groups }, None) => {
            // As the API server does with whom it knows.
            let groups = groups.into_iter().chain(["system:authenticated".to_owned()]).collect();
            let user = Arc::new(ClusterUser { name, groups, ..ClusterUser::default() });
            Ok(Caller::User { user, trust })
        }
        (ClientKind::Operator, _, None) => Err(Status::unauthenticated(
            "neither a token nor a client certificate of the cluster was shown; give cleatctl --kubeconfig",
        )),
    }
}

/// A service whose calls have a [`Caller`].
#[derive(Clone)]
pub(crate) struct Admitted<S> {
    clients: Clients,
    kind: ClientKind,
    hush: Arc<Hush>,
    service: S,
}

impl<S: NamedService> NamedService for Admitted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // As tonic's services are, always.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { clients, kind, hush, mut service } = self.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let shown = Shown::of(&parts.extensions, &mut parts.headers);
            let (from, admitted) =
                (shown.from.clone(), shown.peer.as_ref().map(|peer| Arc::clone(&peer.admitted)));
            match clients.judge(kind, shown).await {
                Ok(caller) => {
                    if let Some(admitted) = admitted {
                        admitted.store(true, Ordering::Relaxed);
                    }
                    parts.extensions.insert(caller);
                    service.call(http::Request::from_parts(parts, body)).await
                }
                Err(status) => {
                    metrics::client_refused(kind);
                    hush.warn(|skipped| {
                        let reason = status.message();
                        tracing::warn!(kind = kind.word(), from, skipped, reason, "client refused");
                    });
                    Ok(status.into_http())
                }
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;
    use std::sync::{Mutex, PoisonError};

    use cleat_kubernetes::api::ApiError;
    use cleat_kubernetes::reviews::Reviewed;
    use cleat_runtime::tls::Subject;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tonic::Code;

    use super::*;
    use crate::trust::Cluster;

    fn shown(who: Option<Who>) -> Shown {
        let address = ([10, 0, 0, 1], 4000).into();
        let peer = who.map(|who| Peer { address, who, until: None, admitted: Arc::default() });
        Shown { peer, address: Some(address.ip()), from: address.to_string(), token: None }
    }

    fn known(kind: ClientKind) -> Who {
        Who::Known(Subject { kind, name: "a".into() })
    }

    #[tokio::test]
    async fn only_a_certificate_of_the_services_own_kind_makes_a_caller() {
        let judge = async |who| Clients::Certified.judge(ClientKind::Operator, shown(who)).await;
        let caller = judge(Some(known(ClientKind::Operator))).await.unwrap();
        assert!(matches!(&caller, Caller::Known { name, until: None } if name == "a"), "{caller:?}");
        let refused = Who::Refused("cleat://node/x".into());
        let user = Who::User { name: "a".into(), groups: vec![] };
        for who in [
            None,
            Some(Who::Anybody),
            Some(known(ClientKind::Node)),
            Some(refused),
            Some(user),
            Some(Who::Unproven),
        ] {
            assert_eq!(judge(who).await.unwrap_err().code(), Code::PermissionDenied);
        }
        assert!(Caller::of(&Request::new(())).is_err(), "nobody has looked");
    }

    #[tokio::test]
    async fn without_tls_a_caller_is_anybody_and_is_called_so() {
        let judge = async |who| Clients::Anybody.judge(ClientKind::Operator, shown(who)).await;
        assert_eq!(judge(Some(Who::Anybody)).await.unwrap().name(), "anybody (no TLS), from 10.0.0.1:4000");
        assert!(judge(Some(known(ClientKind::Node))).await.is_err());
        assert!(judge(Some(Who::Unproven)).await.is_err());
    }

    #[test]
    fn a_token_is_taken_out_of_a_call_before_anybody_sees_it() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "bearer abc".parse().unwrap());
        assert_eq!(Shown::of(&Extensions::new(), &mut headers).token.as_deref(), Some("abc"));
        assert!(headers.is_empty());
        headers.insert(AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(Shown::of(&Extensions::new(), &mut headers).token, None);
        assert!(headers.is_empty());
    }

    /// A cluster that accepts no token.
    struct Refusing;

    #[tonic::async_trait]
    impl Cluster for Refusing {
        async fn token(&self, _: &str, _: Option<&str>) -> Result<Reviewed, ApiError> {
            Ok(Reviewed::Refused("revoked".into()))
        }

        async fn allowed(&self, _: &ClusterUser, _: &Right) -> Result<Result<(), String>, ApiError> {
            unreachable!("nobody gets so far")
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_refused_token_is_counted_and_logged_and_never_shown() {
        const TOKEN: &str = "s3cret";
        let (recorder, log) = (PrometheusBuilder::new().build_recorder(), Log::default());
        let writer = log.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _counting = ::metrics::set_default_local_recorder(&recorder);
        let _logging = tracing::subscriber::set_default(lines);
        let trust = ClusterTrust::new(Box::new(Refusing), "cleat-system", "cleat-agent", "cleat.io");
        let clients = Clients::OfCluster(trust);
        for kind in [ClientKind::Node, ClientKind::Operator] {
            let within = tower::service_fn(|_: http::Request<Body>| async {
                Ok::<_, Infallible>(http::Response::new(Body::empty()))
            });
            let mut request = http::Request::new(Body::empty());
            request.headers_mut().insert(AUTHORIZATION, format!("Bearer {TOKEN}").parse().unwrap());
            request.extensions_mut().insert(shown(Some(Who::Unproven)).peer.unwrap());
            let answer = clients.admit(kind, within).call(request).await.unwrap();
            let status = Status::from_header_map(answer.headers()).unwrap();
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
            assert!(!format!("{answer:?}").contains(TOKEN), "{answer:?}");
        }
        let counted = recorder.handle().render();
        for line in [
            "cleat_controller_clients_refused_total{listener=\"node\"} 1",
            "cleat_controller_clients_refused_total{listener=\"operator\"} 1",
            "cleat_controller_token_reviews_total{result=\"refused\"} 2",
        ] {
            assert!(counted.contains(line), "{line} is not in\n{counted}");
        }
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said.matches("client refused").count(), 2, "{said}");
        assert!(said.contains("10.0.0.1:4000") && said.contains("revoked"), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
}
