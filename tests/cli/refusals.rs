//! What is refused: status 2, and one line that says where, what was got and what is expected.

use crate::support::{Folder, KEY, accepted, key81, output, refused, said};

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
    for arguments in
        [&["--help"][..], &["--version"], &["server", "--help"], &["check", "--help"], &["keygen", "--help"], &["inter-server", "-h"]]
    {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty());
        assert_eq!(said(&output), "");
    }
}

#[test]
fn without_a_protocol_it_is_0x81_and_0x80_must_be_typed() {
    let folder = Folder::new();
    accepted(&folder.server81(&[]));
    accepted(&folder.server81(&["--protocol", "0x81"]));
    let old = folder.text("key");
    refused(
        &output(&["server", "--check-config", "--key-file", &old, "--dial", "192.0.2.1:1992"]),
        &["--key-file", &old, "a key for protocol 0x80", "expected one for protocol 0x81", "--protocol 0x80"],
    );
    for command in ["server", "inter-server", "keygen", "check"] {
        refused(&output(&[command, "--protocol", "socks"]), &["--protocol", "got `socks`", "expected 0x81", "0x80"]);
    }
}

#[test]
fn what_belongs_to_the_other_protocol_is_refused_with_both_named() {
    let folder = Folder::new();
    for (flag, value) in [("--iv", "000102030405060708090a0b0c0d0e0f"), ("--profile", "original"), ("--profile", "ours")] {
        refused(&folder.server81(&[flag, value]), &[flag, "for protocol 0x80", "got protocol 0x81", "--protocol 0x80"]);
    }
    for cipher in ["aes-128-ctr", "aes-256-ctr", "aes-128-cfb"] {
        refused(&folder.server81(&["--cipher", cipher]), &["--cipher: got", cipher, "aes-128-gcm", "protocol 0x81", "protocol 0x80"]);
    }
    for cipher in ["aes-128-gcm", "chacha20-poly1305", "aes-256-gcm,aes-128-gcm"] {
        refused(&folder.server(&["--cipher", cipher]), &["--cipher: got", cipher, "aes-128-ctr", "protocol 0x80", "protocol 0x81"]);
    }
    let new = folder.write81("new", 1);
    refused(
        &output(&["server", "--check-config", "--protocol", "0x80", "--key-file", &new, "--dial", "192.0.2.1:1992"]),
        &["--key-file", &new, "a key for protocol 0x81", "expected one for protocol 0x80", "keygen --protocol 0x80"],
    );
    refused(&output(&["keygen", "--cipher", "aes-256-ctr"]), &["--cipher", "for protocol 0x80", "got protocol 0x81"]);
    let two = folder.inter_server(&[&ENTRY[..], &["--key-file", &new]].concat());
    refused(&two, &["--key-file: got 2 key files", "expected one with protocol 0x80"]);
}

#[test]
fn ciphers_of_0x81_are_a_list() {
    let folder = Folder::new();
    for good in ["chacha20-poly1305", "aes-256-gcm,aes-128-gcm", "aes-128-gcm, aes-256-gcm, chacha20-poly1305"] {
        accepted(&folder.server81(&["--cipher", good]));
    }
    refused(&folder.server81(&["--cipher", "rot13"]), &["--cipher: got `rot13`, expected a list of aes-128-gcm"]);
    refused(&folder.server81(&["--cipher", "aes-128-gcm,aes-128-gcm"]), &["--cipher", "each cipher once", "aes-128-gcm comes twice"]);
}

