//! `tests/vectors/0x80.json`, the published vectors: every value in it is compared, and the count is checked.

use serde_json::Value;
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::frame::{Destination, FrameReader, seal};
use zhwkprox::protocol::v80::handshake::{EntryHandshake, Progress};

use crate::ciphers::hex;
use crate::support::{SeenFrame, read_frames, unhex};

const METHODS: [Method; 3] = Method::ALL;

fn file() -> Value {
    serde_json::from_str(include_str!("../vectors/0x80.json")).expect("valid json")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn cipher(file: &Value, method: Method) -> MessageCipher {
    let key = match method {
        Method::Aes128Ctr | Method::Aes128Cfb => text(&file["key_ascii"]).as_bytes().to_vec(),
        Method::Aes256Ctr => unhex(text(&file["aes-256-key"])),
    };
    MessageCipher::new(method, &key, unhex(text(&file["common_iv"])).try_into().expect("16 bytes")).expect("the key fits")
}

fn plain_of(message: &Value) -> Vec<u8> {
    match message.get("plain_rule") {
        Some(rule) => {
            assert_eq!(text(rule), "byte i = (7*i) mod 251, 5000 bytes");
            (0..5000_usize).map(|i| u8::try_from(7 * i % 251).expect("below 251")).collect()
        }
        None => unhex(text(&message["plain"])),
    }
}

/// SHA-256 by an outside tool, so that no hash is a dependency.
fn sha256(bytes: &[u8]) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum is part of coreutils");
    child.stdin.take().expect("a pipe").write_all(bytes).expect("sha256sum reads");
    let output = child.wait_with_output().expect("sha256sum ends");
    String::from_utf8(output.stdout).expect("text")[..64].to_owned()
}

#[test]
fn every_published_vector_holds() {
    let file = file();
    let mut compared = 0;
    for message in file["messages"].as_array().expect("a list") {
        for method in METHODS {
            let cipher = cipher(&file, method);
            let plain = plain_of(message);
            let mut bytes = plain.clone();
            cipher.begin_encrypt().apply(&mut bytes);
            let expected = &message[method.name()];
            if let Some(sum) = expected.get("sha256") {
                assert_eq!(sha256(&bytes), text(sum), "{method}");
                assert_eq!(hex(&bytes[..32]), text(&expected["first32"]), "{method}");
                assert_eq!(hex(&bytes[bytes.len() - 32..]), text(&expected["last32"]), "{method}");
            } else {
                assert_eq!(hex(&bytes), text(expected), "{method}, {}", message["name"]);
            }
            cipher.begin_decrypt().apply(&mut bytes);
            assert_eq!(bytes, plain, "{method}, {} deciphered", message["name"]);
            compared += 1;
        }
    }

    let auth = &file["auth"];
    for method in [Method::Aes128Ctr, Method::Aes128Cfb] {
        let tail = unhex(text(&auth["tail"])).try_into().expect("16 bytes");
        let sent = [unhex("800100"), unhex(text(&auth["server_sends"]))].concat();
        let mut out = Vec::new();
        let progress = EntryHandshake::start(cipher(&file, method), tail).handle(&mut sent.as_slice(), &mut out);
        assert!(matches!(progress, Ok(Progress::More(_))), "{progress:?}");
        let reply = text(&auth[format!("{method}_reply")]);
        assert_eq!(hex(&out), format!("80{reply}"), "{method}");
        assert_eq!(unhex(&reply[..2])[0] as usize, reply.len() / 2 - 1);
        compared += 1;
    }

    for frame in file["frames"].as_array().expect("a list") {
        let ip: std::net::IpAddr = text(&frame["ip"]).parse().expect("an address");
        let port = u16::try_from(frame["port"].as_u64().expect("a number")).expect("a port");
        let destination = Destination::from(std::net::SocketAddr::new(ip, port));
        for method in [Method::Aes128Ctr, Method::Aes128Cfb] {
            let plain = unhex(text(&frame["plain"]));
            let mut payload = plain.clone();
            let header = seal(&cipher(&file, method), destination, &mut payload);
            assert_eq!(hex(&header), text(&frame["header"]));
            let mut bytes = [header.as_slice(), &payload].concat();
            assert_eq!(hex(&bytes), text(&frame[method.name()]), "{method}");

            let mut seen = Vec::new();
            read_frames(&mut FrameReader::new(cipher(&file, method)), &mut bytes, &mut seen);
            let length = u32::try_from(plain.len()).expect("short");
            assert_eq!(seen, [SeenFrame { destination, length, payload: plain, complete: true }]);
            compared += 1;
        }
    }
    assert_eq!(compared, 18 + 2 + 6, "the file holds 26 values");
}
