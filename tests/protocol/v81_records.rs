//! Records of 0x81: what was changed, lost, repeated or moved does not come out, lengths outside the rules end the tunnel, and the keys step
//! where they should.

use zhwkprox::crypto::aead::{EPOCH_RECORDS, Method, Opener, Sealer};
use zhwkprox::protocol::v81::record::{
    FIRST_RECORD_MAX, PLAINTEXT_MAX, RECORD_HEADER, RECORD_MAX, RecordError, RecordReader, RecordWriter, TAG,
};

use crate::v81_channel::{open_all, record, tunnel};

const SECRET: [u8; 32] = [0x3c; 32];

fn writer(method: Method) -> RecordWriter {
    RecordWriter::new(Sealer::new(method, &SECRET))
}

fn reader(method: Method) -> RecordReader {
    RecordReader::new(Opener::new(method, &SECRET))
}

/// Plaintexts of three records, the longest 30 bytes.
fn three() -> [Vec<u8>; 3] {
    [b"the first".to_vec(), b"another one, and a longer one".to_vec(), b"the third".to_vec()]
}

#[test]
fn what_is_sealed_comes_out_with_every_method_and_every_length_that_there_is() {
    for method in Method::ALL {
        let (mut writer, mut reader) = (writer(method), reader(method));
        let lengths = [8, 9, 240].into_iter().chain(8..200).chain([1000, 16_384, PLAINTEXT_MAX - 1, PLAINTEXT_MAX]);
        for length in lengths {
            let plaintext: Vec<u8> = (0..=250).cycle().take(length).collect();
            let mut sealed = record(&mut writer, &plaintext);
            assert_eq!(reader.whole(&sealed), Ok(Some(length + RECORD_HEADER + TAG)), "{method}, {length}");
            assert_ne!(sealed[RECORD_HEADER..RECORD_HEADER + length], plaintext, "{method}, {length}: enciphered");
            let range = reader.open(&mut sealed).unwrap_or_else(|error| panic!("{method}, {length}: {error}"));
            assert_eq!(sealed[range], plaintext, "{method}, {length}");
        }
    }
}

#[test]
fn each_bit_of_a_session_that_is_flipped_ends_it_at_its_record_and_nothing_of_that_comes_out() {
    let mut flipped = 0;
    for method in Method::ALL {
        let mut writer = writer(method);
        let records = three().map(|plaintext| record(&mut writer, &plaintext));
        let stream = records.concat();
        for bit in 0..stream.len() * 8 {
            let mut changed = stream.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let (first, second) = (records[0].len(), records[0].len() + records[1].len());
            let before = usize::from(bit / 8 >= first) + usize::from(bit / 8 >= second);
            // A length field that announces more than comes: what would follow must not help it.
            changed.extend_from_slice(&[0; 70_000]);
            let mut reader = reader(method);
            let (seen, error) = open_all(&mut reader, &mut changed);
            assert_eq!(seen, three()[..before], "{method}, bit {bit}");
            let error = error.unwrap_or_else(|| panic!("{method}, bit {bit}: passed"));
            let length_error = matches!(error, RecordError::Length { .. } | RecordError::FirstLength { .. });
            assert!(error == RecordError::Unauthentic || length_error && bit / 8 < stream.len(), "{method}, bit {bit}: {error}");
            for plaintext in &three()[before..] {
                assert!(!changed.windows(plaintext.len()).any(|window| window == plaintext), "{method}, bit {bit}: plaintext lies there");
            }
            flipped += 1;
        }
    }
    println!("{flipped} sessions with one bit flipped, all refused");
}

#[test]
fn a_record_that_is_cut_off_is_awaited_and_never_given() {
    let plaintext = three()[0].clone();
    let sealed = record(&mut writer(Method::Aes128Gcm), &plaintext);
    for length in 0..sealed.len() {
        let mut reader = reader(Method::Aes128Gcm);
        let expected = if length < RECORD_HEADER { None } else { Some(sealed.len()) };
        assert_eq!(reader.whole(&sealed[..length]), Ok(expected));
        let mut cut = sealed[..length].to_vec();
        assert!(matches!(reader.open(&mut cut), Err(RecordError::NotWhole { got, .. }) if got == length), "{length} bytes");
        assert_eq!(reader.open(&mut sealed.clone()), Err(RecordError::AfterRefused));
    }
    let mut longer = [sealed.as_slice(), &[0]].concat();
    assert!(matches!(reader(Method::Aes128Gcm).open(&mut longer), Err(RecordError::NotWhole { .. })));
}

#[test]
fn a_record_that_is_repeated_lost_moved_or_reflected_is_refused() {
    for method in Method::ALL {
        let mut own = writer(method);
        let [first, second, third] = three().map(|plaintext| record(&mut own, &plaintext));
        let mut other = RecordWriter::new(Sealer::new(method, &[0x3d; 32]));
        let foreign = record(&mut other, &three()[0]);
        let orders: [(&str, Vec<&[u8]>, usize); 7] = [
            ("repeated", vec![&first, &first], 1),
            ("repeated later", vec![&first, &second, &first], 2),
            ("lost", vec![&first, &third], 1),
            ("the first lost", vec![&second, &third], 0),
            ("moved", vec![&second, &first, &third], 0),
            ("of another session, first", vec![&foreign], 0),
            ("of another session, later", vec![&first, &foreign], 1),
        ];
        for (what, records, before) in orders {
            let mut reader = reader(method);
            let (seen, error) = open_all(&mut reader, &mut records.concat());
            assert_eq!((seen.as_slice(), error), (&three()[..before], Some(RecordError::Unauthentic)), "{method}: {what}");
            // The right one after all does not mend it.
            let mut right = [&first, &second, &third][before].clone();
            assert_eq!(reader.open(&mut right), Err(RecordError::AfterRefused), "{method}: {what}");
            assert_eq!(reader.whole(&right), Err(RecordError::AfterRefused), "{method}: {what}");
        }
    }
    // Both directions of one tunnel have their own keys.
    let met = tunnel(Method::Aes256Gcm);
    let (mut exit, mut entry) = (met.exit.expect("one key"), met.entry.expect("one key"));
    let mut reflected = record(&mut exit.writer, &three()[0]);
    assert_eq!(exit.reader.open(&mut reflected.clone()), Err(RecordError::Unauthentic));
    assert!(entry.reader.open(&mut reflected).is_ok(), "the test's own premise");
}

