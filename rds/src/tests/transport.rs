//! Connection, TLS, deadline and password.

use std::net::SocketAddr;

use cleat_runtime::tls::renew;

use super::*;

async fn way(rds: &RestRds) -> Way {
    match rds.resource().await {
        Err(RdsError::Unreachable { way, .. }) => way,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_rds_says_what_it_is() {
    let bench = Bench::start().await;
    assert_eq!(bench.rds.resource().await.unwrap().version, "7.24 (stable)");
}

#[tokio::test]
async fn the_password_is_read_again_when_it_is_not_accepted() {
    let bench = Bench::start().await;
    bench.rds.resource().await.unwrap();
    *bench.router.password.lock().unwrap() = "rotated".into();
    let refused = bench.rds.resource().await.unwrap_err();
    assert!(matches!(refused, RdsError::Unauthorised { .. }), "{refused}");
    std::fs::write(bench.password_file(), "rotated\n").unwrap();
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    std::fs::remove_file(bench.password_file()).unwrap();
    *bench.router.password.lock().unwrap() = "again".into();
    let gone = bench.rds.resource().await.unwrap_err();
    assert!(gone.to_string().contains("password file"), "{gone}");
}

#[tokio::test]
async fn no_connection_no_answer_and_a_lost_one_have_their_own_errors() {
    let bench = Bench::start().await;
    bench.router.fault("GET system", Fault::LoseAnswer);
    assert_eq!(way(&bench.rds).await, Way::Timeout);

    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let rds = RestRds::new(config(&format!("http://{address}"), &bench.dir)).unwrap();
    assert_eq!(way(&rds).await, Way::Connect);

    let rude = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = rude.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = rude.accept().await.unwrap();
            stream.readable().await.unwrap(); // the request is on its way, and gets no answer
        }
    });
    let rds = RestRds::new(config(&format!("http://{address}"), &bench.dir)).unwrap();
    assert_eq!(way(&rds).await, Way::Lost);
}

