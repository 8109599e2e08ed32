//! The keys of 0x81 logins: one for an exit, up to 256 with names for an inter-server.
//!
//! What always holds: key bytes are wiped when dropped and never printed; names and keys are each held once.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::PSK_BYTES;

/// Keys that one inter-server may hold. Each wrong one costs a login a few hashes, so all of them less than one Diffie–Hellman or two dozen.
pub const KEYS_MAX: usize = 256;

/// A pre-shared key: 32 random bytes.
#[derive(Clone)]
pub struct Psk(Box<Zeroizing<[u8; PSK_BYTES]>>);

impl Psk {
    /// Copies the key. Wiping `bytes` afterwards is the caller's business.
    #[must_use]
    pub fn new(bytes: &[u8; PSK_BYTES]) -> Self {
        Self(Box::new(Zeroizing::new(*bytes)))
    }

    pub(super) fn bytes(&self) -> &[u8; PSK_BYTES] {
        &self.0
    }
}

/// Takes constant time, whatever the keys are.
impl PartialEq for Psk {
    fn eq(&self, other: &Self) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }
}

impl Eq for Psk {}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(..)")
    }
}

/// The keys of an inter-server, each with the name of the exit that has it.
#[derive(Clone, Debug)]
pub struct Keys(Vec<(Arc<str>, Psk)>);

/// Why keys do not go together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeysError {
    /// There is none.
    #[error("no key: expected at least one")]
    None,
    /// There are too many.
    #[error("{got} keys: expected at most {KEYS_MAX}")]
    TooMany {
        /// How many there are.
        got: usize,
    },
    /// One name would be two exits.
    #[error("two keys have the name {name:?}: expected one per name")]
    SameName {
        /// The name.
        name: String,
    },
    /// One exit would have two names, and taking one of them away would change nothing.
    #[error("{first:?} and {second:?} have the same key: expected one key per exit")]
    SameKey {
        /// The name it came under first.
        first: String,
        /// The name it came under again.
        second: String,
    },
}

impl Keys {
    /// Whether this name has the same key here as there.
    #[must_use]
    pub fn agrees_with(&self, other: &Self, name: &str) -> bool {
        other.iter().any(|(its, psk)| **its == *name && self.holds(name, psk))
    }

    /// Puts keys together.
    ///
    /// # Errors
    /// There are none or too many, or two have the same name or are the same.
    pub fn new(keys: impl IntoIterator<Item = (Arc<str>, Psk)>) -> Result<Self, KeysError> {
        let keys: Vec<(Arc<str>, Psk)> = keys.into_iter().collect();
        if keys.is_empty() {
            return Err(KeysError::None);
        }
        if keys.len() > KEYS_MAX {
            return Err(KeysError::TooMany { got: keys.len() });
        }
        for (at, (name, psk)) in keys.iter().enumerate() {
            for (earlier, other) in &keys[..at] {
                if earlier == name {
                    return Err(KeysError::SameName { name: name.to_string() });
                }
                if other == psk {
                    return Err(KeysError::SameKey { first: earlier.to_string(), second: name.to_string() });
                }
            }
        }
        Ok(Self(keys))
    }

    /// Whether a key has this name.
    #[must_use]
    pub fn has_name(&self, wanted: &str) -> bool {
        self.0.iter().any(|(name, _)| &**name == wanted)
    }

    /// Whether this very key is held under this name: a tunnel that came in with it may stay.
    #[must_use]
    pub fn holds(&self, wanted: &str, key: &Psk) -> bool {
        self.0.iter().any(|(name, psk)| &**name == wanted && psk == key)
    }

    /// Names and keys, in the order in which they were put together.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Psk)> {
        self.0.iter().map(|(name, psk)| (name, psk))
    }
}
