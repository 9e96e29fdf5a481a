//! A ROSE Data Server for tests and demonstrations: RouterOS' REST surface for disks and files, acting on a
//! real Linux NVMe/TCP target (nvmet).
//!
//! The control plane is simulated, the data plane is not: every exported disk is an nvmet subsystem backed by a
//! file, and every byte goes through the kernel. What comes in is HTTPS from a storage driver and plain HTTP from
//! tests (faults, state); what goes out are writes below `/sys/kernel/config/nvmet` and files below one directory.
//!
//! What always holds: management operations run one at a time, as RouterOS runs them; a reply of success is given
//! only after the kernel's own state has been read back and agrees; what RouterOS is not known to do is not done
//! either, unless an option turns it on. Where a shape or a message is assumed rather than documented or observed,
//! a comment beside it says so.

pub mod args;
pub mod control;
pub mod disk;
pub mod faults;
pub mod files;
pub mod held;
pub mod pretend;
pub mod query;
pub mod rds;
pub mod reply;
pub mod rest;
pub mod secret;
pub mod server;
pub mod store;
pub mod target;
pub mod testing;
pub mod tls;
pub mod value;

pub use rds::{AclMode, Options, Rds};
pub use rest::{Credentials, router};
