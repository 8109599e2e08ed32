//! The handshake of 0x81: who comes together and over which cipher, what refused ones are told and what they cost, and that no byte of it can
//! be changed or said again.

use std::sync::Arc;

use proptest::prelude::*;
use zhwkprox::crypto::aead::Method;
use zhwkprox::protocol::v81::Side as Role;
use zhwkprox::protocol::v81::handshake::{
    EntryHandshake, ExitHandshake, HandshakeError, KEYS_MAX, Keys, KeysError, Progress, curve_operations,
};
use zhwkprox::protocol::v81::record::RecordError;
use zhwkprox::protocol::v81::settings::{Settings, SettingsError};

use crate::splits::pieces;
use crate::v81_channel::{AT_ENTRY, AT_EXIT, Met, NONCE, Side, entry, exit, keys, meet, psk, record, tunnel};

const AES: Method = Method::Aes128Gcm;
const CHACHA: Method = Method::ChaCha20Poly1305;

fn meet_with(exit_key: u8, offered: &[Method], keys: Arc<Keys>, allowed: &[Method]) -> Met {
    let mut hello = Vec::new();
    let exit = exit(exit_key, offered, &mut hello);
    meet(exit, hello, entry(keys, allowed, NONCE))
}

/// Feeds one side; what it said, and how it is then.
fn feed(side: Side, input: &mut &[u8]) -> (Vec<u8>, Result<Progress<Side>, HandshakeError>) {
    let mut said = Vec::new();
    let result = side.handle(input, &mut said);
    (said, result)
}

#[test]
fn both_sides_of_a_tunnel_know_cipher_name_and_settings_of_each_other_and_can_talk() {
    for method in Method::ALL {
        let met = tunnel(method);
        let (mut exit, mut entry) = (met.exit.expect("one key"), met.entry.expect("one key"));
        assert_eq!((exit.side, entry.side), (Role::Exit, Role::Entry));
        assert_eq!((exit.method, entry.method), (method, method));
        assert_eq!((exit.name.as_deref(), entry.name.as_deref()), (None, Some("berlin")));
        assert_eq!((exit.own, entry.peer), (AT_EXIT, AT_EXIT));
        assert_eq!((exit.peer, entry.own), (AT_ENTRY, AT_ENTRY));
        for round in 0..3 {
            let mut sealed = record(&mut exit.writer, &[round; 9]);
            let range = entry.reader.open(&mut sealed).expect("the next record");
            assert_eq!(sealed[range], [round; 9]);
            let mut sealed = record(&mut entry.writer, &[round; 70]);
            let range = exit.reader.open(&mut sealed).expect("the next record");
            assert_eq!(sealed[range], [round; 70]);
        }
    }
}

#[test]
fn an_authenticated_tunnel_may_change_its_thread() {
    fn send<T: Send>() {}
    send::<zhwkprox::protocol::v81::handshake::Authenticated>();
    send::<EntryHandshake>();
    send::<ExitHandshake>();
}

#[test]
fn the_first_of_the_servers_ciphers_that_the_inter_server_allows_is_taken() {
    let all = Method::ALL;
    let keys = keys(&[("berlin", 7)]);
    let mut met = 0;
    for offered in [vec![all[0]], vec![all[1]], vec![all[2]], vec![all[2], all[0]], vec![all[1], all[2], all[0]], all.to_vec()] {
        for allowed in 1..8_usize {
            let allowed: Vec<Method> = (0..3).filter(|bit| allowed >> bit & 1 == 1).map(|bit| all[bit]).collect();
            let expected = offered.iter().find(|method| allowed.contains(method));
            let outcome = meet_with(7, &offered, Arc::clone(&keys), &allowed);
            match (outcome.exit, outcome.entry, expected) {
                (Ok(exit), Ok(entry), Some(expected)) => assert_eq!((exit.method, entry.method), (*expected, *expected)),
                (Err(HandshakeError::NothingChosen { .. }), Err(HandshakeError::NothingAllowed { .. }), None) => {
                    assert_eq!(outcome.to_exit, [0x81, 0xff], "alone");
                }
                other => panic!("{offered:?} of {allowed:?}: {other:?}"),
            }
            met += 1;
        }
    }
    assert_eq!(met, 42);
}

