//! The simulation: both roles, unchanged, over a network that exists only in memory, with a clock that jumps. Everything that happens
//! follows from a seed; a failure prints the seed and the command that replays it.
//!
//! ```text
//!   seeds, scenarios, mutants ─▶ harness ─▶ roles ─▶ the shards of production ─▶ engine ─┐
//!        verdict ◀── book ◀── clients, destinations ─────────────────────────────────────┴▶ world (net, observer)
//!
//!   cargo test --test sim                                     2,000 seeds, the scenarios, and the simulation's own contract
//!   ZHWKPROX_SIM_SEED=7 ZHWKPROX_SIM_TRACE=1 cargo test --test sim -- seeds::both_roles --nocapture      one seed, told in full
//!   ZHWKPROX_SIM_SEEDS=50000 cargo test --test sim -- seeds::both_roles --nocapture                      a long search
//!   cargo test --features mutants --test sim -- mutants --nocapture                                      each fault caught
//! ```
#![allow(unreachable_pub, reason = "one test program, whose modules see each other")]

mod client;
mod contract;
mod destination;
mod dialled;
mod duplex;
mod engine;
mod harness;
#[cfg(feature = "mutants")]
mod mutants;
mod net;
mod observer;
mod openings;
mod original;
mod pending;
mod process;
mod rng;
mod roles;
mod scenarios;
mod secure;
mod seeds;
mod silence;
mod traffic;
mod verdict;
mod world;
