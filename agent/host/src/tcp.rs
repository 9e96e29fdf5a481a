//! What the kernel's TCP says of connections to storage addresses: whether what was sent is acknowledged.
//!
//! Comes in: portals. Goes out, by address: how often the kernel has sent the oldest unacknowledged data again, without
//! one answer. The connections of nvme-tcp are in the kernel's tables as everybody's are, in the network
//! namespace in which they were made (the host's).
//!
//! An acknowledgement comes from the target's kernel, not from its storage: a target that is slow to write
//! acknowledges at once what it has received, and one whose receive buffer is full says so (the timer is
//! another one then). So this sign is not about load on a store.
//!
//! Always holds: text that is not understood is an error, never "nothing is unacknowledged".

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// State `ESTABLISHED` in the kernel's tables (`include/net/tcp_states.h`).
const ESTABLISHED: &str = "01";
/// The timer of retransmissions (`get_tcp4_sock`: 1 retransmission, 2 keep-alive, 4 a peer without room).
const RETRANSMISSION: &str = "01";

/// Connections to one storage address with data that was sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unacknowledged {
    /// How many connections.
    pub connections: u32,
    /// How often the one that waits longest has timed out in a row.
    pub timeouts: u32,
    /// The remote port of that one.
    pub port: u16,
}

/// How often retransmission timers have fired on this machine since its start: a small read, by which it is
/// known when the tables are worth reading.
///
/// # Errors
/// What the operating system said, and `InvalidData` for text that is not understood.
pub fn timeouts(proc: &Path) -> io::Result<u64> {
    let path = proc.join("net/netstat");
    let text = std::fs::read_to_string(&path)?;
    count_of(&text, "TcpExt:", "TCPTimeouts").ok_or_else(|| not_understood(&path))
}

/// Connections to these portals with data that was sent again and is not acknowledged, by address. An address
/// that has none is not in the answer. What else is connected to an address is not looked at.
///
/// # Errors
/// As [`timeouts`].
pub fn unacknowledged(
    proc: &Path,
    portals: &BTreeSet<SocketAddr>,
) -> io::Result<BTreeMap<IpAddr, Unacknowledged>> {
    let mut found = BTreeMap::new();
    for (table, wanted) in [
        ("net/tcp", portals.iter().any(SocketAddr::is_ipv4)),
        ("net/tcp6", portals.iter().any(SocketAddr::is_ipv6)),
    ] {
        if wanted {
            let path = proc.join(table);
            let text = std::fs::read_to_string(&path)?;
            read_table(&text, portals, &mut found).ok_or_else(|| not_understood(&path))?;
        }
    }
    Ok(found)
}

fn not_understood(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} has another form than expected", path.display()))
}

/// A counter of `/proc/net/netstat`: a line of names, then a line of numbers, each behind the same name.
fn count_of(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|word| word == name)?;
    numbers.split_whitespace().nth(place)?.parse().ok()
}

fn read_table(
    text: &str,
    portals: &BTreeSet<SocketAddr>,
    found: &mut BTreeMap<IpAddr, Unacknowledged>,
) -> Option<()> {
    // `sl local remote state tx:rx timer:when retransmissions …`; numbers are hexadecimal.
    for line in text.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let mut fields = line.split_whitespace().skip(2);
        let (remote, state, queues, timer, timeouts) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        if state != ESTABLISHED {
            continue;
        }
        let (address, port) = remote.split_once(':')?;
        let (address, port) = (address_of(address)?, u16::from_str_radix(port, 16).ok()?);
        if !portals.contains(&SocketAddr::new(address, port)) {
            continue;
        }
        let (sent, _) = queues.split_once(':')?;
        let unacknowledged = u64::from_str_radix(sent, 16).ok()? > 0;
        let timeouts = u32::from_str_radix(timeouts, 16).ok()?;
        if unacknowledged && timeouts > 0 && timer.split_once(':')?.0 == RETRANSMISSION {
            let of = found.entry(address).or_default();
            of.connections += 1;
            if timeouts > of.timeouts {
                (of.timeouts, of.port) = (timeouts, port);
            }
        }
    }
    Some(())
}

