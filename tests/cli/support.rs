//! A folder, a binary, and what came of running it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A command line of the real binary, without a terminal.
pub(crate) fn zhwkprox(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zhwkprox"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub(crate) fn output(arguments: &[&str]) -> Output {
    zhwkprox(arguments).output().unwrap()
}

/// What was said on standard error.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Wrong use: status 2, nothing on standard output, and one line that has all of `words`.
#[track_caller]
pub(crate) fn refused(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
    one_line(&said, words);
}

#[track_caller]
pub(crate) fn one_line(said: &str, words: &[&str]) {
    assert!(said.starts_with("zhwkprox: "), "{said}");
    assert_eq!(said.matches('\n').count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
}

/// Fine with `--check-config`.
#[track_caller]
pub(crate) fn accepted(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    assert!(output.stdout.ends_with(b"configuration ok\n"));
    assert_eq!(said(output), "");
}

/// The bytes of the key that [`Folder::new`] makes.
pub(crate) const KEY: &str = "sixteen byte key";

/// A folder with a key for a 16-byte cipher.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("key", &format!("ascii:{KEY}\n"), 0o600);
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file with exactly this mode, whatever the umask.
    pub(crate) fn write(&self, name: &str, contents: &str, mode: u32) -> String {
        let path = self.path(name);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path).unwrap();
        file.write_all(contents.as_bytes()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self.text(name)
    }

    /// `zhwkprox server` with what it needs, and these.
    pub(crate) fn server(&self, more: &[&str]) -> Output {
        let key = self.text("key");
        let base = ["server", "--check-config", "--protocol", "0x80", "--key-file", &key, "--dial", "192.0.2.1:1992"];
        output(&[&base, more].concat())
    }

    /// `zhwkprox inter-server` with what it needs, and these.
    pub(crate) fn inter_server(&self, more: &[&str]) -> Output {
        let key = self.text("key");
        let base = ["inter-server", "--check-config", "--protocol", "0x80", "--key-file", &key];
        output(&[&base, more].concat())
    }
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

impl Folder {
    /// `zhwkprox server` with another key.
    pub(crate) fn server_with_key(&self, key: &str, cipher: &str) -> Output {
        output(&["server", "--check-config", "--protocol", "0x80", "--key-file", key, "--dial", "192.0.2.1:1992", "--cipher", cipher])
    }
}

/// The line of a 0x81 key file; another key for each number.
pub(crate) fn key81(number: u8) -> String {
    use base64::Engine as _;
    format!("zhwkprox-0x81:{}\n", base64::engine::general_purpose::STANDARD.encode([number; 32]))
}

impl Folder {
    /// Writes a 0x81 key file, another key for each number.
    pub(crate) fn write81(&self, name: &str, number: u8) -> String {
        self.write(name, &key81(number), 0o600)
    }

    /// `zhwkprox server` on 0x81 with what it needs, and these.
    pub(crate) fn server81(&self, more: &[&str]) -> Output {
        let key = self.write81("key81", 1);
        output(&[&["server", "--check-config", "--key-file", &key, "--dial", "192.0.2.1:1992"], more].concat())
    }

    /// `zhwkprox inter-server` on 0x81 with all it needs but keys, and these.
    pub(crate) fn inter_server81(&self, more: &[&str]) -> Output {
        let base = ["inter-server", "--check-config", "--listen", "127.0.0.1:1992", "--socks", "127.0.0.1:1080"];
        output(&[&base, more].concat())
    }
}
