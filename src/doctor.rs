//! Placeholder.
use crate::exit::Failure;

/// Placeholder.
///
/// # Errors
/// Never.
pub fn run() -> Result<(), Failure> {
    Ok(())
}
