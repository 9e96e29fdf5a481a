//! Sockets of a guest, made reachable on the host: how a gRPC client here talks to a Unix socket over there.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::client::{ANSWER, Guest};
use crate::error::{Error, Result};
use crate::wire::{Request, Target};

/// A Unix socket on the host, each connection to which is one in the guest. Dropping it stops listening and
/// removes the socket; connections that are up stay until an end closes them.
///
/// A connection that the guest refuses (nobody listens there yet) ends at once, as one to a process that died
/// does: clients connect again.
#[derive(Debug)]
pub struct Forward {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Forward {
    pub(crate) fn begin(guest: Guest, path: PathBuf, target: Target) -> Result<Forward> {
        let listener = UnixListener::bind(&path).map_err(Error::io("cannot listen on", &path))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let listener = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let (guest, target) = (guest.clone(), target.clone());
                if let Ok(client) = client {
                    std::thread::spawn(move || carry(&guest, target, client));
                }
            }
        });
        Ok(Forward { path, stop, listener: Some(listener) })
    }

    /// The socket on the host.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the listener, which sees the flag. If that fails it has ended already.
        let _ = UnixStream::connect(&self.path);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One connection, until both directions have ended. An end that fails is shut down so that the other learns of it.
fn carry(guest: &Guest, target: Target, client: UnixStream) {
    let label = match &target {
        Target::Unix(path) => format!("connection to {path}"),
        Target::Tcp(port) => format!("connection to port {port}"),
    };
    let Ok((conversation, _)) = guest.ask(&label, &Request::Forward(target), ANSWER) else {
        let _ = client.shutdown(Shutdown::Both);
        return;
    };
    let (server, early) = conversation.into_stream();
    // Limits were for the request; a forwarded connection may be quiet for as long as it likes.
    let _ = server.set_read_timeout(None).and_then(|()| server.set_write_timeout(None));
    // A failed copy is an end like any other: both sides see their connection close.
    let _ = join(client, server, &early);
}

fn join(client: UnixStream, server: TcpStream, early: &[u8]) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let upward = std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    to_client.write_all(early)?;
    let copied = io::copy(&mut from_server, &mut to_client);
    // The guest's side is over: what the client still sends has nowhere to go.
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = upward.join();
    copied.map(drop)
}
