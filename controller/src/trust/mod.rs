//! Who agents and operators are, where the cluster says it (`--trust kubernetes`).
//!
//! In come tokens and client certificates; out go callers, or refusals that say what was shown and what is needed. What
//! holds: an agent speaks for the node that the API server names, for as long as its token is valid; an operator does what
//! the API server allows him at that moment; without an answer of the API server nobody is let in, and nobody waits for
//! another one's.

mod claims;
mod serving;
mod token_reviews;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use cleat_kubernetes::api::{ApiError, ApiServer, NoClient};
use cleat_kubernetes::reviews::{ClusterUser, Reviewed, Reviews, Right};
use cleat_kubernetes::serving_ca::ServingCa;
use cleat_runtime::Context;
use cleat_runtime::hush::Hush;
use cleat_runtime::tls::IssuedTls;
use cleat_runtime::tls::renew::Renewable;
use tokio::sync::{AcquireError, Semaphore};
use tonic::Status;

use crate::metrics::{self, Review};
use claims::Claims;
pub use serving::ServingTimes;
use token_reviews::{NotKnown, TokenReviews};

/// Questions about rights that are under way at once.
const RIGHTS_AT_ONCE: usize = 32;
/// The same of one user.
const RIGHTS_AT_ONCE_EACH: usize = 4;
/// Waiting for one of those places.
const RIGHTS_TURN: Duration = Duration::from_secs(5);
/// A session of an agent lasts no longer, however long its token would: the next one asks again.
const LONGEST_SESSION: Duration = Duration::from_secs(3600);

/// What is asked of the cluster, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterTrustSettings {
    /// A kubeconfig; `None`: as a pod finds it.
    pub kubeconfig: Option<PathBuf>,
    /// How long a call may take.
    pub api_timeout: Duration,
    /// Where the Secret, the ConfigMap and the agents' service account are.
    pub namespace: String,
    /// The Secret of the CA.
    pub ca_secret: String,
    /// The ConfigMap of its certificates.
    pub ca_configmap: String,
    /// What the controller's certificate is for.
    pub serving_names: Vec<String>,
    /// The audience of agents' tokens.
    pub token_audience: String,
    /// The agents' service account.
    pub agent_service_account: String,
    /// How long certificates are in use.
    pub times: ServingTimes,
}

/// Who answers: the API server.
#[tonic::async_trait]
pub trait Cluster: Send + Sync {
    /// Whose a token is.
    ///
    /// # Errors
    /// If there is no certain answer.
    async fn token(&self, token: &str, audience: Option<&str>) -> Result<Reviewed, ApiError>;

    /// Whether somebody may do something; `Err` of the answer: why not.
    ///
    /// # Errors
    /// If there is no certain answer.
    async fn allowed(&self, user: &ClusterUser, right: &Right) -> Result<Result<(), String>, ApiError>;
}

#[tonic::async_trait]
impl Cluster for Reviews {
    async fn token(&self, token: &str, audience: Option<&str>) -> Result<Reviewed, ApiError> {
        Self::token(self, token, audience).await
    }

    async fn allowed(&self, user: &ClusterUser, right: &Right) -> Result<Result<(), String>, ApiError> {
        Self::allowed(self, user, right).await
    }
}

/// Who says who is who. Cheap to clone.
#[derive(Clone)]
pub struct ClusterTrust(Arc<Inner>);

struct Inner {
    cluster: Box<dyn Cluster>,
    audience: String,
    /// The agents, as the API server calls them.
    account: String,
    agents: TokenReviews,
    operators: TokenReviews,
    rights: Semaphore,
    /// The places of each user who has questions under way or waiting.
    rights_of: Mutex<HashMap<String, Weak<Semaphore>>>,
    hush: Hush,
}

impl Inner {
    fn rights_of(&self, user: &str) -> Arc<Semaphore> {
        let mut users = self.rights_of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = users.get(user).and_then(Weak::upgrade) {
            return places;
        }
        users.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(RIGHTS_AT_ONCE_EACH));
        users.insert(user.to_owned(), Arc::downgrade(&places));
        places
    }
}

impl fmt::Debug for ClusterTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { audience, account, .. } = &*self.0;
        f.debug_struct("ClusterTrust").field("audience", audience).field("agents", account).finish()
    }
}

/// An agent that the cluster knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownAgent {
    /// The node that it speaks for.
    pub node: String,
    /// Which Node that was when the token was made, where the cluster says it.
    pub node_uid: Option<String>,
    /// When its token ends.
    pub until: SystemTime,
}

impl ClusterTrust {
    /// Asks the API server from now on, and serves certificates at both listeners. The first may come a moment later.
    ///
    /// # Errors
    /// If there is no client.
    pub async fn begin(
        settings: ClusterTrustSettings,
        agents: IssuedTls,
        operators: IssuedTls,
        context: &Context,
    ) -> Result<(Self, Arc<dyn Renewable>), NoClient> {
        let server = ApiServer::connect(settings.kubeconfig.as_deref(), settings.api_timeout).await?;
        let ClusterTrustSettings { namespace, ca_secret, ca_configmap, serving_names, times, .. } = &settings;
        let ca = ServingCa::new(server.clone(), namespace, ca_secret, ca_configmap, times.ca);
        let serving =
            serving::Serving::new(ca, server.clone(), serving_names.clone(), *times, [agents, operators]);
        let ends = serving.ends();
        tokio::spawn(serving.keep(context.readiness.flag("certificate"), context.stop.clone()));
        let ClusterTrustSettings { token_audience, agent_service_account, .. } = &settings;
        let trust =
            Self::new(Box::new(Reviews::new(server)), namespace, agent_service_account, token_audience);
        Ok((trust, ends))
    }

