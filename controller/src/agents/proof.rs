//! Until when it is proven who is at the other end of a session, and the token that extends it.
//!
//! In come tokens that the agent sends; out goes the end of the session, once what proves it has ended. What holds: a review
//! never holds up the session; one that the API server does not answer is asked again while the last proof lasts; a token that is
//! refused, or is another node's, ends the session.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tonic::{Code, Status};

use super::session::Ending;
use crate::clients::Caller;
use crate::trust::KnownAgent;

/// Between two questions about the same token.
const AGAIN: Duration = Duration::from_secs(5);
/// How often the clock is compared with the end of a proof: somebody may set it.
const CLOCK: Duration = Duration::from_secs(30);

type Review = Pin<Box<dyn Future<Output = Result<KnownAgent, Status>> + Send>>;

/// What proves who is there.
pub(super) struct Proof {
    caller: Caller,
    review: Option<Review>,
}

impl Proof {
    pub(super) fn begin(caller: Caller) -> Self {
        Self { caller, review: None }
    }

    /// The agent has another token. The last one that it sent is the one that counts.
    pub(super) fn renew(&mut self, token: String) {
        let Caller::Agent { trust, from, .. } = &self.caller else { return };
        let (trust, from) = (trust.clone(), *from);
        self.review = Some(Box::pin(async move {
            loop {
                match trust.agent(Some(&token), from).await {
                    Err(status) if status.code() == Code::Unavailable => {
                        tracing::warn!(reason = status.message(), "cannot renew an agent's session yet");
                        tokio::time::sleep(AGAIN).await;
                    }
                    answer => return answer,
                }
            }
        }));
    }

    /// Returns when the session is over. May be dropped and called again.
    pub(super) async fn over(&mut self) -> Ending {
        loop {
            let left =
                self.caller.until().map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
            if left.is_some_and(|left| left.is_zero()) {
                return self.ended();
            }
            let clock = async {
                match left {
                    Some(left) => tokio::time::sleep(left.min(CLOCK)).await,
                    None => std::future::pending().await,
                }
            };
            let reviewed = async {
                match &mut self.review {
                    Some(review) => review.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = clock => {}
                reviewed = reviewed => {
                    self.review = None;
                    if let Err(ending) = self.renewed(reviewed) {
                        return ending;
                    }
                }
            }
        }
    }

    fn renewed(&mut self, reviewed: Result<KnownAgent, Status>) -> Result<(), Ending> {
        let Caller::Agent { agent, .. } = &mut self.caller else { return Ok(()) };
        let new = reviewed?;
        if new.node != agent.node {
            let (was, is) = (&agent.node, &new.node);
            let text =
                format!("the token that was to renew the session of node {was} is of a pod on node {is}");
            return Err(Status::permission_denied(text).into());
        }
        agent.until = agent.until.max(new.until);
        Ok(())
    }

    fn ended(&self) -> Ending {
        let name = self.caller.name();
        Status::unauthenticated(match &self.caller {
            Caller::Agent { .. } => format!(
                "the token of node {name} has expired, and no other one came: connect again with one that is valid"
            ),
            _ => format!(
                "a certificate of this session has expired, that of cleat://node/{name} or the controller's: connect again \
                 with one that is valid"
            ),
        })
        .into()
    }
}
