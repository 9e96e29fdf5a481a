//! Tickets as `cleatctl ticket run --in` makes them, on a real API server: made, renewed, answered and deleted under the rights
//! that are deployed for whoever makes backups, and what is said where they are missing.

use std::path::Path;
use std::time::{Duration, Instant};

use cleat_api_server::{Cluster, PATIENCE, connect};
use cleat_core::TicketType;
use cleat_kubernetes::api::ApiError;
use cleat_kubernetes::identity::Kubectl;
use cleat_kubernetes::own_tickets::{NotMade, OwnTicket, OwnTickets, OwnWish};
use cleat_kubernetes::reviews::{Reviewed, Reviews, Right};
use cleat_kubernetes::tickets::{ClusterTickets, TicketStatus, definition};
use serde_json::json;

use crate::tickets::{namespace, ticket, watched};

/// What docs/operating.md gives as an example, with the rights that it needs.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/nightly-backup.yaml");
const TIMEOUT: Duration = Duration::from_secs(20);

fn wish() -> OwnWish {
    OwnWish {
        volume: "pvc-1".into(),
        kind: "backup".into(),
        node: "node-a".into(),
        holder: "cleatctl ticket run on node-a".into(),
        renew_seconds: 30,
    }
}

/// The tickets of a namespace, for the user of a kubeconfig.
async fn tickets_by(kubeconfig: &Path, namespace: &str) -> OwnTickets {
    let kubectl = Kubectl::read(Some(kubeconfig), None).await.unwrap();
    OwnTickets::of(&kubectl, namespace, TIMEOUT).unwrap()
}

/// The same, for an account of the example's namespace.
async fn tickets_of(cluster: &Cluster, account: &str, namespace: &str) -> OwnTickets {
    let token = cluster.identities().account_token("backups", account);
    tickets_by(&cluster.identities().with_token(&token), namespace).await
}

