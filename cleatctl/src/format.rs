//! Single values, as people read them.

use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_proto::cleat::v1::{Epoch, MigrationInfo, VolumeState};

/// `TERM.SEQ`; empty where there is no epoch.
pub(crate) fn epoch(epoch: Option<&Epoch>) -> String {
    epoch.map(|e| format!("{}.{}", e.term, e.seq)).unwrap_or_default()
}

/// The phase that an agent reports for a volume, in one word.
pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "unknown",
        Phase::Absent => "absent",
        Phase::Connecting => "connecting",
        Phase::Ready => "ready",
        Phase::Degraded => "degraded",
        Phase::Lost => "lost",
        Phase::Detaching => "detaching",
    }
}

/// Live paths of all, such as `2/2`; empty where there are none.
pub(crate) fn paths(state: &VolumeState) -> String {
    if state.paths.is_empty() {
        return String::new();
    }
    let live = state.paths.iter().filter(|path| path.state == "live").count();
    format!("{live}/{}", state.paths.len())
}

/// The VM that moves, as `NAMESPACE/NAME`; empty where no migration object names one.
pub(crate) fn vm(migration: &MigrationInfo) -> String {
    let MigrationInfo { vm_namespace, vm_name, .. } = migration;
    if vm_name.is_empty() { String::new() } else { format!("{vm_namespace}/{vm_name}") }
}

/// Each step with the time since the first, such as `granted, target_ready +0.412s, …`.
pub(crate) fn timeline(migration: &MigrationInfo) -> String {
    let Some(first) = migration.steps.first() else { return String::new() };
    let steps = migration.steps.iter().map(|step| {
        let after = step.at_unix_ms.saturating_sub(first.at_unix_ms);
        if after == 0 {
            step.name.clone()
        } else {
            format!("{} +{}.{:03}s", step.name, after / 1000, after % 1000)
        }
    });
    steps.collect::<Vec<_>>().join(", ")
}

/// A time that something took: milliseconds up to a minute, then seconds, then minutes.
pub(crate) fn lasting(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match (hours, minutes, seconds) {
        (0, 0, _) if ms.is_multiple_of(1000) => format!("{seconds} s"),
        (0, 0, _) => format!("{seconds}.{:03} s", ms % 1000),
        (0, _, _) if seconds % 60 == 0 => format!("{minutes} min"),
        (0, _, _) => format!("{minutes} min {} s", seconds % 60),
        _ if minutes % 60 == 0 => format!("{hours} h"),
        _ => format!("{hours} h {} min", minutes % 60),
    }
}

/// A size: exact where it is a round one, else to two places, never rounded up.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let hundredths = u128::from(bytes) * 100 / u128::from(unit);
            return match bytes % unit {
                0 => format!("{} {name}", bytes / unit),
                _ => format!("{}.{:02} {name}", hundredths / 100, hundredths % 100),
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_as_fine_as_its_length_asks_for() {
        let shown = [0, 412, 59_999, 60_000, 300_000, 372_900, 3_600_000, 5_430_000].map(lasting);
        let expected = ["0 s", "0.412 s", "59.999 s", "1 min", "5 min", "6 min 12 s", "1 h", "1 h 30 min"];
        assert_eq!(shown, expected);
        assert!(lasting(u64::MAX).ends_with(" min"));
    }

    #[test]
    fn a_size_between_two_units_is_not_rounded_up() {
        assert_eq!(bytes(1 << 30), "1 GiB");
        assert_eq!(bytes((2 << 30) - 1), "1.99 GiB");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(u64::MAX), "16777215.99 TiB");
    }
}
