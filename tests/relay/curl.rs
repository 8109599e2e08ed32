//! Real programs through the relay: curl and nginx, ssh and sshd, ncat. What a user does on the first day.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::harness::destination::check_pattern;
use crate::harness::net::{free_address, has_ipv6};
use crate::harness::programs::{Nginx, Sshd, curl, have, skip, succeed, write_pattern};
use crate::harness::traffic::{all_well, in_parallel};
use crate::harness::{Options, PROMPTLY, Relay, heavy, quick, socks, within};

const CURL: (&str, &str) = ("curl", "curl");
const NGINX: (&str, &str) = ("nginx", "nginx");

/// Fetches with curl and checks every byte as it comes out of the pipe.
fn curl_checked(relay: &Relay, url: &str, seed: u64, flow: u32, len: u64) -> Result<(), String> {
    let mut child = curl(relay.socks, &[url]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let body = check_pattern(child.stdout.as_mut().unwrap(), seed, flow, None).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    match body? {
        got if got == len && output.status.success() => Ok(()),
        got => Err(format!("flow {flow}: {got} of {len} bytes; curl: {}: {words}", output.status)),
    }
}

#[test]
fn curl_fetches_a_page_by_address_by_name_and_over_ipv6() {
    if !have(&[CURL, NGINX]) {
        return;
    }
    let (relay, nginx) = (Relay::usual(), Nginx::start());
    std::fs::write(nginx.file("page"), "a small page\n").unwrap();
    std::fs::write(nginx.file("empty"), "").unwrap();
    let fetch = |host: &str, page: &str| succeed(&mut curl(relay.socks, &[&nginx.url(host, page)])).stdout;
    assert_eq!(fetch("127.0.0.1", "page"), b"a small page\n");
    assert_eq!(fetch("localhost", "page"), b"a small page\n");
    assert_eq!(fetch("127.0.0.1", "empty"), b"");
    // Several requests on one connection, and the header alone.
    let twice = [nginx.url("127.0.0.1", "page"), nginx.url("127.0.0.1", "page")];
    assert_eq!(succeed(&mut curl(relay.socks, &[&twice[0], &twice[1]])).stdout, b"a small page\na small page\n");
    let head = succeed(&mut curl(relay.socks, &["--head", &twice[0]])).stdout;
    assert!(String::from_utf8_lossy(&head).contains("200 OK"));
    if has_ipv6() {
        assert_eq!(fetch("[::1]", "page"), b"a small page\n");
    } else {
        skip("no IPv6 here", "enable it on lo");
    }
    relay.at_rest();
}

#[test]
fn a_gibibyte_arrives_whole_and_needs_no_more_memory_than_64_mebibytes() {
    if !have(&[CURL, NGINX]) {
        return;
    }
    let _alone = heavy();
    let (relay, nginx) = (Relay::usual(), Nginx::start());
    let (small, large): (u64, u64) = (64 << 20, if quick() { 256 << 20 } else { 1 << 30 });
    write_pattern(&nginx.file("small"), 1, 1, small);
    write_pattern(&nginx.file("large"), 1, 2, large);
    curl_checked(&relay, &nginx.url("127.0.0.1", "small"), 1, 1, small).unwrap();
    let before = (relay.entry.peak_memory_kib(), relay.exit.peak_memory_kib());
    curl_checked(&relay, &nginx.url("127.0.0.1", "large"), 1, 2, large).unwrap();
    let after = (relay.entry.peak_memory_kib(), relay.exit.peak_memory_kib());
    assert!(after.0 <= before.0 + 4096, "inter-server: peak {} KiB after the large file, {} KiB after the small one", after.0, before.0);
    assert!(after.1 <= before.1 + 4096, "server: peak {} KiB after the large file, {} KiB after the small one", after.1, before.1);
    relay.at_rest();
}

#[test]
fn an_upload_of_200_megabytes_is_stored_as_it_was_sent() {
    if !have(&[CURL, NGINX]) {
        return;
    }
    let _alone = heavy();
    let (relay, nginx) = (Relay::usual(), Nginx::start());
    let source = relay.directory().join("upload");
    write_pattern(&source, 2, 1, 200_000_000);
    succeed(&mut curl(relay.socks, &["--upload-file", source.to_str().unwrap(), &nginx.url("127.0.0.1", "put/file")]));
    let mut stored = std::fs::File::open(nginx.file("put/file")).unwrap();
    assert_eq!(check_pattern(&mut stored, 2, 1, None).unwrap(), Ok(200_000_000));
    relay.at_rest();
}

pub(crate) fn parallel_downloads_from_one_address(options: &Options) {
    let nginx = Nginx::start();
    for i in 0..64 {
        write_pattern(&nginx.file(&format!("file{i}")), 3, i, 300_000 + u64::from(i) * 10_000);
    }
    // Cold: the first flows are asked for right behind the first tunnel.
    let relay = Relay::start(options);
    all_well(&in_parallel(64, |i| {
        let i = u32::try_from(i).unwrap();
        curl_checked(&relay, &nginx.url("127.0.0.1", &format!("file{i}")), 3, i, 300_000 + u64::from(i) * 10_000)
    }));
}

#[test]
fn sixty_four_parallel_downloads_from_one_address_and_port_all_succeed_from_cold() {
    if have(&[CURL, NGINX]) {
        let _alone = heavy();
        parallel_downloads_from_one_address(&Options::default());
    }
}

#[test]
fn fifty_fetches_with_connection_close_are_all_whole() {
    if !have(&[CURL, NGINX]) {
        return;
    }
    let (relay, nginx) = (Relay::usual(), Nginx::start());
    write_pattern(&nginx.file("body"), 4, 1, 1 << 20);
    for _ in 0..50 {
        curl_checked(&relay, &nginx.url("127.0.0.1", "close/body"), 4, 1, 1 << 20).unwrap();
    }
    relay.at_rest();
}

#[test]
fn a_refused_and_an_unreachable_destination_end_promptly_and_not_as_a_page() {
    if !have(&[CURL]) {
        return;
    }
    let relay = Relay::start(&Options::default().allow(&["127.0.0.0/8", "::1/128", "224.0.0.0/4"]));
    // Nobody listens on the first; TCP to a group address fails in the kernel, as any unreachable network does.
    for target in [free_address().to_string(), "224.0.0.1:80".into()] {
        let output = within(&target, PROMPTLY, || curl(relay.socks, &[&format!("http://{target}/")]).output().unwrap());
        assert!(!output.status.success() && output.stdout.is_empty(), "{target}: {output:?}");
    }
    relay.at_rest();
}

#[test]
fn an_ssh_banner_arrives_though_the_client_says_nothing() {
    if !have(&[("sshd", "openssh-server"), ("ssh-keygen", "openssh-client")]) {
        return;
    }
    let (relay, sshd) = (Relay::usual(), Sshd::start());
    let mut stream = socks::open(relay.socks, ("localhost", sshd.port)).unwrap();
    let mut banner = [0; 8];
    stream.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH-2.0-");
    drop(stream);
    relay.at_rest();
}

#[test]
fn ssh_logs_in_through_the_relay_and_moves_a_megabyte_each_way() {
    if !have(&[("sshd", "openssh-server"), ("ssh", "openssh-client"), ("nc", "netcat-openbsd")]) {
        return;
    }
    let (relay, sshd) = (Relay::usual(), Sshd::start());
    let proxy = format!("nc -X 5 -x {} %h %p", relay.socks);
    assert_eq!(succeed(&mut sshd.ssh(&proxy, "echo through the relay")).stdout, b"through the relay\n");
    // What a login sends up comes back down.
    let body: Vec<u8> = crate::harness::pattern::bytes(5, 1, 1 << 20);
    let mut ssh = sshd.ssh(&proxy, "cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = ssh.stdin.take().unwrap();
    let sending = std::thread::spawn({
        let body = body.clone();
        move || input.write_all(&body)
    });
    let output = ssh.wait_with_output().unwrap();
    sending.join().unwrap().unwrap();
    assert!(output.status.success() && output.stdout == body, "{}: {} bytes came back", output.status, output.stdout.len());
    relay.at_rest();
}

#[test]
fn ncat_is_content_with_the_reply_to_a_name() {
    if !have(&[("ncat", "ncat")]) {
        return;
    }
    let relay = Relay::usual();
    let origin = crate::harness::Origin::new();
    let mut ncat = Command::new("ncat")
        .args(["--proxy-type", "socks5", "--proxy", &relay.socks.to_string(), "localhost", &origin.address().port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    ncat.stdin.take().unwrap().write_all(b"get 6 5000\n").unwrap();
    let output = ncat.wait_with_output().unwrap();
    assert!(output.stdout == crate::harness::pattern::bytes(origin.seed, 6, 5000), "{}: {} bytes", output.status, output.stdout.len());
}
