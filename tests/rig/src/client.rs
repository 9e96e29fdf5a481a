//! The host's side of the conversation with a guest's server: connect, ask, and read frames, all with deadlines.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::command::{Command, Output};
use crate::error::{Error, Result};
use crate::net::Network;
use crate::wire::{self, Decoder, Exit, Frame, Kind, Reply, Request};

/// A guest's server answers a request within this time, unless the request itself takes time.
pub(crate) const ANSWER: Duration = Duration::from_secs(20);
/// The guest enforces a command's deadline; the host gives it this much longer to say so.
const MARGIN: Duration = Duration::from_secs(15);

/// Where a guest's server is reached, and under which name errors speak of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) number: u8,
}

/// One request that has been answered, and what may follow on its connection.
#[derive(Debug)]
pub(crate) struct Conversation {
    stream: TcpStream,
    decoder: Decoder,
    guest: String,
    request: String,
}

impl Guest {
    fn address(&self) -> SocketAddr {
        (Network::Control.address(self.number), wire::PORT).into()
    }

    fn error(&self, request: &str, what: impl ToString) -> Error {
        Error::Guest { machine: self.name.clone(), request: request.to_owned(), what: what.to_string() }
    }

    /// Connects, within `limit`, and sends a request. `label` is what errors call it.
    fn begin(&self, label: &str, request: &Request, limit: Duration) -> Result<Conversation> {
        let stream = TcpStream::connect_timeout(&self.address(), limit.min(ANSWER))
            .map_err(|e| self.error(label, format!("cannot reach its server: {e}")))?;
        let mut conversation = Conversation {
            stream,
            decoder: Decoder::default(),
            guest: self.name.clone(),
            request: label.to_owned(),
        };
        let stream = &mut conversation.stream;
        let prepared = stream.set_nodelay(true).and_then(|()| stream.set_write_timeout(Some(ANSWER)));
        prepared.and_then(|()| wire::write_line(stream, request)).map_err(|e| self.error(label, e))?;
        Ok(conversation)
    }

    /// Sends a request and reads its reply; a refusal is an error.
    pub(crate) fn ask(
        &self,
        label: &str,
        request: &Request,
        limit: Duration,
    ) -> Result<(Conversation, Reply)> {
        let deadline = Instant::now() + limit;
        let mut conversation = self.begin(label, request, limit)?;
        let reply = conversation.reply(deadline)?;
        Ok((conversation, reply))
    }

    /// The boot id of a guest whose server takes a connection within `connect` and answers within `answer`.
    pub(crate) fn ping(&self, connect: Duration, answer: Duration) -> Result<String> {
        match self.begin("ping", &Request::Ping, connect)?.reply(Instant::now() + answer)? {
            Reply::Up { boot_id } => Ok(boot_id),
            other => Err(self.error("ping", format!("unexpected answer {other:?}"))),
        }
    }

    /// Starts a command; what it reads and writes goes over the [`Process`].
    pub(crate) fn spawn(&self, command: &Command) -> Result<Process> {
        let label = command.to_string();
        let deadline = Instant::now() + command.deadline + MARGIN;
        match self.ask(&label, &Request::Run(command.to_wire()), ANSWER)? {
            (conversation, Reply::Started { pid }) => Ok(Process {
                conversation,
                pid,
                deadline,
                output: Output::running(),
                lines_taken: 0,
                ended: false,
            }),
            (_, other) => Err(self.error(&label, format!("unexpected answer {other:?}"))),
        }
    }

    /// Runs a command to its end.
    pub(crate) fn exec(&self, command: &Command) -> Result<Output> {
        let process = self.spawn(command)?;
        let mut input = process.input()?;
        std::thread::scope(|scope| {
            // Beside the reading: a command may write much before it has read all.
            scope.spawn(|| {
                // A command that does not read its input is in its right.
                let _ = input.write(&command.stdin).and_then(|()| input.end());
            });
            process.wait()
        })
    }

