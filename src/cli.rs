//! What was typed: the commands, their flags and the words of the help page. Everything is kept as text here; what it means is
//! decided in [`crate::config`].
//!
//! What always holds between calls: the flags of `server` and `inter-server` are at the same time the keys of the configuration
//! file, so the two cannot drift apart.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command as Parser};

/// One flag of one command.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// As typed, without the dashes.
    pub name: &'static str,
    /// What stands for its value in the help page; empty for a switch.
    pub value: &'static str,
    /// May be given several times.
    pub many: bool,
    /// One line of help.
    pub help: &'static str,
}

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Make a key.
    Keygen(Typed),
    /// Look at the machine.
    Doctor,
    /// Try a login.
    Check(Typed),
    /// Show both roles at work.
    Demo(Typed),
    /// Be the exit.
    Server(Typed),
    /// Be the entry.
    InterServer(Typed),
}

/// Flags and their values, as text. A switch that was given has the value `true`.
#[derive(Clone, Default, Debug)]
pub struct Typed(BTreeMap<&'static str, Vec<String>>);

/// What came of reading the command line when it is no command.
#[derive(Debug)]
pub enum Stop {
    /// Help or version was asked for: to standard output.
    Shown(String),
    /// Wrong use.
    Wrong(String),
}

impl Typed {
    /// The values of a flag, none if it was not given.
    #[must_use]
    pub fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The value of a flag that can be given once.
    #[must_use]
    pub fn one(&self, name: &str) -> Option<&str> {
        self.all(name).first().map(String::as_str)
    }

    /// Whether a switch was given.
    #[must_use]
    pub fn switch(&self, name: &str) -> bool {
        self.one(name).is_some()
    }

    /// Everything that was given.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        self.0.iter().map(|(name, values)| (*name, values.as_slice()))
    }
}

/// Reads the command line.
///
/// # Errors
/// [`Stop`]: help was asked for, or something was wrong.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Stop> {
    let matches = parser().try_get_matches_from(arguments).map_err(|error| match error.kind() {
        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => Stop::Shown(error.to_string()),
        _ => Stop::Wrong(first_paragraph(&error.to_string())),
    })?;
    Ok(match matches.subcommand() {
        Some(("keygen", given)) => Command::Keygen(typed(given, &[KEYGEN])),
        Some(("doctor", _)) => Command::Doctor,
        Some(("check", given)) => Command::Check(typed(given, &[CHECK])),
        Some(("demo", given)) => Command::Demo(typed(given, &[DEMO])),
        Some(("server", given)) => Command::Server(typed(given, &[SERVER, COMMON, FILE])),
        Some(("inter-server", given)) => Command::InterServer(typed(given, &[INTER_SERVER, COMMON, FILE])),
        _ => return Err(Stop::Shown(parser().render_help().to_string())),
    })
}

/// `zhwkprox demo`.
const DEMO: &[Flag] = &[ENGINE];

/// `zhwkprox keygen`.
const KEYGEN: &[Flag] = &[
    flag("protocol", "VERSION", "the protocol the key is for: 0x81 (default) or 0x80"),
    flag("cipher", "NAME", "0x80 only: aes-128-ctr (default), aes-256-ctr, aes-128-cfb"),
    flag("out", "FILE", "write here, mode 0600; `-` or nothing: standard output"),
    switch("force", "replace the file if it exists"),
];

/// `zhwkprox check`.
const CHECK: &[Flag] = &[
    flag("dial", "HOST:PORT", "whom to dial and log in to"),
    flag("key-file", "FILE", "the key to try"),
    flag("as", "ROLE", "server (default): the other end is an inter-server; or inter-server: it is a server"),
    flag("protocol", "VERSION", "0x81 (default) or 0x80"),
    flag("cipher", "LIST", "as for the roles"),
    flag("iv", "HEX", "0x80 only, as for the roles"),
];

/// `zhwkprox server`, and the section `[server]`.
pub const SERVER: &[Flag] = &[
    many("dial", "HOST:PORT", "an inter-server to dial; several are served independently"),
    many("listen", "ADDR:PORT", "where inter-servers that dial come in, instead of or beside --dial"),
    many("allow-inter-servers", "CIDR", "where inter-servers may come from (loopback)"),
    flag("key-file", "FILE", "the key, made by `zhwkprox keygen`"),
    many("allow", "CIDR", "destinations to allow beyond public addresses (loopback, private and the like are denied)"),
    flag("source", "IP", "source address of connections to destinations"),
    flag("max-tunnels", "N", "most tunnels per inter-server and shard (256)"),
    flag("connect-timeout", "TIME", "time for a destination to accept (10s)"),
];

