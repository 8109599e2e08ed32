//! Every number of the relay, with where it comes from. The `const` assertions at the end hold the relations between them.

use std::time::Duration;

/// One slot of the arena: the unit that the kernel fills, AES works in and a send leaves from. 64 KiB is where the cost per byte
/// stops falling on loopback, and the largest frame we send.
pub const SLOT_BYTES: usize = 65_536;
/// Room in front of the data, for the largest header that is written in place (23 bytes in 0x80), kept a cache-line multiple.
pub const SLOT_HEADROOM: usize = 128;
/// Room behind the data, for a record's tag (16 bytes in 0x81).
pub const SLOT_TAIL: usize = 16;
/// What a receive that leaves room for the tag can put into one slot.
pub const SLOT_DATA: usize = SLOT_BYTES - SLOT_HEADROOM - SLOT_TAIL;

/// Largest 0x81 record, with its length field: a received one fills a slot up to its end.
pub const RECORD_BYTES_MAX: usize = 65_408;
/// The length field in front of a 0x81 record.
pub const RECORD_LENGTH_BYTES: usize = 4;
/// The tag behind a 0x81 record.
pub const RECORD_TAG_BYTES: usize = 16;
/// Header of a 0x81 frame.
pub const V81_HEADER: usize = 8;
/// Largest payload of a 0x81 frame: with its header, alone in a record, it makes the largest record.
pub const V81_PAYLOAD_MAX: usize = 65_380;

/// Default arena per shard.
pub const BUFFER_MEMORY: usize = 16 << 20;
/// Slots posted to the kernel at once. More costs 13–23 % CPU (cache): measured in the prototypes.
pub const SLOTS_POSTED: usize = 32;
/// Fewer are posted where receives fill them: as many as hold this, a quarter of a usual second-level cache.
pub const WARM_BYTES: usize = 256 << 10;
/// Fewest slots a shard works with: one each for receiving on a tunnel and on a flow, and one for the send of each.
pub const SLOTS_MIN: usize = 4;

/// Largest header of a 0x80 frame (IPv6).
pub const V80_HEADER_MAX: usize = 23;
/// Largest 0x80 frame that we send, with its header: what one receive takes.
pub const V80_FRAME_MAX: usize = SLOT_DATA;
/// Largest 0x80 frame, with its header, that the author's original programs read with one call.
pub const V80_ORIGINAL_FRAME_MAX: usize = 1024;
/// Keys that an inter-server may have taken on one tunnel, those given up included: as many as it could have clients on one address. A table
/// as full as that takes some 5 MB.
pub const V80_KEYS_MAX: usize = 65_536;

/// Streams that an inter-server opens on one 0x81 tunnel at once, whatever the server allows: as many as it could have clients on one
/// address.
pub const V81_STREAMS_MAX: u32 = 65_536;

/// Credit that a stream towards us starts with (0x81 §4's default): what a path of 20 ms carries at 100 Mbit/s, and it grows.
pub const WINDOW_FIRST: u32 = 262_144;
/// What a stream's window may grow to: 80 ms at 1.6 Gbit/s.
pub const WINDOW_MAX: u32 = 16 << 20;
/// Streams that the exit takes at once on one tunnel: beyond that the descriptors' limit says no first.
pub const V81_STREAMS: u32 = 16_384;
/// Tunnels of 0x81 that a server keeps to one inter-server per shard: flows share them, and a second one keeps one slow path or one large
/// transfer from being everybody's.
pub const V81_TUNNELS: usize = 2;
/// A tunnel of 0x81 is replaced after this long: fresh Diffie–Hellman (0x81 §3).
pub const TUNNEL_AGE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of flows that a shard holds for sockets which do not take them, beyond its slots: with windows the only bound. From half of it
/// on no window grows, above three quarters no flow is opened, above it the flow that holds most is given up (0x81 §4, Windows).
pub const HELD_BYTES: usize = 64 << 20;
/// Without a byte for this long a tunnel of 0x81 is asked whether it lives.
pub const SILENCE: Duration = Duration::from_secs(15);
/// … and is dead without one for this long after the kernel took the question, or took nothing at all.
pub const PONG: Duration = Duration::from_secs(10);
/// A tunnel that was asked longer ago than this takes no new flow until it has answered.
pub const PING_FRESH: Duration = Duration::from_secs(1);
/// After another login under its name a tunnel has this long to show that it lives.
pub const PROVE: Duration = Duration::from_secs(3);
/// A record that is not complete after this long ends its tunnel.
pub const RECORD_TIME: Duration = Duration::from_secs(60);
/// What a client may have sent behind its request before it is answered: no more than the least credit of a stream.
pub const EARLY: u32 = 16_384;

/// After a GOAWAY that ends a tunnel the peer has this long to read it.
pub const FAREWELL: Duration = Duration::from_secs(1);
/// Logins of 0x81 that are worked on in one turn: each may cost two operations on the curve, some 0.1 ms in all, and flows wait meanwhile.
pub const LOGINS_PER_TURN: usize = 16;
/// What a connection that has not logged in may have received and not been taken in: more than a whole login.
pub const LOGIN_BYTES: u32 = 512;

