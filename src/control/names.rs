//! Names: the hosts file and DNS, asked on behalf of the shards. A look-up that several wait for is made once, and a slow one holds
//! up nobody but those who wait for it.
//!
//! ```text
//!   both families are asked ─▶ first answer: First ─▶ 250 ms later: Settled ─▶ the other, or not within 2 s: Last
//!                              to those who begin      to those who want        to all who are left
//!                              with what there is      one answer
//! ```
//!
//! What always holds between calls: at most [`NAMES_OUTSTANDING`] look-ups are under way, each ends within [`NAME_LOOK_UP`], and everybody
//! who waits for one is in `under_way` under its name, or in `queue` while all are taken.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::limits::{
    NAME_FILES, NAME_IPV6_START, NAME_LATE_FAMILY, NAME_LOOK_UP, NAME_OTHER_FAMILY, NAME_SLOW, NAMES_CACHED, NAMES_OUTSTANDING,
    NAMES_WAITING,
};
use crate::shard::inbox::{Message, NameError, Postbox};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// Addresses in the order in which to try them, or why there are none.
type Answer = Result<Vec<IpAddr>, NameError>;

/// Who waits for an answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) postbox: Postbox,
    pub(super) ticket: u64,
    /// Also wants what is known before all is.
    pub(super) by_steps: bool,
}

impl Waiter {
    fn tell(&self, answer: &Answer, more: bool) {
        self.postbox.post(Message::Resolved { ticket: self.ticket, result: answer.clone(), more });
    }
}

/// How far a look-up has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// One family is there; IPv6 has had its start.
    First,
    /// One family is there, and the other has had its time for those who want one answer.
    Settled,
    /// This is all.
    Last,
}

/// What a look-up has found.
#[derive(Debug)]
pub(super) struct Found {
    name: String,
    answer: Answer,
    stage: Stage,
}

/// A look-up that is under way.
#[derive(Debug)]
struct LookUp {
    since: Instant,
    task: AbortHandle,
    waiters: Vec<Waiter>,
    so_far: Option<(Answer, Stage)>,
}

impl LookUp {
    /// One more who waits: what is known already is for it too.
    fn join(&mut self, waiter: Waiter) {
        match &self.so_far {
            Some((answer, _)) if waiter.by_steps => waiter.tell(answer, true),
            Some((answer, Stage::Settled)) => return waiter.tell(answer, false),
            Some(_) | None => {}
        }
        self.waiters.push(waiter);
    }

    /// Tells those for whom the stage is good enough; they are kept if more is for them.
    fn tell(&mut self, answer: &Answer, stage: Stage) {
        self.waiters.retain(|waiter| match (waiter.by_steps, stage) {
            (_, Stage::Last) | (false, Stage::Settled) => {
                waiter.tell(answer, false);
                false
            }
            (true, Stage::First) => {
                waiter.tell(answer, true);
                true
            }
            (true, Stage::Settled) | (false, Stage::First) => true,
        });
    }
}

/// All names of this process.
pub(super) struct Names {
    /// A name server to ask instead of the system's.
    server: Option<SocketAddr>,
    paths: Paths,
    look_again: Duration,
    /// `None` until it is first needed: nothing is said about the system's files before that.
    source: Option<Arc<Source>>,
    files: Files,
    looked_at: Instant,
    time_limit: Duration,
    slow: Duration,
    under_way: HashMap<String, LookUp>,
    /// Who waits for a look-up to become free, in order.
    queue: VecDeque<(String, Waiter)>,
    /// Somebody comes to look at the queue when the oldest look-up has become slow.
    is_woken: bool,
}

impl Names {
    pub(super) fn new(server: Option<SocketAddr>) -> Self {
        Self {
            server,
            paths: Paths { resolv_conf: PathBuf::from(RESOLV_CONF), hosts: PathBuf::from(HOSTS) },
            look_again: NAME_FILES,
            source: None,
            files: Files::default(),
            looked_at: Instant::now(),
            time_limit: NAME_LOOK_UP,
            slow: NAME_SLOW,
            under_way: HashMap::new(),
            queue: VecDeque::new(),
            is_woken: false,
        }
    }

