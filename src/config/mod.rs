//! What was meant: settings with addresses parsed, cores chosen and keys loaded. Everything that can be wrong with a setting is
//! said here, with the place it was written at; below nothing is validated again.

mod file;
mod listeners;
mod parse;
mod protocol;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::cli::{self, Typed};
use crate::crypto::fixed_iv::Method;
use crate::dial::{DialTarget, MAX_DIAL};
use crate::inter_server;
use crate::keys::v80::Key;
use crate::keys::{self, v81};
use crate::limits;
use crate::listen::ListenerKind;
use crate::protocol::socks5::Credentials;
use crate::protocol::v80::{Profile, Side};
use crate::server;
use crate::shard::affinity;
use crate::shard::engine::Choice;
use crate::telemetry::log;

pub use protocol::Protocol;
use protocol::{KeyFiles, Version};
use value::Values;

/// Something that was typed or written cannot be meant. The text is one line: where, what was got, what is expected.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// A whole process.
#[derive(Debug)]
pub struct Config {
    /// What to be, and how.
    pub role: Role,
    /// The core of each shard.
    pub cores: Vec<usize>,
    /// Bytes of buffers per shard.
    pub buffer_memory: usize,
    /// What moves the shards' bytes.
    pub engine: Choice,
    /// What tunnels speak, with its keys.
    pub protocol: Protocol,
    /// Sockets to listen on; none for a server that only dials.
    pub listeners: Vec<Listener>,
    /// A name server to ask instead of the system's.
    pub resolver: Option<SocketAddr>,
    /// How to log.
    pub log: log::Settings,
    /// What is not wrong, but should be said at the start.
    pub warnings: Vec<String>,
}

/// Which of the two programs this process is.
#[derive(Clone, Debug)]
pub enum Role {
    /// The exit.
    Server(server::Settings),
    /// The entry.
    InterServer(inter_server::Settings),
}

