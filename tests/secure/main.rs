//! 0x81 against those who do not keep to it: bits flipped and connections cut on the way, logins replayed, authenticated peers that break every
//! rule or none but are as tiresome as they can, another implementation as either side; and the keys, by which exits are told apart and shut out.
//! All of it on the real binary.
//!
//! `ZHWKPROX_QUICK=1` takes samples where else every byte is tried.

#![allow(clippy::disallowed_methods, reason = "the tests' watchdogs read the clock themselves: they are outside the relay")]

#[allow(dead_code, unused_imports, reason = "the harness of tests/relay, of which this needs a part")]
#[path = "../relay/harness/mod.rs"]
mod harness;
#[path = "../peer81/python.rs"]
mod python;

mod dead_paths;
mod epochs;
mod exits;
mod flips;
mod floods;
mod foreign;
mod logins;
mod long_line;
mod path;
mod peer;
mod records;
mod rules;
mod support;
mod versions;
mod wire;
