//! SIGHUP reads the key files again, in the control thread of a real process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use zhwkprox::control::{Announce, Control, Event, Events, Group};
use zhwkprox::keys::v81::{KeyFile, KeyRing};
use zhwkprox::shard::inbox::{Inbox, Message, ToControl};
use zhwkprox::shard::state::State;
use zhwkprox::telemetry::log;

use crate::process::Process;
use crate::support::{Folder, key81};

/// Names of the key files, for the child.
const FILES: &str = "ZHWKPROX_TEST_KEY_FILES";

/// The child: a control thread with two shards that only say which keys they were given.
fn child(files: &str) {
    let log = log::start(log::Settings { form: log::Form::Text, level: tracing::Level::INFO }).unwrap();
    let files = files.split(' ').map(|file| KeyFile::parse(file).unwrap()).collect();
    let (keys, _) = KeyRing::read(files).unwrap();
    let runtime = zhwkprox::run::runtime().unwrap();
    let ended = runtime.block_on(async {
        let events = Events::new().unwrap();
        let to_control = events.for_group(0);
        let mut postboxes = Vec::new();
        for shard in 0..2 {
            let (inbox, postbox) = Inbox::new().unwrap();
            postboxes.push(postbox);
            let (to_control, ended) = (to_control.clone(), events.sender());
            std::thread::spawn(move || {
                loop {
                    for message in inbox.drain() {
                        match message {
                            Message::ReportState => {
                                let _ = to_control.send(ToControl::State { shard, state: Box::new(State::default()) });
                            }
                            Message::Keys(keys) => {
                                let names: Vec<_> = keys.iter().map(|(name, _)| &**name).collect();
                                println!("shard {shard} has {}", names.join(" "));
                            }
                            Message::Stop | Message::StopNow => {
                                let _ = ended.send(Event::Ended { group: 0, shard, result: Ok(()) });
                                return;
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                    // A real shard reads its bell.
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            });
        }
        let group = Group { role: "inter-server", postboxes, keys: Some(keys) };
        let announce = Announce { started: Some(Box::new(|_| println!("started"))), tunnel: None };
        Control::new(events, vec![group], None, announce).run().await
    });
    drop(log);
    ended.unwrap();
}

fn start(test: &str, files: &[&str]) -> Process {
    let mut again = Command::new(std::env::current_exe().unwrap());
    let mut process = Process::start(again.args(["--exact", test, "--nocapture"]).env(FILES, files.join(" ")));
    process.printed("started");
    process
}

/// Each shard says so once, in whatever order.
#[track_caller]
fn both_have_them(process: &mut Process) {
    let mut said = [process.printed("shard "), process.printed("shard ")];
    said.sort();
    assert_eq!(said, ["shard 0 has office home", "shard 1 has office home"]);
}

#[test]
fn hup_reads_the_key_files_again_and_tells_every_shard() {
    if let Ok(files) = std::env::var(FILES) {
        return child(&files);
    }
    let folder = Folder::new();
    let (office, home) = (folder.write81("office.key", 1), folder.write81("home.key", 2));
    let mut process = start("reload::hup_reads_the_key_files_again_and_tells_every_shard", &[&office, &home]);

    process.signal("HUP");
    let line = process.said("keys read again: 2 (no change)");
    assert!(line.contains("other settings need a restart"), "{line}");
    both_have_them(&mut process);

    folder.write81("home.key", 3);
    process.signal("HUP");
    process.said("keys read again: 2 (changed home)");
    both_have_them(&mut process);

    // Whatever is wrong with one file, the old keys stay.
    for (contents, mode, words) in [
        (key81(1), 0o600, "same key"),
        (key81(4), 0o644, "can be read by everybody"),
        ("hunter2".to_owned(), 0o600, "does not hold a key"),
        ("ascii:sixteen byte key".to_owned(), 0o600, "a key for protocol 0x80"),
    ] {
        folder.write("home.key", &contents, mode);
        process.signal("HUP");
        let line = process.said("keys not read again, the old ones stay");
        assert!(line.contains("ERROR") && line.contains(words), "{line}");
    }
    fs::remove_file(folder.path("home.key")).unwrap();
    process.signal("HUP");
    let line = process.said("the old ones stay");
    assert!(line.contains("cannot read") && line.contains(&home), "{line}");

    folder.write("home.key", &key81(5), 0o640);
    process.signal("HUP");
    process.said("is open to its group (mode 0640)");
    process.said("keys read again: 2 (changed home)");
    both_have_them(&mut process);

    process.signal("TERM");
    let (status, out, err) = process.ended();
    assert!(status.success(), "{err}");
    assert!(!out.lines().any(|line| line.starts_with("shard ")), "nothing was posted for what could not be read: {out}");
    assert!(!err.contains("hunter2") && !err.contains(&key81(4)[14..30]));
}

#[test]
fn a_key_taken_out_of_its_folder_is_removed_by_hup_and_one_put_in_is_added() {
    if let Ok(files) = std::env::var(FILES) {
        return child(&files);
    }
    let folder = Folder::new();
    let keys = folder.text("keys");
    fs::create_dir(&keys).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o700)).unwrap();
    let (office, home) = (folder.write81("keys/office.key", 1), folder.write81("keys/home.key", 2));
    let test = "reload::a_key_taken_out_of_its_folder_is_removed_by_hup_and_one_put_in_is_added";
    let mut process = start(test, &[&keys]);
    let mut hup = |says: &str, names: &str| {
        process.signal("HUP");
        process.said(says);
        for _ in 0..2 {
            let shard = process.printed("shard ");
            assert!(shard.ends_with(names), "{shard}");
        }
    };
    hup("keys read again: 2 (no change)", "has home office");
    fs::remove_file(&home).unwrap();
    hup("keys read again: 1 (removed home)", "has office");
    folder.write81("keys/attic.key", 3);
    hup("keys read again: 2 (added attic)", "has attic office");
    // One that is half there keeps the rest as it was, and so does a folder in which nothing is.
    folder.write("keys/home.key", &key81(4)[..30], 0o600);
    process.signal("HUP");
    let line = process.said("keys not read again, the old ones stay");
    assert!(line.contains(&home) && line.contains("12 bytes, expected 32"), "{line}");
    for file in [&office, &home, &folder.text("keys/attic.key")] {
        fs::remove_file(file).unwrap();
    }
    process.signal("HUP");
    let line = process.said("a folder without keys");
    assert!(line.contains("the old ones stay") && line.contains("stop the inter-server"), "{line}");
    fs::remove_dir(&keys).unwrap();
    process.signal("HUP");
    process.said("cannot read");
    process.signal("TERM");
    let (status, out, err) = process.ended();
    assert!(status.success(), "{err}");
    assert!(!out.lines().any(|line| line.starts_with("shard ")), "nothing was posted for what could not be read: {out}");
}
