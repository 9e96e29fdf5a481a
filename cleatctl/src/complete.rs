//! Completion in the shell, with the ids of volumes and nodes that the controller knows.
//!
//! Comes in: the words typed so far. Goes out: candidates. A shell that has read `cleatctl completion SHELL`
//! runs `cleatctl` for this, with its own name in [`VARIABLE`]. Always holds: where the controller does not
//! answer at once there are no ids, no error, and no wait.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::future::Future;
use std::io::{self, Write};
use std::time::Duration;

use clap::{Command, FromArgMatches as _};
use clap_complete::engine::{self, ArgValueCandidates, CompletionCandidate};
use cleat_runtime::tls::ClientTlsArgs;

use crate::cli;
use crate::client::{AskError, Controller};
use crate::format;
use crate::identity::ClusterArgs;
use crate::shell::VARIABLE;

/// Which word the shell asks about, counted from 0; without it, the last one.
const INDEX: &str = "_CLAP_COMPLETE_INDEX";
/// What the shell expects between two candidates.
const SEPARATOR: &str = "_CLAP_IFS";
/// How long somebody who has pressed a key waits, at most.
const DEADLINE: Duration = Duration::from_secs(1);

/// Answers the shell, if it is a shell that asks; the words are the process's.
pub(crate) fn answer(words: impl IntoIterator<Item = OsString>, out: &mut dyn Write) -> io::Result<bool> {
    if std::env::var_os(VARIABLE).is_none_or(|shell| shell.is_empty()) {
        return Ok(false);
    }
    let words: Vec<OsString> = words.into_iter().skip_while(|word| word != "--").skip(1).collect();
    let index = std::env::var(INDEX).ok().and_then(|index| index.parse().ok());
    let separator = std::env::var(SEPARATOR).unwrap_or_else(|_| "\n".to_owned());
    let index = index.unwrap_or(words.len().saturating_sub(1));
    write!(out, "{}", candidates(words, index).join(&separator))?;
    Ok(true)
}

/// The candidates for one of these words, the first of which is the program's name.
pub(crate) fn candidates(words: Vec<OsString>, index: usize) -> Vec<String> {
    let (words, index) = joined_at_colons(words, index);
    let mut command = with_ids(&words);
    let asks_for_options = words.get(index).is_some_and(|word| word.to_string_lossy().starts_with('-'));
    // A word that the command line cannot have has no candidates.
    let found = engine::complete(&mut command, words, index, None).unwrap_or_default();
    let found = found.into_iter().map(|found| found.get_value().to_string_lossy().into_owned());
    found.filter(|found| asks_for_options || !found.starts_with('-')).collect()
}

/// Bash splits `HOST:PORT` into three words.
fn joined_at_colons(words: Vec<OsString>, index: usize) -> (Vec<OsString>, usize) {
    let mut joined: Vec<OsString> = Vec::new();
    let (mut at, mut after_colon) = (index, false);
    for (position, word) in words.into_iter().enumerate() {
        let colon = word == ":";
        match joined.last_mut() {
            Some(last) if (colon || after_colon) && position < index => {
                last.push(&word);
                at -= 1;
            }
            _ => joined.push(word),
        }
        after_colon = colon;
    }
    (joined, at)
}

