//! What a shard costs above the seam: the CPU time of its turns in [`rig`], of each role for itself. The kernel is not in it, and neither is the
//! simulation.
//!
//! The simulation reads and writes all bytes too, so they are in the cache when a shard sees them, and its own memory competes for the
//! caches with the shard's. Both are alike from run to run.
#![allow(dead_code, unreachable_pub, reason = "the simulation's modules are made for its tests")]

#[path = "../tests/sim/client.rs"]
mod client;
#[path = "../tests/sim/destination.rs"]
mod destination;
#[path = "../tests/sim/duplex.rs"]
mod duplex;
#[path = "../tests/sim/engine.rs"]
mod engine;
#[path = "../tests/sim/harness.rs"]
mod harness;
#[path = "../tests/sim/net.rs"]
mod net;
#[path = "../tests/sim/observer.rs"]
mod observer;
#[path = "../tests/sim/pending.rs"]
mod pending;
#[path = "../tests/sim/process.rs"]
mod process;
#[path = "support/rig.rs"]
mod rig;
#[path = "../tests/sim/rng.rs"]
mod rng;
#[path = "../tests/sim/roles.rs"]
mod roles;
#[path = "support/mod.rs"]
mod support;
#[path = "../tests/sim/traffic.rs"]
mod traffic;
#[path = "../tests/sim/world.rs"]
mod world;

use criterion::{BenchmarkGroup, BenchmarkId, Throughput};

use crate::rig::{BULK, ROLES, Rig};
use crate::roles::Topology;
use crate::support::{CpuTime, meter};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut criterion = support::criterion();
    let mut group = criterion.benchmark_group("turn");
    let shared = Topology { max_tunnels: 1, ..Topology::PLAIN };
    for (how, topology) in [("0x81", Topology::SECURE), ("0x80, own tunnels", Topology::PLAIN), ("0x80, one tunnel", shared)] {
        for flows in [1, 64] {
            let mut rig = Rig::new(&topology, flows);
            let each = Throughput::Elements(flows as u64);
            each_role(&mut group, &format!("echo 64 B, {flows} flows, {how}"), &each, &mut rig, Rig::echo);
        }
    }
    for (how, topology) in [("0x81", Topology::SECURE), ("0x80", Topology::PLAIN)] {
        for flows in [1, 16] {
            let mut rig = Rig::new(&topology, flows);
            let bytes = Throughput::Bytes((flows * BULK) as u64);
            each_role(&mut group, &format!("down 64 KiB, {flows} flows, {how}"), &bytes, &mut rig, Rig::down);
            each_role(&mut group, &format!("up 64 KiB, {flows} flows, {how}"), &bytes, &mut rig, Rig::up);
        }
    }
    group.finish();
    criterion.final_summary();
}

fn each_role(group: &mut BenchmarkGroup<'_, CpuTime>, name: &str, each: &Throughput, rig: &mut Rig, round: fn(&mut Rig)) {
    for (role, index) in ROLES {
        group.throughput(each.clone());
        group.bench_function(BenchmarkId::new(name, role), |bencher| {
            bencher.iter_custom(|rounds| {
                rig.meter(index).take();
                (0..rounds).for_each(|_| round(rig));
                rig.meter(index).take()
            });
        });
    }
}
