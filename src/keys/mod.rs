//! Key files: making one, and reading one back. Each protocol has its own form of key ([`v80`], [`v81`]); who may read a file, how one is
//! written and what is said about it is the same for both.
//!
//! What always holds between calls: key bytes are wiped when dropped, and no message of this module contains what a file held.

pub mod v80;
pub mod v81;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::protocol::v81::handshake::{KeysError, PSK_BYTES};

/// What each kind of key starts with, in files and, by mistake, elsewhere.
pub const MARKS: [&str; 3] = [v81::PREFIX, v80::PREFIX, v80::ASCII];
/// No key file is longer; a file that is was named by mistake.
const FILE_MAX: usize = 4096;
/// Read and write for the owner, nothing for anybody else.
const OWNER_ONLY: u32 = 0o600;

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
    /// Anybody on the machine can put a key into it, and be an exit.
    #[error("{path} can be written by everybody (mode {mode:04o}), expected mode 0700. cure: chmod 700 {path}")]
    OpenFolder {
        /// Which folder.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// A folder without a key.
    #[error("{path} is a folder without keys: expected at least one file *.key (to shut the last exit out, stop the inter-server)")]
    EmptyFolder {
        /// Which folder.
        path: String,
    },
    /// A file in a folder whose name cannot be that of an exit.
    #[error("{path} does not have the name of an exit: expected {expected}, and .key")]
    Name {
        /// Which file.
        path: String,
        /// What a name is.
        expected: String,
    },
    /// Not a key file.
    #[error("{path} does not hold a key: expected {expected}")]
    Form {
        /// Which file.
        path: String,
        /// What a key of this protocol looks like.
        expected: String,
    },
    /// A key of the other protocol.
    #[error("{path} holds a key for protocol {got}, expected one for protocol {expected}. cure: {cure}")]
    Protocol {
        /// Which file.
        path: String,
        /// The protocol it is for.
        got: &'static str,
        /// The protocol that was chosen.
        expected: &'static str,
        /// What to type.
        cure: &'static str,
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
    /// Each may be a key, but together they are not.
    #[error(transparent)]
    Together(#[from] KeysError),
}

/// The line of a new key file. Wiped when dropped, never printed but where it was asked for.
pub struct KeyLine(Zeroizing<String>);

impl std::fmt::Debug for KeyLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyLine(..)")
    }
}

impl KeyLine {
    fn new(prefix: &str, key: &[u8]) -> Self {
        // Large enough from the start, so that no half-grown text is left behind unwiped.
        let mut line = Zeroizing::new(String::with_capacity(prefix.len() + key.len() * 2 + 6));
        line.push_str(prefix);
        STANDARD.encode_string(key, &mut line);
        line.push('\n');
        Self(line)
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
        out.write_all(self.0.as_bytes())
    }

    fn create(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(path)?;
        file.write_all(self.0.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
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
    if looks_like_a_key(&name) {
        return Err(KeyError::KeyInsteadOfPath);
    }
    let unreadable = |cause| KeyError::Unreadable { path: name.clone(), cause };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
    let mode = metadata.mode() & 0o7777;
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

/// Whether somebody typed a key where the path of its file belongs: with its mark, or bare.
#[must_use]
pub fn looks_like_a_key(text: &str) -> bool {
    let bare = || STANDARD.decode(text).map(Zeroizing::new).is_ok_and(|bytes| bytes.len() == PSK_BYTES);
    MARKS.iter().any(|mark| text.contains(mark)) || bare()
}

/// The line without its end.
fn trim_line(contents: &[u8]) -> &[u8] {
    let line = contents.strip_suffix(b"\n").unwrap_or(contents);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// What `prefix` and base64 hold; `None` without the prefix, or where the rest is no base64.
fn decode(line: &[u8], prefix: &str) -> Option<Zeroizing<Vec<u8>>> {
    let encoded = line.strip_prefix(prefix.as_bytes())?;
    STANDARD.decode(encoded.trim_ascii()).ok().map(Zeroizing::new)
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|cause| io::Error::other(format!("no random bytes: {cause}")))
}