#[test]
fn either_role_may_dial_or_listen_or_both() {
    let folder = Folder::new();
    let key = folder.write81("office.key", 1);
    let server = |more: &[&str]| output(&[&["server", "--check-config", "--key-file", &key], more].concat());
    accepted(&server(&["--listen", "0.0.0.0:1992"]));
    accepted(&server(&["--listen", "127.0.0.1:1992", "[::1]:1992", "--allow-inter-servers", "192.0.2.0/24", "0.0.0.0/0"]));
    accepted(&server(&["--listen", "127.0.0.1:1992", "--dial", "192.0.2.1:1992"]));
    refused(&server(&[]), &["--dial HOST:PORT (or --listen ADDR:PORT) is missing"]);
    refused(&server(&["--listen", "1992"]), &["--listen: got `1992`, expected an address and port"]);
    refused(&server(&["--listen", "127.0.0.1:1992", "127.0.0.1:1992"]), &["127.0.0.1:1992 is given twice", "expected each address once"]);
    refused(
        &server(&["--listen", "127.0.0.1:1", "--allow-inter-servers", "all"]),
        &["--allow-inter-servers: got `all`, expected a network"],
    );

    let entry =
        |more: &[&str]| output(&[&["inter-server", "--check-config", "--key-file", &key, "--socks", "127.0.0.1:1080"], more].concat());
    accepted(&entry(&["--dial", "exit.example:1992", "--dial", "192.0.2.1:1992"]));
    accepted(&entry(&["--dial", "exit.example:1992", "--listen", "127.0.0.1:1992"]));
    refused(&entry(&[]), &["--listen ADDR:PORT (or --shared, or --dial HOST:PORT) is missing"]);
    refused(&entry(&["--dial", "exit.example"]), &["--dial: got `exit.example`, expected host and port"]);
    let many: Vec<String> = (1..=129).map(|port| format!("192.0.2.1:{port}")).collect();
    let many: Vec<&str> = ["--dial"].into_iter().chain(many.iter().map(String::as_str)).collect();
    refused(&entry(&many), &["--dial: got 129 to dial, expected at most 128"]);
    accepted(&entry(&many[..129]));

    // 0x80 likewise, but for the author's programs, which know one direction.
    accepted(&folder.server(&["--listen", "127.0.0.1:1992"]));
    accepted(&folder.inter_server(&["--socks", "127.0.0.1:1080", "--dial", "exit.example:1992"]));
    refused(&folder.server(&["--listen", "127.0.0.1:1992", "--profile", "original"]), &["--listen: got --profile original, expected ours"]);
    refused(
        &folder.inter_server(&["--socks", "127.0.0.1:1080", "--dial", "exit.example:1992", "--profile", "original"]),
        &["--dial: got --profile original, expected ours"],
    );
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
    let folder = Folder::new();
    let entry = folder.inter_server(&[&ENTRY[..], &["--allow-servers", "192.0.2.0/24", "::/0"]].concat());
    let exit = folder.server(&["--listen", "0.0.0.0:1992", "--allow-inter-servers", "::/0"]);
    for output in [entry, exit] {
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("warning: ") && text.contains("from everywhere (::/0)"), "{text}");
    }
    // On 0x81 a login proves a key.
    let key = folder.write81("office.key", 1);
    accepted(&folder.inter_server81(&["--key-file", &key, "--allow-servers", "::/0"]));
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
    for wrong in ["", "hunter2hunter2hu", "zhwkprox-0x80:hunter2!", "zhwkprox-0x82:aHVudGVyMmh1bnRlcjJodQ=="] {
        folder.write("key", wrong, 0o600);
        let output = folder.server(&[]);
        refused(&output, &["--key-file", &folder.text("key"), "does not hold a key"]);
        assert!(!said(&output).contains("hunter2"));
    }
    for wrong in ["", "hunter2hunter2hu", "zhwkprox-0x81:hunter2!", "zhwkprox-0x81:aHVudGVyMmh1bnRlcjJodQ=="] {
        let file = folder.write("key81", wrong, 0o600);
        let output = output(&["server", "--check-config", "--dial", "a:1", "--key-file", &file]);
        refused(&output, &["--key-file", &file, "32"]);
        assert!(!said(&output).contains("hunter2") && !said(&output).contains("aHV"), "{}", said(&output));
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
    let new = key81(7);
    let (new, bare) = (new.trim_end(), new.trim_end().strip_prefix("zhwkprox-0x81:").unwrap());
    let after_name = format!("office={new}");
    for typed in [key.as_str(), plain, new, after_name.as_str()] {
        let tries: [&[&str]; 8] = [
            &["server", "--protocol", "0x80", "--dial", "a:1", "--key-file", typed],
            &["server", "--dial", "a:1", "--key-file", typed],
            &["inter-server", "--listen", "127.0.0.1:1", "--socks", "127.0.0.1:2", "--key-file", typed],
            &["check", "--dial", "127.0.0.1:1", "--key-file", typed],
            &["server", typed],
            &[typed],
            &["server", "--protocol", "0x80", "--cipher", typed],
            &["keygen", "--protocol", typed],
        ];
        for arguments in tries {
            let output = output(arguments);
            refused(&output, &[]);
            let said = said(&output);
            assert!(!said.contains(secret) && !said.contains("hunter2") && !said.contains(&bare[..20]), "{said}");
        }
    }
    // Without its mark it is still known by its length.
    for role in [&["server", "--dial", "a:1"][..], &["inter-server", "--listen", "127.0.0.1:1", "--socks", "127.0.0.1:2"]] {
        let output = output(&[role, &["--key-file", bare]].concat());
        refused(&output, &["--key-file: expected the path of a file", "the key itself"]);
        assert!(!said(&output).contains(&bare[..20]));
    }
}

#[test]
fn the_original_profile_has_one_cipher() {
    let folder = Folder::new();
    accepted(&folder.server(&["--profile", "original"]));
    accepted(&folder.server(&["--profile", "original", "--cipher", "aes-128-cfb"]));
    refused(&folder.server(&["--profile", "original", "--cipher", "aes-128-ctr"]), &["--cipher", "aes-128-cfb with --profile original"]);
}
