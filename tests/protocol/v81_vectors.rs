//! The vectors of 0x81 in tests/vectors/0x81.json, which another implementation has made (`tests/peer81`: Python, other people's Noise and
//! ciphers): both our sides say every byte of them and understand it.

#[path = "../peer81/python.rs"]
pub(crate) mod python;

use std::sync::Arc;

use serde_json::Value;
use zhwkprox::crypto::aead::{EPOCH_RECORDS, Method, Opener, Sealer};
use zhwkprox::protocol::v81::handshake::{Authenticated, EntryHandshake, ExitHandshake, HandshakeError, Keys, Progress, Psk};
use zhwkprox::protocol::v81::record::{RecordReader, RecordWriter};
use zhwkprox::protocol::v81::settings::Settings;

use crate::support::unhex;
use crate::v81_channel::{Met, Side, meet, record};

const FILE: &str = include_str!("../vectors/0x81.json");

fn file() -> Value {
    serde_json::from_str(FILE).expect("valid json")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn bytes(value: &Value) -> Vec<u8> {
    unhex(value.as_str().expect("hex"))
}

fn key(value: &Value) -> [u8; 32] {
    bytes(value).try_into().expect("32 bytes")
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

fn methods(value: &Value) -> Vec<Method> {
    bytes(value).into_iter().filter_map(Method::from_byte).collect()
}

fn settings(pairs: &Value) -> Settings {
    let mut settings = Settings::default();
    for pair in list(pairs) {
        let value = u32::try_from(number(&pair[1])).expect("32 bits");
        match number(&pair[0]) {
            1 => settings.stream_window = value,
            2 => settings.max_streams = value,
            other => panic!("setting {other}"),
        }
    }
    settings
}

fn exit(case: &Value, out: &mut Vec<u8>) -> Side {
    let (psk, own) = (Psk::new(&key(&case["psk"])), settings(&case["server_settings"]));
    Side::Exit(ExitHandshake::start_with_known_ephemeral(&psk, &methods(&case["offered"]), own, key(&case["server_ephemeral"]), out))
}

fn entry(case: &Value) -> Side {
    let keys = Keys::new([("other".into(), Psk::new(&[1; 32])), ("vector".into(), Psk::new(&key(&case["psk"])))]);
    Side::Entry(EntryHandshake::start_with_known_ephemeral(
        Arc::new(keys.expect("two keys")),
        &methods(&case["allowed"]),
        key(&case["nonce"]),
        settings(&case["inter_server_settings"]),
        key(&case["inter_server_ephemeral"]),
    ))
}

/// What one side has said in all.
fn said(case: &Value, by: &str) -> Vec<u8> {
    list(&case["wire"]).iter().filter(|part| part["from"] == by).flat_map(|part| bytes(&part["bytes"])).collect()
}

/// One side against the other's recorded bytes, answering at each part just what is written.
fn replay(case: &Value, by: &str, mut side: Side, mut out: Vec<u8>) -> Authenticated {
    let mut authenticated = None;
    for part in list(&case["wire"]) {
        let expected = bytes(&part["bytes"]);
        if part["from"] == by {
            assert!(out.len() >= expected.len(), "{}: {} does not come", case["name"], part["what"]);
            assert_eq!(out.drain(..expected.len()).collect::<Vec<_>>(), expected, "{}: {}", case["name"], part["what"]);
        } else {
            side = match side.handle(&mut expected.as_slice(), &mut out).unwrap_or_else(|error| panic!("{}: {error}", case["name"])) {
                Progress::More(side) => side,
                Progress::Done(done) => {
                    authenticated = Some(done);
                    entry(case)
                }
            };
        }
    }
    assert!(out.is_empty(), "{}: more is said than is written", case["name"]);
    authenticated.expect("the last part makes it")
}

#[test]
fn both_sides_say_and_understand_every_byte_of_a_handshake_and_of_the_first_records() {
    let file = file();
    let cases = list(&file["handshakes"]);
    assert_eq!(cases.len(), 4);
    for case in cases {
        let (mut hello, name) = (Vec::new(), &case["name"]);
        let server = exit(case, &mut hello);
        // Where a cipher is offered that we do not know, our server cannot be the one that offers it.
        let knows_all = methods(&case["offered"]).len() == bytes(&case["offered"]).len();
        let mut inter_server = replay(case, "inter-server", entry(case), Vec::new());
        let mut server = if knows_all { Some(replay(case, "server", server, hello)) } else { None };
        assert_eq!(u64::from(inter_server.method.byte()), number(&case["method"]), "{name}");
        assert_eq!(inter_server.name.as_deref(), Some("vector"), "{name}");
        assert_eq!(inter_server.peer, settings(&case["server_settings"]), "{name}");
        if let Some(server) = &server {
            assert_eq!(server.peer, settings(&case["inter_server_settings"]), "{name}");
        }
        let records = list(&case["records"]);
        assert_eq!(records.len(), 6);
        for vector in records {
            let (plaintext, sealed) = (bytes(&vector["plaintext"]), bytes(&vector["record"]));
            let from_server = vector["from"] == "server";
            let both = [(true, server.as_mut()), (false, Some(&mut inter_server))];
            for (is_server, side) in both {
                let Some(side) = side else { continue };
                if is_server == from_server {
                    assert_eq!(record(&mut side.writer, &plaintext), sealed, "{name}");
                } else {
                    let mut opened = sealed.clone();
                    let range = side.reader.open(&mut opened).unwrap_or_else(|error| panic!("{name}: {error}"));
                    assert_eq!(opened[range], plaintext, "{name}");
                }
            }
        }
    }
}

#[test]
fn the_two_sides_meet_over_just_these_bytes() {
    let file = file();
    for case in list(&file["handshakes"]).iter().take(3) {
        let mut hello = Vec::new();
        let server = exit(case, &mut hello);
        let Met { exit, entry, to_entry, to_exit } = meet(server, hello, entry(case));
        assert!(exit.is_ok() && entry.is_ok(), "{}", case["name"]);
        assert_eq!((to_entry, to_exit), (said(case, "server"), said(case, "inter-server")), "{}", case["name"]);
    }
}

#[test]
fn a_server_whose_ciphers_are_all_refused_is_told_so() {
    let case = &file()["none_allowed"];
    let keys = Arc::new(Keys::new([("any".into(), Psk::new(&[0; 32]))]).expect("one key"));
    let mut out = Vec::new();
    let entry = EntryHandshake::start(keys, &methods(&case["allowed"]), [0; 32], Settings::default());
    let error = entry.handle(&mut bytes(&case["hello"]).as_slice(), &mut out).expect_err("none is allowed");
    assert!(matches!(error, HandshakeError::NothingAllowed { .. }));
    assert_eq!(out, bytes(&case["answer"]));
    let exit = ExitHandshake::start(&Psk::new(&[0; 32]), &methods(&case["offered"]), Settings::default(), &mut Vec::new());
    let error = exit.handle(&mut out.as_slice(), &mut Vec::new()).expect_err("none is allowed");
    assert!(matches!(error, HandshakeError::NothingChosen { .. }));
}

#[test]
fn the_keys_step_where_the_vectors_say_with_every_method() {
    let file = file();
    let cases = list(&file["epoch_steps"]);
    assert_eq!(cases.len(), 3);
    for case in cases {
        let method = Method::from_byte(u8::try_from(number(&case["method"])).expect("a byte")).expect("a method");
        let secret = key(&case["secret"]);
        let (mut writer, mut reader) = (RecordWriter::new(Sealer::new(method, &secret)), RecordReader::new(Opener::new(method, &secret)));
        let vectors = list(&case["records"]);
        assert_eq!(vectors.iter().filter(|vector| number(&vector["number"]) >= u64::from(EPOCH_RECORDS)).count(), 2);
        let mut expected = vectors.iter().peekable();
        let mut at = 0_u64;
        while let Some(vector) = expected.peek() {
            let mut sealed = at.to_le_bytes();
            let (header, tag) = writer.seal(&mut sealed);
            let mut whole = [0; 28];
            whole[..4].copy_from_slice(&header);
            whole[4..12].copy_from_slice(&sealed);
            whole[12..].copy_from_slice(&tag);
            if number(&vector["number"]) == at {
                assert_eq!(whole.as_slice(), bytes(&vector["record"]), "{method}, record {at}");
                expected.next();
            }
            let range = reader.open(&mut whole).unwrap_or_else(|error| panic!("{method}, record {at}: {error}"));
            assert_eq!(whole[range], at.to_le_bytes());
            at += 1;
        }
    }
}

#[test]
fn the_file_is_what_the_other_implementation_makes() {
    let Some(mut peer) = python::peer() else { return };
    let made = peer.arg("vectors").output().expect("python was there");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(made.stdout == FILE.as_bytes(), "tests/vectors/0x81.json is not what tests/peer81/peer.py vectors prints");
}

#[test]
fn the_worked_handshake_of_the_docs_is_the_first_vector() {
    let docs = include_str!("../../docs/PROTOCOL.md");
    let block =
        docs.split_once("<!-- worked: 0x81 handshake -->\n```text\n").and_then(|(_, rest)| rest.split_once("```")).expect("it is there");
    let mut written: Vec<(String, String)> = Vec::new();
    for line in block.0.lines() {
        let (who, rest) = line.split_at(13);
        let digits: String = rest.split('#').next().unwrap_or_default().split_whitespace().collect();
        if who.trim().is_empty() {
            written.last_mut().expect("somebody speaks").1.push_str(&digits);
        } else {
            written.push((who.trim().to_owned(), digits));
        }
    }
    let file = file();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let wire = list(&file["handshakes"][0]["wire"]).iter().map(|part| (text(&part["from"]), text(&part["bytes"]))).collect::<Vec<_>>();
    assert_eq!(written, wire);
}
