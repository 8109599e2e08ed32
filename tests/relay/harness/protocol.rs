//! Which protocol the roles speak in this run, and which tests are about 0x80 alone.

use std::sync::LazyLock;

/// The protocol between the two roles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    /// What runs without being asked for.
    V80,
    /// With `ZHWKPROX_PROTOCOL=0x81`.
    V81,
}

/// What is not run on 0x81, and why: each is about a rule that 0x81 does not have.
pub(crate) const OF_0X80: &[(&str, &str)] = &[
    (
        "a_second_flow_to_one_address_waits_for_the_first_and_is_refused_when_that_lasts_too_long",
        "on 0x81 any number of flows go to one address on one tunnel: many_flows_to_one_address_share_one_tunnel_of_0x81",
    ),
    (
        "on_a_shared_tunnel_a_destination_that_does_not_read_is_cut_and_the_others_go_on",
        "on 0x81 it holds up nobody and is not cut: on_0x81_a_destination_that_does_not_read_holds_up_nobody_and_goes_on_when_it_reads",
    ),
    (
        "on_a_shared_tunnel_a_client_that_does_not_read_is_cut_and_the_others_go_on",
        "on 0x81 it holds up nobody and is not cut: on_0x81_a_client_that_does_not_read_holds_up_nobody_and_goes_on_when_it_reads",
    ),
    (
        "spare_tunnels_grow_with_a_burst_and_shrink_back_to_two",
        "on 0x81 flows share tunnels, of which there are as many as ever: on_0x81_a_burst_of_flows_dials_no_tunnel",
    ),
];

impl Protocol {
    /// As the command line says it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V80 => "0x80",
            Self::V81 => "0x81",
        }
    }

    /// The version byte that opens a login.
    pub(crate) const fn version(self) -> u8 {
        match self {
            Self::V80 => 0x80,
            Self::V81 => 0x81,
        }
    }
}

/// The protocol of this run (`ZHWKPROX_PROTOCOL`).
pub(crate) fn protocol() -> Protocol {
    static PROTOCOL: LazyLock<Protocol> = LazyLock::new(|| match std::env::var("ZHWKPROX_PROTOCOL").as_deref() {
        Err(_) | Ok("0x80") => Protocol::V80,
        Ok("0x81") => Protocol::V81,
        Ok(other) => panic!("ZHWKPROX_PROTOCOL={other}, expected 0x80 or 0x81"),
    });
    *PROTOCOL
}

/// Whether this run speaks 0x81.
pub(crate) fn on_0x81() -> bool {
    protocol() == Protocol::V81
}

/// Whether each shard of the exit keeps one tunnel only (`ZHWKPROX_ONE_TUNNEL=1`, 0x81 only: on 0x80 an address would carry one flow).
pub(crate) fn one_tunnel() -> bool {
    on_0x81() && std::env::var_os("ZHWKPROX_ONE_TUNNEL").is_some()
}

/// `true` on 0x81: the test of this name is about 0x80 alone, and says why.
pub(crate) fn skipped_on_0x81(test: &str) -> bool {
    let (_, why) = OF_0X80.iter().find(|(name, _)| *name == test).unwrap_or_else(|| panic!("{test} is not in the list"));
    if on_0x81() {
        eprintln!("skipped on 0x81: {test}: {why}");
    }
    on_0x81()
}

/// `true` on 0x80: the test is about 0x81 alone.
pub(crate) fn skipped_on_0x80() -> bool {
    !on_0x81()
}
