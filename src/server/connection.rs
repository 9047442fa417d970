//! One downstream connection: hyper behind the guard, from the first byte to the last.
//!
//! `Guarded` is what hyper reads from and writes to. It hands on one message at a time, each checked
//! by `wire::hygiene`, and keeps the deadlines: a head that has begun must end within
//! `header_timeout`; everything else may take as long as it likes while it moves.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use super::listener::Arrival;
use super::worker::{ConnectionCount, Local, Worker};
use crate::proxy::AnswerBody;
use crate::timer::LazyTimer;
use crate::wire::answer::Refusal;
use crate::wire::client::Peer;
use crate::wire::hygiene::{Guard, HeadError, HeadLimits, Piece};

/// Bytes that hyper may hold for a connection in each direction: enough for large bodies, and no more
/// than a slow client should cost.
const BUFFER: usize = 128 * 1024;

/// How long the last bytes of a refusal may take to leave.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// What the guard and the handler tell each other about a connection. Both run on the same thread;
/// atomics only because hyper wants the connection's I/O to be `Send` for upgrades.
#[derive(Debug, Default)]
pub struct Flags {
    in_flight: AtomicBool,
    upgraded: AtomicBool,
    verdict: Mutex<Option<HeadError>>,
    /// The verdict is on a head: there is no request that a handler could answer.
    unread: AtomicBool,
    /// That head begins as one of HEAD does.
    to_head: AtomicBool,
    turn: Mutex<Turn>,
    /// Since when the client neither sends the body that is waited for nor takes what it is sent.
    still: Mutex<Option<Instant>>,
    /// Others need what it holds: from now on standing still is not waited for.
    pub(super) hurried: AtomicBool,
}

/// Whose turn it is between an answer and the next message.
#[derive(Debug, Default)]
struct Turn {
    /// When the last answer was complete.
    ended: Option<Instant>,
    /// Waits for that, with the next message at hand.
    waiting: Option<Waker>,
}

impl Flags {
    /// From the last byte of a head to the last byte of its response.
    pub fn begin(&self) {
        self.in_flight.store(true, Ordering::Relaxed);
    }

