//! `docs/SPECIFICATION.md` lists every hard case with its test, and every test it names exists.

use std::collections::BTreeSet;

use crate::tree::{files, read};

/// The hard cases by their chapters: H-S5-01 to H-S5-16 and so on.
const CASES: &[(&str, usize)] = &[("S5", 16), ("DIAL", 10), ("END", 15), ("MUX", 17), ("LIVE", 15), ("RES", 10), ("RING", 12)];

#[test]
fn every_hard_case_has_a_test_or_a_reason() {
    let specification = read("docs/SPECIFICATION.md").text;
    let mut wrong = Vec::new();
    let mut listed = BTreeSet::new();
    for line in specification.lines().filter(|line| line.starts_with("| H-")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [id, words, answer] = cells[..] else {
            wrong.push(format!("not three cells: {line}"));
            continue;
        };
        if !listed.insert(id.to_owned()) {
            wrong.push(format!("{id} stands twice"));
        }
        let has_reason = ["n/a: ", "waits: ", "partly: "].iter().any(|start| answer.split("; ").any(|part| part.starts_with(start)));
        if words.is_empty() || tests_named(answer).is_empty() && !has_reason {
            wrong.push(format!("{id}: neither a test nor `n/a: …` nor `waits: …`"));
        }
    }
    let expected: BTreeSet<String> =
        CASES.iter().flat_map(|(chapter, count)| (1..=*count).map(move |n| format!("H-{chapter}-{n:02}"))).collect();
    wrong.extend(expected.difference(&listed).map(|id| format!("{id} is missing")));
    wrong.extend(listed.difference(&expected).map(|id| format!("{id} is no hard case")));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn tests_named_in_the_specification_exist() {
    let specification = read("docs/SPECIFICATION.md").text;
    let sources: Vec<_> = ["src", "tests", "fuzz"].iter().flat_map(|folder| files(folder, ".rs")).collect();
    let named = tests_named(&specification);
    let mut wrong = Vec::new();
    for (path, name) in &named {
        let Some(file) = sources.iter().find(|file| file.path == *path) else {
            wrong.push(format!("{path} does not exist ({name})"));
            continue;
        };
        let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
        let begins = format!("fn {name}(");
        let Some(at) = lines.iter().position(|line| line.trim_start_matches("async ").starts_with(&begins)) else {
            wrong.push(format!("{path} has no {name}"));
            continue;
        };
        let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with('#') || line.starts_with("//"));
        let attributes: Vec<_> = attributes.collect();
        if !attributes.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test")) {
            wrong.push(format!("{path}: {name} is no test"));
        }
        if attributes.iter().any(|line| line.starts_with("#[ignore")) {
            wrong.push(format!("{path}: {name} is ignored"));
        }
    }
    assert!(named.len() > 30, "only {} tests are named: looked in the wrong way", named.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// `path/of/file.rs::name_of_test` in backticks.
fn tests_named(text: &str) -> Vec<(String, String)> {
    let words = text.split('`').filter_map(|word| word.split_once(".rs::"));
    let words = words.filter(|(path, name)| !path.contains(char::is_whitespace) && !name.contains(char::is_whitespace));
    words.map(|(path, name)| (format!("{path}.rs"), name.to_owned())).collect()
}
