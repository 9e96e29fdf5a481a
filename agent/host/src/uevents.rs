//! Kernel events about NVMe and block devices, as they happen.
//!
//! Comes in: the kernel's own uevents (netlink group 1, not udevd's), through libudev's kernel monitor. Goes
//! out: typed [`HostEvent`]s to any number of listeners.
//!
//! Always holds:
//! - An event is a hint to read sysfs again, never a fact to act on.
//! - Events that were lost, in the socket or because a listener was slow, arrive as [`HostEvent::Overrun`],
//!   upon which a listener reads everything.
//! - Not everything has an event: the kernel sends none when a controller loses its connection or when an ANA
//!   state changes. A slow sweep of sysfs is needed as well.
//! - Uevents reach the network namespace of the host (and those that it shares its devices with). In any
//!   other one there are none.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::broadcast;

use crate::name::DevT;
use crate::work;

/// Room in the socket for events that have not been read: a few thousand of them.
const SOCKET_BYTES: usize = 4 << 20;
/// Events that a listener may lag behind before it gets an overrun instead.
const LISTENER_EVENTS: usize = 1024;

/// Failures of the socket in a row, with no event in between, after which it is given up.
const MAX_FAILURES: u32 = 1000;

/// What the kernel did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A device appeared.
    Add,
    /// A device changed: size, read-only flag, partition table, or `NVME_EVENT`.
    Change,
    /// A device went away.
    Remove,
    /// Anything else (bind, unbind, online, …).
    Other,
}

/// Kinds of devices that are listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A controller, such as `nvme0`.
    NvmeController,
    /// A subsystem, such as `nvme-subsys0`.
    NvmeSubsystem,
    /// A block device, such as `nvme0n1`, also `dm-0` and `loop0`.
    Block,
    /// The device through which controllers are made: it has events only when [`Uevents::prove`] asks for
    /// one.
    FabricsControl,
}

/// One event about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEvent {
    /// What the kernel did to the device.
    pub action: Action,
    /// Which kind of device it is.
    pub kind: DeviceKind,
    /// Its kernel name, such as `nvme0n1`.
    pub name: String,
    /// Its device number; `None` for one without a device node.
    pub dev: Option<DevT>,
    /// The kernel's number of the event (`SEQNUM`), rising by one over all events of the host.
    pub sequence: u64,
    /// `NVME_EVENT` of a controller, such as `connected` (since 5.18).
    pub nvme_event: Option<String>,
}

/// What a listener gets: an event, or the news that some were lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// Something happened to a device.
    Device(DeviceEvent),
    /// Events were lost: read everything.
    Overrun,
}

/// Why there are no kernel events to listen to.
#[derive(Debug, thiserror::Error)]
pub enum UeventError {
    /// The monitor could not be set up.
    #[error("cannot listen to kernel events: {step}")]
    Setup {
        /// What was being done, such as `socket pair`.
        step: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The kernel could not be asked for an event.
    #[error("cannot write to {path}")]
    Ask {
        /// The `uevent` file of the fabrics device.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The kernel was asked for an event, but none arrived.
    #[error(
        "no kernel event arrived within {waited:?} of asking for one by {path}: kernel events reach only the \
         host's network namespace; run the agent with hostNetwork"
    )]
    Silent {
        /// The `uevent` file of the fabrics device.
        path: PathBuf,
        /// How long the wait was.
        waited: Duration,
    },
}

/// Whether a kernel of this release reports when a controller has connected (`NVME_EVENT=connected`): since
/// 5.18. A vendor's kernel with an older number may do so too; the first such event shows it.
#[must_use]
pub fn tells_connections(kernel_release: &str) -> bool {
    let mut numbers = kernel_release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (5, 18),
        _ => false,
    }
}

/// The monitor. Listening ends when it is dropped.
#[derive(Debug)]
pub struct Uevents {
    sender: broadcast::Sender<HostEvent>,
    // Closed by drop, which wakes the thread and ends it.
    _stop: UnixStream,
}

/// One listener: it gets every event from when it was made.
#[derive(Debug)]
pub struct UeventListener {
    receiver: broadcast::Receiver<HostEvent>,
}

