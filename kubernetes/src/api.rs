//! A client of the API server that asks once, within a time of its own, and what an answer means.
//!
//! The usual client asks up to fifteen times by itself, waits as long as the server tells it to, and never gives up a
//! connection that is silent. What leadership and evidence rest on must not: here each call is sent once, is given up at
//! its time, and the kernel drops what the server has not received by then, so that a network that heals delivers nothing
//! late. What was received and not answered may have been done: [`ApiError::Unanswered`].

use std::path::Path;
use std::time::Duration;

use cleat_runtime::exit::Causes;
use http::StatusCode;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

/// A connection that is silent for so long is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The API server, and how long a call may take.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) client: Client,
    timeout: Duration,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum NoClient {
    /// The file cannot be used.
    #[error("cannot use the kubeconfig {file}; give one that kubectl takes")]
    Kubeconfig {
        /// Which.
        file: String,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// There is none, and this is no pod.
    #[error("cannot find the API server: this is no pod with a service account; give --kubeconfig")]
    NotInCluster(#[source] kube::config::InClusterError),
    /// The credentials.
    #[error("cannot use what the configuration says of the API server")]
    Client(#[source] kube::Error),
}

/// What the API server answered, where it did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// There is no such object.
    #[error("it is not there")]
    NotFound,
    /// The object is of another version, or is there already.
    #[error("somebody else has written it")]
    Conflict,
    /// A right is missing. Nothing was done.
    #[error("the API server does not allow it: {0}; give that account the right")]
    Forbidden(String),
    /// It was refused, and will be again: the object is not valid. Nothing was done.
    #[error("the API server refuses: {0}")]
    Refused(String),
    /// Nothing was heard, or nothing certain: it may have been done, or may yet be.
    #[error("no certain answer of the API server: {0}")]
    Unanswered(String),
}

impl ApiServer {
    /// As the kubeconfig says, or as a pod finds it.
    ///
    /// # Errors
    /// What is missing.
    pub async fn connect(kubeconfig: Option<&Path>, timeout: Duration) -> Result<Self, NoClient> {
        let config = match kubeconfig {
            None => Config::incluster().map_err(NoClient::NotInCluster)?,
            Some(path) => {
                let failed = |source| NoClient::Kubeconfig { file: path.display().to_string(), source };
                let file = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?
            }
        };
        Self::of(config, timeout)
    }

    pub(crate) fn of(mut config: Config, timeout: Duration) -> Result<Self, NoClient> {
        config.connect_timeout = Some(timeout);
        config.read_timeout = Some(timeout);
        let client = asks_once(&config, timeout).map_err(NoClient::Client)?;
        Ok(Self { client, timeout })
    }

    /// One that a test answers for.
    #[cfg(test)]
    pub(crate) fn answered_by(client: Client) -> Self {
        Self { client, timeout: Duration::from_secs(3) }
    }

    /// How long a call may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks once.
    pub(crate) async fn ask<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
        self.ask_within(self.timeout, call).await
    }

    /// Asks once, and waits no longer than that.
    pub(crate) async fn ask_within<T>(
        &self,
        timeout: Duration,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        match tokio::time::timeout(timeout.min(self.timeout), call).await {
            Ok(answer) => answer.map_err(meaning),
            Err(_) => Err(ApiError::Unanswered("it took too long".into())),
        }
    }
}

fn asks_once(config: &Config, timeout: Duration) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(timeout));
    connector.set_tcp_user_timeout(Some(timeout));
    connector.set_nodelay(true);
    // A watch waits in silence: whether anybody is at its other end, the kernel asks.
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(3));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service.boxed(), config.default_namespace.clone()).build())
}

fn meaning(error: kube::Error) -> ApiError {
    let kube::Error::Api(status) = error else {
        return ApiError::Unanswered(Causes(&error).to_string());
    };
    match StatusCode::from_u16(status.code).unwrap_or_default() {
        StatusCode::NOT_FOUND => ApiError::NotFound,
        StatusCode::CONFLICT => ApiError::Conflict,
        // The server is too busy: it has not begun.
        code if code == StatusCode::TOO_MANY_REQUESTS || code == StatusCode::REQUEST_TIMEOUT => {
            ApiError::Unanswered(status.message)
        }
        // A token that has just been renewed counts from the next call on.
        StatusCode::UNAUTHORIZED => ApiError::Unanswered(format!("it does not know us: {}", status.message)),
        StatusCode::FORBIDDEN => ApiError::Forbidden(status.message),
        code if code.is_client_error() => ApiError::Refused(status.message),
        _ => ApiError::Unanswered(status.message),
    }
}
