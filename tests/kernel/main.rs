//! The kernel engine on real sockets.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "tests")]

mod bounds;
mod data;
mod ends;
mod making;
mod stress;
mod support;
mod turns;
