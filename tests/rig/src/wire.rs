//! The protocol between the rig and the server in a guest, on TCP port [`PORT`].
//!
//! One connection, one request: the client sends a JSON line ([`Request`]), the server answers with a JSON line
//! ([`Reply`]). What follows depends on the request: frames in both directions for a command, frames one way for
//! a file, bytes as they are for a forwarded connection, nothing for the rest. The end of the connection ends the
//! request: a command whose client is gone is killed with all of its process group.

use std::io::{self, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The port that the guest's server listens on.
pub const PORT: u16 = 9;
/// No frame is longer than this; a longer one means that the two ends have lost each other.
pub const MAX_FRAME: usize = 1 << 20;
/// No request or reply line is longer than this.
pub const MAX_LINE: usize = 1 << 20;

/// What a client can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered with [`Reply::Up`].
    Ping,
    /// Run a command, with its streams on this connection: answered with [`Reply::Started`], then frames.
    Run(Run),
    /// Start a command that outlives the connection: answered with [`Reply::Started`].
    Daemon {
        /// What to run; its deadline is not used.
        run: Run,
        /// File in the guest that standard output and error are appended to.
        log: String,
    },
    /// How a daemon is, waiting for its end for at most `wait_ms`: answered with [`Reply::Daemon`].
    DaemonStatus {
        /// The process id that [`Reply::Started`] gave.
        pid: u32,
        /// Milliseconds to wait for its end; 0 asks and does not wait.
        wait_ms: u64,
    },
    /// Send a signal: answered with [`Reply::Done`].
    Kill {
        /// The process.
        pid: u32,
        /// The signal's number.
        signal: i32,
    },
    /// Write a file: the client sends [`Kind::Input`] frames, an empty one at the end; then [`Reply::Done`].
    Put {
        /// Path in the guest; missing folders are made.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// Read a file: [`Reply::Done`], then [`Kind::Output`] frames, then [`Kind::Exit`] or [`Kind::Failed`].
    Get {
        /// Path in the guest.
        path: String,
    },
    /// Connect to something in the guest: [`Reply::Done`], then bytes in both directions.
    Forward(Target),
}

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables that are set or replaced.
    pub env: Vec<(String, String)>,
    /// Working directory; `/` if there is none.
    pub directory: Option<String>,
    /// After this many milliseconds its process group is killed.
    pub deadline_ms: u64,
}

/// Where a forwarded connection ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A Unix socket in the guest.
    Unix(String),
    /// A port on the guest's loopback.
    Tcp(u16),
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The server is there.
    Up {
        /// The kernel's boot id: another one after every reset.
        boot_id: String,
    },
    /// The command runs.
    Started {
        /// Its process id in the guest, which is also that of its process group.
        pid: u32,
    },
    /// It is done, or (see the request) begins.
    Done,
    /// How a daemon ended; `None` while it runs.
    Daemon(Option<Exit>),
    /// It was refused.
    Refused(String),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It ended by itself with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Its deadline passed, and it was killed. `gone` is false if it did not even die of that (state D).
    TimedOut {
        /// Whether the process is gone.
        gone: bool,
    },
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
            Exit::TimedOut { gone: true } => write!(f, "deadline passed, killed"),
            Exit::TimedOut { gone: false } => write!(f, "deadline passed, and it does not die of SIGKILL"),
        }
    }
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client to server: standard input or a file's content; empty: there is no more.
    Input = 0,
    /// Server to client: standard output or a file's content.
    Output = 1,
    /// Server to client: standard error.
    Error = 2,
    /// Server to client, last: an [`Exit`] as JSON.
    Exit = 3,
    /// Server to client, last: why it could not go on, as text.
    Failed = 4,
}

/// A piece of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// The bytes, at most [`MAX_FRAME`].
    pub body: Vec<u8>,
}

impl Frame {
    /// A frame of `kind` around `body`.
    #[must_use]
    pub fn new(kind: Kind, body: impl Into<Vec<u8>>) -> Frame {
        Frame { kind, body: body.into() }
    }

