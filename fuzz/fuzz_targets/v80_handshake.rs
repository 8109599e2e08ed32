//! Both sides of the handshake: any split of any input gives the same answers, the same outcome and the same rest. The input is laid over a
//! conversation that passes, so that zeros pass and the fuzzer sees every state.
#![no_main]

mod pieces;

use zhwkprox::crypto::fixed_iv::{MessageCipher, Method};
use zhwkprox::protocol::v80::handshake::{EntryHandshake, ExitHandshake, HandshakeError, Progress};

const CHALLENGE: [u8; 32] = [0x3c; 32];
const TAIL: [u8; 16] = [0x5a; 16];

/// What one side said, how it ended (`None`: it awaits more), and how many bytes it left.
type Outcome = (Vec<u8>, Option<Result<(), HandshakeError>>, Vec<u8>);

fn run<'a>(exit: bool, cipher: &MessageCipher, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    enum Side {
        Exit(ExitHandshake),
        Entry(EntryHandshake),
    }
    let mut said = Vec::new();
    let mut side = Some(if exit {
        Side::Exit(ExitHandshake::start(cipher.clone(), CHALLENGE, &mut said))
    } else {
        Side::Entry(EntryHandshake::start(cipher.clone(), TAIL))
    });
    let (mut end, mut rest) = (None, Vec::new());
    for piece in pieces {
        let mut input = piece;
        let progress = match side.take() {
            None => None,
            Some(Side::Exit(exit)) => Some(exit.handle(&mut input, &mut said).map(|progress| match progress {
                Progress::More(exit) => Some(Side::Exit(exit)),
                Progress::Done(_) => None,
            })),
            Some(Side::Entry(entry)) => Some(entry.handle(&mut input, &mut said).map(|progress| match progress {
                Progress::More(entry) => Some(Side::Entry(entry)),
                Progress::Done(_) => None,
            })),
        };
        match progress {
            Some(Ok(Some(more))) => {
                assert!(input.is_empty(), "all is used before more is asked for");
                side = Some(more);
            }
            Some(Ok(None)) => end = Some(Ok(())),
            Some(Err(error)) => end = Some(Err(error)),
            None => {}
        }
        // What follows an error is nobody's.
        if !matches!(end, Some(Err(_))) {
            rest.extend_from_slice(input);
        }
    }
    (said, end, rest)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let exit = mode & 1 == 1;
    let method = Method::ALL[usize::from(mode >> 1) % 3];
    let key: Vec<u8> = (0..method.key_bytes()).map(|i| i as u8).collect();
    let cipher = MessageCipher::new(method, &key, [9; 16]).unwrap();
    let (cuts, laid) = pieces::cut(data);

    let mut passes = if exit {
        let mut reply = [CHALLENGE.as_slice(), &TAIL].concat();
        cipher.begin_encrypt().apply(&mut reply);
        [&[0x80, 48], reply.as_slice()].concat()
    } else {
        [[0x80, 1, 0, 32].as_slice(), &CHALLENGE, &[1]].concat()
    };
    passes.resize(passes.len().max(laid.len()), 0);
    for (to, from) in passes.iter_mut().zip(laid) {
        *to ^= from;
    }

    let whole = run(exit, &cipher, std::iter::once(passes.as_slice()));
    let cut = run(exit, &cipher, pieces::pieces(&passes, &cuts.iter().map(|at| (*at).min(passes.len())).collect::<Vec<_>>()));
    assert_eq!(whole, cut);
    if laid.iter().all(|byte| *byte == 0) {
        assert_eq!(whole.1, Some(Ok(())), "the conversation underneath passes");
    }
    assert!(whole.0.len() <= 3 + 33 + 1 + 82, "few bytes are ever said");
});
