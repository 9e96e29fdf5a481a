//! Tools of the host, run with their output kept for the error; and where this workspace's programs lie.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// Folders that an ordinary user's PATH lacks on Debian and that hold `ip`, `mkfs.ext4` and others.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The path of a tool of the host, from PATH or the system's folders.
pub(crate) fn tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file()).ok_or_else(|| Error::NoProgram {
        name: name.to_owned(),
        looked_in: "PATH and the system's folders".to_owned(),
        remedy: "install it with: hack/setup".to_owned(),
    })
}

/// Runs a short-lived tool and answers with its standard output.
pub(crate) fn run<A: AsRef<OsStr>>(name: &str, arguments: &[A]) -> Result<Vec<u8>> {
    run_with_input(name, arguments, b"")
}

/// The same, with something (small: it is written before the output is read) on standard input.
pub(crate) fn run_with_input<A: AsRef<OsStr>>(name: &str, arguments: &[A], input: &[u8]) -> Result<Vec<u8>> {
    let program = tool(name)?;
    let line = || {
        let words = arguments.iter().map(|a| a.as_ref().to_string_lossy().into_owned());
        std::iter::once(name.to_owned()).chain(words).collect::<Vec<_>>().join(" ")
    };
    let failed = |outcome: String, stderr: &[u8]| Error::HostCommand {
        command: line(),
        outcome,
        stderr: String::from_utf8_lossy(stderr).into_owned(),
    };
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot start: {error}"), b""))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).map_err(|error| failed(format!("does not read its input: {error}"), b""))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string(), b""))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(output.status.to_string(), &output.stderr))
    }
}

/// The folder that everything reusable is cached in: `$CLEAT_CACHE`, or `cleat` in the user's cache folder.
#[must_use]
pub fn cache_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("CLEAT_CACHE") {
        return folder.into();
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    base.unwrap_or_else(home).join("cleat")
}

/// The path of a program of this workspace, such as `cleat-agent`: in `$CLEAT_PROGRAMS` if that is set, else where
/// cargo has put the program that is running, so that a test finds what was built with it.
///
/// # Errors
/// [`Error::NoProgram`] with the command that builds it. Cargo builds only a package's *own* programs for its
/// tests: `hack/test` builds all of them first.
pub fn program(name: &str) -> Result<PathBuf> {
    let folders: Vec<PathBuf> = match std::env::var_os("CLEAT_PROGRAMS") {
        Some(folder) => vec![folder.into()],
        None => {
            let own = std::env::current_exe().unwrap_or_default();
            own.ancestors().skip(1).take(2).map(Path::to_owned).collect()
        }
    };
    folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file()).ok_or_else(|| {
        Error::NoProgram {
            name: name.to_owned(),
            looked_in: folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
            remedy: "build it with: cargo build --workspace --bins".to_owned(),
        }
    })
}
