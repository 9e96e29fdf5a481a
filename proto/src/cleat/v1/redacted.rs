//! Debug output of the messages that carry a secret: all but the secret, and whether there is one.

use std::fmt::{Debug, Formatter, Result};

use super::{Attach, Rekey, TokenRenewal};

fn presence(secret: &str) -> &'static str {
    if secret.is_empty() { "none" } else { "set" }
}

impl Debug for Attach {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Attach")
            .field("operation_id", &self.operation_id)
            .field("volume_id", &self.volume_id)
            .field("epoch", &self.epoch)
            .field("subsystem_nqn", &self.subsystem_nqn)
            .field("portals", &self.portals)
            .field("namespace_uuid", &self.namespace_uuid)
            .field("nguid", &self.nguid)
            .field("size_bytes", &self.size_bytes)
            .field("read_only", &self.read_only)
            .field("path_policy", &self.path_policy)
            .field("deadline_ms", &self.deadline_ms)
            .field("dhchap_secret", &presence(&self.dhchap_secret))
            .field("reserve", &self.reserve)
            .field("reservation_key", &self.reservation_key)
            .field("secret_generation", &self.secret_generation)
            .finish()
    }
}

impl Debug for Rekey {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Rekey")
            .field("operation_id", &self.operation_id)
            .field("volume_id", &self.volume_id)
            .field("epoch", &self.epoch)
            .field("dhchap_secret", &presence(&self.dhchap_secret))
            .field("generation", &self.generation)
            .field("deadline_ms", &self.deadline_ms)
            .finish()
    }
}

impl Debug for TokenRenewal {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("TokenRenewal").field("token", &presence(&self.token)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_output_shows_a_secret() {
        let dhchap_secret = "DHHC-1:00:c2VjcmV0:".to_owned();
        let attach = Attach { dhchap_secret: dhchap_secret.clone(), ..Attach::default() };
        let rekey = Rekey { dhchap_secret, ..Rekey::default() };
        let message = super::super::ToAgent {
            kind: Some(super::super::to_agent::Kind::Rekey(rekey.clone())),
            about: None,
        };
        let renewal = TokenRenewal { token: "c2VjcmV0".into() };
        let said = format!("{attach:?} {attach:#?} {rekey:?} {message:?} {renewal:?}");
        assert!(!said.contains("c2Vj") && said.contains("\"set\""), "{said}");
    }
}