/// Bytes that may wait for one socket before what they come from is not read any more. Just above one slot: the next receive
/// overlaps with the send of the one before. The slot being worked on may exceed it once.
pub const QUEUE_BYTES: usize = SLOT_BYTES + 1;

/// A client has this long for its SOCKS5 handshake.
pub const SOCKS_HANDSHAKE: Duration = Duration::from_secs(10);
/// A tunnel has this long from accept or connect to the end of its handshake.
pub const TUNNEL_HANDSHAKE: Duration = Duration::from_secs(10);
/// Addresses of each family that one opening tries: as many as resolvers usually give, all begun within 4 s. A name with a hundred costs
/// no more sockets than one with eight.
pub const OPENING_ADDRESSES: usize = 8;
/// From one attempt to connect to the next address's (RFC 8305 §5, Connection Attempt Delay).
pub const OPENING_STAGGER: Duration = Duration::from_millis(250);
/// A flow's opening at the exit has this long for all its addresses, the look-up of its name included, or a single connect time-out where
/// that is longer: two addresses in a row may time out, and the client still gets an answer before it gives up by itself.
pub const OPENING: Duration = Duration::from_secs(30);
/// Default connect time-out of the exit.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A half-open flow without progress ends after this long: a 60 s gap after a client's FIN is normal (H-END-02).
pub const LINGER: Duration = Duration::from_secs(300);
/// An idle flow on 0x80 ends after this long (0x80 has no other way to notice a vanished client behind the tunnel).
pub const IDLE_V80: Duration = Duration::from_secs(3600);
/// A client waits this long for a tunnel on which its (ip, port) is free.
pub const WAIT_FOR_TUNNEL: Duration = Duration::from_secs(5);
/// … and this long for one of its own before it shares one, if tunnels are still being dialled.
pub const WAIT_FOR_OWN_TUNNEL: Duration = Duration::from_millis(300);
/// After the inter-server itself ended the last tunnel, a server is expected back within this.
pub const WAIT_FOR_REDIAL: Duration = Duration::from_secs(2);
/// After a wait for an own tunnel was in vain, flows share at once for this long.
pub const SHARE_AT_ONCE: Duration = Duration::from_secs(10);
/// For a name with several addresses, the client's first bytes are held this long in case the exit cannot connect (0x80 §3).
pub const HOLD_FIRST_BYTES: Duration = Duration::from_millis(250);
/// On a shared tunnel a flow whose full queue keeps the tunnel unread this long is cut (0x80 §3, Back-pressure).
pub const BLOCKED_SHARED_TUNNEL: Duration = Duration::from_secs(10);
/// A shared tunnel on which replies are discarded this long takes no new flows (0x80 §3).
pub const DISCARDING: Duration = Duration::from_secs(30);
/// A spare tunnel above the least number is closed after this long idle.
pub const SPARE_IDLE: Duration = Duration::from_secs(60);
/// Least number of spare tunnels per shard and inter-server.
pub const SPARE_MIN: usize = 2;
/// Default of `--max-tunnels`, per shard and inter-server.
pub const MAX_TUNNELS: usize = 256;
/// How often a role looks at its tunnels: for spares to close and for other ends that are gone.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What came before a reset is waited for this long, until the other end has it.
pub const RESET_UNSENT: Duration = Duration::from_secs(10);
/// First pause between two looks whether it has; doubles up to [`UNSENT_LOOK_MAX`].
pub const UNSENT_LOOK_MIN: Duration = Duration::from_millis(2);
/// Longest pause between two such looks.
pub const UNSENT_LOOK_MAX: Duration = Duration::from_millis(100);
/// Running flows have this long after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(30);
/// Redial backoff: full jitter between these.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Upper end of the redial backoff.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A tunnel that was up this long makes the next backoff start from the bottom.
pub const BACKOFF_RESET: Duration = Duration::from_secs(10);
/// After EMFILE, ENFILE, ENOMEM or ENOBUFS on accept, first pause; doubles up to [`ACCEPT_PAUSE_MAX`].
pub const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause of accepting.
pub const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Accepts outstanding per listener.
pub const ACCEPTS_POSTED: usize = 4;

/// Connections per shard that have not authenticated (tunnel side) or not asked (SOCKS side); above it a random older one goes.
pub const UNAUTHENTICATED_MAX: usize = 1024;
/// Clients per shard that wait for a tunnel; the next one is told at once.
pub const WAITING_MAX: usize = 4096;
/// Completions worked on in one turn; the rest is first in the next.
pub const COMPLETIONS_PER_TURN: usize = 256;

/// A challenge of ours.
pub const CHALLENGE_BYTES: usize = 32;
/// The random tail an inter-server enciphers behind the challenge.
pub const AUTH_TAIL_BYTES: usize = 16;
/// Largest challenge an inter-server answers.
pub const CHALLENGE_MAX: usize = 64;

