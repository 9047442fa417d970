//! One request thread: a runtime of its own, connections of its own, no lock shared with the others.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::connection::{self, Connection, ConnectionLimits};
use super::handler::unix_now;
use super::listener::{Accepted, Arrival, Door};
use super::tls::{self, Handshakes};
use super::{Active, Gateway, proxy_protocol};
use crate::observe::audit::Audit;
use crate::observe::lines::Access;
use crate::proxy::Upstreams;
use crate::stream::Stream;
use crate::token::{Assertion, InvalidToken, TokenCache, TokenError, VerifiedClaims};
use crate::wire::answer::Refusal;
use crate::wire::headers::{HeaderRules, value_of};
use crate::wire::hygiene::HeadLimits;

/// Verified tokens that a thread remembers.
const CACHED_TOKENS: usize = 16 * 1024;

/// Bytes of verified tokens that a thread remembers.
const CACHED_TOKEN_BYTES: u64 = 16 * 1024 * 1024;

/// How long an access line may wait for company before it is written.
const LINE_PATIENCE: Duration = Duration::from_millis(100);

/// Bytes of access lines that are written without waiting for more.
const LINE_BATCH: usize = 16 * 1024;

/// How long a client may stand still in the middle of its request while others wait for what it holds.
const PATIENCE_UNDER_PRESSURE: Duration = Duration::from_secs(2);

/// How a connection reaches a worker.
#[derive(Clone)]
pub struct WorkerHandle {
    connections: UnboundedSender<(Accepted, Arrival, ConnectionCount)>,
    load: Arc<AtomicUsize>,
}

impl WorkerHandle {
    /// How many connections the thread has.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Hands a connection over.
    pub fn take(&self, stream: Accepted, arrival: Arrival, count: ConnectionCount) {
        self.load.fetch_add(1, Ordering::Relaxed);
        // A worker ends only after the listener: if it is gone, so is everything.
        let _ = self.connections.send((stream, arrival, count));
    }
}

/// Counts one open connection for as long as it exists.
pub struct ConnectionCount(pub(super) Arc<Gateway>);

/// A caller whose token has been verified, with the header values that say so.
pub struct Known {
    /// What the token says.
    pub claims: VerifiedClaims,
    /// `identity.*`, in the order of [`crate::config::snapshot::Identity::claims`].
    pub headers: Vec<(http::HeaderName, HeaderValue)>,
    /// The epoch of the revocations at which the token was last found live.
    live_at: Cell<u64>,
    /// What the upstream is told in `identity.assertion`.
    asserted: Asserted,
}

/// The assertion that was last signed for a caller, and the Unix second from which on another is due.
#[derive(Default)]
struct Asserted(RefCell<Option<(HeaderValue, u64)>>);

impl Asserted {
    /// The one for `now`: signing costs as much as verifying, so one is used again until half its life is over.
    fn at(
        &self,
        now: u64,
        sign: impl FnOnce() -> Result<Assertion, Refusal>,
    ) -> Result<HeaderValue, Refusal> {
        let mut last = self.0.borrow_mut();
        if let Some((value, renew_at)) = &*last
            && now < *renew_at
        {
            return Ok(value.clone());
        }
        let Assertion { text, renew_at } = sign()?;
        let mut value = HeaderValue::try_from(text).expect("base64url and dots are a header value");
        value.set_sensitive(true);
        *last = Some((value.clone(), renew_at));
        Ok(value)
    }
}

/// This thread's view of the configuration in force. A request keeps the one that it began with.
pub struct Local {
    active: Arc<Active>,
    /// Tokens verified with this configuration's keys, and no longer.
    tokens: RefCell<TokenCache<Rc<Known>>>,
    /// Which headers are whose.
    pub rules: Rc<HeaderRules>,
    /// This thread's connections to the upstream, where the gateway has one.
    pub upstreams: Option<Upstreams>,
}

