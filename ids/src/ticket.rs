//! The id of a ticket: a reason why a volume should be attached somewhere.

use crate::text::checked_text;

checked_text!(
    /// One ticket: the UID that Kubernetes gives a Ticket, the name of a VolumeAttachment, or what a holder outside of a
    /// cluster has chosen. All that matters is that two differ.
    ///
    /// 1 to 128 of `A-Z a-z 0-9 - . _`, with a letter or digit at both ends: the directory of a ticket's device on its
    /// node has this name, and so it must lead nowhere else.
    TicketId,
    "ticket id",
    |value| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = value.as_bytes();
        if bytes.is_empty() {
            return Err("is empty");
        }
        if bytes.len() > 128 {
            return Err("is longer than 128 bytes");
        }
        if !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte)) {
            return Err("has a character that is not one of A-Z, a-z, 0-9, -, . and _");
        }
        if !edge(bytes.first()) || !edge(bytes.last()) {
            return Err("does not begin and end with a letter or digit");
        }
        Ok(())
    },
    "use 1 to 128 of A-Z, a-z, 0-9, -, . and _, with a letter or digit at both ends"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_names_things_is_a_ticket_id() {
        let attachment = format!("csi-{}", "0".repeat(64));
        for good in ["0b7c1d1e-9f59-4c3a-8a43-6c0a3a3a4c5d", &attachment, "backup_1.nightly", "7"] {
            assert!(TicketId::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn what_could_lead_out_of_a_directory_is_no_ticket_id() {
        for (bad, rule) in [
            ("", "empty"),
            (&*"x".repeat(129), "128"),
            (".", "begin and end"),
            ("..", "begin and end"),
            ("-t", "begin and end"),
            ("a/b", "A-Z"),
            ("a b", "A-Z"),
            ("a\n", "A-Z"),
            ("a\u{1b}[2J", "A-Z"),
        ] {
            let error = TicketId::new(bad).expect_err(bad);
            assert!(error.rule.contains(rule), "{error}");
        }
    }
}
