//! Who a person is in a cluster: the token or the client certificate that their kubeconfig has for them.
//!
//! In comes a kubeconfig; out goes a [`Person`], which nothing ever shows, and a client of that cluster as this person.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::{Body, ConfigExt as _};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Config};
use secrecy::ExposeSecret as _;
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

use crate::api::{ApiError, ApiServer, NoClient};
use crate::serving_ca::PUBLISHED;

/// What proves who a person is.
#[derive(Clone, PartialEq, Eq)]
pub enum Person {
    /// A bearer token.
    Token(String),
    /// A client certificate and its key, PEM.
    Certificate {
        /// The certificate.
        certificate: String,
        /// Its key.
        key: String,
    },
}

// It must not reach a log by way of `{:?}`.
impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Certificate { .. } => "Certificate(..)",
        })
    }
}

/// Why a kubeconfig makes nobody.
#[derive(Debug, thiserror::Error)]
pub enum PersonError {
    /// It cannot be used.
    #[error("cannot use the kubeconfig; give one that kubectl takes (--kubeconfig, --context)")]
    Kubeconfig(#[source] KubeconfigError),
    /// Its user proves nothing that a controller can check.
    #[error(
        "cannot use the kubeconfig's user: it {0}; use a user with a token, a client certificate or an exec plugin that gives a token"
    )]
    Nobody(&'static str),
    /// What gives the token has failed.
    #[error("cannot get a token from what the kubeconfig names")]
    Token(#[source] BoxError),
    /// A file or a text of it.
    #[error("cannot use the kubeconfig's {what}: {problem}")]
    Content {
        /// Which part.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// There is no client.
    #[error(transparent)]
    Client(#[from] NoClient),
    /// The CA is not there.
    #[error("cannot read the controller's CA from ConfigMap {map}: {source}; or pass its file with --tls-ca")]
    Ca {
        /// Which.
        map: String,
        /// The API server's answer.
        #[source]
        source: ApiError,
    },
}

/// A kubeconfig, in one of its contexts.
#[derive(Clone)]
pub struct Kubectl(pub(crate) Config);

impl Kubectl {
    /// As kubectl reads it; `None`: from `KUBECONFIG`, else from its file in the home directory.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn read(file: Option<&Path>, context: Option<&str>) -> Result<Self, PersonError> {
        let read = match file {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let options =
            KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(read.map_err(PersonError::Kubeconfig)?, &options).await;
        Ok(Self(config.map_err(PersonError::Kubeconfig)?))
    }

    /// What proves who its user is. Runs the plugin that it names.
    ///
    /// # Errors
    /// If nothing does.
    pub async fn person(&self) -> Result<Person, PersonError> {
        let user = &self.0.auth_info;
        if user.impersonate.is_some() || user.impersonate_groups.is_some() || user.impersonate_uid.is_some() {
            return Err(PersonError::Nobody("impersonates somebody (`as`), which only the API server takes"));
        }
        if let Some(certificate) = certificate(user)? {
            return Ok(certificate);
        }
        if user.username.is_some() {
            return Err(PersonError::Nobody("has a password"));
        }
        match self.token().await? {
            Some(token) => Ok(Person::Token(token)),
            None if user.exec.is_some() => Err(PersonError::Nobody("has an exec plugin that gives no token")),
            None => Err(PersonError::Nobody("has neither a token nor a client certificate")),
        }
    }

    /// The token as a call of the API server would carry it: read from its file, or made by the plugin.
    async fn token(&self) -> Result<Option<String>, PersonError> {
        let config = self.0.clone();
        // A plugin may take its time, and asks on the terminal.
        let layer = tokio::task::spawn_blocking(move || config.auth_layer()).await;
        let layer = layer.map_err(|error| PersonError::Token(error.into()))?;
        let layer = layer.map_err(|error| PersonError::Token(error.into()))?;
        let shown = tower::service_fn(|request: Request<Body>| async move {
            Ok::<_, BoxError>(Response::new(request.headers().get(AUTHORIZATION).cloned()))
        });
        let service = ServiceBuilder::new().option_layer(layer).map_err(BoxError::from).service(shown);
        let shown = service.oneshot(Request::new(Body::empty())).await.map_err(PersonError::Token)?;
        let Some(header) = shown.into_body() else { return Ok(None) };
        let text = header.to_str().map_err(|error| PersonError::Token(error.into()))?;
        Ok(text.strip_prefix("Bearer ").map(|token| token.trim().to_owned()))
    }

    /// The certificates of the CA that a controller has published there, PEM.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn controller_ca(
        &self,
        namespace: &str,
        name: &str,
        timeout: Duration,
    ) -> Result<String, PersonError> {
        let server = ApiServer::of(self.0.clone(), timeout)?;
        let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), namespace);
        let failed = |source| PersonError::Ca { map: format!("{namespace}/{name}"), source };
        let map = server.ask(api.get(name)).await.map_err(failed)?;
        let missing = || failed(ApiError::Refused(format!("it has no {PUBLISHED}")));
        map.data.and_then(|mut data| data.remove(PUBLISHED)).ok_or_else(missing)
    }
}

