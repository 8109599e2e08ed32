//! What was meant: settings with addresses parsed, cores chosen and keys loaded. Everything that can be wrong with a setting is
//! said here, with the place it was written at; below nothing is validated again.

mod file;
mod parse;
mod value;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::cli::{self, Typed};
use crate::crypto::fixed_iv::{MessageCipher, Method};
use crate::inter_server::{self, ListenerKind};
use crate::keys::{self, Key};
use crate::limits;
use crate::protocol::socks5::Credentials;
use crate::protocol::v80::Profile;
use crate::server;
use crate::shard::affinity;
use crate::telemetry::log;

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
    /// Key, cipher and IV.
    pub cipher: MessageCipher,
    /// Who is on the other end.
    pub profile: Profile,
    /// Sockets to listen on; none for a server that dials.
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
        Common::read(&values)?.server(&values)
    }

    /// Reads what `zhwkprox inter-server` was given.
    ///
    /// # Errors
    /// Whatever cannot be meant.
    pub fn inter_server(typed: &Typed) -> Result<Self, ConfigError> {
        let values = file::gather(typed, "inter-server")?;
        Common::read(&values)?.inter_server(&values)
    }
}

/// Makes the key that `zhwkprox keygen` was asked for, and puts it where it was asked for.
///
/// # Errors
/// Wrong use, or the outer error for what the system refuses.
pub fn keygen(typed: &Typed) -> Result<Result<(), std::io::Error>, ConfigError> {
    let values = Values::typed(typed);
    protocol(&values)?;
    let method = values.one("cipher", parse::method)?.unwrap_or(Method::Aes128Ctr);
    let path = typed.one("out").filter(|path| *path != "-").map(Path::new);
    let force = typed.switch("force");
    if let Some(path) = path
        && !force
        && path.symlink_metadata().is_ok()
    {
        return Err(ConfigError(format!("{} exists: a key that is in use would be lost. with --force it is replaced", path.display())));
    }
    let written = Key::generate(method.key_bytes()).and_then(|key| match path {
        Some(path) => key.write_file(path, force).map_err(|cause| context(&format!("cannot write {}", path.display()), &cause)),
        None => key.write_stdout().map_err(|cause| context("cannot write to standard output", &cause)),
    });
    Ok(written)
}

fn context(what: &str, cause: &std::io::Error) -> std::io::Error {
    std::io::Error::new(cause.kind(), format!("{what}: {cause}"))
}

/// 0x80 has to be asked for by name, from the first day on: what one gets without asking must be the safe one.
fn protocol(values: &Values) -> Result<(), ConfigError> {
    let protocol = values.one("protocol", |text| match text {
        "0x80" => Ok(()),
        "0x81" => Err("0x80: 0x81 is not in this version yet".to_owned()),
        _ => Err("0x80".to_owned()),
    })?;
    protocol.ok_or_else(|| {
        ConfigError(
            "--protocol 0x80 must be typed: it is for trusted wires only, and 0x81, which will be the default, is not in this version yet"
                .to_owned(),
        )
    })
}

/// What both roles have.
struct Common {
    cores: Vec<usize>,
    cores_chosen: bool,
    buffer_memory: usize,
    cipher: MessageCipher,
    profile: Profile,
    linger: std::time::Duration,
    idle: Option<std::time::Duration>,
    resolver: Option<SocketAddr>,
    log: log::Settings,
    warnings: Vec<String>,
}