    /// Writes a file in the guest.
    pub(crate) fn put(&self, path: &str, mode: u32, content: &[u8], limit: Duration) -> Result<()> {
        let label = format!("upload to {path}");
        let deadline = Instant::now() + limit;
        let mut conversation = self.begin(&label, &Request::Put { path: path.to_owned(), mode }, limit)?;
        let mut input = conversation.input()?;
        // If the server has refused and hung up, the reason is in its reply.
        let sent = input.write(content).and_then(|()| input.end());
        match conversation.reply(deadline)? {
            Reply::Done => sent,
            other => Err(self.error(&label, format!("unexpected answer {other:?}"))),
        }
    }

    /// Reads a file of the guest.
    pub(crate) fn get(&self, path: &str, limit: Duration) -> Result<Vec<u8>> {
        let label = format!("download of {path}");
        let deadline = Instant::now() + limit;
        let (mut conversation, _) = self.ask(&label, &Request::Get { path: path.to_owned() }, limit)?;
        let mut content = Vec::new();
        loop {
            let frame = conversation.frame(deadline, "the rest of the file")?;
            match frame.kind {
                Kind::Output => content.extend_from_slice(&frame.body),
                Kind::Exit => return Ok(content),
                _ => return Err(self.error(&label, String::from_utf8_lossy(&frame.body))),
            }
        }
    }
}

impl Conversation {
    fn error(&self, what: impl ToString) -> Error {
        Error::Guest { machine: self.guest.clone(), request: self.request.clone(), what: what.to_string() }
    }

    /// Reads once, waiting for `awaited` until `deadline`.
    fn fill(&mut self, deadline: Instant, awaited: &str) -> Result<()> {
        let mut buffer = [0; 64 << 10];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.error(format!("{awaited} did not come in time")));
            }
            self.stream.set_read_timeout(Some(left)).map_err(|e| self.error(e))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.error(format!("the connection ended before {awaited} came"))),
                Ok(count) => {
                    self.decoder.push(&buffer[..count]);
                    return Ok(());
                }
                Err(error) if is_try_again(&error) => {}
                Err(error) => return Err(self.error(error)),
            }
        }
    }

    fn reply(&mut self, deadline: Instant) -> Result<Reply> {
        loop {
            match self.decoder.line::<Reply>().map_err(|e| self.error(e))? {
                Some(Reply::Refused(why)) => return Err(self.error(why)),
                Some(reply) => return Ok(reply),
                None => self.fill(deadline, "an answer")?,
            }
        }
    }

    fn frame(&mut self, deadline: Instant, awaited: &str) -> Result<Frame> {
        loop {
            match self.decoder.frame().map_err(|e| self.error(e))? {
                Some(frame) => return Ok(frame),
                None => self.fill(deadline, awaited)?,
            }
        }
    }

    fn input(&self) -> Result<Input> {
        let stream = self.stream.try_clone().map_err(|e| self.error(e))?;
        Ok(Input { stream, guest: self.guest.clone(), request: self.request.clone() })
    }

    /// The connection as it is, with what has been read from it already.
    pub(crate) fn into_stream(mut self) -> (TcpStream, Vec<u8>) {
        let early = self.decoder.rest();
        (self.stream, early)
    }
}

fn is_try_again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The writing end of a command's standard input.
#[derive(Debug)]
pub struct Input {
    stream: TcpStream,
    guest: String,
    request: String,
}

impl Input {
    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// [`Error::Guest`] if the connection is gone or stuck for 20 s.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        bytes.chunks(wire::MAX_FRAME).try_for_each(|chunk| self.send(chunk))
    }

    /// Closes standard input. Dropping alone does not: the command's connection stays.
    ///
    /// # Errors
    /// As [`Input::write`].
    pub fn end(&mut self) -> Result<()> {
        self.send(b"")
    }

    fn send(&mut self, body: &[u8]) -> Result<()> {
        Frame::new(Kind::Input, body).write(&mut self.stream).map_err(|e| Error::Guest {
            machine: self.guest.clone(),
            request: self.request.clone(),
            what: format!("cannot send its input: {e}"),
        })
    }
}