/// A socket to listen on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listener {
    /// What for.
    pub kind: ListenerKind,
    /// Where.
    pub at: ListenAt,
}

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListenAt {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Config {
    /// Reads what `zhwkprox server` was given.
    ///
    /// # Errors
    /// Whatever cannot be meant.
    pub fn server(typed: &Typed) -> Result<Self, ConfigError> {
        let values = file::gather(typed, "server")?;
        Common::read(&values, KeyFiles::One)?.server(&values)
    }

    /// Reads what `zhwkprox inter-server` was given.
    ///
    /// # Errors
    /// Whatever cannot be meant.
    pub fn inter_server(typed: &Typed) -> Result<Self, ConfigError> {
        let values = file::gather(typed, "inter-server")?;
        Common::read(&values, KeyFiles::Named)?.inter_server(&values)
    }
}

/// What `zhwkprox check` is to try.
#[derive(Debug)]
pub struct Check {
    /// Whom to dial.
    pub dial: DialTarget,
    /// What to be: [`Side::Exit`] is a server that dials an inter-server.
    pub side: Side,
    /// What to speak, with the key.
    pub protocol: Protocol,
    /// What is not wrong, but should be said.
    pub warnings: Vec<String>,
}

impl Check {
    /// Reads what `zhwkprox check` was given.
    ///
    /// # Errors
    /// Whatever cannot be meant.
    pub fn read(typed: &Typed) -> Result<Self, ConfigError> {
        let values = Values::typed(typed);
        let mut warnings = Vec::new();
        let protocol = Protocol::read(&values, KeyFiles::One, &mut warnings)?;
        let dial = values.one("dial", parse::dial_target)?;
        Ok(Self {
            dial: dial.ok_or_else(|| missing("--dial HOST:PORT", "whom to try"))?,
            side: values.one("as", parse::side)?.unwrap_or(Side::Exit),
            protocol,
            warnings,
        })
    }
}

/// The engine that `zhwkprox demo` is to run on.
///
/// # Errors
/// There is none of this name.
pub fn demo(typed: &Typed) -> Result<Choice, ConfigError> {
    Ok(Values::typed(typed).one("engine", parse::engine)?.unwrap_or_default())
}

/// Makes the key that `zhwkprox keygen` was asked for, and puts it where it was asked for.
///
/// # Errors
/// Wrong use, or the outer error for what the system refuses.
pub fn keygen(typed: &Typed) -> Result<Result<(), std::io::Error>, ConfigError> {
    let values = Values::typed(typed);
    let version = Version::read(&values)?;
    if version == Version::V81 && values.has("cipher") {
        let message =
            "is for protocol 0x80, got protocol 0x81, whose keys serve every cipher. cure: leave it out, or choose --protocol 0x80";
        return Err(values.error("cipher", &message));
    }
    let method = values.one("cipher", parse::method)?.unwrap_or(Method::Aes128Ctr);
    let path = typed.one("out").filter(|path| *path != "-").map(Path::new);
    let force = typed.switch("force");
    if let Some(path) = path
        && !force
        && path.symlink_metadata().is_ok()
    {
        return Err(ConfigError(format!("{} exists: a key that is in use would be lost. with --force it is replaced", path.display())));
    }
    let line = match version {
        Version::V80 => Key::generate(method.key_bytes()).map(|key| key.line()),
        Version::V81 => v81::generate(),
    };
    let written = line.and_then(|line| match path {
        Some(path) => line.write_file(path, force).map_err(|cause| context(&format!("cannot write {}", path.display()), &cause)),
        None => line.write_stdout().map_err(|cause| context("cannot write to standard output", &cause)),
    });
    Ok(written)
}

fn context(what: &str, cause: &std::io::Error) -> std::io::Error {
    std::io::Error::new(cause.kind(), format!("{what}: {cause}"))
}

/// What both roles have.
struct Common {
    cores: Vec<usize>,
    cores_chosen: bool,
    buffer_memory: usize,
    engine: Choice,
    protocol: Protocol,
    linger: std::time::Duration,
    idle: Option<std::time::Duration>,
    resolver: Option<SocketAddr>,
    log: log::Settings,
    warnings: Vec<String>,
}

impl Common {
    fn read(values: &Values, files: KeyFiles) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let protocol = Protocol::read(values, files, &mut warnings)?;
        let available = affinity::allowed_cores().map_err(|cause| ConfigError(format!("cannot ask for the cores: {cause}")))?;
        let chosen = values.one("cores", |text| parse::cores(text, &available))?;
        let idle = values.one("idle", parse::duration_or_off)?.unwrap_or(match protocol {
            Protocol::V80 { .. } => Some(limits::IDLE_V80),
            Protocol::V81 { .. } => None,
        });
        Ok(Self {
            cores_chosen: chosen.is_some(),
            cores: chosen.unwrap_or(available),
            buffer_memory: values.one("buffer-memory", parse::buffer_memory)?.unwrap_or(limits::BUFFER_MEMORY),
            engine: values.one("engine", parse::engine)?.unwrap_or_default(),
            protocol,
            linger: values.one("linger", parse::duration)?.unwrap_or(limits::LINGER),
            idle,
            resolver: values.one("resolver", parse::resolver)?,
            log: log::Settings {
                form: values.one("log", parse::log_form)?.unwrap_or(log::Form::Text),
                level: values.one("log-level", parse::log_level)?.unwrap_or(tracing::Level::INFO),
            },
            warnings,
        })
    }

    fn server(mut self, values: &Values) -> Result<Config, ConfigError> {
        let dial = dial(values)?;
        let listeners = listeners::server(values)?;
        if dial.is_empty() && listeners.is_empty() {
            return Err(missing("--dial HOST:PORT (or --listen ADDR:PORT)", "the inter-server to serve, or where inter-servers come in"));
        }
        let profile = self.protocol.profile();
        let original = profile == Profile::Original;
        if original && !listeners.is_empty() {
            return Err(values.error("listen", &"got --profile original, expected ours: the author's inter-server does not dial"));
        }
        let allow_inter_servers = self.allowed(values, "allow-inter-servers", |all| {
            format!("inter-servers may log in from everywhere ({all}): in 0x80 whoever has seen one handshake can")
        })?;
        // The author's inter-server is made for one server with one tunnel.
        let usual = if original { 1 } else { limits::MAX_TUNNELS };
        let max_tunnels = values.one("max-tunnels", |text| parse::number(text, 1..=65_535))?;
        if original && !self.cores_chosen {
            self.cores.truncate(1);
        }
        let settings = server::Settings {
            dial,
            allow_inter_servers,
            max_tunnels: max_tunnels.unwrap_or(usual),
            allow: values.all("allow", parse::network)?,
            source: values.one("source", parse::ip)?,
            connect_timeout: values.one("connect-timeout", parse::duration)?.unwrap_or(limits::CONNECT_TIMEOUT),
            linger: self.linger,
            idle: self.idle,
        };
        Ok(self.into_config(Role::Server(settings), listeners))
    }

    fn inter_server(mut self, values: &Values) -> Result<Config, ConfigError> {
        let credentials = self.credentials(values)?;
        let authenticate = credentials.is_some();
        let dial = dial(values)?;
        let listeners = listeners::inter_server(values, authenticate, !dial.is_empty())?;
        let profile = self.protocol.profile();
        if profile == Profile::Original && !dial.is_empty() {
            return Err(values.error("dial", &"got --profile original, expected ours: the author's server does not listen"));
        }
        for listener in &listeners {
            if matches!(listener.kind, ListenerKind::Shared { clients: false, .. }) {
                self.warnings.push(format!(
                    "{} is not on a private network: clients are not taken there. with --credentials-file they are",
                    listener.at
                ));
            }
        }
        let allow_servers = self.allowed(values, "allow-servers", |all| {
            format!("servers may log in from everywhere ({all}): in 0x80 whoever does is given clients' traffic")
        })?;
        let settings = inter_server::Settings {
            dial,
            allow_servers,
            credentials,
            linger: self.linger,
            idle: self.idle,
            wait_for_tunnel: values.one("wait-for-tunnel", parse::duration)?.unwrap_or(limits::WAIT_FOR_TUNNEL),
        };
        Ok(self.into_config(Role::InterServer(settings), listeners))
    }

    /// Who may log in here, loopback unless somebody is named. On 0x81 a login proves a key, on 0x80 next to nothing.
    fn allowed(&mut self, values: &Values, name: &str, warning: impl Fn(&IpNet) -> String) -> Result<Vec<IpNet>, ConfigError> {
        let allowed = values.all(name, parse::network)?;
        if let (Some(all), Protocol::V80 { .. }) = (allowed.iter().find(|network| network.prefix_len() == 0), &self.protocol) {
            self.warnings.push(warning(all));
        }
        Ok(if allowed.is_empty() { loopback() } else { allowed })
    }

    fn credentials(&mut self, values: &Values) -> Result<Option<Credentials>, ConfigError> {
        let Some(file) = values.written("credentials-file").first() else { return Ok(None) };
        let path = file.resolve(Path::new(&file.text));
        let (contents, warning) = keys::read_secret(&path).map_err(|error| values.error("credentials-file", &error))?;
        self.warnings.extend(warning);
        let credentials = parse::credentials(&contents);
        credentials.map(Some).ok_or_else(|| {
            values.error("credentials-file", &format!("{} is not one line `user:password`, each of 1 to 255 bytes", path.display()))
        })
    }

    fn into_config(self, role: Role, listeners: Vec<Listener>) -> Config {
        let Self { cores, buffer_memory, engine, protocol, resolver, log, warnings, .. } = self;
        Config { role, cores, buffer_memory, engine, protocol, listeners, resolver, log, warnings }
    }
}