#[test]
fn unknown_ciphers_are_passed_over_up_to_sixteen() {
    let start = || entry(keys(&[("berlin", 7)]), &[CHACHA], NONCE);
    for hello in [vec![0x81, 3, 0x7f, 0, 3], [vec![0x81, 16], vec![9; 15], vec![3]].concat(), vec![0x81, 4, 1, 2, 3, 3]] {
        let (said, result) = feed(start(), &mut hello.as_slice());
        assert_eq!((&said[..2], said.len()), ([0x81, 3].as_slice(), 34), "{hello:?}");
        assert_eq!(said[2..], NONCE);
        assert!(matches!(result, Ok(Progress::More(_))));
    }
    for count in [0, 17, 255] {
        let hello = [vec![0x81, count], vec![3; usize::from(count)]].concat();
        let (said, result) = feed(start(), &mut hello.as_slice());
        assert_eq!((said, result.expect_err("too many or none")), (vec![], HandshakeError::MethodCount { got: count }));
    }
    let (said, result) = feed(start(), &mut [0x81, 2, 0x09, 1].as_slice());
    assert_eq!(said, [0x81, 0xff]);
    assert_eq!(
        result.expect_err("nothing it allows").to_string(),
        "server offered no cipher that is allowed here: got 0x09, aes-128-gcm, expected one of chacha20-poly1305"
    );
}

#[test]
fn a_server_takes_no_cipher_that_it_did_not_offer() {
    let answer = |methods: &[Method], answer: &[u8]| {
        let mut hello = Vec::new();
        let (said, result) = feed(exit(7, methods, &mut hello), &mut &*answer);
        assert!(said.is_empty(), "and says nothing more");
        result.expect_err("not offered").to_string()
    };
    assert_eq!(answer(&[CHACHA], &[0x81, 1]), "inter-server chose cipher 0x01: expected one of those offered, chacha20-poly1305");
    assert_eq!(answer(&[AES], &[0x81, 4]), "inter-server chose cipher 0x04: expected one of those offered, aes-128-gcm");
    assert_eq!(
        answer(&[AES, CHACHA], &[0x81, 0xff]),
        "inter-server allows none of the ciphers offered: aes-128-gcm, chacha20-poly1305. see --cipher on both sides"
    );
}

#[test]
fn each_side_closes_on_another_version_and_on_0x80_says_where_to_look() {
    let at_entry = |first: u8| feed(entry(keys(&[("berlin", 7)]), &[AES], NONCE), &mut [first, 1, 0].as_slice());
    let at_exit = |first: u8| feed(exit(7, &[AES], &mut Vec::new()), &mut [first].as_slice());
    for first in (0..=255).filter(|first| *first != 0x81) {
        for (who, (said, result)) in [("server", at_entry(first)), ("inter-server", at_exit(first))] {
            let hint = if first == 0x80 { ", see --protocol" } else { "" };
            assert_eq!(result.expect_err("another version").to_string(), format!("{who} speaks {first:#04x}: expected 0x81{hint}"));
            assert!(said.is_empty());
        }
    }
}

#[test]
fn the_key_that_fits_gives_the_exit_its_name_and_256_can_be_held() {
    let names: Vec<String> = (0..KEYS_MAX).map(|number| format!("exit-{number}")).collect();
    let named: Vec<(&str, u8)> = names.iter().zip(0..=255).map(|(name, seed)| (name.as_str(), seed)).collect();
    let keys = keys(&named);
    for seed in [0, 1, 99, 255] {
        let met = meet_with(seed, &[AES], Arc::clone(&keys), &[AES]);
        assert_eq!(met.entry.expect("its key is there").name.as_deref(), Some(format!("exit-{seed}").as_str()));
        assert!(met.exit.is_ok());
    }
}

