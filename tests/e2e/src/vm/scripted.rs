//! A monitor for tests: it answers each command by a script and keeps what it was asked.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::qmp::Qmp;

/// What it says for a command: lines, each a message without its id. None at all: it hangs up.
pub(super) type Script = Box<dyn FnMut(&str, &Value) -> Vec<Value> + Send>;

/// A monitor that is served until its client goes.
pub(super) struct Scripted {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// Serves; several of them may write down what they are asked in one list.
    pub(super) fn serve(name: &'static str, asked: &Arc<Mutex<Vec<String>>>, mut script: Script) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("qmp")).expect("a socket");
        let scripted = Self { folder, asked: Arc::clone(asked) };
        let asked = Arc::clone(asked);
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            answer(name, &stream, &asked, &mut script);
        });
        scripted
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    pub(super) fn connect(&self) -> Qmp {
        Qmp::connect("vm", &self.socket(), Duration::from_secs(10)).expect("a greeting")
    }

    /// What was asked so far, `NAME: COMMAND`, but for the handshake and looks at the status.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(name: &str, stream: &UnixStream, asked: &Mutex<Vec<String>>, script: &mut Script) {
    let mut writer = stream;
    let mut say = |message: &Value| writer.write_all(format!("{message}\n").as_bytes()).is_ok();
    say(&json!({ "QMP": { "version": {} } }));
    for line in BufReader::new(stream).lines() {
        let Ok(request) =
            line.map_err(drop).and_then(|line| serde_json::from_str::<Value>(&line).map_err(drop))
        else {
            return;
        };
        let command = request["execute"].as_str().unwrap_or_default();
        if !matches!(command, "qmp_capabilities" | "query-status") {
            asked.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{name}: {command}"));
        }
        let said = match command {
            "qmp_capabilities" => vec![json!({ "return": {} })],
            _ => script(command, &request["arguments"]),
        };
        if said.is_empty() {
            return;
        }
        for mut message in said {
            if message.get("event").is_none() {
                message["id"] = request["id"].clone();
            }
            if !say(&message) {
                return;
            }
        }
    }
}
