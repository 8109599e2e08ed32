//! Which version and which cipher: one side's wish that the other does not share ends in a clear line on both.

use std::process::Command;

use crate::harness::Role;
use crate::harness::role::BINARY;
use crate::harness::traffic::works;
use crate::support::{Keys, await_tunnels, entry, exit};
use crate::wire::{Way, Wire};

/// A key of 0x80.
fn old_key(keys: &Keys) -> std::path::PathBuf {
    let path = keys.write("old", 9).with_extension("v80");
    let made = Command::new(BINARY).args(["keygen", "--protocol", "0x80", "--out"]).arg(&path).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path
}

#[test]
fn a_side_of_one_version_refuses_the_other_with_a_line_on_both() {
    let keys = Keys::new();
    let (key, old) = (keys.write("key", 1), old_key(&keys));
    let (new_entry, old_entry) = (entry(&[&key], &[]), entry(&[&old], &["--protocol", "0x80"]));
    let old_server = exit(new_entry.tunnel, &old, &["--protocol", "0x80"]);
    new_entry.role.await_log("what came", |line| line.contains("server speaks 0x80: expected 0x81, see --protocol"));
    old_server.await_log("that it is not wanted", |line| line.contains("WARN") && line.contains("closed during the handshake"));
    let new_server = exit(old_entry.tunnel, &key, &[]);
    old_entry.role.await_log("what came", |line| line.contains("0x81") && line.contains("0x80"));
    new_server.await_log("that it is not wanted", |line| line.contains("WARN") && line.contains("closed"));
    for role in [&new_entry.role, &old_entry.role, &old_server, &new_server] {
        assert_eq!(role.state().tunnels, 0);
    }
}

#[test]
fn each_cipher_is_taken_where_either_side_asks_for_it_alone() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    for (number, cipher) in [(1, "aes-128-gcm"), (2, "aes-256-gcm"), (3, "chacha20-poly1305")] {
        for (at_entry, at_exit) in [(&["--cipher", cipher][..], &[][..]), (&[], &["--cipher", cipher])] {
            let entry = entry(&[&key], at_entry);
            let wire = Wire::start(entry.tunnel);
            let _exit = exit(wire.address, &key, at_exit);
            await_tunnels(&entry.role, 1);
            works(entry.socks);
            assert_eq!(wire.seen(Way::ToExit)[0][..2], [0x81, number], "{cipher}");
        }
    }
}

#[test]
fn the_servers_order_counts_where_both_allow_several() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &["--cipher", "aes-128-gcm,aes-256-gcm,chacha20-poly1305"]);
    let wire = Wire::start(entry.tunnel);
    let _exit = exit(wire.address, &key, &["--cipher", "chacha20-poly1305,aes-256-gcm"]);
    await_tunnels(&entry.role, 1);
    works(entry.socks);
    assert_eq!(wire.seen(Way::ToEntry)[0], [0x81, 2, 3, 2]);
    assert_eq!(wire.seen(Way::ToExit)[0][1], 3);
}

#[test]
fn no_cipher_in_common_is_said_on_both_sides_with_what_each_allows() {
    let keys = Keys::new();
    let key = keys.write("key", 1);
    let entry = entry(&[&key], &["--cipher", "aes-256-gcm"]);
    let server: Role = exit(entry.tunnel, &key, &["--cipher", "chacha20-poly1305,aes-128-gcm"]);
    entry.role.await_log("both lists", |line| {
        line.contains("got chacha20-poly1305, aes-128-gcm") && line.contains("expected one of aes-256-gcm")
    });
    server.await_log("its own list", |line| {
        line.contains("inter-server allows none of the ciphers offered: chacha20-poly1305, aes-128-gcm") && line.contains("--cipher")
    });
    assert_eq!((server.state().tunnels, entry.role.state().curve_operations), (0, 0));
}
