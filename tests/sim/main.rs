//! The simulation: both roles, unchanged, over a network that exists only in memory, with a clock that jumps. Everything that happens
//! follows from a seed; a failure prints the seed and the command that replays it.
#![allow(unreachable_pub, reason = "one test program, whose modules see each other")]

mod client;
mod contract;
mod destination;
mod duplex;
mod engine;
mod harness;
#[cfg(feature = "mutants")]
mod mutants;
mod net;
mod observer;
mod original;
mod process;
mod rng;
mod roles;
mod scenarios;
mod seeds;
mod traffic;
mod verdict;
mod world;
