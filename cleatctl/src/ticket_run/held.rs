//! The ticket of a command that runs: renewed until the device is not the command's any more, and asked for at its end.

use std::ops::ControlFlow;

use tokio::time::{Instant, sleep};

use super::LOOK;
use super::keeper::{Keeper, Verdict};
use super::wish::Wish;
use crate::client::Controller;

/// A ticket while its command runs.
pub(super) struct Held<'a> {
    pub(super) controller: &'a mut Controller,
    pub(super) wish: &'a mut Wish,
    pub(super) keeper: Keeper,
}

impl Held<'_> {
    /// Whether the device is not ours any more, and why.
    async fn look(&mut self) -> Option<Verdict> {
        let heard = self.wish.look(self.controller, &mut self.keeper).await;
        self.keeper.heard(Instant::now(), heard)
    }

    /// Whether the device was not ours until the command's end, and why.
    pub(super) async fn at_end(&mut self) -> Option<Verdict> {
        loop {
            let heard = self.wish.look(self.controller, &mut self.keeper).await;
            if let ControlFlow::Break(verdict) = self.keeper.at_end(Instant::now(), heard) {
                return verdict;
            }
            sleep(LOOK).await;
        }
    }

    /// Renews the ticket until the device is not ours any more.
    pub(super) async fn until_lost(&mut self) -> Verdict {
        loop {
            sleep(LOOK).await;
            if let Some(verdict) = self.look().await {
                return verdict;
            }
        }
    }
}
