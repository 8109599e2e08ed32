//! An encrypted TCP relay for Linux on io_uring.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod crypto;
pub mod inter_server;
pub mod limits;
pub mod link;
pub mod mutants;
pub mod outbox;
pub mod protocol;
pub mod relay;
pub mod rlimits;
pub mod server;
pub mod shard;
