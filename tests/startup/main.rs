//! What a user is told when io_uring cannot be had, on real processes in which the kernel really refuses it: under a seccomp filter,
//! and under a limit of locked memory. Works as any user.
#![allow(clippy::unwrap_used, reason = "tests")]

mod binary;
mod jail;
mod ladder;