fn certificate(user: &AuthInfo) -> Result<Option<Person>, PersonError> {
    let text = |what, data: Option<&str>, file: Option<&str>| {
        let wrong = |problem: String| PersonError::Content { what, problem };
        let bytes = match (data, file) {
            (Some(data), _) => Some(STANDARD.decode(data.trim()).map_err(|error| wrong(error.to_string()))?),
            (None, Some(file)) => {
                Some(std::fs::read(file).map_err(|error| wrong(format!("cannot read {file}: {error}")))?)
            }
            (None, None) => None,
        };
        bytes.map(String::from_utf8).transpose().map_err(|_| wrong("it is no PEM".into()))
    };
    let key_data = user.client_key_data.as_ref().map(|data| data.expose_secret());
    let certificate = text(
        "client-certificate",
        user.client_certificate_data.as_deref(),
        user.client_certificate.as_deref(),
    )?;
    match (certificate, text("client-key", key_data, user.client_key.as_deref())?) {
        (Some(certificate), Some(key)) => Ok(Some(Person::Certificate { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(PersonError::Nobody("has a client certificate without its key")),
        (None, Some(_)) => Err(PersonError::Nobody("has the key of a client certificate without that")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    async fn person(user: &str) -> Result<Person, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
             users: [{{name: u, user: {user}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n"
        );
        std::fs::write(&file, text).unwrap();
        std::fs::write(dir.path().join("token"), "from-a-file").unwrap();
        Kubectl::read(Some(&file), Some("x")).await.unwrap().person().await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_kubeconfigs_user_is_a_token_or_a_certificate() {
        cleat_runtime::tls::install_provider();
        let token = |text: &str| Ok(Person::Token(text.to_owned()));
        assert_eq!(person("{token: abc}").await, token("abc"));
        assert_eq!(person("{tokenFile: token}").await, token("from-a-file"), "as a pod has it");
        let exec = "{exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: echo, args: \
                    ['{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \"status\": \
                    {\"token\": \"made\"}}']}}";
        assert_eq!(person(exec).await, token("made"));
        let pair = "{client-certificate-data: Y2VydA==, client-key-data: a2V5}";
        let known = Person::Certificate { certificate: "cert".into(), key: "key".into() };
        assert_eq!(person(pair).await, Ok(known));
    }

    #[tokio::test]
    async fn a_user_that_a_controller_cannot_check_is_refused_by_what_it_has() {
        cleat_runtime::tls::install_provider();
        for (user, said) in [
            ("{}", "neither"),
            ("{username: a, password: b}", "password"),
            ("{token: a, as: root}", "impersonates"),
            ("{client-certificate-data: Y2VydA==}", "without its key"),
            ("{client-certificate-data: '!', client-key-data: a2V5}", "client-certificate"),
        ] {
            let refused = person(user).await.unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