#[test]
fn keys_that_do_not_go_together_are_refused_by_name() {
    let new = |named: &[(&str, u8)]| Keys::new(named.iter().map(|(name, seed)| (Arc::from(*name), psk(*seed)))).map(|_| ());
    assert_eq!(new(&[]), Err(KeysError::None));
    assert_eq!(new(&[("a", 1), ("b", 2), ("a", 3)]), Err(KeysError::SameName { name: "a".to_owned() }));
    assert_eq!(new(&[("a", 1), ("b", 2), ("c", 1)]), Err(KeysError::SameKey { first: "a".to_owned(), second: "c".to_owned() }));
    let many: Vec<(Arc<str>, _)> = (0..257).map(|number: u32| (number.to_string().into(), psk(0))).collect();
    assert_eq!(Keys::new(many).map(|_| ()), Err(KeysError::TooMany { got: 257 }));
    let held = keys(&[("a", 1), ("b", 2)]);
    assert!(held.has_name("b") && !held.has_name("c") && held.holds("b", &psk(2)) && !held.holds("b", &psk(1)));
    assert_eq!(held.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_wrong_key_and_garbage_are_closed_alike_without_a_byte_and_without_an_operation_on_the_curve() {
    let keys = keys(&[("berlin", 7), ("oslo", 8)]);
    let met = meet_with(9, &[AES], Arc::clone(&keys), &[AES]);
    assert_eq!(met.entry.expect_err("not its key"), HandshakeError::WrongKey);
    assert_eq!(
        met.exit.expect_err("closed on").to_string(),
        "closed after our login message: the inter-server does not know this key, or is none"
    );
    assert_eq!(met.to_exit.len(), 34, "nothing but the hello's answer");

    let login = met.to_entry[3..].to_vec();
    for (what, login) in [("a wrong key", login), ("garbage", [[48].as_slice(), &[0xa7; 48]].concat())] {
        // Not with a given ephemeral key: setting that would be an operation, too.
        let start = Side::Entry(EntryHandshake::start(Arc::clone(&keys), &[AES], NONCE, AT_ENTRY));
        let before = curve_operations();
        let mut input = [[0x81, 1, 1].as_slice(), &login].concat();
        input.extend_from_slice(&[0; 100]);
        let (said, result) = feed(start, &mut input.as_slice());
        let error = result.expect_err(what);
        assert_eq!((error.to_string().as_str(), said.len()), ("wrong key or not a zhwkproX server", 34), "{what}");
        assert_eq!(curve_operations(), before, "{what}");
    }
}

#[test]
fn a_login_of_another_tunnel_is_refused_before_any_diffie_hellman() {
    let keys = keys(&[("berlin", 7)]);
    // One that is good, and recorded.
    let mut hello = Vec::new();
    let recorded = exit(7, &[AES], &mut hello);
    let met = meet(recorded, hello, entry(Arc::clone(&keys), &[AES], NONCE));
    assert!(met.entry.is_ok() && met.exit.is_ok());
    let before = curve_operations();
    let start = Side::Entry(EntryHandshake::start(Arc::clone(&keys), &[AES], [0x5b; 32], AT_ENTRY));
    let (said, result) = feed(start, &mut met.to_entry.as_slice());
    assert_eq!((result.expect_err("replayed"), said.len()), (HandshakeError::WrongKey, 34));
    assert_eq!(curve_operations(), before);
    // A good one costs two: a key pair and the Diffie–Hellman. So the counter counts.
    let mut hello = Vec::new();
    let exit = exit(7, &[AES], &mut hello);
    let (answer, waiting) = feed(Side::Entry(EntryHandshake::start(keys, &[AES], [0x5c; 32], AT_ENTRY)), &mut hello.as_slice());
    let (login, _) = feed(exit, &mut answer.as_slice());
    let before = curve_operations();
    let Ok(Progress::More(waiting)) = waiting else { panic!("it awaits the login") };
    let (said, result) = feed(waiting, &mut login.as_slice());
    assert!(matches!(result, Ok(Progress::More(_))));
    assert_eq!((said.len(), curve_operations() - before), (49, 2));
}

#[test]
fn login_messages_have_one_size() {
    for got in (0..=255).filter(|got| *got != 48) {
        let mut input = [[0x81, 1, 1, got].as_slice(), &[0; 255]].concat();
        let (said, result) = feed(entry(keys(&[("berlin", 7)]), &[AES], NONCE), &mut input.as_slice());
        assert_eq!((said.len(), result.expect_err("size")), (34, HandshakeError::LoginSize { from: "server", got }));

        input = [[0x81, 1].as_slice(), &NONCE, &[got], &[0; 255]].concat();
        let (said, result) = feed(exit(7, &[AES], &mut Vec::new()), &mut input.as_slice());
        assert_eq!((said.len(), result.expect_err("size")), (49, HandshakeError::LoginSize { from: "inter-server", got }));
    }
}

/// Every bit that either side can receive until it is done, in a session that passes without the change.
#[test]
fn no_bit_of_a_handshake_can_be_changed() {
    let met = tunnel(AES);
    assert!(met.exit.is_ok() && met.entry.is_ok());
    let mut flipped = 0;
    for (to_entry, stream) in [(true, &met.to_entry), (false, &met.to_exit)] {
        for bit in 0..stream.len() * 8 {
            let mut changed = stream.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let side = if to_entry { entry(keys(&[("berlin", 7)]), &Method::ALL, NONCE) } else { exit(7, &[AES], &mut Vec::new()) };
            let (said, result) = feed(side, &mut changed.as_slice());
            let which = format!("to the {} side, bit {bit}", if to_entry { "entry" } else { "exit" });
            assert!(!matches!(result, Ok(Progress::Done(_))), "{which}");
            // A hello that offers more ciphers, and a record that is longer, are awaited; all else is refused at once.
            let longer = bit / 8 == if to_entry { 1 } else { usize::MAX } || bit / 8 == if to_entry { 52 } else { 83 };
            assert!(result.is_err() || longer, "{which}: {result:?}");
            let unchanged_until = bit / 8;
            match to_entry {
                true if unchanged_until < 52 => assert!(said.len() <= 34, "{which}: the login is not answered"),
                true => assert_eq!(said.len(), 34 + 49, "{which}: no settings are sent"),
                false if unchanged_until < 34 + 49 => assert!(said.len() <= 49, "{which}: no settings are sent"),
                false => {}
            }
            flipped += 1;
        }
    }
    println!("{flipped} handshakes with one bit flipped, none passed");
}

/// What a side says and how it is done with one stream cut in any way, with the peer's next bytes glued behind.
#[test]
fn every_split_of_a_handshake_gives_the_same_answers_the_same_tunnel_and_the_same_rest() {
    let met = tunnel(CHACHA);
    assert!(met.exit.is_ok() && met.entry.is_ok());
    let rest = b"\x18\0\0\0rest";
    let mut ran = 0_u64;
    for (to_entry, handshake, said) in [(true, &met.to_entry, &met.to_exit[..]), (false, &met.to_exit, &met.to_entry[..])] {
        let stream = [handshake.as_slice(), rest].concat();
        let mut check = |cuts: &[usize]| {
            let mut out = Vec::new();
            let start = if to_entry { entry(keys(&[("berlin", 7)]), &Method::ALL, NONCE) } else { exit(7, &[CHACHA], &mut out) };
            let (mut side, mut left) = (Some(start), Vec::new());
            for piece in pieces(&stream, cuts.iter().copied()) {
                let mut input = piece;
                if let Some(handshake) = side.take() {
                    match handshake.handle(&mut input, &mut out).unwrap_or_else(|error| panic!("cut at {cuts:?}: {error}")) {
                        Progress::More(more) => {
                            assert!(input.is_empty(), "cut at {cuts:?}");
                            side = Some(more);
                        }
                        Progress::Done(authenticated) => {
                            assert_eq!(authenticated.peer, if to_entry { AT_EXIT } else { AT_ENTRY }, "cut at {cuts:?}");
                        }
                    }
                }
                left.extend_from_slice(input);
            }
            assert!(side.is_none() && left == rest && out == said, "cut at {cuts:?}");
            ran += 1;
        };
        // All splits around each place where one part ends and the next begins.
        let ends: &[usize] = if to_entry { &[3, 3 + 49, stream.len() - rest.len()] } else { &[34, 34 + 49, stream.len() - rest.len()] };
        for end in ends {
            let places: Vec<usize> = (end.saturating_sub(4).max(1)..(end + 5).min(stream.len())).collect();
            for mask in 0..1_u32 << places.len() {
                let cuts: Vec<usize> = places.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, place)| *place).collect();
                check(&cuts);
            }
        }
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                check(&[first, second]);
            }
        }
        check(&(1..stream.len()).collect::<Vec<_>>());
    }
    println!("{ran} splits");
}

