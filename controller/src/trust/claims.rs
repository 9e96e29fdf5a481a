//! What a service account's token says of itself. Nothing here is proven: it only refuses what no API server would accept, and
//! says when a token ends that the API server has accepted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// The year 9999: nothing ends later.
const MOST_SECONDS: u64 = 253_402_300_800;
/// Larger than any token of an API server.
const MOST_BYTES: usize = 12 << 10;

/// The claims that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    subject: String,
    audiences: Vec<String>,
    pub(super) until: SystemTime,
}

#[derive(Deserialize)]
struct Payload {
    sub: String,
    aud: Audience,
    exp: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Claims {
    /// Reads them; `None` if this is no such token.
    pub(super) fn read(token: &str) -> Option<Self> {
        if token.len() > MOST_BYTES {
            return None;
        }
        let mut parts = token.split('.');
        let (Some(_), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        let payload: Payload = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let audiences = match payload.aud {
            Audience::One(one) => vec![one],
            Audience::Several(several) => several,
        };
        let until = UNIX_EPOCH + Duration::from_secs(payload.exp.min(MOST_SECONDS));
        Some(Self { subject: payload.sub, audiences, until })
    }

    /// Why it cannot be this account's for this audience now, if it cannot.
    pub(super) fn contradiction(&self, account: &str, audience: &str, now: SystemTime) -> Option<String> {
        let shown =
            |text: &str| cleat_runtime::text::harmless(&text.chars().take(100).collect::<String>(), &[]);
        if self.subject != account {
            return Some(format!("it is of {}, and agents are {account}", shown(&self.subject)));
        }
        if !self.audiences.iter().any(|known| known == audience) {
            let known: Vec<_> = self.audiences.iter().take(3).map(|known| shown(known)).collect();
            return Some(format!("it is for the audience {}, not for {audience}", known.join(", ")));
        }
        let when = humantime::format_rfc3339_seconds(self.until);
        (self.until <= now).then(|| format!("it expired at {when}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// A token of such claims, which nobody has signed.
    pub(in crate::trust) fn unsigned(claims: &serde_json::Value) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part("{}"), part(&claims.to_string()), part("signature"))
    }

    #[test]
    fn what_no_api_server_would_accept_is_refused_by_what_it_says() {
        let claims = |audience: serde_json::Value, subject: &str, exp: u64| {
            Claims::read(&unsigned(&serde_json::json!({"aud": audience, "sub": subject, "exp": exp})))
                .unwrap()
        };
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let contradiction = |claims: Claims| claims.contradiction("agent", "cleat.io", now);
        assert_eq!(contradiction(claims("cleat.io".into(), "agent", 1001)), None);
        assert_eq!(contradiction(claims(serde_json::json!(["a", "cleat.io"]), "agent", 1001)), None);
        for (said, claims) in [
            ("it expired at 1970", claims("cleat.io".into(), "agent", 1000)),
            ("audience other, not", claims("other".into(), "agent", 1001)),
            ("it is of somebody", claims("cleat.io".into(), "somebody", 1001)),
        ] {
            assert!(contradiction(claims).unwrap().contains(said), "{said}");
        }
    }

    #[test]
    fn what_is_no_such_token_has_no_claims() {
        let without_end = unsigned(&serde_json::json!({"aud": "cleat.io", "sub": "agent"}));
        for text in ["", "a", "a.b.c", "a.b.c.d", &without_end, &"x".repeat(MOST_BYTES + 1)] {
            assert_eq!(Claims::read(text), None, "{text}");
        }
    }
}
