//! The configuration file: the flags' names as keys, flags win, and what is wrong is named with file and line.

use std::process::Output;

use crate::support::{Folder, accepted, output, refused, said};

fn check(folder: &Folder, role: &str, text: &str, more: &[&str]) -> Output {
    let file = folder.write("relay.toml", text, 0o644);
    output(&[&[role, "--check-config", "--config", &file], more].concat())
}

const SERVER: &str = r#"
[server]
protocol = "0x80"
key-file = "key"
dial = ["entry.example:1992", "[2001:db8::1]:1992"]
allow = "10.0.0.0/8"
max-tunnels = 64
cores = 0
buffer-memory = "1MiB"
idle = "off"
"#;

#[test]
fn one_file_can_hold_everything_for_both_roles() {
    let folder = Folder::new();
    folder.write("credentials", "user:password", 0o600);
    let both = format!(
        "{SERVER}{}",
        r#"
[inter-server]
protocol = "0x80"
key-file = "key"
listen = ["0.0.0.0:1992"]
socks = ["0.0.0.0:1080", "unix:/run/socks"]
shared = "[::1]:1993"
allow-servers = ["192.0.2.0/24"]
credentials-file = "credentials"
wait-for-tunnel = "3s"
linger = "5m"
cipher = "aes-128-cfb"
iv = "000102030405060708090a0b0c0d0e0f"
profile = "original"
resolver = "192.0.2.53"
log = "json"
log-level = "debug"
"#
    );
    accepted(&check(&folder, "server", &both, &[]));
    accepted(&check(&folder, "inter-server", &both, &[]));
}

#[test]
fn paths_start_from_the_files_own_folder() {
    let folder = Folder::new();
    let text = SERVER.replace("\"key\"", "\"no-key\"");
    refused(&check(&folder, "server", &text, &[]), &["relay.toml:4: key-file: cannot read", &folder.text("no-key")]);
}

#[test]
fn flags_win_over_the_file() {
    let folder = Folder::new();
    let wrong = SERVER.replace("64", "0").replace("\"off\"", "\"soon\"");
    refused(&check(&folder, "server", &wrong, &[]), &["relay.toml:10: idle: got `soon`, expected "]);
    refused(&check(&folder, "server", &wrong, &["--idle", "1h"]), &["relay.toml:7: max-tunnels: got `0`, expected "]);
    accepted(&check(&folder, "server", &wrong, &["--idle", "1h", "--max-tunnels", "8"]));
    refused(&check(&folder, "server", SERVER, &["--idle", "later"]), &["--idle: got `later`"]);
    // A list is replaced, not added to.
    let one_bad = SERVER.replace("entry.example:1992", "entry.example");
    refused(&check(&folder, "server", &one_bad, &[]), &["relay.toml:5: dial: got `entry.example`"]);
    accepted(&check(&folder, "server", &one_bad, &["--dial", "entry.example:1"]));
}

#[test]
fn unknown_keys_and_sections_are_refused_with_their_line() {
    let folder = Folder::new();
    let typo = format!("{SERVER}max-tunels = 5\n");
    refused(&check(&folder, "server", &typo, &[]), &["relay.toml:11: ", "unknown key `max-tunels`", "max-tunnels"]);
    let other_roles = format!("{SERVER}socks = \"127.0.0.1:1080\"\n");
    refused(&check(&folder, "server", &other_roles, &[]), &["relay.toml:11: ", "unknown key `socks`"]);
    refused(&check(&folder, "server", "\n\n[sever]\n", &[]), &["relay.toml:3: got `sever`, expected a section [server] or [inter-server]"]);
    refused(&check(&folder, "server", "dial = \"a:1\"\n", &[]), &["relay.toml:1: got `dial`, expected a section"]);
    refused(&check(&folder, "server", "server = 5\n", &[]), &["relay.toml:1: ", "expected a section [server]"]);
    // The section of the other role is held to the same.
    let other = format!("{SERVER}[inter-server]\nlisten-on = \"x\"\n");
    refused(&check(&folder, "server", &other, &[]), &["relay.toml:12: ", "unknown key `listen-on`"]);
    refused(&check(&folder, "server", "[server]\ncheck-config = true\n", &[]), &["relay.toml:2: ", "unknown key `check-config`"]);
}