/// `zhwkprox inter-server`, and the section `[inter-server]`.
pub const INTER_SERVER: &[Flag] = &[
    many("listen", "ADDR:PORT", "where servers log in"),
    many("dial", "HOST:PORT", "a server to dial, instead of or beside --listen"),
    many("socks", "ADDR:PORT", "where SOCKS5 clients come in; also unix:/path"),
    many("shared", "ADDR:PORT", "both on one port; off private networks, clients only with --credentials-file"),
    many("allow-servers", "CIDR", "where servers may log in from (loopback)"),
    many(
        "key-file",
        "[NAME=]FILE",
        "the key of an exit, made by `zhwkprox keygen`; named by its file (office.key) or NAME; or a folder of them (*.key); with 0x80 just one",
    ),
    flag("credentials-file", "FILE", "one line user:password, then asked of every client; required beyond loopback"),
    flag("wait-for-tunnel", "TIME", "how long a client waits for a tunnel (5s)"),
];

/// Both roles, and both sections.
pub const COMMON: &[Flag] = &[
    flag("protocol", "VERSION", "the protocol to speak: 0x81 (default), or 0x80, for trusted wires only"),
    flag(
        "cipher",
        "LIST",
        "most wanted first: aes-128-gcm,aes-256-gcm,chacha20-poly1305 (all); for 0x80 one: aes-128-ctr (default), aes-256-ctr, aes-128-cfb",
    ),
    flag("iv", "HEX", "0x80 only: the common IV, 32 hex digits (000102030405060708090a0b0c0d0e0f)"),
    flag("profile", "NAME", "0x80 only: ours (default), or original: speak to the author's own programs"),
    flag("cores", "LIST", "cores to run on, one shard each, as in 0-3,6 (all that may be used)"),
    flag("buffer-memory", "SIZE", "buffers per shard (16MiB)"),
    ENGINE,
    flag("linger", "TIME", "a half-open flow without progress ends after this (300s)"),
    flag("idle", "TIME", "a flow without a byte either way ends after this, or off (off; 1h with 0x80)"),
    flag("resolver", "IP[:PORT]", "ask this name server instead of those in /etc/resolv.conf"),
    flag("log", "FORM", "text (default) or json, one line per event on standard error"),
    flag("log-level", "LEVEL", "error, warn, info (default), debug, trace"),
];

/// What moves the bytes; for the demo too.
const ENGINE: Flag =
    flag("engine", "NAME", "auto (default): ring, or tokio-uring where the kernel is too old for it (before 6.1); or one of the two");

/// Both roles, on the command line only.
const FILE: &[Flag] =
    &[flag("config", "FILE", "a TOML file with these flags as keys; flags win"), switch("check-config", "check everything, start nothing")];

const fn flag(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, value, many: false, help }
}

const fn many(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, value, many: true, help }
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, value: "", many: false, help }
}

fn parser() -> Parser {
    let command = |name: &'static str, about: &'static str, flags: &[&[Flag]]| {
        Parser::new(name).about(about).args(flags.iter().copied().flatten().map(argument))
    };
    Parser::new("zhwkprox")
        .about("an encrypted TCP relay for Linux on io_uring")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(command("demo", "both roles on loopback with a throw-away key, and a curl line to try", &[DEMO]))
        .subcommand(command("keygen", "make a key", &[KEYGEN]))
        .subcommand(command("inter-server", "the entry: takes SOCKS5 clients and the servers' tunnels", &[INTER_SERVER, COMMON, FILE]))
        .subcommand(command(
            "server",
            "the exit: dials inter-servers, or is dialled, and connects to destinations",
            &[SERVER, COMMON, FILE],
        ))
        .subcommand(command("check", "log in to the other end once, and say what is wrong if it fails", &[CHECK]))
        .subcommand(command("doctor", "what this machine has, what the relay wants, and how to get it", &[]))
}

fn argument(flag: &Flag) -> Arg {
    let argument = Arg::new(flag.name).long(flag.name).help(flag.help);
    match (flag.value, flag.many) {
        ("", _) => argument.action(ArgAction::SetTrue),
        (value, false) => argument.value_name(value).action(ArgAction::Set),
        (value, true) => argument.value_name(value).action(ArgAction::Append).num_args(1..),
    }
}

fn typed(given: &ArgMatches, flags: &[&'static [Flag]]) -> Typed {
    let mut typed = Typed::default();
    for flag in flags.iter().copied().flatten() {
        let values: Vec<String> = match flag.value {
            "" if given.get_flag(flag.name) => vec!["true".to_owned()],
            "" => continue,
            _ => given.get_many::<String>(flag.name).into_iter().flatten().cloned().collect(),
        };
        if !values.is_empty() {
            typed.0.insert(flag.name, values);
        }
    }
    typed
}

/// clap explains at length: the first paragraph says what is wrong, in one line here.
fn first_paragraph(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let lines = message.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    lines.collect::<Vec<_>>().join(" ")
}
