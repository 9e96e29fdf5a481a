//! The ticket of a command, made with the controller or, in a cluster, as an object of the claim's namespace.
//!
//! Comes in: what is wished for. Goes out: how the ticket stands, which is the controller's to say in both cases. What always
//! holds: the name is ours alone, so that whatever is not answered can be asked again, and deleted; what was certainly not made
//! is not deleted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cleat_kubernetes::own_tickets::{OwnTicket, OwnTickets, OwnWish};
use cleat_proto::cleat::v1 as proto;
use cleat_runtime::exit::Causes;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::TicketRunError;
use super::keeper::{Heard, Keeper};
use crate::client::{AskError, Controller};

/// How often a ticket's deletion is tried, and the pause between.
const DELETIONS: usize = 3;
const AGAIN: Duration = Duration::from_secs(1);

/// A ticket of ours.
pub(super) struct Wish {
    /// Its id is the ticket's: in a cluster, that of the object that was made.
    wish: proto::PutTicketRequest,
    object: Option<Object>,
    made: Made,
}

/// Whether it was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    No,
    Perhaps,
    Yes,
}

struct Object {
    tickets: OwnTickets,
    name: String,
    wish: OwnWish,
}

impl Wish {
    /// One that the controller keeps.
    pub(super) fn of_controller(wish: proto::PutTicketRequest) -> Self {
        Self { wish, object: None, made: Made::No }
    }

    /// One that is an object.
    pub(super) fn of_cluster(wish: proto::PutTicketRequest, tickets: OwnTickets, object: OwnWish) -> Self {
        let object = Object { tickets, name: wish.id.replace('.', "-"), wish: object };
        Self { wish, object: Some(object), made: Made::No }
    }

    /// By what the controller knows it, once it was put.
    pub(super) fn id(&self) -> &str {
        &self.wish.id
    }

    /// Makes the ticket.
    pub(super) async fn put(&mut self, controller: &mut Controller) -> Result<proto::TicketInfo, AskError> {
        // Whoever waits for the answer no longer does not know.
        self.made = Made::Perhaps;
        let Some(Object { tickets, name, wish }) = &self.object else {
            let put = controller.put_ticket(self.wish.clone()).await;
            self.made = match &put {
                Ok(_) => Made::Yes,
                Err(error) if is_certain(error) => Made::No,
                Err(_) => Made::Perhaps,
            };
            return put;
        };
        match tickets.make(name, wish).await {
            Ok(OwnTicket { uid, generation }) => {
                (self.wish.id, self.wish.generation, self.made) = (uid, generation, Made::Yes);
                // The controller hears of it by itself.
                Ok(proto::TicketInfo::default())
            }
            Err(error) => {
                if error.is_certain() {
                    self.made = Made::No;
                }
                Err(TicketRunError::NotMade(error).into())
            }
        }
    }

    /// How the ticket stands, renewed where that is due.
    pub(super) async fn look(&mut self, controller: &mut Controller, keeper: &mut Keeper) -> Heard {
        match self.ask(controller, keeper).await {
            Ok(ticket) => Heard::Ticket(Box::new(ticket)),
            Err(error) => {
                if another_may_lead(&error) {
                    controller.find_again().await;
                }
                Heard::Nothing(Causes(&error).to_string())
            }
        }
    }

    async fn ask(
        &mut self,
        controller: &mut Controller,
        keeper: &mut Keeper,
    ) -> Result<proto::TicketInfo, AskError> {
        let due = keeper.renewal_is_due(Instant::now());
        let answer = match &self.object {
            Some(Object { tickets, name, .. }) => {
                if due {
                    tickets.renew(name, &self.wish.id, now()).await.map_err(TicketRunError::Object)?;
                }
                controller.ticket(self.wish.id.clone()).await
            }
            None if due => controller.renew_ticket(self.wish.id.clone()).await,
            None => controller.ticket(self.wish.id.clone()).await,
        };
        match answer {
            // A controller that has just started keeps nothing but what is attached; of an object it will hear.
            Err(AskError::Refused { status, .. }) if status.code() == Code::NotFound => match &self.object {
                Some(_) => Ok(proto::TicketInfo::default()),
                None => controller.put_ticket(self.wish.clone()).await,
            },
            answer => answer,
        }
    }

    /// Deletes the ticket; what went wrong, if it could not be.
    pub(super) async fn delete(&self, controller: &mut Controller) -> Result<(), String> {
        if self.made == Made::No {
            return Ok(());
        }
        let uid = (self.made == Made::Yes).then_some(self.wish.id.as_str());
        let mut trouble = String::new();
        for _ in 0..DELETIONS {
            let deleted = match &self.object {
                Some(Object { tickets, name, .. }) => {
                    tickets.delete(name, uid).await.map_err(|error| Causes(&error).to_string())
                }
                None => {
                    let deleted = controller.delete_ticket(self.wish.id.clone()).await;
                    if deleted.as_ref().is_err_and(another_may_lead) {
                        controller.find_again().await;
                    }
                    deleted.map_err(|error| Causes(&error).to_string())
                }
            };
            match deleted {
                Ok(()) => return Ok(()),
                Err(why) => trouble = why,
            }
            sleep(AGAIN).await;
        }
        Err(trouble)
    }
}

/// Whether the one that was asked may not lead any more.
fn another_may_lead(error: &AskError) -> bool {
    matches!(error, AskError::Refused { status, .. } if status.code() == Code::Unavailable)
}

/// Whether the controller has said that it keeps no ticket.
fn is_certain(error: &AskError) -> bool {
    let AskError::Refused { status, .. } = error else { return false };
    let no = [Code::InvalidArgument, Code::FailedPrecondition, Code::PermissionDenied, Code::Unauthenticated];
    no.contains(&status.code())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_ticket_that_the_controller_refuses_is_not_there_to_be_deleted() {
        let refused =
            |code| AskError::Refused { address: "c:1".into(), status: Box::new(Status::new(code, "no")) };
        for code in [Code::FailedPrecondition, Code::PermissionDenied] {
            assert!(is_certain(&refused(code)), "{code:?}");
        }
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown] {
            assert!(!is_certain(&refused(code)), "{code:?}: it may have been put");
        }
        assert!(another_may_lead(&refused(Code::Unavailable)) && !another_may_lead(&refused(Code::NotFound)));
    }
}
