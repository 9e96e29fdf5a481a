//! The rig itself on real kernels: two machines of each cached kernel come up, do what they are told, are cut off,
//! frozen and reset, and nothing of them is left behind.
//!
//! Boots machines, so it runs only with `CLEAT_MACHINES=1` (which `hack/test` sets), and says so when it does not.
//! With `CLEAT_KERNELS="6.1 6.12"` on these kernels, else on all that are in the cache. A missing kernel is a
//! failure, never a test that passes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cleat_rig::{
    Command, Exit, Initramfs, KernelImage, Machine, MachineSpec, Namespace, Network, RunDir, SlowLink, wait,
};

/// Set for the runs that this test starts as processes of their own.
const ROLE: &str = "CLEAT_BOOTS_ROLE";
const LOOK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let outcome = match std::env::var(ROLE).as_deref() {
        Ok("killed") => be_killed(),
        Ok("kernels") => on_every_kernel(),
        _ if std::env::var_os("CLEAT_MACHINES").is_none_or(|v| v != "1") => {
            say("boots: NOT RUN: it boots virtual machines; run it with CLEAT_MACHINES=1 (hack/test does)");
            return ExitCode::SUCCESS;
        }
        _ => all(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("boots: FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    // A test whose output nobody reads still has its exit code.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn kernels() -> Result<Vec<KernelImage>> {
    match std::env::var("CLEAT_KERNELS") {
        Ok(versions) => versions.split_whitespace().map(|v| Ok(KernelImage::find(v)?)).collect(),
        Err(_) => {
            // 6.1 is the one that must be there: its absence is an error that names hack/setup.
            KernelImage::find("6.1")?;
            Ok(KernelImage::cached())
        }
    }
}

fn child(role: &str) -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.env(ROLE, role);
    command
}

fn all() -> Result<()> {
    let began = Instant::now();
    ensure!(child("kernels").status()?.success(), "see above");
    a_killed_run_leaves_nothing()?;
    say(&format!("boots: passed in {:.1} s", began.elapsed().as_secs_f32()));
    Ok(())
}

fn on_every_kernel() -> Result<()> {
    let run = Namespace::enter("boots")?;
    for kernel in kernels()? {
        let image = Initramfs::for_kernel(&kernel).build()?;
        let began = Instant::now();
        let specs = [
            MachineSpec::new("a", 11, &kernel, &image)
                .disk_mib(64)
                .machine_id("00000000000000000000000000000011"),
            MachineSpec::new("b", 12, &kernel, &image).cpus(2),
        ];
        let machines = run.boot_all(&specs)?;
        let boot = began.elapsed();
        for machine in machines.iter().filter(|m| m.boots() > 1) {
            say(&format!(
                "boots: {}: {} was started {} times",
                kernel.release(),
                machine.name(),
                machine.boots()
            ));
        }
        let [a, b] = &machines[..] else { bail!("two machines were asked for") };
        exercise(a, b, &kernel).with_context(|| format!("kernel {}", kernel.release()))?;
        say(&format!(
            "boots: {}: two machines up in {:.1} s, all well after {:.1} s",
            kernel.release(),
            boot.as_secs_f32(),
            began.elapsed().as_secs_f32()
        ));
    }
    Ok(())
}

fn exercise(a: &Machine, b: &Machine, kernel: &KernelImage) -> Result<()> {
    commands_tell_how_they_ended(a, kernel).context("commands")?;
    output_is_followed_live_and_the_writer_dies_with_its_handle(a).context("streams")?;
    daemons_outlive_their_connection(a).context("daemons")?;
    files_and_sockets_come_through(a, b).context("files and sockets")?;
    nvme_over_tcp_works_over_both_paths(a, b).context("NVMe over TCP")?;
    a_cut_path_is_silent_and_comes_back(a).context("cut")?;
    a_slow_path_is_slow(a).context("slow")?;
    a_frozen_machine_does_not_notice(a).context("freeze")?;
    a_reset_keeps_only_what_was_synced(a).context("reset")
}

fn commands_tell_how_they_ended(a: &Machine, kernel: &KernelImage) -> Result<()> {
    ensure!(a.sh("uname -r")? == kernel.release());
    ensure!(a.sh("hostname; cat /etc/machine-id")? == "a\n00000000000000000000000000000011");
    let both = a.exec(&Command::shell("cat; echo err >&2; exit 3").stdin("in"))?;
    ensure!(
        (both.exit, both.stdout_text(), both.stderr_text()) == (Exit::Code(3), "in".into(), "err\n".into())
    );
    ensure!(a.exec(&Command::shell("kill -9 $$"))?.exit == Exit::Signal(9));
    let slow = a.exec(&Command::shell("echo begun; sleep 100").deadline(Duration::from_millis(500)))?;
    ensure!(slow.exit == Exit::TimedOut { gone: true } && slow.stdout == b"begun\n", "{slow:?}");
    let error = a.sh("echo no such luck >&2; false").err().context("`false` succeeded")?.to_string();
    ensure!(
        error.contains("machine a") && error.contains("exit code 1") && error.contains("no such luck"),
        "{error}"
    );
    let error = a.exec(&Command::new("no-such-program")).err().context("it ran")?.to_string();
    ensure!(error.contains("no-such-program"), "{error}");
    let much = a.exec(&Command::shell("cat").stdin(vec![b'x'; 3 << 20]))?;
    ensure!(much.stdout.len() == 3 << 20, "{} bytes of 3 MiB came back", much.stdout.len());
    Ok(())
}

fn output_is_followed_live_and_the_writer_dies_with_its_handle(a: &Machine) -> Result<()> {
    let script = "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.1; done";
    let mut writer = a.spawn(&Command::shell(script))?;
    for n in 1..=3 {
        ensure!(writer.next_line(Duration::from_secs(10))? == Some(format!("line {n}")));
    }
    let pid = writer.pid();
    drop(writer);
    wait::until("the writer's end", Duration::from_secs(10), LOOK, || {
        Ok(a.exec(&Command::shell(format!("kill -0 {pid}")))?.exit.eq(&Exit::Code(1)).then_some(()))
    })?;
    let ended = a.spawn(&Command::shell("echo last words; sleep 100"))?.kill()?;
    ensure!(matches!(ended.exit, Exit::TimedOut { gone: true }), "{ended:?}");
    Ok(())
}

fn daemons_outlive_their_connection(a: &Machine) -> Result<()> {
    let daemon = a.daemon(&Command::shell("echo up; sleep 100"), "/run/daemon.log")?;
    wait::until("its first words", Duration::from_secs(10), LOOK, || {
        Ok((daemon.log()? == "up\n").then_some(()))
    })?;
    ensure!(daemon.exit()?.is_none());
    daemon.kill(15)?;
    ensure!(daemon.wait(Duration::from_secs(10))? == Exit::Signal(15));
    ensure!(daemon.kill(9).is_err(), "a signal to a process that is gone is an error");
    Ok(())
}

fn files_and_sockets_come_through(a: &Machine, b: &Machine) -> Result<()> {
    let content: Vec<u8> = (0..1 << 20_u32).flat_map(u32::to_le_bytes).collect();
    a.upload("/run/in/file", &content, 0o640)?;
    ensure!(a.download("/run/in/file")? == content, "another file came back");
    ensure!(a.sh("stat -c %a /run/in/file")? == "640");
    ensure!(a.download("/no/such/file").is_err());
    // A server behind a port of the machine's loopback, and one on an address that is reached directly.
    let server =
        a.daemon(&Command::new("nc").args(["-ll", "-p", "7000", "-e", "/bin/cat"]), "/run/nc.log")?;
    let forward = a.forward_tcp(7000)?;
    wait::until("an echo", Duration::from_secs(10), LOOK, || Ok(echoed(forward.path()).ok()))?;
    let path = forward.path().to_owned();
    drop(forward);
    ensure!(!path.exists() && UnixStream::connect(&path).is_err(), "{} is still there", path.display());
    server.kill(9)?;
    reaches(b, "10.77.3.11")
}

fn echoed(path: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"hello")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"hello");
    Ok(())
}

