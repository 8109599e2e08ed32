//! What the handshake promises beyond its bytes: nothing is kept that a peer could make large, and two different ciphers notice each other.

use proptest::prelude::*;
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::Side as Role;
use zhwkprox::protocol::v80::handshake::{EntryHandshake, ExitHandshake, HandshakeError, Progress};

use crate::support::{IV, authenticated, cipher, key_of};

/// Both sides until one has an outcome: (exit's error, entry's error).
fn meet(exit_cipher: MessageCipher, entry_cipher: MessageCipher) -> (Option<HandshakeError>, Option<HandshakeError>) {
    let (mut to_entry, mut to_exit) = (Vec::new(), Vec::new());
    let mut exit = Some(ExitHandshake::start(exit_cipher, [0x5a; 32], &mut to_entry));
    let mut entry = Some(EntryHandshake::start(entry_cipher, [0xa5; 16]));
    let (mut exit_error, mut entry_error) = (None, None);
    while let (Some(at_entry), bytes) = (entry.take(), std::mem::take(&mut to_entry)) {
        match at_entry.handle(&mut bytes.as_slice(), &mut to_exit) {
            Ok(Progress::More(more)) => entry = Some(more),
            Ok(Progress::Done(proof)) => assert_eq!(proof.side(), Role::Entry),
            Err(error) => entry_error = Some(error),
        }
        let bytes = std::mem::take(&mut to_exit);
        if let Some(at_exit) = exit.take() {
            match at_exit.handle(&mut bytes.as_slice(), &mut to_entry) {
                Ok(Progress::More(more)) => exit = Some(more),
                Ok(Progress::Done(proof)) => assert_eq!(proof.side(), Role::Exit),
                Err(error) => exit_error = Some(error),
            }
        }
    }
    (exit_error, entry_error)
}

#[test]
fn only_two_ends_with_the_same_key_cipher_and_iv_come_together() {
    let mut other_iv = IV;
    other_iv[15] ^= 1;
    let mut ends: Vec<MessageCipher> = Method::ALL.into_iter().map(cipher).collect();
    ends.push(MessageCipher::new(Method::Aes128Ctr, b"samplekeytomatcH", IV).expect("fits"));
    ends.push(MessageCipher::new(Method::Aes128Ctr, &key_of(Method::Aes128Ctr), other_iv).expect("fits"));
    for (i, exit) in ends.iter().enumerate() {
        for (j, entry) in ends.iter().enumerate() {
            let expected = if i == j { (None, None) } else { (Some(HandshakeError::WrongKey), Some(HandshakeError::Refused)) };
            assert_eq!(meet(exit.clone(), entry.clone()), expected, "exit {exit:?} ({i}), entry {entry:?} ({j})");
        }
    }
}

#[test]
fn a_side_says_what_it_awaits_for_the_message_of_a_time_out() {
    let mut out = Vec::new();
    let exit = ExitHandshake::start(cipher(Method::Aes128Ctr), [0; 32], &mut out);
    assert_eq!(exit.awaits(), "the inter-server's version");
    let Ok(Progress::More(exit)) = exit.handle(&mut [0x80].as_slice(), &mut out) else { panic!("correct so far") };
    assert_eq!(exit.awaits(), "the inter-server's reply to the challenge");
    assert_eq!(format!("{exit:?}"), "ExitHandshake(awaits the inter-server's reply to the challenge)");

    let entry = EntryHandshake::start(cipher(Method::Aes128Ctr), [0; 16]);
    assert_eq!(entry.awaits(), "the server's hello");
    let Ok(Progress::More(entry)) = entry.handle(&mut [0x80, 1, 0, 2].as_slice(), &mut out) else { panic!("correct so far") };
    assert_eq!(entry.awaits(), "the server's challenge");
    let Ok(Progress::More(entry)) = entry.handle(&mut [1, 2].as_slice(), &mut out) else { panic!("correct so far") };
    assert_eq!(entry.awaits(), "the server's verdict");
}

/// A challenge that is the keystream itself: bytes that never came decipher, as zeros, to just what was asked for.
#[test]
fn a_short_reply_fails_even_if_the_missing_bytes_would_have_matched() {
    for method in Method::ALL {
        let mut challenge = [0; 32];
        cipher(method).begin_decrypt().apply(&mut challenge);
        for size in 0..=32_u8 {
            let mut out = Vec::new();
            let reply = [&[0x80, size], vec![0; usize::from(size)].as_slice()].concat();
            let result = ExitHandshake::start(cipher(method), challenge, &mut out).handle(&mut reply.as_slice(), &mut out);
            if size == 32 {
                assert!(matches!(result, Ok(Progress::Done(_))), "{method}: the test's own premise");
            } else {
                assert_eq!(result.expect_err("too short"), HandshakeError::ShortReply { got: size, expected: 32 }, "{method}");
            }
            assert_eq!(out.last(), Some(&u8::from(size == 32)), "{method}, {size} bytes: the verdict");
        }
    }
}

#[test]
fn a_side_answers_as_soon_as_it_can_and_waits_for_nothing_more() {
    for (hello, methods) in [([0x80, 0].as_slice(), 0), (&[0x80, 1, 9], 1), (&[0x80, 3, 9, 9, 9], 3)] {
        let mut out = Vec::new();
        let entry = EntryHandshake::start(cipher(Method::Aes128Ctr), [0; 16]);
        let Ok(Progress::More(entry)) = entry.handle(&mut &*hello, &mut out) else { panic!("correct so far") };
        assert_eq!(out, [0x80], "{methods} methods");
        let Ok(Progress::More(entry)) = entry.handle(&mut [1, 7].as_slice(), &mut out) else { panic!("correct so far") };
        assert_eq!(out.len(), 1 + 1 + 1 + 16, "the reply to a challenge of one byte");
        assert!(matches!(entry.handle(&mut [1].as_slice(), &mut out), Ok(Progress::Done(_))));
    }
}

#[test]
fn the_proofs_name_their_sides() {
    let (entry, exit) = authenticated();
    assert_eq!((entry.side(), exit.side()), (Role::Entry, Role::Exit));
}

proptest! {
    #![proptest_config(crate::properties::config())]

    /// Whatever comes: an answer never outgrows what the handshake says, and an error names what was got.
    #[test]
    fn garbage_ends_in_words_and_in_few_bytes(garbage in prop::collection::vec(any::<u8>(), 0..700), versions in 0..3_usize) {
        let starts: [&[u8]; 3] = [&[], &[0x80], &[0x80, 1, 0, 9]];
        let bytes = [starts[versions], &garbage].concat();
        for exit in [false, true] {
            let mut out = Vec::new();
            let mut input = bytes.as_slice();
            let result = if exit {
                ExitHandshake::start(cipher(Method::Aes128Ctr), [3; 32], &mut out).handle(&mut input, &mut out).map(|_| ())
            } else {
                EntryHandshake::start(cipher(Method::Aes128Ctr), [3; 16]).handle(&mut input, &mut out).map(|_| ())
            };
            prop_assert!(out.len() <= 3 + 33 + 1 || !exit && out.len() <= 1 + 1 + 80);
            let failed = match &result {
                Err(HandshakeError::WrongKey | HandshakeError::ShortReply { .. }) => true,
                Err(error) => { prop_assert!(!error.to_string().is_empty()); false }
                Ok(()) => false,
            };
            prop_assert_eq!(failed, exit && out.len() == 3 + 33 + 1 && out.last() == Some(&0), "the verdict is said if and only if one was reached");
        }
    }
}
