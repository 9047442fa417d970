//! One HTTP/2 connection: hyper behind a watch over its frames, each request as on a connection of its own.
//!
//! A request of HTTP/2 is checked, made one of HTTP/1.1 (`wire::pseudo`) and handled like any other. What HTTP/1
//! keeps by its connection is kept by the stream here: a client that stands still in the middle of one, by not
//! sending a body or by not taking an answer, loses that stream. `Watched` is what hyper reads from and writes
//! to: it knows of floods, and of heads that do not end. Not here: HTTP/2 itself, which is h2's.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout};

use super::connection::{Connection, LINGER};
use super::listener::Arrival;
use super::worker::{ConnectionCount, Remembered, Worker};
use crate::proxy::AnswerBody;
use crate::proxy::body::{BodyError, FromClient, Pace};
use crate::timer::LazyTimer;
use crate::wire::answer::Refusal;
use crate::wire::frames::{FrameGuard, Position, goaway};
use crate::wire::hygiene::{HeadError, HeadLimits};
use crate::wire::pseudo;

/// Requests of one connection at a time.
const STREAMS: u32 = 100;

/// Bytes of a request body that a client may send before they are taken.
const STREAM_WINDOW: u32 = 128 * 1024;

/// The same of all streams of a connection together.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// Bytes of an answer that are held for a client which takes none, each stream.
const PIECE: usize = 16 * 1024;

/// Streams that a client opens and resets before they were looked at, and errors of its own making that are
/// answered with a reset, before the connection ends.
const PENDING_RESETS: usize = 20;
const LOCAL_RESETS: usize = 100;

/// How often it is asked whether a silent client is still there, and how long its answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the streams of one connection share.
struct Session {
    worker: Rc<Worker>,
    /// The connection itself; the one of each stream is made from it.
    connection: Rc<Connection>,
    head: HeadLimits,
    idle_timeout: Duration,
    open: Cell<usize>,
    /// When the last stream ended.
    idle_since: Cell<Instant>,
    /// The stream whose task is about to be started.
    next: RefCell<Option<Stream>>,
}

/// One request and its answer.
struct Stream {
    session: Rc<Session>,
    state: Rc<StreamState>,
    _remembered: Remembered,
}

struct StreamState {
    connection: Rc<Connection>,
    /// Since when the client has a piece of the answer to take.
    offered: Cell<Option<Instant>>,
}

impl Session {
    fn begin(self: &Rc<Self>) -> Rc<StreamState> {
        self.open.set(self.open.get() + 1);
        let connection = self.connection.for_stream();
        connection.flags.begin();
        let state = Rc::new(StreamState { connection: Rc::clone(&connection), offered: Cell::new(None) });
        let _remembered = self.worker.remember(&connection);
        *self.next.borrow_mut() =
            Some(Stream { session: Rc::clone(self), state: Rc::clone(&state), _remembered });
        state
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.session.open.set(self.session.open.get() - 1);
        self.session.idle_since.set(Instant::now());
    }
}

