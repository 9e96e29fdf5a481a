//! Nodes, the boots of their kernels, and the sessions of their agents.

use crate::text::{checked_text, printable};

checked_text!(
    /// A node, by the name that the orchestrator knows it under (the CSI node id).
    ///
    /// 1 to 253 of `A-Z a-z 0-9 - . _`, with a letter or digit at both ends and no two dots in a row. Why:
    /// - Every Kubernetes node name is one (a DNS subdomain of at most 253 characters, RFC 1123).
    /// - The CSI specification (`NodeGetInfoResponse.node_id`) allows any text of at most 256 bytes and leaves the
    ///   choice to the driver. Cleat's agent gets its id by `--node-id`, so other orchestrators' ids need not
    ///   be Kubernetes names: capitals and `_` are accepted, and ids that differ only in case are two nodes.
    /// - These characters are unreserved in a URI (RFC 3986, section 2.3), so the id stands in a certificate's
    ///   `cleat://node/NAME` as it is, in one spelling. They need no quoting in a shell, a log or a label.
    /// - A file name has at most 255 bytes on Linux, must not be `.` or `..`, and should not begin with `-` or `.`.
    NodeId,
    "node id",
    |value| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = value.as_bytes();
        if bytes.is_empty() {
            return Err("is empty");
        }
        if bytes.len() > 253 {
            return Err("is longer than 253 bytes");
        }
        if !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte)) {
            return Err("has a character that is not one of A-Z, a-z, 0-9, -, . and _");
        }
        if !edge(bytes.first()) || !edge(bytes.last()) {
            return Err("does not begin and end with a letter or digit");
        }
        if value.contains("..") {
            return Err("has two dots in a row");
        }
        Ok(())
    },
    "use the node's name: 1 to 253 of A-Z, a-z, 0-9, -, . and _, with a letter or digit at both ends"
);
checked_text!(
    /// One boot of a node's kernel, as `/proc/sys/kernel/random/boot_id` names it. Linux writes a UUID; all
    /// that matters is that two boots differ.
    BootId,
    "boot id",
    |value| printable(value, 64),
    "use 1 to 64 printable ASCII characters without spaces"
);
checked_text!(
    /// One object that the orchestrator keeps of a node: one that is deleted and made again is another one. Kubernetes
    /// writes a UUID; all that matters is that two differ.
    NodeUid,
    "UID of a Node",
    |value| printable(value, 128),
    "use 1 to 128 printable ASCII characters without spaces"
);
checked_text!(
    /// One agent session (one stream), as the controller names it. Never used twice.
    SessionId,
    "session id",
    |value| printable(value, 128),
    "use 1 to 128 printable ASCII characters without spaces"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kubernetes_and_of_other_orchestrators_are_node_ids() {
        for good in ["worker-1.example.org", "n", "7", "Worker_1", "i-0AbC.eu", "a--b", &"x".repeat(253)] {
            assert!(NodeId::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn what_is_unsafe_in_a_file_name_uri_or_log_is_no_node_id() {
        for (bad, rule) in [
            ("", "empty"),
            (&*"x".repeat(254), "253"),
            (".", "begin and end"),
            ("..", "begin and end"),
            ("-n", "begin and end"),
            ("n.", "begin and end"),
            ("_n", "begin and end"),
            ("a..b", "two dots"),
            ("a/b", "A-Z"),
            ("a%2fb", "A-Z"),
            ("a b", "A-Z"),
            ("a\u{1b}[2J", "A-Z"),
            ("knöten", "A-Z"),
            ("a:b", "A-Z"),
        ] {
            let error = NodeId::new(bad).expect_err(bad);
            assert!(error.rule.contains(rule), "{error}");
            assert!(error.action.contains("1 to 253"), "{error}");
        }
    }

    #[test]
    fn a_boot_and_a_session_are_never_nothing() {
        assert!(BootId::new("0b7c1d1e-9f59-4c3a-8a43-6c0a3a3a4c5d").is_ok());
        for bad in ["", " ", "a b", "a\n", &"x".repeat(65)] {
            assert!(BootId::new(bad).is_err(), "{bad:?}");
        }
        assert!(SessionId::new("session-1-2").is_ok());
        assert!(SessionId::new("").is_err());
    }
}
