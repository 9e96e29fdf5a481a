//! A run: its own network, its machines, its end.

use std::sync::{Mutex, PoisonError};

use nix::sched::{CloneFlags, setns};

use crate::error::{Error, Result};
use crate::keeper::{self, Stage};
use crate::machine::{Machine, MachineSpec};
use crate::net;
use crate::run_dir::{MachineRecord, Record, RunDir};

/// The namespaces that a run lives in. There is one to a process, and it is entered once.
#[derive(Debug)]
pub struct Namespace {
    run: RunDir,
    record: Mutex<Record>,
}

impl Namespace {
    /// Makes this process the program of a run of its own: call it first thing in `main`, while there is only one
    /// thread. It starts the same executable again, with the same arguments, inside new user (unless root),
    /// network, mount and PID namespaces, and returns there; in the outer process it does not return but passes
    /// signals on and ends with the inner one's exit code.
    ///
    /// `name` begins the run's name. When the program ends with 0, the run's folder is removed; else it is kept
    /// and its path printed. Everything the program has started dies with it, however it ends.
    ///
    /// # Errors
    /// [`Error::Namespace`] says what this host does not allow, and what would.
    pub fn enter(name: &str) -> Result<Namespace> {
        let impossible = match Stage::here() {
            Stage::Program(run) => {
                keeper::unblock_signals()?;
                net::make_bridges()?;
                let record = Mutex::new(run.record()?);
                return Ok(Namespace { run, record });
            }
            Stage::Init(run) => keeper::be_init(&run)?,
            Stage::Keeper => keeper::keep(name)?,
        };
        match impossible {}
    }

    /// The run's folder, for logs of its own.
    #[must_use]
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// Boots a machine and waits until it answers.
    ///
    /// # Errors
    /// [`Error::Boot`] with the end of its console if it does not, after three attempts.
    pub fn boot(&self, spec: &MachineSpec) -> Result<Machine> {
        let machine = Machine::boot(&self.run, spec)?;
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.machines.retain(|m| m.name != spec.name);
        let kernel = spec.kernel.release().to_owned();
        record.machines.push(MachineRecord { name: spec.name.clone(), number: spec.number, kernel });
        self.run.write(&record)?;
        Ok(machine)
    }

    /// Boots machines side by side; they come back in the order of `specs`.
    ///
    /// # Errors
    /// The first one's that failed; the others are ended.
    pub fn boot_all(&self, specs: &[MachineSpec]) -> Result<Vec<Machine>> {
        std::thread::scope(|scope| {
            let boots: Vec<_> = specs.iter().map(|spec| scope.spawn(|| self.boot(spec))).collect();
            let ended = |name: &str| Error::Boot {
                machine: name.to_owned(),
                what: "its thread panicked".to_owned(),
                console: String::new(),
            };
            boots
                .into_iter()
                .zip(specs)
                .map(|(boot, spec)| boot.join().map_err(|_| ended(&spec.name))?)
                .collect()
        })
    }

    /// Lets the machines, and whatever else the program has started, run on after the program has ended with 0.
    /// Close or redirect what such processes have inherited of the program's standard streams. `hack/rig` finds
    /// the run by the name that this returns, and ends it.
    ///
    /// # Errors
    /// If the run's folder cannot be written.
    pub fn keep(&self, machines: &[Machine]) -> Result<String> {
        self.run.mark("kept")?;
        machines.iter().for_each(Machine::release);
        Ok(self.run.name())
    }
}

/// A run that another process began and that was kept, or is still under way.
#[derive(Debug)]
pub struct Attachment {
    run: RunDir,
    record: Record,
}

impl Attachment {
    /// Moves this process, which must have one thread, into the network of the run called `name`.
    ///
    /// # Errors
    /// [`Error::NoRun`] if there is none; [`Error::Namespace`] if it is somebody else's.
    pub fn join(name: &str) -> Result<Attachment> {
        let run = RunDir::open(name)?;
        let record = run.record()?;
        let pid = run.init_pid()?;
        join_namespace(pid, "user", CloneFlags::CLONE_NEWUSER)?;
        join_namespace(pid, "net", CloneFlags::CLONE_NEWNET)?;
        Ok(Attachment { run, record })
    }

    /// What the run has written down about itself.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// One of its machines.
    ///
    /// # Errors
    /// [`Error::NoRun`] with the names of those there are.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let found = self.record.machines.iter().find(|m| m.name == name);
        let missing = || {
            let names: Vec<&str> = self.record.machines.iter().map(|m| m.name.as_str()).collect();
            Error::NoRun {
                what: format!("run {} has no machine {name}; it has {}", self.run.name(), names.join(", ")),
            }
        };
        found.map(|m| Machine::attached(&self.run, &m.name, m.number)).ok_or_else(missing)
    }
}

fn join_namespace(pid: i32, kind: &str, flag: CloneFlags) -> Result<()> {
    let (own, theirs) = (format!("/proc/self/ns/{kind}"), format!("/proc/{pid}/ns/{kind}"));
    let identity = |path: &str| {
        std::fs::read_link(path).map_err(|e| Error::Namespace {
            what: format!("cannot look at {path}: {e}; is the run another user's?"),
        })
    };
    // Entering the user namespace that one is in is refused.
    if identity(&own)? == identity(&theirs)? {
        return Ok(());
    }
    let file = std::fs::File::open(&theirs).map_err(Error::io("cannot open", theirs.as_ref()))?;
    setns(file, flag).map_err(|errno| Error::Namespace { what: format!("cannot join {theirs}: {errno}") })
}
