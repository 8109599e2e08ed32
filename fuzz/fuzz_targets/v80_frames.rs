//! Frames: any split of any stream gives the same frames as a reader that sees all of it and is written as plainly as can be.
#![no_main]

mod pieces;

use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::frame::{Destination, FrameError, FrameReader, Header, Piece};

/// Frames with as much of their payload as came, and the error at the end, if there is one.
type Seen = (Vec<(Header, Vec<u8>)>, Option<FrameError>);

fn plainly(cipher: &MessageCipher, mut stream: &[u8]) -> Seen {
    let mut seen = Vec::new();
    loop {
        let size = match stream.first() {
            None => return (seen, None),
            Some(4) => 4,
            Some(6) => 16,
            Some(got) => return (seen, Some(FrameError::AddressKind { got: *got })),
        };
        if stream.len() < 1 + size + 6 {
            return (seen, None);
        }
        let port = u16::from_be_bytes([stream[1 + size], stream[2 + size]]);
        let length = u32::from_le_bytes(stream[3 + size..7 + size].try_into().unwrap());
        let destination = match size {
            4 => Destination::V4(stream[1..5].try_into().unwrap(), port),
            _ => Destination::V6(stream[1..17].try_into().unwrap(), port),
        };
        stream = &stream[7 + size..];
        let (payload, rest) = stream.split_at(stream.len().min(length as usize));
        let mut payload = payload.to_vec();
        cipher.begin_decrypt().apply(&mut payload);
        seen.push((Header { destination, length }, payload));
        stream = rest;
    }
}

fn in_pieces<'a>(cipher: &MessageCipher, pieces: impl Iterator<Item = &'a [u8]>) -> Seen {
    let mut reader = FrameReader::new(cipher.clone());
    let mut seen: Vec<(Header, Vec<u8>)> = Vec::new();
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let mut at = 0;
        loop {
            match reader.next(&mut bytes, &mut at) {
                Ok(None) => break,
                Ok(Some(Piece::Header(header))) => seen.push((header, Vec::new())),
                Ok(Some(Piece::Payload { destination, range, last })) => {
                    let (header, payload) = seen.last_mut().expect("a header comes first");
                    assert!(destination == header.destination && !range.is_empty() && range.end == at);
                    payload.extend_from_slice(&bytes[range]);
                    assert_eq!(last, payload.len() as u64 == u64::from(header.length));
                }
                Err(error) => {
                    assert_eq!(reader.next(&mut bytes, &mut at), Err(error), "an error is final");
                    return (seen, Some(error));
                }
            }
        }
        assert_eq!(at, bytes.len());
    }
    (seen, None)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((method, data)) = data.split_first() else { return };
    let method = Method::ALL[usize::from(*method) % 3];
    let key: Vec<u8> = (0..method.key_bytes()).map(|i| i as u8).collect();
    let cipher = MessageCipher::new(method, &key, [9; 16]).unwrap();
    let (cuts, stream) = pieces::cut(data);

    let plainly = plainly(&cipher, stream);
    assert_eq!(in_pieces(&cipher, pieces::pieces(stream, &cuts)), plainly);
    assert_eq!(in_pieces(&cipher, stream.chunks(1)), plainly);

    // What was read can be written again: the headers are the bytes.
    for (header, _) in &plainly.0 {
        let bytes = header.encode();
        assert!(stream.windows(bytes.len()).any(|window| window == bytes.as_slice()));
    }
});