#[test]
fn lengths_outside_the_rules_end_the_tunnel_before_anything_is_awaited() {
    let first = reader(Method::Aes128Gcm);
    let mut later = reader(Method::Aes128Gcm);
    let mut writer = writer(Method::Aes128Gcm);
    later.open(&mut record(&mut writer, b"settings")).expect("the first record");
    for length in [0, 1, 15, 16, 23, 24, 255, 256, 257, 65_403, 65_404, 65_405, 65_536, 1 << 24, u32::MAX] {
        let header = length.to_le_bytes();
        let of_first =
            if (24..=256).contains(&length) { Ok(Some(4 + length as usize)) } else { Err(RecordError::FirstLength { got: length }) };
        let of_later =
            if (24..=65_404).contains(&length) { Ok(Some(4 + length as usize)) } else { Err(RecordError::Length { got: length }) };
        assert_eq!(first.whole(&header), of_first, "{length}");
        assert_eq!(later.whole(&header), of_later, "{length}");
    }
    assert_eq!((FIRST_RECORD_MAX, RECORD_MAX, PLAINTEXT_MAX), (256, 65_404, 65_388));
    assert_eq!(RecordError::Length { got: 65_405 }.to_string(), "peer's record has length 65405: expected 24 to 65404");
    // Also a first record that is sealed as it should be, and too long.
    let mut long = record(&mut self::writer(Method::Aes128Gcm), &[7; 241]);
    assert_eq!(reader(Method::Aes128Gcm).open(&mut long), Err(RecordError::FirstLength { got: 257 }));
}

#[test]
fn short_epochs_step_together_and_different_ones_part_at_the_step() {
    for method in Method::ALL {
        let epochs_of = |records| RecordReader::new(Opener::with_epochs_of(records, method, &SECRET));
        let mut writer = RecordWriter::new(Sealer::with_epochs_of(4, method, &SECRET));
        let records: Vec<Vec<u8>> = (0..41_u64).map(|number| record(&mut writer, &number.to_le_bytes())).collect();
        let opened = |mut reader: RecordReader| open_all(&mut reader, &mut records.concat());
        let all: Vec<Vec<u8>> = (0..41_u64).map(|number| number.to_le_bytes().to_vec()).collect();
        assert_eq!(opened(epochs_of(4)), (all.clone(), None), "{method}");
        assert_eq!(opened(epochs_of(5)), (all[..4].to_vec(), Some(RecordError::Unauthentic)), "{method}");
        assert_eq!(opened(epochs_of(3)), (all[..3].to_vec(), Some(RecordError::Unauthentic)), "{method}");
        // The numbers begin again, the keys do not: equal plaintexts under equal numbers differ.
        let mut writer = RecordWriter::new(Sealer::with_epochs_of(1, method, &SECRET));
        let same: Vec<Vec<u8>> = (0..3).map(|_| record(&mut writer, b"the same")).collect();
        assert!(same[0] != same[1] && same[1] != same[2] && same[0] != same[2], "{method}");
    }
}

#[test]
fn a_tunnel_steps_to_its_next_key_after_2_to_the_20_records_and_goes_on() {
    assert_eq!(EPOCH_RECORDS, 1 << 20);
    let method = Method::Aes128Gcm;
    let (mut writer, mut reader) = (writer(method), reader(method));
    let mut never = RecordReader::new(Opener::with_epochs_of(u32::MAX, method, &SECRET));
    for number in 0..(1_u64 << 20) + 3 {
        let plaintext = number.to_le_bytes();
        let mut sealed = plaintext;
        let (header, tag) = writer.seal(&mut sealed);
        let mut whole = [0; 28];
        whole[..4].copy_from_slice(&header);
        whole[4..12].copy_from_slice(&sealed);
        whole[12..].copy_from_slice(&tag);
        let mut copy = whole;
        let range = reader.open(&mut whole).unwrap_or_else(|error| panic!("record {number}: {error}"));
        assert_eq!(whole[range], plaintext);
        match number.cmp(&(1 << 20)) {
            std::cmp::Ordering::Less => assert!(never.open(&mut copy).is_ok()),
            std::cmp::Ordering::Equal => assert_eq!(never.open(&mut copy), Err(RecordError::Unauthentic)),
            std::cmp::Ordering::Greater => {}
        }
    }
}

#[test]
fn no_debug_output_of_the_channel_shows_more_than_the_method() {
    let met = tunnel(Method::ChaCha20Poly1305);
    let exit = met.exit.expect("one key");
    assert_eq!(format!("{:?}", exit.reader), "RecordReader(Opener(chacha20-poly1305, ..))");
    assert_eq!(format!("{:?}", exit.writer), "RecordWriter(Sealer(chacha20-poly1305, ..))");
    assert_eq!(format!("{:?}", crate::v81_channel::psk(7)), "Psk(..)");
}
