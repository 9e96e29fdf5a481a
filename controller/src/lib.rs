//! Under construction.

pub mod rds;
