//! What is refused: status 2, and one line that says where, what was got and what is expected.

use crate::support::{Folder, KEY, accepted, output, refused, said};

const ENTRY: [&str; 4] = ["--listen", "127.0.0.1:1992", "--socks", "127.0.0.1:1080"];

#[test]
fn no_command_and_unknown_commands_and_flags_are_refused() {
    refused(&output(&[]), &["subcommand", "inter-server", "--help"]);
    refused(&output(&["relay"]), &["relay", "--help"]);
    refused(&output(&["server", "--lisen", "x"]), &["--lisen"]);
    refused(&output(&["server", "--iv"]), &["--iv"]);
    refused(&output(&["server", "--iv", "1", "--iv", "2"]), &["--iv"]);
    refused(&output(&["demo", "--protocol", "0x80"]), &["--protocol"]);
}

#[test]
fn help_and_version_are_not_errors() {
    for arguments in [&["--help"][..], &["--version"], &["server", "--help"], &["keygen", "--help"], &["inter-server", "-h"]] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty());
        assert_eq!(said(&output), "");
    }
}

#[test]
fn the_protocol_must_be_typed() {
    for command in ["server", "inter-server", "keygen"] {
        refused(&output(&[command]), &["--protocol 0x80 must be typed", "0x81", "not in this version"]);
        refused(&output(&[command, "--protocol", "0x81"]), &["--protocol", "0x81", "not in this version"]);
        refused(&output(&[command, "--protocol", "socks"]), &["--protocol", "got `socks`", "expected 0x80"]);
    }
}

#[test]
fn what_a_role_cannot_do_without_is_named() {
    let folder = Folder::new();
    let key = folder.text("key");
    refused(&output(&["server", "--protocol", "0x80"]), &["--key-file", "keygen"]);
    refused(&output(&["server", "--protocol", "0x80", "--key-file", &key]), &["--dial"]);
    refused(&folder.inter_server(&[]), &["--listen", "--shared"]);
    refused(&folder.inter_server(&["--listen", "127.0.0.1:1992"]), &["--socks", "--shared"]);
    refused(&folder.inter_server(&["--socks", "127.0.0.1:1080"]), &["--listen"]);
    accepted(&folder.inter_server(&["--shared", "127.0.0.1:1992"]));
    accepted(&folder.inter_server(&ENTRY));
    accepted(&folder.server(&[]));
}

#[test]
fn impossible_values_are_refused_with_what_was_got_and_what_was_expected() {
    let folder = Folder::new();
    let server = [
        ("--dial", "entry.example", "host and port"),
        ("--dial", "entry.example:0", "host and port"),
        ("--allow", "10.0.0.0/33", "a network"),
        ("--source", "eth0", "an address"),
        ("--max-tunnels", "0", "a number from 1 to 65535"),
        ("--max-tunnels", "many", "a number from 1 to 65535"),
        ("--connect-timeout", "10", "a time with its unit"),
        ("--linger", "0s", "a time above zero"),
        ("--idle", "never", "or off"),
        ("--cores", "0-9999", "cores this process may use"),
        ("--cores", "0,0", "each core once"),
        ("--buffer-memory", "1KiB", "256 KiB (4 buffers of 64 KiB) to 4 GiB"),
        ("--buffer-memory", "16MB", "a size"),
        ("--cipher", "rot13", "aes-128-ctr, aes-256-ctr or aes-128-cfb"),
        ("--profile", "theirs", "ours or original"),
        ("--log", "xml", "text or json"),
        ("--log-level", "loud", "error, warn, info, debug or trace"),
        ("--resolver", "dns.example", "the address of a name server"),
    ];
    for (flag, value, expected) in server {
        refused(&folder.server(&[flag, value]), &[&format!("{flag}: got `{value}`, expected "), expected]);
    }
    let entry = [
        ("--listen", "1992", "an address and port"),
        ("--socks", "unix:relative", "a path from / on"),
        ("--shared", "entry.example:1992", "an address and port"),
        ("--allow-servers", "everybody", "a network"),
        ("--wait-for-tunnel", "long", "a time with its unit"),
    ];
    for (flag, value, expected) in entry {
        refused(&folder.inter_server(&[&ENTRY[..], &[flag, value]].concat()), &[&format!("{flag}: got `{value}`, expected "), expected]);
    }
}

#[test]
fn the_iv_is_refused_without_being_repeated() {
    let output = Folder::new().server(&["--iv", "c0ffee"]);
    refused(&output, &["--iv", "32 hex digits", "got 6 characters"]);
    assert!(!said(&output).contains("c0ffee"));
}

#[test]
fn the_same_address_twice_is_refused() {
    let folder = Folder::new();
    refused(&folder.inter_server(&["--listen", "127.0.0.1:1992", "--socks", "127.0.0.1:1992"]), &["127.0.0.1:1992", "twice", "--shared"]);
    accepted(&folder.inter_server(&["--listen", "127.0.0.1:0", "--socks", "127.0.0.1:0"]));
}