    /// Writes kind, length (four bytes, big endian) and body.
    ///
    /// # Errors
    /// If the frame is too long, or those of `to`.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let length = u32::try_from(self.body.len()).ok().filter(|l| *l as usize <= MAX_FRAME);
        let length = length.ok_or_else(|| io::Error::other("frame too long"))?;
        let mut bytes = Vec::with_capacity(5 + self.body.len());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.body);
        to.write_all(&bytes)
    }
}

/// Writes a request or a reply as its line.
///
/// # Errors
/// Those of `to`.
pub fn write_line<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Bytes as they came in, taken out as lines, frames or the rest. Keeps what is not complete yet, so that a read
/// that timed out in the middle of a frame loses nothing.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line as a message; `None` if it is not complete.
    ///
    /// # Errors
    /// If the line is too long or is not such a message.
    pub fn line<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(end) = self.buffer.iter().position(|b| *b == b'\n') else {
            return if self.buffer.len() > MAX_LINE {
                Err(io::Error::other("line too long"))
            } else {
                Ok(None)
            };
        };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }

    /// The next frame; `None` if it is not complete.
    ///
    /// # Errors
    /// If it is too long or of no known kind.
    pub fn frame(&mut self) -> io::Result<Option<Frame>> {
        let Some((head, _)) = self.buffer.split_first_chunk::<5>() else { return Ok(None) };
        let kind = match head[0] {
            0 => Kind::Input,
            1 => Kind::Output,
            2 => Kind::Error,
            3 => Kind::Exit,
            4 => Kind::Failed,
            other => return Err(io::Error::other(format!("frame of unknown kind {other}"))),
        };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other(format!("frame of {length} bytes is too long")));
        }
        if self.buffer.len() < 5 + length {
            return Ok(None);
        }
        let body = self.buffer[5..5 + length].to_vec();
        self.buffer.drain(..5 + length);
        Ok(Some(Frame { kind, body }))
    }

    /// Everything that is left, as bytes.
    #[must_use]
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_back_whole_when_it_arrives_byte_by_byte() {
        let request =
            Request::Run(Run { argv: vec!["dd".into(), "if=/dev/zero\n".into()], ..Run::default() });
        let frames = [
            Frame::new(Kind::Output, *b"one\ntwo"),
            Frame::new(Kind::Input, []),
            Frame::new(Kind::Exit, *b"{}"),
        ];
        let mut bytes = Vec::new();
        write_line(&mut bytes, &request).unwrap();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        bytes.extend_from_slice(b"tail");

        let mut decoder = Decoder::default();
        let (mut line, mut seen) = (None, Vec::new());
        for byte in bytes {
            decoder.push(&[byte]);
            if line.is_none() {
                line = decoder.line::<Request>().unwrap();
            } else if seen.len() < frames.len() {
                seen.extend(decoder.frame().unwrap());
            }
        }
        assert_eq!(line, Some(request));
        assert_eq!(seen, frames);
        assert_eq!(decoder.rest(), b"tail");
    }

    #[test]
    fn nonsense_is_refused_and_not_waited_for() {
        let mut decoder = Decoder::default();
        decoder.push(&[9, 0, 0, 0, 0]);
        assert!(decoder.frame().is_err(), "unknown kind");
        let mut decoder = Decoder::default();
        decoder.push(&[1, 0xff, 0, 0, 0]);
        assert!(decoder.frame().is_err(), "too long");
        let mut decoder = Decoder::default();
        decoder.push(b"not json\n");
        assert!(decoder.line::<Request>().is_err());
    }

    #[test]
    fn an_exit_survives_its_way_and_reads_well() {
        for (exit, text) in [
            (Exit::Code(3), "exit code 3"),
            (Exit::Signal(9), "killed by signal 9"),
            (Exit::TimedOut { gone: true }, "deadline passed, killed"),
        ] {
            let json = serde_json::to_vec(&exit).unwrap();
            assert_eq!(serde_json::from_slice::<Exit>(&json).unwrap(), exit);
            assert_eq!(exit.to_string(), text);
        }
    }
}
