//! Serves on a Unix socket, as CSI asks for.
//!
//! Comes in: a path. Goes out: a stream of connections for tonic. A socket that a dead process left is
//! replaced; one on which somebody answers is not. Nobody can connect before the mode is set. At the end only
//! our own socket is removed, not one that a successor has put in its place. No socket is served in a
//! directory to which others may write: they could put a socket of theirs in its place, and answer callers
//! that a volume is attached, or detached.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::{Interval, MissedTickBehavior, Sleep, sleep};
use tokio_stream::Stream;

use crate::authority::AnyAuthority;
use crate::exit::Failure;
use crate::listen::{PAUSE, is_shortage};
use crate::program::GivingUp;

/// How long a socket's owner may take to accept; past it the owner counts as busy.
const PROBE: Duration = Duration::from_secs(1);
/// How often the socket's file is checked for being ours.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;
/// Only our own user may connect: the sidecars run as the same one.
const MODE: u32 = 0o600;
/// Mode of its directory, where this program makes it.
const DIRECTORY_MODE: u32 = 0o700;
/// Modes that its directory may not have: others who may write to it can put another socket in the place of
/// ours (in a sticky directory, as soon as ours is gone).
const OTHERS_MAY_WRITE: u32 = 0o022;

/// Why a Unix socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// A file operation on the socket or its directory failed.
    #[error("cannot {step} {}", path.display())]
    Step {
        /// What was tried, such as `bind`.
        step: &'static str,
        /// The file or directory that it was tried on.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Another process answers on it.
    #[error("cannot serve {}: another process serves it; is a second instance running?", path.display())]
    InUse {
        /// The path that is served already.
        path: PathBuf,
    },
    /// Others can put another socket in its place.
    #[error(
        "cannot serve a socket in {} (mode {mode:04o}, owner {owner}): users other than root and {us} may \
         write to it, and could replace this socket by their own; do chown {us} and chmod go-w, or name a \
         path in a directory that does not exist yet: it is then made for this program alone",
        dir.display()
    )]
    Shared {
        /// The directory that others may write to.
        dir: PathBuf,
        /// The directory's permission bits.
        mode: u32,
        /// User id of its owner.
        owner: u32,
        /// User id of this process.
        us: u32,
    },
    /// Something other than a socket is at its path.
    #[error("cannot serve {}: it exists and is not a socket", path.display())]
    NotASocket {
        /// The path that it is at.
        path: PathBuf,
    },
    /// Something else has replaced our socket.
    #[error(
        "cannot serve {} any more: something replaced it; stop the program that did, or give one of the two \
         another path, and start this one again",
        path.display()
    )]
    Taken {
        /// The path of our socket.
        path: PathBuf,
    },
}

/// Connections to a Unix socket. Removes the socket when dropped.
///
/// A socket file that somebody removes is bound again within seconds: nobody could connect any more, and open
/// connections would hide that. When somebody puts something else in its place, the socket is given up.
#[derive(Debug)]
pub struct UnixIncoming {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket, to recognise it.
    ours: (u64, u64),
    look: Interval,
    giving_up: Option<GivingUp>,
    /// While it runs, the loop pauses: the process or the machine had run out of something.
    rest: Option<Pin<Box<Sleep>>>,
}

impl UnixIncoming {
    /// Binds `path`, makes its directory if that is missing, and removes a socket that a dead process left
    /// there.
    ///
    /// # Errors
    /// Where others may write to the directory, somebody answers there, something else is there, or the
    /// kernel refuses a step.
    pub async fn bind(path: impl Into<PathBuf>) -> Result<Self, UnixError> {
        let path = path.into();
        let dir = directory(&path);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(dir)
            .map_err(|source| UnixError::Step { step: "make directory", path: dir.to_owned(), source })?;
        // A socket that others may have put there is not even connected to.
        check_directory(dir)?;
        remove_stale(&path).await?;
        let (listener, ours) = listen(&path)?;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { listener, path, ours, look, giving_up: None, rest: None })
    }

    /// Ends the program, with an error, when something else has replaced the socket: nobody could reach it.
    #[must_use]
    pub fn or_give_up(mut self, giving_up: GivingUp) -> Self {
        self.giving_up = Some(giving_up);
        self
    }

    /// The path of the socket, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl UnixIncoming {
    /// Whether the socket can be reached by its path; binds it again where its file is gone.
    fn reachable(&mut self) -> bool {
        let path = self.path.display();
        match identity(&self.path) {
            Ok(found) if found == self.ours => true,
            Ok(_) => false,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match listen(&self.path) {
                    Ok((listener, ours)) => {
                        tracing::warn!(%path, "our socket was removed; bound it again");
                        (self.listener, self.ours) = (listener, ours);
                    }
                    // Its directory may be gone too: try again later.
                    Err(error) => {
                        let error = crate::exit::Causes(&error).to_string();
                        tracing::error!(%path, error, "our socket was removed; cannot bind it again yet");
                    }
                }
                true
            }
            Err(error) => {
                tracing::warn!(%path, %error, "cannot inspect our socket");
                true
            }
        }
    }
}

