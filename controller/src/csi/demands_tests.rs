#![allow(clippy::unwrap_used)]

use super::*;

fn values(all: &[(&str, &str)]) -> HashMap<String, String> {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn of_parameters(all: &[(&str, &str)]) -> Result<VolumeDemands, Invalid> {
    VolumeDemands::of_parameters("parameters", &values(all))
}

fn of_context(all: &[(&str, &str)]) -> Result<VolumeDemands, Invalid> {
    VolumeDemands::of_context("volume_context", &values(all))
}

fn presumed(all: &[(&str, &str)]) -> VolumeDemands {
    VolumeDemands::presumed(Some(&values(all).into_iter().collect()))
}

fn spec() -> VolumeSpec {
    VolumeSpec {
        id: cleat_core::VolumeId::new("v").unwrap(),
        access: cleat_core::Access::RwxBlock,
        subsystem_nqn: None,
        portals: Vec::new(),
        size_bytes: 4096,
        min_fence: MinFence::Secret,
        migration_timeout_ms: 1,
        require_migration: true,
    }
}

#[test]
fn demands_are_the_same_in_each_of_their_forms() {
    let none = VolumeDemands::default();
    let fence = VolumeDemands { min_fence: Some(MinFence::Acl), ..none };
    let timeout = VolumeDemands { migration_timeout_s: Some(120), ..none };
    let all =
        VolumeDemands { require_migration: true, ..VolumeDemands { migration_timeout_s: Some(30), ..fence } };
    for demands in [none, fence, timeout, all] {
        let context = volume_context(&demands.at_the_rds());
        assert_eq!(VolumeDemands::of_context("volume_context", &context).unwrap(), demands);
        assert_eq!(VolumeDemands::presumed(Some(&context.into_iter().collect())), demands);
    }
    assert_eq!(volume_context(&none.at_the_rds()), HashMap::new());
    let asked = [("minFence", "acl"), ("migrationTimeoutSeconds", "0120"), ("requireMigration", "false")];
    let asked = of_parameters(&asked).unwrap();
    assert_eq!(asked, VolumeDemands { migration_timeout_s: Some(120), ..fence });
    let kept = [("cleat.io/min-fence", "acl"), ("cleat.io/migration-timeout-seconds", "120")];
    assert_eq!(volume_context(&asked.at_the_rds()), values(&kept));
}

#[test]
fn a_volume_of_a_publish_has_what_its_context_demands_and_nothing_else() {
    let demanded = [("cleat.io/migration-timeout-seconds", "3600"), ("cleat.io/require-migration", "true")];
    let with = of_context(&demanded).unwrap().put_into(spec());
    assert_eq!(
        (with.min_fence, with.migration_timeout_ms, with.require_migration),
        (MinFence::NodeGone, 3_600_000, true)
    );
    let without =
        of_context(&[("storage.kubernetes.io/csiProvisionerIdentity", "x")]).unwrap().put_into(spec());
    let usual = (MinFence::NodeGone, VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS, false);
    assert_eq!((without.min_fence, without.migration_timeout_ms, without.require_migration), usual);
    assert_eq!(without.size_bytes, 4096);
}

#[test]
fn what_cannot_be_read_is_refused_with_the_value_and_the_rule() {
    let long = "9".repeat(1000);
    for value in ["", "29", "3601", "-30", "+60", "60s", "1e2", "60.0", " 60", &long] {
        for (refused, field) in [
            (
                of_parameters(&[("migrationTimeoutSeconds", value)]),
                r#"parameters["migrationTimeoutSeconds"]: "#,
            ),
            (
                of_context(&[("cleat.io/migration-timeout-seconds", value)]),
                r#"volume_context["cleat.io/migration-timeout-seconds"]: "#,
            ),
        ] {
            let said = refused.unwrap_err().to_string();
            assert!(said.starts_with(field) && said.len() < 500, "{said}");
            assert!(said.ends_with("is not a number of seconds from 30 to 3600"), "{said}");
        }
    }
    for (least, most) in [("30", 30), ("3600", 3600)] {
        assert_eq!(
            of_parameters(&[("migrationTimeoutSeconds", least)]).unwrap().migration_timeout_s,
            Some(most)
        );
    }
    for value in ["", "yes", "True", "1"] {
        let said = of_parameters(&[("requireMigration", value)]).unwrap_err().to_string();
        let rule = format!("parameters[\"requireMigration\"]: {value:?} is neither true nor false");
        assert_eq!(said, rule);
        assert!(of_context(&[("cleat.io/require-migration", value)]).is_err(), "{value}");
    }
    let said = of_parameters(&[("minFence", "hope")]).unwrap_err().to_string();
    let names = "node-gone, export-off, acl, secret, reservation";
    assert_eq!(said, format!("parameters[\"minFence\"]: \"hope\" is none of {names}"));
    let said = of_parameters(&[("minFence", "acl"), ("migrationTimeout", "60")]).unwrap_err().to_string();
    assert_eq!(said, r#"parameters["migrationTimeout"]: not a parameter that this driver knows"#);
}

#[test]
fn a_migration_is_required_only_where_there_is_a_cluster_to_ask() {
    let of = |value| of_parameters(&[("requireMigration", value)]).unwrap();
    assert!(of("true").require_migration && !of("false").require_migration);
    for (value, in_cluster) in [("true", true), ("false", true), ("false", false)] {
        assert_eq!(of(value).kept_to("parameters", in_cluster).unwrap(), of(value));
    }
    let said = of("true").kept_to("parameters", false).unwrap_err().to_string();
    assert!(
        said.starts_with(r#"parameters["requireMigration"]: true is for a controller in a cluster"#),
        "{said}"
    );
}

#[test]
fn where_nobody_can_be_answered_a_doubt_is_the_strongest_demand() {
    let strongest = VolumeDemands {
        min_fence: Some(MinFence::Reservation),
        migration_timeout_s: None,
        require_migration: true,
    };
    assert_eq!(VolumeDemands::presumed(None), strongest, "nothing is known");
    let doubts = [
        ("cleat.io/min-fence", "hope"),
        ("cleat.io/migration-timeout-seconds", "5"),
        ("cleat.io/require-migration", "perhaps"),
    ];
    assert_eq!(presumed(&doubts), strongest);
    assert_eq!(presumed(&[]), VolumeDemands::default(), "nothing is demanded");
    assert_eq!(presumed(&[("cleat.io/require-migration", "false")]), VolumeDemands::default());
}