    /// Reads the system's files, or reads them again if they have changed: a laptop changes networks, and its name servers with them.
    pub(super) fn prepare(&mut self) -> Arc<Source> {
        if let Some(source) = &self.source
            && self.looked_at.elapsed() < self.look_again
        {
            return Arc::clone(source);
        }
        self.looked_at = Instant::now();
        let files = Files::look(&self.paths);
        if self.source.is_some() && files != self.files {
            tracing::info!("name servers or hosts have changed: read again");
            self.source = None;
        }
        self.files = files;
        Arc::clone(self.source.get_or_insert_with(|| Arc::new(Source::read(self.server, &self.paths))))
    }

    /// Looks a name up for somebody; what is found is sent to `events`, for [`Self::on_found`].
    pub(super) fn look_up<E: From<Found> + Send + 'static>(&mut self, name: &str, waiter: Waiter, events: &UnboundedSender<E>) {
        if let Ok(address) = name.parse::<IpAddr>() {
            return waiter.tell(&Ok(vec![address]), false);
        }
        if self.waiting() >= NAMES_WAITING {
            return waiter.tell(&Err(NameError::Busy), false);
        }
        let name = name.to_lowercase();
        if let Some(look_up) = self.under_way.get_mut(&name) {
            return look_up.join(waiter);
        }
        self.queue.push_back((name, waiter));
        self.serve_queue(events);
    }

    /// Begins what waits, as far as there are look-ups. When all are taken by slow names, a place becomes free in time.
    fn serve_queue<E: From<Found> + Send + 'static>(&mut self, events: &UnboundedSender<E>) {
        while let Some((name, _)) = self.queue.front() {
            let is_under_way = self.under_way.contains_key(name);
            if !is_under_way && self.under_way.len() >= NAMES_OUTSTANDING && !self.make_room() {
                return self.wake_later(events);
            }
            let Some((name, waiter)) = self.queue.pop_front() else { return };
            if let Some(look_up) = self.under_way.get_mut(&name) {
                look_up.join(waiter);
                continue;
            }
            let task = self.begin(name.clone(), events.clone());
            self.under_way.insert(name, LookUp { since: Instant::now(), task, waiters: vec![waiter], so_far: None });
        }
    }

    /// Has the queue looked at again when the oldest look-up is slow: an event about no name.
    fn wake_later<E: From<Found> + Send + 'static>(&mut self, events: &UnboundedSender<E>) {
        if std::mem::replace(&mut self.is_woken, true) {
            return;
        }
        let oldest = self.under_way.values().map(|look_up| look_up.since).min();
        let (at, events) = (oldest.map_or_else(Instant::now, |since| since + self.slow), events.clone());
        tokio::spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            let _ = events.send(Found { name: String::new(), answer: Err(NameError::Failed), stage: Stage::First }.into());
        });
    }

    fn begin<E: From<Found> + Send + 'static>(&mut self, name: String, events: UnboundedSender<E>) -> AbortHandle {
        let (source, time_limit) = (self.prepare(), self.time_limit);
        let task = tokio::spawn(async move {
            let mut so_far = Err(NameError::Failed);
            let early = |answer: &Answer, stage| {
                so_far.clone_from(answer);
                // The process is ending if nobody takes it.
                let _ = events.send(Found { name: name.clone(), answer: answer.clone(), stage }.into());
            };
            let answer = tokio::time::timeout(time_limit, source.addresses(&name, early)).await;
            let answer = answer.unwrap_or(so_far);
            tracing::debug!(name, ?answer, "name looked up");
            let _ = events.send(Found { name, answer, stage: Stage::Last }.into());
        });
        task.abort_handle()
    }

    /// Gives the oldest look-up up, if it is slow: who waits for it gets what there is.
    fn make_room(&mut self) -> bool {
        let oldest = self.under_way.iter().min_by_key(|(_, look_up)| look_up.since);
        let Some(name) = oldest.filter(|(_, look_up)| look_up.since.elapsed() >= self.slow).map(|(name, _)| name.clone()) else {
            return false;
        };
        if let Some(mut look_up) = self.under_way.remove(&name) {
            look_up.task.abort();
            let so_far = look_up.so_far.take().map_or(Err(NameError::Busy), |(answer, _)| answer);
            look_up.tell(&so_far, Stage::Last);
        }
        true
    }

    /// Tells those who wait for it.
    pub(super) fn on_found<E: From<Found> + Send + 'static>(&mut self, found: &Found, events: &UnboundedSender<E>) {
        self.is_woken &= !found.name.is_empty();
        if let Some(look_up) = self.under_way.get_mut(&found.name) {
            look_up.tell(&found.answer, found.stage);
            look_up.so_far = Some((found.answer.clone(), found.stage));
            if found.stage == Stage::Last {
                self.under_way.remove(&found.name);
            }
        }
        self.serve_queue(events);
    }

    fn waiting(&self) -> usize {
        self.queue.len() + self.under_way.values().map(|look_up| look_up.waiters.len()).sum::<usize>()
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("under_way", &self.under_way.len()).finish_non_exhaustive()
    }
}

