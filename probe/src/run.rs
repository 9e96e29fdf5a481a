//! One probe from beginning to end.
//!
//! Comes in: settings. Goes out: the account on standard output, and the file of abilities. Always holds:
//! once the scratch disk may exist, it and the probe's connections are removed, however this ends (an answer,
//! an error, a panic, a signal, the time limit). The file is written only if every question was asked, whole
//! or not at all.

use std::fs::{File, Permissions};
use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cleat_rds::{Abilities, ProbedAcl, RdsError};
use cleat_runtime::exit::Causes;
use futures_util::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Settings;
use crate::findings::{Cut, Finding, Findings, Remarked};
use crate::node::ProbeNode;
use crate::questions::{Bench, acl, auth, drain, grow, reservations, toggle};
use crate::scratch::Scratch;
use crate::trouble::QuestionError;
use crate::words;

/// No question takes nearly this long, unless something hangs.
const QUESTION: Duration = Duration::from_secs(240);
/// Longest time to delete connections before the next question, with what the kernel may still wait for.
const CLEARING: Duration = Duration::from_secs(120);

/// Why a probe ended without its file, or left something behind.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A signal handler, the kernel's interfaces or the scratch disk could not be set up.
    #[error("cannot probe")]
    Begin(#[source] QuestionError),
    /// The RDS did not answer, or does not know the user.
    #[error("cannot probe")]
    Rds(#[from] RdsError),
    /// A signal stopped it; nothing was written.
    #[error("stopped by {0}; nothing was written")]
    Stopped(&'static str),
    /// The time limit passed; nothing was written.
    #[error("not finished after {} (--limit); nothing was written", humantime::format_duration(*.0))]
    Limit(Duration),
    /// A bug of this program ended it.
    #[error("a bug of this program ended it, please report it; nothing was written")]
    Panicked,
    /// The file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file that `--out` names.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Something is left; the account says what, and how to remove it.
    #[error("cannot remove everything: see above")]
    Left,
}

/// Probes, reports the answers, and writes them.
///
/// # Errors
/// [`RunError`].
pub async fn run(settings: Settings) -> Result<(), RunError> {
    // Before anything is made: a signal that comes earlier ends the program the usual way.
    let mut stops =
        Stops::watch().map_err(|source| RunError::Begin(QuestionError::Io { what: "watch", source }))?;
    let scratch = Scratch::new(settings.rds.clone()).map_err(RunError::Begin)?;
    let node = ProbeNode::open(&scratch.nqn(), settings.portals.clone()).await.map_err(RunError::Begin)?;
    let device = scratch.resource().await?;
    say(&format!("Probing {}: {} RouterOS {}", settings.url, device.board, device.version));
    say(&format!("Scratch disk {}, file {}, NQN {}.", scratch.slot(), scratch.file(), scratch.nqn()));
    say("If this program is killed, remove it by hand:");
    by_hand(&scratch).iter().for_each(|line| say(line));
    let bench = Bench::new(node, scratch);
    let findings = Mutex::new(Findings::default());
    let asking = AssertUnwindSafe(ask_all(&bench, &findings)).catch_unwind();
    let ended = tokio::select! {
        asked = asking => match asked {
            Ok(asked) => asked.map_err(RunError::Begin),
            Err(_) => Err(RunError::Panicked),
        },
        name = stops.next() => Err(RunError::Stopped(name)),
        () = tokio::time::sleep(settings.limit) => Err(RunError::Limit(settings.limit)),
    };
    say("Removing the scratch disk and the connections to it.");
    let clean = clean_up(&bench).await;
    if ended.is_ok() {
        let findings = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        conclude(&settings, &findings)?;
    }
    ended?;
    if clean { Ok(()) } else { Err(RunError::Left) }
}

/// Asks all questions, each with nobody connected before it.
async fn ask_all(bench: &Bench, findings: &Mutex<Findings>) -> Result<(), QuestionError> {
    bench.scratch.make().await?;
    let note = |change: &dyn Fn(&mut Findings)| {
        change(&mut findings.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let host_acl = ask(bench, "the host list", acl::ask(bench)).await;
    if let Finding::Found(Remarked { is, .. }) = &host_acl {
        bench.scratch.learn(*is);
    }
    let enforced = host_acl.found().is_some_and(|acl| acl.is != ProbedAcl::Ignored);
    note(&|findings| findings.host_acl = host_acl.clone());

    let removal_cuts = if enforced {
        ask(bench, "taking a host off the list", toggle::removal(bench)).await
    } else {
        Finding::Unknown("the list is not enforced".to_owned())
    };
    note(&|findings| findings.removal_cuts = removal_cuts.clone());

    let (cut, uuid_kept) = match ask(bench, "taking the export off", toggle::export(bench)).await {
        Finding::Found((cut, identity)) => (Finding::Found(cut), answered(identity)),
        Finding::Unknown(why) => (Finding::Unknown(why.clone()), Finding::Unknown(why)),
    };
    note(&|findings| {
        findings.cut = cut.clone();
        findings.uuid_kept = uuid_kept.clone();
    });

    let drains = match &cut {
        Finding::Found(Cut::Stays) => {
            Finding::Unknown("taking the export off does not end sessions".to_owned())
        }
        _ => ask(bench, "writes in flight when the export goes off", drain::ask(bench)).await,
    };
    note(&|findings| findings.drains = drains.clone());
    let grows = ask(bench, "growing a disk that is in use", grow::ask(bench)).await;
    note(&|findings| findings.grow_online = grows.clone());
    // After everything that writes: the disk stays reserved, and other hosts' writes are refused.
    let worth = ask(bench, "reservations", reservations::ask(bench)).await;
    note(&|findings| findings.reservations = worth.clone());
    // The last: a password that cannot be removed again would keep everybody out.
    let (password, in_band) = match ask(bench, "password and authentication", auth::ask(bench)).await {
        Finding::Found(answers) => answers,
        Finding::Unknown(why) => (Finding::Unknown(why.clone()), Finding::Unknown(why)),
    };
    note(&|findings| {
        findings.password = password.clone();
        findings.in_band_auth = in_band.clone();
    });
    Ok(())
}

/// Asks one question, from a clear bench, within its time.
async fn ask<T>(
    bench: &Bench,
    about: &str,
    question: impl Future<Output = Result<T, QuestionError>>,
) -> Finding<T> {
    say(&format!("Asking about {about} ..."));
    let cleared = tokio::time::timeout(CLEARING, bench.clear()).await;
    match cleared {
        Ok(Ok(())) => {}
        Ok(Err(trouble)) => {
            return Finding::Unknown(format!(
                "the question before could not be cleared away: {}",
                Causes(&trouble)
            ));
        }
        Err(_) => {
            return Finding::Unknown("the question before could not be cleared away in time".to_owned());
        }
    }
    match tokio::time::timeout(QUESTION, question).await {
        Ok(outcome) => answered(outcome),
        Err(_) => Finding::Unknown(format!("it took longer than {} s", QUESTION.as_secs())),
    }
}

fn answered<T>(outcome: Result<T, QuestionError>) -> Finding<T> {
    match outcome {
        Ok(found) => Finding::Found(found),
        Err(trouble) => Finding::Unknown(Causes(&trouble).to_string()),
    }
}

/// Removes everything; true if nothing is left. Reports what is left, and how to remove it.
async fn clean_up(bench: &Bench) -> bool {
    let mut clean = true;
    // First, so that nothing is in flight when the disk goes; again below, whatever happens here.
    let _ = tokio::time::timeout(CLEARING, bench.node.disconnect_all()).await;
    if let Err(error) = bench.scratch.remove().await {
        clean = false;
        say(&format!("LEFT BEHIND: scratch disk {} ({})", bench.scratch.slot(), Causes(&error)));
        by_hand(&bench.scratch).iter().for_each(|line| say(line));
    }
    // A late connect can no longer succeed now, but one that just did is seen.
    let gone = tokio::time::timeout(CLEARING, bench.node.disconnect_all()).await;
    if !matches!(gone, Ok(Ok(()))) {
        clean = false;
        let left = bench.node.left().await;
        say(&format!("LEFT BEHIND: connections {} to {}", left.join(", "), bench.scratch.nqn()));
        say("    They end by themselves within a minute or so of the disk's end, or now, on this node:");
        say(&format!("    nvme disconnect -n {}", bench.scratch.nqn()));
    }
    clean
}

/// The commands that remove the scratch disk by hand.
fn by_hand(scratch: &Scratch) -> Vec<String> {
    vec![
        format!("    /disk/set [find slot={}] nvme-tcp-export=no", scratch.slot()),
        format!("    /disk/remove [find slot={}]", scratch.slot()),
        format!("    /file/remove [find name=\"{}\"]", scratch.file()),
    ]
}

fn conclude(settings: &Settings, findings: &Findings) -> Result<(), RunError> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let abilities = findings.abilities(settings.url.clone(), now, settings.assume_drains);
    say("");
    words::account(findings, settings.assume_drains).iter().for_each(|line| say(line));
    write_whole(&settings.out, &abilities)
        .map_err(|source| RunError::Write { path: settings.out.clone(), source })?;
    say("");
    say("Settings for cleat-controller:");
    words::settings(&abilities, &settings.out.display().to_string()).iter().for_each(|line| say(line));
    Ok(())
}

/// Others may read it: nothing in it is secret, and the controller may run as another user.
const FILE_MODE: u32 = 0o644;

/// Writes beside the file, and renames it into place when it is whole and on the disk. The name beside it
/// cannot be guessed, and the file must be new: this may run as root in another user's directory.
fn write_whole(path: &Path, abilities: &Abilities) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(abilities)?;
    text.push('\n');
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| std::io::Error::other("it has no name"))?;
    let mut file = tempfile::Builder::new()
        .prefix(&format!(".{}.", name.to_string_lossy()))
        .permissions(Permissions::from_mode(FILE_MODE))
        .tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Prints one line. A reader that has gone away stops nothing: the disk is removed all the same.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The signals that ask to stop. Once they are watched, they have no other effect.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stops {
    fn watch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "an interrupt",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "the end of its terminal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_planted_beside_the_file_is_not_written_through() {
        let folder = tempfile::tempdir().expect("a folder");
        let [path, theirs] = ["rds.json", "theirs"].map(|name| folder.path().join(name));
        std::fs::write(&theirs, "theirs").expect("written");
        let id = std::process::id();
        for name in [format!(".rds.json.{id}"), ".rds.json".to_owned(), "rds.json".to_owned()] {
            std::os::unix::fs::symlink(&theirs, folder.path().join(name)).expect("planted");
        }
        let url = "https://rds.example.org";
        let abilities =
            Findings::default().abilities(url.to_owned(), "2026-11-21T00:00:00Z".to_owned(), true);
        write_whole(&path, &abilities).expect("written");
        assert_eq!(std::fs::read_to_string(&theirs).expect("readable"), "theirs");
        assert_eq!(Abilities::read(&path, url).expect("readable"), abilities);
        let found = std::fs::symlink_metadata(&path).expect("there");
        assert!(found.is_file());
        assert_eq!(found.permissions().mode() & 0o022, 0, "nobody else may write to it");
    }

    #[test]
    fn the_file_is_replaced_whole_and_can_be_read_by_the_controller() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rds.json");
        std::fs::write(&path, "old").expect("written");
        let url = "https://rds.example.org";
        let findings =
            Findings { cut: Finding::Found(Cut::After(Duration::from_millis(41))), ..Findings::default() };
        let abilities = findings.abilities(url.to_owned(), "2026-11-21T00:00:00Z".to_owned(), true);
        write_whole(&path, &abilities).expect("written");
        assert_eq!(Abilities::read(&path, url).expect("readable"), abilities);
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "nothing beside it");
        assert!(write_whole(&folder.path().join("none/rds.json"), &abilities).is_err());
    }
}
