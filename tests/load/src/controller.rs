//! The controller in a process of its own, and what the kernel says of that.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cleat_proto::csi::v1::controller_client::ControllerClient;
use cleat_runtime::grpc::{Keepalive, unix_endpoint};
use tonic::transport::Channel;

use crate::rds::LoadRds;
use crate::scale;

/// In which Linux counts CPU time for users, on every machine that Cleat runs on.
const TICK: Duration = Duration::from_millis(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// How it is started, as often as that is.
pub(crate) struct Start {
    pub(crate) program: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// One that runs. Killed with this.
pub(crate) struct Controller {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    /// When it was started.
    pub(crate) began: Instant,
}

impl Start {
    pub(crate) fn new(
        program: &Path,
        folder: &Path,
        rds: &LoadRds,
        tls: Vec<String>,
    ) -> anyhow::Result<Self> {
        std::fs::write(folder.join("password"), "nobody asks for it")?;
        let path = |name: &str| folder.join(name).display().to_string();
        let mut arguments = vec![
            format!("--csi-socket={}", path("csi.sock")),
            "--agent-listen=127.0.0.1:0".to_owned(),
            "--operator-listen=127.0.0.1:0".to_owned(),
            format!("--store=file:{}", path("records")),
            format!("--rds-url={}", rds.url),
            format!("--rds-fingerprint={}", rds.fingerprint),
            format!("--rds-password-file={}", path("password")),
            "--rds-files=/pool/cleat".to_owned(),
            "--host-acl=list".to_owned(),
            "--cluster-id=one".to_owned(),
            format!("--nqn-prefix={}", scale::NQN_PREFIX),
        ];
        arguments.extend(scale::PORTALS.map(|portal| format!("--rds-portal={portal}")));
        arguments.extend(tls);
        Ok(Self { program: program.to_owned(), folder: folder.to_owned(), arguments })
    }

    /// Where its store is.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("records")
    }

    /// Starts it.
    pub(crate) fn exec(&self) -> anyhow::Result<Controller> {
        let log = self.folder.join("controller.log");
        let began = Instant::now();
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}; build it", self.program.display()))?;
        Ok(Controller { child, log, socket: self.folder.join("csi.sock"), began })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Controller {
    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Fails if it has ended, or if that deadline has passed.
    pub(crate) fn runs(&mut self, deadline: Instant, what: &str) -> anyhow::Result<()> {
        let ended = self.child.try_wait()?;
        if ended.is_none() && Instant::now() < deadline {
            return Ok(());
        }
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        match ended {
            Some(status) => bail!("the controller has ended ({status}) before {what}:\n{last}"),
            None => bail!("{what}: not within the time for it; the controller said last:\n{last}"),
        }
    }

    /// Where it serves agents, once it does.
    pub(crate) async fn agents_at(&mut self, deadline: Instant) -> anyhow::Result<SocketAddr> {
        loop {
            let said = std::fs::read_to_string(&self.log)?;
            let address = said.split_once(" agents=").and_then(|(_, rest)| rest.split_whitespace().next());
            if let Some(address) = address {
                return address.trim_matches('"').parse().context("cannot read where agents are served");
            }
            self.runs(deadline, "it serves agents")?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Its CSI socket, once it serves.
    pub(crate) async fn csi(&mut self, deadline: Instant) -> anyhow::Result<ControllerClient<Channel>> {
        loop {
            if let Ok(channel) = unix_endpoint(&self.socket, Keepalive::default())?.connect().await {
                return Ok(ControllerClient::new(channel));
            }
            self.runs(deadline, "it serves CSI")?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The CPU time that it has used.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let ticks = ticks_used(&stat).context("cannot read the controller's CPU time")?;
        Ok(TICK * ticks)
    }

    /// The most memory that it has had so far, in MiB.
    pub(crate) fn most_memory_mib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.context("cannot read the controller's memory")? / 1024)
    }
}

/// utime and stime of a line of /proc/PID/stat. What precedes them ends with the name in brackets, which may have any bytes.
fn ticks_used(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u32>().ok()?);
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_after_a_name_with_brackets_and_spaces() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 120 34 0 0 20 0 9 0 1 2 3";
        assert_eq!(ticks_used(stat), Some(154));
        assert_eq!(ticks_used("7 (a"), None);
    }
}
