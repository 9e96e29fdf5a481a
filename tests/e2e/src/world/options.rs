//! What a world is to be like.

use std::path::PathBuf;

use anyhow::bail;

use super::TargetView;

/// Kernels that tests are asked to run on; any other that `hack/setup kernels` has fetched works, too.
const DEFAULT_KERNEL: &str = "6.1";

/// What a [`super::World`] is to be like. Arguments that are added come after those that the world gives, so they
/// win where an option may be given again.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// Kernel of the nodes, and of the RDS unless that has its own, such as `6.12`.
    pub kernel: String,
    /// Kernel of the RDS.
    pub rds_kernel: Option<String>,
    /// Number of node machines, node-a first.
    pub nodes: usize,
    /// Memory of each node.
    pub node_memory_mib: u32,
    /// CPUs of each node.
    pub node_cpus: u8,
    /// Words for the nodes' kernel command line.
    pub node_kernel_arguments: Vec<String>,
    /// A file system for the nodes to have at `/image`.
    pub node_image: Option<PathBuf>,
    /// Further programs of this workspace that the nodes have.
    pub node_programs: Vec<String>,
    /// Further programs of this workspace that the RDS has.
    pub rds_programs: Vec<String>,
    /// Memory of the RDS.
    pub rds_memory_mib: u32,
    /// CPUs of the RDS.
    pub rds_cpus: u8,
    /// Disk of the RDS, where volumes' files lie (sparse on the host).
    pub rds_disk_mib: u32,
    /// What the RDS does, and is known to do.
    pub target: TargetView,
    /// The controller keeps its records in a cluster: an API server runs beside it.
    pub in_cluster: bool,
    /// Further arguments of `cleat-controller`.
    pub controller_args: Vec<String>,
    /// Further arguments of `cleat-agent`.
    pub agent_args: Vec<String>,
    /// What controller and agents log, as `--log-filter` takes it.
    pub log_filter: String,
}

impl WorldOptions {
    /// Three nodes on this kernel.
    #[must_use]
    pub fn on_kernel(kernel: impl Into<String>) -> Self {
        Self {
            kernel: kernel.into(),
            rds_kernel: None,
            nodes: 3,
            node_memory_mib: 256,
            node_cpus: 1,
            node_kernel_arguments: Vec::new(),
            node_image: None,
            node_programs: Vec::new(),
            rds_programs: Vec::new(),
            rds_memory_mib: 512,
            rds_cpus: 1,
            rds_disk_mib: 8192,
            target: TargetView::default(),
            in_cluster: false,
            controller_args: Vec::new(),
            agent_args: Vec::new(),
            log_filter: "info".to_owned(),
        }
    }

    /// Three nodes on the kernel that `CLEAT_KERNEL` names, 6.1 without it; the RDS on that of `CLEAT_TARGET_KERNEL`, the
    /// nodes' without it; logs as `CLEAT_LOG` says.
    ///
    /// # Errors
    /// If `CLEAT_KERNEL` is empty or no text.
    pub fn from_env() -> anyhow::Result<Self> {
        let kernel = match std::env::var("CLEAT_KERNEL") {
            Ok(kernel) if !kernel.is_empty() => kernel,
            Err(std::env::VarError::NotPresent) => DEFAULT_KERNEL.to_owned(),
            other => bail!("CLEAT_KERNEL is {other:?}: a version such as 6.12 is wanted"),
        };
        let mut options = Self::on_kernel(kernel);
        options.rds_kernel = std::env::var("CLEAT_TARGET_KERNEL").ok().filter(|kernel| !kernel.is_empty());
        if let Ok(filter) = std::env::var("CLEAT_LOG") {
            options.log_filter = filter;
        }
        Ok(options)
    }

    /// With so many nodes.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// With these options of the agents, each with its value.
    #[must_use]
    pub fn agent_options<const N: usize>(mut self, options: [[&str; 2]; N]) -> Self {
        self.agent_args.extend(options.as_flattened().iter().map(|word| (*word).to_owned()));
        self
    }

    /// With these options of the controller, each with its value.
    #[must_use]
    pub fn controller_options<const N: usize>(mut self, options: [[&str; 2]; N]) -> Self {
        self.controller_args.extend(options.as_flattened().iter().map(|word| (*word).to_owned()));
        self
    }
}
