//! Checks that this kernel can speak NVMe/TCP, and tries to load the module where it cannot.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::sysfs::Sysfs;

/// How long `modprobe` may take.
const MODPROBE: Duration = Duration::from_secs(30);

/// Why NVMe/TCP cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The module is missing and could not be loaded.
    #[error(
        "cannot use NVMe/TCP: {missing}; run `modprobe nvme-tcp` on this node, and list nvme-tcp in \
         /etc/modules-load.d/ (modprobe said: {said})"
    )]
    Missing {
        /// The path that should exist and does not.
        missing: String,
        /// What `modprobe` said, or why it could not be run.
        said: String,
    },
    /// The kernel's interface exists but cannot be opened.
    #[error("cannot open {path}; the agent needs a privileged container with the host's /dev")]
    NotPermitted {
        /// The fabrics device, usually `/dev/nvme-fabrics`.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Makes sure that the kernel has NVMe/TCP: the fabrics device can be opened, and the transport is loaded.
/// Runs `modprobe nvme-tcp` once where either is missing.
///
/// # Errors
/// [`ModuleError`], which names the command to run.
pub async fn ensure_nvme_tcp(sysfs: &Sysfs, device: &Path, modprobe: &Path) -> Result<(), ModuleError> {
    if missing(sysfs, device).is_some() {
        let said = run_modprobe(modprobe).await;
        if let Some(missing) = missing(sysfs, device) {
            return Err(ModuleError::Missing { missing, said });
        }
    }
    crate::fabrics::KernelFabrics::probe(device)
        .map_err(|source| ModuleError::NotPermitted { path: device.to_owned(), source })
}

fn missing(sysfs: &Sysfs, device: &Path) -> Option<String> {
    let module = sysfs.root().join("module/nvme_tcp");
    // It exists for a built-in transport too: that has parameters.
    if !module.exists() {
        return Some(format!("no {}", module.display()));
    }
    (!device.exists()).then(|| format!("no {}", device.display()))
}

/// Runs `modprobe nvme-tcp` and returns its output, for the error. Its exit code decides nothing.
async fn run_modprobe(program: &Path) -> String {
    let run = Command::new(program).arg("nvme-tcp").stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(MODPROBE, run).await {
        Ok(Ok(output)) => {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if stderr.is_empty() { output.status.to_string() } else { stderr }
        }
        Ok(Err(error)) => format!("cannot run {}: {error}", program.display()),
        Err(_) => format!("no end within {MODPROBE:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Tree;

    #[tokio::test]
    async fn the_error_names_the_command_and_what_modprobe_said() {
        let tree = Tree::new();
        let error = ensure_nvme_tcp(
            &tree.sysfs(),
            Path::new("/nowhere/nvme-fabrics"),
            Path::new("/nowhere/modprobe"),
        )
        .await
        .expect_err("nothing there");
        let text = error.to_string();
        assert!(text.contains("`modprobe nvme-tcp`") && text.contains("/nowhere/modprobe"), "{text}");
    }

    #[tokio::test]
    async fn a_loaded_module_needs_no_modprobe() {
        let tree = Tree::new();
        tree.write("module/nvme_tcp/parameters/so_priority", "0");
        let device = tree.write("device", "");
        ensure_nvme_tcp(&tree.sysfs(), &device, Path::new("/nowhere/modprobe")).await.expect("there");
    }
}
