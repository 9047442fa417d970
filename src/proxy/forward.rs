//! Sends a permitted request on and brings the response back.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::balance::Upstreams;
use super::body::{BodyError, Progress, RequestBody};
use super::upstream::{Lease, Upstream};
use crate::policy::Permit;
use crate::timer::LazyTimer;
use crate::wire::answer::Refusal;
use crate::wire::hygiene::HeadError;

/// The upstream's answer and the connection that its body comes from.
pub struct Forwarded {
    /// Head and body, untouched.
    pub response: Response<Incoming>,
    /// To be released when the body is complete.
    pub lease: Lease,
}

/// Sends `request` to the upstream: path and query as received, in origin-form.
///
/// `response_timeout` runs from the moment that the upstream has the whole request. `now`: roughly.
///
/// A connection that was used before may have been closed by the upstream just now. If nothing
/// came back, the request is sent once more on a new one, provided that it was not sent at all or
/// may be repeated (RFC 9110 §9.2.2). Where there is another server it goes there, and does so
/// when the connection was a new one, too.
///
/// # Errors
/// `UpstreamUnreachable`, `UpstreamBusy`, `UpstreamReset` or `UpstreamTimeout`; `BodyTooLarge` if the
/// client sent more than it may.
#[allow(clippy::too_many_arguments)]
pub async fn forward(
    _permit: Permit,
    upstreams: &Upstreams,
    mut request: Request<RequestBody>,
    asks: Asks,
    progress: Option<Rc<Progress>>,
    response_timeout: Duration,
    now: Instant,
    timer: &mut LazyTimer,
    retried: impl FnOnce(),
) -> Result<Forwarded, Refusal> {
    let place = upstreams.choose(None).ok_or(Refusal::UpstreamUnreachable)?;
    let mut lease = match place.idle(now) {
        Ok(lease) => lease,
        // Apart, so that what is rare takes up no room in every request.
        Err(place) => Box::pin(upstreams.lease(place, false)).await?,
    };
    let repeatable = !asks.websocket && may_repeat(&request);
    let own_host = prepare(&mut request, lease.upstream(), asks);
    let error =
        match send(&mut lease, request, repeatable, progress.as_deref(), response_timeout, timer).await {
            Ok(response) => {
                lease.upstream().server().has_answered();
                return Ok(Forwarded { response, lease });
            }
            Err(error) => error,
        };
    upstreams.note(&lease, &error);
    let may_have_gone_stale = lease.reused;
    let again = may_have_gone_stale || (upstreams.are_several() && error.is_upstreams());
    let mut request = match error {
        SendError::Failed { unsent: Some(unsent), .. } if again => *unsent,
        // Whatever came back, if anything came back it was an answer.
        SendError::Failed { ref error, .. } if again && repeatable && !error.is_parse() => {
            lease.sent().ok_or(Refusal::UpstreamReset)?
        }
        error => return Err(error.into()),
    };
    let failed = Rc::clone(lease.upstream());
    // Gone for good, and its slot may be the last one.
    drop(lease);
    let elsewhere = upstreams.choose(Some(&failed));
    let place = if may_have_gone_stale { elsewhere.or_else(|| upstreams.choose(None)) } else { elsewhere };
    let mut lease = Box::pin(upstreams.lease(place.ok_or(Refusal::UpstreamReset)?, true)).await?;
    retried();
    if own_host {
        request.headers_mut().insert(HOST, lease.upstream().host().clone());
    }
    match send(&mut lease, request, false, progress.as_deref(), response_timeout, timer).await {
        Ok(response) => {
            lease.upstream().server().has_answered();
            Ok(Forwarded { response, lease })
        }
        Err(error) => {
            upstreams.note(&lease, &error);
            Err(error.into())
        }
    }
}

/// What a request asks for beside an answer.
#[derive(Clone, Copy, Debug)]
pub struct Asks {
    /// To switch to WebSocket; the permit covers it.
    pub websocket: bool,
    /// To be sent trailers.
    pub trailers: bool,
}

/// Whether a request may be sent twice (RFC 9110 §9.2.2) and can be: a body comes only once.
fn may_repeat(request: &Request<RequestBody>) -> bool {
    matches!(request.body(), RequestBody::Empty)
        && matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
        )
}

