//! Checks from user space whether a portal accepts TCP connections: there it holds nobody up.
//!
//! Comes in: a portal and how long to wait. Goes out: whether anything at its address answered.
//!
//! The kernel makes one NVMe connection at a time and waits 3 s for a portal that drops packets, while all
//! other connects of the host wait behind it. So each portal is checked here first.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::name::Portal;

/// What a portal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    /// Its address answers: it accepted the connection, or refused it at once.
    Answers,
    /// Its address does not answer; the text says why.
    Silent(String),
}

/// Opens one plain TCP connection to a portal and closes it at once. Cancel safe.
pub async fn reach(portal: Portal, patience: Duration) -> Reached {
    match timeout(patience, TcpStream::connect(portal.address())).await {
        Ok(Ok(_)) => Reached::Answers,
        // Somebody is there, and will refuse the kernel just as fast.
        Ok(Err(error))
            if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) =>
        {
            Reached::Answers
        }
        Ok(Err(error)) => Reached::Silent(error.to_string()),
        Err(_) => Reached::Silent(format!("no answer to TCP within {:.1} s", patience.as_secs_f64())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_portal_that_accepts_or_refuses_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let portal = Portal::from_address(listener.local_addr().unwrap()).unwrap();
        assert_eq!(reach(portal, LONG).await, Reached::Answers);
        drop(listener);
        assert_eq!(reach(portal, LONG).await, Reached::Answers);
    }

    #[tokio::test]
    async fn a_portal_whose_packets_are_dropped_is_silent_in_time() {
        // A listener with a full backlog drops what comes: the kernel says nothing to a SYN that it has no room for.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        let filled = async {
            while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await
            {
                held.push(stream);
            }
        };
        timeout(LONG, filled).await.unwrap();
        let portal = Portal::from_address(address).unwrap();
        let Reached::Silent(why) = reach(portal, Duration::from_millis(100)).await else { panic!("answers") };
        assert_eq!(why, "no answer to TCP within 0.1 s");
    }
}