/// Serves `stream`, whose client has chosen HTTP/2, until either side has had enough.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: Rc<Worker>,
    stream: S,
    arrival: Arrival,
    count: ConnectionCount,
) {
    let active = worker.active();
    let limits = active.connection_limits();
    let connection = Connection::new(&active, arrival, count);
    drop(active);
    let remembered = worker.remember(&connection);
    let session = Rc::new(Session {
        worker: Rc::clone(&worker),
        connection: Rc::clone(&connection),
        head: limits.head,
        idle_timeout: limits.idle_timeout,
        open: Cell::new(0),
        idle_since: Cell::new(Instant::now()),
        next: RefCell::new(None),
    });
    let service = service_fn({
        let session = Rc::clone(&session);
        move |request| answer(session.begin(), Rc::clone(&session), request)
    });
    let mut http = http2::Builder::new(Streams(Rc::clone(&session)));
    http.timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(PIECE)
        .max_header_list_size(u32::try_from(limits.head.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS);
    let io = Rc::new(RefCell::new(Inner {
        stream,
        guard: FrameGuard::new(),
        written: Position::default(),
        flooded: false,
        head_timeout: limits.header_timeout,
        head_since: None,
        timer: LazyTimer::default(),
    }));
    let mut serving = http.serve_connection(TokioIo::new(Watched(Rc::clone(&io))), service);
    let mut timer = LazyTimer::default();
    let mut closing_since = None;
    // How it ended is the client's affair, but for a flood.
    poll_fn(|cx| {
        connection.expect_wake(cx);
        if Pin::new(&mut serving).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let idle = session.open.get() == 0;
        let idle_since = session.idle_since.get();
        let past = idle && timer.poll_expired(cx, idle_since + limits.idle_timeout);
        if !idle {
            // That it is idle when the last stream has ended must come to somebody's notice.
            timer.keep_armed(cx, limits.idle_timeout);
        }
        if closing_since.is_none() && (past || connection.is_closing()) {
            closing_since = Some(Instant::now());
            Pin::new(&mut serving).graceful_shutdown();
            // What that has to say is said in the next turn.
            cx.waker().wake_by_ref();
        } else if let Some(since) = closing_since
            && idle
            && timer.poll_expired(cx, since.max(idle_since) + LINGER)
        {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
    drop((serving, remembered));
    let Ok(inner) = Rc::try_unwrap(io) else { return };
    let Inner { mut stream, guard, written, flooded, .. } = inner.into_inner();
    if flooded {
        worker.gateway.metrics.refusal(HeadError::Flood.code());
    }
    let farewell = async {
        if flooded && written.between_frames() {
            stream.write_all(&goaway(guard.last_stream())).await?;
        }
        stream.shutdown().await
    };
    let _ = timeout(LINGER, farewell).await;
}

async fn answer(
    state: Rc<StreamState>,
    session: Rc<Session>,
    request: Request<Incoming>,
) -> Result<Response<StreamBody>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let connection = Rc::clone(&state.connection);
    let response = match pseudo::as_http1(&mut parts, &session.head) {
        Ok(()) => {
            let pace = BodyPace {
                state: Rc::clone(&state),
                limit: session.idle_timeout,
                since: None,
                timer: LazyTimer::default(),
            };
            let request = Request::from_parts(parts, FromClient::paced(body, Box::new(pace)));
            Rc::clone(&session.worker).handle_https(connection, request).await?
        }
        Err(why) => {
            let refusal = Refusal::Head(why);
            // Whatever stood there was not to be read.
            let answer = session.worker.answer_at_once(&connection, Err(&refusal), "-", "-");
            answer.map(|body| AnswerBody::Own(Some(body).filter(|body| !body.is_empty())))
        }
    };
    state.offered.set(Some(Instant::now()));
    Ok(response.map(|answer| StreamBody { answer, rest: Bytes::new(), state }))
}

/// Starts the tasks of streams, each with an eye on its client.
#[derive(Clone)]
struct Streams(Rc<Session>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, future: F) {
        // hyper calls the service and starts the task of what it returns in one go.
        let Some(stream) = self.0.next.borrow_mut().take() else {
            tokio::task::spawn_local(future);
            return;
        };
        let idle_timeout = self.0.idle_timeout;
        tokio::task::spawn_local(async move {
            let mut timer = LazyTimer::default();
            let state = &stream.state;
            {
                let mut future = std::pin::pin!(future);
                // What is dropped before its end is reset.
                poll_fn(|cx| {
                    state.connection.expect_wake(cx);
                    if future.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    let Some(since) = state.offered.get() else { return Poll::Pending };
                    match state.is_late(cx, &mut timer, since, idle_timeout) {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                })
                .await;
            }
            drop(stream);
        });
    }
}

impl StreamState {
    /// Whether the client has stood still since `since` for too long.
    fn is_late(&self, cx: &mut Context<'_>, timer: &mut LazyTimer, since: Instant, limit: Duration) -> bool {
        let flags = &self.connection.flags;
        flags.stands_still(since);
        flags.hurried.load(Ordering::Relaxed) || timer.poll_expired(cx, since + limit)
    }

    fn moves(&self) {
        if self.offered.take().is_some() {
            self.connection.flags.moves();
        }
    }
}

/// How a client sends a body.
struct BodyPace {
    state: Rc<StreamState>,
    limit: Duration,
    since: Option<Instant>,
    timer: LazyTimer,
}

impl Pace for BodyPace {
    fn poll_late(&mut self, cx: &mut Context<'_>) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        let late = self.state.is_late(cx, &mut self.timer, since, self.limit);
        if late {
            self.state.connection.flags.give_up_body();
        }
        late
    }

    fn moves(&mut self) {
        if self.since.take().is_some() {
            self.state.connection.flags.moves();
        }
    }
}

/// An answer in pieces that are small enough to be held for a client that does not take them.
struct StreamBody {
    answer: AnswerBody,
    rest: Bytes,
    state: Rc<StreamState>,
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        // Asked for more, so what was offered before has been taken.
        this.state.moves();
        if this.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut this.answer).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        this.state.offered.set(Some(Instant::now()));
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

/// See the module.
struct Watched<S>(Rc<RefCell<Inner<S>>>);

struct Inner<S> {
    stream: S,
    guard: FrameGuard,
    /// Where in the frames that the client is sent the next byte stands.
    written: Position,
    flooded: bool,
    head_timeout: Duration,
    /// Since when the rest of a head is waited for.
    head_since: Option<Instant>,
    timer: LazyTimer,
}

impl<S> Inner<S> {
    fn wrote(&mut self, mut length: usize, bufs: &[io::IoSlice<'_>]) {
        for buf in bufs {
            let piece = length.min(buf.len());
            let _ = self.written.follow(&buf[..piece], |_| Ok::<_, Infallible>(()));
            length -= piece;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self.0.borrow_mut();
        let before = buf.filled().len();
        if Pin::new(&mut this.stream).poll_read(cx, buf)?.is_pending() {
            if !this.guard.in_head() {
                this.head_since = None;
                return Poll::Pending;
            }
            let since = *this.head_since.get_or_insert_with(Instant::now);
            if this.timer.poll_expired(cx, since + this.head_timeout) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return Poll::Pending;
        }
        if this.guard.follow(&buf.filled()[before..], std::time::Instant::now).is_err() {
            this.flooded = true;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, HeadError::Flood)));
        }
        if !this.guard.in_head() {
            this.head_since = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self.0.borrow_mut();
        let length = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.wrote(length, &[io::IoSlice::new(buf)]);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self.0.borrow_mut();
        let length = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.wrote(length, bufs);
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Done when all has been said (`serve`).
        Poll::Ready(Ok(()))
    }
}
