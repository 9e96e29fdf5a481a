//! The names under which this node connects, which stay the same while anything is attached under them.
//!
//! Comes in: the files `hostnqn` and `hostid`, a copy of them in the state directory, and what the kernel and
//! the ledger have. Goes out: the names in force. A node under a new name does not recognise its own
//! controllers: it can neither use nor detach what it has. An `/etc/nvme` that does not survive a restart
//! would make a new name each time.
//!
//! Always holds:
//! - While anything is attached here under the names of the copy, those stay in force, whatever the files
//!   say.
//! - No name is made where something may be attached under an unknown one.
//! - A copy that was made for another node (a cloned disk) counts only where this machine's own kernel is
//!   connected under its names.

use std::path::{Path, PathBuf};

use cleat_host::identity::{FoundNames, HostIdentity, HostNames, IdentityError, IdentitySource};
use cleat_host::sysfs::Topology;
use cleat_host::{HostId, HostNqn, SubsystemNqn};
use cleat_runtime::exit::Causes;
use serde::{Deserialize, Serialize};

use crate::ledger::{Ledger, sealed};
use crate::name::{NodeId, NqnPrefix};

/// Version of the copy's format.
const FORMAT: u32 = 1;
/// The copy's file in the state directory.
const COPY: &str = "identity.json";
/// Most attached things that an error names.
const NAMED: usize = 8;

/// Why nobody knows under which names to connect.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The files could not be read or written, or one of them is not valid.
    #[error("cannot determine this host's NVMe identity")]
    Files(#[from] IdentityError),
    /// Something is attached here under names that are lost.
    #[error(
        "{files} lacks hostnqn or hostid, {copy} does not hold them either, and this node has volumes that \
         were attached under an earlier identity: {held}; a new identity could not detach them. Restore \
         both files (what is connected shows the values). If they are lost and nothing is connected, write \
         new ones (uuidgen)"
    )]
    Lost {
        /// The directory that should have the files.
        files: PathBuf,
        /// The file that should have the copy.
        copy: PathBuf,
        /// What is attached here, as text for a person.
        held: String,
    },
}

/// The copy of the names, as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Copy {
    format: u32,
    node: NodeId,
    host_nqn: HostNqn,
    host_id: HostId,
}

impl Copy {
    fn names(&self) -> HostNames {
        HostNames { host_nqn: self.host_nqn.clone(), host_id: self.host_id }
    }
}

/// What is attached on this node, under whatever names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Controllers of our subsystems: name, host NQN and host id, as the kernel shows them.
    controllers: Vec<(String, String, String)>,
    /// Volumes whose grant has not ended.
    records: Vec<String>,
    /// What could not be read.
    unknown: Vec<String>,
}

impl Held {
    /// Collects it from the kernel and the ledger.
    pub async fn look(topology: &Topology, ledger: &Ledger, prefix: &NqnPrefix) -> Self {
        let mut held = Self::default();
        for controller in &topology.controllers {
            let nqn = controller.subsystem_nqn.as_deref().map(SubsystemNqn::parse);
            // A controller that is still being made does not show its subsystem.
            let ours = nqn.is_none_or(|nqn| nqn.is_ok_and(|nqn| prefix.volume(&nqn).is_some()));
            if ours && controller.host_nqn.is_some() {
                let text = |name: &Option<String>| name.clone().unwrap_or_else(|| "unknown".to_owned());
                let (nqn, id) = (text(&controller.host_nqn), text(&controller.host_id));
                held.controllers.push((controller.name.to_string(), nqn, id));
            }
        }
        held.unknown.extend(topology.unreadable.iter().map(|one| format!("{one:?}")));
        match ledger.unended().await {
            Ok(volumes) => held.records.extend(volumes.iter().map(ToString::to_string)),
            Err(error) => held.unknown.push(Causes(&error).to_string()),
        }
        held
    }

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn is_connected_as(&self, names: &HostNames) -> bool {
        let same = |nqn: &str, id: &str| {
            nqn == names.host_nqn.as_str() || HostId::parse(id).is_ok_and(|id| id == names.host_id)
        };
        self.controllers.iter().any(|(_, nqn, id)| same(nqn, id))
    }

