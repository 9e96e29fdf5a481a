//! Files into and out of the guest, and connections to its sockets.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cleat_rig::wire::{Exit, Frame, Kind, Reply, Target};

use crate::Connection;

/// Writes what the client sends beside `path` and renames it there: nobody sees half a file.
pub(crate) fn put(connection: &mut Connection, path: &str, mode: u32) -> io::Result<()> {
    let path = Path::new(path);
    let named =
        |what: &str, error: io::Error| io::Error::other(format!("{what} {}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| named("cannot make the folder of", e))?;
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let mut file = File::create(&partial).map_err(|e| named("cannot write", e))?;
    loop {
        match connection.decoder.frame()? {
            Some(frame) if frame.body.is_empty() => break,
            Some(frame) => file.write_all(&frame.body).map_err(|e| named("cannot write", e))?,
            None if connection.fill()? => {}
            None => return Err(io::Error::other("the client went away in the middle of the file")),
        }
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .map_err(|e| named("cannot set the mode of", e))?;
    std::fs::rename(&partial, path).map_err(|e| named("cannot put in place", e))
}

/// Sends a file, or what can be read of something like one (in /proc and /sys the size says nothing).
pub(crate) fn get(connection: &mut Connection, path: &str) -> io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return connection.reply(&Reply::Refused(format!("cannot open {path}: {error}"))),
    };
    connection.reply(&Reply::Done)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let frame = match file.read(&mut buffer) {
            Ok(0) => Frame::new(Kind::Exit, serde_json::to_vec(&Exit::Code(0))?),
            Ok(count) => Frame::new(Kind::Output, &buffer[..count]),
            Err(error) => Frame::new(Kind::Failed, format!("cannot read {path}: {error}")),
        };
        frame.write(&mut connection.stream)?;
        if frame.kind != Kind::Output {
            return Ok(());
        }
    }
}

/// Joins the client to a socket in the guest until both directions have ended.
pub(crate) fn forward(connection: &mut Connection, target: &Target) -> io::Result<()> {
    let client = connection.stream.try_clone()?;
    let early = connection.decoder.rest();
    match target {
        Target::Unix(path) => match UnixStream::connect(path) {
            Ok(stream) => {
                connection.reply(&Reply::Done)?;
                let (up, down, end) = (stream.try_clone()?, stream.try_clone()?, stream);
                join(client, &early, up, down, move || end.shutdown(Shutdown::Write))
            }
            Err(error) => connection.reply(&Reply::Refused(format!("cannot connect to {path}: {error}"))),
        },
        Target::Tcp(port) => match TcpStream::connect(("127.0.0.1", *port)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                connection.reply(&Reply::Done)?;
                let (up, down, end) = (stream.try_clone()?, stream.try_clone()?, stream);
                join(client, &early, up, down, move || end.shutdown(Shutdown::Write))
            }
            Err(error) => {
                connection.reply(&Reply::Refused(format!("cannot connect to port {port}: {error}")))
            }
        },
    }
}

fn join(
    client: TcpStream,
    early: &[u8],
    mut up: impl Write + Send + 'static,
    mut down: impl Read,
    end_of_client: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    up.write_all(early)?;
    let mut from_client = client.try_clone()?;
    let upward = std::thread::spawn(move || {
        // However it ends, the other side learns that nothing more comes.
        let _ = io::copy(&mut from_client, &mut up);
        let _ = end_of_client();
    });
    let mut to_client = client;
    let copied = io::copy(&mut down, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Write);
    let _ = upward.join();
    copied.map(drop)
}
