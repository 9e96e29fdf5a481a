//! Kernel events about NVMe and block devices, as they happen.
//!
//! Comes in: the kernel's own uevents (netlink group 1, not udevd's), through libudev's kernel monitor. Goes
//! out: typed [`HostEvent`]s to any number of listeners.
//!
//! Always holds:
//! - An event is a hint to look, never a fact to act on: listeners read sysfs again.
//! - Events that were lost, in the socket or because a listener was slow, arrive as [`HostEvent::Overrun`],
//!   upon which a listener looks at everything.
//! - Not everything has an event: the kernel sends none when a controller loses its connection or when an
//!   ANA state changes. A slow sweep of sysfs is needed as well.
//! - Uevents reach the network namespace of the host (and those that it shares its devices with): in another
//!   one there is silence.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::broadcast;

use crate::name::DevT;

/// Room in the socket for events that have not been read: a few thousand of them.
const SOCKET_BYTES: usize = 4 << 20;
/// Events that a listener may lag behind before it gets an overrun instead.
const LISTENER_EVENTS: usize = 1024;

/// Failures of the socket in a row, without one event between, after which it is given up.
const MAX_FAILURES: u32 = 1000;

/// What the kernel did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A device appeared.
    Add,
    /// A device changed: size, read-only flag, partition table, or `NVME_EVENT`.
    Change,
    /// A device went.
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
}

/// One event about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEvent {
    /// What happened.
    pub action: Action,
    /// To what kind of device.
    pub kind: DeviceKind,
    /// Its kernel name.
    pub name: String,
    /// Its device number, if it has one.
    pub dev: Option<DevT>,
    /// The kernel's number of the event, rising by one.
    pub sequence: u64,
    /// `NVME_EVENT` of a controller, such as `connected` (since 5.17).
    pub nvme_event: Option<String>,
}

/// What a listener gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// Something happened to a device.
    Device(DeviceEvent),
    /// Events were lost: look at everything.
    Overrun,
}

/// Why events cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum UeventError {
    /// A step of setting the monitor up failed.
    #[error("cannot listen to kernel events: {step}")]
    Setup {
        /// The step.
        step: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The monitor. Listening ends when it is dropped.
#[derive(Debug)]
pub struct Uevents {
    sender: broadcast::Sender<HostEvent>,
    // Closed by drop, which wakes the thread and ends it.
    _stop: UnixStream,
}

/// One listener's end.
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

    /// A listener for events from now on.
    pub fn listen(&self) -> UeventListener {
        UeventListener { receiver: self.sender.subscribe() }
    }

    /// A source without a kernel, for tests: what is sent to the second part arrives at listeners.
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

    /// Drops what has arrived so far: for a listener that is about to look at everything anyway.
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
        .map_err(setup("monitor"))?;
    let monitor = builder.listen().map_err(setup("receiving"))?;
    // Beyond the system's limit only with CAP_NET_ADMIN; less room only means an overrun sooner.
    let borrowed = BorrowedMonitor(&monitor);
    if setsockopt(&borrowed, sockopt::RcvBufForce, &SOCKET_BYTES).is_err() {
        let _ = setsockopt(&borrowed, sockopt::RcvBuf, &SOCKET_BYTES);
    }
    Ok(monitor)
}

/// libudev's descriptor through the standard library's trait.
struct BorrowedMonitor<'a>(&'a udev::MonitorSocket);

impl AsFd for BorrowedMonitor<'_> {
    #[allow(unsafe_code)]
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsRawFd;
        // SAFETY: the monitor owns the descriptor and outlives the borrow.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Hands events on until `stopped` is closed.
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
                tracing::error!(%error, "cannot wait for kernel events; no more of them will come");
                return;
            }
            Ok(_) if fds[1].revents().is_some_and(|events| !events.is_empty()) => return,
            Ok(_) => {}
        }
        let drained = drain(monitor, events);
        // Waking up for nothing is no failure: events of other subsystems are left out only on this side.
        failures = if drained.lost && drained.events == 0 { failures + 1 } else { 0 };
        if drained.lost {
            let _ = events.send(HostEvent::Overrun);
        }
    }
    tracing::error!("the socket for kernel events only fails; no more of them will come");
}

/// What came out of the socket.
struct Drained {
    events: usize,
    lost: bool,
}

/// Hands on what is in the socket.
fn drain(monitor: &udev::MonitorSocket, events: &broadcast::Sender<HostEvent>) -> Drained {
    let mut drained = Drained { events: 0, lost: false };
    let mut iterator = monitor.iter();
    while drained.events < LISTENER_EVENTS {
        let Some(event) = iterator.next() else {
            // libudev leaves its reason in errno. An overflow (ENOBUFS) is told once, before the events that
            // are still there (seen on 6.1); what else is not "empty" may have lost something as well.
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
    async fn a_slow_listener_is_told_to_look_at_everything() {
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

    #[test]
    fn the_kernel_monitor_starts_and_stops() {
        let uevents = Uevents::start().expect("a netlink socket");
        drop(uevents);
    }
}
