//! `cleat-writer census`: what a device or backing file holds at this moment.

use crate::sequence::census::Census;
use crate::sequence::scan::{ScanError, scan};

use super::CensusArgs;

/// Counts everything.
///
/// # Errors
/// If the file cannot be read.
pub fn census(args: &CensusArgs) -> Result<Census, ScanError> {
    let mut census = Census::default();
    scan(&args.file, |number, block| census.block(number, block))?;
    Ok(census)
}
