//! `cleat-writer verify`: a device or backing file against what the runs said.

use crate::sequence::checker::BadFacts;
use crate::sequence::scan::{ScanError, scan};
use crate::sequence::{BadRegion, Checker, Layout, Report};

use super::VerifyArgs;

/// Why there is no verdict. A verdict, good or bad, is a [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The regions' size is none.
    #[error(transparent)]
    Region(#[from] BadRegion),
    /// The runs cannot be of one sequence.
    #[error(transparent)]
    Facts(#[from] BadFacts),
    /// The file cannot be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

/// Reads everything and judges it.
///
/// # Errors
/// If the options make no sense together or the file cannot be read.
pub fn verify(args: &VerifyArgs) -> Result<Report, VerifyError> {
    let layout = Layout::new(args.region_bytes)?;
    let mut checker = Checker::new(layout, args.volume.clone(), args.runs.clone())?;
    scan(&args.file, |number, block| checker.block(number, block))?;
    Ok(checker.finish())
}
