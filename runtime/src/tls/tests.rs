use clap::Parser;
use rcgen::{CertificateParams, Issuer, KeyPair};

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    tls: ServerTlsArgs,
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn load(words: &[&str], address: SocketAddr) -> Result<ServerTransport, String> {
    let cli = Cli::try_parse_from(["x"].iter().chain(words)).map_err(|error| error.to_string())?;
    cli.tls.load(ClientKind::Node, address).map_err(|error| crate::exit::Causes(&error).to_string())
}

/// A folder with a CA's certificate, a certificate of it, and its key, under this prefix.
fn make(folder: &Path, prefix: &str) {
    let ca_key = KeyPair::generate().expect("key");
    let mut ca = CertificateParams::new(vec![]).expect("params");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("CA").pem();
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["cleat.test".to_owned()]).expect("params");
    let cert = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("certificate");
    write(folder, &format!("{prefix}-ca.pem"), &ca_pem);
    write(folder, &format!("{prefix}.pem"), &cert.pem());
    write(folder, &format!("{prefix}.key"), &key.serialize_pem());
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

#[test]
fn plaintext_is_never_a_default_never_beside_tls_and_only_on_loopback() {
    assert!(load(&[], loopback()).unwrap_err().contains("--plaintext"));
    assert!(load(&["--plaintext", "--tls-cert", "a", "--tls-key", "b"], loopback()).is_err());
    assert!(load(&["--insecure-any-address"], loopback()).is_err());
    assert!(matches!(load(&["--plaintext"], loopback()), Ok(ServerTransport::Plaintext)));
    let open = ([10, 0, 0, 1], 7443).into();
    let refused = load(&["--plaintext"], open).unwrap_err();
    assert!(refused.contains("--agent-listen 10.0.0.1:7443") && refused.contains("--insecure-any-address"));
    assert!(load(&["--plaintext", "--insecure-any-address"], open).is_ok());
}

#[test]
fn a_wrong_file_is_named_with_its_option() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name).display().to_string();
    for prefix in ["agents", "operators"] {
        make(dir.path(), prefix);
    }
    write(dir.path(), "junk.pem", "junk");
    let (cert, key) = (path("agents.pem"), path("agents.key"));
    let (agents, operators) = (path("agents-ca.pem"), path("operators-ca.pem"));
    let load = |cert: &str, key: &str, agents: &str, operators: &str| {
        let words = [
            ["--tls-cert", cert],
            ["--tls-key", key],
            ["--agent-client-ca", agents],
            ["--operator-client-ca", operators],
        ];
        load(words.as_flattened(), loopback()).map(drop)
    };

    assert_eq!(load(&cert, &key, &agents, &operators), Ok(()));
    let junk = path("junk.pem");
    for (refused, words) in [
        (load(&path("none.pem"), &key, &agents, &operators), ["none.pem", "--tls-cert"]),
        (load(&cert, &junk, &agents, &operators), ["junk.pem", "--tls-key"]),
        (load(&cert, &key, &junk, &operators), ["junk.pem", "--agent-client-ca"]),
        (load(&cert, &key, &agents, &junk), ["junk.pem", "--operator-client-ca"]),
        (load(&cert, &path("operators.key"), &agents, &operators), ["--tls-cert", "--tls-key"]),
        (load(&cert, &key, &agents, &agents), ["agents-ca.pem", "its own CA"]),
    ] {
        let refused = refused.unwrap_err();
        assert!(words.iter().all(|word| refused.contains(word)), "{refused} should say {words:?}");
    }
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("mode");
    let open = load(&cert, &key, &agents, &operators).unwrap_err();
    assert!(open.contains("agents.key") && open.contains("0644") && open.contains("chmod 600"), "{open}");
}

#[test]
fn a_ca_of_clients_that_has_ended_beside_a_valid_one_is_no_complaint() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name).display().to_string();
    for prefix in ["agents", "operators"] {
        make(dir.path(), prefix);
    }
    let mut before = CertificateParams::new(vec![]).expect("params");
    before.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    before.not_after = rcgen::date_time_ymd(2000, 1, 1);
    let before = before.self_signed(&KeyPair::generate().expect("key")).expect("CA").pem();
    let valid = std::fs::read_to_string(path("agents-ca.pem")).expect("read");
    let files = ServerFiles {
        cert: path("agents.pem").into(),
        key: path("agents.key").into(),
        agent_ca: path("agents-ca.pem").into(),
        operator_ca: path("operators-ca.pem").into(),
    };
    for (pem, complained_of) in [(before.clone(), &["agent-ca"][..]), (format!("{before}{valid}"), &[])] {
        write(dir.path(), "agents-ca.pem", &pem);
        let tls = ServerTls::load(ClientKind::Node, files.clone()).expect("files that can be used");
        let ends = renew::Renewable::expiries(&tls);
        let said: Vec<_> = ends.iter().filter(|end| end.complaint().is_some()).map(|end| end.of).collect();
        assert_eq!(said, complained_of);
    }
}

#[test]
fn clients_without_a_ca_are_never_served_over_tls() {
    let missing = load(&["--tls-cert", "a", "--tls-key", "b"], loopback()).unwrap_err();
    assert!(missing.contains("--agent-client-ca"), "{missing}");
    let missing =
        load(&["--tls-cert", "a", "--tls-key", "b", "--agent-client-ca", "c"], loopback()).unwrap_err();
    assert!(missing.contains("--operator-client-ca"), "{missing}");
}
