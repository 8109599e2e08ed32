//! The relay from outside: both roles as child processes of the real binary, real io_uring, real curl, nginx and sshd.
//! Every test has its own pair on its own ports; what is awaited is read off the state line (SIGUSR1), never slept for.
//!
//! They run on 0x80, or on 0x81 with `ZHWKPROX_PROTOCOL=0x81`, and there also with one tunnel per shard (`ZHWKPROX_ONE_TUNNEL=1`); with
//! `ZHWKPROX_TWO_SHARDS=1` each role has two, and `ZHWKPROX_ENGINE` chooses the engine. What is about one protocol alone says so (`harness/protocol.rs`).
//!
//! `ZHWKPROX_QUICK=1` shortens the longest ones. A program that is missing skips its test, loudly; with `CI` set it fails it.

#![allow(clippy::disallowed_methods, reason = "the tests' watchdogs read the clock themselves: they are outside the relay")]

mod harness;

mod curl;
mod dialled;
mod ends;
mod limits;
mod mixups;
mod names;
mod names_at_exit;
mod outcomes;
mod policy;
mod redial;
mod replies;
mod shards;
mod sharing;
mod socks5;
mod stalls;
mod stop;
mod streams;
mod tunnels;
mod wire;

/// The list of what 0x81 leaves out is what is left out: each entry is a test that asks for itself, and nobody else asks.
#[test]
fn what_is_skipped_on_0x81_is_listed_with_its_reason_exactly() {
    let sources = [
        include_str!("curl.rs"),
        include_str!("ends.rs"),
        include_str!("limits.rs"),
        include_str!("mixups.rs"),
        include_str!("names.rs"),
        include_str!("names_at_exit.rs"),
        include_str!("outcomes.rs"),
        include_str!("policy.rs"),
        include_str!("redial.rs"),
        include_str!("replies.rs"),
        include_str!("shards.rs"),
        include_str!("sharing.rs"),
        include_str!("socks5.rs"),
        include_str!("stalls.rs"),
        include_str!("stop.rs"),
        include_str!("streams.rs"),
        include_str!("tunnels.rs"),
        include_str!("wire.rs"),
    ]
    .concat();
    let listed = harness::protocol::OF_0X80;
    assert_eq!(sources.matches("skipped_on_0x81(").count(), listed.len(), "calls and entries");
    for (test, why) in listed {
        let begins = format!("#[test]\nfn {test}() {{\n    if skipped_on_0x81(\"{test}\") {{\n        return;\n    }}\n");
        assert_eq!(sources.matches(&begins).count(), 1, "{test} is not a test that asks whether it is skipped");
        let (_, instead) = why.rsplit_once(": ").unwrap();
        assert!(sources.contains(&format!("#[test]\nfn {instead}() {{\n    if skipped_on_0x80() {{")), "{test}: no {instead}");
    }
}
