//! Who somebody is and what he may do, as the API server says it.
//!
//! In comes a token, or a user with what he wants; out goes the API server's answer, or that there is none. What holds: each
//! question is asked once, within its time; no answer is no consent; a token is in no error and in no log.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use crate::api::{ApiError, ApiServer};

/// In what API server's user info the node of a token stands, from Kubernetes 1.30 on by default.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Beside it: which Node that was when the token was made.
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
/// The API group of our resources.
pub const GROUP: &str = "cleat.io";

/// A user of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterUser {
    /// His name.
    pub name: String,
    /// What tells him from another one of the same name.
    pub uid: Option<String>,
    /// His groups.
    pub groups: Vec<String>,
    /// What else the API server knows of him.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl ClusterUser {
    /// The node on which the pod runs that the token was made for.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.only(NODE_NAME)
    }

    /// The UID that this Node had when the token was made.
    #[must_use]
    pub fn node_uid(&self) -> Option<&str> {
        self.only(NODE_UID)
    }

    fn only(&self, what: &str) -> Option<&str> {
        match self.extra.get(what)?.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }
}

/// What became of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reviewed {
    /// It is this user's.
    User(ClusterUser),
    /// It proves nothing; why, as the API server says it.
    Refused(String),
}

/// Something that a user may be allowed to do with our resources.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Right {
    /// The verb.
    pub verb: &'static str,
    /// The resource.
    pub resource: &'static str,
    /// Which one of them; `None`: all.
    pub name: Option<String>,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{GROUP}", self.verb, self.resource)?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " {name:?}"))
    }
}

/// Who answers such questions.
#[derive(Clone)]
pub struct Reviews {
    server: ApiServer,
}

impl Reviews {
    /// By that API server.
    #[must_use]
    pub fn new(server: ApiServer) -> Self {
        Self { server }
    }

    /// Asks whose a token is. `audience`: whom it has to be for; `None`: the API server itself.
    ///
    /// # Errors
    /// If there is no certain answer.
    pub async fn token(&self, token: &str, audience: Option<&str>) -> Result<Reviewed, ApiError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: audience.map(|audience| vec![audience.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.server.client.clone());
        let answer = self.server.ask(api.create(&PostParams::default(), &review)).await?;
        Ok(judged(answer.status.unwrap_or_default(), audience))
    }

    /// Asks whether a user may do something. `Err` of the answer says why not, where the API server does.
    ///
    /// # Errors
    /// If there is no certain answer.
    pub async fn allowed(&self, user: &ClusterUser, right: &Right) -> Result<Result<(), String>, ApiError> {
        let ClusterUser { name, uid, groups, extra } = user.clone();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(name),
                uid,
                groups: Some(groups),
                extra: Some(extra),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    resource: Some(right.resource.to_owned()),
                    verb: Some(right.verb.to_owned()),
                    name: right.name.clone(),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.server.client.clone());
        let answer = self.server.ask(api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        if status.allowed && status.denied != Some(true) {
            return Ok(Ok(()));
        }
        match status.evaluation_error {
            // It could not decide, which is no "no".
            Some(error) if status.denied != Some(true) => Err(ApiError::Unanswered(error)),
            error => Ok(Err([status.reason, error].into_iter().flatten().collect::<Vec<_>>().join("; "))),
        }
    }
}

fn judged(status: TokenReviewStatus, audience: Option<&str>) -> Reviewed {
    let refused = |why: &str| Reviewed::Refused(why.to_owned());
    if status.authenticated != Some(true) {
        return Reviewed::Refused(status.error.unwrap_or_else(|| "it is of no user".to_owned()));
    }
    // An authenticator that knows no audiences says none, and has looked at none.
    let audiences = status.audiences.unwrap_or_default();
    if audience.is_some_and(|wanted| !audiences.iter().any(|audience| audience == wanted)) {
        return refused("the API server did not say that it is for this audience");
    }
    let Some(user) = status.user else { return refused("the API server did not say whose it is") };
    let Some(name) = user.username.filter(|name| !name.is_empty()) else {
        return refused("the API server did not say whose it is");
    };
    Reviewed::User(ClusterUser {
        name,
        uid: user.uid,
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn status(name: Option<&str>, audiences: &[&str]) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(audiences.iter().map(|&audience| audience.to_owned()).collect()),
            user: Some(UserInfo { username: name.map(str::to_owned), ..UserInfo::default() }),
            error: None,
        }
    }

    #[test]
    fn a_token_counts_only_for_the_audience_that_was_asked_for() {
        let wanted = Some("cleat.io");
        assert!(matches!(judged(status(Some("a"), &["cleat.io"]), wanted), Reviewed::User(_)));
        assert!(matches!(judged(status(Some("a"), &["other"]), wanted), Reviewed::Refused(_)));
        assert!(matches!(judged(status(Some("a"), &[]), wanted), Reviewed::Refused(_)));
        assert!(matches!(judged(status(Some("a"), &["api"]), None), Reviewed::User(_)));
    }

    #[test]
    fn without_a_name_or_consent_a_token_is_nobody_s() {
        for name in [None, Some("")] {
            assert!(matches!(judged(status(name, &["x"]), None), Reviewed::Refused(_)));
        }
        let refused = TokenReviewStatus { error: Some("expired".into()), ..TokenReviewStatus::default() };
        assert_eq!(judged(refused, None), Reviewed::Refused("expired".into()));
        let without = TokenReviewStatus { user: None, ..status(Some("a"), &["x"]) };
        assert!(matches!(judged(without, None), Reviewed::Refused(_)));
    }

    #[test]
    fn a_node_that_is_named_twice_is_none() {
        let user = |nodes: &[&str]| ClusterUser {
            extra: [(NODE_NAME.to_owned(), nodes.iter().map(|&node| node.to_owned()).collect())].into(),
            ..ClusterUser::default()
        };
        assert_eq!(user(&["a"]).node(), Some("a"));
        assert_eq!(user(&["a", "b"]).node(), None);
        assert_eq!(user(&[]).node(), None);
        assert_eq!(ClusterUser::default().node(), None);
    }
}
