//! Keys of 0x81: `zhwkprox-0x81:` and the base64 of 32 random bytes, one for each exit, with the exit's name. They are in files that are named
//! one by one, or in a folder, from which one can be taken away while the process runs.
//!
//! What always holds between calls: the keys of a [`KeyRing`] are those that its files held when they were last read without a fault.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{KeyError, KeyLine, decode, random, read_secret, trim_line, v80};
use crate::protocol::v81::handshake::{Keys, PSK_BYTES, Psk};

/// What a key starts with.
pub(super) const PREFIX: &str = "zhwkprox-0x81:";
/// What the name of a key's file ends in, in a folder.
const SUFFIX: &str = "key";
/// Longest name of a key: it stands in log lines.
const NAME_MAX: usize = 64;

/// A new random key, as the line of its file.
///
/// # Errors
/// The system's random source failed.
pub fn generate() -> io::Result<KeyLine> {
    let mut key = Zeroizing::new([0; PSK_BYTES]);
    random(&mut *key)?;
    Ok(KeyLine::new(PREFIX, &*key))
}

/// A new random key that no file holds.
///
/// # Errors
/// The system's random source failed.
pub fn throw_away() -> io::Result<Psk> {
    let mut key = Zeroizing::new([0; PSK_BYTES]);
    random(&mut *key)?;
    Ok(Psk::new(&key))
}

/// Reads a key, and says what is wrong with its file but not fatal.
///
/// # Errors
/// As [`KeyError`] lists.
pub fn load(path: &Path) -> Result<(Psk, Option<String>), KeyError> {
    let name = path.display().to_string();
    let (contents, warning) = read_secret(path)?;
    let line = trim_line(&contents);
    if [v80::PREFIX, v80::ASCII].iter().any(|mark| line.starts_with(mark.as_bytes())) {
        let cure = "zhwkprox keygen --out FILE, or --protocol 0x80";
        return Err(KeyError::Protocol { path: name, got: "0x80", expected: "0x81", cure });
    }
    let form = || format!("`{PREFIX}` and the base64 of {PSK_BYTES} bytes, as zhwkprox keygen writes it");
    let key = decode(line, PREFIX).ok_or_else(|| KeyError::Form { path: name.clone(), expected: form() })?;
    let key: &[u8; PSK_BYTES] = key.as_slice().try_into().map_err(|_| KeyError::Length {
        path: name,
        got: key.len(),
        expected: PSK_BYTES,
        cipher: "protocol 0x81".to_owned(),
    })?;
    Ok((Psk::new(key), warning))
}

/// A file with a key, and the name of the exit that has it; or a folder of such files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyFile {
    /// What the exit is called.
    pub name: Arc<str>,
    /// Where its key is.
    pub path: PathBuf,
    /// The path gave the name, so that it may be a folder: then each `*.key` in it is the key of an exit.
    pub may_be_folder: bool,
}

impl KeyFile {
    /// `FILE`, named by its stem, or `NAME=FILE`, or a folder. The path is as written; relative ones are the caller's.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("FILE or NAME=FILE, the name of 1 to {NAME_MAX} letters, digits and . _ -, or FOLDER");
        if let Some((name, path)) = text.split_once('=').filter(|(name, _)| is_name(name)) {
            return if path.is_empty() { Err(expected()) } else { Ok(Self { name: name.into(), path: path.into(), may_be_folder: false }) };
        }
        let path = PathBuf::from(text);
        match path.file_stem().and_then(|stem| stem.to_str()) {
            Some(stem) if is_name(stem) => Ok(Self { name: stem.into(), path, may_be_folder: true }),
            _ => Err(expected()),
        }
    }

    /// The one key of a server, whose name nobody asks for.
    #[must_use]
    pub fn only(path: PathBuf) -> Self {
        Self { name: "key".into(), path, may_be_folder: false }
    }

    /// The files that are meant: itself, or what is in its folder now, in the order of their names.
    fn expand(&self) -> Result<Vec<Self>, KeyError> {
        if !self.may_be_folder || !self.path.is_dir() {
            return Ok(vec![self.clone()]);
        }
        let folder = || self.path.display().to_string();
        let unreadable = |cause| KeyError::Unreadable { path: folder(), cause };
        let mode = fs::metadata(&self.path).map_err(unreadable)?.mode() & 0o7777;
        if mode & 0o002 != 0 {
            return Err(KeyError::OpenFolder { path: folder(), mode });
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            // What editors and copies leave beside a key while they write it is hidden, or ends otherwise.
            let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if is_hidden || path.extension().is_none_or(|extension| extension != SUFFIX) {
                continue;
            }
            let name = path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| is_name(stem));
            let Some(name) = name.map(Arc::from) else {
                return Err(KeyError::Name {
                    path: path.display().to_string(),
                    expected: format!("1 to {NAME_MAX} letters, digits and . _ -"),
                });
            };
            files.push(Self { name, path, may_be_folder: false });
        }
        if files.is_empty() {
            // A disk that is not mounted looks like this too.
            return Err(KeyError::EmptyFolder { path: folder() });
        }
        files.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(files)
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Key files and folders, and the keys that they held when they were last read.
#[derive(Clone, Debug)]
pub struct KeyRing {
    files: Vec<KeyFile>,
    keys: Arc<Keys>,
}

