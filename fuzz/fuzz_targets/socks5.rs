//! SOCKS5: any split of any client gives the same answers and the same outcome, a request leaves its payload untouched, and whatever is asked
//! for can be asked for again.
#![no_main]

mod pieces;

use zhwkprox::protocol::socks5::{Credentials, Negotiation, Refused, Target};

/// What the client was told, how it ended (`None`: more is awaited), and what is left for the destination.
type Outcome = (Vec<u8>, Option<Result<Target, Refused>>, Vec<u8>);

fn run<'a>(required: Option<&Credentials>, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut negotiation = Negotiation::new(required.cloned());
    let (mut told, mut end, mut rest) = (Vec::new(), None, Vec::new());
    for piece in pieces {
        let mut input = piece;
        if end.is_none() {
            end = match negotiation.handle(&mut input, &mut told) {
                Ok(None) => {
                    assert!(input.is_empty(), "all is used before more is asked for");
                    None
                }
                Ok(Some(request)) => Some(Ok(request.target)),
                Err(refused) => Some(Err(refused)),
            };
        }
        if !matches!(end, Some(Err(_))) {
            rest.extend_from_slice(input);
        }
    }
    (told, end, rest)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let required = Credentials { user: b"u".to_vec(), password: Vec::new() };
    let required = (mode & 1 == 1).then_some(&required);
    let (cuts, stream) = pieces::cut(data);
    // Without a start that passes, the fuzzer would spend its time on greetings.
    let start: &[u8] = match (mode >> 1 & 1, required) {
        (0, _) => &[],
        (_, None) => &[5, 1, 0],
        (_, Some(_)) => &[5, 1, 2, 1, 1, b'u', 0],
    };
    let stream = [start, stream].concat();

    let whole = run(required, std::iter::once(stream.as_slice()));
    let cuts: Vec<usize> = cuts.iter().map(|at| (*at).min(stream.len())).collect();
    assert_eq!(run(required, pieces::pieces(&stream, &cuts)), whole);
    assert_eq!(run(required, stream.chunks(1)), whole);

    let (told, end, rest) = whole;
    assert!(told.len() <= 2 + 2 + 10);
    match end {
        Some(Ok(Target::Address(address))) => {
            assert!(stream.ends_with(&rest));
            assert!(address.port() != 0 && !address.ip().is_unspecified());
            assert!(address.ip() == address.ip().to_canonical(), "mapped addresses are mapped");
        }
        Some(Ok(Target::Name(name, port))) => {
            assert!(stream.ends_with(&rest));
            assert!(port != 0 && (1..=254).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(name.parse::<std::net::IpAddr>().is_err(), "an address came as a name");
        }
        Some(Err(refused)) => {
            assert!(!refused.to_string().is_empty());
            assert_eq!(told.is_empty(), matches!(refused, Refused::NotSocks5 { .. }), "every refusal that can be understood is told");
        }
        None => {}
    }
});
