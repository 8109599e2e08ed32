//! The sans-IO half of the relay against outside witnesses: vectors made with openssl, every way to cut a stream, a model of the wire that
//! drives the real session through every interleaving.

mod ciphers;
mod counting;
mod frames;
mod handshake;
mod model80;
mod properties;
mod session;
mod socks5;
mod splits;
mod support;
mod traffic;
mod transcript;
mod v81_channel;
mod v81_frames;
mod v81_handshake;
mod v81_model;
mod v81_peer;
mod v81_records;
mod v81_session;
mod v81_settings;
mod v81_support;
mod v81_traffic;
mod v81_vectors;
mod vectors;