#[test]
fn a_handshake_that_is_cut_off_is_awaited_and_the_message_of_its_end_says_how_far_it_came() {
    let met = tunnel(AES);
    for (to_entry, stream) in [(true, &met.to_entry), (false, &met.to_exit)] {
        for length in 0..stream.len() {
            let side = if to_entry { entry(keys(&[("berlin", 7)]), &[AES], NONCE) } else { exit(7, &[AES], &mut Vec::new()) };
            let (_, result) = feed(side, &mut &stream[..length]);
            let Ok(Progress::More(side)) = result else { panic!("{length} bytes: {result:?}") };
            let expected = match (to_entry, length) {
                (true, ..3) => "the server's hello",
                (true, ..52) => "the server's login message",
                (true, _) => "the server's settings",
                (false, ..34) => "the inter-server's hello",
                (false, ..83) => "the inter-server's answer to our login message",
                (false, _) => "the inter-server's settings",
            };
            assert_eq!(side.awaits(), expected, "{length} bytes");
            let closed = if !to_entry && length == 34 {
                "closed after our login message: the inter-server does not know this key, or is none".to_owned()
            } else {
                format!("closed before {expected}")
            };
            assert_eq!(side.closed().to_string(), closed, "{length} bytes");
            assert!(format!("{side:?}").contains(expected));
        }
    }
}

