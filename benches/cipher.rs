//! What enciphering costs: 0x80's ciphers, the AEADs of 0x81's records, OpenSSL's ciphers, and memcpy as the bound that none can pass.
//! All work in place, on memory that is in the cache.
//!
//! 0x80's ciphers begin each message at the same IV; so does OpenSSL here. Its key schedule is kept as ours is.

#[path = "support/openssl.rs"]
mod openssl;
mod support;

use std::ffi::CStr;
use std::hint::black_box;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use criterion::measurement::Measurement;
use criterion::{BenchmarkGroup, BenchmarkId, Throughput};
use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};

/// A keystroke, a packet, a page, a read of most programs, a slot.
const SIZES: [usize; 5] = [64, 1_460, 4_096, 16_384, 65_536];
const KEY: [u8; 32] = [7; 32];
/// Its low half is far from wrapping, as of most IVs.
const IV: [u8; 16] = [9; 16];
/// What a record authenticates beside its bytes: its length field.
const HEADER_BYTES: usize = 4;

fn main() {
    let mut criterion = support::criterion();
    let mut group = criterion.benchmark_group("cipher");
    each_size(&mut group, "memcpy", {
        let from = vec![1; SIZES[SIZES.len() - 1]];
        move |data| data.copy_from_slice(&black_box(&from)[..data.len()])
    });
    for (method, theirs) in Method::ALL.into_iter().zip([c"EVP_aes_128_ctr", c"EVP_aes_256_ctr", c"EVP_aes_128_cfb128"]) {
        let key = &KEY[..method.key_bytes()];
        let ours = MessageCipher::new(method, key, IV).expect("the key fits");
        each_size(&mut group, method.name(), |data| ours.begin_encrypt().apply(data));
        if let Some(mut cipher) = installed(openssl::Cipher::encryptor(theirs, key, IV)) {
            agree(&ours, &mut cipher, theirs);
            each_size(&mut group, &format!("openssl {method}"), |data| cipher.apply(data));
        }
        // In counter mode it is the same work.
        if method == Method::Aes128Cfb {
            each_size(&mut group, &format!("{method} decrypt"), |data| ours.begin_decrypt().apply(data));
            if let Some(mut cipher) = installed(openssl::Cipher::decryptor(theirs, key, IV)) {
                each_size(&mut group, &format!("openssl {method} decrypt"), |data| cipher.apply(data));
            }
        }
    }
    for (name, algorithm) in [("aes-128-gcm", &AES_128_GCM), ("aes-256-gcm", &AES_256_GCM), ("chacha20-poly1305", &CHACHA20_POLY1305)] {
        each_size(&mut group, &format!("aws-lc {name}"), sealer(algorithm));
    }
    group.finish();
    criterion.final_summary();
}

fn each_size<M: Measurement>(group: &mut BenchmarkGroup<'_, M>, name: &str, mut work: impl FnMut(&mut [u8])) {
    for size in SIZES {
        let mut data = vec![0x5a; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new(name, size), |bencher| bencher.iter(|| work(black_box(&mut data))));
    }
}

/// Seals records under one key, each with the next nonce.
fn sealer(algorithm: &'static Algorithm) -> impl FnMut(&mut [u8]) {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, &KEY[..algorithm.key_len()]).expect("the key fits"));
    let mut records = 0_u64;
    move |data| {
        records += 1;
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&records.to_be_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from([0; HEADER_BYTES]), data).expect("a short record");
        let _ = black_box(tag);
    }
}

/// Says so, loudly, where there is no OpenSSL to compare with.
fn installed(cipher: Option<openssl::Cipher>) -> Option<openssl::Cipher> {
    if cipher.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no libcrypto.so.3: apt-get install openssl");
        eprintln!("skipped: OpenSSL's ciphers, as libcrypto.so.3 is not installed (apt-get install openssl)");
    }
    cipher
}

/// Two ciphers are worth comparing if they give the same bytes.
fn agree(ours: &MessageCipher, theirs: &mut openssl::Cipher, name: &CStr) {
    for size in SIZES {
        let (mut one, mut other) = (vec![3; size], vec![3; size]);
        ours.begin_encrypt().apply(&mut one);
        theirs.apply(&mut other);
        assert!(one == other, "{name:?} and ours differ on {size} bytes");
    }
}