impl std::ops::Deref for Local {
    type Target = Active;

    fn deref(&self) -> &Active {
        &self.active
    }
}

impl Local {
    fn new(active: Arc<Active>, before: Option<&Local>) -> Self {
        let snapshot = &active.snapshot;
        let tokens = TokenCache::new(CACHED_TOKENS, CACHED_TOKEN_BYTES, snapshot.leeway.as_secs());
        let rules = Rc::new(HeaderRules::new(snapshot.identity.header_names()));
        let before = before.and_then(|before| before.upstreams.as_ref());
        let upstreams = snapshot.upstream.as_ref();
        let upstreams = upstreams.map(|settings| Upstreams::new(settings, &active.servers, before));
        Self { tokens: RefCell::new(tokens), rules, upstreams, active }
    }

    /// Who a token says its bearer is, if it is not over.
    ///
    /// # Errors
    /// `ExpiredToken` or `InvalidToken`; `SessionsLoading` while nobody knows what is over.
    pub fn verify(&self, gateway: &Gateway, token: &str, now: u64) -> Result<Rc<Known>, Refusal> {
        let known = self.genuine(gateway, token, now)?;
        // Read first: a revocation that comes while we look bumps it, and has us look again.
        let epoch = gateway.sessions.epoch();
        if known.live_at.get() != epoch {
            gateway.sessions.check(&known.claims).inspect_err(|_| gateway.metrics.tokens.revoked.inc())?;
            known.live_at.set(epoch);
        }
        Ok(known)
    }

    /// What a token says, from the token alone: it may be over, and nothing is remembered.
    ///
    /// # Errors
    /// `ExpiredToken` or `InvalidToken`.
    pub fn verify_anew(&self, gateway: &Gateway, token: &str, now: u64) -> Result<VerifiedClaims, Refusal> {
        let counters = &gateway.metrics.tokens;
        match self.snapshot.verifier.verify(token, now) {
            Ok(claims) => {
                counters.verified.inc();
                Ok(claims)
            }
            Err(TokenError::Expired) => {
                counters.expired.inc();
                Err(Refusal::ExpiredToken)
            }
            Err(TokenError::Invalid(why)) => {
                counters.invalid.inc();
                if why == InvalidToken::UnknownKey {
                    gateway.look_for_keys();
                }
                Err(Refusal::InvalidToken(why))
            }
        }
    }

    fn genuine(&self, gateway: &Gateway, token: &str, now: u64) -> Result<Rc<Known>, Refusal> {
        if let Some(known) = self.tokens.borrow_mut().get(token, now) {
            gateway.metrics.tokens.cached.inc();
            return Ok(known);
        }
        let claims = self.verify_anew(gateway, token, now)?;
        let headers = self.snapshot.identity.claims(&claims);
        let headers = headers.map(|(name, value)| (name.clone(), value_of(value))).collect();
        let known = Rc::new(Known { claims, headers, live_at: Cell::new(0), asserted: Asserted::default() });
        self.tokens.borrow_mut().insert(token, Rc::clone(&known), known.claims.expires_at);
        Ok(known)
    }

    /// Writes into `headers` who is asking, as the upstream is told: `identity.*`, its secret first.
    ///
    /// # Errors
    /// `Internal` if an assertion cannot be signed.
    pub fn identify(&self, known: Option<&Known>, headers: &mut HeaderMap) -> Result<(), Refusal> {
        let identity = &self.snapshot.identity;
        if let Some((name, value)) = &identity.secret {
            headers.insert(name.clone(), value.clone());
        }
        let Some(known) = known else { return Ok(()) };
        for (name, value) in &known.headers {
            headers.insert(name.clone(), value.clone());
        }
        if let Some(name) = &identity.assertion {
            let now = unix_now();
            let value = known.asserted.at(now, || {
                let signed = self.snapshot.keys.asserter(now).map(|key| key.assert(&known.claims, now));
                signed.and_then(Result::ok).ok_or(Refusal::Internal("an assertion could not be signed"))
            })?;
            headers.insert(name.clone(), value);
        }
        Ok(())
    }

