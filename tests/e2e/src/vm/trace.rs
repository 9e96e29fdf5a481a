//! Has the target's kernel note every write that arrives, by the events of its NVMe target.
//!
//! In: the RDS's machine. Out: the kernel's trace as text, for [`super::arrivals::parse`]. What always holds: only what may change a
//! disk is noted, in queues that carry I/O, so that the buffer holds it all; whether it did is in the trace itself.

use anyhow::Context;
use cleat_rig::{Command, Machine};

const FOLDER: &str = "/sys/kernel/tracing";
const EVENT: &str = "events/nvmet/nvmet_req_init";
/// Write, write uncorrectable, write zeroes, dataset management.
const CHANGES: &str = "qid != 0 && (opcode == 1 || opcode == 4 || opcode == 8 || opcode == 9)";
/// Some 100 bytes an event: room for 100,000 on each CPU.
const BUFFER_KIB: u32 = 16 << 10;

/// Begins to note, with an empty buffer.
///
/// # Errors
/// If the kernel has no such events.
pub fn begin(rds: &Machine) -> anyhow::Result<()> {
    let script = format!(
        "set -e; grep -q ' {FOLDER} ' /proc/mounts || mount -t tracefs tracefs {FOLDER}
         cd {FOLDER}; echo 0 >tracing_on; echo mono >trace_clock; echo {BUFFER_KIB} >buffer_size_kb; echo >trace
         echo '{CHANGES}' >{EVENT}/filter; echo 1 >{EVENT}/enable; echo 1 >tracing_on"
    );
    rds.sh(&script).context("trace the writes that arrive at the target").map(drop)
}

/// Notes this moment under a name, among the writes: [`super::arrivals::marked`] finds it.
///
/// # Errors
/// If the machine does not answer.
pub fn mark(rds: &Machine, name: &str) -> anyhow::Result<()> {
    rds.sh(&format!("echo {name} >{FOLDER}/trace_marker")).context("mark the target's trace").map(drop)
}

/// Ends it; what was noted.
///
/// # Errors
/// If the machine does not answer.
pub fn end(rds: &Machine) -> anyhow::Result<String> {
    let read =
        format!("cd {FOLDER} && echo 0 >tracing_on && cat trace && echo 0 >{EVENT}/enable && echo >trace");
    // A file's name may be cut in the middle of a letter.
    let output = rds.exec(&Command::shell(read)).context("read the target's trace")?;
    anyhow::ensure!(output.success(), "read the target's trace: {}", output.stderr_text().trim());
    Ok(output.stdout_text())
}
