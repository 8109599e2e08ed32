//! The ciphers, without IO and without key files: bytes are enciphered where they lie. Key material lives only here, is wiped when
//! dropped, and no `Debug` of this module prints any of it.
pub mod aead;
pub mod fixed_iv;
