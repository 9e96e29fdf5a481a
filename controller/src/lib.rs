//! Under construction.

pub mod rds;
pub mod store;
