//! Whether the witness can be believed: what is wrong is found and named, what is right is not blamed, and times are what they are.
//!
//! Flows go through a small proxy that makes one fault on purpose, to a plain TCP echo or to `loadgen destination`.

mod command;
mod finds;
mod grow;
mod proxy;
mod servers;
mod times;
mod trusts;
