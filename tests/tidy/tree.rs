//! The files of the project as the rules see them: their text, and for Rust the code without comments and literals.

use std::fs;
use std::path::{Path, PathBuf};

/// A file, by its path from the root of the project.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    /// What the compiler sees of a Rust file, lines kept: comments, strings and characters are blanked.
    pub(crate) fn code(&self) -> String {
        code_of(&self.text)
    }

    /// The same without a `mod tests` that ends the file.
    pub(crate) fn production_code(&self) -> String {
        let code = self.code();
        code.find("#[cfg(test)]\nmod tests {").map_or_else(|| code.clone(), |at| code[..at].to_owned())
    }
}

/// The project's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One file; it has to be there.
pub(crate) fn read(path: &str) -> File {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    File { path: path.to_owned(), text }
}

/// The files under a folder whose names end so, in order of their paths.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<File> {
    let mut paths = Vec::new();
    collect(&root().join(folder), &mut paths);
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    let mut paths: Vec<_> = paths.iter().map(relative).filter(|path| path.ends_with(ending)).collect();
    paths.sort_unstable();
    paths.iter().map(|path| read(path)).collect()
}

/// The Rust files of the program.
pub(crate) fn sources() -> Vec<File> {
    let sources = files("src", ".rs");
    assert!(sources.len() > 40, "only {} files under src: looked in the wrong place", sources.len());
    sources
}

/// README and the pages under docs.
pub(crate) fn pages() -> Vec<File> {
    let mut pages = files("docs", ".md");
    pages.push(read("README.md"));
    pages
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if !path.is_dir() {
            paths.push(path);
        } else if !["target", ".git", "corpus", "artifacts"].iter().any(|skipped| name == *skipped) {
            collect(&path, paths);
        }
    }
}

/// Blanks comments and literals. Good enough for Rust as rustfmt leaves it; nested block comments are not in use here.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let skipped = literal_or_comment(rest, code.chars().next_back());
        if skipped == 0 {
            let next = rest.chars().next().unwrap();
            code.push(next);
            at += next.len_utf8();
        } else {
            code.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            at += skipped;
        }
    }
    // What blanking leaves at the ends of lines would hide one line behind another.
    code.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// How long the comment or literal is with which `rest` begins, 0 for none.
fn literal_or_comment(rest: &str, before: Option<char>) -> usize {
    let is_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return rest.find("*/").map_or(rest.len(), |end| end + 2);
    }
    let opening = rest.strip_prefix('b').unwrap_or(rest);
    let prefix = rest.len() - opening.len();
    if let Some(raw) = opening.strip_prefix('r').filter(|_| !is_word) {
        let hashes = raw.bytes().take_while(|byte| *byte == b'#').count();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = prefix + 1 + hashes + 1;
            return rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len());
        }
    }
    if opening.starts_with('"') && (prefix == 0 || !is_word) {
        return prefix + 1 + end_of_string(&opening[1..]);
    }
    // A character, and not a lifetime: it ends with a quote.
    let mut characters = rest.char_indices().skip(1);
    match (rest.starts_with('\''), characters.next(), characters.next()) {
        (true, Some((_, '\\')), _) => rest[3..].find('\'').map_or(0, |end| 3 + end + 1),
        (true, Some(_), Some((end, '\''))) => end + 1,
        _ => 0,
    }
}

fn end_of_string(body: &str) -> usize {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    body.len()
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = "let a = \"uns\\\"afe\"; // Mutex\nlet b = r#\"Arc \" \"#; let c: &'static str = x('\"', '\\'', b'\\\\', 'y');\n/* mpsc */ bar\"Z\"";
    let code = code_of(text);
    for hidden in ["uns", "Mutex", "Arc", "mpsc", "y", "Z"] {
        assert!(!code.contains(hidden), "{hidden} in {code}");
    }
    assert!(code.contains("&'static str = x("), "{code}");
    assert_eq!(code.lines().count(), 3);
}
