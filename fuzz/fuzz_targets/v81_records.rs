//! Records of 0x81: a stream of them with anything laid over it gives the records before the first change, just as they were, and nothing
//! after; lengths are judged alike however many bytes have come.
#![no_main]

mod pieces;

use zhwkprox::crypto::aead::{Method, Opener, Sealer};
use zhwkprox::protocol::v81::record::{RecordError, RecordReader, RecordWriter};

const EPOCH: u32 = 3;

/// Takes records as a tunnel does, from pieces; the plaintexts, and the error at the end, if there is one.
fn read<'a>(method: Method, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Option<RecordError>) {
    let mut reader = RecordReader::new(Opener::with_epochs_of(EPOCH, method, &[9; 32]));
    let (mut held, mut seen) = (Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let whole = match reader.whole(&held) {
                Ok(Some(whole)) if whole <= held.len() => whole,
                Ok(whole) => {
                    assert!(whole.is_some() == (held.len() >= 4));
                    break;
                }
                Err(error) => return (seen, Some(error)),
            };
            let mut record: Vec<u8> = held.drain(..whole).collect();
            match reader.open(&mut record) {
                Ok(range) => {
                    assert!(range.start == 4 && range.end + 16 == whole);
                    seen.push(record[range].to_vec());
                }
                Err(error) => {
                    assert!(record[4..whole - 16].iter().all(|byte| *byte == 0), "nothing of it comes out");
                    assert_eq!(reader.whole(&[24, 0, 0, 0]), Err(RecordError::AfterRefused), "an error is final");
                    return (seen, Some(error));
                }
            }
        }
    }
    (seen, None)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [mode, count, data @ ..] = data else { return };
    let method = Method::ALL[usize::from(*mode) % 3];
    let (lengths, data) = data.split_at(usize::from(count & 7).min(data.len()));
    let (cuts, laid) = pieces::cut(data);

    let mut writer = RecordWriter::new(Sealer::with_epochs_of(EPOCH, method, &[9; 32]));
    let plaintexts: Vec<Vec<u8>> = lengths.iter().map(|length| vec![*length; 8 + usize::from(*length % 233)]).collect();
    let (mut stream, mut ends) = (Vec::new(), Vec::new());
    for plaintext in &plaintexts {
        let mut sealed = plaintext.clone();
        let (header, tag) = writer.seal(&mut sealed);
        stream.extend_from_slice(&[header.as_slice(), &sealed, &tag].concat());
        ends.push(stream.len());
    }
    let sealed = stream.len();
    stream.resize(sealed.max(laid.len()), 0);
    for (to, from) in stream.iter_mut().zip(laid) {
        *to ^= from;
    }

    let whole = read(method, std::iter::once(stream.as_slice()));
    let cuts: Vec<usize> = cuts.iter().map(|at| (*at).min(stream.len())).collect();
    assert_eq!(whole, read(method, pieces::pieces(&stream, &cuts)));
    assert_eq!(whole, read(method, stream.chunks(1)));
    let unchanged = laid.iter().position(|byte| *byte != 0).unwrap_or(stream.len());
    let before = ends.iter().filter(|end| **end <= unchanged).count();
    assert!(whole.0 == plaintexts[..before], "the records before the first change, and no other");
});
