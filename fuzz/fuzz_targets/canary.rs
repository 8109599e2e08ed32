//! Always finds its planted fault: proves that the fuzzer runs, follows coverage, and that a failure is noticed. `smoke.sh` wants it to fail.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let [b'z', b'h', b'w', b'k', ..] = data {
        panic!("the planted fault was found");
    }
});
