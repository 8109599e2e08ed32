//! Key files: making one, and reading one back. A key is `zhwkprox-0x80:` and base64, or `ascii:` and the bytes themselves.
//!
//! What always holds between calls: key bytes are wiped when dropped, and no message of this module contains what a file held.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// What a generated key starts with.
const PREFIX: &str = "zhwkprox-0x80:";
/// What a key that is given as plain text starts with.
const ASCII: &str = "ascii:";
/// No key file is longer; a file that is was named by mistake.
const FILE_MAX: usize = 4096;
/// Read and write for the owner, nothing for anybody else.
const OWNER_ONLY: u32 = 0o600;

/// A key. Wiped when dropped, never printed.
pub struct Key(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// Which file.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The path is the key itself: it must not be repeated in a message.
    #[error("expected the path of a file, got what looks like the key itself (now in your shell's history: make another)")]
    KeyInsteadOfPath,
    /// Anybody on the machine can read it.
    #[error("{path} can be read by everybody (mode {mode:04o}), expected mode 0600. cure: chmod 600 {path}")]
    Exposed {
        /// Which file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key file.
    #[error("{path} does not hold a key: expected `{PREFIX}` and base64, or `{ASCII}` and the bytes")]
    Form {
        /// Which file.
        path: String,
    },
    /// A key for something else.
    #[error("{path} holds a key of {got} bytes, expected {expected} for {cipher}")]
    Length {
        /// Which file.
        path: String,
        /// Bytes it has.
        got: usize,
        /// Bytes the cipher takes.
        expected: usize,
        /// The cipher's name.
        cipher: String,
    },
}

impl Key {
    /// A new random key.
    ///
    /// # Errors
    /// The system's random source failed.
    pub fn generate(bytes: usize) -> io::Result<Self> {
        let mut key = Zeroizing::new(vec![0; bytes]);
        getrandom::fill(&mut key).map_err(|cause| io::Error::other(format!("no random bytes: {cause}")))?;
        Ok(Self(key))
    }

    /// Reads a key of `expected` bytes for `cipher` from a file, and says what is wrong with the file but not fatal.
    ///
    /// # Errors
    /// As [`KeyError`] lists.
    pub fn load(path: &Path, expected: usize, cipher: &str) -> Result<(Self, Option<String>), KeyError> {
        let name = path.display().to_string();
        let (contents, warning) = read_secret(path)?;
        let text = contents.strip_suffix(b"\n").unwrap_or(&contents);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let key = if let Some(encoded) = text.strip_prefix(PREFIX.as_bytes()) {
            STANDARD.decode(encoded.trim_ascii()).map_err(|_| KeyError::Form { path: name.clone() })?
        } else if let Some(bytes) = text.strip_prefix(ASCII.as_bytes()) {
            bytes.to_vec()
        } else {
            return Err(KeyError::Form { path: name });
        };
        let key = Self(Zeroizing::new(key));
        if key.0.len() != expected {
            return Err(KeyError::Length { path: name, got: key.0.len(), expected, cipher: cipher.to_owned() });
        }
        Ok((key, warning))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The line a key file holds.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<String> {
        let mut line = Zeroizing::new(String::with_capacity(PREFIX.len() + self.0.len() * 2 + 2));
        line.push_str(PREFIX);
        STANDARD.encode_string(&*self.0, &mut line);
        line.push('\n');
        line
    }

    /// Writes a key file that only its owner can read. An existing file is left alone unless `force`, and then replaced whole.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the system says.
    pub fn write_file(&self, path: &Path, force: bool) -> io::Result<()> {
        if !force {
            return self.create(path);
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.tmp", std::process::id()));
        let beside = Path::new(&beside);
        self.create(beside)?;
        fs::rename(beside, path).inspect_err(|_| {
            let _ = fs::remove_file(beside);
        })
    }

    /// Prints the key. Where standard output is a file (the shell's `>`), that file is closed to others first.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_stdout(&self) -> io::Result<()> {
        let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        if out.metadata()?.is_file() {
            out.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
        }
        out.write_all(self.encode().as_bytes())
    }

    fn create(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(path)?;
        file.write_all(self.encode().as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
            let _ = fs::remove_file(path);
        })
    }
}

/// Reads a file that must not be open to everybody; with a warning if it is open to its group.
///
/// # Errors
/// [`KeyError::Unreadable`], [`KeyError::KeyInsteadOfPath`], [`KeyError::Exposed`].
pub fn read_secret(path: &Path) -> Result<(Zeroizing<Vec<u8>>, Option<String>), KeyError> {
    let name = path.display().to_string();
    if name.contains(PREFIX) || name.contains(ASCII) {
        return Err(KeyError::KeyInsteadOfPath);
    }
    let unreadable = |cause| KeyError::Unreadable { path: name.clone(), cause };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(KeyError::Exposed { path: name, mode });
    }
    // All at once, so that no half-grown buffer is left behind unwiped.
    let mut contents = Zeroizing::new(Vec::with_capacity(FILE_MAX + 1));
    file.take(FILE_MAX as u64 + 1).read_to_end(&mut contents).map_err(unreadable)?;
    if contents.len() > FILE_MAX {
        return Err(unreadable(io::Error::other(format!("longer than {FILE_MAX} bytes"))));
    }
    let warning = (mode & 0o070 != 0).then(|| format!("{name} is open to its group (mode {mode:04o}), better: chmod 600 {name}"));
    Ok((contents, warning))
}
