//! The settings of 0x81: every rule of the frame and of the values, from both sides.

use zhwkprox::protocol::v81::Side;
use zhwkprox::protocol::v81::settings::{Settings, SettingsError};

/// A SETTINGS frame of these pairs.
fn frame(pairs: &[(u16, u32)]) -> Vec<u8> {
    let mut frame = vec![1, 0, u8::try_from(pairs.len() * 6).expect("few pairs"), 0, 0, 0, 0, 0];
    for (id, value) in pairs {
        frame.extend_from_slice(&id.to_le_bytes());
        frame.extend_from_slice(&value.to_le_bytes());
    }
    frame
}

#[test]
fn settings_are_read_back_as_they_were_written() {
    let settings = Settings { stream_window: 0x0123_4567, max_streams: 0x89ab_cdef };
    let mut written = Vec::new();
    settings.encode(Side::Exit, &mut written);
    assert_eq!(written, frame(&[(1, 0x0123_4567), (2, 0x89ab_cdef)]));
    assert_eq!(Settings::decode(&written, Side::Exit), Ok(settings));

    let mut written = Vec::new();
    settings.encode(Side::Entry, &mut written);
    assert_eq!(written, frame(&[(1, 0x0123_4567)]), "an inter-server has nothing opened on it");
    assert_eq!(Settings::decode(&written, Side::Entry), Ok(Settings { max_streams: 1024, ..settings }));
}

#[test]
fn what_is_not_said_has_its_default_unknown_ids_are_skipped_and_of_a_repeated_one_the_last_counts() {
    let plain = Settings { stream_window: 262_144, max_streams: 1024 };
    assert_eq!(Settings::default(), plain);
    for side in [Side::Entry, Side::Exit] {
        assert_eq!(Settings::decode(&frame(&[]), side), Ok(plain));
        assert_eq!(Settings::decode(&frame(&[(0, 1), (3, 0), (0xffff, u32::MAX)]), side), Ok(plain));
        let repeated = frame(&[(1, 20_000), (9, 9), (1, 0), (1, 30_000)]);
        assert_eq!(Settings::decode(&repeated, side), Ok(Settings { stream_window: 30_000, ..plain }));
    }
    let repeated = frame(&[(2, 0), (2, 5)]);
    assert_eq!(Settings::decode(&repeated, Side::Exit), Ok(Settings { max_streams: 5, ..plain }));
    assert_eq!(Settings::decode(&frame(&[(2, 5), (2, 0)]), Side::Exit), Err(SettingsError::NoStreams));
}

#[test]
fn values_out_of_bounds_are_faults() {
    for side in [Side::Entry, Side::Exit] {
        for value in [16_384, 262_144, (1 << 31) - 1] {
            assert_eq!(Settings::decode(&frame(&[(1, value)]), side).map(|settings| settings.stream_window), Ok(value));
        }
        for got in [0, 16_383, 1 << 31, u32::MAX] {
            assert_eq!(Settings::decode(&frame(&[(1, got)]), side), Err(SettingsError::StreamWindow { got }));
        }
    }
    for value in [1, u32::MAX] {
        assert_eq!(Settings::decode(&frame(&[(2, value)]), Side::Exit).map(|settings| settings.max_streams), Ok(value));
        assert_eq!(Settings::decode(&frame(&[(2, value)]), Side::Entry), Err(SettingsError::NotForInterServers));
    }
    assert_eq!(
        SettingsError::StreamWindow { got: 5 }.to_string(),
        "peer's setting 1 (credit of a stream) is 5: expected 16384 to 2147483647"
    );
}

#[test]
fn a_first_record_that_is_not_one_settings_frame_and_nothing_else_is_a_fault() {
    let good = frame(&[(1, 20_000)]);
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Settings::decode(&bytes, Side::Exit)
    };
    assert_eq!(changed(0, 8), Err(SettingsError::Type { got: 8 }));
    assert_eq!(changed(0, 0x80), Err(SettingsError::Type { got: 0x80 }), "also one that would be skipped later");
    assert_eq!(changed(1, 1), Err(SettingsError::Flags { got: 1 }));
    assert_eq!(changed(7, 1), Err(SettingsError::Stream { got: 1 << 24 }));
    assert_eq!(changed(2, 12), Err(SettingsError::NotAlone { got: 12, room: 6 }));
    assert_eq!(changed(2, 0), Err(SettingsError::NotAlone { got: 0, room: 6 }), "a frame behind it, or rubbish");
    assert_eq!(changed(3, 1), Err(SettingsError::NotAlone { got: 262, room: 6 }));
    for size in 0..8 {
        assert!(Settings::decode(&good[..size], Side::Exit).is_err(), "{size} bytes");
    }
    let mut uneven = good.clone();
    uneven[2] = 7;
    uneven.push(0);
    assert_eq!(Settings::decode(&uneven, Side::Exit), Err(SettingsError::Size { got: 7 }));
}