impl Uevents {
    /// Starts listening, on a thread of its own. Events from now on are delivered.
    ///
    /// # Errors
    /// [`UeventError`].
    pub fn start() -> Result<Self, UeventError> {
        let setup = |step| move |source| UeventError::Setup { step, source };
        let (stop, stopped) = UnixStream::pair().map_err(setup("socket pair"))?;
        let (sender, _) = broadcast::channel(LISTENER_EVENTS);
        let (ready, listening) = std::sync::mpsc::sync_channel(1);
        let events = sender.clone();
        // libudev's monitor may not change threads, so it is made where it is used.
        let thread = move || match open_monitor() {
            Ok(monitor) => {
                let _ = ready.send(Ok(()));
                listen(&monitor, &stopped, &events);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        std::thread::Builder::new().name("uevents".to_owned()).spawn(thread).map_err(setup("thread"))?;
        match listening.recv() {
            Ok(result) => result.map(|()| Self { sender, _stop: stop }),
            Err(_) => Err(setup("thread")(io::Error::other("it ended at once"))),
        }
    }

    /// A new listener for events from now on.
    pub fn listen(&self) -> UeventListener {
        UeventListener { receiver: self.sender.subscribe() }
    }

    /// Proves that events arrive: asks the kernel for an event of the fabrics device, which nobody else acts
    /// on, and waits for it. `sysfs` is where sysfs is mounted.
    ///
    /// # Errors
    /// [`UeventError::Ask`] and [`UeventError::Silent`].
    pub async fn prove(&self, sysfs: &Path, patience: Duration) -> Result<(), UeventError> {
        let path = sysfs.join("class/nvme-fabrics/ctl/uevent");
        let mut listener = self.listen();
        let file = path.clone();
        let asked =
            work::once("ask for a kernel event", patience, move || std::fs::write(file, "change")).await;
        asked
            .map_err(io::Error::other)
            .and_then(|written| written)
            .map_err(|source| UeventError::Ask { path: path.clone(), source })?;
        let heard = async {
            while let Some(event) = listener.next().await {
                if matches!(&event, HostEvent::Device(device) if device.kind == DeviceKind::FabricsControl) {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(patience, heard).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(UeventError::Silent { path, waited: patience }),
        }
    }

    /// A source without a kernel, for tests: what is sent into the second part arrives at listeners.
    #[cfg(any(test, feature = "fixtures"))]
    pub fn scripted() -> (Self, broadcast::Sender<HostEvent>) {
        let (sender, _) = broadcast::channel(LISTENER_EVENTS);
        #[allow(clippy::expect_used)]
        let (stop, _) = UnixStream::pair().expect("a socket pair");
        (Self { sender: sender.clone(), _stop: stop }, sender)
    }
}

impl UeventListener {
    /// The next event; `None` when the monitor has ended.
    pub async fn next(&mut self) -> Option<HostEvent> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(HostEvent::Overrun),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// Drops what has arrived so far: for a listener that is about to read everything anyway.
    pub fn clear(&mut self) {
        self.receiver = self.receiver.resubscribe();
    }
}

fn open_monitor() -> Result<udev::MonitorSocket, UeventError> {
    let setup = |step| move |source| UeventError::Setup { step, source };
    let builder = udev::MonitorBuilder::new_kernel()
        .and_then(|builder| builder.match_subsystem("nvme"))
        .and_then(|builder| builder.match_subsystem("nvme-subsystem"))
        .and_then(|builder| builder.match_subsystem("block"))
        .and_then(|builder| builder.match_subsystem("nvme-fabrics"))
        .map_err(setup("monitor"))?;
    let monitor = builder.listen().map_err(setup("receiving"))?;
    // Beyond the system's limit only with CAP_NET_ADMIN; less room only means an earlier overrun.
    let borrowed = BorrowedMonitor(&monitor);
    if setsockopt(&borrowed, sockopt::RcvBufForce, &SOCKET_BYTES).is_err() {
        let _ = setsockopt(&borrowed, sockopt::RcvBuf, &SOCKET_BYTES);
    }
    Ok(monitor)
}

/// libudev's descriptor as the standard library's trait.
struct BorrowedMonitor<'a>(&'a udev::MonitorSocket);

impl AsFd for BorrowedMonitor<'_> {
    #[allow(unsafe_code)]
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsRawFd;
        // SAFETY: the monitor owns the descriptor and outlives the borrow.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Passes events on until `stopped` is closed.
fn listen(monitor: &udev::MonitorSocket, stopped: &UnixStream, events: &broadcast::Sender<HostEvent>) {
    let borrowed = BorrowedMonitor(monitor);
    let mut failures = 0;
    while failures < MAX_FAILURES {
        let mut fds = [
            PollFd::new(borrowed.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot wait for kernel events; no more will arrive");
                return;
            }
            Ok(_) if fds[1].revents().is_some_and(|events| !events.is_empty()) => return,
            Ok(_) => {}
        }
        let drained = drain(monitor, events);
        // Waking up for nothing is no failure: events of other subsystems are filtered out only on this side.
        failures = if drained.lost && drained.events == 0 { failures + 1 } else { 0 };
        if drained.lost {
            let _ = events.send(HostEvent::Overrun);
        }
    }
    tracing::error!("the socket for kernel events keeps failing; no more will arrive");
}

/// What came out of the socket.
struct Drained {
    events: usize,
    lost: bool,
}

/// Passes on what is in the socket.
fn drain(monitor: &udev::MonitorSocket, events: &broadcast::Sender<HostEvent>) -> Drained {
    let mut drained = Drained { events: 0, lost: false };
    let mut iterator = monitor.iter();
    while drained.events < LISTENER_EVENTS {
        let Some(event) = iterator.next() else {
            // libudev leaves its reason in errno. An overflow (ENOBUFS) is reported once, before the events
            // that are still there (seen on 6.1). Any other reason than "empty" may have lost something too.
            let reason = io::Error::last_os_error();
            drained.lost = reason.kind() != io::ErrorKind::WouldBlock;
            break;
        };
        drained.events += 1;
        // Nobody listening is no error.
        drop(typed(&event).map(|event| events.send(HostEvent::Device(event))));
    }
    drained
}

fn typed(event: &udev::Event) -> Option<DeviceEvent> {
    let action = match event.event_type() {
        udev::EventType::Add => Action::Add,
        udev::EventType::Change => Action::Change,
        udev::EventType::Remove => Action::Remove,
        _ => Action::Other,
    };
    let kind = match event.subsystem()?.to_str()? {
        "nvme" => DeviceKind::NvmeController,
        "nvme-subsystem" => DeviceKind::NvmeSubsystem,
        "block" => DeviceKind::Block,
        "nvme-fabrics" => DeviceKind::FabricsControl,
        _ => return None,
    };
    let property = |name: &str| event.property_value(name).and_then(|value| value.to_str());
    let number = |name: &str| property(name).and_then(|text| text.parse().ok());
    let dev = number("MAJOR").zip(number("MINOR")).map(|(major, minor)| DevT { major, minor });
    Some(DeviceEvent {
        action,
        kind,
        name: event.sysname().to_str()?.to_owned(),
        dev,
        sequence: event.sequence_number(),
        nvme_event: property("NVME_EVENT").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64) -> HostEvent {
        HostEvent::Device(DeviceEvent {
            action: Action::Add,
            kind: DeviceKind::Block,
            name: "nvme0n1".to_owned(),
            dev: None,
            sequence,
            nvme_event: None,
        })
    }

    #[tokio::test]
    async fn a_slow_listener_observes_everything_again() {
        let (uevents, source) = Uevents::scripted();
        let mut listener = uevents.listen();
        for sequence in 0..=LISTENER_EVENTS as u64 {
            source.send(event(sequence)).expect("a listener");
        }
        assert_eq!(listener.next().await, Some(HostEvent::Overrun));
        assert_eq!(listener.next().await, Some(event(1)), "and goes on with what was kept");
        drop((uevents, source));
        listener.clear();
        assert_eq!(listener.next().await, None);
    }

    #[tokio::test]
    async fn that_events_arrive_is_shown_by_a_triggered_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let (uevents, source) = Uevents::scripted();
        let patience = Duration::from_millis(50);
        let error = uevents.prove(dir.path(), patience).await.expect_err("no such file");
        assert!(matches!(&error, UeventError::Ask { .. }), "{error}");
        let device = dir.path().join("class/nvme-fabrics/ctl");
        std::fs::create_dir_all(&device).expect("made");
        std::fs::write(device.join("uevent"), "").expect("made");
        let error = uevents.prove(dir.path(), patience).await.expect_err("silence");
        assert!(error.to_string().contains("hostNetwork"), "{error}");
        assert_eq!(std::fs::read_to_string(device.join("uevent")).ok().as_deref(), Some("change"));
        let proof = uevents.prove(dir.path(), Duration::from_secs(20));
        let answer = async {
            loop {
                let control = DeviceEvent {
                    action: Action::Change,
                    kind: DeviceKind::FabricsControl,
                    name: "ctl".to_owned(),
                    dev: None,
                    sequence: 1,
                    nvme_event: None,
                };
                let _ = source.send(HostEvent::Device(control));
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            proven = proof => assert!(proven.is_ok(), "{proven:?}"),
            () = answer => {}
        }
    }

    #[test]
    fn only_kernels_from_5_18_on_are_known_to_tell_connections() {
        for release in ["5.18.0", "6.1.0-43-cloud-amd64", "6.18.15+deb13-amd64", "7.3-rc1"] {
            assert!(tells_connections(release), "{release}");
        }
        for release in ["5.15.0-100-generic", "5.17.9", "4.18.0-553.el8_10.x86_64", "", "x"] {
            assert!(!tells_connections(release), "{release}");
        }
    }

    #[test]
    fn the_kernel_monitor_starts_and_stops() {
        let uevents = Uevents::start().expect("a netlink socket");
        drop(uevents);
    }
}
