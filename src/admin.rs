//! The admin address: probes, metrics, status, reload. Never public.
//!
//! Reads hold no secret, so a pod may bind it to all addresses for its probes; anything but a read is
//! taken from loopback only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::observe::audit::Trigger;
use crate::server::handler::unix_now;
use crate::server::{Gateway, Stage};
use crate::store::StoreFuture;

/// For a request's head, and between two requests: these clients are ours.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections at a time; the next ones wait to be accepted. Probes and a scraper or two need a handful.
const CONNECTIONS: usize = 64;

/// Answers until dropped.
pub async fn serve(gateway: Arc<Gateway>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let gateway = Arc::clone(&gateway);
        let service = service_fn(move |request| {
            let gateway = Arc::clone(&gateway);
            async move { Ok::<_, Infallible>(answer(&gateway, peer, &request).await) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        let serving = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // How it ended is the client's affair.
            let _ = serving.await;
            drop(place);
        });
    }
}

async fn answer(
    gateway: &Arc<Gateway>,
    peer: SocketAddr,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && !peer.ip().to_canonical().is_loopback() {
        return text(StatusCode::FORBIDDEN, "only loopback may change anything here\n");
    }
    match (request.uri().path(), reads) {
        ("/livez", true) => text(StatusCode::OK, "alive\n"),
        ("/readyz", true) => match gateway.stage() {
            Stage::Ready if gateway.is_ready() => text(StatusCode::OK, "ready\n"),
            Stage::Ready => text(StatusCode::SERVICE_UNAVAILABLE, "revocations are not loaded\n"),
            Stage::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            Stage::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        },
        ("/metrics", true) => {
            let mut response = text(StatusCode::OK, &gateway.metrics.text());
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        ("/status", true) => status(gateway).await,
        ("/reload", false) if request.method() == Method::POST => {
            match gateway.reload(Trigger::Admin).await {
                Ok(()) => text(StatusCode::OK, "reloaded\n"),
                Err(error) => text(StatusCode::UNPROCESSABLE_ENTITY, &error.render(false)),
            }
        }
        ("/livez" | "/readyz" | "/metrics" | "/status", _) => not_allowed("GET, HEAD"),
        ("/reload", _) => not_allowed("POST"),
        _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz, /status, /metrics and POST /reload\n"),
    }
}

async fn status(gateway: &Gateway) -> Response<Full<Bytes>> {
    let active = gateway.current();
    let snapshot = &active.snapshot;
    let load = gateway.last_load();
    let users = match gateway.login.users() {
        Some(users) => health(users.ping()).await,
        None => json!("the CMS's own login, not asked"),
    };
    let sessions = match gateway.sessions.store() {
        Some(store) => health(store.changes(0, 1)).await,
        None => json!("not open yet"),
    };
    let now = unix_now();
    let ring = &snapshot.keys.ring;
    let published = ring.keys().iter().filter(|one| one.key.public_jwk().is_some());
    let kids: Vec<_> = published.map(|one| one.key.kid()).collect();
    let signing = ring.signing(now).map(|place| ring.keys()[place].key.kid());
    let trusted: Vec<_> =
        snapshot.remote_keys.iter().map(|keys| json!({ "issuer": keys.issuer, "url": keys.url })).collect();
    let certificates: Vec<_> = snapshot.tls.iter().flat_map(|tls| &tls.certificates).collect();
    let certificates: Vec<_> = certificates
        .iter()
        .map(|one| json!({ "file": one.file, "names": one.names, "expires": one.validity.1, "expired": now > one.validity.1 }))
        .collect();
    let upstreams: Vec<_> =
        active.servers.iter().map(|server| json!({ "url": server.url(), "up": server.is_up() })).collect();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "stage": match gateway.stage() {
            Stage::Starting => "starting",
            Stage::Ready => "ready",
            Stage::Draining => "draining",
        },
        "configuration": {
            "file": gateway.config_path().display().to_string(),
            "hash": snapshot.hash,
            "generation": active.generation(),
            "rules": snapshot.rule_labels.len(),
            "roles": snapshot.policy.roles().names(),
            "last_load": { "at": load.at, "error": load.error },
        },
        "keys": { "published": kids, "signing": signing, "remote": trusted },
        "certificates": certificates,
        "stores": { "users": users, "sessions": sessions },
        "revocations": gateway.sessions.len(),
        "upstreams": upstreams,
        "connections": gateway.metrics.connections.get(),
    });
    let mut response = text(StatusCode::OK, &format!("{body:#}\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `ok`, or what a store says to a question.
async fn health<T>(question: StoreFuture<'_, T>) -> serde_json::Value {
    match tokio::time::timeout(Duration::from_secs(2), question).await {
        Ok(Ok(_)) => json!("ok"),
        Ok(Err(error)) => json!(error.to_string()),
        Err(_) => json!("does not answer"),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn not_allowed(methods: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("use {methods}\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}
