//! QEMU's monitor protocol, as much of it as freezing and resetting a machine takes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// A busy QEMU answers late: while it drains stuck I/O it was seen to be silent for 5 s.
const ANSWER: Duration = Duration::from_secs(30);

/// Runs one command on the monitor at `socket` and answers with what it returns. One client at a time: callers
/// hold the machine's lock.
pub(crate) fn execute(machine: &str, socket: &Path, command: &str) -> Result<Value> {
    let error =
        |what: String| Error::Monitor { machine: machine.to_owned(), command: command.to_owned(), what };
    let mut stream = UnixStream::connect(socket).map_err(|e| error(format!("cannot connect: {e}")))?;
    let reader = stream.try_clone().map_err(|e| error(e.to_string()))?;
    let mut reader = BufReader::new(reader);
    let deadline = Instant::now() + ANSWER;
    let mut read = |wanted: &str| -> Result<Value> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            reader.get_ref().set_read_timeout(Some(left)).map_err(|e| error(e.to_string()))?;
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) => return Err(error("it hung up".to_owned())),
                Ok(_) => {}
                Err(e) => return Err(error(format!("no answer: {e}"))),
            }
            let message: Value = serde_json::from_str(&line).map_err(|e| error(format!("{e}: {line}")))?;
            if let Some(refusal) = message.get("error") {
                return Err(error(refusal["desc"].as_str().unwrap_or("refused").to_owned()));
            }
            // Events come in between.
            if let Some(value) = message.get(wanted) {
                return Ok(value.clone());
            }
        }
    };
    let mut send = |name: &str| {
        let line = format!("{}\n", json!({ "execute": name }));
        stream.write_all(line.as_bytes()).map_err(|e| error(e.to_string()))
    };
    read("QMP")?;
    send("qmp_capabilities")?;
    read("return")?;
    send(command)?;
    read("return")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that answers what it is told to, line by line.
    fn monitor(
        answers: &'static [&'static str],
    ) -> (tempfile::TempDir, std::thread::JoinHandle<Vec<String>>) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\":{}}\n").unwrap();
            let mut seen = Vec::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                seen.push(line.trim().to_owned());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            seen
        });
        (folder, server)
    }

    #[test]
    fn events_in_between_are_not_taken_for_the_answer() {
        let (folder, server) =
            monitor(&["{\"return\":{}}\n", "{\"event\":\"STOP\"}\n{\"return\":{\"status\":\"paused\"}}\n"]);
        let answer = execute("a", &folder.path().join("qmp"), "query-status").unwrap();
        assert_eq!(answer["status"], "paused");
        assert_eq!(server.join().unwrap()[1], "{\"execute\":\"query-status\"}");
    }

    #[test]
    fn a_refusal_names_machine_and_command() {
        let (folder, _server) =
            monitor(&["{\"return\":{}}\n", "{\"error\":{\"desc\":\"no such command\"}}\n"]);
        let error = execute("node-a", &folder.path().join("qmp"), "fly").unwrap_err();
        assert_eq!(error.to_string(), "machine node-a: QEMU's `fly`: no such command");
    }
}
