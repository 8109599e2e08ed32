//! Making keys.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use base64::Engine as _;

use crate::support::{Folder, accepted, mode, output, refused, said, zhwkprox};

const KEYGEN: [&str; 3] = ["keygen", "--protocol", "0x80"];

#[test]
fn a_key_file_is_for_its_owner_only_and_can_be_used() {
    let folder = Folder::new();
    for (cipher, length) in [("aes-128-ctr", 24), ("aes-256-ctr", 44), ("aes-128-cfb", 24)] {
        let file = folder.text("new");
        let made = output(&[&KEYGEN[..], &["--cipher", cipher, "--out", &file, "--force"]].concat());
        assert_eq!(made.status.code(), Some(0), "{:?} {}", made.status, said(&made));
        assert!(made.stdout.is_empty() && made.stderr.is_empty());
        assert_eq!(mode(&folder.path("new")), 0o600);
        let line = fs::read_to_string(&file).unwrap();
        let encoded = line.strip_prefix("zhwkprox-0x80:").unwrap().strip_suffix('\n').unwrap();
        assert_eq!(encoded.len(), length);
        accepted(&folder.server_with_key(&file, cipher));
    }
}

#[test]
fn without_a_protocol_a_key_is_for_0x81_and_can_be_used_by_both_roles() {
    let folder = Folder::new();
    let file = folder.text("office.key");
    let made = output(&["keygen", "--out", &file]);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    assert_eq!(mode(&folder.path("office.key")), 0o600);
    let line = fs::read_to_string(&file).unwrap();
    let encoded = line.strip_prefix("zhwkprox-0x81:").unwrap().strip_suffix('\n').unwrap();
    assert_eq!(base64::engine::general_purpose::STANDARD.decode(encoded).unwrap().len(), 32);
    accepted(&output(&["server", "--check-config", "--key-file", &file, "--dial", "192.0.2.1:1992"]));
    accepted(&folder.inter_server81(&["--key-file", &file]));
    let printed = output(&["keygen", "--protocol", "0x81"]);
    assert_eq!(printed.stdout.len(), line.len());
    assert_ne!(printed.stdout, line.as_bytes());
}

#[test]
fn two_keys_differ() {
    assert_ne!(output(&KEYGEN).stdout, output(&KEYGEN).stdout);
    assert_ne!(output(&["keygen"]).stdout, output(&["keygen"]).stdout);
}

#[test]
fn a_key_in_use_is_not_overwritten() {
    let folder = Folder::new();
    let file = folder.text("key");
    let before = fs::read(&file).unwrap();
    refused(&output(&[&KEYGEN[..], &["--out", &file]].concat()), &[&file, "exists", "--force"]);
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(output(&[&KEYGEN[..], &["--out", &file, "--force"]].concat()).status.code(), Some(0));
    assert_ne!(fs::read(&file).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path("")).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_link_in_the_way_is_not_followed() {
    let folder = Folder::new();
    let elsewhere = folder.write("elsewhere", "precious", 0o644);
    symlink(&elsewhere, folder.path("link")).unwrap();
    let link = folder.text("link");
    refused(&output(&[&KEYGEN[..], &["--out", &link]].concat()), &["exists"]);
    assert_eq!(output(&[&KEYGEN[..], &["--out", &link, "--force"]].concat()).status.code(), Some(0));
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
    assert_eq!(mode(&folder.path("link")), 0o600);
}

#[test]
fn a_key_through_the_shells_arrow_is_closed_to_others() {
    let folder = Folder::new();
    for out in [&[][..], &["--out", "-"]] {
        let path = folder.path("redirected");
        folder.write("redirected", "", 0o644);
        let status = zhwkprox(&[&KEYGEN[..], out].concat()).stdout(File::create(&path).unwrap()).status().unwrap();
        assert!(status.success());
        assert_eq!(mode(&path), 0o600);
        accepted(&folder.server_with_key(path.to_str().unwrap(), "aes-128-ctr"));
        folder.write("redirected", "", 0o644);
        assert!(zhwkprox(&[&["keygen"], out].concat()).stdout(File::create(&path).unwrap()).status().unwrap().success());
        assert_eq!(mode(&path), 0o600);
    }
}

#[test]
fn a_place_that_cannot_be_written_is_an_error_with_its_cause() {
    let made = output(&[&KEYGEN[..], &["--out", "/nowhere/key"]].concat());
    assert_eq!(made.status.code(), Some(1));
    assert!(said(&made).contains("/nowhere/key") && said(&made).contains("No such file"), "{}", said(&made));
    assert_eq!(said(&made).lines().count(), 1);
}

#[test]
fn a_reader_that_has_gone_is_an_error_and_no_panic() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let made = zhwkprox(&KEYGEN).stdout(full).output().unwrap();
    assert_eq!(made.status.code(), Some(1));
    assert!(said(&made).contains("standard output"), "{}", said(&made));
}
