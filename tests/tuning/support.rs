//! The scripts, a tree of files that stands for a machine, and what came of running the one on the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A script of `tuning/`, without a terminal.
pub(crate) fn script(name: &str) -> Command {
    let mut command = Command::new(tuning().join(name));
    command.stdin(Stdio::null());
    command
}

pub(crate) fn tuning() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning")
}

/// What a script said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn said(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { status: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

impl Said {
    /// It ended so, and said nothing on standard error.
    #[track_caller]
    pub(crate) fn ends(self, status: i32) -> Self {
        assert_eq!((self.status, self.err.as_str()), (status, ""), "{}", self.out);
        self
    }

    /// One line begins with `state` and has all of `words`.
    #[track_caller]
    pub(crate) fn says(&self, state: &str, words: &[&str]) -> &Self {
        let found = self.out.lines().any(|line| line.starts_with(state) && words.iter().all(|word| line.contains(word)));
        assert!(found, "no line `{state}` with {words:?} in\n{}", self.out);
        self
    }

    pub(crate) fn lines(&self, state: &str) -> usize {
        self.out.lines().filter(|line| line.starts_with(state)).count()
    }
}

/// A machine made of files.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    /// As little as every machine has: four cores and a boot.
    pub(crate) fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.write("sys/devices/system/cpu/online", "0-3\n");
        tree.boot("first");
        tree
    }

    pub(crate) fn boot(&self, id: &str) {
        self.write("proc/sys/kernel/random/boot_id", &format!("{id}\n"));
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, contents: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    #[track_caller]
    pub(crate) fn has(&self, path: &str, contents: &str) {
        assert_eq!(fs::read_to_string(self.path(path)).unwrap(), contents, "{path}");
    }

    pub(crate) fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = script(name);
        command.arg("--root").arg(self.0.path()).args(arguments);
        command
    }

    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Said {
        said(&mut self.command(name, arguments))
    }

    /// Every file with its contents, but what the scripts keep for themselves.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut files = contents(self.0.path());
        files.retain(|path, _| !path.starts_with(self.path("var")));
        files
    }
}

/// The files under a folder, links not followed, with what reading them gives: their text or the error.
pub(crate) fn contents(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.append(&mut contents(&entry.path()));
        } else {
            let text = fs::read(entry.path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            files.insert(entry.path(), text.unwrap_or_else(|error| format!("{:?}", error.kind())));
        }
    }
    files
}

/// A folder of settings with one section, `some`, of these blocks.
pub(crate) fn settings(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("some.conf"), text).unwrap();
    folder
}

/// Whether a program is here. Without it a test is skipped, loudly, and fails where CI is set.
#[track_caller]
pub(crate) fn is_here(program: &str, package: &str) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "no {program}: apt-get install {package}");
    eprintln!("SKIPPED: no {program}: apt-get install {package}");
    false
}