    /// Networks whose word is believed.
    pub fn trusted_proxies(&self) -> &[IpNet] {
        &self.snapshot.trusted_proxies
    }

    /// What a connection that begins now may take.
    pub fn connection_limits(&self) -> ConnectionLimits {
        let limits = &self.snapshot.limits;
        ConnectionLimits {
            head: HeadLimits {
                head_bytes: limits.header_bytes,
                target_bytes: limits.target_bytes,
                headers: limits.headers,
            },
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
        }
    }
}

/// One request thread.
pub struct Worker {
    /// What all threads share.
    pub gateway: Arc<Gateway>,
    local: RefCell<Rc<Local>>,
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
    next_connection: Cell<u64>,
    /// Random per thread and start, so that ids of two replicas or two starts differ.
    id_prefix: String,
    next_request: Cell<u64>,
    lines: RefCell<Vec<u8>>,
    /// TLS handshakes under way.
    pub(super) handshakes: Handshakes,
    closing: Cell<bool>,
    /// Turns true when upgraded connections have to end.
    end: watch::Receiver<bool>,
    /// The next request ends in a panic.
    #[cfg(test)]
    pub(super) fault: Cell<bool>,
}

impl Worker {
    /// A request thread's share of `gateway`, without the thread. `end` turns true when upgraded
    /// connections have to end.
    pub fn new(gateway: Arc<Gateway>, end: watch::Receiver<bool>) -> Rc<Self> {
        let local = Rc::new(Local::new(gateway.current(), None));
        Rc::new(Self {
            gateway,
            local: RefCell::new(local),
            connections: RefCell::default(),
            next_connection: Cell::new(0),
            id_prefix: super::random_hex(6),
            next_request: Cell::new(0),
            lines: RefCell::default(),
            handshakes: Handshakes::default(),
            closing: Cell::new(false),
            end,
            #[cfg(test)]
            fault: Cell::new(false),
        })
    }

    /// The configuration in force.
    pub fn active(&self) -> Rc<Local> {
        let generation = self.gateway.generation();
        let local = self.local.borrow();
        if local.generation() == generation {
            return Rc::clone(&local);
        }
        drop(local);
        let active = self.gateway.current();
        let fresh = Rc::new(Local::new(active, Some(&self.local.borrow())));
        *self.local.borrow_mut() = Rc::clone(&fresh);
        fresh
    }

    /// An id for one request, unique among all threads and starts.
    pub fn request_id(&self) -> HeaderValue {
        let number = self.next_request.get();
        self.next_request.set(number + 1);
        let mut id = String::with_capacity(self.id_prefix.len() + 8);
        id.push_str(&self.id_prefix);
        // Shorter than formatting: eight hexadecimal digits.
        for shift in (0..8).rev() {
            let digit = (number >> (shift * 4)) & 0xf;
            id.push(char::from_digit(u32::try_from(digit).unwrap_or(0), 16).unwrap_or('0'));
        }
        HeaderValue::try_from(id).expect("hexadecimal digits are a header value")
    }

    /// Keeps `connection`, for as long as what is returned lives, so that it can be told to close.
    pub fn remember(self: &Rc<Self>, connection: &Rc<Connection>) -> Remembered {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        self.connections.borrow_mut().insert(id, Rc::clone(connection));
        if self.closing.get() {
            connection.close_soon();
        }
        Remembered { worker: Rc::clone(self), id }
    }

    /// Completes when upgraded connections have to end.
    pub async fn ended(&self) {
        let mut end = self.end.clone();
        let _ = end.wait_for(|ended| *ended).await;
    }

