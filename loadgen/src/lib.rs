//! Measures TCP relays from outside: clients and destinations on one ring per core, SOCKS5 between them and the relay, every byte checked.
//!
//! It uses nothing of any relay's code, so that it can bear witness for and against each. [`run::run`] does one measurement.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![expect(clippy::cast_precision_loss, reason = "counts become rates and means, whose last digits nobody reads")]

pub mod cli;
pub mod client;
pub mod compare;
pub mod destination;
pub mod fault;
pub mod grow;
pub mod latency;
pub mod machine;
pub mod measure;
pub mod pattern;
pub mod plot;
pub mod procs;
pub mod record;
pub mod ring;
pub mod run;
pub mod socks;
pub mod spec;
pub mod table;
pub mod verdict;
pub mod wire;
pub mod work;