impl KeyRing {
    /// Reads the files; with what is wrong with them but not fatal.
    ///
    /// # Errors
    /// One cannot be used, or they cannot be used together.
    pub fn read(files: Vec<KeyFile>) -> Result<(Self, Vec<String>), KeyError> {
        let mut warnings = Vec::new();
        let mut keys = Vec::with_capacity(files.len());
        for named in &files {
            for file in named.expand()? {
                let (key, warning) = load(&file.path)?;
                warnings.extend(warning);
                keys.push((file.name, key));
            }
        }
        let keys = Arc::new(Keys::new(keys)?);
        Ok((Self { files, keys }, warnings))
    }

    /// Keys that no file holds.
    #[must_use]
    pub fn without_files(keys: Keys) -> Self {
        Self { files: Vec::new(), keys: Arc::new(keys) }
    }

    /// The keys.
    #[must_use]
    pub const fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The files and folders.
    #[must_use]
    pub fn files(&self) -> &[KeyFile] {
        &self.files
    }

    /// How many keys there are now, and what is different from `before`: `2 (added office2, removed office)`.
    #[must_use]
    pub fn compared_to(&self, before: &Self) -> String {
        let (now, then) = (&self.keys, &before.keys);
        let mut changes = Vec::new();
        for (name, psk) in now.iter() {
            match (then.has_name(name), then.holds(name, psk)) {
                (false, _) => changes.push(format!("added {name}")),
                (true, false) => changes.push(format!("changed {name}")),
                (true, true) => {}
            }
        }
        changes.extend(then.iter().filter(|(name, _)| !now.has_name(name)).map(|(name, _)| format!("removed {name}")));
        let mut text = now.iter().count().to_string();
        // Writing to a text cannot fail.
        let _ = write!(text, " ({})", if changes.is_empty() { "no change".to_owned() } else { changes.join(", ") });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_are_named_by_their_stem_or_by_what_stands_before_the_equals_sign() {
        let file = |name: &str, path: &str| Ok(KeyFile { name: name.into(), path: path.into(), may_be_folder: true });
        let named = |name: &str, path: &str| Ok(KeyFile { name: name.into(), path: path.into(), may_be_folder: false });
        assert_eq!(KeyFile::parse("/etc/zhwkprox/office.key"), file("office", "/etc/zhwkprox/office.key"));
        assert_eq!(KeyFile::parse("office"), file("office", "office"));
        assert_eq!(KeyFile::parse("/etc/zhwkprox/keys/"), file("keys", "/etc/zhwkprox/keys/"));
        assert_eq!(KeyFile::parse("office-2=/etc/a b.key"), named("office-2", "/etc/a b.key"));
        assert_eq!(KeyFile::parse("a=b=c"), named("a", "b=c"));
        assert_eq!(KeyFile::parse("/etc/x=y/office.key"), file("office", "/etc/x=y/office.key"), "a path, not a name");
        let long = format!("{}=x", "n".repeat(65));
        for wrong in ["", "office=", "/etc/the office.key", "/", "/etc/b\u{fc}ro.key", &long] {
            assert!(KeyFile::parse(wrong).is_err(), "{wrong}");
        }
    }
}