/// Puts a request into the form in which it goes on. Whether its Host is the upstream's own.
fn prepare(request: &mut Request<RequestBody>, upstream: &Upstream, asks: Asks) -> bool {
    in_origin_form(request);
    let streams = matches!(request.body(), RequestBody::Streaming { .. });
    let headers = request.headers_mut();
    // HTTP/1.0 may go without, HTTP/1.1 may not (RFC 9112 §3.2).
    let own_host = upstream.sees_own_host() || !headers.contains_key(HOST);
    if own_host {
        headers.insert(HOST, upstream.host().clone());
    }
    if streams && !headers.contains_key(CONTENT_LENGTH) {
        // hyper would take a GET or HEAD for one without a body.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if asks.websocket {
        headers.extend(HANDSHAKE);
    } else if asks.trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    own_host
}

/// What became of a request that was sent.
pub enum SendError {
    /// No response in time.
    TimedOut,
    /// The response comes in a transfer coding that could not be passed on.
    UnknownCoding,
    /// The connection failed, or the client's body did.
    Failed {
        /// How.
        error: hyper::Error,
        /// The request, if nothing of it was sent.
        unsent: Option<Box<Request<RequestBody>>>,
    },
}

impl SendError {
    /// Whether it is the upstream's doing, and not the client's.
    pub fn is_upstreams(&self) -> bool {
        match self {
            Self::TimedOut | Self::UnknownCoding => true,
            Self::Failed { error, .. } => matches!(classify(error), Refusal::UpstreamReset),
        }
    }
}

impl From<SendError> for Refusal {
    fn from(error: SendError) -> Self {
        match error {
            SendError::TimedOut => Self::UpstreamTimeout,
            SendError::UnknownCoding => Self::UpstreamReset,
            SendError::Failed { error, .. } => classify(&error),
        }
    }
}

async fn send(
    lease: &mut Lease,
    request: Request<RequestBody>,
    repeatable: bool,
    progress: Option<&Progress>,
    limit: Duration,
    timer: &mut LazyTimer,
) -> Result<Response<Incoming>, SendError> {
    let begin = lease.since;
    let since = || progress.map_or(Some(begin), Progress::last);
    let mut response = pin!(lease.begin(request, repeatable));
    let answered = poll_fn(|cx| {
        lease.drive(cx);
        // Driving is what makes it come, so nobody has to be woken for it.
        match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending if timer.poll_over(cx, limit, since) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    match answered.await {
        None => Err(SendError::TimedOut),
        Some(Ok(response)) if has_other_coding(&response) => Err(SendError::UnknownCoding),
        Some(Ok(response)) => Ok(response),
        Some(Err(mut failed)) => {
            let unsent = failed.take_message().map(Box::new);
            Err(SendError::Failed { error: failed.into_error(), unsent })
        }
    }
}

/// Whether the body comes in a transfer coding besides chunks: the client would get it coded and not be
/// told (RFC 9112 §6.1), since the header that names it is hop-by-hop.
fn has_other_coding(response: &Response<Incoming>) -> bool {
    let mut codings = response.headers().get_all(TRANSFER_ENCODING).iter();
    codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// What a failure before the response was: the client's body, or the upstream.
fn classify(error: &hyper::Error) -> Refusal {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        match cause.downcast_ref::<BodyError>() {
            Some(BodyError::TooLarge) => return Refusal::BodyTooLarge,
            Some(BodyError::TooSlow) => return Refusal::Head(HeadError::BodyTooSlow),
            // Its trailers, for instance; a client that has gone does not hear it.
            Some(BodyError::Broken(_)) => return Refusal::Head(HeadError::Chunk),
            None => {}
        }
        source = cause.source();
    }
    Refusal::UpstreamReset
}

/// Path and query alone; the rest of an absolute-form target has been compared with Host already.
fn in_origin_form(request: &mut Request<RequestBody>) {
    if request.uri().authority().is_some() {
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = request.uri().path_and_query().cloned();
        *request.uri_mut() = http::Uri::from_parts(parts).unwrap_or_default();
    }
    *request.version_mut() = Version::HTTP_11;
}

/// Whether the upstream switched to what was asked for, or to something that nobody asked for.
///
/// # Errors
/// `UpstreamUpgrade` for a 101 without a request for it.
pub fn is_upgrade(response: &Response<Incoming>, asked: bool) -> Result<bool, Refusal> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(false);
    }
    let websocket = response
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if asked && websocket { Ok(true) } else { Err(Refusal::UpstreamUpgrade) }
}

/// The headers of a WebSocket handshake that are hop-by-hop and go back to the client all the same.
pub const HANDSHAKE: [(HeaderName, HeaderValue); 2] =
    [(CONNECTION, HeaderValue::from_static("upgrade")), (UPGRADE, HeaderValue::from_static("websocket"))];
