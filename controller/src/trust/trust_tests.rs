#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::time::UNIX_EPOCH;

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use tonic::Code;

use super::claims::tests::unsigned;
use super::*;

const ACCOUNT: &str = "system:serviceaccount:cleat-system:cleat-agent";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// A cluster of a test: what it says of any token, and of any right.
struct Saying {
    token: Result<Reviewed, ApiError>,
    right: Result<Result<(), String>, ApiError>,
    asked: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl Cluster for Saying {
    async fn token(&self, _: &str, audience: Option<&str>) -> Result<Reviewed, ApiError> {
        self.asked.lock().unwrap().push(format!("token for {audience:?}"));
        self.token.clone()
    }

    async fn allowed(&self, user: &ClusterUser, right: &Right) -> Result<Result<(), String>, ApiError> {
        self.asked.lock().unwrap().push(format!("{} {right}", user.name));
        self.right.clone()
    }
}

fn trust(token: Result<Reviewed, ApiError>) -> (ClusterTrust, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::default();
    let saying = Saying { token, right: Ok(Ok(())), asked: Arc::clone(&asked) };
    (ClusterTrust::new(Box::new(saying), "cleat-system", "cleat-agent", "cleat.io"), asked)
}

fn user(name: &str, nodes: &[&str]) -> Reviewed {
    let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
    Reviewed::User(ClusterUser {
        name: name.into(),
        extra: [(NODE_NAME.to_owned(), nodes)].into(),
        ..ClusterUser::default()
    })
}

fn token(ends_in: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    unsigned(&json!({"sub": ACCOUNT, "aud": ["cleat.io"], "exp": now.saturating_add_signed(ends_in)}))
}

fn here() -> IpAddr {
    [10, 0, 0, 1].into()
}

#[tokio::test]
async fn an_agent_is_the_node_that_the_api_server_names_until_its_token_ends() {
    let (trust, asked) = trust(Ok(user(ACCOUNT, &["node-a"])));
    let agent = trust.agent(Some(&token(600)), here()).await.unwrap();
    assert_eq!(agent.node, "node-a");
    let left = agent.until.duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(590) && left <= Duration::from_secs(600), "{left:?}");
    assert_eq!(*asked.lock().unwrap(), ["token for Some(\"cleat.io\")"]);
}

