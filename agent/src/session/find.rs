//! Which controller leads: all that there may be are asked, each for itself, and the first one that says Welcome is the one.
//!
//! Comes in: where controllers may be. Goes out: a session that has begun with one of them, or why there is none.
//!
//! Always holds: one that refuses, or is a standby, is followed by the next one at once; one that does not connect holds up
//! nobody, since the next one is connected to a moment later, and those that have refused are asked again meanwhile. The one
//! that led last is asked first. No session begins with one that leads under an earlier term than the last one did.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use cleat_runtime::grpc::{Connector, Renewing};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::stream::{Ended, LastLeader, Welcomed, introduce};
use super::token::Token;
use super::{NodeVolumes, Session, jittered};

/// How long one that says nothing is given before the next one is asked, too.
const STAGGER: Duration = Duration::from_millis(300);
/// After this time those that have refused are asked again, while another one says nothing: of a leader that has just died
/// the address is dead, and the standby that takes over has refused a moment ago.
const AGAIN: Duration = Duration::from_secs(2);
/// How often in one round: the next one reads the names again.
const REPEATS: usize = 4;
/// How long the names of controllers may take to become addresses.
const RESOLVE: Duration = Duration::from_secs(2);
/// The most that are asked in one round: a name that means many more is a mistake.
const MOST: usize = 16;

/// One address at which a controller may be.
pub struct ControllerAddress {
    /// How it is called in logs.
    pub name: String,
    /// What connects to it.
    pub at: Box<dyn Connector>,
}

/// A boxed future of candidates.
pub type PendingCandidates<'a> = Pin<Box<dyn Future<Output = Vec<ControllerAddress>> + Send + 'a>>;

/// Where controllers may be.
pub trait Controllers: Send + Sync {
    /// All of them, as they are now.
    fn candidates(&self) -> PendingCandidates<'_>;
}

impl<C: Connector + Clone + 'static> Controllers for C {
    fn candidates(&self) -> PendingCandidates<'_> {
        let only = ControllerAddress { name: "the controller".into(), at: Box::new(self.clone()) };
        Box::pin(async { vec![only] })
    }
}

/// Controllers by their names, each of which may mean several addresses, and others later.
#[derive(Debug, Clone)]
pub struct ByName(pub Vec<Renewing>);

impl Controllers for ByName {
    fn candidates(&self) -> PendingCandidates<'_> {
        let addresses = self.0.iter().map(|named| async move {
            match timeout(RESOLVE, named.addresses()).await {
                Ok(Ok(addresses)) if !addresses.is_empty() => {
                    addresses.into_iter().map(|address| named.at(address)).collect()
                }
                // Connecting by the name says what is wrong with it.
                _ => vec![named.clone()],
            }
        });
        Box::pin(async {
            let all = join_all(addresses).await.into_iter().flatten();
            let mut candidates: Vec<ControllerAddress> = Vec::new();
            for at in all.take(MOST) {
                let name = at.to_string();
                if !candidates.iter().any(|known| known.name == name) {
                    candidates.push(ControllerAddress { name, at: Box::new(at) });
                }
            }
            candidates
        })
    }
}

/// Asks one candidate after the other; gives the one that led, with what it was asked with.
pub(super) async fn leader<N: NodeVolumes>(
    session: &Session<N>,
    last: &mut LastLeader,
    token: Option<&Token>,
) -> Result<Welcomed, Ended> {
    let mut candidates = session.controllers.candidates().await;
    candidates.sort_by_key(|candidate| Some(&candidate.name) != last.name.as_ref());
    let several = candidates.len() > 1;
    let mut waiting = VecDeque::from(candidates);
    let mut repeats = 0;
    let turn = Mutex::new(());
    let turn = &turn;
    let ask = |candidate: ControllerAddress| async move {
        let asked = introduce(session, &*candidate.at, token, turn).await;
        (candidate, asked)
    };
    let mut asked = FuturesUnordered::from_iter(waiting.pop_front().map(&ask));
    let mut failed: Vec<(ControllerAddress, Ended)> = Vec::new();
    loop {
        tokio::select! {
            Some((candidate, answer)) = asked.next() => match answer {
                // What it would ask for, the later one knows nothing of.
                Ok(Welcomed { welcome, .. }) if welcome.term < last.term => {
                    failed.push((candidate, Ended::Older { term: welcome.term, newest: last.term }));
                    asked.extend(waiting.pop_front().map(&ask));
                }
                Ok(welcomed) => {
                    *last = LastLeader { name: Some(candidate.name), term: welcomed.welcome.term };
                    return Ok(welcomed);
                }
                Err(ended) => {
                    failed.push((candidate, ended));
                    asked.extend(waiting.pop_front().map(&ask));
                }
            },
            () = sleep(STAGGER), if !waiting.is_empty() => asked.extend(waiting.pop_front().map(&ask)),
            () = sleep(jittered(AGAIN)), if repeats < REPEATS && waiting.is_empty() && !asked.is_empty() => {
                repeats += 1;
                waiting.extend(failed.drain(..).map(|(candidate, _)| candidate));
            }
            else => break,
        }
    }
    let mut failed: Vec<_> = failed.into_iter().map(|(candidate, ended)| (candidate.name, ended)).collect();
    Err(match failed.pop() {
        None => Ended::NoneKnown,
        Some((_, only)) if !several => only,
        Some(last) => {
            failed.push(last);
            Ended::Nowhere(failed)
        }
    })
}
