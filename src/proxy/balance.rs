//! Which server of the upstream a request goes to: of those that are up, the one with the fewest under way.
//!
//! What all threads have to know of a server is a few atomics ([`Server`]); the connections are each
//! thread's own ([`Upstream`]). Requests take a server out ([`Server::take_out`]); it comes back when it
//! was asked whether it is well, which is not done here (`server::upstreams`). The only server there is,
//! without anything that says how it is, is tried by every request: nobody knows better.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use tokio::sync::{Notify, Semaphore};

use super::forward::SendError;
use super::upstream::{Lease, Place, Upstream};
use crate::config::snapshot::UpstreamSettings;
use crate::wire::answer::Refusal;

/// Requests in a row that a server may break or leave unanswered. One alone may be the request's fault.
const FAULTS: u32 = 3;

/// Why a server gets no requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Fault {
    /// It takes no connection.
    Connection,
    /// It broke requests, or left them unanswered, several in a row.
    Answers,
    /// It was asked how it is, and did not say that it is well.
    Check,
}

impl Fault {
    /// In a few words, for the log.
    pub fn words(self) -> &'static str {
        match self {
            Self::Connection => "it takes no connection",
            Self::Answers => "it broke several requests in a row, or did not answer them",
            Self::Check => "its health check failed",
        }
    }
}

/// What all threads know of one server.
#[derive(Debug)]
pub struct Server {
    url: String,
    most: usize,
    /// The connections that may still be opened.
    pub(super) free: Arc<Semaphore>,
    /// Requests of all threads that wait for one.
    pub(super) waiting: AtomicUsize,
    /// Told while there are any.
    pub(super) wanted: Arc<Notify>,
    /// Requests of all threads that are under way. Not counted where there is only one server.
    pub(super) busy: AtomicUsize,
    up: AtomicBool,
    /// The [`Fault`] that it was last taken out for.
    fault: AtomicU8,
    /// Failures since its last answer.
    failures: AtomicU32,
    taken_out: Notify,
}

impl Server {
    fn new(url: &str, most: usize, wanted: &Arc<Notify>) -> Self {
        Self {
            url: url.to_owned(),
            most,
            free: Arc::new(Semaphore::new(most)),
            waiting: AtomicUsize::new(0),
            wanted: Arc::clone(wanted),
            busy: AtomicUsize::new(0),
            up: AtomicBool::new(true),
            fault: AtomicU8::new(0),
            failures: AtomicU32::new(0),
            taken_out: Notify::new(),
        }
    }

    /// Its URL, as metrics and logs name it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is up, as far as is known.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// It answered a request.
    pub fn has_answered(&self) {
        // Written only where there is something to forget: all threads read it.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// No requests go there until [`Server::bring_back`].
    pub fn take_out(&self, fault: Fault) {
        if self.is_up() {
            self.fault.store(fault as u8, Ordering::Relaxed);
            self.up.store(false, Ordering::Release);
            self.taken_out.notify_one();
        }
    }

    /// It is well.
    pub fn bring_back(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
    }

    /// Why it was taken out last.
    pub fn fault(&self) -> Fault {
        [Fault::Connection, Fault::Answers, Fault::Check]
            .into_iter()
            .find(|fault| *fault as u8 == self.fault.load(Ordering::Relaxed))
            .unwrap_or(Fault::Connection)
    }

    /// Completes when it is taken out. For one task alone.
    pub async fn taken_out(&self) {
        self.taken_out.notified().await;
    }
}

/// All servers of the upstream, as all threads see them.
#[derive(Debug)]
pub struct Servers {
    each: Vec<Arc<Server>>,
    /// Whether one that is out gets no requests, not even when all are.
    strict: bool,
    wanted: Arc<Notify>,
}

impl Servers {
    /// Those of `settings`; what is known of one that was there `before` stays known.
    pub fn new(settings: Option<&UpstreamSettings>, before: Option<&Self>) -> Self {
        let wanted = before.map_or_else(Arc::default, |before| Arc::clone(&before.wanted));
        let known = before.map_or(&[][..], |before| &before.each);
        let make = |url: &str, most: usize| {
            let same = known.iter().find(|known| known.url == url && known.most == most);
            same.map_or_else(|| Arc::new(Server::new(url, most, &wanted)), Arc::clone)
        };
        let each: Vec<_> = settings.map_or_else(Vec::new, |settings| {
            settings.servers.iter().map(|server| make(&server.url, settings.max_connections)).collect()
        });
        let strict = each.len() > 1 || settings.is_some_and(|settings| settings.health.is_some());
        Self { each, strict, wanted }
    }

    /// In the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.each.iter()
    }

    /// Whether any is up.
    pub fn any_up(&self) -> bool {
        self.each.iter().any(|server| server.is_up())
    }

    /// Completes when a request waits for a connection and none is free: whoever holds one in vain should give
    /// it up.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

/// One thread's connections to all servers.
pub struct Upstreams {
    servers: Arc<Servers>,
    each: Vec<Rc<Upstream>>,
    /// Where to begin to look: among equals each has its turn.
    turn: Cell<usize>,
}

impl Upstreams {
    /// Connections that were there `before` are kept where they lead to the same.
    pub fn new(settings: &UpstreamSettings, servers: &Arc<Servers>, before: Option<&Self>) -> Self {
        let known = before.map_or(&[][..], |before| &before.each);
        let each = settings.servers.iter().zip(&servers.each).map(|(place, server)| {
            match known.iter().find(|known| known.is(place, settings, server)) {
                Some(known) => Rc::clone(known),
                None => Upstream::new(place.clone(), settings.clone(), server),
            }
        });
        Self { each: each.collect(), servers: Arc::clone(servers), turn: Cell::new(0) }
    }

