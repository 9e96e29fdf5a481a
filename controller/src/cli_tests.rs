#![allow(clippy::unwrap_used)]

use clap::CommandFactory as _;

use super::*;

fn settings(more: &[&str]) -> Result<Settings, String> {
    let base = [
        "cleat-controller",
        "--csi-socket=/run/csi.sock",
        "--agent-listen=127.0.0.1:0",
        "--operator-listen=127.0.0.1:0",
        "--rds-url=https://rds",
        "--rds-password-file=/secret",
        "--rds-ca=/ca.pem",
        "--rds-files=/pool/cleat",
        "--rds-portal=10.0.0.1:4420",
    ];
    let [store, cluster, plaintext] = [
        ("--store", "--store=file:/var/lib/cleat/records"),
        ("--cluster-id", "--cluster-id=one"),
        ("--tls-cert", "--plaintext"),
    ]
    .map(|(unless, word)| {
        let by_cluster = word == "--plaintext" && more.contains(&"--trust=kubernetes");
        (!by_cluster && !more.iter().any(|given| given.starts_with(unless))).then_some(word)
    });
    let usual = [store, cluster, plaintext].into_iter().flatten();
    let cli = Cli::try_parse_from(base.into_iter().chain(usual).chain(more.iter().copied()))
        .map_err(|error| error.to_string())?;
    cli.settings().map_err(|error| cleat_runtime::exit::Causes(&error).to_string())
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

/// The arguments of our container in a file of `deploy`, by whatever template they are made.
fn deployed(file: &str) -> Vec<String> {
    let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let container = text.split("- name: controller\n          image:").nth(1).unwrap();
    let args = container.split_once("args:\n").unwrap().1.split_once("\n          env:").unwrap().0;
    let args = args.lines().filter_map(|line| line.trim_start().strip_prefix("- --"));
    args.map(|arg| format!("--{}", arg.replace(['$', '(', ')'], ""))).collect()
}

#[test]
fn every_argument_that_is_deployed_is_known_and_what_is_needed_is_there() {
    let known = Cli::command();
    let known: Vec<&str> = known.get_arguments().filter_map(clap::Arg::get_long).collect();
    let all = deployed("chart/templates/controller.yaml");
    assert!(all.len() > 9, "{all:?}");
    for arg in all {
        let name = arg.trim_start_matches("--").split('=').next().unwrap();
        assert!(known.contains(&name), "the chart gives --{name}, which is no option");
    }
    let args = deployed("manifests/cleat.yaml");
    Cli::try_parse_from(std::iter::once("controller".to_owned()).chain(args)).unwrap();
}

#[test]
fn defaults_are_those_of_the_design() {
    let settings = settings(&[]).unwrap();
    assert_eq!(settings.core.detach_grace_ms, 30_000);
    assert_eq!(settings.core.interrupt_grace_ms, 30_000);
    let hasty = self::settings(&["--request-limit=20s"]).unwrap();
    assert_eq!(hasty.core.interrupt_grace_ms, 10_000, "who waits for it is there still");
    assert!(self::settings(&["--interrupt-grace=31s"]).is_err());
    assert_eq!(settings.core.drain_bound_ms, 60_000);
    assert_eq!(settings.core.fence_after_ms, 20_000);
    assert_eq!(settings.core.target, cleat_core::TargetAbilities::default());
    assert_eq!(settings.rds.host_acl, HostAcl::None);
    assert_eq!(settings.rds.port, 4420);
    assert_eq!(settings.agents.path_policy, PathPolicy::Any);
    assert_eq!(settings.agents.nqn_prefix.as_str(), "nqn.2026-01.io.cleat:");
    assert_eq!(settings.serving.nqn_prefix, settings.agents.nqn_prefix);
    assert_eq!(settings.store, StoreSettings::File("/var/lib/cleat/records".into()));
}

#[test]
fn in_a_cluster_each_process_asks_for_the_lease_under_its_own_name() {
    let both = [(); 2].map(|()| settings(&["--store=kubernetes", "--pod-name=cleat-0"]).unwrap().store);
    let [StoreSettings::Kubernetes(one), StoreSettings::Kubernetes(other)] = both else { panic!("a file") };
    assert_eq!((one.namespace.as_str(), one.lease.as_str()), ("cleat-system", "cleat-controller"));
    assert_eq!((one.lease_duration, one.api_timeout), (Duration::from_secs(15), Duration::from_secs(3)));
    assert!(one.identity.starts_with("cleat-0_") && one.identity != other.identity, "{one:?} {other:?}");
}

#[test]
fn in_a_cluster_that_says_who_is_who_no_files_are_needed_or_taken() {
    let made = settings(&["--trust=kubernetes", "--namespace=here"]).unwrap();
    let trust = made.trust.unwrap();
    assert_eq!(trust.serving_names, ["cleat-controller.here.svc"]);
    assert_eq!((&*trust.ca_secret, &*trust.ca_configmap), ("cleat-ca", "cleat-ca"));
    assert_eq!((&*trust.token_audience, &*trust.agent_service_account), ("cleat.io", "cleat-agent"));
    assert!(matches!(made.agent_transport, ServerTransport::Issued(_)));
    let named =
        settings(&["--trust=kubernetes", "--serving-name=a.test", "--serving-name=10.0.0.1"]).unwrap();
    assert_eq!(named.trust.unwrap().serving_names, ["a.test", "10.0.0.1"]);
    for (more, said) in [
        (&["--trust=kubernetes", "--plaintext"][..], "--plaintext with --trust kubernetes"),
        (&["--trust=kubernetes", "--tls-cert=/c", "--tls-key=/k"], "--tls-cert with --trust kubernetes"),
        (&["--trust=kubernetes", "--serving-name=two words"], "--serving-name two words"),
    ] {
        let refused = settings(more).unwrap_err();
        assert!(refused.contains(said), "{refused}");
    }
    assert!(settings(&[]).unwrap().trust.is_none());
}

#[test]
fn a_wrong_value_is_refused_with_the_option_and_the_value() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--drain-bound=soon"], &["--drain-bound", "soon"]),
        (&["--drain-bound=6m"], &["--drain-bound", "6m", "at most 5m"]),
        (&["--heartbeat-interval=1ms"], &["--heartbeat-interval", "1ms", "at least 20ms"]),
        (&["--heartbeat-interval=6s"], &["--silence-deadline", "10s", "at least 12s"]),
        (&["--attach-deadline=2h"], &["--attach-deadline", "2h", "at most 1h"]),
        (&["--rds-portal=10.0.0.1:4420"], &["--rds-portal", "10.0.0.1:4420", "twice"]),
        (&["--rds-portal=10.0.0.2:4421"], &["--rds-portal", "10.0.0.2:4421", "one port"]),
        (&["--rds-portal=0.0.0.0:4420"], &["--rds-portal", "0.0.0.0:4420"]),
        (&["--rds-portal=rds:4420"], &["--rds-portal", "rds:4420"]),
        (&["--rds-timeout=0s"], &["--rds-timeout", "0s"]),
        (&["--nqn-prefix=iqn.x:"], &["--nqn-prefix", "iqn.x:"]),
        (&["--driver-name=-x"], &["--driver-name", "-x"]),
        (&["--path-policy=most"], &["--path-policy", "most"]),
        (&["--rds-fingerprint=ab"], &["--rds-fingerprint", "ab"]),
        (&["--store=/var/lib/x"], &["--store", "/var/lib/x", "file:PATH"]),
        (&["--store=kubernetes", "--lease-duration=8s"], &["--lease-duration", "8s", "at least 11s"]),
        (&["--store=kubernetes", "--lease-duration=12500ms"], &["--lease-duration", "12s 500ms", "whole"]),
        (&["--request-limit=1ms"], &["--request-limit", "1ms"]),
        (&["--fence-after=1ms"], &["--fence-after", "1ms"]),
        (&["--rds-abilities=/nonexistent"], &["--rds-abilities", "/nonexistent"]),
        (&["--secret-key-file=/nonexistent"], &["--secret-key-file", "/nonexistent"]),
        (&["--cluster-id=cleat-probe"], &["--cluster-id", "cleat-probe", "rds probe"]),
    ];
    for (more, words) in cases {
        let error = settings(more).unwrap_err();
        for word in *words {
            assert!(error.contains(word), "{more:?}: {error} should say {word}");
        }
    }
}

