//! Where unsafe code, locks and conditional compilation may be.

use crate::exceptions::Exceptions;
use crate::tree::{File, sources};

/// The files that may hold unsafe code, each for one thing.
const UNSAFE: &[(&str, &str, &str)] = &[
    ("src/rlimits.rs", "unsafe", "getrlimit and setrlimit"),
    ("src/shard/affinity.rs", "unsafe", "sched_getaffinity and sched_setaffinity"),
    ("src/shard/buffers.rs", "unsafe", "the arena's mapping"),
    ("src/shard/inbox.rs", "unsafe", "eventfd, and another descriptor of it"),
    ("src/shard/lost.rs", "unsafe", "poll and TCP_INFO"),
    ("src/shard/ring/mod.rs", "unsafe", "memory that operations name"),
    ("src/shard/options.rs", "unsafe", "a socket option that socket2 does not know"),
    ("src/shard/pages.rs", "unsafe", "a mapping"),
    ("src/shard/ring/posted.rs", "unsafe", "the buffer ring's page"),
    ("src/shard/ring/queue.rs", "unsafe", "pushing entries"),
    ("src/shard/startup.rs", "unsafe", "pushing the probe's no-op"),
    ("src/shard/tokio_uring/ladder.rs", "unsafe", "pushing the probe's poll and cancel"),
];

/// What threads share with. None of it is on the data path.
const SHARING: &[&str] = &["Mutex", "RwLock", "Condvar", "OnceLock", "Atomic", "Arc", "mpsc"];

/// Where bytes pass.
const DATA_PATH: &[&str] =
    &["src/crypto/", "src/protocol/", "src/shard/", "src/outbox.rs", "src/link/", "src/relay/", "src/server/", "src/inter_server/"];

/// The places there that share all the same, what, and why.
const SHARED: &[(&str, &str, &str)] = &[
    ("src/protocol/v81/handshake/entry.rs", "Arc", "the keys, one set for all shards, looked at when a server logs in"),
    ("src/protocol/v81/handshake/keys.rs", "Arc", "the names of the keys: a tunnel learns its own when it begins"),
    ("src/protocol/v81/handshake/mod.rs", "Arc", "the same name"),
    ("src/crypto/fixed_iv.rs", "Arc", "one expanded key for all tunnels, counted when a tunnel comes or goes and never with its bytes"),
    ("src/protocol/login.rs", "Arc", "keys and methods of the configuration, one set for all shards"),
    ("src/link/mod.rs", "Arc", "the name of a tunnel's key, looked at when a server logs in"),
    ("src/link/v81.rs", "Arc", "the same name"),
    ("src/inter_server/mod.rs", "Arc", "the keys, when they are read again"),
    ("src/shard/inbox.rs", "Arc", "the inbox itself: hand-overs and orders, never bytes of a flow in passing"),
    ("src/shard/inbox.rs", "Mutex", "the inbox itself"),
    ("src/shard/board.rs", "Arc", "gauges of all shards, read when a client or a tunnel needs a place"),
    ("src/shard/board.rs", "Atomic", "the same"),
    ("src/shard/core/mod.rs", "mpsc", "questions to the control thread: names and the state line"),
    ("src/shard/plan.rs", "mpsc", "hands the same sender in"),
    ("src/shard/ring/posted.rs", "Atomic", "the tail of the buffer ring, which the kernel reads: io_uring's own interface"),
];

/// `cfg` attributes that are no tests module, and why.
const CONDITIONAL: &[(&str, &str, &str)] = &[
    ("src/lib.rs", "#![cfg_attr(not(test), warn(clippy::unwrap_used))]", "a lint"),
    ("src/crypto/aead.rs", "#[cfg(target_arch = \"x86_64\")]", "asks the processor for AES, which each architecture names its own way"),
    ("src/crypto/aead.rs", "#[cfg(target_arch = \"aarch64\")]", "the same"),
    ("src/crypto/aead.rs", "#[cfg(not(any(target_arch = \"x86_64\", target_arch = \"aarch64\")))]", "the same"),
    ("src/mutants.rs", "#[cfg(not(feature = \"mutants\"))]", "the switch of the faults made on purpose"),
    ("src/mutants.rs", "#[cfg(feature = \"mutants\")]", "the same"),
    ("src/shard/buffers.rs", "#[cfg(feature = \"mutants\")]", "one of these faults needs to reach into the arena"),
    ("src/shard/core/sockets.rs", "#[cfg(feature = \"mutants\")]", "the same fault is made here"),
    ("src/shard/mod.rs", "#[cfg(feature = \"engine-tokio-uring\")]", "the second engine, below the seam, may be left out"),
    ("src/shard/engine.rs", "#[cfg(feature = \"engine-tokio-uring\")]", "the same"),
    ("src/shard/engine.rs", "#[cfg(not(feature = \"engine-tokio-uring\"))]", "the same"),
    ("src/shard/engine.rs", "Self::TokioUring => cfg!(feature = \"engine-tokio-uring\"),", "and says whether it was"),
];

#[test]
fn unsafe_code_stays_in_its_fenced_files() {
    let mut fenced = Exceptions::new(UNSAFE);
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|file| has_word(&file.code(), "unsafe")) {
        if !fenced.cover(&file.path, "unsafe") {
            wrong.push(format!("{}: unsafe outside the fence", file.path));
        }
        if !file.text.contains("expect(unsafe_code, reason = ") {
            wrong.push(format!("{}: unsafe without #[expect(unsafe_code, reason = …)]", file.path));
        }
    }
    wrong.extend(fenced.needless());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_lock_and_no_atomic_is_on_the_data_path() {
    let mut exceptions = Exceptions::new(SHARED);
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|file| DATA_PATH.iter().any(|place| file.path.starts_with(place))) {
        let code = file.production_code();
        let found = |what: &str| words(&code).any(|word| word == what || what == "Atomic" && word.starts_with(what));
        for what in SHARING.iter().filter(|what| found(what)) {
            if !exceptions.cover(&file.path, what) {
                wrong.push(format!("{}: {what}", file.path));
            }
        }
    }
    wrong.extend(exceptions.needless());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What the simulation runs is what production runs: nothing is compiled differently for it.
#[test]
fn nothing_but_tests_and_the_faults_made_on_purpose_is_compiled_conditionally() {
    let mut exceptions = Exceptions::new(CONDITIONAL);
    let mut wrong = Vec::new();
    for file in sources() {
        for (line, next) in conditional_lines(&file) {
            let is_tests = line == "#[cfg(test)]" && (next == "mod tests;" || next == "mod tests {");
            if !is_tests && !exceptions.cover(&file.path, &line) {
                wrong.push(format!("{}: {line}", file.path));
            }
        }
    }
    wrong.extend(exceptions.needless());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The lines of a file, as written, in whose code `cfg` stands, each with the next.
fn conditional_lines(file: &File) -> Vec<(String, String)> {
    let written: Vec<&str> = file.text.lines().map(str::trim).collect();
    let code = file.code();
    let lines =
        code.lines().enumerate().filter(|(_, line)| ["cfg", "cfg_attr", "debug_assertions"].iter().any(|word| has_word(line, word)));
    lines.map(|(at, _)| (written[at].to_owned(), written.get(at + 1).copied().unwrap_or_default().to_owned())).collect()
}

fn has_word(code: &str, wanted: &str) -> bool {
    words(code).any(|word| word == wanted)
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_'))
}
