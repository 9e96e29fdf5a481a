//! The protocols: the subset of CSI v1 that Cleat serves, the kubelet's registration of plug-ins, and `cleat.v1`, its own
//! protocol. Generated code, and which versions of the session work together; nothing else.
//!
//! The sources are in `proto/`; names, numbers and types of CSI are the standard's (spec 1.11), so that any
//! CSI caller can talk to Cleat. RPCs of the standard that are not listed here answer `UNIMPLEMENTED`.

/// The Container Storage Interface, version 1.
pub mod csi {
    /// `csi.v1`, the subset that Cleat serves.
    #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    pub mod v1 {
        mod redacted;

        tonic::include_proto!("csi.v1");
    }
}

/// How the kubelet learns of a plug-in.
pub mod pluginregistration {
    /// The first version, whose package has no version in its name.
    #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("pluginregistration");
    }
}

/// Cleat's own protocol.
pub mod cleat {
    /// `cleat.v1`: the agent session and the operators' service.
    #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    pub mod v1 {
        mod redacted;

        tonic::include_proto!("cleat.v1");
    }
}

mod session_protocol;

pub use session_protocol::{SESSION_PROTOCOL, VersionsApart, session_protocol_with};
