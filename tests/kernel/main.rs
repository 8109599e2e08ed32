//! The kernel engine on real sockets.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "tests")]

mod alone;
mod bounds;
mod data;
mod ends;
mod filling;
mod leaving;
mod making;
mod measure;
mod stress;
mod support;
mod turns;
