//! What the cluster says of who is to have a volume, and what people read there.
//!
//! | file | owns |
//! | --- | --- |
//! | `desired` | VolumeAttachments, as the core takes them in at a start |
//! | `live` | what the API server says now, before a Publish or an Unpublish is begun |
//! | `require_migration` | whether a second node may have a volume whose owner demands a live migration for that |
//! | `migrating` | which VM migrates with a volume, as KubeVirt has it |
//! | `vanished` | a VolumeAttachment that went without an Unpublish |
//! | `tickets` | why else volumes should be attached somewhere, and how that stands |
//! | `annotations` | who has a volume, on its PersistentVolume, for people |

mod annotations;
mod desired;
mod live;
mod migrating;
mod require_migration;
mod tickets;
mod vanished;

pub(crate) use annotations::keep as keep_annotations;
pub(crate) use desired::{AllDesired, desired};
pub(crate) use live::{NotAsClustered, may_publish, may_unpublish};
pub(crate) use migrating::{follow as follow_migrating, follow_movers};
#[cfg(test)]
pub(crate) use require_migration::NoMove;
pub(crate) use require_migration::{Holding, may_be_second};
pub(crate) use tickets::{TicketSync, follow as follow_tickets};
pub(crate) use vanished::follow as follow_vanished;