/// The kernel prints addresses as words in the order of this machine's bytes.
fn address_of(text: &str) -> Option<IpAddr> {
    let words = (text.len() / 8).checked_sub(1)?;
    let word = |index: usize| -> Option<[u8; 4]> {
        Some(u32::from_str_radix(text.get(index * 8..index * 8 + 8)?, 16).ok()?.to_ne_bytes())
    };
    match (text.len(), words) {
        (8, 0) => Some(Ipv4Addr::from(word(0)?).into()),
        (32, 3) => {
            let mut bytes = [0; 16];
            for index in 0..4 {
                bytes[index * 4..index * 4 + 4].copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn table(lines: &[&str]) -> io::Result<BTreeMap<IpAddr, Unacknowledged>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("net")).unwrap();
        std::fs::write(dir.path().join("net/tcp"), format!("{HEAD}{}\n", lines.join("\n"))).unwrap();
        let portals = ["10.77.1.1:4420", "10.77.1.1:4421", "10.77.2.1:4420"];
        unacknowledged(dir.path(), &portals.into_iter().map(|portal| portal.parse().unwrap()).collect())
    }

    #[test]
    fn only_what_was_sent_again_to_these_addresses_counts() {
        let found = table(&[
            // 10.77.1.1:4420, two of them waiting, one of those for longer
            "   0: 0B014D0A:C350 01014D0A:1144 01 00001048:00000000 01:00000019 00000002     0        0 0 2 0",
            "   1: 0B014D0A:C351 01014D0A:1145 01 00000048:00000000 01:00000002 00000001     0        0 0 2 0",
            // another service there, and data that was sent a moment ago
            "   7: 0B014D0A:C357 01014D0A:01BB 01 00000048:00000000 01:00000002 00000009     0        0 0 2 0",
            "   2: 0B024D0A:C352 01024D0A:1144 01 00000048:00000000 01:00000014 00000000     0        0 0 2 0",
            // a peer without room, a keep-alive, a connect, another address
            "   3: 0B024D0A:C353 01024D0A:1144 01 00010048:00000000 04:00000014 00000003     0        0 0 2 0",
            "   4: 0B024D0A:C354 01024D0A:1144 01 00000000:00000000 02:00000014 00000003     0        0 0 2 0",
            "   5: 0B024D0A:C355 01024D0A:1144 02 00000001:00000000 01:00000014 00000003     0        0 0 2 0",
            "   6: 0B034D0A:C356 FE034D0A:1D13 01 00000100:00000000 01:00000014 00000007     0        0 0 2 0",
        ]);
        let one = Unacknowledged { connections: 2, timeouts: 2, port: 4420 };
        assert_eq!(found.unwrap(), BTreeMap::from([("10.77.1.1".parse().unwrap(), one)]));
    }

    #[test]
    fn a_table_of_another_form_is_an_error() {
        assert_eq!(
            table(&["   0: 0B014D0A:C350 01014D0A:1144 01"]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn addresses_are_read_as_this_machine_orders_bytes() {
        assert_eq!(address_of("0100007F"), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(address_of("00000000000000000000000001000000"), Some("::1".parse().unwrap()));
        for wrong in ["", "01", "0100007", "0100007F01", "zz00007F"] {
            assert_eq!(address_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_machines_own_counters_are_read() {
        let before = timeouts(Path::new("/proc")).unwrap();
        assert!(timeouts(Path::new("/proc")).unwrap() >= before);
        assert!(
            unacknowledged(Path::new("/proc"), &["192.0.2.77:4420".parse().unwrap()].into())
                .unwrap()
                .is_empty()
        );
        assert_eq!(count_of("TcpExt: A TCPTimeouts B\nTcpExt: 1 27 3\n", "TcpExt:", "TCPTimeouts"), Some(27));
        assert_eq!(count_of("TcpExt: A B\nTcpExt: 1 3\n", "TcpExt:", "TCPTimeouts"), None);
    }
}
