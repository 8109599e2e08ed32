//! The settings as data: each says why, what one sees without it, what it brings and where it is from, and the README names every section.

use std::collections::BTreeMap;
use std::fs;

use crate::support::tuning;

/// A block of a settings file: key to text.
pub(crate) type Setting = BTreeMap<String, String>;

/// Every setting with its section.
pub(crate) fn all() -> Vec<(String, Setting)> {
    let mut files: Vec<_> = fs::read_dir(tuning().join("settings")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_unstable();
    let mut all: Vec<(String, Setting)> = Vec::new();
    for file in files {
        let section = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let mut key = String::new();
        for line in fs::read_to_string(&file).unwrap().lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[') {
                let name = name.strip_suffix(']').unwrap();
                all.push((section.clone(), Setting::from([("name".to_owned(), name.to_owned())])));
            } else if let Some(more) = line.strip_prefix(' ') {
                let text = all.last_mut().unwrap().1.get_mut(&key).unwrap();
                *text = format!("{text} {}", more.trim());
            } else {
                let (word, text) = line.split_once(' ').unwrap();
                key = word.to_owned();
                let twice = all.last_mut().unwrap().1.insert(key.clone(), text.trim().to_owned());
                assert!(twice.is_none(), "{section}: {line}: stands twice");
            }
        }
    }
    assert!(all.len() > 30, "only {} settings found: looked in the wrong way", all.len());
    all
}

const KEYS: &[&str] = &[
    "name",
    "kind",
    "path",
    "attribute",
    "only",
    "scope",
    "rule",
    "want",
    "want@1g",
    "want@10g",
    "want@25g",
    "want@100g",
    "needs",
    "hand",
    "why",
    "without",
    "gain",
    "source",
];

#[test]
fn every_setting_says_why_what_one_sees_without_it_what_it_brings_and_where_it_is_from() {
    for (section, setting) in all() {
        let name = &setting["name"];
        for key in ["kind", "want", "why", "without", "gain", "source"] {
            assert!(setting.get(key).is_some_and(|text| !text.is_empty()), "{section}/{name} has no {key}");
        }
        for key in setting.keys() {
            assert!(KEYS.contains(&key.as_str()), "{section}/{name} has a key {key}, which nobody reads");
        }
    }
}

#[test]
fn the_readme_names_every_section() {
    let readme = fs::read_to_string(tuning().join("README.md")).unwrap();
    for (section, _) in all() {
        assert!(readme.contains(&format!("`{section}`")), "tuning/README.md has no word on {section}");
    }
}