/// A peer that has the key and breaks the rules of the first record.
#[test]
fn a_first_record_that_breaks_a_rule_ends_the_tunnel() {
    // The inter-server's side, with secrets that are known: two tunnels with the same ephemeral keys and nonce are the same tunnel.
    let again = |first: &dyn Fn(&mut Vec<u8>)| {
        let met = tunnel(AES);
        let (handshake, exit_record) = met.to_entry.split_at(52);
        assert!(exit_record.len() == 4 + 8 + 12 + 16);
        let mut changed = exit_record.to_vec();
        first(&mut changed);
        let side = entry(keys(&[("berlin", 7)]), &Method::ALL, NONCE);
        let (said, result) = feed(side, &mut [handshake, &changed].concat().as_slice());
        assert_eq!(said.len(), 34 + 49, "nothing more is said");
        result.expect_err("a broken rule")
    };
    assert_eq!(again(&|record| record[0] = 23), HandshakeError::Record(RecordError::FirstLength { got: 23 }));
    assert_eq!(again(&|record| record[1] = 2), HandshakeError::Record(RecordError::FirstLength { got: 36 + 512 }));
    assert_eq!(again(&|record| record[39] ^= 1), HandshakeError::Record(RecordError::Unauthentic));
    // A server with a window that none may have. No call of ours makes one but this.
    let bad = Settings { stream_window: 16_383, max_streams: 7 };
    let mut hello = Vec::new();
    let exit = Side::Exit(ExitHandshake::start(&psk(7), &[AES], bad, &mut hello));
    let met = meet(exit, hello, entry(keys(&[("berlin", 7)]), &[AES], NONCE));
    assert_eq!(met.entry.expect_err("too small"), HandshakeError::Settings(SettingsError::StreamWindow { got: 16_383 }));
    assert_eq!(met.exit.expect_err("closed on").to_string(), "closed before the inter-server's settings");
    assert_eq!(met.to_exit.len(), 34 + 49);
}