/// Where the system says how names are looked up.
struct Paths {
    resolv_conf: PathBuf,
    hosts: PathBuf,
}

/// What tells one version of the two files from another.
#[derive(Default, PartialEq, Eq)]
struct Files([Option<(u64, i64, i64, u64)>; 2]);

impl Files {
    fn look(paths: &Paths) -> Self {
        Self([&paths.resolv_conf, &paths.hosts].map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
        }))
    }
}

/// Where addresses come from.
pub(super) struct Source {
    hosts: Hosts,
    /// `None`: no usable configuration; the hosts file and plain addresses still work.
    resolver: Option<TokioResolver>,
}

impl Source {
    fn read(server: Option<SocketAddr>, paths: &Paths) -> Self {
        let mut hosts = Hosts::default();
        if let Err(error) = fs::File::open(&paths.hosts).and_then(|file| hosts.read_hosts_conf(file)) {
            tracing::warn!(%error, "cannot read {}: going on without", paths.hosts.display());
        }
        let resolver = match server {
            Some(server) => Self::resolver_at(server),
            None => Self::resolver_as_in(&paths.resolv_conf),
        };
        let resolver = resolver.inspect_err(|error| tracing::warn!(%error, "no name server: names fail, addresses work")).ok();
        Self { hosts, resolver }
    }

