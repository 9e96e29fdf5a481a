//! QEMU's monitor protocol, as libvirt speaks it: commands with their answers, and events with the time at which they came.
//!
//! In: a socket that leads to QEMU. Out: answers, and the [`QmpEvent`]s in their order. What always holds: one thread
//! reads, so an event is noted when it comes and not when somebody asks; an answer goes to the command with its id; every
//! wait has a limit, and the end of the connection ends all of them with its reason.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};

/// QEMU is silent while it drains I/O that is stuck: for as long as a path takes to be given up, and then some.
const ANSWER: Duration = Duration::from_secs(90);
/// A socket that leads to nobody yet is closed at once, or says nothing.
const GREETING: Duration = Duration::from_secs(5);
/// From one attempt to connect to the next.
const LOOK: Duration = Duration::from_millis(50);

/// Something that QEMU has said without being asked.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its place among all that came, from 0.
    pub place: usize,
    /// When it was read, on this machine's clock.
    pub at: Instant,
    /// Such as `STOP`.
    pub name: String,
    /// What comes with it.
    pub data: Value,
}

impl QmpEvent {
    /// Whether it is a `MIGRATION` event with one of these statuses.
    #[must_use]
    pub fn is_migration(&self, statuses: &[&str]) -> bool {
        self.name == "MIGRATION" && self.data["status"].as_str().is_some_and(|now| statuses.contains(&now))
    }
}

/// A connection with a QEMU's monitor. QEMU takes one at a time.
#[derive(Debug)]
pub struct Qmp {
    label: String,
    stream: Mutex<UnixStream>,
    heard: Arc<Heard>,
    next_id: AtomicU64,
}

/// What the reader has read.
#[derive(Debug, Default)]
struct Heard {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    answers: Vec<Value>,
    events: Vec<QmpEvent>,
    /// Why nothing more will come.
    ended: Option<String>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Qmp {
    /// Connects, again and again until QEMU greets; `label` is whose monitor it is, in errors.
    ///
    /// # Errors
    /// If it does not greet within `limit`.
    pub fn connect(label: impl Into<String>, socket: &Path, limit: Duration) -> anyhow::Result<Self> {
        Self::connect_by(label.into(), limit, || {
            UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))
        })
    }

    /// The same, over the network.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub fn connect_tcp(
        label: impl Into<String>,
        address: SocketAddr,
        limit: Duration,
    ) -> anyhow::Result<Self> {
        Self::connect_by(label.into(), limit, || {
            over_network(address).with_context(|| format!("cannot connect to {address}"))
        })
    }

    fn connect_by(
        label: String,
        limit: Duration,
        connect: impl Fn() -> anyhow::Result<UnixStream>,
    ) -> anyhow::Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            let error = match connect().and_then(greeted) {
                Ok((stream, reader)) => return Self::begin(label, stream, reader),
                Err(error) => error,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(error.context(format!("QEMU of {label} does not greet within {limit:?}")));
            }
            // May return early, which is only one more attempt.
            std::thread::park_timeout(LOOK.min(left));
        }
    }

    fn begin(label: String, stream: UnixStream, reader: BufReader<UnixStream>) -> anyhow::Result<Self> {
        let heard = Arc::new(Heard::default());
        let sink = Arc::clone(&heard);
        // It ends with the connection, which ends with this handle.
        std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || sink.read_all(reader))
            .context("start a thread")?;
        let qmp = Self { label, stream: Mutex::new(stream), heard, next_id: AtomicU64::new(1) };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; what it returns.
    ///
    /// # Errors
    /// If QEMU refuses, ends, or does not answer within 90 s.
    pub fn execute(&self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": id }));
        let sent = locked(&self.stream).write_all(line.as_bytes());
        sent.with_context(|| format!("send {command} to QEMU of {}", self.label))?;
        let what = || format!("the answer of QEMU of {} to {command}", self.label);
        let answer = self.heard.wait(what, ANSWER, |inbox| {
            let at = inbox.answers.iter().position(|answer| answer["id"] == id)?;
            Some(inbox.answers.swap_remove(at))
        })?;
        match answer.get("error") {
            None => Ok(answer["return"].clone()),
            Some(error) => {
                let why = error["desc"].as_str().unwrap_or("it does not say why");
                Err(anyhow!("QEMU of {} refuses {command}: {why}", self.label))
            }
        }
    }

    /// What the virtual machine is doing, such as `running`, `paused`, `inmigrate` or `postmigrate`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn status(&self) -> anyhow::Result<String> {
        let answer = self.execute("query-status", json!({}))?;
        answer["status"].as_str().map(str::to_owned).with_context(|| format!("no status in {answer}"))
    }

    /// Ends QEMU. That it hangs up before it has answered is its way to agree.
    ///
    /// # Errors
    /// If it refuses, or goes on for 90 s.
    pub fn quit(&self) -> anyhow::Result<()> {
        match self.execute("quit", json!({})) {
            Err(_) if locked(&self.heard.inbox).ended.is_some() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// How many events have come: a place to look for further ones from.
    #[must_use]
    pub fn mark(&self) -> usize {
        locked(&self.heard.inbox).events.len()
    }

    /// Waits for the first event from `mark` on that is wanted.
    ///
    /// # Errors
    /// If none comes within `limit`, or QEMU ends before: with the names of those that came.
    pub fn wait_event(
        &self,
        mark: usize,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&QmpEvent) -> bool,
    ) -> anyhow::Result<QmpEvent> {
        let found = self.heard.wait(
            || format!("{what} of QEMU of {}", self.label),
            limit,
            |inbox| inbox.events.iter().skip(mark).find(|event| wanted(event)).cloned(),
        );
        found.with_context(|| {
            let inbox = locked(&self.heard.inbox);
            let came: Vec<&str> = inbox.events.iter().skip(mark).map(|event| event.name.as_str()).collect();
            format!("events since: {}", if came.is_empty() { "none".to_owned() } else { came.join(", ") })
        })
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // The reader's handle keeps the connection up otherwise; if it has ended already, that is as good.
        let _ = locked(&self.stream).shutdown(Shutdown::Both);
    }
}

