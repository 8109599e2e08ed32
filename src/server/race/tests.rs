//! Races in virtual time, each written down as what was done when.

use super::*;

const RULES: Rules = Rules { stagger: Duration::from_millis(250), each: Duration::from_secs(10), whole: Duration::from_secs(30) };

fn v6(last: u16) -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 443))
}

fn v4(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 443))
}

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

fn race(addresses: &[SocketAddr]) -> Race {
    let mut race = Race::new(RULES, Time::ZERO);
    for &address in addresses {
        race.add(address);
    }
    race.no_more();
    race
}

/// Lets a race run by itself from one deadline to the next: every step but the waits, with its time in milliseconds.
fn run(race: &mut Race, mut now: Time) -> Vec<(u128, Step)> {
    let mut steps = Vec::new();
    loop {
        match race.poll(now) {
            Step::Wait(until) => {
                assert!(until > now, "waits for what is past");
                now = until;
            }
            step => {
                steps.push((now.since(Time::ZERO).as_millis(), step));
                if let Step::Failed(_) = step {
                    return steps;
                }
            }
        }
    }
}

#[test]
fn families_take_turns_from_v6_on_in_the_resolvers_order_250_ms_apart() {
    let mut race = race(&[v4(1), v4(2), v6(1), v6(2), v6(3)]);
    let steps = run(&mut race, Time::ZERO);
    let started: Vec<_> = steps.iter().filter(|(_, step)| matches!(step, Step::Connect(_))).copied().collect();
    let expected = [v6(1), v4(1), v6(2), v4(2), v6(3)];
    let expected: Vec<_> = (0..).step_by(250).zip(expected.map(Step::Connect)).collect();
    assert_eq!(started, expected);
    assert_eq!(steps.last(), Some(&(11_000, Step::Failed(Fault::TimedOut))), "the last began after 1 s and had 10");
    let abandoned = steps.iter().filter(|(_, step)| matches!(step, Step::Abandon(_))).count();
    assert_eq!(abandoned, 5, "each socket is closed once");
}

#[test]
fn a_failure_starts_the_next_at_once_and_the_clock_for_the_one_behind_it_anew() {
    let mut race = race(&[v6(1), v4(1), v4(2)]);
    assert_eq!(race.poll(at(0)), Step::Connect(v6(1)));
    assert_eq!(race.poll(at(0)), Step::Wait(at(250)));
    race.on_failed(v6(1), Fault::NetworkUnreachable, at(20));
    assert_eq!(race.poll(at(20)), Step::Connect(v4(1)));
    assert_eq!(race.poll(at(20)), Step::Wait(at(270)));
    assert_eq!(race.poll(at(269)), Step::Wait(at(270)));
    assert_eq!(race.poll(at(270)), Step::Connect(v4(2)));
    assert_eq!(race.poll(at(270)), Step::Wait(at(10_020)), "nothing is left to start: the first one's time is next");
}

#[test]
fn a_failure_while_others_run_does_not_wait_for_them() {
    let mut race = race(&[v6(1), v4(1), v6(2)]);
    assert_eq!(race.poll(at(0)), Step::Connect(v6(1)));
    assert_eq!(race.poll(at(250)), Step::Connect(v4(1)));
    race.on_failed(v4(1), Fault::Refused, at(260));
    assert_eq!(race.poll(at(260)), Step::Connect(v6(2)));
}

#[test]
fn the_family_that_comes_later_joins_and_goes_next() {
    let mut race = Race::new(RULES, Time::ZERO);
    assert_eq!(race.poll(at(0)), Step::Wait(at(30_000)), "nobody is there yet");
    race.add(v4(1));
    race.add(v4(2));
    race.add(v4(3));
    assert_eq!(race.poll(at(100)), Step::Connect(v4(1)));
    assert_eq!(race.poll(at(350)), Step::Connect(v4(2)));
    for address in [v6(1), v6(2), v4(1), v4(2), v4(3)] {
        race.add(address);
    }
    race.no_more();
    let later: Vec<_> = run(&mut race, at(400)).into_iter().filter(|(_, step)| matches!(step, Step::Connect(_))).collect();
    let expected = [(600, Step::Connect(v6(1))), (850, Step::Connect(v4(3))), (1100, Step::Connect(v6(2)))];
    assert_eq!(later, expected, "those that were there already are not tried again");
}