#[test]
fn what_is_no_toml_is_refused_with_its_line() {
    let folder = Folder::new();
    refused(&check(&folder, "server", "[server]\ndial = \n", &[]), &["relay.toml:2: "]);
    refused(&check(&folder, "server", "[server]\ndial = \"a:1\n", &[]), &["relay.toml:2: "]);
    refused(&check(&folder, "server", "[server]\nidle = \"1s\"\nidle = \"2s\"\n", &[]), &["relay.toml:3: ", "duplicate"]);
    refused(&check(&folder, "server", "[server]\nidle = \"1s\"\n[server]\n", &[]), &["relay.toml:3: ", "duplicate"]);
}

#[test]
fn values_of_the_wrong_type_are_refused_with_their_line() {
    let folder = Folder::new();
    for (line, got) in
        [("linger = 1.5", "float"), ("linger = true", "boolean"), ("linger = [\"1s\"]", "array"), ("linger = { s = 1 }", "table")]
    {
        let text = format!("{SERVER}{line}\n");
        refused(&check(&folder, "server", &text, &[]), &["relay.toml:11: linger: ", got, "expected a text in quotes"]);
    }
    let text = SERVER.replace("\"10.0.0.0/8\"", "[\n  \"10.0.0.0/8\",\n  8,\n  \"x\",\n]");
    refused(&check(&folder, "server", &text, &[]), &["relay.toml:8: allow: got `8`, expected a network"]);
    let text = format!("{SERVER}linger = 300\n");
    refused(&check(&folder, "server", &text, &[]), &["relay.toml:11: linger: got `300`, expected a time with its unit"]);
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let folder = Folder::new();
    let missing = folder.text("nothing.toml");
    refused(&output(&["server", "--config", &missing]), &["--config", &missing, "No such file"]);
    refused(&output(&["server", "--config", &folder.text("")]), &["--config", "cannot read"]);
}

#[test]
fn the_protocol_may_be_written_instead_of_typed() {
    let folder = Folder::new();
    let without = SERVER.replace("protocol = \"0x80\"", "");
    refused(&check(&folder, "server", &without, &[]), &["relay.toml:4: key-file: ", "a key for protocol 0x80", "--protocol 0x80"]);
    accepted(&check(&folder, "server", &without, &["--protocol", "0x80"]));
    let later = SERVER.replace("\"0x80\"", "\"0x82\"");
    refused(&check(&folder, "server", &later, &[]), &["relay.toml:3: protocol: got `0x82`"]);
}

#[test]
fn a_file_for_0x81_names_the_keys_of_an_inter_server() {
    let folder = Folder::new();
    folder.write81("office.key", 1);
    folder.write81("second.key", 2);
    let text = r#"
[server]
key-file = "office.key"
listen = "0.0.0.0:1992"
allow-inter-servers = ["192.0.2.0/24", "198.51.100.7"]
cipher = "chacha20-poly1305,aes-128-gcm"

[inter-server]
key-file = [
  "office.key",
  "home=second.key",
]
dial = ["exit.example:1992"]
socks = "127.0.0.1:1080"
"#;
    accepted(&check(&folder, "server", text, &[]));
    accepted(&check(&folder, "inter-server", text, &[]));
    let bad = text.replace("home=second", "the home=second");
    refused(&check(&folder, "inter-server", &bad, &[]), &["relay.toml:11: key-file: got `the home=second.key`", "NAME=FILE"]);
    let none = text.replace("second.key", "third.key");
    refused(&check(&folder, "inter-server", &none, &[]), &["key-file: cannot read", &folder.text("third.key")]);
    let list = text.replace("key-file = \"office.key\"", "key-file = [\"office.key\"]");
    refused(&check(&folder, "server", &list, &[]), &["relay.toml:3: key-file: ", "array", "expected a text in quotes"]);
}

#[test]
fn the_iv_in_a_file_is_not_repeated_either() {
    let folder = Folder::new();
    let output = check(&folder, "server", &format!("{SERVER}iv = \"c0ffee\"\n"), &[]);
    refused(&output, &["relay.toml:11: iv: ", "32 hex digits"]);
    assert!(!said(&output).contains("c0ffee"));
}
