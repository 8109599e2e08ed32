//! What an engine owes to the shard above it.

mod alone;
mod bounds;
mod data;
mod differences;
mod ends;
mod filling;
mod leaving;
mod making;
mod stress;
pub(crate) mod support;
mod turns;
