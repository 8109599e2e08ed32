//! The host settings of `tuning/`: the scripts in a network namespace of their own (`namespace`), on trees of files in place of /proc and /sys
//! (`trees`), the settings as data (`data`), and the systemd units with the real binary under their filter (`units`).
#![allow(clippy::unwrap_used, reason = "tests")]

mod data;
mod filter;
mod namespace;
#[path = "../cli/process.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod process;
mod queues;
mod support;
mod trees;
mod units;