    /// Somebody waits for a connection to the upstream: of the clients here that hold one and stand still,
    /// the one that has done so for longest gives it up.
    fn make_room(&self) {
        let connections = self.connections.borrow();
        let still = connections
            .values()
            .filter(|connection| connection.forwarded.get())
            .filter_map(|connection| Some((connection.flags.still_since()?, connection)));
        let longest = still.min_by_key(|(since, _)| *since);
        if let Some((since, connection)) = longest
            && since.elapsed() >= PATIENCE_UNDER_PRESSURE
        {
            self.gateway.metrics.hurried.inc();
            connection.hurry();
        }
    }

    /// Every connection ends after the response under way.
    fn close_connections(&self) {
        self.closing.set(true);
        self.handshakes.give_up();
        let all: Vec<_> = self.connections.borrow().values().cloned().collect();
        for connection in all {
            connection.close_soon();
        }
    }

    /// Writes an access line, soon.
    pub fn log_access(self: &Rc<Self>, access: &Access<'_>) {
        let format = self.gateway.log_format;
        let mut lines = self.lines.borrow_mut();
        let first = lines.is_empty();
        access.write(format, &mut lines);
        if lines.len() >= LINE_BATCH {
            let batch = std::mem::take(&mut *lines);
            drop(lines);
            self.hand_over(batch);
        } else if first {
            let worker = Rc::clone(self);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(LINE_PATIENCE).await;
                worker.flush_lines();
            });
        }
    }

    fn flush_lines(&self) {
        let batch = std::mem::take(&mut *self.lines.borrow_mut());
        if !batch.is_empty() {
            self.hand_over(batch);
        }
    }

    fn hand_over(&self, batch: Vec<u8>) {
        let count = batch.iter().filter(|byte| **byte == b'\n').count();
        if !self.gateway.lines.offer(batch) {
            self.gateway.metrics.lines_dropped.inc_by(count as u64);
        }
    }

    /// Writes an audit line, now.
    pub fn log_audit(&self, audit: &Audit<'_>) {
        self.gateway.audit(audit);
    }

    /// What a client is told whose request could not even be read.
    pub fn refuse_unread(self: &Rc<Self>, client: IpAddr, refusal: &Refusal, to_head: bool) -> Vec<u8> {
        let active = self.active();
        let metrics = &self.gateway.metrics;
        metrics.refusal(refusal.code());
        metrics.response(refusal.status().as_u16());
        let id = self.request_id();
        let id = id.to_str().unwrap_or_default();
        let bytes = refusal.bytes(&active.snapshot.errors, id, to_head);
        if active.snapshot.log.access {
            self.log_access(&Access {
                request_id: id,
                client: client.to_canonical(),
                // Whatever stood there was not to be read.
                method: "-",
                path: "-",
                status: refusal.status().as_u16(),
                bytes: bytes.len() as u64,
                complete: true,
                took: Duration::ZERO,
                rule: None,
                decision: refusal.code(),
                user: None,
            });
        }
        bytes
    }
}

/// A connection's place among those of its thread: given up when dropped, by a panic too, or the thread
/// would wait for it when it is to end.
pub struct Remembered {
    worker: Rc<Worker>,
    id: u64,
}

impl Drop for Remembered {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(&self.id);
    }
}

/// Starts a request thread. It ends when its handle is dropped and its last connection has closed, or
/// when `end` turns true.
///
/// # Errors
/// The system gives no thread or no event queue.
pub fn start(
    index: usize,
    gateway: Arc<Gateway>,
    closing: watch::Receiver<bool>,
    end: watch::Receiver<bool>,
) -> std::io::Result<(WorkerHandle, std::thread::JoinHandle<()>)> {
    let (sender, receiver) = unbounded_channel();
    let load = Arc::new(AtomicUsize::new(0));
    let handle = WorkerHandle { connections: sender, load: Arc::clone(&load) };
    let (started, outcome) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(format!("request-{index}")).spawn(move || {
        // Made here, since it never leaves its thread.
        let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        let _ = started.send(Ok(()));
        let worker = Worker::new(gateway, end.clone());
        runtime.block_on(run(Rc::clone(&worker), receiver, load, closing, end));
        // What is cut off here has a line to leave, too.
        drop(runtime);
        worker.flush_lines();
    })?;
    outcome.recv().unwrap_or_else(|_| Err(std::io::Error::other("the request thread ended at once")))?;
    Ok((handle, thread))
}