    /// By that cluster.
    #[must_use]
    pub fn new(cluster: Box<dyn Cluster>, namespace: &str, agents: &str, audience: &str) -> Self {
        Self(Arc::new(Inner {
            cluster,
            audience: audience.to_owned(),
            account: format!("system:serviceaccount:{namespace}:{agents}"),
            agents: TokenReviews::new(Some(audience.to_owned())),
            operators: TokenReviews::new(None),
            rights: Semaphore::new(RIGHTS_AT_ONCE),
            rights_of: Mutex::default(),
            hush: Hush::default(),
        }))
    }

    /// Which node an agent speaks for, by its token.
    ///
    /// # Errors
    /// What was shown, and what is needed. Never the token.
    #[allow(clippy::result_large_err)] // tonic's own
    pub async fn agent(&self, token: Option<&str>, from: IpAddr) -> Result<KnownAgent, Status> {
        let Inner { cluster, audience, account, agents, .. } = &*self.0;
        let needed = format!(
            "an agent needs a token of {account} for the audience {audience}, of a pod that runs on its node (--token-file)"
        );
        let refused = |why: &str| {
            metrics::token_reviewed(Review::Refused);
            Status::unauthenticated(format!("the token is refused: {why}; {needed}"))
        };
        let Some(token) = token else {
            return Err(Status::unauthenticated(format!("no token was shown; {needed}")));
        };
        // What cannot be good is not asked about.
        let claims = Claims::read(token).ok_or_else(|| refused("it is no service account's"))?;
        if let Some(why) = claims.contradiction(account, audience, SystemTime::now()) {
            return Err(refused(&why));
        }
        let user = match agents.whose(&**cluster, token, from, Some(claims.until)).await {
            Ok(user) => user,
            Err(NotKnown::Refused(why)) => return Err(refused(&why)),
            Err(other) => return Err(not_known(other, from)),
        };
        if user.name != *account {
            return Err(refused(&format!("it is of {}", user.name)));
        }
        let node = user.node().ok_or_else(|| {
            refused(
                "the API server names no node with it: it is of no pod that runs on a node, or the cluster is older than \
                 Kubernetes 1.30",
            )
        })?;
        metrics::token_reviewed(Review::Accepted);
        // Whatever the token says, its pod may be deleted meanwhile: that is asked about again by then.
        let until = claims.until.min(SystemTime::now() + LONGEST_SESSION);
        let node_uid = user.node_uid().map(str::to_owned);
        Ok(KnownAgent { node: node.to_owned(), node_uid, until })
    }

    /// Which user an operator is, by his token.
    ///
    /// # Errors
    /// What was shown, and what is needed. Never the token.
    #[allow(clippy::result_large_err)] // tonic's own
    pub async fn operator(&self, token: &str, from: IpAddr) -> Result<ClusterUser, Status> {
        let Inner { cluster, operators, .. } = &*self.0;
        let until = Claims::read(token).map(|claims| claims.until);
        match operators.whose(&**cluster, token, from, until).await {
            Ok(user) => {
                metrics::token_reviewed(Review::Accepted);
                Ok(user)
            }
            Err(NotKnown::Refused(why)) => {
                metrics::token_reviewed(Review::Refused);
                Err(Status::unauthenticated(format!(
                    "the token is refused: {why}; an operator needs one that the API server accepts"
                )))
            }
            Err(other) => Err(not_known(other, from)),
        }
    }

    /// Checks that a user may do something.
    ///
    /// # Errors
    /// If he may not, or nobody knows whether he may.
    #[allow(clippy::result_large_err)] // tonic's own
    pub async fn may(&self, user: &ClusterUser, right: &Right) -> Result<(), Status> {
        let Inner { cluster, rights, hush, .. } = &*self.0;
        let turn =
            async { Ok((self.0.rights_of(&user.name).acquire_owned().await?, rights.acquire().await?)) };
        let turn: Result<Result<_, AcquireError>, _> = tokio::time::timeout(RIGHTS_TURN, turn).await;
        let Ok(Ok(_places)) = turn else {
            return Err(Status::unavailable(
                "too many calls wait for the API server to say what their users may do; ask again",
            ));
        };
        let why = match cluster.allowed(user, right).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(error) => {
                return Err(Status::unavailable(format!(
                    "cannot ask the API server what {:?} may do: {error}",
                    user.name
                )));
            }
        };
        metrics::operator_denied();
        hush.warn(|skipped| tracing::warn!(user = user.name, %right, skipped, "operator denied"));
        let why = if why.is_empty() { why } else { format!(" ({why})") };
        Err(Status::permission_denied(format!(
            "user {:?} may not {right}{why}; give them a ClusterRole with that verb",
            user.name
        )))
    }
}

fn not_known(why: NotKnown, from: IpAddr) -> Status {
    match why {
        NotKnown::Unanswered(error) => {
            metrics::token_reviewed(Review::Unanswered);
            Status::unavailable(format!("cannot ask the API server whose the token is: {error}; ask again"))
        }
        NotKnown::TooMany | NotKnown::Refused(_) => {
            metrics::token_reviewed(Review::Limited);
            Status::unavailable(format!(
                "too many tokens from {from} were refused or wait for the API server's answer; ask again in some seconds"
            ))
        }
    }
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