#[test]
fn while_more_may_come_it_has_not_failed_and_a_late_address_starts_at_once() {
    let mut race = Race::new(RULES, Time::ZERO);
    race.add(v6(1));
    assert_eq!(race.poll(at(0)), Step::Connect(v6(1)));
    race.on_failed(v6(1), Fault::NetworkUnreachable, at(1));
    assert_eq!(race.poll(at(1)), Step::Wait(at(30_000)));
    race.add(v4(1));
    assert_eq!(race.poll(at(2000)), Step::Connect(v4(1)));
    race.on_failed(v4(1), Fault::HostUnreachable, at(2001));
    assert_eq!(race.poll(at(2001)), Step::Wait(at(30_000)));
    race.no_more();
    assert_eq!(race.poll(at(2002)), Step::Failed(Fault::HostUnreachable));
}

#[test]
fn the_whole_is_over_in_time_whatever_is_still_running_or_awaited() {
    let mut silent = race(&[v4(1)]);
    silent.rules.each = Duration::from_secs(300);
    let steps = run(&mut silent, Time::ZERO);
    assert_eq!(steps[1..], [(30_000, Step::Abandon(v4(1))), (30_000, Step::Failed(Fault::TimedOut))]);
    let mut unresolved = Race::new(RULES, Time::ZERO);
    assert_eq!(run(&mut unresolved, Time::ZERO), [(30_000, Step::Failed(Fault::TimedOut))]);
}

#[test]
fn of_several_explanations_the_best_is_reported_in_whatever_order_they_came() {
    use Fault::{Denied, General, HostUnreachable, Limit, NetworkUnreachable, Refused, TimedOut};
    let ascending = [Denied, General, NetworkUnreachable, HostUnreachable, Limit, TimedOut, Refused];
    for (index, &better) in ascending.iter().enumerate() {
        for &worse in &ascending[..=index] {
            for order in [[better, worse], [worse, better]] {
                let mut race = race(&[v6(1), v4(1)]);
                for (address, fault) in [v6(1), v4(1)].into_iter().zip(order) {
                    assert_eq!(race.poll(at(0)), Step::Connect(address));
                    race.on_failed(address, fault, at(0));
                }
                assert_eq!(race.poll(at(0)), Step::Failed(better));
            }
        }
    }
    assert_eq!(race(&[]).poll(at(0)), Step::Failed(General));
}

#[test]
fn each_family_may_send_eight_into_the_race_and_none_twice() {
    let mut many: Vec<_> = (1..=100).map(v6).collect();
    many.extend((1..=3).map(v4));
    many.extend((1..=3).map(v4));
    let mut race = race(&many);
    let mut started = Vec::new();
    loop {
        match race.poll(at(0)) {
            Step::Connect(address) => {
                started.push(address);
                race.on_failed(address, Fault::Refused, at(0));
            }
            other => break assert_eq!(other, Step::Failed(Fault::Refused)),
        }
    }
    assert_eq!(started.len(), 11);
    assert_eq!(started[..6], [v6(1), v4(1), v6(2), v4(2), v6(3), v4(3)]);
}

#[test]
fn the_kernels_errors_have_their_codes() {
    let codes = [
        (libc::ECONNREFUSED, 0x05),
        (libc::ETIMEDOUT, 0x06),
        (libc::ENETUNREACH, 0x03),
        (libc::EAFNOSUPPORT, 0x03),
        (libc::EHOSTUNREACH, 0x04),
        (libc::EMFILE, 0x12),
        (libc::ENFILE, 0x12),
        (libc::ENOBUFS, 0x12),
        (libc::EADDRNOTAVAIL, 0x12),
        (libc::EACCES, 0x01),
        (libc::EINVAL, 0x01),
    ];
    for (errno, code) in codes {
        assert_eq!(Fault::from(Errno(errno)).code(), code, "{}", Errno(errno));
    }
    assert_eq!(Fault::Denied.code(), 0x02);
}
