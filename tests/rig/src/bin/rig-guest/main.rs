//! `rig-guest`: the server in every machine of the rig. It is what the host side reaches a guest through.
//!
//! Listens on TCP port 9, one thread a connection, one request a connection (see [`cleat_rig::wire`]). It runs as
//! root in a machine that exists for a test and is reachable from the run's own network namespace only, so it
//! asks nobody who they are.

mod commands;
mod transfers;

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use cleat_rig::wire::{self, Decoder, Reply, Request};

/// A client that has connected says what it wants within this time.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

fn main() -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", wire::PORT))?;
    let daemons = Arc::new(commands::Daemons::default());
    for stream in listener.incoming() {
        let daemons = Arc::clone(&daemons);
        // A connection that fails is its client's to notice: there is nobody else to tell.
        if let Ok(stream) = stream {
            std::thread::spawn(move || serve(Connection::new(stream), &daemons));
        }
    }
    Ok(())
}

/// A client: its socket, and what has been read from it and not yet used.
struct Connection {
    stream: TcpStream,
    decoder: Decoder,
}

impl Connection {
    fn new(stream: TcpStream) -> Connection {
        // Output of a command is followed live: no Nagle.
        let _ = stream.set_nodelay(true);
        Connection { stream, decoder: Decoder::default() }
    }

    /// Reads once; `false` at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64 << 10];
        let count = self.stream.read(&mut buffer)?;
        self.decoder.push(&buffer[..count]);
        Ok(count > 0)
    }

    fn request(&mut self) -> io::Result<Option<Request>> {
        self.stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
        loop {
            if let Some(request) = self.decoder.line()? {
                self.stream.set_read_timeout(None)?;
                return Ok(Some(request));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        wire::write_line(&mut self.stream, reply)
    }

    fn reply_to<T>(&mut self, result: io::Result<T>, reply: impl FnOnce(T) -> Reply) -> io::Result<()> {
        let reply = match result {
            Ok(value) => reply(value),
            Err(error) => Reply::Refused(error.to_string()),
        };
        self.reply(&reply)
    }
}

fn serve(mut connection: Connection, daemons: &commands::Daemons) {
    let outcome = match connection.request() {
        Ok(Some(request)) => answer(&mut connection, request, daemons),
        Ok(None) => Ok(()),
        Err(error) => connection.reply(&Reply::Refused(format!("no request: {error}"))),
    };
    // The client sees a connection that ended early; the console is the only other place to say why.
    if let Err(error) = outcome {
        eprint_line(&error);
    }
}

fn answer(connection: &mut Connection, request: Request, daemons: &commands::Daemons) -> io::Result<()> {
    match request {
        Request::Ping => {
            let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
            connection.reply_to(boot_id, |id| Reply::Up { boot_id: id.trim().to_owned() })
        }
        Request::Run(run) => commands::run(connection, &run),
        Request::Daemon { run, log } => {
            connection.reply_to(daemons.start(&run, &log), |pid| Reply::Started { pid })
        }
        Request::DaemonStatus { pid, wait_ms } => {
            connection.reply_to(daemons.wait(pid, Duration::from_millis(wait_ms)), Reply::Daemon)
        }
        Request::Kill { pid, signal } => {
            connection.reply_to(commands::kill(pid, signal, daemons), |()| Reply::Done)
        }
        Request::Put { path, mode } => {
            let outcome = transfers::put(connection, &path, mode);
            connection.reply_to(outcome, |()| Reply::Done)
        }
        Request::Get { path } => transfers::get(connection, &path),
        Request::Forward(target) => transfers::forward(connection, &target),
    }
}

fn eprint_line(error: &io::Error) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "rig-guest: {error}");
}
