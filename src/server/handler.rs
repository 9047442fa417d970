//! A request, from its head to the first byte of its answer: the order of the steps is the contract's.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN,
    SET_COOKIE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::connection::Connection;
use super::listener::Door;
use super::pages;
use super::worker::{Known, Local, Worker};
use crate::login::session::{Ended, Outcome as SessionOutcome};
use crate::login::{self, cors};
use crate::observe::audit::{Audit, Event, Reason, Scope};
use crate::observe::lines::Access;
use crate::policy::{Caller, Denied, Endpoint, Judgement, Requirement, Route, RuleId};
use crate::proxy::body::{FromClient, Progress, Relay};
use crate::proxy::forward::{self, Asks, Forwarded};
use crate::proxy::forward_auth::{self, Asked};
use crate::proxy::{AnswerBody, RequestBody, upgrade};
use crate::token::VerifiedClaims;
use crate::wire::answer::{LockedBy, Refusal, no_content};
use crate::wire::client::{REQUEST_ID, Scheme};
use crate::wire::credentials::{self, Credentials};
use crate::wire::csrf::{self, Source};
use crate::wire::headers::{Stripped, strip_response};
use crate::wire::{browser, cookies};

/// As many headers as the gateway adds, or nearly.
const SPOKEN: usize = 10;

/// What is known of a request, for its log lines: filled in as it goes.
struct Record {
    started: Instant,
    method: Method,
    path: Option<PathAndQuery>,
    client: IpAddr,
    scheme: Scheme,
    request_id: HeaderValue,
    rule: Option<RuleId>,
    known: Option<Rc<Known>>,
    decision: &'static str,
    /// Whether a person waits for a page; known where one without a right to it is refused.
    navigates: bool,
}

impl Record {
    fn path(&self) -> &str {
        self.path.as_ref().map_or("/", PathAndQuery::path)
    }
}

/// Counts and logs a request when its last byte has gone, or its connection has.
struct Ending {
    worker: Rc<Worker>,
    active: Rc<Local>,
    connection: Rc<Connection>,
    record: Record,
    finished: Cell<bool>,
}

/// A client that left before it was answered. No answer bears it; other proxies log the same.
const CLIENT_LEFT: u16 = 499;

impl Drop for Ending {
    fn drop(&mut self) {
        // The upstream may have acted on the request all the same, so leaving early hides nothing.
        if !self.finished.get() && !std::thread::panicking() {
            self.finish(CLIENT_LEFT, 0, false);
        }
    }
}

impl Ending {
    fn finish(&self, status: u16, bytes: u64, complete: bool) {
        self.finished.set(true);
        let now = Instant::now();
        self.connection.flags.end(now);
        let took = now - self.record.started;
        let metrics = &self.worker.gateway.metrics;
        metrics.response(status);
        metrics.seconds.observe(took.as_secs_f64());
        if !self.active.snapshot.log.access {
            return;
        }
        let record = &self.record;
        self.worker.log_access(&Access {
            request_id: record.request_id.to_str().unwrap_or_default(),
            client: record.client,
            method: record.method.as_str(),
            path: record.path(),
            status,
            bytes,
            complete,
            took,
            rule: record.rule.map(|rule| self.active.rule_label(rule)),
            decision: record.decision,
            user: record.known.as_deref().and_then(Known::user),
        });
    }
}

impl Known {
    /// The name that log lines have for the caller.
    pub(super) fn user(&self) -> Option<&str> {
        self.claims.username.as_deref().or(Some(&self.claims.subject))
    }
}

/// What came with a request to prove who it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Proof {
    None,
    Bearer,
    Cookie,
}

/// The gateway's answer or the upstream's, and how many bytes its own body has.
enum Outcome {
    Own(Response<Bytes>),
    Upstream(Forwarded),
    Upgraded(Response<Bytes>),
}

