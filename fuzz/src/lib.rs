//! The sans-IO half of the relay by itself, under the relay's name: it needs a handful of crates, where the whole takes minutes to build with a
//! sanitizer. That it builds at all shows that the wire depends on no socket, clock or runtime.

#[path = "../../src/crypto/mod.rs"]
pub mod crypto;
#[path = "../../src/limits.rs"]
pub mod limits;
#[path = "../../src/protocol/mod.rs"]
pub mod protocol;
