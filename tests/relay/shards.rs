//! Two shards on each role: a part of the same scenarios, and clients that are handed to the shard with the tunnel. All the others run
//! again with two shards where `ZHWKPROX_TWO_SHARDS` is set.

use std::time::Duration;

use crate::harness::programs::{have, skip};
use crate::harness::traffic::{all_well, both_ways, close_echo, in_turns, open_echo, works};
use crate::harness::{Options, Origin, Relay, heavy};
use crate::{curl, ends, limits, mixups, socks5, stalls, stop, tunnels};

/// Whether there are two cores to pin shards to.
fn two_cores() -> bool {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        skip("one core only", "run on a machine with two");
    }
    cores >= 2
}

fn two() -> Options {
    Options::default().two_shards()
}

#[test]
fn two_shards_end_flows_as_one_does() {
    if !two_cores() {
        return;
    }
    let relay = Relay::start(&two());
    assert_eq!((relay.entry.state().shards, relay.exit.state().shards), (2, 2));
    ends::answers_after_the_clients_end(&relay);
    ends::destination_ends_first(&relay, 10 << 20, Duration::ZERO);
    ends::reset_in_mid_body_is_no_clean_end(&relay);
    ends::clients_reset_reaches_the_destination(&relay);
    ends::slow_readers_get_everything(&relay);
    ends::every_order_of_ends_leaves_nothing_behind(&relay, 60);
    socks5::glued(&relay);
    tunnels::strangers(&relay);
    relay.at_rest();
}

#[test]
fn two_shards_serve_64_parallel_downloads_from_one_address_from_cold() {
    if two_cores() && have(&[("curl", "curl"), ("nginx", "nginx")]) {
        let _alone = heavy();
        curl::parallel_downloads_from_one_address(&two());
    }
}

#[test]
fn two_shards_mix_up_no_bytes() {
    if two_cores() {
        let _alone = heavy();
        mixups::mix(&two(), Duration::from_secs(5));
    }
}

#[test]
fn two_shards_survive_the_loss_of_either_role_and_stop_gracefully() {
    if !two_cores() {
        return;
    }
    let mut relay = Relay::start(&two());
    tunnels::killed_exit(&mut relay);
    tunnels::killed_entry(&mut relay);
    stop::a_running_download_finishes(&mut relay, 1);
    relay.exit.restart();
    relay.await_tunnel();
    stop::a_running_download_finishes(&mut relay, 0);
}

#[test]
fn two_shards_hold_no_slot_for_idle_flows_and_serve_many_over_few_slots() {
    if two_cores() {
        {
            let _alone = heavy();
            stalls::many_flows_over_four_slots(two());
        }
        stalls::idle_flows(&two().exit(&["--max-tunnels", "2"]), 1000);
        stalls::all_wake_at_once(two(), 600, 8000);
    }
}

#[test]
fn two_shards_are_as_before_after_thousands_of_flows() {
    if two_cores() {
        limits::short_flows(two(), 3000, true);
    }
}

#[test]
fn with_one_tunnel_the_other_shards_clients_are_handed_over() {
    if !two_cores() {
        return;
    }
    let relay = Relay::start(&two().one_tunnel());
    let before = relay.at_rest();
    assert_eq!((before.0.tunnels, before.0.shards, before.1.shards), (1, 2, 1));
    let origin = Origin::everywhere();
    let handed = relay.entry.state().handed_over;
    all_well(&in_turns(4, 40, |i| both_ways(relay.socks, &origin, origin.nth(i), u32::try_from(i).unwrap(), 100_000)));
    let state = relay.entry.state();
    // The kernel spreads clients by a hash of their ports: of 40 some came to the shard without a tunnel, and some did not.
    let by_hand = state.handed_over - handed;
    assert!((1..40).contains(&by_hand), "{by_hand} of 40 clients were handed over: {state:?}");
    // Many at once share the one tunnel.
    let echoes: Vec<_> = (0..30).map(|i| open_echo(relay.socks, origin.nth(100 + i)).unwrap()).collect();
    for echo in echoes {
        close_echo(echo).unwrap();
    }
    works(relay.socks);
    relay.await_as_before(&before, crate::harness::WATCHDOG);
}
