//! The relay from outside: both roles as child processes of the real binary, real io_uring, real curl, nginx and sshd.
//! Every test has its own pair on its own ports; what is awaited is read off the state line (SIGUSR1), never slept for.
//!
//! `ZHWKPROX_QUICK=1` shortens the longest ones. A program that is missing skips its test, loudly; with `CI` set it fails it.

#![allow(clippy::disallowed_methods, reason = "the tests' watchdogs read the clock themselves: they are outside the relay")]

mod harness;

mod curl;
mod ends;
mod limits;
mod mixups;
mod names;
mod policy;
mod shards;
mod sharing;
mod socks5;
mod stalls;
mod stop;
mod tunnels;
mod wire;