#[tokio::test]
async fn requests_share_one_connection() {
    let front = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let router = Arc::new(Router::default());
    *router.password.lock().unwrap() = "secret".into();
    let back = Arc::clone(&router).serve().await;
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = front.accept().await.unwrap();
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", back)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let rds = RestRds::new(config(&format!("http://{address}"), &dir)).unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let rds = rds.clone();
            tokio::spawn(async move { rds.create(&new(&format!("pvc-{n}"), 4096)).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 1);
}

/// An HTTPS router: its address, its certificate in PEM, and the certificate's fingerprint.
async fn https() -> (SocketAddr, String, Fingerprint) {
    https_for(Duration::from_secs(30 * 86_400)).await
}

/// The same with a certificate that is good for so long.
async fn https_for(valid: Duration) -> (SocketAddr, String, Fingerprint) {
    cleat_runtime::tls::install_provider();
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = (std::time::SystemTime::now() + valid).into();
    let signing_key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertifiedKey { cert: params.self_signed(&signing_key).unwrap(), signing_key };
    let tls = axum_server::tls_rustls::RustlsConfig::from_pem(
        made.cert.pem().into_bytes(),
        made.signing_key.serialize_pem().into_bytes(),
    );
    let router = Arc::new(Router::default());
    *router.password.lock().unwrap() = "secret".into();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let server = axum_server::from_tcp_rustls(listener, tls.await.unwrap()).unwrap();
    tokio::spawn(server.serve(router.app().into_make_service()));
    (address, made.cert.pem(), Fingerprint::of(made.cert.der()))
}

#[tokio::test]
async fn the_rds_is_known_by_its_ca_or_pinned_certificate_alone() {
    let (address, pem, fingerprint) = https().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let with = |host: &str, trust: Trust| {
        let mut config = config(&format!("https://{host}:{}", address.port()), &dir);
        config.endpoint.trust = trust;
        config.endpoint.timeout = Duration::from_secs(5);
        RestRds::new(config).unwrap()
    };
    with("localhost", Trust::Ca(ca.clone())).resource().await.unwrap();
    with("127.0.0.1", Trust::Pinned(fingerprint)).resource().await.unwrap();

    assert_eq!(way(&with("127.0.0.1", Trust::Ca(ca))).await, Way::Tls, "the name is another");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let wrong = Trust::Pinned(Fingerprint::of(other.cert.der()));
    assert_eq!(way(&with("localhost", wrong)).await, Way::Tls);
}

/// An RDS over TLS that is known by a CA file in a folder that is swapped as the kubelet does it.
fn by_ca(address: SocketAddr, dir: &tempfile::TempDir) -> RestRds {
    let mut config = config(&format!("https://localhost:{}", address.port()), dir);
    config.endpoint.trust = Trust::Ca(dir.path().join("..data").join("ca.pem"));
    RestRds::new(config).unwrap()
}

fn swap(dir: &tempfile::TempDir, name: &str, pem: &str) {
    let (folder, fresh) = (dir.path().join(name), dir.path().join("..fresh"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("ca.pem"), pem).unwrap();
    std::os::unix::fs::symlink(&folder, &fresh).unwrap();
    std::fs::rename(fresh, dir.path().join("..data")).unwrap();
}

#[tokio::test]
async fn a_ca_file_that_is_swapped_counts_for_connections_that_are_there() {
    let (address, pem, _) = https().await;
    let dir = tempfile::tempdir().unwrap();
    swap(&dir, "1", &pem);
    let rds = by_ca(address, &dir);
    let files = rds.certificates();
    rds.resource().await.unwrap();
    assert!(!files.refresh().unwrap(), "nothing is new");
    let ends = files.expiries();
    assert_eq!(ends.iter().map(|end| end.of).collect::<Vec<_>>(), ["rds-ca", "rds"]);
    assert!(ends[0].option == "--rds-ca" && ends[0].at == ends[1].at, "{ends:?}");

    swap(&dir, "2", "junk");
    let unusable = files.refresh().unwrap_err().to_string();
    assert!(unusable.contains("ca.pem"), "{unusable}");
    rds.resource().await.expect("what was read before stays");

    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    swap(&dir, "3", &other.cert.pem());
    assert!(files.refresh().unwrap());
    assert_eq!(way(&rds).await, Way::Tls, "the connection that was there rested on another CA");
    let mut before = rcgen::CertificateParams::new(vec![]).unwrap();
    before.not_after = rcgen::date_time_ymd(2000, 1, 1);
    let before = before.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    swap(&dir, "4", &format!("{}{pem}", before.pem()));
    assert!(files.refresh().unwrap());
    rds.resource().await.unwrap();
    assert_eq!(files.expiries()[0].at, ends[0].at, "the one before has ended, and is not needed");
}

#[tokio::test]
async fn no_connection_to_the_rds_outlives_its_certificate() {
    // Certificates count whole seconds.
    let (address, pem, _) = https_for(Duration::from_secs(5)).await;
    let dir = tempfile::tempdir().unwrap();
    swap(&dir, "1", &pem);
    let rds = by_ca(address, &dir);
    let files = rds.certificates();
    rds.resource().await.unwrap();
    assert!(files.expiries().iter().all(|end| end.complaint().is_some()), "{:?}", files.expiries());
    let over = async {
        while rds.resource().await.is_ok() {
            files.refresh().unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), over).await.expect("an end");
    assert_eq!(way(&rds).await, Way::Tls);
    let said: Vec<String> = files.expiries().iter().filter_map(renew::Expiry::complaint).collect();
    assert!(
        said.iter().any(|said| said.contains("shown by the RDS") && said.contains("expired")),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_password_is_never_sent_in_clear_by_mistake() {
    let dir = tempfile::tempdir().unwrap();
    for (url, trust) in [
        ("http://rds", Trust::Pinned("ab".repeat(32).parse().unwrap())),
        ("https://rds", Trust::Plaintext),
        ("https://rds/rest", Trust::Pinned("ab".repeat(32).parse().unwrap())),
        ("https://user@rds", Trust::Pinned("ab".repeat(32).parse().unwrap())),
    ] {
        let mut config = config(url, &dir);
        config.endpoint.trust = trust;
        let error = RestRds::new(config).unwrap_err();
        assert!(matches!(error, EndpointError::Url { .. }), "{url}: {error}");
    }
}