impl Stream for UnixIncoming {
    type Item = io::Result<AnyAuthority<UnixStream>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while this.look.poll_tick(cx).is_ready() {
            if !this.reachable() {
                let taken = UnixError::Taken { path: this.path.clone() };
                match &this.giving_up {
                    Some(giving_up) => giving_up.because(Failure::failed(taken)),
                    None => tracing::error!("{taken}"),
                }
                return Poll::Ready(None);
            }
        }
        loop {
            if let Some(rest) = &mut this.rest {
                ready!(rest.as_mut().poll(cx));
                this.rest = None;
            }
            match ready!(this.listener.poll_accept(cx)) {
                Ok((stream, _)) => return Poll::Ready(Some(Ok(AnyAuthority::new(stream)))),
                Err(error) if is_shortage(&error) => {
                    tracing::warn!(path = %this.path.display(), %error, "cannot accept a connection; trying \
                        again");
                    this.rest = Some(Box::pin(sleep(PAUSE)));
                }
                // One connection that was gone before it was accepted.
                Err(_) => {}
            }
        }
    }
}

/// A listener on a free path, and the device and inode of its socket.
fn listen(path: &Path) -> Result<(UnixListener, (u64, u64)), UnixError> {
    let failed = |step| move |source| UnixError::Step { step, path: path.to_owned(), source };
    // Checked even when it is bound again: the directory may be another one by then.
    check_directory(directory(path))?;
    let socket = UnixSocket::new_stream().map_err(failed("make a socket for"))?;
    socket.bind(path).map_err(failed("bind"))?;
    // Before `listen` the kernel refuses connects, so nobody gets in ahead of the mode.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
        .map_err(failed("set the mode of"))?;
    let ours = identity(path).map_err(failed("look at"))?;
    let listener = socket.listen(BACKLOG).map_err(failed("listen on"))?;
    Ok((listener, ours))
}

impl Drop for UnixIncoming {
    fn drop(&mut self) {
        match identity(&self.path) {
            Ok(found) if found == self.ours => {
                if let Err(error) = std::fs::remove_file(&self.path) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot remove our socket");
                }
            }
            Ok(_) => tracing::info!(path = %self.path.display(), "leaving a successor's socket in place"),
            Err(error) => tracing::debug!(path = %self.path.display(), %error, "our socket is gone already"),
        }
    }
}

/// The directory of a socket.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a directory to which others may write. A sticky one protects our socket from removal, but somebody
/// could take its place once we have ended; so it is refused too.
fn check_directory(dir: &Path) -> Result<(), UnixError> {
    let found = std::fs::metadata(dir).map_err(|source| UnixError::Step {
        step: "look at directory",
        path: dir.to_owned(),
        source,
    })?;
    let (mode, owner) = (found.permissions().mode() & 0o7777, found.uid());
    let us = nix::unistd::geteuid().as_raw();
    if is_shared(mode, owner, us) {
        return Err(UnixError::Shared { dir: dir.to_owned(), mode, owner, us });
    }
    Ok(())
}