    /// Whether something may be attached under these names, the last ones that this node had.
    fn may_be_under(&self, names: &HostNames) -> bool {
        self.is_connected_as(names) || !self.records.is_empty() || !self.unknown.is_empty()
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let connected = self
            .controllers
            .iter()
            .map(|(name, nqn, id)| format!("{name} is connected as host NQN {nqn} with host id {id}"));
        let records = self.records.iter().map(|volume| format!("volume {volume} by its record"));
        let unknown = self.unknown.iter().map(|what| format!("what could not be looked at: {what}"));
        let mut all: Vec<String> = connected.chain(records).chain(unknown).collect();
        let left = all.len().saturating_sub(NAMED);
        all.truncate(NAMED);
        all.extend((left > 0).then(|| format!("{left} more")));
        f.write_str(&all.join("; "))
    }
}

/// Which names are in force, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// The names in the files.
    Files(HostNames),
    /// The names in the copy; the files lack them, or say what `files_say` has.
    Copy { names: HostNames, files_say: Option<String> },
    /// Newly made names, since nothing is attached.
    New(HostNames),
    /// No names: something is attached here under names that are lost.
    Lost,
}

/// Decides by the files, the copy, and what is attached.
fn choose(files: &FoundNames, copy: Option<HostNames>, held: &Held) -> Choice {
    match (files.whole(), copy) {
        (Some(names), None) => Choice::Files(names),
        (Some(names), Some(copy)) if names == copy || !held.may_be_under(&copy) => Choice::Files(names),
        (Some(names), Some(copy)) => Choice::Copy { names: copy, files_say: Some(names.to_string()) },
        (None, Some(copy)) if files.fit(&copy) => Choice::Copy { names: copy, files_say: None },
        (None, Some(copy)) if held.may_be_under(&copy) => {
            let nqn = files.host_nqn.as_ref().map(|nqn| format!("host NQN {nqn}"));
            let id = files.host_id.map(|id| format!("host id {id}"));
            Choice::Copy { names: copy, files_say: nqn.or(id) }
        }
        (None, None) if !held.is_nothing() => Choice::Lost,
        (None, _) => Choice::New(files.completed()),
    }
}

/// Where this node's names are kept.
#[derive(Debug)]
pub struct Names<'a> {
    /// Reads and writes the two files.
    pub source: &'a IdentitySource,
    /// The directory of the two files, for messages.
    pub nvme_dir: &'a Path,
    /// The directory of the copy.
    pub state_dir: &'a Path,
    /// The node that the names belong to.
    pub node: &'a NodeId,
}

