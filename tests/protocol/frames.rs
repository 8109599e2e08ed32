//! Frames: what a key is, and what a header may claim.

use std::net::SocketAddr;

use aes::Aes128Enc;
use cipher::{BlockCipherEncrypt, KeyInit};
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::Profile;
use zhwkprox::protocol::v80::frame::{Destination, FrameReader, Header, Piece, empty};

use crate::counting::allocations_of;
use crate::support::{IV, V4, V6, cipher, key_of};

fn destination(text: &str) -> Destination {
    Destination::from(text.parse::<SocketAddr>().expect("an address"))
}

#[test]
fn a_key_is_its_bytes_and_a_mapped_address_is_another_one() {
    let (v4, mapped) = (destination("192.0.2.7:443"), destination("[::ffff:192.0.2.7]:443"));
    assert_eq!(v4, V4);
    assert_ne!(v4, mapped);
    assert_ne!(v4, destination("192.0.2.7:444"));
    assert_eq!((v4.header_bytes(), mapped.header_bytes()), (11, 23));
    for text in ["192.0.2.7:443", "[::ffff:192.0.2.7]:443", "[2001:db8::1]:8080", "0.0.0.0:0"] {
        let key = destination(text);
        assert_eq!(Destination::from(key.to_socket_addr()), key, "there and back");
        assert_eq!((key.to_string().as_str(), format!("{key:?}").as_str()), (text, text));
    }
    let scoped = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::1".parse().expect("an address"), 22, 5, 3));
    assert_eq!(Destination::from(scoped), destination("[fe80::1]:22"), "a scope has no place on the wire");
}

#[test]
fn an_original_program_gets_no_frame_of_more_than_1024_bytes() {
    assert_eq!(Profile::Original.payload_max(V4) + V4.header_bytes(), 1024);
    assert_eq!(Profile::Original.payload_max(V6) + V6.header_bytes(), 1024);
    assert_eq!(Profile::Ours.payload_max(V6) + V6.header_bytes(), zhwkprox::limits::SLOT_DATA);
}

#[test]
fn empty_frames_one_after_another_are_headers_and_nothing_else() {
    let mut bytes: Vec<u8> = [empty(V4), empty(V6), empty(V4)].iter().flat_map(|header| header.to_vec()).collect();
    let (mut reader, mut at) = (FrameReader::new(cipher(Method::Aes128Ctr)), 0);
    for destination in [V4, V6, V4] {
        assert_eq!(reader.next(&mut bytes, &mut at), Ok(Some(Piece::Header(Header { destination, length: 0 }))));
        assert!(reader.is_between_frames());
    }
    assert_eq!((reader.next(&mut bytes, &mut at), at), (Ok(None), 45));
}

/// Streams a frame of 4 GiB − 1 through one buffer of 64 KiB and looks at its last block, whose keystream AES gives directly.
/// The IV is the last one for which a counter of 32 bits does: its last block is 0xffff_ffff.
#[test]
fn a_frame_that_claims_4_gib_is_streamed_without_allocating() {
    let mut iv = IV;
    iv[12..].copy_from_slice(&[0xf0, 0, 0, 0]);
    let cipher = MessageCipher::new(Method::Aes128Ctr, &key_of(Method::Aes128Ctr), iv).expect("the key fits");
    let mut reader = FrameReader::new(cipher);
    let mut header = Header { destination: V4, length: u32::MAX }.encode().to_vec();
    let mut at = 0;
    assert!(matches!(reader.next(&mut header, &mut at), Ok(Some(Piece::Header(Header { length: u32::MAX, .. })))));

    let mut buffer = vec![0; 65_536];
    let (mut taken, mut pieces, mut over) = (0_u64, 0_u64, false);
    let allocations = allocations_of(|| {
        while !over {
            let room = usize::try_from((u64::from(u32::MAX) - taken).min(65_536)).expect("small");
            if room < 65_536 {
                buffer.fill(0);
            }
            let mut at = 0;
            while let Some(piece) = reader.next(&mut buffer[..room], &mut at).expect("a frame") {
                let Piece::Payload { destination, range, last } = piece else { panic!("one header") };
                assert_eq!((destination, range.clone()), (V4, 0..room));
                taken += range.len() as u64;
                pieces += 1;
                over = last;
            }
        }
    });
    assert_eq!((allocations, taken, pieces), (0, u64::from(u32::MAX), 65_536));
    assert!(reader.is_between_frames());

    let mut expected = (u128::from_be_bytes(iv) + (1 << 28) - 1).to_be_bytes().into();
    Aes128Enc::new_from_slice(&key_of(Method::Aes128Ctr)).expect("the key fits").encrypt_block(&mut expected);
    assert_eq!(buffer[65_520..65_535], expected[..15], "the last 15 bytes lie under block 2^28 - 1");
}

/// The same claim with the other kinds of cipher: a few pieces are enough to see that nothing is taken for it.
#[test]
fn a_claim_costs_nothing_before_its_bytes_come() {
    for method in Method::ALL {
        for destination in [V4, V6] {
            let mut reader = FrameReader::new(cipher(method));
            let mut bytes = [Header { destination, length: u32::MAX }.encode().as_slice(), &[0; 4096]].concat();
            let allocations = allocations_of(|| {
                let mut at = 0;
                while reader.next(&mut bytes, &mut at).expect("a frame").is_some() {}
                assert_eq!(at, bytes.len());
            });
            assert_eq!(allocations, 0, "{method}");
        }
    }
}
