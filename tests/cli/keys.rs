//! The keys of an inter-server on 0x81: several, each with the name of its exit.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Folder, accepted, key81, output, refused, said};

#[test]
fn several_keys_have_the_names_of_their_files_or_those_that_are_typed() {
    let folder = Folder::new();
    let (one, two) = (folder.write81("office.key", 1), folder.write81("x y.key", 2));
    accepted(&folder.inter_server81(&["--key-file", &one]));
    accepted(&folder.inter_server81(&["--key-file", &one, "--key-file", &format!("home={two}")]));
    accepted(&folder.inter_server81(&["--key-file", &one, &format!("Home_2.b-c={two}")]));
    // A space is no part of a name.
    refused(&folder.inter_server81(&["--key-file", &one, &two]), &["--key-file: got", "x y.key", "expected FILE or NAME=FILE"]);
    refused(&folder.inter_server81(&["--key-file", "home="]), &["--key-file: got `home=`", "expected FILE or NAME=FILE"]);
    refused(&folder.inter_server81(&[]), &["--key-file FILE is missing", "zhwkprox keygen --out FILE"]);
    let long = format!("{}={two}", "n".repeat(65));
    refused(&folder.inter_server81(&["--key-file", &long]), &["--key-file: got", "the name of 1 to 64"]);
    accepted(&folder.inter_server81(&["--key-file", &long[1..]]));
}

#[test]
fn one_name_for_two_keys_and_one_key_under_two_names_are_refused() {
    let folder = Folder::new();
    let (one, two) = (folder.write81("office.key", 1), folder.write81("home.key", 2));
    let same = folder.write81("same.key", 1);
    refused(&folder.inter_server81(&["--key-file", &one, &format!("office={two}")]), &["--key-file", "two keys", "office", "expected one"]);
    let output = folder.inter_server81(&["--key-file", &one, &two, &same]);
    refused(&output, &["--key-file", "office", "same", "the same key", "expected one key"]);
    assert!(!said(&output).contains(&key81(1)[14..30]));
}

#[test]
fn an_inter_server_holds_at_most_256_keys() {
    let folder = Folder::new();
    let keys: Vec<String> = (0..257_u16)
        .map(|number| {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&number.to_le_bytes());
            use base64::Engine as _;
            let line = format!("zhwkprox-0x81:{}", base64::engine::general_purpose::STANDARD.encode(bytes));
            folder.write(&format!("exit-{number}.key"), &line, 0o600)
        })
        .collect();
    let keys: Vec<&str> = ["--key-file"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    accepted(&folder.inter_server81(&keys[..257]));
    refused(&folder.inter_server81(&keys), &["--key-file: 257 keys", "at most 256"]);
}

#[test]
fn a_key_of_0x81_that_others_can_read_is_refused_and_one_for_the_group_is_warned_about() {
    let folder = Folder::new();
    let one = folder.write81("office.key", 1);
    for mode in [0o644, 0o604, 0o601] {
        let open = folder.write("open.key", &key81(2), mode);
        let output = folder.inter_server81(&["--key-file", &one, &open]);
        refused(&output, &["--key-file", &open, "read by everybody", &format!("{mode:04o}"), "chmod 600"]);
    }
    let group = folder.write("group.key", &key81(2), 0o640);
    let output = folder.inter_server81(&["--key-file", &one, &group]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("warning: ") && text.contains(&group) && text.contains("0640"), "{text}");
    fs::remove_file(&group).unwrap();
    refused(&folder.inter_server81(&["--key-file", &one, &group]), &["--key-file: cannot read", &group, "No such file"]);
}

#[test]
fn a_folder_stands_for_the_keys_in_it_by_the_names_of_their_files() {
    let folder = Folder::new();
    let keys = folder.text("keys");
    fs::create_dir(&keys).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o700)).unwrap();
    refused(&folder.inter_server81(&["--key-file", &keys]), &["--key-file", &keys, "a folder without keys", "at least one file *.key"]);
    let office = folder.write81("keys/office.key", 1);
    folder.write81("keys/home.key", 2);
    // Nothing of this is a key.
    for beside in ["keys/README", "keys/office.key~", "keys/.home.key.swp", "keys/.#home.key", "keys/office.key.tmp"] {
        folder.write(beside, "nothing", 0o644);
    }
    accepted(&folder.inter_server81(&["--key-file", &keys]));
    accepted(&folder.inter_server81(&["--key-file", &format!("{keys}/")]));
    // The names are those of the files: here they meet another.
    let other = folder.write81("other.key", 3);
    accepted(&folder.inter_server81(&["--key-file", &keys, &other]));
    refused(&folder.inter_server81(&["--key-file", &keys, &format!("home={other}")]), &["--key-file", "two keys have the name", "home"]);
    // A folder has several names and none of its own, and a server has one key.
    refused(&folder.inter_server81(&["--key-file", &format!("office={keys}")]), &["cannot read", &keys, "directory"]);
    let server = output(&["server", "--check-config", "--key-file", &keys, "--dial", "192.0.2.1:1992"]);
    refused(&server, &["cannot read", &keys, "directory"]);
    for (name, contents, mode, words) in [
        ("keys/the office.key", key81(4), 0o600, "does not have the name of an exit"),
        ("keys/half.key", key81(4)[..30].to_owned(), 0o600, "a key of 12 bytes, expected 32"),
        ("keys/open.key", key81(4), 0o644, "read by everybody"),
        ("keys/again.key", key81(1), 0o600, "the same key"),
    ] {
        let wrong = folder.write(name, &contents, mode);
        refused(&folder.inter_server81(&["--key-file", &keys]), &["--key-file", words]);
        fs::remove_file(wrong).unwrap();
    }
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o1777)).unwrap();
    refused(&folder.inter_server81(&["--key-file", &keys]), &["--key-file", &keys, "written by everybody", "1777", "chmod 700"]);
    // One that is named need not be in a folder that is nobody else's.
    accepted(&folder.inter_server81(&["--key-file", &office]));
}
