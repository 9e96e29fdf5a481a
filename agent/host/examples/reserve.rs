//! Reservations of a namespace on a real kernel and target: one command a call, its answer as one line of JSON.
//!
//! `reserve DEVICE abilities | report | register KEY [OLD] | unregister KEY | hold KEY | preempt KEY VICTIM |
//! release KEY | clear KEY`
//!
//! Keys are numbers, also as `0x…`. `hold` takes Write Exclusive - All Registrants; `preempt` is preempt-and-abort.
//! Every answer has `took_ms` and, where the command changed something, the report made right after it.
//! Exit code 0: done; 1: it failed, with `error` and whether that was a `conflict`.

// A tool for a terminal.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cleat_host::DevT;
use cleat_host::reservations::{BlockReservations, Report, ReservationError, ReservationKey, Reservations};
use cleat_host::sysfs::Sysfs;
use cleat_host::work::Workers;
use serde_json::{Value, json};

/// A target may wait for a victim's writes.
const DEADLINE: Duration = Duration::from_secs(120);

fn key(text: &str) -> Result<ReservationKey, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = number.map_err(|error| format!("{text}: {error}"))?;
    ReservationKey::new(number).ok_or_else(|| format!("{text}: 0 is no key"))
}

fn device(path: &str) -> Result<DevT, String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("{path}: {error}"))?;
    match metadata.file_type().is_block_device() {
        true => Ok(DevT::from_raw(metadata.rdev())),
        false => Err(format!("{path} is no block device")),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn shown(report: &Report) -> Value {
    json!({
        "generation": report.generation,
        "kind": report.kind.map(|kind| kind.to_string()),
        "held": report.is_held(),
        "registrants": report.registrants.iter().map(|one| json!({
            "key": one.key,
            "host": one.host.map(|host| host.to_string()),
            "holds": one.holds,
        })).collect::<Vec<_>>(),
    })
}

/// Runs one command; its answer without time and report.
async fn run(
    on: &BlockReservations,
    dev: DevT,
    words: &[&str],
) -> Result<Value, Result<ReservationError, String>> {
    let done = |result: Result<(), ReservationError>| result.map(|()| json!({})).map_err(Ok);
    let key = |text: &str| key(text).map_err(Err);
    match words {
        ["abilities"] => {
            let abilities = on.abilities(dev, DEADLINE).await.map_err(Ok)?;
            Ok(json!({
                "rescap": abilities.rescap,
                "any": abilities.any(),
                "write_exclusive_all_registrants": abilities.write_exclusive_all_registrants(),
                "persists": abilities.persists(),
            }))
        }
        ["report"] => Ok(json!({})),
        ["register", new] => done(on.register(dev, None, key(new)?, DEADLINE).await),
        ["register", new, old] => done(on.register(dev, Some(key(old)?), key(new)?, DEADLINE).await),
        ["unregister", own] => done(on.unregister(dev, key(own)?, DEADLINE).await),
        ["hold", own] => done(on.reserve(dev, key(own)?, DEADLINE).await),
        ["preempt", own, victim] => done(on.preempt_and_abort(dev, key(own)?, key(victim)?, DEADLINE).await),
        ["release", own] => done(on.release(dev, key(own)?, DEADLINE).await),
        ["clear", own] => done(on.clear(dev, key(own)?, DEADLINE).await),
        _ => Err(Err("see the head of this example for its arguments".to_owned())),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let on = BlockReservations::at("/dev", Sysfs::default(), Workers::new());
    let began = Instant::now();
    let answer = match words.split_first() {
        Some((path, words)) => match device(path) {
            Ok(dev) => run(&on, dev, words).await.map(|answer| (dev, answer)),
            Err(error) => Err(Err(error)),
        },
        None => Err(Err("see the head of this example for its arguments".to_owned())),
    };
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (mut line, code) = match answer {
        Ok((dev, mut answer)) => {
            if words.get(1) != Some(&"abilities") {
                answer["report"] = match on.report(dev, DEADLINE).await {
                    Ok(report) => shown(&report),
                    Err(error) => json!({ "error": chain(&error) }),
                };
            }
            (answer, ExitCode::SUCCESS)
        }
        Err(Ok(error)) => {
            (json!({ "error": chain(&error), "conflict": error.is_conflict() }), ExitCode::FAILURE)
        }
        Err(Err(error)) => (json!({ "error": error, "conflict": false }), ExitCode::FAILURE),
    };
    line["took_ms"] = took_ms.into();
    println!("{line}");
    code
}
