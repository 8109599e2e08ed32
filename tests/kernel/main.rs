//! The kernel engines on real sockets. Every test runs on each of them, as `ring::…` and as `tokio_uring::…`.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::duplicate_mod, reason = "the same tests for each engine: they find out by the name of their module which one it is")]

mod measure;
#[path = "engine.rs"]
mod ring;
#[cfg(feature = "engine-tokio-uring")]
#[path = "engine.rs"]
mod tokio_uring;
