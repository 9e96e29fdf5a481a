//! Kernels that machines boot: found in the cache that `hack/setup kernels` fills, never on the host itself.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::cache_folder;

/// A kernel with its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    version: String,
    release: String,
    folder: PathBuf,
}

impl KernelImage {
    /// The cached kernel of a version such as `6.12`.
    ///
    /// # Errors
    /// [`Error::NoKernel`], which names the command that gets it.
    pub fn find(version: &str) -> Result<KernelImage> {
        Self::find_in(&cache_folder().join("kernels"), version)
    }

    pub(crate) fn find_in(cache: &Path, version: &str) -> Result<KernelImage> {
        let missing = || Error::NoKernel { version: version.to_owned(), cache: cache.to_owned() };
        // The version becomes a folder's name.
        if version.is_empty()
            || !version.chars().all(|c| c.is_ascii_digit() || c == '.')
            || version.starts_with('.')
        {
            return Err(missing());
        }
        let folder = cache.join(version);
        let release =
            std::fs::read_to_string(folder.join("release")).map_err(|_| missing())?.trim().to_owned();
        let image = KernelImage { version: version.to_owned(), release, folder };
        if image.vmlinuz().is_file() && image.modules().join("modules.dep").is_file() {
            Ok(image)
        } else {
            Err(missing())
        }
    }

    /// The versions in the cache, oldest first.
    #[must_use]
    pub fn cached() -> Vec<KernelImage> {
        let folder = cache_folder().join("kernels");
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut found: Vec<KernelImage> = entries
            .filter_map(|entry| KernelImage::find_in(&folder, &entry.file_name().to_string_lossy()).ok())
            .collect();
        found
            .sort_by_key(|k| k.version.split('.').map(|n| n.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>());
        found
    }

    /// The version it was asked for with, such as `6.12`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What `uname -r` says under it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The bootable image.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The folder of its modules.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kernel_names_the_command_that_gets_it() {
        let cache = tempfile::tempdir().unwrap();
        let error = KernelImage::find_in(cache.path(), "6.12").unwrap_err();
        assert!(error.to_string().contains("hack/setup kernels 6.12"), "{error}");
        assert!(KernelImage::find_in(cache.path(), "../6.12").is_err());
    }

    #[test]
    fn a_kernel_is_there_only_with_its_image_and_modules() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("6.12");
        std::fs::create_dir_all(folder.join("lib/modules/6.12.1-cloud")).unwrap();
        std::fs::write(folder.join("release"), "6.12.1-cloud\n").unwrap();
        assert!(KernelImage::find_in(cache.path(), "6.12").is_err());
        std::fs::write(folder.join("vmlinuz"), "x").unwrap();
        std::fs::write(folder.join("lib/modules/6.12.1-cloud/modules.dep"), "").unwrap();
        assert_eq!(KernelImage::find_in(cache.path(), "6.12").unwrap().release(), "6.12.1-cloud");
    }
}
