//! Keys of 0x80: `zhwkprox-0x80:` and base64, or `ascii:` and the bytes themselves, as long as the cipher wants them.
//!
//! What always holds between calls: the bytes are wiped when dropped.

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use super::{KeyError, KeyLine, decode, random, read_secret, trim_line, v81};

/// What a generated key starts with.
pub(super) const PREFIX: &str = "zhwkprox-0x80:";
/// What a key that is given as plain text starts with.
pub(super) const ASCII: &str = "ascii:";

/// A key. Wiped when dropped, never printed.
pub struct Key(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A new random key.
    ///
    /// # Errors
    /// The system's random source failed.
    pub fn generate(bytes: usize) -> io::Result<Self> {
        let mut key = Zeroizing::new(vec![0; bytes]);
        random(&mut key)?;
        Ok(Self(key))
    }

    /// Reads a key of `expected` bytes for `cipher` from a file, and says what is wrong with the file but not fatal.
    ///
    /// # Errors
    /// As [`KeyError`] lists.
    pub fn load(path: &Path, expected: usize, cipher: &str) -> Result<(Self, Option<String>), KeyError> {
        let name = path.display().to_string();
        let (contents, warning) = read_secret(path)?;
        let line = trim_line(&contents);
        if line.starts_with(v81::PREFIX.as_bytes()) {
            let cure = "zhwkprox keygen --protocol 0x80 --out FILE, or leave --protocol out";
            return Err(KeyError::Protocol { path: name, got: "0x81", expected: "0x80", cure });
        }
        let plain = || line.strip_prefix(ASCII.as_bytes()).map(|bytes| Zeroizing::new(bytes.to_vec()));
        let form = || format!("`{PREFIX}` and base64, or `{ASCII}` and the bytes");
        let key = decode(line, PREFIX).or_else(plain).ok_or_else(|| KeyError::Form { path: name.clone(), expected: form() })?;
        if key.len() != expected {
            return Err(KeyError::Length { path: name, got: key.len(), expected, cipher: cipher.to_owned() });
        }
        Ok((Self(key), warning))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The line that a key file holds.
    #[must_use]
    pub fn line(&self) -> KeyLine {
        KeyLine::new(PREFIX, &self.0)
    }
}