fn nvme_over_tcp_works_over_both_paths(a: &Machine, b: &Machine) -> Result<()> {
    b.sh("modprobe -a nvmet nvmet-tcp && modprobe null_blk gb=1 memory_backed=1 nr_devices=1
        cd /sys/kernel/config/nvmet && mkdir subsystems/nqn.2026-01.test:v1 && cd subsystems/nqn.2026-01.test:v1
        echo 1 >attr_allow_any_host; mkdir namespaces/1; echo -n /dev/nullb0 >namespaces/1/device_path
        echo 01234567-89ab-cdef-0123-456789abcdef >namespaces/1/device_uuid; echo 1 >namespaces/1/enable
        for p in 1 2; do mkdir ../../ports/$p; cd ../../ports/$p; echo tcp >addr_trtype; echo ipv4 >addr_adrfam
            echo 10.77.$p.12 >addr_traddr; echo 4420 >addr_trsvcid
            ln -s /sys/kernel/config/nvmet/subsystems/nqn.2026-01.test:v1 subsystems/; cd ../../subsystems/*v1; done")?;
    let id = "00000000-0000-0000-0000-000000000011";
    a.sh(&format!(
        "for p in 1 2; do nvme connect -t tcp -a 10.77.$p.12 -s 4420 -n nqn.2026-01.test:v1 \
         --hostnqn nqn.2014-08.org.nvmexpress:uuid:{id} --hostid {id}; done"
    ))?;
    let device = Command::shell("test -b /dev/nvme0n1 && cat /sys/block/nvme0n1/uuid");
    let uuid = wait::until("the device", Duration::from_secs(20), LOOK, || {
        Ok(Some(a.exec(&device)?).filter(|o| o.success()).map(|o| o.stdout_text()))
    })?;
    ensure!(uuid.trim() == "01234567-89ab-cdef-0123-456789abcdef", "{uuid}");
    ensure!(a.sh("cat /sys/class/nvme/nvme*/state")? == "live\nlive");
    a.sh("dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=64 oflag=direct 2>&1")?;
    a.sh("nvme disconnect -n nqn.2026-01.test:v1").map(drop).map_err(Into::into)
}

fn ping(a: &Machine, address: &str) -> Result<bool> {
    Ok(a.exec(&Command::new("ping").args(["-c", "1", "-W", "2", address]))?.success())
}

/// One lost packet on a busy host is no cut: it comes through within some tries, or it does not.
fn reaches(a: &Machine, address: &str) -> Result<()> {
    let what = format!("a ping from {} to {address}", a.name());
    Ok(wait::until(&what, Duration::from_secs(15), LOOK, || {
        Ok(ping(a, address).unwrap_or(false).then_some(()))
    })?)
}

fn a_cut_path_is_silent_and_comes_back(a: &Machine) -> Result<()> {
    a.cut_path(Network::Storage1)?;
    ensure!(!ping(a, "10.77.1.254")?, "the first path is cut");
    reaches(a, "10.77.2.254")?;
    ensure!(a.sh("cat /sys/class/net/eth1/carrier")? == "1", "the machine is not told");
    a.restore_path(Network::Storage1)?;
    reaches(a, "10.77.1.254")?;
    a.cut_all()?;
    ensure!(
        !ping(a, "10.77.3.254")? && !ping(a, "10.77.2.254")?,
        "all are cut, and commands still come through"
    );
    a.restore_all()?;
    reaches(a, "10.77.3.254")?;
    reaches(a, "10.77.2.254")
}

fn a_slow_path_is_slow(a: &Machine) -> Result<()> {
    let timed = |a: &Machine| -> Result<f32> {
        let text = a.sh("ping -c 3 10.77.1.254 | sed -n 's/.*min[^=]*= *\\([0-9.]*\\).*/\\1/p'")?;
        text.parse().with_context(|| format!("no time in {text:?}"))
    };
    a.slow_path(Network::Storage1, &SlowLink { delay: Duration::from_millis(150), ..SlowLink::default() })?;
    let slow = timed(a)?;
    ensure!(slow >= 150.0, "{slow} ms with 150 ms added");
    a.quicken_path(Network::Storage1)?;
    let quick = timed(a)?;
    ensure!(quick < 150.0, "{quick} ms with nothing added");
    Ok(())
}

fn a_frozen_machine_does_not_notice(a: &Machine) -> Result<()> {
    let mut clock = a.spawn(&Command::shell("while true; do echo tick; sleep 0.05; done"))?;
    clock.next_line(Duration::from_secs(10))?;
    a.freeze()?;
    // What was on its way comes out; then nothing more.
    let silent = wait::until("silence", Duration::from_secs(20), Duration::from_millis(1), || {
        Ok(clock.next_line(Duration::from_secs(1)).is_err().then_some(()))
    });
    a.resume()?;
    silent?;
    ensure!(clock.next_line(Duration::from_secs(20))?.as_deref() == Some("tick"), "it goes on where it was");
    Ok(())
}

fn a_reset_keeps_only_what_was_synced(a: &Machine) -> Result<()> {
    a.sh("echo kept >/data/file; sync; echo lost >/run/file; touch /data/fresh")?;
    let before = a.boot_id()?;
    a.reset()?;
    ensure!(a.boot_id()? != before);
    ensure!(a.sh("cat /data/file; ls /run/file 2>/dev/null; true")? == "kept");
    Ok(())
}

/// A run whose first process is killed with -9: its machines die, and the next run of the rig tidies up.
fn a_killed_run_leaves_nothing() -> Result<()> {
    let mut keeper = child("killed").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut name = String::new();
    // It prints its name once its machine is up, and closes its output by dying.
    let mut stdout = keeper.stdout.take().context("no output")?;
    let mut byte = [0; 1];
    while stdout.read(&mut byte)? == 1 && byte != *b"\n" {
        name.push(char::from(byte[0]));
    }
    let run = RunDir::open(&name).with_context(|| format!("it printed {name:?}"))?;
    let members = members_of(run.init_pid()?)?;
    ensure!(members.len() >= 3, "init, the program and QEMU at least: {members:?}");
    keeper.kill()?;
    keeper.wait()?;
    wait::until("the end of its processes", Duration::from_secs(20), LOOK, || {
        Ok((!run.is_alive() && members.iter().all(|pid| !is_running(pid))).then_some(()))
    })?;
    std::fs::remove_dir_all(run.path())?;
    Ok(())
}

fn be_killed() -> Result<()> {
    let run = Namespace::enter("killed")?;
    let kernel = kernels()?.remove(0);
    let _machine = run.boot(&MachineSpec::new("a", 11, &kernel, &Initramfs::for_kernel(&kernel).build()?))?;
    writeln!(std::io::stdout(), "{}", run.run_dir().name())?;
    // Until it is killed, or whoever should have done so has died.
    wait::until("being killed", Duration::from_secs(60), LOOK, || Ok(None::<()>))?;
    Ok(())
}

/// The processes of the PID namespace whose first process is `init`, as paths below the host's /proc.
fn members_of(init: i32) -> Result<Vec<PathBuf>> {
    let namespace = std::fs::read_link(format!("/proc/{init}/ns/pid"))?;
    let processes = std::fs::read_dir("/proc")?.flatten().map(|e| e.path());
    Ok(processes.filter(|p| std::fs::read_link(p.join("ns/pid")).is_ok_and(|ns| ns == namespace)).collect())
}

fn is_running(process: &Path) -> bool {
    std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
