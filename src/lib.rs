//! An encrypted TCP relay for Linux on io_uring.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod doctor;
pub mod inter_server;
pub mod limits;
pub mod protocol;
pub mod rlimits;
pub mod server;
pub mod shard;