impl Worker {
    /// As [`Worker::handle`], for a connection that carries one request at a time.
    pub fn handle_http(
        self: Rc<Self>,
        connection: Rc<Connection>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> {
        self.handle(connection, request.map(FromClient::new))
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub async fn handle(
        self: Rc<Self>,
        connection: Rc<Connection>,
        request: Request<FromClient>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        #[cfg(test)]
        assert!(!self.fault.take(), "a fault that a test asked for");
        connection.forwarded.set(false);
        let active = self.active(); // the same one from the first byte to the last
        let (parts, body) = request.into_parts();
        let record = Record {
            started: Instant::now(),
            method: parts.method.clone(),
            path: parts.uri.path_and_query().cloned(),
            client: connection.arrival.address.ip(),
            scheme: connection.arrival.scheme(),
            request_id: self.request_id(),
            rule: None,
            known: None,
            decision: "refused",
            navigates: false,
        };
        let mut ending = Ending {
            worker: Rc::clone(&self),
            active: Rc::clone(&active),
            connection: Rc::clone(&connection),
            record,
            finished: Cell::new(false),
        };
        let outcome = self.answer(&active, &connection, parts, body, &mut ending.record).await;
        Ok(match outcome {
            Ok(Outcome::Upstream(Forwarded { response, lease })) => {
                let (mut parts, incoming) = response.into_parts();
                strip_response(&mut parts.headers);
                let status = parts.status.as_u16();
                let streamed_to =
                    if is_event_stream(&parts.headers) { ending.record.known.clone() } else { None };
                let on_end = Box::new(move |bytes, complete| ending.finish(status, bytes, complete));
                let relay = Relay::new(incoming, lease, Rc::clone(&active.rules), on_end);
                let relay = Box::new(relay);
                let body = match streamed_to {
                    Some(known) => {
                        let over = over(Rc::clone(&self), Some(known), active.snapshot.leeway);
                        AnswerBody::Until(relay, Box::pin(over))
                    }
                    None => AnswerBody::Upstream(relay),
                };
                Response::from_parts(parts, body)
            }
            Ok(Outcome::Own(response) | Outcome::Upgraded(response)) => finish_own(response, &ending),
            Err(refusal) => {
                // Reading may have stopped for a reason that the upstream's failure only followed from.
                let refusal = connection.flags.verdict().map_or(refusal, Refusal::Head);
                self.log_refusal(&ending.record, &active, &refusal);
                ending.record.decision = refusal.code();
                let id = ending.record.request_id.to_str().unwrap_or_default();
                let page = ending.record.navigates.then(|| {
                    let record = &ending.record;
                    let user = record.known.as_deref().and_then(Known::user);
                    pages::instead(&active, &record.method, record.path.as_ref(), user, &refusal)
                });
                let mut response =
                    page.flatten().unwrap_or_else(|| refusal.response(&active.snapshot.errors, id));
                // A head that a load balancer describes is no reason to give up the connection to it.
                let described =
                    connection.arrival.door == Door::ForwardAuth && connection.flags.verdict().is_none();
                if matches!(refusal, Refusal::Head(_) | Refusal::BodyTooLarge) && !described {
                    // Nothing behind such a body is read any more.
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                if connection.arrival.door == Door::ForwardAuth {
                    response = forward_auth::refused(active.snapshot.forward_auth.as_ref(), response);
                }
                finish_own(response, &ending)
            }
        })
    }

    async fn answer(
        self: &Rc<Self>,
        active: &Rc<Local>,
        connection: &Rc<Connection>,
        mut parts: Parts,
        body: FromClient,
        record: &mut Record,
    ) -> Result<Outcome, Refusal> {
        let snapshot = &active.snapshot;
        let trusted = self.know_peer(active, connection);
        let asked = match connection.arrival.door {
            // From here on the request is the one that is asked about.
            Door::ForwardAuth => Some(ask_about(active, &mut parts, record)?),
            Door::Http | Door::Https | Door::Redirect => None,
        };
        let mut stripped = active.rules.strip(&mut parts.headers, trusted);
        stripped.websocket |= asked.as_ref().is_some_and(|asked| asked.websocket);
        record.client = connection.peer.borrow().1.client(&parts.headers, &snapshot.trusted_proxies);
        if stripped.spoke_for_others {
            self.gateway.warn_of_undeclared_proxy(record.client);
        }
        let judgement = self.judge(active, &parts, &stripped)?;
        let mut needed = match judgement.route {
            Route::Own(_) if asked.is_some() => return Err(Refusal::OwnPath),
            Route::Own(endpoint) => {
                record.decision = "own";
                return self.answer_endpoint(active, endpoint, &parts, body, record).await.map(Outcome::Own);
            }
            Route::Upstream { .. } if asked.is_none() && active.upstreams.is_none() => {
                return Err(Refusal::NoUpstream);
            }
            Route::Upstream { requirement, rule } => {
                record.rule = rule;
                requirement
            }
        };
        let preflight = snapshot.forward_preflights && judgement.plain_preflight && is_preflight(&parts);
        if preflight {
            needed = Requirement::Public;
            // A browser sends none with it; what somebody else sends is nobody's.
            parts.headers.remove(AUTHORIZATION);
            if let Some(cookie) = snapshot.cookie() {
                cookies::cut(&mut parts.headers, cookie, false);
            }
        }
        let (proof, known) = match preflight {
            true => (Proof::None, Ok(None)),
            false => self.authenticate(active, &mut parts, needed)?,
        };
        let known = known.inspect_err(|_| {
            active.count(record.rule, &Err(Denied::Anonymous));
            record.navigates = proof != Proof::Bearer && pages::are_for(active, &parts);
        })?;
        record.known.clone_from(&known);
        // A browser sends the cookie along with whatever other sites' pages ask for.
        if proof == Proof::Cookie
            && known.is_some()
            && (judgement.is_unsafe || stripped.websocket)
            && csrf::source(&parts.headers, record.scheme) != Source::SameOrigin
        {
            active.count(record.rule, &Err(Denied::Role));
            return Err(Refusal::CrossSite);
        }
        let caller = match &known {
            Some(known) => Caller::Authenticated(known.claims.role.as_deref()),
            None => Caller::Anonymous,
        };
        let decision = snapshot.policy.decide(needed, caller);
        active.count(record.rule, &decision);
        if let Some((would_need, rule)) = judgement.on_trial {
            let would = snapshot.policy.decide(would_need, caller).map(|_| ());
            let did = decision.as_ref().map(|_| ()).map_err(|denied| *denied);
            active.count_trial(&self.gateway.metrics, rule, did, would);
        }
        let permit = decision.map_err(|denied| {
            record.navigates = proof != Proof::Bearer && pages::are_for(active, &parts);
            match denied {
                Denied::Anonymous => Refusal::NoCredentials,
                Denied::Role => Refusal::AccessDenied,
            }
        })?;
        record.decision = "allowed";

        if judgement.override_matters {
            for name in &stripped.method_overrides {
                parts.headers.remove(name);
            }
        }
        let renews = proof == Proof::Cookie && pages::may_renew(active, &parts, known.as_deref());
        if asked.is_some() {
            let mut answer = forward_auth::allowed();
            active.identify(known.as_deref(), answer.headers_mut())?;
            if renews && let Some(known) = &known {
                self.renew(active, known, answer.headers_mut());
            }
            return Ok(Outcome::Own(answer));
        }
        let upstreams = active.upstreams.as_ref().ok_or(Refusal::NoUpstream)?;
        let upgrade = if stripped.websocket { parts.extensions.remove::<OnUpgrade>() } else { None };
        let (body, progress) = request_body(active, &parts, body)?;
        self.speak_for(active, connection, &mut parts.headers, known.as_deref(), record)?;
        let request = Request::from_parts(parts, body);
        let asks = Asks { websocket: upgrade.is_some(), trailers: stripped.trailers };
        connection.forwarded.set(true);
        // Taken for the time of this request: a connection has one at a time.
        let mut timer = connection.timer.take();
        let forwarded = forward::forward(
            permit,
            upstreams,
            request,
            asks,
            progress,
            snapshot.response_timeout,
            record.started,
            &mut timer,
            || self.gateway.metrics.retries.inc(),
        )
        .await;
        connection.timer.set(timer);
        let mut forwarded = forwarded?;
        if forward::is_upgrade(&forwarded.response, upgrade.is_some())?
            && let Some(downstream) = upgrade
        {
            let over = over(Rc::clone(self), known, snapshot.leeway);
            return Ok(Outcome::Upgraded(self.switch(connection, downstream, forwarded, over)));
        }
        if renews && let Some(known) = &known {
            self.renew(active, known, forwarded.response.headers_mut());
        }
        Ok(Outcome::Upstream(forwarded))
    }

    /// Whether the peer's word about others is believed.
    fn know_peer(&self, active: &Local, connection: &Connection) -> bool {
        let mut peer = connection.peer.borrow_mut();
        if peer.0 != active.generation() {
            *peer = (active.generation(), connection.arrival.peer(&active.snapshot.trusted_proxies));
        }
        peer.1.is_trusted()
    }

    fn judge(&self, active: &Local, parts: &Parts, stripped: &Stripped) -> Result<Judgement, Refusal> {
        let policy = &active.snapshot.policy;
        let overrides: SmallVec<[_; 1]> = stripped
            .method_overrides
            .iter()
            .flat_map(|name| parts.headers.get_all(name))
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let overrides = overrides.iter().map(AsRef::as_ref);
        let target = policy
            .target(parts.method.as_str(), parts.uri.path(), parts.uri.query(), overrides)
            .map_err(Refusal::Path)?;
        Ok(policy.judge(&target))
    }

    /// Who is asking, if anybody says so who can prove it, and by what. The token goes no further, unless
    /// the configuration wants it to.
    ///
    /// # Errors
    /// `AmbiguousCredentials`; within, what is wrong with a token where one is needed.
    #[allow(clippy::type_complexity)]
    fn authenticate(
        &self,
        active: &Local,
        parts: &mut Parts,
        needed: Requirement,
    ) -> Result<(Proof, Result<Option<Rc<Known>>, Refusal>), Refusal> {
        let cookie = active.snapshot.cookie();
        let credentials = credentials::read(&parts.headers, cookie).map_err(Refusal::AmbiguousCredentials)?;
        let (proof, verified) = match credentials {
            Credentials::None => (Proof::None, Ok(None)),
            Credentials::Bearer(token) => {
                (Proof::Bearer, active.verify(&self.gateway, token, unix_now()).map(Some))
            }
            Credentials::Cookie(token) => {
                (Proof::Cookie, active.verify(&self.gateway, token, unix_now()).map(Some))
            }
        };
        let forward_token = active.snapshot.identity.forward_token;
        if proof == Proof::Bearer && !forward_token {
            parts.headers.remove(AUTHORIZATION);
        }
        if let Some(cookie) = cookie {
            // Never a second token beside the one that was decided on.
            cookies::cut(&mut parts.headers, cookie, forward_token && proof == Proof::Cookie);
        }
        // On a public route a bad token makes nobody of its bearer, and that is enough there.
        let known = if needed == Requirement::Public { Ok(verified.unwrap_or(None)) } else { verified };
        Ok((proof, known))
    }

    /// Writes the headers in which the gateway speaks for the client. Identity comes last.
    fn speak_for(
        &self,
        active: &Local,
        connection: &Connection,
        headers: &mut HeaderMap,
        known: Option<&Known>,
        record: &mut Record,
    ) -> Result<(), Refusal> {
        // Once for all that follow, instead of growing on the way.
        headers.reserve(SPOKEN);
        let trusted = &active.snapshot.trusted_proxies;
        connection.peer.borrow_mut().1.describe(headers, trusted, || record.request_id.clone());
        if let Some(theirs) = headers.get(REQUEST_ID) {
            // A trusted proxy has named the request already.
            record.request_id = theirs.clone();
        }
        active.identify(known, headers)
    }

    fn switch(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        downstream: OnUpgrade,
        forwarded: Forwarded,
        over: impl Future<Output = ()> + 'static,
    ) -> Response<Bytes> {
        let Forwarded { response, lease } = forwarded;
        connection.flags.upgrade();
        let (worker, connection) = (Rc::clone(self), Rc::clone(connection));
        tokio::task::spawn_local(async move {
            let end = async {
                tokio::select! {
                    () = over => {}
                    () = worker.ended() => {}
                }
            };
            upgrade::carry(downstream, lease, end).await;
            // It counts until now.
            drop(connection);
        });
        let (mut parts, _) = response.into_parts();
        strip_response(&mut parts.headers);
        parts.headers.extend(forward::HANDSHAKE);
        Response::from_parts(parts, Bytes::new())
    }

    /// The gateway's own paths.
    async fn answer_endpoint(
        &self,
        active: &Rc<Local>,
        endpoint: Endpoint,
        parts: &Parts,
        body: FromClient,
        record: &Record,
    ) -> Result<Response<Bytes>, Refusal> {
        match endpoint {
            Endpoint::Jwks if matches!(parts.method, Method::GET | Method::HEAD) => {
                let mut response = Response::new(active.snapshot.jwks.clone());
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
                headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=30"));
                Ok(response)
            }
            Endpoint::Jwks => Err(Refusal::MethodNotAllowed("GET, HEAD")),
            Endpoint::Login | Endpoint::Logout | Endpoint::Rotate => {
                let Some(settings) = &active.snapshot.login else {
                    return Err(Refusal::Internal("login is off"));
                };
                let origin = cors::allowed_origin(&parts.headers, &settings.origins);
                if let Some(origin) = origin
                    && is_preflight(parts)
                {
                    return Ok(cors::preflight(origin));
                }
                if endpoint == Endpoint::Login && pages::shows_login(settings, parts) {
                    return Ok(self.login_page(active, settings, parts));
                }
                let source = csrf::source(&parts.headers, record.scheme);
                // A browser that is about to show the answer, and can keep a cookie.
                let form = settings.cookie.as_ref().filter(|_| browser::is_form_navigation(&parts.headers));
                let (user, answered) = match (&parts.method, endpoint) {
                    (&Method::POST, Endpoint::Logout) => (None, self.log_out(active, parts, record).await),
                    (&Method::POST, Endpoint::Rotate) => (None, self.rotate(active, parts, record).await),
                    (&Method::POST, _) if source == Source::Foreign && origin.is_none() => {
                        (None, Err(Refusal::CrossSite))
                    }
                    (&Method::POST, _)
                        if form.is_some_and(|cookie| cookie.secure)
                            && browser::came_without_https(&parts.headers) =>
                    {
                        (None, Err(Refusal::LoginWithoutHttps))
                    }
                    (&Method::POST, _) => self.login(active, parts, body, record).await,
                    (_, Endpoint::Login) if settings.page.is_some() => {
                        (None, Err(Refusal::MethodNotAllowed("GET, HEAD, POST")))
                    }
                    _ => (None, Err(Refusal::MethodNotAllowed("POST"))),
                };
                let refused = |refusal: &Refusal| {
                    self.log_refusal(record, active, refusal);
                    refusal.response(&active.snapshot.errors, record.request_id.to_str().unwrap_or_default())
                };
                let answered = match (answered, form) {
                    (answered, Some(cookie)) => {
                        let query = parts.uri.query();
                        pages::after_form(
                            settings,
                            cookie,
                            endpoint,
                            query,
                            user.as_deref(),
                            answered,
                            refused,
                        )
                    }
                    (Ok(mut answer), None) => {
                        if let (Endpoint::Logout, Some(cookie)) = (endpoint, &settings.cookie) {
                            answer.headers_mut().append(SET_COOKIE, cookies::clear(cookie));
                        }
                        Ok(answer)
                    }
                    (refused, None) => refused,
                };
                let Some(origin) = origin else { return answered };
                // A page of another site may read the refusal as well as the token; the cookie is for
                // pages of this one.
                let mut response = answered.unwrap_or_else(|refusal| refused(&refusal));
                if source == Source::Foreign && form.is_none() {
                    response.headers_mut().remove(SET_COOKIE);
                }
                cors::permit(origin, response.headers_mut());
                Ok(response)
            }
        }
    }

    /// The token that a request to an endpoint of ours brings, whether it is over or not.
    fn presented(&self, active: &Local, parts: &Parts, record: &Record) -> Result<VerifiedClaims, Refusal> {
        let cookie = active.snapshot.cookie();
        let token = match credentials::read(&parts.headers, cookie).map_err(Refusal::AmbiguousCredentials)? {
            Credentials::Bearer(token) => token,
            Credentials::Cookie(_) if csrf::source(&parts.headers, record.scheme) != Source::SameOrigin => {
                return Err(Refusal::CrossSite);
            }
            Credentials::Cookie(token) => token,
            Credentials::None => return Err(Refusal::NoCredentials),
        };
        active.verify_anew(&self.gateway, token, unix_now())
    }

    async fn log_out(
        &self,
        active: &Rc<Local>,
        parts: &Parts,
        record: &Record,
    ) -> Result<Response<Bytes>, Refusal> {
        let claims = match self.presented(active, parts, record) {
            Ok(claims) => claims,
            // It is what was asked for already.
            Err(Refusal::ExpiredToken) => return Ok(no_content()),
            Err(refusal) => return Err(refusal),
        };
        let everywhere = login::session::is_everywhere(parts.uri.query());
        let ttl = active.snapshot.ttl;
        let sessions = std::sync::Arc::clone(&self.gateway.sessions);
        self.end(record, Event::Logout, async move {
            let outcome = sessions.log_out(&claims, everywhere, unix_now(), ttl).await;
            (claims, outcome)
        })
        .await
    }

    async fn rotate(
        &self,
        active: &Rc<Local>,
        parts: &Parts,
        record: &Record,
    ) -> Result<Response<Bytes>, Refusal> {
        let claims = self.presented(active, parts, record)?;
        let snapshot = std::sync::Arc::clone(&active.snapshot);
        let gateway = std::sync::Arc::clone(&self.gateway);
        self.end(record, Event::Rotation, async move {
            let outcome = match gateway.login.users() {
                Some(users) => gateway.sessions.rotate(&snapshot, users, &claims).await,
                None => SessionOutcome::refused(Refusal::NotRotatable),
            };
            (claims, outcome)
        })
        .await
    }

    /// Runs what ends a token where it may wait for the store, and tells what became of it: a client that
    /// leaves early is audited like one that stays.
    async fn end(
        &self,
        record: &Record,
        event: Event,
        work: impl Future<Output = (VerifiedClaims, SessionOutcome)> + Send + 'static,
    ) -> Result<Response<Bytes>, Refusal> {
        let gateway = std::sync::Arc::clone(&self.gateway);
        let (client, request_id) = (record.client, record.request_id.clone());
        let answered = self.gateway.control.spawn(async move {
            let (claims, SessionOutcome { answer, ended, outcome }) = work.await;
            match event {
                Event::Rotation => gateway.metrics.rotation(outcome),
                _ => gateway.metrics.logout(outcome),
            }
            if let Some(ended) = ended {
                gateway.audit(&Audit {
                    reason: (ended == Ended::Everything).then_some(Reason::Scope(Scope::Everywhere)),
                    user: Some(claims.username.as_deref().unwrap_or(&claims.subject)),
                    client: Some(client),
                    request_id: request_id.to_str().ok(),
                    ..Audit::of(if ended == Ended::Reused { Event::Reuse } else { event })
                });
            }
            answer
        });
        answered.await.unwrap_or(Err(Refusal::Internal("ending a token broke off")))
    }

    /// Answers a login, and names the user that it was for as far as that is known.
    async fn login(
        &self,
        active: &Rc<Local>,
        parts: &Parts,
        body: FromClient,
        record: &Record,
    ) -> (Option<String>, Result<Response<Bytes>, Refusal>) {
        let body = match Limited::new(body, login::body::MAX_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return (None, Err(Refusal::LoginBodyTooLarge));
            }
            Err(_) => return (None, Err(Refusal::LoginBody("The login body broke off".to_owned()))),
        };
        let attempt = login::Attempt {
            content_type: parts.headers.get(CONTENT_TYPE).map(|value| value.as_bytes().to_vec()),
            body,
            client: record.client,
            now: unix_now(),
            sessions_end: active.snapshot.sessions_end(unix_now()),
        };
        let snapshot = std::sync::Arc::clone(&active.snapshot);
        let service = std::sync::Arc::clone(&self.gateway.login);
        let (gateway, client) = (std::sync::Arc::clone(&self.gateway), record.client);
        let request_id = record.request_id.clone();
        // The store's connections live on the control runtime, and waiting there holds up no request. What
        // became of it is told there, too: a client that leaves early is audited like one that stays.
        let answered = self.gateway.control.spawn(async move {
            let login::Attempted { user, answer, locks } = match &snapshot.login {
                Some(settings) => {
                    let signer = snapshot.keys.signer(attempt.now);
                    service.log_in(settings, signer, snapshot.ttl, attempt).await
                }
                None => login::Attempted {
                    user: None,
                    answer: Err(Refusal::Internal("login is off")),
                    locks: Vec::new(),
                },
            };
            // The same closed list in the metric and the audit line; what more there is to say is in the log.
            let reason = answer.as_ref().err().map(Reason::Refusal);
            gateway.metrics.login(reason.map_or("success", Reason::code));
            gateway.audit(&Audit {
                reason,
                user: user.as_deref(),
                client: Some(client),
                request_id: request_id.to_str().ok(),
                ..Audit::of(if answer.is_ok() { Event::Login } else { Event::LoginFailed })
            });
            for by in locks {
                gateway.metrics.lockout(by);
                gateway.audit(&Audit {
                    reason: Some(Reason::Locked(by)),
                    // Of a lock on the address alone, the name is by chance.
                    user: user.as_deref().filter(|_| by != LockedBy::Address),
                    client: Some(client),
                    request_id: request_id.to_str().ok(),
                    ..Audit::of(Event::LockOut)
                });
            }
            (user, answer)
        });
        answered.await.unwrap_or((None, Err(Refusal::Internal("the login broke off"))))
    }

    /// Refusals are counted all; those that concern who somebody is are audit events as well.
    fn log_refusal(&self, record: &Record, active: &Local, refusal: &Refusal) {
        self.gateway.metrics.refusal(refusal.code());
        let concerns_access = matches!(
            refusal,
            Refusal::InvalidToken(_)
                | Refusal::ExpiredToken
                | Refusal::AccessDenied
                | Refusal::AmbiguousCredentials(_)
                | Refusal::CrossSite
                | Refusal::SessionStore
        );
        if concerns_access {
            self.log_audit(&Audit {
                reason: Some(Reason::Refusal(refusal)),
                user: record.known.as_deref().and_then(Known::user),
                client: Some(record.client),
                rule: record.rule.map(|rule| active.rule_label(rule)),
                method: Some(record.method.as_str()),
                path: Some(record.path()),
                request_id: record.request_id.to_str().ok(),
                ..Audit::of(Event::Refused)
            });
        }
        if refusal.status().is_server_error() {
            tracing::warn!(
                code = refusal.code(),
                detail = refusal.detail(),
                request_id = record.request_id.to_str().unwrap_or_default(),
                "answered with an error of the gateway's own"
            );
        }
    }
}

/// Puts the request that a load balancer describes in the place of its own.
fn ask_about(active: &Local, parts: &mut Parts, record: &mut Record) -> Result<Asked, Refusal> {
    let Some(form) = &active.snapshot.forward_auth else {
        return Err(Refusal::Internal("forward_auth is off"));
    };
    let asked = forward_auth::ask_about(form, &active.rules, active.snapshot.limits.target_bytes, parts)?;
    record.method.clone_from(&parts.method);
    record.path = parts.uri.path_and_query().cloned();
    Ok(asked)
}

fn finish_own(response: Response<Bytes>, ending: &Ending) -> Response<AnswerBody> {
    let (parts, bytes) = response.into_parts();
    ending.finish(parts.status.as_u16(), bytes.len() as u64, true);
    let body = AnswerBody::Own(Some(bytes).filter(|bytes| !bytes.is_empty()));
    Response::from_parts(parts, body)
}

/// OPTIONS with what a browser sends to ask for permission (Fetch standard, CORS-preflight request).
fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS
        && parts.headers.contains_key(ORIGIN)
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Events that are sent as they happen (HTML standard, server-sent events): no other answer lasts for
/// longer than its token by design.
fn is_event_stream(headers: &HeaderMap) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value.as_bytes().get(..KIND.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(KIND))
    })
}

/// The body as it goes on, and what its progress is told by.
fn request_body(
    active: &Local,
    parts: &Parts,
    incoming: FromClient,
) -> Result<(RequestBody, Option<Rc<Progress>>), Refusal> {
    if incoming.is_end_stream() {
        return Ok((RequestBody::Empty, None));
    }
    let limit = active.snapshot.limits.body_bytes.unwrap_or(u64::MAX);
    let announced =
        parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(Refusal::BodyTooLarge);
    }
    let progress = Progress::begin();
    let body = RequestBody::Streaming {
        incoming,
        left: limit,
        rules: Rc::clone(&active.rules),
        progress: Rc::clone(&progress),
    };
    Ok((body, Some(progress)))
}

/// Completes when a caller's token has expired or been revoked; never for nobody's.
async fn over(worker: Rc<Worker>, known: Option<Rc<Known>>, leeway: Duration) {
    let Some(known) = known else { return std::future::pending().await };
    let lifetime = Duration::from_secs(known.claims.expires_at.saturating_sub(unix_now())) + leeway;
    tokio::select! {
        () = tokio::time::sleep(lifetime) => {}
        () = worker.gateway.sessions.over(&known.claims) => {}
    }
}

/// Unix time in seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