/// The command line, whose ids come from the controller that these words name.
fn with_ids(words: &[OsString]) -> Command {
    let ids = |kind: Kind| {
        let words = words.to_vec();
        ArgValueCandidates::new(move || ask(&words, kind).into_iter().map(CompletionCandidate::new).collect())
    };
    let [of_explain, of_fence, of_tickets, of_new_ticket, to_read] = [(); 5].map(|()| ids(Kind::Volume));
    let [to_show, to_renew, to_end] = [(); 3].map(|()| ids(Kind::Ticket));
    let of_migration = ids(Kind::Migration);
    let [to_fence, to_declare] = [(); 2].map(|()| ids(Kind::Node));
    cli::command()
        .mut_subcommand("migration", |migration| migration.mut_arg("name", |name| name.add(of_migration)))
        .mut_subcommand("explain", |explain| explain.mut_arg("volume", |volume| volume.add(of_explain)))
        .mut_subcommand("fence", |fence| {
            fence.mut_arg("volume", |volume| volume.add(of_fence)).mut_arg("node", |node| node.add(to_fence))
        })
        .mut_subcommand("ticket", |ticket| {
            ticket
                .mut_subcommand("ls", |ls| ls.mut_arg("volume", |volume| volume.add(of_tickets)))
                .mut_subcommand("create", |new| new.mut_arg("volume", |volume| volume.add(of_new_ticket)))
                .mut_subcommand("run", |run| run.mut_arg("volume", |volume| volume.add(to_read)))
                .mut_subcommand("show", |show| show.mut_arg("ticket", |ticket| ticket.add(to_show)))
                .mut_subcommand("renew", |renew| renew.mut_arg("ticket", |ticket| ticket.add(to_renew)))
                .mut_subcommand("delete", |end| end.mut_arg("ticket", |ticket| ticket.add(to_end)))
        })
        .mut_subcommand("node", |node| {
            node.mut_subcommand("declare-gone", |gone| gone.mut_arg("node", |node| node.add(to_declare)))
        })
}

#[derive(Clone, Copy)]
enum Kind {
    Volume,
    /// VMs and volumes that have a migration on record.
    Migration,
    Node,
    Ticket,
}

/// The ids that the controller returns at once, if it does.
fn ask(words: &[OsString], kind: Kind) -> Vec<String> {
    let asked = async {
        let typed = cli::command().ignore_errors(true).try_get_matches_from(words).ok()?;
        let address = typed.get_one::<String>("controller")?;
        let tls = ClientTlsArgs::from_arg_matches(&typed).ok()?;
        let cluster = ClusterArgs::from_arg_matches(&typed).ok()?;
        let mut controller = Controller::connect(address, &tls, &cluster, DEADLINE).await.ok()?;
        names(&mut controller, kind).await.ok()
    };
    in_time(asked).flatten().unwrap_or_default()
}

async fn names(controller: &mut Controller, kind: Kind) -> Result<Vec<String>, AskError> {
    Ok(match kind {
        Kind::Volume => controller.volumes().await?.into_iter().map(|volume| volume.volume_id).collect(),
        Kind::Migration => {
            let migrations = controller.migrations().await?;
            let names = migrations.into_iter().flat_map(|one| [format::vm(&one), one.volume_id]);
            // A VM may have many volumes.
            let names: BTreeSet<String> = names.filter(|name| !name.is_empty()).collect();
            names.into_iter().collect()
        }
        Kind::Ticket => {
            controller.tickets(String::new()).await?.into_iter().map(|ticket| ticket.id).collect()
        }
        Kind::Node => controller.nodes().await?.into_iter().map(|node| node.node_id).collect(),
    })
}

fn in_time<T>(asked: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(async { tokio::time::timeout(DEADLINE, asked).await });
    // A name resolver that hangs is not waited for.
    runtime.shutdown_background();
    answer.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(words: &[&str]) -> Vec<String> {
        candidates(words.iter().map(OsString::from).collect(), words.len() - 1)
    }

    #[test]
    fn a_command_is_completed_without_a_controller() {
        assert_eq!(offered(&["cleatctl", "exp"]), ["explain"]);
        assert_eq!(offered(&["cleatctl", "-o", "y"]), ["yaml"]);
        assert_eq!(offered(&["cleatctl", "volumes", "--co"]), ["--controller", "--color", "--context"]);
    }

    #[test]
    fn a_controller_out_of_reach_offers_no_ids_and_no_error() {
        assert!(
            offered(&["cleatctl", "--plaintext", "--controller", "127.0.0.1:1", "explain", ""]).is_empty()
        );
        assert!(offered(&["cleatctl", "--controller", "no address", "explain", ""]).is_empty());
    }

    #[test]
    fn an_address_that_bash_took_apart_is_put_together() {
        let words = ["cleatctl", "--controller", "host", ":", "7444", "explain", ""].map(OsString::from);
        let (words, index) = joined_at_colons(words.to_vec(), 6);
        assert_eq!(
            (words, index),
            (["cleatctl", "--controller", "host:7444", "explain", ""].map(OsString::from).to_vec(), 4)
        );
    }
}