#[test]
fn what_was_probed_is_what_the_core_relies_on_and_secrets_need_tls() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let abilities = file(
        "abilities",
        r#"{"version":1,"rds":"https://rds","probed_at":"2026-11-20T10:00:00Z","host_acl":"list","export_cuts":true,
        "export_cut_ms":40,"export_drains":"seen","uuid_kept":true,"password":true,"in_band_auth":true,
        "reservations":"none","grow_online":false}"#,
    );
    let abilities = format!("--rds-abilities={abilities}");
    let probed = settings(&[&abilities]).unwrap();
    assert_eq!(probed.rds.host_acl, HostAcl::List);
    let target = probed.core.target;
    assert!(target.acl && target.export_cuts && target.export_drains && !target.secret, "{target:?}");
    let key = format!("--secret-key-file={}", file("key", "0123456789abcdef0123456789abcdef"));
    let clear = settings(&[&abilities, &key]).unwrap_err();
    assert!(clear.contains("--secret-key-file") && clear.contains("TLS"), "{clear}");
    let anybody = settings(&[&abilities, &key, "--tls-cert=/c.pem", "--tls-key=/c.key"]).unwrap_err();
    assert!(anybody.contains("--agent-client-ca"), "{anybody}");
    // The same file as the one before is none.
    let same = key.replace("--secret-key-file", "--old-secret-key-file");
    let same = settings(&[&abilities, &key, &same]).unwrap_err();
    assert!(same.contains("--old-secret-key-file: it holds the same key"), "{same}");
}
