//! `rig`: the rig by hand. `hack/rig` builds it and runs it.
//!
//! `up` begins a run and leaves it running; the other commands join its network and act on its machines.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use cleat_rig::{
    Accelerator, Attachment, Command, Exit, Initramfs, KernelImage, Machine, MachineSpec, Namespace, Network,
    RunDir, SlowLink,
};

/// Virtual machines with real kernels, two storage paths each, in a network of their own.
#[derive(Parser)]
#[command(name = "hack/rig", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Boot machines and leave them running: `rds` (number 1), and `node-a`, `node-b`, … (numbers 11, 12, …)
    Up(Up),
    /// Runs that are alive, with their machines
    List,
    /// Run a command in a machine; its output and exit code become this command's
    Exec {
        /// The run, as `up` and `list` print it
        run: String,
        /// The machine
        machine: String,
        /// Seconds after which the command is killed
        #[arg(long, default_value_t = 3600)]
        deadline: u64,
        /// The command, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// A shell in a machine
    Sh {
        /// The run
        run: String,
        /// The machine
        machine: String,
    },
    /// Run a command of this host in the run's network, where 10.77.{1,2,3}.N are the machines
    Host {
        /// The run
        run: String,
        /// The command, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Cut a machine off a network: stor1, stor2, mgmt or all
    Cut {
        /// The run
        run: String,
        /// The machine
        machine: String,
        /// stor1, stor2, mgmt or all
        path: String,
    },
    /// Undo `cut`
    Restore {
        /// The run
        run: String,
        /// The machine
        machine: String,
        /// stor1, stor2, mgmt or all
        path: String,
    },
    /// Delay what a machine sends on a network; 0 undoes it
    Slow {
        /// The run
        run: String,
        /// The machine
        machine: String,
        /// stor1, stor2 or mgmt
        path: String,
        /// Milliseconds
        delay_ms: u64,
    },
    /// Stop a machine's CPUs
    Freeze {
        /// The run
        run: String,
        /// The machine
        machine: String,
    },
    /// Undo `freeze`
    Resume {
        /// The run
        run: String,
        /// The machine
        machine: String,
    },
    /// Reset a machine hard and wait until it is up again
    Reset {
        /// The run
        run: String,
        /// The machine
        machine: String,
    },
    /// What a machine has written to its serial console
    Console {
        /// The run
        run: String,
        /// The machine
        machine: String,
    },
    /// End a run with all its machines
    Down {
        /// The run
        run: String,
    },
    /// Find out whether machines boot with hardware virtualisation here, and use it from then on if so
    Probe,
}

#[derive(clap::Args)]
struct Up {
    /// The kernel's version
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// Another kernel for the machine `rds`
    #[arg(long)]
    rds_kernel: Option<String>,
    /// How many nodes beside `rds`
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=26))]
    nodes: u8,
    /// Memory of each machine, in MiB
    #[arg(long, default_value_t = 512)]
    memory_mib: u32,
    /// CPUs of each machine
    #[arg(long, default_value_t = 1)]
    cpus: u8,
    /// A word for the kernels' command lines, such as nvme_core.multipath=N (repeat for more)
    #[arg(long = "kernel-argument")]
    kernel_arguments: Vec<String>,
    /// Put this program of the host into the machines, as /usr/sbin/NAME (repeat for more)
    #[arg(long = "program")]
    programs: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match act(Arguments::parse().action) {
        Ok(code) => code,
        Err(error) => {
            // The exit code says it as well.
            let _ = writeln!(std::io::stderr(), "rig: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> Result<ExitCode> {
    match action {
        Action::Up(up) => bring_up(&up)?,
        Action::List => list()?,
        Action::Exec { run, machine, deadline, command } => {
            let machine = Attachment::join(&run)?.machine(&machine)?;
            let mut words = command.into_iter();
            let program = words.next().context("no command")?;
            return stream(
                &machine,
                &Command::new(program).args(words).deadline(Duration::from_secs(deadline)),
            );
        }
        Action::Sh { run, machine } => {
            let machine = Attachment::join(&run)?.machine(&machine)?;
            let day = Duration::from_secs(24 * 3600);
            return stream(&machine, &Command::new("sh").arg("-i").env("PS1", "\\h:\\w# ").deadline(day));
        }
        Action::Host { run, command } => {
            use std::os::unix::process::CommandExt;
            Attachment::join(&run)?;
            let error = std::process::Command::new(&command[0]).args(&command[1..]).exec();
            return Err(error).with_context(|| format!("cannot start {}", command[0]));
        }
        Action::Cut { run, machine, path } => {
            on_paths(&run, &machine, &path, Machine::cut_path)?;
        }
        Action::Restore { run, machine, path } => {
            on_paths(&run, &machine, &path, Machine::restore_path)?;
        }
        Action::Slow { run, machine, path, delay_ms } => {
            let delay = Duration::from_millis(delay_ms);
            on_paths(&run, &machine, &path, |machine, network| match delay_ms {
                0 => machine.quicken_path(network),
                _ => machine.slow_path(network, &SlowLink { delay, ..SlowLink::default() }),
            })?;
        }
        Action::Freeze { run, machine } => Attachment::join(&run)?.machine(&machine)?.freeze()?,
        Action::Resume { run, machine } => Attachment::join(&run)?.machine(&machine)?.resume()?,
        Action::Reset { run, machine } => Attachment::join(&run)?.machine(&machine)?.reset()?,
        Action::Console { run, machine } => {
            let path = Attachment::join(&run)?.machine(&machine)?.console();
            let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            std::io::stdout().write_all(&text)?;
        }
        Action::Down { run } => down(&RunDir::open(&run)?)?,
        Action::Probe => probe()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn line(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

fn bring_up(up: &Up) -> Result<()> {
    let run = Namespace::enter("rig")?;
    let kernel = KernelImage::find(&up.kernel)?;
    let rds_kernel = KernelImage::find(up.rds_kernel.as_ref().unwrap_or(&up.kernel))?;
    let image = |kernel: &KernelImage| {
        let builder = up.programs.iter().fold(Initramfs::for_kernel(kernel), |b, program| b.program(program));
        builder.build()
    };
    let (node_image, rds_image) = (image(&kernel)?, image(&rds_kernel)?);
    let node = |n: u8| {
        MachineSpec::new(format!("node-{}", char::from(b'a' + n)), 11 + n, &kernel, &node_image).disk_mib(256)
    };
    let specs: Vec<MachineSpec> =
        std::iter::once(MachineSpec::new("rds", 1, &rds_kernel, &rds_image).disk_mib(4096))
            .chain((0..up.nodes).map(node))
            .map(|spec| spec.memory_mib(up.memory_mib).cpus(up.cpus))
            .map(|spec| up.kernel_arguments.iter().fold(spec, MachineSpec::kernel_argument))
            .collect();
    let machines = run.boot_all(&specs)?;
    let name = run.keep(&machines)?;
    for machine in &machines {
        line(&format!("{name} {} {}", machine.name(), machine.address(Network::Management)))?;
    }
    line(&format!("look inside: hack/rig sh {name} {}; end it: hack/rig down {name}", machines[0].name()))
}

fn list() -> Result<()> {
    for run in RunDir::alive()? {
        let record = run.record()?;
        for machine in &record.machines {
            let address = Network::Management.address(machine.number);
            line(&format!("{} {} {address} {}", run.name(), machine.name, machine.kernel))?;
        }
        if record.machines.is_empty() {
            line(&format!("{} (no machines yet): {}", run.name(), record.command.join(" ")))?;
        }
    }
    Ok(())
}

fn on_paths(
    run: &str,
    machine: &str,
    path: &str,
    action: impl Fn(&Machine, Network) -> cleat_rig::Result<()>,
) -> Result<()> {
    let machine = Attachment::join(run)?.machine(machine)?;
    let networks = if path == "all" { Network::CUTTABLE.to_vec() } else { vec![path.parse()?] };
    networks.into_iter().try_for_each(|network| Ok(action(&machine, network)?))
}

/// Runs a command with its streams as ours.
fn stream(machine: &Machine, command: &Command) -> Result<ExitCode> {
    let process = machine.spawn(command)?;
    let mut input = process.input()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        // Reading ends with our input, writing with the command: neither is an error of this command.
        while let Ok(count) = std::io::stdin().read(&mut buffer) {
            if count == 0 || input.write(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = input.end();
    });
    let exit = process.copy_to(&mut std::io::stdout(), &mut std::io::stderr())?;
    if let Exit::TimedOut { .. } = exit {
        writeln!(std::io::stderr(), "rig: {exit}")?;
    }
    if std::io::stdout().is_terminal() {
        std::io::stdout().flush()?;
    }
    Ok(match exit {
        Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Exit::Signal(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
        Exit::TimedOut { .. } => ExitCode::from(124),
    })
}

fn down(run: &RunDir) -> Result<()> {
    run.end(Duration::from_secs(20)).with_context(|| format!("run {}", run.name()))
}

fn probe() -> Result<()> {
    let run = Namespace::enter("probe")?;
    let kernel =
        KernelImage::cached().pop().context("no kernel in the cache; get one with: hack/setup kernels")?;
    let image = Initramfs::for_kernel(&kernel).build()?;
    let spec = MachineSpec::new("probe", 1, &kernel, &image)
        .accelerator(Accelerator::Kvm)
        // Where it works at all it takes seconds; where it does not, it hangs.
        .boot_once_within(Duration::from_secs(30));
    let works = run.boot(&spec).and_then(|machine| machine.sh("uname -r"));
    Accelerator::remember_kvm(works.is_ok()).context("cannot write to the cache")?;
    match works {
        Ok(release) => line(&format!("a machine with kernel {release} boots with KVM: used from now on")),
        Err(error) => line(&format!("no KVM here, machines are emulated: {error}")),
    }
}