#[tokio::test]
async fn what_cannot_be_an_agents_token_is_refused_without_a_question() {
    let (trust, asked) = trust(Ok(user(ACCOUNT, &["node-a"])));
    let other =
        |sub: &str, aud: &str| unsigned(&json!({"sub": sub, "aud": [aud], "exp": 99_999_999_999_u64}));
    for (shown, said) in [
        (None, "no token was shown"),
        (Some("garbage".to_owned()), "no service account's"),
        (Some(token(-1)), "it expired at"),
        (Some(other(ACCOUNT, "elsewhere")), "audience elsewhere"),
        (
            Some(other("system:serviceaccount:cleat-system:other", "cleat.io")),
            "it is of system:serviceaccount",
        ),
    ] {
        let refused = trust.agent(shown.as_deref(), here()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
        assert!(
            refused.message().contains(said) && refused.message().contains("--token-file"),
            "{refused:?}"
        );
        assert!(shown.is_none_or(|shown| !refused.message().contains(&shown)), "{refused:?}");
    }
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn another_account_no_node_two_nodes_and_no_answer_let_nobody_in() {
    let other = "system:serviceaccount:cleat-system:other";
    let unanswered = ApiError::Unanswered("it took too long".into());
    let forbidden = ApiError::Forbidden("tokenreviews".into());
    for (says, code, said) in [
        (
            Ok(user(other, &["node-a"])),
            Code::Unauthenticated,
            "it is of system:serviceaccount:cleat-system:other",
        ),
        (Ok(user(ACCOUNT, &[])), Code::Unauthenticated, "names no node"),
        (Ok(user(ACCOUNT, &["node-a", "node-b"])), Code::Unauthenticated, "names no node"),
        (Ok(Reviewed::Refused("revoked".into())), Code::Unauthenticated, "revoked"),
        (Err(unanswered), Code::Unavailable, "it took too long"),
        (Err(forbidden), Code::Unavailable, "tokenreviews"),
    ] {
        let (trust, _) = trust(says);
        let refused = trust.agent(Some(&token(600)), here()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(said), "{refused:?}");
    }
}

#[tokio::test]
async fn an_operators_token_is_for_the_api_server_and_may_be_of_any_form() {
    let (trust, asked) = trust(Ok(user("alice", &[])));
    assert_eq!(trust.operator("opaque", here()).await.unwrap().name, "alice");
    assert_eq!(*asked.lock().unwrap(), ["token for None"]);
}

#[tokio::test]
async fn a_right_that_is_denied_or_unknown_names_user_verb_and_resource() {
    let alice = ClusterUser { name: "alice".into(), ..ClusterUser::default() };
    let right = Right { verb: "fence", resource: "cleatvolumes", name: Some("pvc-1".into()) };
    for (says, code, words) in [
        (Ok(Err(String::new())), Code::PermissionDenied, &["alice", "fence", "cleatvolumes", "pvc-1"][..]),
        (Ok(Err("by RBAC".into())), Code::PermissionDenied, &["by RBAC"]),
        (Err(ApiError::Unanswered("slow".into())), Code::Unavailable, &["alice", "slow"]),
    ] {
        let saying = Saying { token: Ok(user("alice", &[])), right: says, asked: Arc::default() };
        let trust = ClusterTrust::new(Box::new(saying), "cleat-system", "cleat-agent", "cleat.io");
        let refused = trust.may(&alice, &right).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(words.iter().all(|word| refused.message().contains(word)), "{refused:?}");
    }
}

#[tokio::test]
async fn what_becomes_of_tokens_and_of_rights_is_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _counting = ::metrics::set_default_local_recorder(&recorder);
    let counted = |series: &str| {
        let text = recorder.handle().render();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0, |value| value.trim().parse::<u64>().unwrap())
    };
    let reviews =
        |result: &str| counted(&format!("cleat_controller_token_reviews_total{{result=\"{result}\"}}"));
    let unanswered = ApiError::Unanswered("it took too long".into());
    let refused = Reviewed::Refused("revoked".into());
    for says in [Ok(user(ACCOUNT, &["node-a"])), Ok(refused.clone()), Err(unanswered)] {
        let (trust, _) = trust(says);
        // What came of it is counted, and that is what is looked at.
        let _ = trust.agent(Some(&token(600)), here()).await;
        let _ = trust.operator("opaque", here()).await;
    }
    assert_eq!(["accepted", "refused", "unanswered", "limited"].map(reviews), [2, 2, 2, 0]);
    let (flooded, _) = trust(Ok(refused));
    for number in 0..40 {
        let _ = flooded.operator(&number.to_string(), here()).await;
    }
    assert!(reviews("limited") > 0 && reviews("refused") > 2, "{}", recorder.handle().render());

    let alice = ClusterUser { name: "alice".into(), ..ClusterUser::default() };
    let right = Right { verb: "list", resource: "cleatnodes", name: None };
    for says in [Ok(Ok(())), Ok(Err("by RBAC".into())), Err(ApiError::Unanswered("slow".into()))] {
        let saying = Saying { token: Ok(user("alice", &[])), right: says, asked: Arc::default() };
        let trust = ClusterTrust::new(Box::new(saying), "cleat-system", "cleat-agent", "cleat.io");
        let _ = trust.may(&alice, &right).await;
    }
    assert_eq!(counted("cleat_controller_operators_denied_total"), 1);
}

/// A cluster that says nothing of one user's rights.
struct Hanging;

#[tonic::async_trait]
impl Cluster for Hanging {
    async fn token(&self, _: &str, _: Option<&str>) -> Result<Reviewed, ApiError> {
        unreachable!("nobody asks")
    }

    async fn allowed(&self, user: &ClusterUser, _: &Right) -> Result<Result<(), String>, ApiError> {
        if user.name == "flood" { std::future::pending().await } else { Ok(Ok(())) }
    }
}

#[tokio::test(start_paused = true)]
async fn one_user_whose_questions_about_rights_hang_holds_up_no_other() {
    let trust = ClusterTrust::new(Box::new(Hanging), "cleat-system", "cleat-agent", "cleat.io");
    let ask = |name: &str| {
        let (trust, user) = (trust.clone(), ClusterUser { name: name.into(), ..ClusterUser::default() });
        let right = Right { verb: "list", resource: "cleatvolumes", name: None };
        tokio::spawn(async move { trust.may(&user, &right).await })
    };
    let flood: Vec<_> = (0..100).map(|_| ask("flood")).collect();
    tokio::task::yield_now().await;
    ask("alice").await.unwrap().unwrap();
    tokio::time::sleep(RIGHTS_TURN * 2).await;
    assert_eq!(flood.iter().filter(|asked| asked.is_finished()).count(), 100 - RIGHTS_AT_ONCE_EACH);
}
