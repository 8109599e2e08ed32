//! `tests/vectors/0x80-session.json`: whole sessions made with openssl, both directions, and inputs that are odd or must be refused. What we
//! say must be those bytes, and what we make of them must be those frames.

use serde_json::Value;
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::Profile;
use zhwkprox::protocol::v80::frame::{Destination, FrameReader, empty, seal};
use zhwkprox::protocol::v80::handshake::{EntryHandshake, ExitHandshake, Progress};
use zhwkprox::protocol::v80::session::{Incoming, Session};

use crate::ciphers::hex;
use crate::support::{IV, SeenFrame, Side, cipher, read_frames, unhex};

pub(crate) fn file() -> Value {
    serde_json::from_str(include_str!("../vectors/0x80-session.json")).expect("valid json")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

/// One session of the file.
pub(crate) struct Transcript {
    pub(crate) cipher: MessageCipher,
    pub(crate) challenge: [u8; 32],
    pub(crate) tail: [u8; 16],
    pub(crate) steps: Vec<Step>,
}

pub(crate) struct Step {
    pub(crate) from_exit: bool,
    pub(crate) bytes: Vec<u8>,
    /// Only a frame has one.
    pub(crate) frame: Option<SeenFrame>,
}

impl Transcript {
    pub(crate) fn all() -> Vec<Self> {
        list(&file()["sessions"]).iter().map(Self::read).collect()
    }

    fn read(session: &Value) -> Self {
        let method: Method = text(&session["method"]).parse().expect("a method");
        let bytes = |name: &str| unhex(text(&session[name]));
        let cipher = MessageCipher::new(method, &bytes("key"), bytes("iv").try_into().expect("16 bytes")).expect("the key fits");
        let steps = list(&session["steps"]).iter().map(Step::read).collect();
        let (challenge, tail) = (bytes("challenge").try_into().expect("32 bytes"), bytes("tail").try_into().expect("16 bytes"));
        Self { cipher, challenge, tail, steps }
    }

    /// Everything that one side sends.
    pub(crate) fn stream(&self, from_exit: bool) -> Vec<u8> {
        self.steps.iter().filter(|step| step.from_exit == from_exit).flat_map(|step| step.bytes.clone()).collect()
    }

    /// Every frame that one side sends.
    pub(crate) fn frames(&self, from_exit: bool) -> Vec<SeenFrame> {
        self.steps.iter().filter(|step| step.from_exit == from_exit).filter_map(|step| step.frame.clone()).collect()
    }

    /// The handshake's answers of one side, in the order in which they are said.
    pub(crate) fn answers(&self, from_exit: bool) -> Vec<u8> {
        let of_handshake = self.steps.iter().filter(|step| step.from_exit == from_exit && step.frame.is_none());
        of_handshake.flat_map(|step| step.bytes.clone()).collect()
    }

    /// One side before its first input, and what it has said already.
    pub(crate) fn start(&self, exit: bool, out: &mut Vec<u8>) -> Side {
        if exit {
            Side::Exit(ExitHandshake::start(self.cipher.clone(), self.challenge, out))
        } else {
            Side::Entry(EntryHandshake::start(self.cipher.clone(), self.tail))
        }
    }
}

impl Step {
    fn read(step: &Value) -> Self {
        let frame = (step["what"] == "frame").then(|| {
            let ip: std::net::IpAddr = text(&step["ip"]).parse().expect("an address");
            let port = u16::try_from(step["port"].as_u64().expect("a number")).expect("a port");
            let payload = unhex(text(&step["plain"]));
            let (destination, length) =
                (Destination::from(std::net::SocketAddr::new(ip, port)), u32::try_from(payload.len()).expect("short"));
            SeenFrame { destination, length, payload, complete: true }
        });
        Self { from_exit: step["from"] == "exit", bytes: unhex(text(&step["bytes"])), frame }
    }
}

#[test]
fn a_whole_session_is_said_and_understood_as_openssl_wrote_it() {
    let transcripts = Transcript::all();
    assert_eq!(transcripts.len(), 3);
    for transcript in transcripts {
        let method = transcript.cipher.method();
        let (mut from_exit, mut from_entry) = (Vec::new(), Vec::new());
        let mut exit = Some(ExitHandshake::start(transcript.cipher.clone(), transcript.challenge, &mut from_exit));
        let mut entry = Some(EntryHandshake::start(transcript.cipher.clone(), transcript.tail));
        let (mut exit_proof, mut entry_proof) = (None, None);
        let (handshake, frames) = transcript.steps.split_at(5);
        for step in handshake {
            let said = if step.from_exit { &mut from_exit } else { &mut from_entry };
            assert_eq!(hex(said), hex(&step.bytes), "{method}");
            said.clear();
            let mut input = step.bytes.as_slice();
            if step.from_exit {
                match entry.take().expect("not done").handle(&mut input, &mut from_entry).expect("correct") {
                    Progress::More(next) => entry = Some(next),
                    Progress::Done(proof) => entry_proof = Some(proof),
                }
            } else {
                match exit.take().expect("not done").handle(&mut input, &mut from_exit).expect("correct") {
                    Progress::More(next) => exit = Some(next),
                    Progress::Done(proof) => exit_proof = Some(proof),
                }
            }
            assert!(input.is_empty());
        }

        let mut at_entry = Session::new(entry_proof.expect("passed"), Profile::Ours);
        let mut at_exit = Session::new(exit_proof.expect("passed"), Profile::Ours);
        let mut reader_at_entry = FrameReader::new(transcript.cipher.clone());
        let mut reader_at_exit = FrameReader::new(transcript.cipher.clone());
        for (number, step) in (1..).zip(frames) {
            let frame = step.frame.clone().expect("a frame");
            let SeenFrame { destination, length, .. } = frame;

            // The sender says exactly these bytes.
            let mut payload = frame.payload.clone();
            let header = seal(&transcript.cipher, destination, &mut payload);
            assert_eq!([header.as_slice(), &payload].concat(), step.bytes, "{method}, frame {number}");

            // The sender's table lets it.
            let sender = if step.from_exit { &mut at_exit } else { &mut at_entry };
            if !step.from_exit && sender.is_free(destination) {
                assert_eq!(header, empty(destination), "an open says nothing else");
                sender.open(destination, number).expect("free");
            } else if length == 0 {
                assert!(sender.finish(destination), "{method}, frame {number}: an end is sent once");
            } else {
                assert!(!sender.state(destination).expect("taken").own_end);
            }

            // The receiver understands it.
            let (reader, receiver) =
                if step.from_exit { (&mut reader_at_entry, &mut at_entry) } else { (&mut reader_at_exit, &mut at_exit) };
            let mut seen = Vec::new();
            read_frames(reader, &mut step.bytes.clone(), &mut seen);
            assert_eq!(seen, [frame]);
            let was_free = receiver.is_free(destination);
            let tag = receiver.tag(destination);
            match receiver.on_header(destination, length).expect("no fault") {
                Incoming::Open { destination, data } => {
                    assert!(was_free && !data);
                    receiver.attach(destination, number);
                }
                Incoming::Data(to) => assert_eq!((Some(to), length > 0), (tag, true)),
                Incoming::End(of) => assert_eq!((of, length), (tag, 0)),
                Incoming::Drop => panic!("nothing was given up"),
            }
        }
        assert_eq!((at_entry.keys(), at_exit.keys()), (0, 0), "{method}: every flow has ended");
    }
}

#[test]
fn what_must_be_refused_is_refused_in_words_and_with_the_right_last_bytes() {
    let file = file();
    let transcript = &Transcript::all()[0];
    let cases = list(&file["refused"]);
    assert_eq!(cases.len(), 12);
    for case in cases {
        for byte_by_byte in [false, true] {
            let mut out = Vec::new();
            let mut side = Some(transcript.start(case["side"] == "exit", &mut out));
            let mut fault = None;
            let gets = unhex(text(&case["gets"]));
            for piece in gets.chunks(if byte_by_byte { 1 } else { gets.len() }) {
                assert_eq!(fault, None, "refused before all of it was read: {case}");
                match side.take().expect("not passed").handle(&mut &*piece, &mut out) {
                    Ok(next) => side = next,
                    Err(error) => fault = Some(error.to_string()),
                }
            }
            let fault = fault.unwrap_or_else(|| panic!("accepted: {case}"));
            assert!(fault.starts_with(text(&case["fault"])), "{fault}, expected {}", case["fault"]);
            assert_eq!(hex(&out), text(&case["says"]), "{case}");
        }
    }
}

#[test]
fn what_is_odd_but_allowed_passes() {
    let file = file();
    let transcript = &Transcript::all()[0];
    let cases = list(&file["accepted"]);
    assert_eq!(cases.len(), 5);
    for case in cases {
        let mut out = Vec::new();
        let side = transcript.start(case["side"] == "exit", &mut out);
        let gets = [unhex(text(&case["gets"])), vec![4, 0xff]].concat();
        let mut input = gets.as_slice();
        let passed = side.handle(&mut input, &mut out).unwrap_or_else(|error| panic!("{}: {error}", case["name"]));
        assert!(passed.is_none(), "{}", case["name"]);
        assert_eq!(input, [4, 0xff], "{}: the first frame stays", case["name"]);
        assert_eq!(hex(&out), text(&case["says"]), "{}", case["name"]);
    }
}

#[test]
fn a_frame_of_another_address_kind_ends_the_tunnel_for_good() {
    let file = file();
    let cases = list(&file["refused_frames"]);
    assert_eq!(cases.len(), 7);
    for case in cases {
        let mut reader = FrameReader::new(cipher(Method::Aes128Ctr));
        let mut bytes = [empty(crate::support::V4).to_vec(), unhex(text(&case["bytes"]))].concat();
        let mut at = 0;
        assert!(matches!(reader.next(&mut bytes, &mut at), Ok(Some(_))));
        let error = reader.next(&mut bytes, &mut at).expect_err("no such kind");
        assert_eq!((error.to_string().as_str(), at), (text(&case["fault"]), 11));
        let mut good = empty(crate::support::V4).to_vec();
        assert_eq!(reader.next(&mut good, &mut 0), Err(error), "good bytes do not mend it");
    }
}

#[test]
fn the_file_is_what_its_script_makes() {
    let there = |program: &str| std::process::Command::new(program).arg("version").output().is_ok();
    if !(there("python3") && there("openssl")) {
        assert!(std::env::var_os("CI").is_none(), "python3 or openssl is missing: apt-get install -y python3 openssl");
        eprintln!("SKIPPED: python3 or openssl is missing (apt-get install -y python3 openssl): the transcripts are used as committed");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/make_0x80_session.py");
    let made = std::process::Command::new("python3").arg(script).output().expect("python3 was there");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).expect("valid json");
    assert_eq!(made, file());
    assert_eq!(IV, *unhex(text(&made["sessions"][0]["iv"])));
}
