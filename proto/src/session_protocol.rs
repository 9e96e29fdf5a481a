//! Which versions of the agent session work together: those that are at most one apart, so that controllers and agents can be
//! upgraded, or go back, one after the other. `session.proto` says what each version has brought.

use std::ops::RangeInclusive;

/// The version of the session's protocol that this build speaks. It rises with everything that the other side must not
/// leave unread.
pub const SESSION_PROTOCOL: u32 = 3;

/// The other side's version, and ours, are more than one apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct VersionsApart {
    /// Who the other side is: `agent` or `controller`.
    pub them: &'static str,
    /// Who this side is.
    pub us: &'static str,
    /// Their version.
    pub theirs: u32,
    /// Ours.
    pub ours: u32,
}

impl VersionsApart {
    fn text(&self) -> String {
        let Self { them, us, theirs, ours } = self;
        let taken = taken(*ours);
        let behind = if theirs < ours { them } else { us };
        format!(
            "the {them} speaks session protocol {theirs}, this {us} speaks {ours} and works with {} to {}: upgrade the {behind}",
            taken.start(),
            taken.end()
        )
    }
}

fn taken(ours: u32) -> RangeInclusive<u32> {
    ours.saturating_sub(1).max(1)..=ours + 1
}

/// The version that both sides know: what is sent may not be newer.
///
/// # Errors
/// If they are too far apart.
pub fn session_protocol_with(
    them: &'static str,
    us: &'static str,
    theirs: u32,
) -> Result<u32, VersionsApart> {
    known_to_both(SESSION_PROTOCOL, theirs).ok_or(VersionsApart { them, us, theirs, ours: SESSION_PROTOCOL })
}

fn known_to_both(ours: u32, theirs: u32) -> Option<u32> {
    taken(ours).contains(&theirs).then_some(theirs.min(ours))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::cleat::v1 as proto;

    #[test]
    fn versions_one_apart_speak_the_lower_one_and_two_apart_none() {
        for (ours, theirs, both) in
            [(5, 5, Some(5)), (5, 4, Some(4)), (5, 6, Some(5)), (5, 3, None), (5, 7, None), (1, 0, None)]
        {
            assert_eq!(known_to_both(ours, theirs), both, "{ours} with {theirs}");
        }
    }

    #[test]
    fn who_is_too_far_behind_is_named_with_both_versions() {
        let apart =
            |theirs, ours| VersionsApart { them: "agent", us: "controller", theirs, ours }.to_string();
        assert_eq!(
            apart(3, 5),
            "the agent speaks session protocol 3, this controller speaks 5 and works with 4 to 6: upgrade the agent"
        );
        assert!(apart(7, 5).ends_with("upgrade the controller"), "{}", apart(7, 5));
    }

    /// Bytes of a later version: a field of that number with a text in it.
    fn with_field(message: &impl prost::Message, number: u32) -> Vec<u8> {
        let mut bytes = message.encode_to_vec();
        prost::encoding::string::encode(number, &"later".to_owned(), &mut bytes);
        bytes
    }

    #[test]
    fn a_field_of_a_later_version_is_left_and_the_rest_is_read() {
        let hello =
            proto::Hello { protocol: SESSION_PROTOCOL + 1, node_id: "a".into(), ..Default::default() };
        assert_eq!(proto::Hello::decode(&with_field(&hello, 99)[..]).unwrap(), hello);
        let attach = proto::Attach { volume_id: "v".into(), size_bytes: 7, ..Default::default() };
        assert_eq!(proto::Attach::decode(&with_field(&attach, 99)[..]).unwrap(), attach);
    }

    #[test]
    fn a_directive_of_a_later_version_still_says_what_it_is_about() {
        let about = proto::DirectiveHeader { operation_id: "op-1-2".into(), ..Default::default() };
        let message = proto::ToAgent { kind: None, about: Some(about) };
        assert_eq!(proto::ToAgent::decode(&with_field(&message, 14)[..]).unwrap(), message);
        let report = proto::FromAgent::decode(&with_field(&proto::FromAgent::default(), 14)[..]).unwrap();
        assert_eq!(report.kind, None);
    }
}
