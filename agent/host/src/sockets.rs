//! The TCP connections of this network namespace, each with what tells it from any other of this boot.
//!
//! Comes in: where proc is. Goes out: the connections that are established, by the address of the other end. The kernel's own
//! are among them: each queue of an NVMe/TCP controller is one.
//!
//! Always holds: two connections of one boot never have one [`SocketId`]. It is made of the local address and of the inode
//! number, which the kernel counts up for each socket that it makes; a connection without one is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::name::Portal;

/// One connection: its local address and its inode, as text.
pub type SocketId = String;

/// The connections to each portal.
pub type SocketsByPortal = BTreeMap<Portal, BTreeSet<SocketId>>;

/// The state of a connection that is up (`TCP_ESTABLISHED` in `include/net/tcp_states.h`).
const ESTABLISHED: &str = "01";

/// Reads all established connections. Blocks, for as long as it takes the kernel to go through its sockets.
///
/// # Errors
/// Where a table is there and cannot be read. A kernel without IPv6 has no table for it.
pub fn established(proc_root: &Path) -> io::Result<SocketsByPortal> {
    let mut all = SocketsByPortal::new();
    for table in ["net/tcp", "net/tcp6"] {
        match std::fs::read_to_string(proc_root.join(table)) {
            Ok(text) => {
                for (portal, id) in text.lines().skip(1).filter_map(connection) {
                    all.entry(portal).or_default().insert(id);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "net/tcp6" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// One line of a table (`get_tcp4_sock` in `net/ipv4/tcp_ipv4.c`): number, local, remote, state, queues, timer, retransmits, uid,
/// timeout, inode.
fn connection(line: &str) -> Option<(Portal, SocketId)> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    let inode = words.nth(5)?;
    let is_one = state == ESTABLISHED && inode != "0" && inode.bytes().all(|byte| byte.is_ascii_digit());
    let portal = Portal::from_address(address(remote)?).ok().filter(|_| is_one)?;
    Some((portal, format!("{local}/{inode}")))
}

/// Words of 32 bits, each written as a number of this machine, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |word: &[u8]| {
        let word = std::str::from_utf8(word).ok().filter(|word| word.len() == 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let bytes = ip.as_bytes().chunks(8).map(word).collect::<Option<Vec<[u8; 4]>>>()?.concat();
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn word(bytes: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(bytes))
    }

    #[test]
    fn what_is_established_is_listed_by_the_other_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("net")).unwrap();
        let (here, there) = (word([10, 0, 1, 9]), word([10, 0, 1, 1]));
        let line = |port: &str, state: &str, inode: &str| {
            format!(
                "   0: {here}:{port} {there}:1144 {state} 00000000:00000000 02:000A 00000000     0        0 {inode} 2 0 20 4\n"
            )
        };
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let table = [
            head.to_owned(),
            line("B001", "01", "20001"),
            line("B003", "01", "20002"),
            line("B005", "06", "0"),
            line("B007", "01", "0"),
            "garbage\n".to_owned(),
        ];
        std::fs::write(dir.path().join("net/tcp"), table.concat()).unwrap();
        let found = established(dir.path()).unwrap();
        let ids = [format!("{here}:B001/20001"), format!("{here}:B003/20002")];
        let portal = Portal::parse("10.0.1.1:4420").unwrap();
        assert_eq!(found, SocketsByPortal::from([(portal, BTreeSet::from(ids))]));
        std::fs::remove_file(dir.path().join("net/tcp")).unwrap();
        assert!(established(dir.path()).is_err(), "what cannot be read is not nothing");
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let v6: std::net::Ipv6Addr = "fd00::12".parse().unwrap();
        let words: String = v6.octets().chunks(4).map(|four| word(four.try_into().unwrap())).collect();
        assert_eq!(address(&format!("{words}:1144")), Some("[fd00::12]:4420".parse().unwrap()));
        assert_eq!(address(&format!("{}:0050", word([192, 0, 2, 7]))), Some("192.0.2.7:80".parse().unwrap()));
        assert_eq!(address("00:1144"), None);
    }

    #[test]
    fn a_connection_of_this_machine_is_found_and_no_two_are_the_same() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let portal = Portal::from_address(listener.local_addr().unwrap()).unwrap();
        let connect = || std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (first, _second) = (connect(), connect());
        let ids = || established(Path::new("/proc")).unwrap().remove(&portal).unwrap_or_default();
        let both = ids();
        assert_eq!(both.len(), 2, "{both:?}");
        drop(first);
        let _third = connect();
        assert_eq!(both.intersection(&ids()).count(), 1);
    }
}
