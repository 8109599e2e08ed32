//! README and docs speak of what exists, and the README begins with the two commands that CI runs.

use std::fs;

use crate::tree::{File, pages, read, root, sources};

/// The pages there have to be.
const PAGES: &[&str] = &["ARCHITECTURE", "PROTOCOL", "DECISIONS", "SPECIFICATION", "SECURITY", "HACKING", "CHANGELOG"];

/// What a path of this project begins with.
const FOLDERS: &[&str] = &["src/", "tests/", "docs/", "fuzz/", "loadgen/", "benches/", "tuning/", ".ci/", ".cargo/"];

#[test]
fn readme_begins_with_the_two_commands_that_ci_runs() {
    let readme = read("README.md").text;
    let blocks: Vec<&str> = readme.split("\n```").skip(1).step_by(2).take(2).collect();
    assert_eq!(blocks, ["sh\ncargo run --release -- demo", "sh\ncargo test --workspace"]);
}

#[test]
fn every_page_is_there_and_readme_leads_to_it() {
    let readme = read("README.md").text;
    for page in PAGES {
        let path = format!("docs/{page}.md");
        assert!(root().join(&path).is_file(), "{path} is missing");
        assert!(readme.contains(&format!("]({path})")), "README.md does not link to {path}");
    }
}

#[test]
fn paths_named_in_docs_exist() {
    let mut wrong = Vec::new();
    let mut found = 0;
    for page in pages() {
        for path in paths(&page) {
            found += 1;
            if !exists(&path) {
                wrong.push(format!("{}: {path} does not exist", page.path));
            }
        }
        for target in links(&page) {
            found += 1;
            let folder = page.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            if !root().join(folder).join(&target).exists() {
                wrong.push(format!("{}: link to {target}, which does not exist", page.path));
            }
        }
    }
    assert!(found > 50, "only {found} paths found in the docs: looked in the wrong way");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The folder list is the architecture diagram: each module under src has its line in the README.
#[test]
fn readme_names_every_module() {
    let readme = read("README.md").text;
    let mut missing = Vec::new();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().with_extension("rs").is_file() && entry.path().is_dir() {
            // The inner modules of a file that has its line.
            continue;
        }
        let name = if entry.path().is_dir() { format!("{name}/") } else { name };
        if name != "lib.rs" && !readme.contains(&format!("`src/{name}`")) {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "README.md has no line for {missing:?}");
}

/// Flags named in the docs are flags that the program has.
#[test]
fn flags_named_in_docs_exist() {
    let cli = read("src/cli.rs").text;
    let loadgen = read("loadgen/src/cli.rs").text;
    let ours = |flag: &str| cli.contains(&format!("\"{flag}\"")) || loadgen.contains(&format!(" {}:", flag.replace('-', "_")));
    let known = |flag: &str| ours(flag) || OTHERS_FLAGS.contains(&flag);
    let mut wrong = Vec::new();
    for page in pages() {
        for (at, _) in page.text.match_indices("--") {
            let before = page.text[..at].chars().next_back();
            let flag: String = page.text[at + 2..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            if matches!(before, Some('`' | ' ' | '(' | '[')) && flag.len() > 1 && !flag.contains("--") && !known(&flag) {
                wrong.push(format!("{}: --{flag}", page.path));
            }
        }
    }
    assert!(wrong.is_empty(), "flags that nobody has:\n{}", wrong.join("\n"));
}

/// Flags of cargo, curl and others that the docs show.
const OTHERS_FLAGS: &[&str] = &[
    "release",
    "workspace",
    "features",
    "test",
    "help",
    "locked",
    "all-targets",
    "no-deps",
    "nocapture",
    "exact",
    "version",
    "check",
    "bench",
    "benches",
];

/// Limits quoted in the docs as `NAME` are those of the code.
#[test]
fn limits_named_in_docs_exist() {
    let limits = read("src/limits.rs").text;
    let code: String = sources().iter().map(File::code).collect();
    let mut wrong = Vec::new();
    for page in pages() {
        for word in backticked(&page) {
            let is_constant =
                word.len() > 4 && word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            let is_known =
                limits.contains(&format!("const {word}:")) || code.contains(&word) || NOT_OURS.iter().any(|other| word.starts_with(other));
            if is_constant && !is_known {
                wrong.push(format!("{}: {word}", page.path));
            }
        }
    }
    assert!(wrong.is_empty(), "constants that nobody has:\n{}", wrong.join("\n"));
}

/// Constants of the kernel and variables of the environment.
const NOT_OURS: &[&str] = &[
    "IORING_",
    "IOSQE_",
    "TCP_",
    "SO_",
    "MSG_",
    "IP_",
    "RLIMIT_",
    "SHUT_",
    "ZHWKPROX_",
    "DEFER_TASKRUN",
    "SINGLE_ISSUER",
    "POLL_FIRST",
    "COOP_TASKRUN",
];

fn paths(page: &File) -> Vec<String> {
    let words = backticked(page).into_iter().map(|word| word.split("::").next().unwrap().to_owned());
    words.filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)) && !word.contains(' ')).collect()
}

/// A path, or several at once: `src/{link,relay}.rs`, `tests/sim/*`.
fn exists(path: &str) -> bool {
    if let Some((before, rest)) = path.split_once('{')
        && let Some((list, after)) = rest.split_once('}')
    {
        return list.split(',').all(|part| exists(&format!("{before}{part}{after}")));
    }
    root().join(path.trim_end_matches('*')).exists()
}

fn backticked(page: &File) -> Vec<String> {
    let mut words = Vec::new();
    let mut in_block = false;
    for line in page.text.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            words.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    words
}

/// Where links lead inside the project.
fn links(page: &File) -> Vec<String> {
    let targets = page.text.match_indices("](").map(|(at, _)| page.text[at + 2..].split(')').next().unwrap());
    let targets = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    targets.map(|target| target.split('#').next().unwrap().to_owned()).collect()
}