/// Makes one, as soon as rights that were just given count.
async fn made(tickets: &OwnTickets, name: &str) -> OwnTicket {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match tickets.make(name, &wish()).await {
            Ok(made) => return made,
            Err(NotMade::NotAllowed { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Makes tickets until one is refused, as soon as what was just changed counts; deletes those that are not.
async fn refused(tickets: &OwnTickets, name: &str) -> NotMade {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match tickets.make(name, &wish()).await {
            Err(refused) => return refused,
            Ok(OwnTicket { uid, .. }) => tickets.delete(name, Some(&uid)).await.unwrap(),
        }
        assert!(Instant::now() < deadline, "nothing is refused");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_ticket_lives_and_ends_under_the_rights_of_the_example() {
    let cluster = Cluster::own();
    let controller = connect(&cluster.deployed(), TIMEOUT).await;
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    cluster.identities().apply(&json!([definition().unwrap(), namespace("shop"), namespace("bank")]));
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/tickets.cleat.io"]);
    cluster.kubectl(&["apply", "--server-side", "--validate=strict", "-f", EXAMPLE]);
    let (all, nightly) =
        (ClusterTickets::watch(controller.clone()), tickets_of(&cluster, "nightly", "shop").await);

    let OwnTicket { uid, generation } = made(&nightly, "run-1").await;
    let seen = watched(&all, "shop", "run-1").await;
    assert_eq!((seen.uid.as_str(), seen.generation, generation), (uid.as_str(), 1, 1));
    let wished = seen.read.clone().unwrap().spec;
    let of = (wished.kind, wished.volume.as_deref(), wished.node.as_deref(), wished.renew_seconds);
    assert_eq!(of, (TicketType::Backup, Some("pvc-1"), Some("node-a"), Some(30)));
    assert_eq!(wished.holder, wish().holder);

    let status = TicketStatus {
        observed_generation: 1,
        satisfied: true,
        satisfied_generation: Some(1),
        node: Some("node-a".into()),
        device: Some("/dev/nvme0n1".into()),
        ..TicketStatus::default()
    };
    all.answer(&seen, &status).await.unwrap();
    // As its holder reads it, once it was renewed: by that no answer is out of date.
    nightly.renew("run-1", &uid, 1_000).await.unwrap();
    let account = "system:serviceaccount:backups:nightly";
    let path = "jsonpath={.metadata.generation} {.status.satisfiedGeneration} {.status.node}";
    let reads = ["--as", account, "-n", "shop", "get", "ticket", "run-1", "-o", path];
    assert_eq!(cluster.kubectl(&reads), "1 1 node-a");
    let now = all.now(&seen).await.unwrap().unwrap();
    assert_eq!(now.read.unwrap().renewed.as_deref(), Some("1970-01-01T00:00:01Z"));
    may_ask_the_controller(&cluster, &Reviews::new(controller), &uid).await;

    for again in ["there", "gone already"] {
        assert_eq!(nightly.delete("run-1", Some(&uid)).await, Ok(()), "{again}");
        assert_eq!(all.now(&seen).await, Ok(None), "{again}");
    }
    assert_eq!(nightly.renew("run-1", &uid, 2_000).await, Err(ApiError::NotFound));

    let elsewhere = tickets_of(&cluster, "nightly", "bank").await.make("run-1", &wish()).await.unwrap_err();
    let says = elsewhere.to_string();
    assert!(says.contains("cannot create") && says.contains("granted in namespace bank"), "{says}");
    without_the_verb_of_its_type(&cluster).await;
}

/// What `cleatctl ticket run` asks of the controller: which node it is on, what the volume is, and how the ticket stands.
async fn may_ask_the_controller(cluster: &Cluster, reviews: &Reviews, uid: &str) {
    let token = cluster.identities().account_token("backups", "nightly");
    let Reviewed::User(nightly) = reviews.token(&token, None).await.unwrap() else {
        panic!("it is nobody's")
    };
    for (verb, resource, name) in [
        ("list", "cleatnodes", None),
        ("get", "cleatnodes", Some("node-a")),
        ("get", "cleatvolumes", Some("pvc-1")),
        ("get", "tickets", Some(uid)),
    ] {
        let right = Right { verb, resource, name: name.map(str::to_owned) };
        assert_eq!(reviews.allowed(&nightly, &right).await, Ok(Ok(())), "{right}");
    }
    let fences = Right { verb: "fence", resource: "cleatvolumes", name: Some("pvc-1".into()) };
    assert!(reviews.allowed(&nightly, &fences).await.unwrap().is_err(), "and no more");
}

/// Somebody who may make tickets, and none of the type.
async fn without_the_verb_of_its_type(cluster: &Cluster) {
    cluster.identities().apply(&json!([
        {
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"namespace": "backups", "name": "untyped"},
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"namespace": "shop", "name": "untyped"},
            "rules": [{"apiGroups": ["cleat.io"], "resources": ["tickets"], "verbs": ["create", "patch", "delete"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"namespace": "shop", "name": "untyped"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "untyped"},
            "subjects": [{"kind": "ServiceAccount", "namespace": "backups", "name": "untyped"}],
        },
    ]));
    let (tickets, deadline) = (tickets_of(cluster, "untyped", "shop").await, Instant::now() + PATIENCE);
    loop {
        let NotMade::NotAllowed { why, .. } = refused(&tickets, "run-2").await else {
            panic!("it is allowed")
        };
        if why.contains("does not have the verb use-backup on tickets.cleat.io in namespace shop") {
            return;
        }
        assert!(Instant::now() < deadline && why.contains("cannot create"), "{why}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_ticket_of_the_same_name_is_left_to_who_has_made_it() {
    let cluster = namespace("same-name");
    let tickets = tickets_by(cluster.kubeconfig(), "same-name").await;
    let OwnTicket { uid, .. } = tickets.make("run-1", &wish()).await.unwrap();
    cluster.kubectl(&["-n", "same-name", "delete", "ticket", "run-1"]);
    let others = json!({"type": "snapshot", "claim": "c", "holder": "somebody"});
    cluster.identities().apply(&ticket("same-name", "run-1", others));
    let path = "jsonpath={.metadata.uid} {.metadata.resourceVersion}";
    let is = || cluster.kubectl(&["-n", "same-name", "get", "ticket", "run-1", "-o", path]);
    let before = is();

    let taken = NotMade::NameTaken { namespace: "same-name".into(), name: "run-1".into() };
    assert_eq!(tickets.make("run-1", &wish()).await, Err(taken));
    let renewed = tickets.renew("run-1", &uid, 1_000).await;
    assert!(matches!(&renewed, Err(ApiError::Refused(_) | ApiError::Conflict)), "{renewed:?}");
    assert_eq!(tickets.delete("run-1", Some(&uid)).await, Ok(()));
    assert_eq!(is(), before);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_namespace_that_is_not_there_or_goes_is_named() {
    let cluster = namespace("goes");
    let nowhere = tickets_by(cluster.kubeconfig(), "nowhere").await;
    assert_eq!(nowhere.make("run-1", &wish()).await, Err(NotMade::NoNamespace("nowhere".into())));

    let tickets = tickets_by(cluster.kubeconfig(), "goes").await;
    let OwnTicket { uid, .. } = tickets.make("run-1", &wish()).await.unwrap();
    cluster.kubectl(&["delete", "namespace", "goes", "--wait=false"]);
    assert_eq!(refused(&tickets, "run-2").await, NotMade::NamespaceGoes("goes".into()));
    // What was made before is still its holder's to keep and to end.
    assert_eq!(tickets.renew("run-1", &uid, 1_000).await, Ok(()));
    assert_eq!(tickets.delete("run-1", Some(&uid)).await, Ok(()));
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn the_longest_names_are_taken_and_longer_ones_named() {
    let cluster = namespace("longest");
    let tickets = tickets_by(cluster.kubeconfig(), "longest").await;
    let longest =
        OwnWish { volume: "v".repeat(63), node: "n".repeat(253), holder: "h".repeat(253), ..wish() };
    tickets.make("run-1", &longest).await.unwrap();
    let longer = OwnWish { holder: "h".repeat(254), ..wish() };
    let NotMade::Api(ApiError::Refused(why)) = tickets.make("run-2", &longer).await.unwrap_err() else {
        panic!("it is not refused as invalid")
    };
    assert!(why.contains("spec.holder"), "{why}");
}
