//! What 0x80's frames cost, cipher included: sealing one, reading one that came whole, and reading one that came in pieces. What a frame
//! costs beside its cipher shows at 64 bytes, beside `benches/cipher.rs`.

mod support;

use std::hint::black_box;

use criterion::measurement::Measurement;
use criterion::{BenchmarkGroup, BenchmarkId, Throughput};
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::limits::V80_FRAME_MAX;
use zhwkprox::protocol::v80::frame::{Destination, FrameReader, Piece, empty, seal};

const DESTINATION: Destination = Destination::V4([192, 0, 2, 7], 443);
const PAYLOADS: [usize; 4] = [64, 1_460, 16_384, V80_FRAME_MAX];
/// Payload of a segment on Ethernet.
const SEGMENT: usize = 1_460;

fn main() {
    let mut criterion = support::criterion();
    let cipher = MessageCipher::new(Method::Aes128Ctr, &[7; 16], [9; 16]).expect("the key fits");
    let mut group = criterion.benchmark_group("frame");
    group.bench_function("encode empty", |bencher| bencher.iter(|| empty(black_box(DESTINATION))));
    for size in PAYLOADS {
        group.throughput(Throughput::Bytes(size as u64));
        let mut payload = vec![0x5a; size];
        group.bench_function(BenchmarkId::new("encode", size), |bencher| {
            bencher.iter(|| seal(&cipher, DESTINATION, black_box(&mut payload)));
        });
    }
    for size in PAYLOADS {
        decode(&mut group, "decode whole", &cipher, size, usize::MAX);
    }
    for size in &PAYLOADS[1..] {
        decode(&mut group, "decode segments", &cipher, *size, SEGMENT);
    }
    for size in &PAYLOADS[..2] {
        decode(&mut group, "decode bytes", &cipher, *size, 1);
    }
    group.finish();
    criterion.final_summary();
}

/// Reads one frame, in pieces of at most `piece` bytes. Counter mode is its own inverse, so what was read can be read again.
fn decode<M: Measurement>(group: &mut BenchmarkGroup<'_, M>, name: &str, cipher: &MessageCipher, size: usize, piece: usize) {
    let mut payload = vec![0x5a; size];
    let header = seal(cipher, DESTINATION, &mut payload);
    let mut wire = [header.as_slice(), &payload].concat();
    let mut reader = FrameReader::new(cipher.clone());
    group.throughput(Throughput::Bytes(size as u64));
    group.bench_function(BenchmarkId::new(name, size), |bencher| {
        bencher.iter(|| {
            let mut whole = false;
            for arrived in black_box(&mut wire).chunks_mut(piece) {
                let mut at = 0;
                while let Some(what) = reader.next(arrived, &mut at).expect("a frame") {
                    whole = matches!(black_box(what), Piece::Payload { last: true, .. });
                }
            }
            assert!(whole, "the frame is read to its end");
        });
    });
}
