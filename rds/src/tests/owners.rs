//! Several clusters on one RDS.

use super::*;

/// A second cluster's client to the same RDS and folder.
fn another(bench: &Bench) -> RestRds {
    let mut config = config(&bench.url, &bench.dir);
    let two = ClusterId::new("two").unwrap();
    config.naming = Naming::new("/pool/cleat", "nqn.2000-02.com.mikrotik:", two).unwrap();
    RestRds::new(config).unwrap()
}

/// Everything that could change or tell of a volume.
async fn everything(rds: &RestRds, volume: &str) -> Vec<(&'static str, Result<(), RdsError>)> {
    let (volume, a) = (id(volume), host("a"));
    vec![
        ("create", rds.create(&new(volume.as_str(), 4096)).await.map(drop)),
        ("look", rds.volume(&volume, Priority::List, Freshness::Now).await.map(drop)),
        ("allow", rds.allow(&volume, &a, Priority::Attach).await.map(drop)),
        ("deny", rds.deny(&volume, &a, Priority::Detach).await.map(drop)),
        ("hide", rds.hide(&volume, Priority::Fence).await),
        ("show", rds.show(&volume, Priority::Fence).await),
        ("set properties", rds.set_properties(&volume, &[("comment", "x")]).await),
        ("delete", rds.delete(&volume).await),
    ]
}

#[tokio::test]
async fn a_volume_of_another_cluster_is_left_alone_and_its_owner_named() {
    let bench = Bench::start().await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    let two = another(&bench);
    two.create(&new("pvc-2", 4096)).await.unwrap();
    let before = bench.router.disk("pvc-1");
    bench.router.log();
    for (what, result) in everything(&two, "pvc-1").await {
        let error = result.expect_err(what);
        assert!(matches!(error, RdsError::Conflict { .. }), "{what}: {error}");
        assert!(error.to_string().contains("a volume of cluster one"), "{what}: {error}");
    }
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")));
    assert_eq!(bench.router.disk("pvc-1"), before);
    let listed = async |rds: &RestRds| -> Vec<String> {
        let all = rds.volumes(Priority::List, Freshness::Now).await.unwrap();
        all.volumes().map(|volume| volume.id.to_string()).collect()
    };
    assert_eq!(
        (listed(&bench.rds).await, listed(&two).await),
        (vec!["pvc-1".to_owned()], vec!["pvc-2".to_owned()])
    );
}

#[tokio::test]
async fn a_disk_that_nobody_marked_is_left_alone_until_it_is_given_the_mark() {
    let bench = Bench::start().await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.router.disks.lock().unwrap()[0].insert("comment".into(), json!("by hand"));
    bench.router.log();
    for (what, result) in everything(&bench.rds, "pvc-1").await {
        let error = result.expect_err(what).to_string();
        assert!(
            error.contains(r#"/disk set [find slot=pvc-1] comment="cleat cluster=one""#),
            "{what}: {error}"
        );
    }
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")));
    bench.router.disks.lock().unwrap()[0].insert("comment".into(), json!("cleat cluster=one"));
    bench.rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await.unwrap();
}
