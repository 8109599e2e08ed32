//! The fixed-IV cipher: cut anywhere, at any IV, against openssl and against AES itself.

use proptest::prelude::*;
use serde_json::Value;
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method, WrongKeyLength};

use crate::support::{IV, cipher, unhex};
use crate::transcript;

#[test]
fn every_method_has_the_name_by_which_it_is_chosen() {
    for (method, name, key_bytes) in
        [(Method::Aes128Ctr, "aes-128-ctr", 16), (Method::Aes256Ctr, "aes-256-ctr", 32), (Method::Aes128Cfb, "aes-128-cfb", 16)]
    {
        assert_eq!((method.to_string().as_str(), method.key_bytes()), (name, key_bytes));
        assert_eq!(name.parse(), Ok(method));
    }
    let unknown = "AES-128-CTR".parse::<Method>().expect_err("names are lower case");
    assert_eq!(unknown.to_string(), "unknown cipher \"AES-128-CTR\": expected aes-128-ctr, aes-256-ctr or aes-128-cfb");
}

#[test]
fn a_key_of_the_wrong_length_is_refused_with_both_numbers() {
    for method in Method::ALL {
        for got in (0..=64).filter(|got| *got != method.key_bytes()) {
            let refused = MessageCipher::new(method, &vec![0; got], IV).expect_err("a wrong length");
            assert_eq!(refused, WrongKeyLength { method, got, expected: method.key_bytes() });
        }
    }
    let refused = MessageCipher::new(Method::Aes256Ctr, b"samplekeytomatch", IV).expect_err("16 bytes for aes-256");
    assert_eq!(refused.to_string(), "aes-256-ctr takes a key of 32 bytes, got 16");
}

#[test]
fn debug_prints_nothing_of_the_key_and_nothing_of_the_keystream() {
    let cipher = cipher(Method::Aes128Cfb);
    let mut encryptor = cipher.begin_encrypt();
    encryptor.apply(&mut [0; 5]);
    let mut decryptor = cipher.begin_decrypt();
    decryptor.apply(&mut [0; 5]);
    assert_eq!(format!("{cipher:?}"), "MessageCipher(aes-128-cfb, ..)");
    assert_eq!(format!("{encryptor:?}"), "Encryptor(aes-128-cfb, ..)");
    assert_eq!(format!("{decryptor:?}"), "Decryptor(aes-128-cfb, ..)");
}

#[test]
fn a_counter_that_would_wrap_carries_as_openssl_carries_it() {
    let file = transcript::file();
    let cases = file["ivs"].as_array().expect("a list");
    assert_eq!(cases.len(), 15);
    for case in cases {
        let text = |name: &str| case[name].as_str().expect("text");
        let method: Method = text("method").parse().expect("a method");
        let iv: [u8; 16] = unhex(text("iv")).try_into().expect("16 bytes");
        let cipher = MessageCipher::new(method, &unhex(text("key")), iv).expect("the key fits");
        for cut in [0, 1, 15, 16, 17, 40, 80] {
            let mut message = unhex(text("plain"));
            let mut encryptor = cipher.begin_encrypt();
            let (first, rest) = message.split_at_mut(cut);
            encryptor.apply(first);
            encryptor.apply(rest);
            assert_eq!(Value::from(hex(&message)), case["cipher"], "{method} with iv {}, cut at {cut}", text("iv"));
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #![proptest_config(crate::properties::config())]

    #[test]
    fn a_message_cut_anywhere_is_the_message_in_one_piece(
        method in prop::sample::select(Method::ALL.to_vec()),
        plain in prop::collection::vec(any::<u8>(), 0..600),
        cuts in prop::collection::vec(0..80_usize, 0..40),
    ) {
        let cipher = cipher(method);
        let mut whole = plain.clone();
        cipher.begin_encrypt().apply(&mut whole);

        let mut pieces = plain.clone();
        let mut encryptor = cipher.begin_encrypt();
        for_each_piece(&mut pieces, &cuts, |piece| encryptor.apply(piece));
        prop_assert_eq!(&pieces, &whole);

        let mut decryptor = cipher.begin_decrypt();
        for_each_piece(&mut pieces, &cuts, |piece| decryptor.apply(piece));
        prop_assert_eq!(&pieces, &plain);
    }
}

fn for_each_piece(mut bytes: &mut [u8], cuts: &[usize], mut apply: impl FnMut(&mut [u8])) {
    for cut in cuts {
        let (piece, rest) = bytes.split_at_mut((*cut).min(bytes.len()));
        apply(piece);
        bytes = rest;
    }
    apply(bytes);
}