#[test]
fn two_tunnels_of_one_key_share_no_secret_and_no_nonce_of_the_curve() {
    let fresh = || {
        let mut hello = Vec::new();
        let exit = Side::Exit(ExitHandshake::start(&psk(7), &[AES], AT_EXIT, &mut hello));
        let met = meet(exit, hello, Side::Entry(EntryHandshake::start(keys(&[("berlin", 7)]), &[AES], NONCE, AT_ENTRY)));
        let (mut exit, entry) = (met.exit.expect("one key"), met.entry.expect("one key"));
        (met.to_entry, record(&mut exit.writer, b"the same"), entry)
    };
    let ((first, first_record, mut first_entry), (second, mut second_record, mut second_entry)) = (fresh(), fresh());
    assert_ne!(first[4..36], second[4..36], "ephemeral keys are fresh, even if a nonce were not");
    assert_ne!(first_record, second_record);
    assert_eq!(first_entry.reader.open(&mut second_record.clone()), Err(RecordError::Unauthentic));
    assert!(second_entry.reader.open(&mut second_record).is_ok());
}

#[test]
fn the_fastest_cipher_comes_first_and_all_are_offered() {
    let mut by_speed = Method::by_speed();
    assert!(by_speed[0] == AES || by_speed == [CHACHA, AES, Method::Aes256Gcm]);
    by_speed.sort_by_key(|method| method.byte());
    assert_eq!(by_speed, Method::ALL);
    for method in Method::ALL {
        assert_eq!((Method::from_byte(method.byte()), method.name().parse()), (Some(method), Ok(method)));
    }
    assert_eq!((Method::from_byte(0), Method::from_byte(4), Method::from_byte(0xff)), (None, None, None));
    assert_eq!(
        "aes-128-ctr".parse::<Method>().expect_err("a cipher of 0x80").to_string(),
        "unknown cipher \"aes-128-ctr\": expected aes-128-gcm, aes-256-gcm or chacha20-poly1305"
    );
}

proptest! {
    #![proptest_config(crate::properties::config())]

    /// Whatever comes: few bytes are said, no more than the handshake's are taken, nobody gets in.
    #[test]
    fn garbage_gets_nobody_in_and_few_bytes_out(garbage in prop::collection::vec(any::<u8>(), 0..700), start in 0..5_usize) {
        let starts: [&[u8]; 5] = [&[], &[0x81], &[0x81, 1, 1], &[0x81, 1, 1, 48], &[0x81, 16]];
        let bytes = [starts[start], &garbage].concat();
        for side in [entry(keys(&[("berlin", 7)]), &Method::ALL, NONCE), exit(7, &Method::ALL, &mut Vec::new())] {
            let mut input = bytes.as_slice();
            let (said, result) = feed(side, &mut input);
            prop_assert!(said.len() <= 49);
            prop_assert!(bytes.len() - input.len() <= 512);
            match result {
                Ok(Progress::Done(_)) => prop_assert!(false, "somebody got in"),
                Ok(Progress::More(_)) => prop_assert!(input.is_empty()),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