    fn resolver_at(server: SocketAddr) -> Result<TokioResolver, NetError> {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            connection.port = server.port();
        }
        let mut builder =
            TokioResolver::builder_with_config(ResolverConfig::from_name_servers(vec![config]), TokioRuntimeProvider::default());
        Self::adjust(builder.options_mut());
        builder.build()
    }

    fn resolver_as_in(resolv_conf: &Path) -> Result<TokioResolver, NetError> {
        let (config, options) = parse_resolv_conf(fs::read(resolv_conf)?)?;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Self::adjust(builder.options_mut());
        builder.build()
    }

    fn adjust(options: &mut ResolverOpts) {
        // The hosts file is looked at before, for both families at once.
        options.use_hosts_file = ResolveHosts::Never;
        // Every look-up may have to fall back to TCP at once.
        options.max_active_requests = 2 * NAMES_OUTSTANDING;
        options.cache_size = NAMES_CACHED;
    }

    /// All addresses of a name; `early` gets those of one family if the other's are late.
    async fn addresses(&self, text: &str, mut early: impl FnMut(&Answer, Stage)) -> Answer {
        let name = parse(text).ok_or(NameError::NotFound)?;
        if let Some(found) = self.in_hosts(&name) {
            return Ok(found);
        }
        if name.is_localhost() {
            return Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]);
        }
        let resolver = self.resolver.as_ref().ok_or(NameError::Failed)?;
        let mut v6 = std::pin::pin!(family(resolver, &name, RecordType::AAAA));
        let mut v4 = std::pin::pin!(family(resolver, &name, RecordType::A));
        let (v6, v4) = tokio::select! {
            v6 = &mut v6 => { let v4 = other(&v6, Duration::ZERO, v4, &mut early).await; (v6, v4) }
            v4 = &mut v4 => { let v6 = other(&v4, NAME_IPV6_START, v6, &mut early).await; (v6, v4) }
        };
        match (v6, v4) {
            (Ok(v6), Ok(v4)) => Ok(interleave(v6, v4)),
            (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(found),
            (Err(NameError::NotFound), Err(NameError::NotFound)) => Err(NameError::NotFound),
            _ => Err(NameError::Failed),
        }
    }

    fn in_hosts(&self, name: &Name) -> Option<Vec<IpAddr>> {
        let family = |family| {
            let found = self.hosts.lookup_static_host(&Query::query(name.clone(), family))?;
            Some(found.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>())
        };
        let found = interleave(family(RecordType::AAAA).unwrap_or_default(), family(RecordType::A).unwrap_or_default());
        (!found.is_empty()).then_some(found)
    }
}

/// A name that can be asked for. Underscores are let through: they are used, though no standard has them in host names.
fn parse(text: &str) -> Option<Name> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| (1..=63).contains(&label.len()) && !label.contains(|c: char| c.is_whitespace() || c.is_control());
    if !bare.split('.').all(label) {
        return None;
    }
    Name::from_utf8(text).or_else(|_| Name::from_str_relaxed(text)).ok()
}

/// One family's addresses, at least one.
async fn family(resolver: &TokioResolver, name: &Name, family: RecordType) -> Answer {
    match resolver.lookup(name.clone(), family).await {
        Ok(found) => {
            let addresses: Vec<IpAddr> = found.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
            if addresses.is_empty() { Err(NameError::NotFound) } else { Ok(addresses) }
        }
        // Also "the name exists, but has no such address".
        Err(error) if error.is_nx_domain() || says_none(&error) => Err(NameError::NotFound),
        Err(_) => Err(NameError::Failed),
    }
}

/// Whether the answer was "no such record", rather than a failure that hickory also reports as an answer without records.
fn says_none(error: &NetError) -> bool {
    use hickory_resolver::net::DnsError;
    use hickory_resolver::proto::op::ResponseCode;
    matches!(error, NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NoError)
}

/// The other family's answer, which has longer the fewer wait for it; without addresses in the first one's, all the time there is.
async fn other(first: &Answer, start: Duration, answer: impl Future<Output = Answer>, early: &mut impl FnMut(&Answer, Stage)) -> Answer {
    let mut answer = std::pin::pin!(answer);
    if first.is_err() {
        return answer.await;
    }
    let began = Instant::now();
    for (until, stage) in [(start, Some(Stage::First)), (NAME_OTHER_FAMILY, Some(Stage::Settled)), (NAME_LATE_FAMILY, None)] {
        if let Ok(answer) = tokio::time::timeout_at(began + until, &mut answer).await {
            return answer;
        }
        if let Some(stage) = stage {
            early(first, stage);
        }
    }
    Err(NameError::Failed)
}

/// IPv6 and IPv4 by turns, each in the order it came in (RFC 8305), none twice.
fn interleave(v6: Vec<IpAddr>, v4: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut all = Vec::with_capacity(v6.len() + v4.len());
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    loop {
        let pair = [v6.next(), v4.next()];
        if pair == [None, None] {
            return all;
        }
        for address in pair.into_iter().flatten() {
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
