//! The agent's names, all from `cleat-ids`, and how the wire writes an epoch.

use cleat_proto::cleat::v1 as wire;

pub use cleat_ids::{BootId, Epoch, IdError as NameError, NodeId, NqnPrefix, OperationId, VolumeId};

/// An epoch in a message.
pub trait EpochOnWire: Sized {
    /// Reads the epoch of a message.
    ///
    /// # Errors
    /// [`NameError`] when it is missing or zero.
    fn from_wire(epoch: Option<wire::Epoch>) -> Result<Self, NameError>;

    /// The epoch as the wire has it.
    fn to_wire(self) -> wire::Epoch;
}

impl EpochOnWire for Epoch {
    fn from_wire(epoch: Option<wire::Epoch>) -> Result<Self, NameError> {
        let epoch = epoch.ok_or_else(Self::missing)?;
        Self::new(epoch.term, epoch.seq)
    }

    fn to_wire(self) -> wire::Epoch {
        wire::Epoch { term: self.term, seq: self.seq }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_on_the_wire_is_read_back_and_none_is_an_error() {
        let epoch: Epoch = "3.4".parse().expect("an epoch");
        assert_eq!(Epoch::from_wire(Some(epoch.to_wire())), Ok(epoch));
        assert!(Epoch::from_wire(Some(wire::Epoch::default())).is_err());
        assert!(Epoch::from_wire(None).expect_err("none").to_string().contains("must be given"));
    }
}