/// Whether others than root and ourselves may write to a directory, or may change its mode so that they can.
fn is_shared(mode: u32, owner: u32, us: u32) -> bool {
    mode & OTHERS_MAY_WRITE != 0 || (owner != 0 && owner != us)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Removes a socket on which nobody listens; refuses anything else with what it is.
async fn remove_stale(path: &Path) -> Result<(), UnixError> {
    let failed = |step, source| UnixError::Step { step, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(UnixError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of a dead process");
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", error)),
                _ => Ok(()),
            }
        }
        // A full backlog (`WouldBlock`), like no answer in time, means a live owner that is busy.
        Ok(Err(error)) if error.kind() != ErrorKind::WouldBlock => Err(failed("probe", error)),
        _ => Err(UnixError::InUse { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_taken_over_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("deep/er/csi.sock");
        let first = UnixIncoming::bind(&path).await.expect("bind");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for made in ["deep", "deep/er"] {
            let mode = std::fs::metadata(dir.path().join(made)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{made} is nobody else's");
        }
        assert!(matches!(UnixIncoming::bind(&path).await, Err(UnixError::InUse { .. })));
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists(), "std leaves the socket behind, as a killed process does");
        drop(UnixIncoming::bind(&path).await.expect("takes over"));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_directory_that_others_may_write_to_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("csi.sock");
        // A live socket of somebody else in it changes nothing: it is not asked who answers.
        let squatter = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        let set =
            |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).expect("mode");
        for mode in [0o777, 0o707, 0o770, 0o1777, 0o2770, 0o720] {
            set(mode);
            let said = UnixIncoming::bind(&path).await.expect_err("refused").to_string();
            let name = dir.path().display().to_string();
            let all = [name, format!("mode {mode:04o}"), "owner ".to_owned(), "chmod go-w".to_owned()];
            assert!(all.iter().all(|part| said.contains(part)), "{mode:o}: {said}");
        }
        drop(squatter);
        // As the kubelet makes its plugins' directories.
        for mode in [0o750, 0o755, 0o700] {
            set(mode);
            drop(UnixIncoming::bind(&path).await.expect("bind"));
        }
    }

    #[test]
    fn a_directory_of_another_user_is_shared_whatever_its_mode() {
        assert!(is_shared(0o700, 1000, 0), "its owner may write, or let others do so");
        assert!(is_shared(0o500, 1000, 1001));
        assert!(!is_shared(0o750, 0, 1000) && !is_shared(0o700, 1000, 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_socket_is_not_bound_again_where_others_may_write_by_now() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("csi.sock");
        let mut incoming = UnixIncoming::bind(&path).await.expect("bind");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("mode");
        std::fs::remove_file(&path).expect("remove");
        let accepts = tokio::time::timeout(3 * LOOK_EVERY, incoming.next()).await;
        assert!(accepts.is_err() && !path.exists());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).expect("mode");
        let accepts = tokio::time::timeout(3 * LOOK_EVERY, incoming.next()).await;
        assert!(accepts.is_err() && path.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_socket_is_bound_again() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("csi.sock");
        let mut incoming = UnixIncoming::bind(&path).await.expect("bind");
        std::fs::remove_file(&path).expect("remove");
        tokio::select! {
            biased;
            _ = incoming.next() => panic!("nobody has connected"),
            () = async { while !path.exists() { sleep(LOOK_EVERY).await } } => {}
        }
        let (accepted, connected) = tokio::join!(incoming.next(), UnixStream::connect(&path));
        assert!(accepted.expect("goes on").is_ok() && connected.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_whose_place_is_taken_ends_the_program_with_an_error() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("csi.sock");
        let stop = CancellationToken::new();
        let giving_up = GivingUp::by(stop.clone());
        let mut incoming = UnixIncoming::bind(&path).await.expect("bind").or_give_up(giving_up.clone());
        std::fs::rename(&path, dir.path().join("moved")).expect("rename");
        let _other = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        assert!(incoming.next().await.is_none());
        assert!(stop.is_cancelled());
        let failure = giving_up.why().expect("a reason");
        let said = failure.to_string();
        assert_ne!(failure.code(), 0);
        assert!(said.starts_with("cannot serve /") && said.contains("start this one again"), "{said}");
        drop(incoming);
        assert!(path.exists(), "what is there is not ours to remove");
    }

    #[tokio::test]
    async fn neither_a_file_nor_a_successors_socket_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("csi.sock");
        std::fs::write(&path, "data").expect("write");
        assert!(matches!(UnixIncoming::bind(&path).await, Err(UnixError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).expect("still there"), b"data");
        std::fs::remove_file(&path).expect("remove");

        let first = UnixIncoming::bind(&path).await.expect("bind");
        std::fs::rename(&path, dir.path().join("moved")).expect("rename");
        let _second = UnixIncoming::bind(&path).await.expect("bind");
        drop(first);
        assert!(path.exists());
    }
}
