//! A shell on a node of `hack/kubernetes`, which each has on its management address; and what is asked there of a volume.
//!
//! In: a command. Out: what it wrote. What always holds: an answer without the command's own end is an error, and so is another
//! end than 0: with what it wrote.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::vm::guest::GuestProgram;

/// As `tests/kubernetes/node/start.sh` has it.
const SHELL_PORT: u16 = 2222;
const CONNECTS: Duration = Duration::from_secs(10);
/// A hundred megabytes of records come out of an emulated node in less.
const SAYS: Duration = Duration::from_secs(120);
/// What follows all that the command wrote.
const END: &[u8] = b"\nENDED ";

/// A node of the cluster. All that it does blocks.
#[derive(Debug, Clone)]
pub(super) struct PodNode {
    pub(super) name: &'static str,
    pub(super) address: IpAddr,
}

impl PodNode {
    fn bytes(&self, command: &str) -> anyhow::Result<Vec<u8>> {
        let said = self.exchange(command).with_context(|| format!("the shell of {}", self.name))?;
        ended_well(said).with_context(|| format!("on {}: {}", self.name, command.trim()))
    }

    fn exchange(&self, command: &str) -> anyhow::Result<Vec<u8>> {
        let address = SocketAddr::new(self.address, SHELL_PORT);
        let mut stream = TcpStream::connect_timeout(&address, CONNECTS)?;
        stream.set_read_timeout(Some(SAYS))?;
        let end = String::from_utf8_lossy(END).replace('\n', "\\n");
        let script = format!(". /run/env\n( {command}\n) </dev/null\nprintf '{end}%s\\n' $?\nexit\n");
        stream.write_all(script.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said)?;
        Ok(said)
    }

    fn text(&self, command: &str) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes(command)?).trim().to_owned())
    }

    /// The block device of a volume, as its kernel has it over all paths.
    pub(super) fn device(&self, volume: &str) -> anyhow::Result<String> {
        let found = self.text(&format!(
            "for s in /sys/class/nvme-subsystem/*; do case $(cat $s/subsysnqn) in *{}*) for d in $s/nvme*n*; do \
             [ ! -b /dev/${{d##*/}} ] || echo /dev/${{d##*/}}; done ;; esac; done",
            in_nqn(volume)
        ))?;
        ensure!(found.lines().count() == 1, "{} has not one device of {volume}: {found:?}", self.name);
        Ok(found)
    }

    /// The ids of the NVMe controllers by which it has a volume.
    pub(super) fn controllers(&self, volume: &str) -> anyhow::Result<BTreeSet<u32>> {
        let found = self.text(&format!(
            "for c in /sys/class/nvme/nvme*; do case $(cat $c/subsysnqn 2>/dev/null) in *{}*) cat $c/cntlid ;; esac; done",
            in_nqn(volume)
        ))?;
        let number = |word: &str| word.parse().with_context(|| format!("{word:?} is no controller's id"));
        found.split_whitespace().map(number).collect()
    }

    /// How large a device is.
    pub(super) fn size(&self, device: &str) -> anyhow::Result<u64> {
        let said = self.text(&format!("blockdev --getsize64 {device}"))?;
        said.parse().with_context(|| format!("{said:?} is no size of {device}"))
    }

    /// Writes the guest to the beginning of a device; nobody else may write to it then.
    pub(super) fn install(&self, device: &str, program: &GuestProgram) -> anyhow::Result<()> {
        let bytes: String = program.boot_sector().iter().map(|byte| format!("\\x{byte:02x}")).collect();
        // What is missing to a block is zeros.
        self.text(&format!(
            "set -o pipefail; printf '{bytes}' | dd of={device} bs=4096 count=1 iflag=fullblock oflag=direct \
             conv=sync,notrunc status=none 2>&1"
        ))
        .map(drop)
    }

    /// Reads so many records and one more from a device, past every cache.
    pub(super) fn read_records(
        &self,
        device: &str,
        program: &GuestProgram,
        records: u64,
    ) -> anyhow::Result<Vec<u8>> {
        let (first, count) = (program.first_byte / 4096, records + 1);
        self.bytes(&format!(
            "dd if={device} bs=4096 skip={first} count={count} iflag=direct status=none 2>/run/dd.err || {{ cat /run/dd.err; false; }}"
        ))
    }
}

/// What of a volume's name its NQN has.
fn in_nqn(volume: &str) -> &str {
    volume.strip_prefix("pvc-").unwrap_or(volume)
}

/// What a command wrote, if it has ended with 0.
fn ended_well(mut said: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let end_of = |said: &[u8]| {
        let text = String::from_utf8_lossy(&said[said.len().saturating_sub(600)..]).into_owned();
        text.trim().to_owned()
    };
    let end = said.windows(END.len()).rposition(|bytes| bytes == END);
    let end = end.with_context(|| format!("it does not say how it ended: {}", end_of(&said)))?;
    let rest = said.split_off(end);
    let code = String::from_utf8_lossy(rest.get(END.len()..).unwrap_or_default()).trim().to_owned();
    ensure!(code == "0", "it ended with {code}: {}", end_of(&said));
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_was_written_before_an_end_with_0() {
        assert_eq!(ended_well(b"a\nENDED 7\nb\nENDED 0\n".to_vec()).expect("it ended"), b"a\nENDED 7\nb");
        let failed = ended_well(b"no such device\nENDED 1\n".to_vec()).expect_err("it failed").to_string();
        assert_eq!(failed, "it ended with 1: no such device");
        let cut = ended_well(b"half".to_vec()).expect_err("no end").to_string();
        assert_eq!(cut, "it does not say how it ended: half");
    }
}