#[test]
fn socks_beyond_loopback_needs_user_and_password() {
    let folder = Folder::new();
    let listen = ["--listen", "0.0.0.0:1992"];
    for open in ["0.0.0.0:1080", "[::]:1080", "10.0.0.1:1080", "192.0.2.1:1080"] {
        refused(&folder.inter_server(&[&listen[..], &["--socks", open]].concat()), &["--socks", open, "open proxy", "--credentials-file"]);
    }
    for closed in ["127.0.0.1:1080", "127.8.8.8:1080", "[::1]:1080", "unix:/run/socks"] {
        accepted(&folder.inter_server(&[&listen[..], &["--socks", closed]].concat()));
    }
    let credentials = folder.write("credentials", "user:password\n", 0o600);
    accepted(&folder.inter_server(&[&listen[..], &["--socks", "0.0.0.0:1080", "--credentials-file", &credentials]].concat()));
}

#[test]
fn a_shared_port_off_private_networks_takes_no_clients_without_a_password_and_says_so() {
    let folder = Folder::new();
    let output = folder.inter_server(&["--shared", "0.0.0.0:1992"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("0.0.0.0:1992") && text.contains("clients are not taken"), "{text}");
    accepted(&folder.inter_server(&["--shared", "10.0.0.1:1992"]));
}

#[test]
fn servers_from_everywhere_are_warned_about() {
    let output = Folder::new().inter_server(&[&ENTRY[..], &["--allow-servers", "192.0.2.0/24", "::/0"]].concat());
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("warning: ") && text.contains("from everywhere (::/0)"), "{text}");
}

#[test]
fn credentials_that_are_none_are_refused_without_being_repeated() {
    let folder = Folder::new();
    for wrong in ["hunter2", ":hunter2", "hunter2:", "hunter2:a\nhunter2:b", ""] {
        let file = folder.write("credentials", wrong, 0o600);
        let output = folder.inter_server(&[&ENTRY[..], &["--credentials-file", &file]].concat());
        refused(&output, &["--credentials-file", &file, "one line `user:password`"]);
        assert!(!said(&output).contains("hunter2"));
    }
    let open = folder.write("open", "user:hunter2\n", 0o644);
    let output = folder.inter_server(&[&ENTRY[..], &["--credentials-file", &open]].concat());
    refused(&output, &[&open, "0644", "chmod 600"]);
    assert!(!said(&output).contains("hunter2"));
}

#[test]
fn keys_of_the_wrong_length_are_refused_with_both_numbers() {
    let folder = Folder::new();
    refused(&folder.server(&["--cipher", "aes-256-ctr"]), &["16 bytes", "expected 32", "aes-256-ctr"]);
    folder.write("key", "ascii:short", 0o600);
    let output = folder.server(&[]);
    refused(&output, &["5 bytes", "expected 16", "aes-128-ctr"]);
    assert!(!said(&output).contains("short"));
}

#[test]
fn files_that_are_no_keys_are_refused_without_being_repeated() {
    let folder = Folder::new();
    for wrong in ["", "hunter2hunter2hu", "zhwkprox-0x80:hunter2!", "zhwkprox-0x81:aHVudGVyMmh1bnRlcjJodQ=="] {
        folder.write("key", wrong, 0o600);
        let output = folder.server(&[]);
        refused(&output, &["--key-file", &folder.text("key"), "does not hold a key"]);
        assert!(!said(&output).contains("hunter2"));
    }
    folder.write("key", &"a".repeat(5000), 0o600);
    refused(&folder.server(&[]), &["longer than 4096 bytes"]);
    let missing = folder.text("nothing");
    refused(&output(&["server", "--protocol", "0x80", "--dial", "a:1", "--key-file", &missing]), &["--key-file", &missing, "No such file"]);
}

#[test]
fn a_key_that_others_can_read_is_refused_and_one_for_the_group_is_warned_about() {
    let folder = Folder::new();
    for mode in [0o644, 0o604, 0o666, 0o601] {
        folder.write("key", &format!("ascii:{KEY}"), mode);
        refused(&folder.server(&[]), &["read by everybody", &format!("{mode:04o}"), "chmod 600"]);
    }
    folder.write("key", &format!("ascii:{KEY}"), 0o640);
    let output = folder.server(&[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("warning: ") && text.contains("group") && text.contains("0640"), "{text}");
}

#[test]
fn a_key_typed_where_something_else_belongs_is_never_repeated() {
    let secret = "c2l4dGVlbiBieXRlIGtleQ==";
    let key = format!("zhwkprox-0x80:{secret}");
    let plain = "ascii:hunter2hunter2hu";
    for typed in [key.as_str(), plain] {
        let tries: [&[&str]; 5] = [
            &["server", "--protocol", "0x80", "--dial", "a:1", "--key-file", typed],
            &["server", typed],
            &[typed],
            &["server", "--protocol", "0x80", "--cipher", typed],
            &["keygen", "--protocol", typed],
        ];
        for arguments in tries {
            let output = output(arguments);
            refused(&output, &[]);
            assert!(!said(&output).contains(secret) && !said(&output).contains("hunter2"), "{}", said(&output));
        }
    }
}

#[test]
fn the_original_profile_has_one_cipher() {
    let folder = Folder::new();
    accepted(&folder.server(&["--profile", "original"]));
    accepted(&folder.server(&["--profile", "original", "--cipher", "aes-128-cfb"]));
    refused(&folder.server(&["--profile", "original", "--cipher", "aes-128-ctr"]), &["--cipher", "aes-128-cfb with --profile original"]);
}