    /// The response is complete, or given up, since `now`: the next message may be read.
    pub fn end(&self, now: Instant) {
        self.in_flight.store(false, Ordering::Relaxed);
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).ended = Some(now);
        self.next_turn();
    }

    /// Whoever waits with the next message at hand looks again.
    fn next_turn(&self) {
        if let Some(waker) = self.turn.lock().unwrap_or_else(PoisonError::into_inner).waiting.take() {
            waker.wake();
        }
    }

    fn ended(&self) -> Option<Instant> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).ended
    }

    /// The bytes that follow are not HTTP any more.
    pub fn upgrade(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    /// What was wrong with the bytes of the request at hand, if reading stopped for that.
    pub fn verdict(&self) -> Option<HeadError> {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was wrong with a head, which no handler gets to see.
    fn unread(&self) -> Option<HeadError> {
        self.verdict().filter(|_| self.unread.load(Ordering::Relaxed))
    }

    fn refuse(&self, why: HeadError, unread: bool) -> io::Error {
        self.unread.store(unread, Ordering::Relaxed);
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        io::Error::new(io::ErrorKind::InvalidData, why)
    }

    /// The rest of a body is not waited for any longer.
    pub(super) fn give_up_body(&self) {
        self.refuse(HeadError::BodyTooSlow, false);
    }

    fn is_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Since when the client has been waited for in the middle of a request.
    pub(super) fn still_since(&self) -> Option<Instant> {
        self.still.lock().unwrap_or_else(PoisonError::into_inner).filter(|_| self.is_in_flight())
    }

    pub(super) fn stands_still(&self, since: Instant) {
        *self.still.lock().unwrap_or_else(PoisonError::into_inner) = Some(since);
    }

    pub(super) fn moves(&self) {
        *self.still.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.hurried.store(false, Ordering::Relaxed);
    }
}

/// One connection, as its handlers see it.
pub struct Connection {
    /// Shared with the guard.
    pub flags: Arc<Flags>,
    /// The other end; made anew when the configuration that says whom to trust changes.
    pub peer: RefCell<(u64, Peer)>,
    /// Where it comes from and what it speaks.
    pub arrival: Arrival,
    /// For the deadline of the upstream's response: one request at a time.
    pub timer: Cell<LazyTimer>,
    /// The request at hand has been allowed, and holds a connection to the upstream or waits for one.
    pub forwarded: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    closing: Cell<bool>,
    /// Given back when everything about it has ended, what follows an upgrade included.
    count: Rc<ConnectionCount>,
}

impl Connection {
    /// One that has just been accepted.
    pub fn new(active: &Local, arrival: Arrival, count: ConnectionCount) -> Rc<Self> {
        let peer = (active.generation(), arrival.peer(active.trusted_proxies()));
        Self::with(peer, arrival, Rc::new(count))
    }

    /// What a stream of HTTP/2 has instead of a connection of its own.
    pub fn for_stream(&self) -> Rc<Self> {
        Self::with(self.peer.borrow().clone(), self.arrival, Rc::clone(&self.count))
    }

    fn with(peer: (u64, Peer), arrival: Arrival, count: Rc<ConnectionCount>) -> Rc<Self> {
        Rc::new(Self {
            flags: Arc::default(),
            peer: RefCell::new(peer),
            arrival,
            timer: Cell::default(),
            forwarded: Cell::new(false),
            waker: RefCell::default(),
            closing: Cell::new(false),
            count,
        })
    }

    /// The task at hand is the one to be woken for news of this connection.
    pub(super) fn expect_wake(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.is_none() {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Whether it has to end after what is under way.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Ends the connection after the response that is under way, or at once if there is none.
    pub fn close_soon(&self) {
        self.closing.set(true);
        self.wake();
    }

    /// The client has stood still for long enough, seeing what its request holds: as if `idle_timeout`
    /// had passed, unless it moves just now.
    pub fn hurry(&self) {
        self.flags.hurried.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// What a connection may take, from the configuration it began under.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// What a head may measure.
    pub head: HeadLimits,
    /// From the first byte of a head to its last.
    pub header_timeout: Duration,
    /// Between messages, within a body, and while the client does not read.
    pub idle_timeout: Duration,
}

/// Serves `stream`, which comes from `arrival`, until either side has had enough: `answer` is asked for each
/// request.
pub async fn serve<S, A, F>(
    worker: Rc<Worker>,
    stream: S,
    arrival: Arrival,
    count: ConnectionCount,
    answer: A,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: Fn(Rc<Worker>, Rc<Connection>, Request<Incoming>) -> F,
    F: Future<Output = Result<Response<AnswerBody>, Infallible>>,
{
    let active = worker.active();
    let limits = active.connection_limits();
    let connection = Connection::new(&active, arrival, count);
    let flags = Arc::clone(&connection.flags);
    drop(active);
    let remembered = worker.remember(&connection);

    let service = service_fn({
        let (worker, connection) = (Rc::clone(&worker), Rc::clone(&connection));
        move |request| answer(Rc::clone(&worker), Rc::clone(&connection), request)
    });
    let mut http = http1::Builder::new();
    http.max_header_size(limits.head.head_bytes.max(8192))
        .max_buf_size(BUFFER.max(limits.head.head_bytes + 8192));
    if limits.head.headers != 100 {
        // hyper's own default, for which it needs no allocation.
        http.max_headers(limits.head.headers);
    }
    let io = TokioIo::new(Guarded::new(stream, flags, limits));
    let mut serving = http.serve_connection(io, service).with_upgrades();
    let mut told = false;
    // To hyper a refused head looks as if the client had closed: what was answered before goes out first.
    let _ = poll_fn(|cx| {
        connection.expect_wake(cx);
        if !told && connection.closing.get() {
            told = true;
            Pin::new(&mut serving).graceful_shutdown();
        }
        Pin::new(&mut serving).poll(cx)
    })
    .await;
    drop(remembered);
    if let Some(why) = connection.flags.unread()
        && let Some(parts) = serving.into_parts()
    {
        refuse(&worker, &connection, parts.io.into_inner(), why).await;
    }
}

/// Says why reading stopped, where hyper had no request to answer.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    connection: &Connection,
    io: Guarded<S>,
    why: HeadError,
) {
    let to_head = connection.flags.to_head.load(Ordering::Relaxed);
    let bytes = worker.refuse_unread(connection.arrival.address.ip(), &Refusal::Head(why), to_head);
    say_farewell(io.stream, &bytes).await;
}

/// Writes the last that a client hears, and closes.
pub(super) async fn say_farewell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) {
    let farewell = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        // What the client still sends is read over, or its reset could overtake our answer.
        let mut waste = [0; 4096];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut waste).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether the client hears it is its own affair.
    let _ = tokio::time::timeout(LINGER, farewell).await;
}

/// See the module.
struct Guarded<S> {
    stream: S,
    guard: Guard,
    flags: Arc<Flags>,
    limits: ConnectionLimits,
    /// Bytes read but not handed on yet: the beginning of a head, or of the next message.
    held: Vec<u8>,
    /// How many of them hyper may have.
    cleared: usize,
    /// When what is being waited for began.
    since: Instant,
    phase: Phase,
    reading: LazyTimer,
    /// When the client stopped taking what it is sent.
    stalled: Option<Instant>,
    writing: LazyTimer,
    /// When our side of the connection was closed.
    closed: Option<Instant>,
}

/// What a read waits for.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// The first byte of a message.
    Idle,
    /// The rest of a head.
    Head,
    /// More of a body.
    Body,
    /// Nothing but the news that the client has gone: its request is being answered.
    Answering,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guarded<S> {
    fn new(stream: S, flags: Arc<Flags>, limits: ConnectionLimits) -> Self {
        Self {
            stream,
            guard: Guard::new(limits.head),
            flags,
            limits,
            held: Vec::new(),
            cleared: 0,
            since: Instant::now(),
            phase: Phase::Idle,
            reading: LazyTimer::default(),
            stalled: None,
            writing: LazyTimer::default(),
            closed: None,
        }
    }

    /// `bytes`: those that are refused.
    fn refuse(&self, why: HeadError, bytes: &[u8]) -> io::Error {
        self.flags.to_head.store(bytes.starts_with(b"HEAD "), Ordering::Relaxed);
        self.flags.refuse(why, self.guard.between_messages())
    }

    /// How many of `bytes` hyper may have; `None` if the head is not complete yet.
    fn clear(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let is_head = self.guard.between_messages();
        match self.guard.next(bytes) {
            Ok(Piece::Pass(length)) => {
                if is_head {
                    // From here on, not from when hyper gets round to the handler: until the answer is
                    // complete the next message is not even looked at.
                    self.flags.begin();
                    // The next head has all of its time, even if part of it has come already.
                    self.phase = Phase::Answering;
                }
                Ok(Some(length))
            }
            Ok(Piece::Partial) => Ok(None),
            Err(why) => Err(self.refuse(why, bytes)),
        }
    }

    /// Whether the next message has to wait for the answer to this one.
    fn must_wait(&self) -> bool {
        // An answer of which the client has yet to take the last is still under way: if the next message
        // is refused, hyper gives up what it has not written.
        self.guard.between_messages() && (self.flags.is_in_flight() || self.stalled.is_some())
    }

    fn wait_for_answer(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut turn = self.flags.turn.lock().unwrap_or_else(PoisonError::into_inner);
        turn.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Hands on held bytes that are cleared, or clears some. `None`: more bytes are needed.
    fn hand_on(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Option<Poll<io::Result<()>>> {
        if self.cleared == 0 && !self.held.is_empty() {
            if self.must_wait() {
                return Some(self.wait_for_answer(cx));
            }
            let held = std::mem::take(&mut self.held);
            let cleared = self.clear(&held);
            self.held = held;
            match cleared {
                Ok(Some(length)) => self.cleared = length,
                Ok(None) => return None,
                Err(error) => return Some(Poll::Ready(Err(error))),
            }
        }
        if self.cleared == 0 {
            return None;
        }
        let length = self.cleared.min(buf.remaining());
        buf.put_slice(&self.held[..length]);
        self.held.drain(..length);
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        self.cleared -= length;
        Some(Poll::Ready(Ok(())))
    }

    /// Nothing to read: is it the client's turn, and for how long already?
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = match () {
            () if !self.guard.between_messages() => Phase::Body,
            () if !self.held.is_empty() => Phase::Head,
            // The last of an answer may still be on its way when all of it is known.
            () if self.flags.is_in_flight() || self.stalled.is_some() => Phase::Answering,
            () => Phase::Idle,
        };
        if phase != self.phase {
            // Idle since the answer was complete, or the client took the last of it, whoever noticed when.
            let ended = if phase == Phase::Idle { self.flags.ended() } else { None };
            (self.phase, self.since) =
                (phase, ended.map_or_else(Instant::now, |ended| ended.max(self.since)));
        }
        let limit = match phase {
            Phase::Answering => {
                // hyper need not ask again when the answer has gone: that the client may be idle then must
                // come to somebody's notice all the same.
                self.reading.keep_armed(cx, self.limits.idle_timeout);
                return Poll::Pending;
            }
            Phase::Head => self.limits.header_timeout,
            Phase::Body | Phase::Idle => self.limits.idle_timeout,
        };
        if phase == Phase::Body {
            self.flags.stands_still(self.since);
        }
        let hurried = phase == Phase::Body && self.flags.hurried.load(Ordering::Relaxed);
        if !hurried && !self.reading.poll_expired(cx, self.since + limit) {
            return Poll::Pending;
        }
        match phase {
            // To hyper an idle connection that is given up looks as if the client had closed it.
            Phase::Idle | Phase::Answering => Poll::Ready(Ok(())),
            Phase::Head => Poll::Ready(Err(self.refuse(HeadError::HeadTooSlow, &self.held))),
            Phase::Body => Poll::Ready(Err(self.refuse(HeadError::BodyTooSlow, &[]))),
        }
    }

    fn read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0; 2048];
        let mut fresh = ReadBuf::new(&mut space);
        match Pin::new(&mut self.stream).poll_read(cx, &mut fresh) {
            Poll::Pending => self.wait(cx).map_ok(|()| 0),
            Poll::Ready(outcome) => {
                outcome?;
                self.held.extend_from_slice(fresh.filled());
                Poll::Ready(Ok(fresh.filled().len()))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flags.upgraded.load(Ordering::Relaxed) {
            this.guard.let_all_pass();
            if this.held.is_empty() {
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
        }
        loop {
            if !this.held.is_empty() {
                if let Some(outcome) = this.hand_on(cx, buf) {
                    return outcome;
                }
                // The beginning of a head: nothing of it is handed on before its end has come.
                if ready!(this.read_more(cx))? == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let before = buf.filled().len();
            match Pin::new(&mut this.stream).poll_read(cx, buf) {
                Poll::Pending => return this.wait(cx),
                Poll::Ready(outcome) => outcome?,
            }
            let fresh = &buf.filled()[before..];
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if this.phase == Phase::Body {
                this.since = Instant::now();
                this.flags.moves();
            }
            let pass = if this.must_wait() { 0 } else { this.clear(fresh)?.unwrap_or(0) };
            if pass < fresh.len() {
                this.held.extend_from_slice(&fresh[pass..]);
                buf.set_filled(before + pass);
            }
            if pass > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S> Guarded<S> {
    /// A client that takes nothing for too long is given up.
    fn keep_moving<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            if self.stalled.take().is_some() {
                self.flags.moves();
                self.since = Instant::now();
                self.flags.next_turn();
            }
            return outcome;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        if self.flags.upgraded.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.flags.stands_still(since);
        let hurried = self.flags.hurried.load(Ordering::Relaxed);
        if hurried || self.writing.poll_expired(cx, since + self.limits.idle_timeout) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.keep_moving(cx, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.keep_moving(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(cx);
        // TLS takes some bytes on before the client does.
        this.keep_moving(cx, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flags.unread().is_some() {
            // What was wrong is still to be said.
            return Poll::Ready(Ok(()));
        }
        if this.closed.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.closed = Some(Instant::now());
        }
        let upgraded = this.flags.upgraded.load(Ordering::Relaxed);
        if upgraded || this.guard.between_messages() {
            return Poll::Ready(Ok(()));
        }
        // The rest of a body that nobody wants: closed on, it would become a reset, and that could
        // overtake the answer.
        let deadline = this.closed.map_or_else(Instant::now, |closed| closed + LINGER);
        let mut waste = [0; 4096];
        loop {
            let mut waste = ReadBuf::new(&mut waste);
            match Pin::new(&mut this.stream).poll_read(cx, &mut waste) {
                Poll::Ready(Ok(())) if !waste.filled().is_empty() && Instant::now() < deadline => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending if this.reading.poll_expired(cx, deadline) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
