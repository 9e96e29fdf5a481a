//! What a test does to the device behind its API: portals held down, fences pretended, writes held, identities changed.
//!
//! In: orders of the test control. Out: changes at the target. What always holds: the records stay as the API's
//! clients have made them.

use uuid::Uuid;

use super::{Hold, Rds, failure};
use crate::held;
use crate::pretend::Pretend;
use crate::reply::ApiError;
use crate::target::TargetError;

impl Rds {
    /// Holds portals down, or lets them go again, for tests.
    pub fn hold(&mut self, hold: Hold, down: bool) -> Result<(), TargetError> {
        if down {
            self.holds.insert(hold);
        } else if hold == (Hold { slot: None, portal: None }) {
            self.holds.clear();
        } else {
            self.holds.remove(&hold);
        }
        self.agree()
    }

    /// Leaves a step of a fence out from now on, and says that it was taken.
    pub fn pretend(&mut self, what: Pretend) {
        self.pretends.insert(what);
    }

    /// Pretends nothing any more: what was left out is done now.
    pub fn pretend_nothing(&mut self) -> Result<(), TargetError> {
        self.pretends.clear();
        self.agree()
    }

    /// Holds the writes to a disk, or lets them go. Only with a backing store that can (`--backing held`).
    pub fn hold_writes(&mut self, hold: held::Hold) -> Result<(), TargetError> {
        let none = || TargetError::Backing {
            command: "hold writes".to_owned(),
            outcome: "volumes lie on their files; --backing held is needed".to_owned(),
        };
        self.held.as_ref().ok_or_else(none)?.hold(&hold)?;
        if hold.write_ms == 0 {
            self.writes_held.remove(&hold.slot);
        } else {
            self.writes_held.insert(hold.slot.clone(), hold);
        }
        Ok(())
    }

    /// Gives a disk's namespace another UUID (cuts its sessions if it is exported); the pinned one if `None`.
    pub fn set_uuid(&mut self, slot: &str, uuid: Option<Uuid>) -> Result<(), ApiError> {
        let mut disk = self.by_slot(slot).cloned().ok_or_else(ApiError::no_such_item)?;
        disk.uuid = uuid.unwrap_or_else(|| self.pinned_uuid(slot));
        self.reconciled(&disk).map_err(failure)?;
        self.replace(disk)
    }
}