impl Common {
    fn read(values: &Values) -> Result<Self, ConfigError> {
        protocol(values)?;
        let mut warnings = Vec::new();
        let profile = values.one("profile", parse::profile)?.unwrap_or(Profile::Ours);
        let original = profile == Profile::Original;
        let method = values.one("cipher", |text| match parse::method(text)? {
            Method::Aes128Cfb => Ok(Method::Aes128Cfb),
            _ if original => Err("aes-128-cfb with --profile original".to_owned()),
            method => Ok(method),
        })?;
        let method = method.unwrap_or(if original { Method::Aes128Cfb } else { Method::Aes128Ctr });
        let iv = values.one_unseen("iv", parse::iv)?.unwrap_or(parse::DEFAULT_IV);
        let path = values.one("key-file", |text| Ok(text.to_owned()))?;
        let path = path.ok_or_else(|| missing("--key-file FILE", "make one with `zhwkprox keygen --protocol 0x80 --out FILE`"))?;
        let path = values.resolve("key-file", &path);
        let (key, warning) = Key::load(&path, method.key_bytes(), &method.to_string()).map_err(|error| values.error("key-file", &error))?;
        warnings.extend(warning);
        let cipher = MessageCipher::new(method, key.bytes(), iv).map_err(|error| values.error("key-file", &error))?;

        let available = affinity::allowed_cores().map_err(|cause| ConfigError(format!("cannot ask for the cores: {cause}")))?;
        let chosen = values.one("cores", |text| parse::cores(text, &available))?;
        let idle = values.one("idle", parse::duration_or_off)?.unwrap_or(Some(limits::IDLE_V80));
        Ok(Self {
            cores_chosen: chosen.is_some(),
            cores: chosen.unwrap_or(available),
            buffer_memory: values.one("buffer-memory", parse::buffer_memory)?.unwrap_or(limits::BUFFER_MEMORY),
            cipher,
            profile,
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
        let dial = values.all("dial", parse::dial_target)?;
        if dial.is_empty() {
            return Err(missing("--dial HOST:PORT", "the inter-server to serve"));
        }
        // The author's inter-server is made for one server with one tunnel.
        let original = self.profile == Profile::Original;
        let usual = if original { 1 } else { limits::MAX_TUNNELS };
        let max_tunnels = values.one("max-tunnels", |text| parse::number(text, 1..=65_535))?;
        if original && !self.cores_chosen {
            self.cores.truncate(1);
        }
        let settings = server::Settings {
            profile: self.profile,
            dial,
            max_tunnels: max_tunnels.unwrap_or(usual),
            allow: values.all("allow", parse::network)?,
            source: values.one("source", parse::ip)?,
            connect_timeout: values.one("connect-timeout", parse::duration)?.unwrap_or(limits::CONNECT_TIMEOUT),
            linger: self.linger,
            idle: self.idle,
        };
        Ok(self.into_config(Role::Server(settings), Vec::new()))
    }

    fn inter_server(mut self, values: &Values) -> Result<Config, ConfigError> {
        let credentials = self.credentials(values)?;
        let authenticate = credentials.is_some();
        let listeners = listeners(values, authenticate)?;
        for listener in &listeners {
            if matches!(listener.kind, ListenerKind::Shared { clients: false, .. }) {
                self.warnings.push(format!(
                    "{} is not on a private network: clients are not taken there. with --credentials-file they are",
                    listener.at
                ));
            }
        }
        let mut allow_servers = values.all("allow-servers", parse::network)?;
        if allow_servers.is_empty() {
            allow_servers = loopback();
        }
        if let Some(all) = allow_servers.iter().find(|network| network.prefix_len() == 0) {
            self.warnings.push(format!("servers may log in from everywhere ({all}): in 0x80 whoever does is given clients' traffic"));
        }
        let settings = inter_server::Settings {
            profile: self.profile,
            allow_servers,
            credentials,
            linger: self.linger,
            idle: self.idle,
            wait_for_tunnel: values.one("wait-for-tunnel", parse::duration)?.unwrap_or(limits::WAIT_FOR_TUNNEL),
        };
        Ok(self.into_config(Role::InterServer(settings), listeners))
    }

    fn credentials(&mut self, values: &Values) -> Result<Option<Credentials>, ConfigError> {
        let Some(path) = values.one("credentials-file", |text| Ok(text.to_owned()))? else { return Ok(None) };
        let path = values.resolve("credentials-file", &path);
        let (contents, warning) = keys::read_secret(&path).map_err(|error| values.error("credentials-file", &error))?;
        self.warnings.extend(warning);
        let credentials = parse::credentials(&contents);
        credentials.map(Some).ok_or_else(|| {
            values.error("credentials-file", &format!("{} is not one line `user:password`, each of 1 to 255 bytes", path.display()))
        })
    }

    fn into_config(self, role: Role, listeners: Vec<Listener>) -> Config {
        let Self { cores, buffer_memory, cipher, profile, resolver, log, warnings, .. } = self;
        Config { role, cores, buffer_memory, cipher, profile, listeners, resolver, log, warnings }
    }
}

/// Loopback, the only place servers and `demo`'s destinations come from unless somebody says otherwise.
#[must_use]
pub fn loopback() -> Vec<IpNet> {
    let v4 = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
    let v6 = ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);
    vec![v4.into(), v6.into()]
}

fn listeners(values: &Values, authenticate: bool) -> Result<Vec<Listener>, ConfigError> {
    let tunnel = values.all("listen", parse::address)?;
    let shared = values.all("shared", parse::address)?;
    let socks = values.all("socks", |text| {
        let at = parse::listen_at(text)?;
        match &at {
            ListenAt::Tcp(address) if !authenticate && !address.ip().is_loopback() => {
                Err("a loopback address or unix:/path, or --credentials-file with it: it would be an open proxy".to_owned())
            }
            _ => Ok(at),
        }
    })?;
    if tunnel.is_empty() && shared.is_empty() {
        return Err(missing("--listen ADDR:PORT (or --shared)", "where servers log in"));
    }
    if socks.is_empty() && shared.is_empty() {
        return Err(missing("--socks ADDR:PORT (or --shared)", "where clients come in"));
    }
    let tunnel = tunnel.into_iter().map(|address| Listener { kind: ListenerKind::Tunnel, at: ListenAt::Tcp(address) });
    let socks = socks.into_iter().map(|at| Listener { kind: ListenerKind::Socks { authenticate }, at });
    let shared = shared.into_iter().map(|address| Listener {
        kind: ListenerKind::Shared { authenticate, clients: authenticate || is_private(address.ip()) },
        at: ListenAt::Tcp(address),
    });
    let listeners: Vec<Listener> = tunnel.chain(socks).chain(shared).collect();
    for (index, listener) in listeners.iter().enumerate() {
        let port_is_chosen = matches!(listener.at, ListenAt::Tcp(address) if address.port() == 0);
        if !port_is_chosen && listeners[..index].iter().any(|other| other.at == listener.at) {
            return Err(ConfigError(format!(
                "{} is given twice, expected each address once (--shared takes both on one port)",
                listener.at
            )));
        }
    }
    Ok(listeners)
}

/// Loopback and private addresses, where whoever connects is known.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
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

/// Whether a key takes a list.
fn may_repeat(name: &str) -> bool {
    cli::SERVER.iter().chain(cli::INTER_SERVER).any(|flag| flag.name == name && flag.many)
}
