//! A relay that has got going allocates nothing: not above the seam, in either role, and not in the ring.
#![allow(dead_code, unreachable_pub, reason = "the simulation's modules are made for its tests")]

#[path = "../sim/client.rs"]
mod client;
#[path = "../sim/destination.rs"]
mod destination;
#[path = "../sim/duplex.rs"]
mod duplex;
#[path = "../sim/engine.rs"]
mod engine;
#[path = "../sim/harness.rs"]
mod harness;
mod meter;
#[path = "../sim/net.rs"]
mod net;
#[path = "../sim/observer.rs"]
mod observer;
#[path = "../sim/pending.rs"]
mod pending;
#[path = "../sim/process.rs"]
mod process;
#[path = "../../benches/support/rig.rs"]
mod rig;
#[path = "../sim/rng.rs"]
mod rng;
#[path = "../sim/roles.rs"]
mod roles;
#[path = "../sim/traffic.rs"]
mod traffic;
#[path = "../sim/world.rs"]
mod world;

mod ring;
mod turns;
