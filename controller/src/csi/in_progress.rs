//! Who makes or deletes which volume, and since when: one at a time for each volume.
//!
//! Publish and Unpublish need no such thing: the core joins them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cleat_core::{UnixMillis, VolumeId};
use cleat_runtime::date::rfc3339;

use super::status::CallError;

/// All that is under way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct InProgress {
    volumes: Arc<Mutex<HashMap<VolumeId, (&'static str, UnixMillis)>>>,
}

/// The right to work on a volume; over when dropped.
#[derive(Debug)]
pub(super) struct Begun {
    all: InProgress,
    volume: VolumeId,
}

impl InProgress {
    pub(super) fn begin(
        &self,
        volume: &VolumeId,
        operation: &'static str,
        now: UnixMillis,
    ) -> Result<Begun, CallError> {
        let mut volumes = self.lock();
        if let Some((operation, since)) = volumes.get(volume) {
            return Err(CallError::InProgress { volume: volume.clone(), operation, since: rfc3339(since.0) });
        }
        volumes.insert(volume.clone(), (operation, now));
        Ok(Begun { all: self.clone(), volume: volume.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, (&'static str, UnixMillis)>> {
        // The map is whole after every operation on it.
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.all.lock().remove(&self.volume);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_second_operation_is_refused_naming_the_first_and_its_start() {
        let (all, volume) = (InProgress::default(), VolumeId::new("v").unwrap());
        let first = all.begin(&volume, "CreateVolume", UnixMillis(951_782_400_000)).unwrap();
        let error = all.begin(&volume, "DeleteVolume", UnixMillis(0)).unwrap_err();
        assert_eq!(error.code(), tonic::Code::Aborted);
        assert!(error.to_string().contains("CreateVolume is under way since 2000-02-29"), "{error}");
        assert!(all.begin(&VolumeId::new("w").unwrap(), "DeleteVolume", UnixMillis(0)).is_ok());
        drop(first);
        assert!(all.begin(&volume, "DeleteVolume", UnixMillis(0)).is_ok());
    }
}