impl Names<'_> {
    /// The identity in force, written to both places as far as they accept it. A few small files: call it at
    /// start, with the state directory locked.
    ///
    /// # Errors
    /// [`NamesError`].
    pub fn settle(&self, held: &Held) -> Result<HostIdentity, NamesError> {
        let copy = self.copy().filter(|copy| copy.node == *self.node || held.is_connected_as(&copy.names()));
        let copy = copy.map(|copy| copy.names());
        let files = match self.source.names() {
            Ok(files) => files,
            // The file is left as it is; the copy shows what it should contain.
            Err(error @ IdentityError::Invalid { .. }) if copy.is_some() => {
                tracing::error!(error = %Causes(&error), "using the identity of the copy");
                FoundNames::default()
            }
            Err(error) => return Err(error.into()),
        };
        let had_copy = copy.clone();
        let names = match choose(&files, copy, held) {
            Choice::Files(names) => names,
            Choice::Copy { names, files_say: Some(said) } => {
                tracing::error!(
                    in_force = %names, files = said, held = %held,
                    "the NVMe identity of this node was changed while volumes may be attached under the old one, \
                     which stays in force: put {} back, or detach all volumes from this node and restart the agent",
                    self.nvme_dir.display()
                );
                names
            }
            Choice::Copy { names, files_say: None } => {
                tracing::warn!(
                    %names, dir = %self.nvme_dir.display(),
                    "this node's NVMe identity was missing and is put back from the copy in the state directory"
                );
                if let Err(error) = self.source.keep(&names) {
                    tracing::error!(error = %Causes(&error), "the copy alone holds this node's NVMe identity");
                }
                names
            }
            Choice::New(names) => {
                // Before the names are used, one of the two places has them for good.
                if let Err(error) = self.source.keep(&names) {
                    self.keep_copy(&names).map_err(|_| error)?;
                }
                names
            }
            Choice::Lost => {
                let (files, copy) = (self.nvme_dir.to_owned(), self.state_dir.join(COPY));
                return Err(NamesError::Lost { files, copy, held: held.to_string() });
            }
        };
        if had_copy.as_ref() != Some(&names)
            && let Err(error) = self.keep_copy(&names)
        {
            tracing::error!(error = %Causes(&error), "this node's NVMe identity is not kept in the state directory");
        }
        Ok(self.source.identity(names)?)
    }

    fn copy(&self) -> Option<Copy> {
        match sealed::read::<Copy>(&self.state_dir.join(COPY)) {
            Ok(copy) => copy.filter(|copy| copy.format == FORMAT),
            Err(error) => {
                tracing::error!(error = %Causes(&error), "cannot use the copy of this node's NVMe identity");
                None
            }
        }
    }

    fn keep_copy(&self, names: &HostNames) -> Result<(), crate::ledger::LedgerError> {
        let HostNames { host_nqn, host_id } = names.clone();
        let copy = Copy { format: FORMAT, node: self.node.clone(), host_nqn, host_id };
        sealed::write(self.state_dir, COPY, &copy)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ledger::rules::ending;
    use crate::name::{Epoch, VolumeId};

    const OLD: &str = "00000000-0000-0000-0000-000000000011";
    const NEW: &str = "00000000-0000-0000-0000-000000000012";

    fn names(id: &str) -> HostNames {
        let host_id = HostId::parse(id).unwrap();
        HostNames { host_nqn: HostNqn::from_host_id(host_id), host_id }
    }

    fn connected(id: &str) -> Held {
        let names = names(id);
        let controller = ("nvme0".to_owned(), names.host_nqn.to_string(), id.to_owned());
        Held { controllers: vec![controller], ..Held::default() }
    }

    fn recorded() -> Held {
        Held { records: vec!["pvc-1".into()], ..Held::default() }
    }

    struct Node {
        dir: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("proc/sys/kernel/random")).unwrap();
            fs::create_dir(dir.path().join("state")).unwrap();
            fs::write(dir.path().join("proc/sys/kernel/random/boot_id"), "boot\n").unwrap();
            fs::write(dir.path().join("proc/sys/kernel/osrelease"), "6.12.1\n").unwrap();
            Self { dir }
        }

        fn put(&self, id: &str) {
            let nvme = self.dir.path().join("nvme");
            fs::create_dir_all(&nvme).unwrap();
            fs::write(nvme.join("hostnqn"), names(id).host_nqn.to_string()).unwrap();
            fs::write(nvme.join("hostid"), id).unwrap();
        }

        fn file(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.dir.path().join("nvme").join(name)).ok()
        }

        fn forget_files(&self) {
            fs::remove_dir_all(self.dir.path().join("nvme")).unwrap();
        }

        fn settle(&self, held: &Held) -> Result<HostIdentity, NamesError> {
            self.settle_as("node-a", held)
        }

        fn settle_as(&self, node: &str, held: &Held) -> Result<HostIdentity, NamesError> {
            let (nvme, state) = (self.dir.path().join("nvme"), self.dir.path().join("state"));
            let source = IdentitySource::at(&nvme, self.dir.path().join("proc"));
            let node = NodeId::parse(node).unwrap();
            Names { source: &source, nvme_dir: &nvme, state_dir: &state, node: &node }.settle(held)
        }

        fn id(&self, held: &Held) -> String {
            self.settle(held).unwrap().host_id.to_string()
        }
    }

    #[test]
    fn an_identity_that_is_lost_comes_back_from_the_copy() {
        let node = Node::new();
        node.put(OLD);
        assert_eq!(node.id(&Held::default()), OLD);
        for held in [connected(OLD), recorded(), Held::default()] {
            node.forget_files();
            assert_eq!(node.id(&held), OLD);
            assert_eq!(node.file("hostid").unwrap().trim(), OLD, "and is put back");
            assert_eq!(node.file("hostnqn").unwrap().trim(), names(OLD).host_nqn.as_str());
        }
        fs::remove_file(node.dir.path().join("nvme/hostnqn")).unwrap();
        assert_eq!(node.id(&connected(OLD)), OLD, "one of the two");
    }

    #[test]
    fn no_new_identity_is_made_beside_what_is_attached_under_one_that_is_lost() {
        let node = Node::new();
        let unknown = Held { unknown: vec!["nvme3".into()], ..Held::default() };
        for (held, said) in [(connected(OLD), OLD), (recorded(), "pvc-1"), (unknown, "nvme3")] {
            let error = node.settle(&held).unwrap_err().to_string();
            let file = node.dir.path().join("nvme").display().to_string();
            assert!(
                error.contains(said) && error.contains(&file) && error.contains("Restore both files"),
                "{error}"
            );
            assert_eq!(node.file("hostid"), None);
            assert!(!node.dir.path().join("state").join(COPY).exists());
        }
        node.put(OLD);
        assert_eq!(node.id(&connected(OLD)), OLD, "putting them back heals");
    }

    #[test]
    fn a_node_that_never_had_an_identity_gets_one_and_keeps_it_twice() {
        let node = Node::new();
        let made = node.settle(&Held::default()).unwrap();
        node.forget_files();
        assert_eq!(node.settle(&recorded()).unwrap(), made);
    }

    #[test]
    fn a_changed_identity_waits_until_nothing_is_attached_under_the_old_one() {
        let node = Node::new();
        node.put(OLD);
        node.id(&Held::default());
        node.put(NEW);
        for held in [connected(OLD), recorded()] {
            assert_eq!(node.id(&held), OLD);
            assert_eq!(node.file("hostid").unwrap(), NEW, "a person's files are left alone");
        }
        assert_eq!(node.id(&Held::default()), NEW);
        node.forget_files();
        assert_eq!(node.id(&Held::default()), NEW, "from now on the copy is of the new one");
    }

    #[test]
    fn a_copy_of_another_node_counts_only_where_the_kernel_has_its_names() {
        let node = Node::new();
        node.put(OLD);
        node.id(&Held::default());
        node.forget_files();
        let renamed = node.settle_as("node-b", &connected(OLD)).unwrap();
        assert_eq!(renamed.host_id.to_string(), OLD);
        let clone = Node::new();
        clone.put(OLD);
        clone.id(&Held::default());
        clone.forget_files();
        assert_ne!(clone.settle_as("node-b", &Held::default()).unwrap().host_id.to_string(), OLD);
    }

    #[test]
    fn where_one_place_takes_nothing_the_other_is_enough() {
        let node = Node::new();
        // Files cannot be made below a file.
        fs::write(node.dir.path().join("nvme"), "").unwrap();
        let error = node.settle(&Held::default()).unwrap_err();
        assert!(
            matches!(error, NamesError::Files(_)),
            "what cannot be read is not taken for missing: {error}"
        );
        fs::remove_file(node.dir.path().join("nvme")).unwrap();
        fs::create_dir(node.dir.path().join("state").join(COPY)).unwrap();
        let made = node.settle(&Held::default()).unwrap();
        assert_eq!(node.settle(&connected(OLD)).unwrap(), made, "the files hold it");
    }

    #[test]
    fn a_file_with_nonsense_is_left_alone_and_the_copy_counts() {
        let node = Node::new();
        node.put(OLD);
        node.id(&Held::default());
        fs::write(node.dir.path().join("nvme/hostid"), "\0\0\0\0").unwrap();
        assert_eq!(node.id(&connected(OLD)), OLD);
        assert_eq!(node.file("hostid").unwrap(), "\0\0\0\0");
        fs::remove_file(node.dir.path().join("state").join(COPY)).unwrap();
        assert!(node.settle(&Held::default()).is_err());
    }

    #[tokio::test]
    async fn what_is_held_is_what_the_kernel_and_the_ledger_say() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap();
        let topology = Topology {
            multipath: cleat_host::sysfs::NativeMultipath::On,
            controllers: Vec::new(),
            namespaces: Vec::new(),
            unreadable: Vec::new(),
        };
        let volume = VolumeId::parse("pvc-1").unwrap();
        let mut entry = ending(None, Epoch::new(1, 2).unwrap(), &[], "boot");
        ledger.store(&volume, &entry).await.unwrap();
        assert!(Held::look(&topology, &ledger, &prefix).await.is_nothing());
        entry.ended = false;
        ledger.store(&volume, &entry).await.unwrap();
        assert_eq!(Held::look(&topology, &ledger, &prefix).await, recorded());
    }
}
