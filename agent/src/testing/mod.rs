//! What tests stand on: a kernel made of memory, and an agent around it.

#![allow(clippy::unwrap_used, missing_docs)]

pub(crate) mod agent;
pub(crate) mod kernel;
pub(crate) mod target;
