//! The machines: each with its network, its disk, and the program that runs on it.
//!
//! Comes in: what is to become of them, and time. Goes out: that a program ended by itself. Always holds: one program
//! of its kind runs on a machine at a time, as the lock on the controller's store and the one on an agent's ledger see
//! to (unless it is that what is wrong on purpose).

use std::path::{Path, PathBuf};

use turmoil::Sim;

use crate::chance::Chance;
use crate::net::Nic;
use crate::process::Process;
use crate::programs::{self, AGENTS_PORT, CONTROLLER, CSI_PORT, OPERATORS_PORT};
use crate::world::{NODES, NodeIx, Planted, Universe};

/// A program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The controller.
    Controller,
    /// A node's agent.
    Agent(NodeIx),
}

#[derive(Debug)]
struct Machine {
    nic: Nic,
    disk: PathBuf,
    process: Option<Process>,
}

/// All machines.
#[derive(Debug)]
pub struct Machines {
    universe: Universe,
    scratch: PathBuf,
    disks: u32,
    chance: Chance,
    controller: Machine,
    agents: Vec<Machine>,
    /// A controller that stood still while another one took its place.
    overtaken: Option<Process>,
}

impl Machines {
    /// Switches all of them on.
    ///
    /// # Errors
    /// If one gets no disk.
    pub fn new(universe: &Universe, scratch: &Path, seed: u64, sim: &mut Sim<'_>) -> std::io::Result<Self> {
        let machine = |name: &'static str, ports: &'static [u16], sim: &mut Sim<'_>| {
            let (nic, disk) = (Nic::default(), scratch.join(name));
            std::fs::create_dir(&disk)?;
            sim.host(name, {
                let nic = nic.clone();
                move || nic.clone().run(ports)
            });
            std::io::Result::Ok(Machine { nic, disk, process: None })
        };
        let controller = machine(CONTROLLER, &[CSI_PORT, AGENTS_PORT, OPERATORS_PORT], sim)?;
        let agents = NODES.iter().map(|name| machine(name, &[], sim)).collect::<Result<_, _>>()?;
        let (universe, scratch) = (universe.clone(), scratch.to_owned());
        let chance = Chance::new(seed, "machines");
        let mut machines = Self { universe, scratch, disks: 0, chance, controller, agents, overtaken: None };
        machines.start(Program::Controller, 0)?;
        for node in 0..NODES.len() {
            machines.start(Program::Agent(node), 0)?;
        }
        Ok(machines)
    }

    fn machine(&mut self, program: Program) -> &mut Machine {
        match program {
            Program::Controller => &mut self.controller,
            Program::Agent(node) => &mut self.agents[node],
        }
    }

    /// Starts a program; one that runs there is killed.
    ///
    /// # Errors
    /// If it gets no runtime.
    pub fn start(&mut self, program: Program, now: u64) -> std::io::Result<()> {
        self.kill(program);
        let universe = self.universe.clone();
        let machine = self.machine(program);
        let (nic, disk) = (machine.nic.clone(), machine.disk.clone());
        machine.process = Some(match program {
            Program::Controller => Process::start(now, programs::controller(universe, nic, disk))?,
            Program::Agent(node) => Process::start(now, programs::agent(universe, node, nic, disk))?,
        });
        Ok(())
    }

    /// Kills a program, frozen or not. Nobody may hold the world: what is dropped with a program looks at it.
    pub fn kill(&mut self, program: Program) {
        drop(self.machine(program).process.take());
    }

    /// Lets a program stand still. Where the lock on the store is what is missing, another controller takes over.
    ///
    /// # Errors
    /// If that one gets no runtime.
    pub fn freeze(&mut self, program: Program, now: u64) -> std::io::Result<()> {
        if let Some(process) = &mut self.machine(program).process {
            process.freeze();
        }
        if program == Program::Controller && self.universe.lock().planted == Some(Planted::LockIgnored) {
            let stands_still = self.controller.process.take();
            self.overtaken = stands_still;
            return self.start(Program::Controller, now);
        }
        Ok(())
    }

    /// Lets a program go on.
    pub fn thaw(&mut self, program: Program, now: u64) {
        if let Some(process) = &mut self.machine(program).process {
            process.thaw(now);
        }
        if program == Program::Controller
            && let Some(process) = &mut self.overtaken
        {
            process.thaw(now);
        }
    }

    /// Another machine takes a node's place: it has an empty disk.
    ///
    /// # Errors
    /// If it gets none.
    pub fn replace(&mut self, node: NodeIx) -> std::io::Result<()> {
        self.disks += 1;
        let disk = self.scratch.join(format!("{}.{}", NODES[node], self.disks));
        std::fs::create_dir(&disk)?;
        self.agents[node].disk = disk;
        Ok(())
    }

    /// Lets everybody run up to `now`, in any order.
    ///
    /// # Errors
    /// Which program ended by itself, and how.
    pub fn run(&mut self, now: u64) -> Result<(), String> {
        let first = self.chance.index(NODES.len() + 1);
        for at in 0..=NODES.len() {
            let (name, machine) = match (first + at) % (NODES.len() + 1) {
                0 => (CONTROLLER, &mut self.controller),
                node => (NODES[node - 1], &mut self.agents[node - 1]),
            };
            if let Some(process) = &mut machine.process {
                process.run(now).map_err(|how| format!("{name}: {how}"))?;
            }
        }
        if self.overtaken.as_mut().is_some_and(|process| process.run(now).is_err()) {
            self.overtaken = None;
        }
        Ok(())
    }
}