/// Name look-ups under way at once; each holds a socket or two of the control thread.
pub const NAMES_OUTSTANDING: usize = 256;
/// A look-up that takes longer has failed: two tries of a resolver's usual 5 s.
pub const NAME_LOOK_UP: Duration = Duration::from_secs(10);
/// With addresses of one family at hand, the other family's answer is waited for this long: some resolvers swallow AAAA questions,
/// and that must not cost ten seconds.
pub const NAME_OTHER_FAMILY: Duration = Duration::from_millis(250);
/// With an IPv4 address at hand, those who can begin with it give IPv6 this much of a start (RFC 8305 §3, Resolution Delay).
pub const NAME_IPV6_START: Duration = Duration::from_millis(50);
/// The other family of those who have begun already is waited for this long: above the slowest resolver's round trips, and not so long
/// that swallowed AAAA questions use all look-ups up.
pub const NAME_LATE_FAMILY: Duration = Duration::from_secs(2);
/// A look-up that has been under way this long gives its place up when all are taken: names that answer at all do so sooner, and a few
/// hundred that never do must not keep them out.
pub const NAME_SLOW: Duration = Duration::from_secs(1);
/// Askers that may wait for look-ups, of which several share one: 16 for each on average.
pub const NAMES_WAITING: usize = 16 * NAMES_OUTSTANDING;
/// How often at most resolv.conf and hosts are looked at for changes: a look is two `stat` calls.
pub const NAME_FILES: Duration = Duration::from_secs(1);
/// Answers kept: a browser's day, and at a few KiB each no more than a shard's buffers.
pub const NAMES_CACHED: u64 = 2048;
/// Connections that the kernel keeps for a listener. It takes the lower of this and `net.core.somaxconn`, 4096 by default.
pub const BACKLOG: i32 = 4096;
/// Log lines of one call site in one second: enough to see what happens, few enough not to be what happens.
pub const LOG_LINES_PER_SECOND: u32 = 20;
/// Log lines that may wait for standard error: a burst of every call site, at a few hundred bytes each.
pub const LOG_QUEUE: usize = 1024;
/// A shard ends by itself within [`GRACE`]; one that has not this long after it is stuck, and the process goes without it.
pub const STUCK: Duration = Duration::from_secs(5);
/// Between two frames on a tunnel to the author's programs: they start a thread per message and do not check the order (0x80 §5,
/// as all of these).
pub const ORIGINAL_PACE: Duration = Duration::from_millis(1);
/// A client that has said nothing for this long has its flow opened without data.
pub const ORIGINAL_OPEN: Duration = Duration::from_millis(200);
/// Requests that keep a flow alive: their server closes one 20 s after the last.
pub const ORIGINAL_KEEP_ALIVE: Duration = Duration::from_secs(8);
/// Their server never reports a failed connect: without a reply a flow ends after this.
pub const ORIGINAL_ANSWER: Duration = Duration::from_secs(30);
/// After the last request for it an (ip, port) rests this long: their 20 s timer must have fired before it is used again.
pub const ORIGINAL_REST: Duration = Duration::from_secs(25);
/// Their inter-server never says that a client has gone: our server ends a flow idle both ways after this.
pub const ORIGINAL_IDLE: Duration = Duration::from_secs(20);

const _: () = assert!(NAME_IPV6_START.as_millis() < NAME_OTHER_FAMILY.as_millis());
const _: () = assert!(NAME_OTHER_FAMILY.as_millis() < NAME_LATE_FAMILY.as_millis());
const _: () = assert!(SLOT_HEADROOM >= V80_HEADER_MAX);
const _: () = assert!(SLOT_HEADROOM + V80_FRAME_MAX + SLOT_TAIL <= SLOT_BYTES && V80_FRAME_MAX > V80_HEADER_MAX);
const _: () = assert!(SLOT_BYTES.is_multiple_of(4096));
const _: () = assert!(SLOT_HEADROOM + RECORD_BYTES_MAX <= SLOT_BYTES);
const _: () = assert!(RECORD_LENGTH_BYTES + V81_HEADER + V81_PAYLOAD_MAX + RECORD_TAG_BYTES <= RECORD_BYTES_MAX);
const _: () = assert!(SLOT_HEADROOM >= RECORD_LENGTH_BYTES + V81_HEADER && SLOT_TAIL >= RECORD_TAG_BYTES);
const _: () = assert!(V81_PAYLOAD_MAX <= SLOT_DATA);
const _: () = assert!(CHALLENGE_BYTES + AUTH_TAIL_BYTES <= 255 && CHALLENGE_MAX + AUTH_TAIL_BYTES <= 255);
const _: () = assert!(V80_ORIGINAL_FRAME_MAX > V80_HEADER_MAX);
const _: () = assert!(SLOTS_MIN <= SLOTS_POSTED && SLOTS_POSTED.is_power_of_two() && WARM_BYTES >= SLOTS_MIN * SLOT_BYTES);
