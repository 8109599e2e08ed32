//! Cuts one input into pieces, as the network would.

/// The first byte says how many cuts there are (0–15), the next ones where. What follows is the stream.
pub(crate) fn cut(data: &[u8]) -> (Vec<usize>, &[u8]) {
    let Some((count, rest)) = data.split_first() else { return (Vec::new(), data) };
    let (places, stream) = rest.split_at(usize::from(count & 15).min(rest.len()));
    // A distance of up to 127 bytes is the byte itself; above, it is large.
    let distance = |byte: &u8| if *byte < 128 { usize::from(*byte) } else { usize::from(*byte - 127) * 64 };
    let places = places.iter().scan(0, |at, byte| {
        *at += distance(byte);
        Some((*at).min(stream.len()))
    });
    (places.collect(), stream)
}

/// The pieces between ascending cuts.
pub(crate) fn pieces<'a>(stream: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut from = 0;
    cuts.iter().copied().chain(std::iter::once(stream.len())).map(move |to| {
        let piece = &stream[from..to];
        from = to;
        piece
    })
}