/// Loopback, the only place servers and `demo`'s destinations come from unless somebody says otherwise.
#[must_use]
pub fn loopback() -> Vec<IpNet> {
    let v4 = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
    let v6 = ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);
    vec![v4.into(), v6.into()]
}

fn dial(values: &Values) -> Result<Vec<DialTarget>, ConfigError> {
    let dial = values.all("dial", parse::dial_target)?;
    if dial.len() > MAX_DIAL {
        return Err(values.error("dial", &format!("got {} to dial, expected at most {}", dial.len(), MAX_DIAL)));
    }
    Ok(dial)
}

fn missing(what: &str, why: &str) -> ConfigError {
    ConfigError(format!("{what} is missing: {why}"))
}

/// The keys a section of the configuration file may have.
fn keys_of(section: &str) -> Option<Vec<&'static str>> {
    let own = match section {
        "server" => cli::SERVER,
        "inter-server" => cli::INTER_SERVER,
        _ => return None,
    };
    Some(own.iter().chain(cli::COMMON).map(|flag| flag.name).collect())
}

/// Whether a key of a section takes a list.
fn may_repeat(section: &str, name: &str) -> bool {
    let own = if section == "server" { cli::SERVER } else { cli::INTER_SERVER };
    own.iter().any(|flag| flag.name == name && flag.many)
}
