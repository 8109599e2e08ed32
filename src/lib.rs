//! An encrypted TCP relay for Linux on io_uring.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod crypto;
pub mod demo;
pub mod dial;
pub mod doctor;
pub mod exit;
pub mod inter_server;
pub mod keys;
pub mod limits;
pub mod link;
pub mod listen;
pub mod making;
pub mod mutants;
pub mod outbox;
pub mod protocol;
pub mod relay;
pub mod rlimits;
pub mod run;
pub mod server;
pub mod shard;
pub mod telemetry;
