//! Stopping: SIGTERM lets running flows finish, a second one stops at once, an idle role simply goes.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::net::{End, read_to_the_end};
use crate::harness::traffic::{ask_for, download, open_echo, receive, works};
use crate::harness::{Origin, PROMPTLY, Relay, Role, WATCHDOG, socks, within};

const BODY: u64 = 60_000_000;

/// A download of which a part has been read, the rest of which does not fit into any buffer.
fn running(relay: &Relay, origin: &Origin) -> TcpStream {
    let mut stream = socks::open(relay.socks, origin.address()).unwrap();
    ask_for(&mut stream, 1, BODY).unwrap();
    stream
}

fn of(relay: &mut Relay, which: usize) -> &mut Role {
    if which == 0 { &mut relay.entry } else { &mut relay.exit }
}

pub(crate) fn a_running_download_finishes(relay: &mut Relay, which: usize) {
    let origin = Origin::new();
    let mut stream = running(relay, &origin);
    of(relay, which).signal("TERM");
    // It is on its way out: no new flow, and the running one is not hurried.
    crate::harness::await_some("new flows to be refused", WATCHDOG, || download(relay.socks, &origin, origin.address(), 2, 1000).err());
    receive(&mut stream, origin.seed, 1, BODY).unwrap();
    drop(stream);
    let status = of(relay, which).await_end(WATCHDOG);
    assert!(status.success(), "{status}");
}

#[test]
fn an_inter_server_that_is_told_to_stop_lets_a_running_download_finish() {
    a_running_download_finishes(&mut Relay::usual(), 0);
}

#[test]
fn a_server_that_is_told_to_stop_lets_a_running_download_finish() {
    a_running_download_finishes(&mut Relay::usual(), 1);
}

#[test]
fn a_second_signal_stops_either_role_at_once_and_the_flow_is_reset() {
    for which in [0, 1] {
        let mut relay = Relay::usual();
        let origin = Origin::new();
        let mut stream = running(&relay, &origin);
        stream.read_exact(&mut [0; 1000]).unwrap();
        let role = of(&mut relay, which);
        role.signal("TERM");
        std::thread::sleep(Duration::from_millis(500));
        assert!(role.ended().is_none(), "the first signal must leave the flow its time");
        role.signal("TERM");
        within("the end", PROMPTLY, || role.await_end(WATCHDOG));
        let (got, end) = read_to_the_end(&mut stream);
        assert!(end == End::Reset, "{} bytes and {end:?}: a flow cut off by force must not look whole", got.len());
    }
}

#[test]
fn idle_roles_end_promptly_with_status_0_for_both_signals() {
    for signal in ["TERM", "INT"] {
        let mut relay = Relay::usual();
        works(relay.socks);
        relay.at_rest();
        for which in [0, 1] {
            let role = of(&mut relay, which);
            role.signal(signal);
            let status = within("the end", PROMPTLY, || role.await_end(WATCHDOG));
            assert!(status.success(), "{status}");
        }
    }
}

#[test]
fn a_flow_that_never_ends_is_cut_when_its_time_is_over() {
    // An echo that nobody closes; the time after SIGTERM is 30 s.
    let mut relay = Relay::usual();
    let origin = Origin::new();
    let mut echo = open_echo(relay.socks, origin.address()).unwrap();
    relay.exit.signal("TERM");
    echo.set_read_timeout(Some(2 * WATCHDOG)).unwrap();
    let (_, end) = read_to_the_end(&mut echo);
    assert_eq!(end, End::Reset);
    relay.exit.await_end(WATCHDOG);
}
