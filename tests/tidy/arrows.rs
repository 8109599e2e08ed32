//! Which module may use which. The table is the architecture: a module uses only what stands above it.

use std::collections::BTreeSet;

use crate::exceptions::Exceptions;
use crate::tree::{File, sources};

/// Every module under `src`, in dependency order, and which others it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("mutants", &[]),
    ("rlimits", &[]),
    ("crypto", &[]),
    ("protocol", &["crypto", "limits"]),
    ("listen", &[]),
    ("shard", &["limits", "listen", "mutants", "protocol", "rlimits"]),
    ("dial", &[]),
    ("outbox", &["limits", "mutants", "shard"]),
    ("link", &["crypto", "limits", "mutants", "outbox", "protocol", "shard"]),
    ("relay", &["limits", "link", "mutants", "outbox", "protocol", "shard"]),
    ("making", &["dial", "limits", "mutants", "outbox", "protocol", "relay", "shard"]),
    ("server", &["dial", "limits", "link", "listen", "making", "outbox", "protocol", "relay", "shard"]),
    ("inter_server", &["dial", "limits", "link", "listen", "making", "mutants", "outbox", "protocol", "relay", "shard"]),
    ("cli", &[]),
    ("keys", &["protocol"]),
    ("telemetry", &["limits"]),
    ("config", &["cli", "crypto", "dial", "inter_server", "keys", "limits", "listen", "protocol", "server", "shard", "telemetry"]),
    ("exit", &["config", "keys"]),
    ("control", &["exit", "keys", "limits", "protocol", "shard"]),
    ("run", &["config", "control", "exit", "inter_server", "limits", "listen", "protocol", "rlimits", "server", "shard", "telemetry"]),
    (
        "demo",
        &[
            "config",
            "control",
            "crypto",
            "dial",
            "exit",
            "inter_server",
            "keys",
            "limits",
            "listen",
            "protocol",
            "rlimits",
            "run",
            "server",
            "shard",
            "telemetry",
        ],
    ),
    ("check", &["config", "crypto", "exit", "keys", "limits", "protocol"]),
    ("doctor", &["crypto", "exit", "limits", "rlimits", "shard"]),
    ("main", &["check", "cli", "config", "demo", "doctor", "exit", "rlimits", "run"]),
];

/// Arrows narrower than a module: only this file may use that.
const ONLY: &[(&str, &str, &str)] = &[
    ("shard", "protocol", "src/shard/inbox.rs"), // A handed-over tunnel carries the proof of its handshake.
    ("shard", "listen", "src/shard/plan.rs"),    // A plan carries the listening sockets, each with what it is for.
    ("shard", "rlimits", "src/shard/startup.rs"), // The ladder explains a memlock that is too small.
];

/// Uses against the arrows, with the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

#[test]
fn modules_use_only_what_stands_above_them() {
    let mut exceptions = Exceptions::new(EXCEPTIONS);
    let mut wrong = Vec::new();
    for file in sources() {
        let module = module_of(&file);
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module {module} is not in the table of arrows", file.path));
            continue;
        };
        for used in uses(&file) {
            let narrow = ONLY.iter().find(|(from, to, _)| *from == module && *to == used);
            let is_allowed = used == module || allowed.contains(&used.as_str()) && narrow.is_none_or(|(.., path)| *path == file.path);
            if !is_allowed && !exceptions.cover(&file.path, &used) {
                wrong.push(format!("{}: {module} may not use {used}", file.path));
            }
        }
    }
    wrong.extend(exceptions.needless());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_table_of_arrows_has_no_circle() {
    for (index, (module, allowed)) in ARROWS.iter().enumerate() {
        for used in *allowed {
            assert!(ARROWS[..index].iter().any(|(above, _)| above == used), "{module} may use {used}, which does not stand above it");
        }
    }
}

/// `src/shard/ring/mod.rs` → `shard`, `src/link.rs` → `link`; `lib` only names the others.
fn module_of(file: &File) -> String {
    let path = file.path.strip_prefix("src/").unwrap();
    let name = path.split('/').next().unwrap().trim_end_matches(".rs");
    if name == "lib" { "main".to_owned() } else { name.to_owned() }
}

/// The modules a file names after `crate::`, tests not counted, and after the crate's own name in the binary.
fn uses(file: &File) -> BTreeSet<String> {
    let code = file.production_code();
    let mut used = BTreeSet::new();
    for start in ["crate::", "zhwkprox::"] {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            if let Some(list) = rest.strip_prefix('{') {
                let list = &list[..list.find("};").unwrap_or(list.len())];
                used.extend(top_level(list).iter().map(|item| first_word(item)));
            } else {
                used.insert(first_word(rest));
            }
        }
    }
    used.remove("");
    used
}

/// The items of a list in braces, those of inner lists not counted.
fn top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0_usize, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[start..]);
    items
}

fn first_word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn uses_are_found_in_all_their_forms() {
    let text = "use crate::limits;\nuse crate::{server, inter_server::{self, Settings}};\nfn f() { crate::link::x() } // crate::cli\n\
                #[cfg(test)]\nmod tests {\n use crate::demo;\n}";
    let file = File { path: "src/x.rs".to_owned(), text: text.to_owned() };
    let used: Vec<_> = uses(&file).into_iter().collect();
    assert_eq!(used, ["inter_server", "limits", "link", "server"]);
}
