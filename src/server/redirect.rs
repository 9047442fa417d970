//! The listener that sends whoever comes by plain HTTP to HTTPS.
//!
//! To the same host, path and query, with 308 so that a method and a body stay what they are (RFC 9110
//! §15.4.9). Only to hosts that a certificate is for: nobody is sent to a name of somebody else's choosing.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, HOST, LOCATION};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::connection::Connection;
use super::worker::{Local, Worker};
use crate::observe::lines::Access;
use crate::proxy::AnswerBody;
use crate::wire::answer::Refusal;
use crate::wire::hygiene::HeadError;

/// What clients assume where an `https` URL names no port.
const HTTPS: u16 = 443;

impl Worker {
    /// Answers a request that came by plain HTTP.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub async fn redirect(
        self: Rc<Self>,
        connection: Rc<Connection>,
        request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let active = self.active();
        let answer = match self.https_location(&active, &request) {
            Some(location) => {
                let mut response = Response::new(Bytes::new());
                *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
                response.headers_mut().insert(LOCATION, location);
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                Ok(response)
            }
            None => Err(&Refusal::Head(HeadError::Host)),
        };
        let (method, path) = (request.method().as_str(), request.uri().path());
        let mut response = self.answer_at_once(&connection, answer, method, path);
        // Whatever body there is, nobody reads it.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(response.map(|body| AnswerBody::Own(Some(body).filter(|body| !body.is_empty()))))
    }

    /// Counts and logs an answer that no rule was asked for: a redirect, or a refusal of the head.
    pub(super) fn answer_at_once(
        self: &Rc<Self>,
        connection: &Connection,
        answer: Result<Response<Bytes>, &Refusal>,
        method: &str,
        path: &str,
    ) -> Response<Bytes> {
        let active = self.active();
        let id = self.request_id();
        let id = id.to_str().unwrap_or_default();
        let decision = answer.as_ref().map_or_else(|refusal| refusal.code(), |_| "redirected");
        let response = answer.unwrap_or_else(|refusal| {
            self.gateway.metrics.refusal(refusal.code());
            refusal.response(&active.snapshot.errors, id)
        });
        connection.flags.end(Instant::now());
        self.gateway.metrics.response(response.status().as_u16());
        if active.snapshot.log.access {
            self.log_access(&Access {
                request_id: id,
                client: connection.arrival.address.ip().to_canonical(),
                method,
                path,
                status: response.status().as_u16(),
                bytes: response.body().len() as u64,
                complete: true,
                took: Duration::ZERO,
                rule: None,
                decision,
                user: None,
            });
        }
        response
    }

    /// The same host, path and query by HTTPS; `None` for a host that no certificate is for.
    fn https_location(&self, active: &Local, request: &Request<Incoming>) -> Option<HeaderValue> {
        let tls = active.snapshot.tls.as_ref()?;
        // Its form has been checked before anything else (`wire::hygiene`).
        let host = request.headers().get(HOST)?.to_str().ok()?;
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next()?,
            None => host.split(':').next()?,
        };
        if !tls.is_for(name) {
            return None;
        }
        let brackets = if name.contains(':') { ("[", "]") } else { ("", "") };
        let port = tls.redirect_port.or_else(|| self.gateway.https_port.get().copied()).unwrap_or(HTTPS);
        let port = if port == HTTPS { String::new() } else { format!(":{port}") };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        HeaderValue::try_from(format!("https://{}{name}{}{port}{path}", brackets.0, brackets.1)).ok()
    }
}
