//! What README and docs show works: the worked bytes of `docs/PROTOCOL.md` are those of the code (the handshake by its two state machines
//! talking to each other, the frames by the functions that seal them, and read back), and the README's commands for two hosts are
//! accepted by the program, in their order.

use std::fmt::Write as _;

use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::frame::{self, Destination, FrameReader, Piece};
use zhwkprox::protocol::v80::handshake::{EntryHandshake, ExitHandshake, Progress};

const KEY: &[u8; 16] = b"samplekeytomatch";
const IV: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const CHALLENGE: [u8; 32] = [
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25,
    0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f,
];
const TAIL: [u8; 16] = [0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff];

#[test]
fn the_worked_handshake_is_what_the_two_sides_say() {
    let (mut to_entry, mut to_exit, mut said) = (Vec::new(), Vec::new(), String::new());
    let mut exit = Some(ExitHandshake::start(cipher(), CHALLENGE, &mut to_entry));
    let mut entry = Some(EntryHandshake::start(cipher(), TAIL));
    while let Some(here) = entry.take() {
        say(&mut said, "server       ", &to_entry);
        entry = more(here.handle(&mut std::mem::take(&mut to_entry).as_slice(), &mut to_exit).unwrap());
        say(&mut said, "inter-server ", &to_exit);
        if let Some(here) = exit.take() {
            exit = more(here.handle(&mut std::mem::take(&mut to_exit).as_slice(), &mut to_entry).unwrap());
        }
    }
    assert!(exit.is_none() && to_exit.is_empty(), "both sides are done at the same time");
    compare("handshake", &said);
}

#[test]
fn the_worked_frames_are_sealed_and_read_back() {
    let ssh = Destination::V4([192, 0, 2, 7], 22);
    let v6 = Destination::V6([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 443);
    let steps: [(&str, Destination, &[u8]); 6] = [
        ("inter-server ", ssh, b""),
        ("server       ", ssh, b"SSH-2.0-x\r\n"),
        ("inter-server ", ssh, b"SSH-2.0-y\r\n"),
        ("inter-server ", ssh, b""),
        ("server       ", ssh, b""),
        ("inter-server ", v6, b"hello, destination"),
    ];
    let mut said = String::new();
    for (who, destination, plain) in steps {
        let mut data = plain.to_vec();
        let mut bytes = frame::seal(&cipher(), destination, &mut data).to_vec();
        bytes.extend_from_slice(&data);
        say(&mut said, who, &bytes);
        read_back(&bytes, destination, plain);
    }
    compare("frames", &said);
}

#[test]
fn the_commands_for_two_hosts_are_accepted_as_they_stand() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let blocks = readme.split("\n```").skip(1).step_by(2).map(|block| block.trim_start_matches("sh\n").replace("\\\n", " "));
    let folder = tempfile::tempdir().unwrap();
    let mut roles = Vec::new();
    for block in blocks.filter(|block| block.starts_with("zhwkprox ")) {
        let words: Vec<_> = block.split(" #").next().unwrap().split_whitespace().skip(1).collect();
        let is_role = words[0] != "keygen";
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_zhwkprox"));
        command.current_dir(folder.path()).args(&words).args(is_role.then_some("--check-config"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{block}: {}", String::from_utf8_lossy(&output.stderr));
        roles.push(words[0].to_owned());
    }
    assert_eq!(roles, ["keygen", "inter-server", "server"]);
}

fn more<T>(progress: Progress<T>) -> Option<T> {
    match progress {
        Progress::More(state) => Some(state),
        Progress::Done(_) => None,
    }
}

fn read_back(bytes: &[u8], destination: Destination, plain: &[u8]) {
    let mut reader = FrameReader::new(cipher());
    let (mut bytes, mut at, mut payload) = (bytes.to_vec(), 0, Vec::new());
    let mut ranges = Vec::new();
    while let Some(piece) = reader.next(&mut bytes, &mut at).unwrap() {
        match piece {
            Piece::Header(header) => {
                assert_eq!((header.destination, header.length as usize), (destination, plain.len()));
            }
            Piece::Payload { range, .. } => ranges.push(range),
        }
    }
    for range in ranges {
        payload.extend_from_slice(&bytes[range]);
    }
    assert_eq!(payload, plain);
}

/// The page's block that stands behind the marker `<!-- worked: name -->`, without the remarks behind two spaces and a `#`.
fn compare(name: &str, said: &str) {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/PROTOCOL.md")).unwrap();
    let marker = format!("<!-- worked: {name} -->");
    let block = page.split_once(&marker).unwrap_or_else(|| panic!("no {marker}")).1;
    let block = block.split("```").nth(1).unwrap().trim_start_matches("text\n");
    let lines = block.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let written: Vec<_> = lines.flat_map(|line| words(line.split("  #").next().unwrap())).collect();
    assert_eq!(written, words(said), "docs/PROTOCOL.md differs from the code, which says:\n{said}");
}

fn say(said: &mut String, who: &str, bytes: &[u8]) {
    for (index, line) in bytes.chunks(16).enumerate() {
        let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(said, "{}{}", if index == 0 { who } else { "             " }, hex.join(" ")).unwrap();
    }
}

fn cipher() -> MessageCipher {
    MessageCipher::new(Method::Aes128Ctr, KEY, IV).unwrap()
}