async fn run(
    worker: Rc<Worker>,
    mut receiver: UnboundedReceiver<(Accepted, Arrival, ConnectionCount)>,
    load: Arc<AtomicUsize>,
    mut closing: watch::Receiver<bool>,
    mut end: watch::Receiver<bool>,
) {
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut closed = false;
    loop {
        let servers = Arc::clone(&worker.active().servers);
        tokio::select! {
            taken = receiver.recv(), if !closed => match taken {
                None => closed = true,
                Some((stream, arrival, count)) => {
                    let (worker, load) = (Rc::clone(&worker), Arc::clone(&load));
                    tokio::task::spawn_local(async move {
                        // Given back, like the count, whatever becomes of the connection, a panic included.
                        let _load = Loaded(load);
                        serve(worker, stream, arrival, count).await;
                    });
                }
            },
            () = servers.wanted() => worker.make_room(),
            _ = sweep.tick() => if let Some(upstreams) = &worker.active().upstreams {
                upstreams.close_stale();
            },
            Ok(_) = closing.wait_for(|closing| *closing), if !worker.closing.get() => worker.close_connections(),
            _ = end.wait_for(|ended| *ended) => return,
        }
        if closed && worker.connections.borrow().is_empty() && load.load(Ordering::Relaxed) == 0 {
            return;
        }
    }
}

async fn serve(worker: Rc<Worker>, stream: Accepted, mut arrival: Arrival, count: ConnectionCount) {
    match stream {
        Accepted::Tcp(stream) => {
            let Ok(mut stream) = TcpStream::from_std(stream) else { return };
            if arrival.door != Door::ForwardAuth {
                let client = proxy_protocol::client_of(&worker, &mut stream, arrival).await;
                let Some(client) = client else { return };
                arrival = client;
            }
            match arrival.door {
                // Apart, so that a plain connection's task is no larger for it.
                Door::Https => Box::pin(tls::serve(worker, stream, arrival, count)).await,
                Door::Http | Door::ForwardAuth => {
                    connection::serve(worker, Stream(stream), arrival, count, Worker::handle_http).await;
                }
                Door::Redirect => {
                    Box::pin(connection::serve(worker, stream, arrival, count, Worker::redirect)).await;
                }
            }
        }
        Accepted::Unix(stream) => {
            let Ok(stream) = UnixStream::from_std(stream) else { return };
            match arrival.door {
                Door::Redirect => {
                    Box::pin(connection::serve(worker, stream, arrival, count, Worker::redirect)).await;
                }
                Door::Http | Door::Https | Door::ForwardAuth => {
                    Box::pin(connection::serve(worker, stream, arrival, count, Worker::handle_http)).await;
                }
            }
        }
    }
}

struct Loaded(Arc<AtomicUsize>);

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assertion_is_signed_again_at_half_its_life_and_not_before() {
        let asserted = Asserted::default();
        let signed = Cell::new(0);
        for (now, expected) in [(100, 1), (100, 1), (129, 1), (130, 2), (159, 2), (160, 3), (9_000, 4)] {
            let value = asserted.at(now, || {
                signed.set(signed.get() + 1);
                Ok(Assertion { text: signed.get().to_string(), renew_at: now + 30 })
            });
            assert_eq!(value.unwrap(), expected.to_string().as_str(), "at {now}");
        }
        let failed = asserted.at(10_000, || Err(Refusal::Internal("no key")));
        assert_eq!(failed.unwrap_err().code(), "internal", "nothing that is over is sent instead");
    }
}