/// A command that runs in a machine. Dropping it kills the command with its whole process group.
#[derive(Debug)]
pub struct Process {
    conversation: Conversation,
    pid: u32,
    deadline: Instant,
    output: Output,
    /// How much of `output.stdout` has been handed out as lines.
    lines_taken: usize,
    ended: bool,
}

impl Process {
    /// Its process id in the machine.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its standard input, for another thread to write to.
    ///
    /// # Errors
    /// [`Error::Guest`] if this process has no file descriptor left.
    pub fn input(&self) -> Result<Input> {
        self.conversation.input()
    }

    /// The next line of standard output without its end, as soon as it has been written; `None` once the command
    /// has ended and all lines are out. A time limit that passes loses nothing: ask again.
    ///
    /// # Errors
    /// [`Error::Guest`] if no line came within `limit`, or the machine is gone.
    pub fn next_line(&mut self, limit: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + limit;
        loop {
            let fresh = &self.output.stdout[self.lines_taken..];
            let end = fresh.iter().position(|b| *b == b'\n');
            if let Some(length) = end.or(Some(fresh.len()).filter(|l| self.ended && *l > 0)) {
                let line = String::from_utf8_lossy(&fresh[..length]).into_owned();
                self.lines_taken = (self.lines_taken + length + 1).min(self.output.stdout.len());
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            self.advance(deadline, "a line of its output")?;
        }
    }

    /// Waits for its end, within its own deadline. The output is all that it has written since it began.
    ///
    /// # Errors
    /// [`Error::Guest`] if the machine is gone or silent.
    pub fn wait(mut self) -> Result<Output> {
        while !self.ended {
            self.advance(self.deadline, "its end")?;
        }
        Ok(self.output)
    }

    /// Passes its output on as it comes, until its end. What was written before went to whoever asked for lines.
    ///
    /// # Errors
    /// [`Error::Guest`] if the machine is gone or silent, or the output cannot be written.
    pub fn copy_to(mut self, stdout: &mut impl Write, stderr: &mut impl Write) -> Result<Exit> {
        while !self.ended {
            self.advance(self.deadline, "its end")?;
            let (out, err) =
                (std::mem::take(&mut self.output.stdout), std::mem::take(&mut self.output.stderr));
            let written =
                stdout.write_all(&out).and_then(|()| stdout.flush()).and_then(|()| stderr.write_all(&err));
            written.map_err(|e| self.conversation.error(format!("cannot pass its output on: {e}")))?;
        }
        Ok(self.output.exit)
    }

    /// Kills it with its whole process group and waits until the machine says so, with what it had written.
    ///
    /// # Errors
    /// [`Error::Guest`] if the machine is gone or silent.
    pub fn kill(self) -> Result<Output> {
        // The server takes the end of our direction for our end.
        self.conversation.stream.shutdown(Shutdown::Write).map_err(|e| self.conversation.error(e))?;
        self.wait()
    }

    fn advance(&mut self, deadline: Instant, awaited: &str) -> Result<()> {
        let frame = self.conversation.frame(deadline, awaited)?;
        match frame.kind {
            Kind::Output => self.output.stdout.extend_from_slice(&frame.body),
            Kind::Error => self.output.stderr.extend_from_slice(&frame.body),
            Kind::Exit => {
                let exit = serde_json::from_slice(&frame.body).map_err(|e| self.conversation.error(e))?;
                (self.output.exit, self.ended) = (exit, true);
            }
            Kind::Failed | Kind::Input => {
                return Err(self.conversation.error(String::from_utf8_lossy(&frame.body)));
            }
        }
        Ok(())
    }
}