/// What is done with a connection here is the same for either family of sockets, so one type holds both.
fn over_network(address: SocketAddr) -> io::Result<UnixStream> {
    let stream = TcpStream::connect_timeout(&address, GREETING)?;
    stream.set_nodelay(true)?;
    Ok(UnixStream::from(OwnedFd::from(stream)))
}

/// Waits until QEMU greets on a connection.
fn greeted(stream: UnixStream) -> anyhow::Result<(UnixStream, BufReader<UnixStream>)> {
    stream.set_read_timeout(Some(GREETING)).context("set a limit")?;
    let mut reader = BufReader::new(stream.try_clone().context("share the connection")?);
    let mut line = String::new();
    if reader.read_line(&mut line).context("it says nothing")? == 0 {
        bail!("it hangs up");
    }
    let greeting: Value = serde_json::from_str(&line).with_context(|| format!("it says {line:?}"))?;
    greeting.get("QMP").with_context(|| format!("it says {line:?}"))?;
    // From here on the reader waits for as long as it takes, and callers have their own limits.
    stream.set_read_timeout(None).context("lift the limit")?;
    Ok((stream, reader))
}

impl Heard {
    fn read_all(&self, reader: BufReader<UnixStream>) {
        let mut why = "it has hung up".to_owned();
        for line in reader.lines() {
            let (at, message) = (Instant::now(), line.map_err(|error| error.to_string()));
            match message.and_then(|line| serde_json::from_str(&line).map_err(|e| format!("{e}: {line}"))) {
                Ok(message) => self.note(at, message),
                Err(error) => {
                    why = error;
                    break;
                }
            }
        }
        locked(&self.inbox).ended = Some(why);
        self.changed.notify_all();
    }

    fn note(&self, at: Instant, message: Value) {
        let mut inbox = locked(&self.inbox);
        match message["event"].as_str() {
            Some(name) => {
                let (place, data) = (inbox.events.len(), message["data"].clone());
                inbox.events.push(QmpEvent { place, at, name: name.to_owned(), data });
            }
            None => inbox.answers.push(message),
        }
        drop(inbox);
        self.changed.notify_all();
    }

    /// Waits until `look` finds something. What came before the end of the connection is found all the same.
    fn wait<T>(
        &self,
        what: impl Fn() -> String,
        limit: Duration,
        mut look: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        let mut inbox = locked(&self.inbox);
        loop {
            if let Some(found) = look(&mut inbox) {
                return Ok(found);
            }
            if let Some(why) = &inbox.ended {
                bail!("{} does not come: {why}", what());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} does not come within {limit:?}", what());
            }
            inbox = self.changed.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