    /// Whether a request that fails at one may be served by another.
    pub fn are_several(&self) -> bool {
        self.each.len() > 1
    }

    /// A place at the server with the fewest requests under way, of those that are up and not `but`.
    pub fn choose(&self, but: Option<&Rc<Upstream>>) -> Option<Place> {
        if let [only] = &self.each[..] {
            let takes = !self.servers.strict || only.server().is_up();
            return takes.then(|| Place::take(only, false));
        }
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let (before, from) = self.each.split_at(turn % self.each.len().max(1));
        let candidates = from
            .iter()
            .chain(before)
            .filter(|upstream| upstream.server().is_up() && but.is_none_or(|but| !Rc::ptr_eq(but, upstream)));
        let fewest = candidates.min_by_key(|upstream| upstream.server().busy.load(Ordering::Relaxed));
        fewest.map(|upstream| Place::take(upstream, true))
    }

    /// A connection at `place`, to another server if one cannot be made. `fresh`: not one that was used before.
    ///
    /// # Errors
    /// `UpstreamUnreachable` if no server that is up takes a connection, `UpstreamBusy` if none comes free.
    pub async fn lease(&self, place: Place, fresh: bool) -> Result<Lease, Refusal> {
        let mut place = Some(place);
        for _ in 0..self.each.len() {
            let Some(chosen) = place else { break };
            let tried = Rc::clone(chosen.upstream());
            match chosen.lease(fresh).await {
                Err(Refusal::UpstreamUnreachable) if self.are_several() => place = self.choose(Some(&tried)),
                outcome => return outcome,
            }
        }
        Err(Refusal::UpstreamUnreachable)
    }

    /// A request failed: a server at which several in a row do is taken out, unless it is the last one.
    pub fn note(&self, lease: &Lease, error: &SendError) {
        // A connection that went stale is nobody's fault.
        let stale = lease.reused && matches!(error, SendError::Failed { .. });
        if !self.are_several() || stale || !error.is_upstreams() {
            return;
        }
        let server = lease.upstream().server();
        let failures = server.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let another = self.servers.iter().any(|other| !Arc::ptr_eq(other, server) && other.is_up());
        if failures >= FAULTS && another {
            server.take_out(Fault::Answers);
        }
    }

    /// Closes the connections that have been idle for too long, or all if another thread waits for one.
    pub fn close_stale(&self) {
        self.each.iter().for_each(|upstream| upstream.close_stale());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;
    use crate::config::snapshot::UpstreamServer;

    fn settings(count: usize, health: Option<&str>) -> UpstreamSettings {
        let server = |index: usize| UpstreamServer {
            url: format!("http://127.0.0.1:{index}"),
            address: format!("127.0.0.1:{index}"),
            authority: HeaderValue::from_static("cms"),
        };
        UpstreamSettings {
            servers: (1..=count).map(server).collect(),
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
            max_connections: 4,
            own_host: false,
            health: health.map(str::to_owned),
        }
    }

    fn upstreams(count: usize, health: Option<&str>) -> Upstreams {
        let settings = settings(count, health);
        Upstreams::new(&settings, &Arc::new(Servers::new(Some(&settings), None)), None)
    }

    fn index(upstreams: &Upstreams, place: &Place) -> usize {
        upstreams.each.iter().position(|upstream| Rc::ptr_eq(upstream, place.upstream())).unwrap()
    }

    #[test]
    fn a_request_goes_to_the_server_with_the_fewest_and_never_to_one_that_is_out() {
        let upstreams = upstreams(3, None);
        let places: Vec<_> = (0..6).map(|_| upstreams.choose(None).unwrap()).collect();
        let counts: Vec<_> =
            upstreams.servers.iter().map(|server| server.busy.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [2, 2, 2]);
        let mut kept: Vec<_> = places.into_iter().filter(|place| index(&upstreams, place) != 1).collect();
        assert_eq!(upstreams.each[1].server().busy.load(Ordering::Relaxed), 0, "its places are given back");
        for _ in 0..2 {
            let place = upstreams.choose(None).unwrap();
            assert_eq!(index(&upstreams, &place), 1);
            kept.push(place);
        }
        upstreams.each[1].server().take_out(Fault::Connection);
        assert_ne!(index(&upstreams, &upstreams.choose(None).unwrap()), 1);
        upstreams.each[0].server().take_out(Fault::Check);
        assert_eq!(index(&upstreams, &upstreams.choose(None).unwrap()), 2);
        assert!(upstreams.choose(Some(&upstreams.each[2])).is_none(), "there is no other one");
        upstreams.each[2].server().take_out(Fault::Answers);
        assert!(upstreams.choose(None).is_none());
        upstreams.each[0].server().bring_back();
        assert_eq!(index(&upstreams, &upstreams.choose(None).unwrap()), 0);
    }

    #[test]
    fn the_only_server_is_out_for_requests_only_where_somebody_asks_how_it_is() {
        for (health, takes) in [(None, true), (Some("/healthz"), false)] {
            let upstreams = upstreams(1, health);
            upstreams.each[0].server().take_out(Fault::Connection);
            assert_eq!(upstreams.choose(None).is_some(), takes, "{health:?}");
        }
    }

    #[test]
    fn what_is_known_of_a_server_outlives_a_reload_that_keeps_it() {
        let before = Servers::new(Some(&settings(2, None)), None);
        before.each[1].take_out(Fault::Connection);
        let after = Servers::new(Some(&settings(3, Some("/healthz"))), Some(&before));
        assert_eq!(after.iter().map(|server| server.is_up()).collect::<Vec<_>>(), [true, false, true]);
        assert!(Arc::ptr_eq(&before.each[0], &after.each[0]));
        assert!(after.any_up() && after.strict);
    }
}
