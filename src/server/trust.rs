//! Keeps the keys of trusted issuers fresh: fetched in the background, never while a request waits.
//!
//! A source that is away changes nothing: the keys that were good stay. A key that nobody knows makes
//! the sources be looked at again, but not more often than every few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::Gateway;
use super::handler::unix_now;

/// How long a set of keys is used before it is fetched again.
const FRESH: Duration = Duration::from_secs(300);

/// The least time between two attempts.
const PATIENCE: Duration = Duration::from_secs(10);

/// For one fetch, from the name's resolution to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest set of keys, in bytes.
const MAX_BYTES: usize = 1024 * 1024;

/// Fetches for as long as the gateway runs.
pub async fn keep_fresh(gateway: Arc<Gateway>) {
    let mut fetched: HashMap<String, Instant> = HashMap::new();
    loop {
        let remote = gateway.current().snapshot.remote_keys.clone();
        for source in remote {
            if fetched.get(&source.url).is_some_and(|at| at.elapsed() < FRESH) {
                continue;
            }
            let outcome = match timeout(TIMEOUT, fetch(&source.url)).await {
                Ok(outcome) => outcome,
                Err(_) => Err("it did not answer in time".to_owned()),
            };
            match outcome {
                Ok(jwks) => {
                    fetched.insert(source.url.clone(), Instant::now());
                    // A refusal has been logged with its reason.
                    let taken =
                        gateway.reload_keys(&source.url, jwks).await.map(|()| unix_now()).map_err(drop);
                    gateway.metrics.jwks(&source.issuer, taken);
                }
                Err(why) => {
                    gateway.metrics.jwks(&source.issuer, Err(()));
                    tracing::warn!(
                        issuer = source.issuer,
                        url = source.url,
                        why,
                        "cannot fetch a trusted issuer's keys"
                    );
                }
            }
        }
        let pause = Instant::now() + PATIENCE;
        tokio::select! {
            () = sleep(PATIENCE) => {}
            () = gateway.keys_wanted() => {
                tokio::time::sleep_until(pause).await;
                fetched.clear();
            }
        }
    }
}

/// Gets `url` once: no redirect is followed.
///
/// # Errors
/// What went wrong, in a few words.
pub async fn fetch(url: &str) -> Result<String, String> {
    let uri: Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
    let host = uri.host().ok_or("it names no host")?.trim_matches(['[', ']']).to_owned();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream =
        TcpStream::connect((host.as_str(), port)).await.map_err(|error| format!("no connection: {error}"))?;
    if secure {
        let name = ServerName::try_from(host).map_err(|_| "its host is no name".to_owned())?;
        let stream =
            tls()?.connect(name, stream).await.map_err(|error| format!("no secure connection: {error}"))?;
        get(stream, &uri).await
    } else {
        get(stream, &uri).await
    }
}

fn tls() -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this system has no certificate authorities (Debian: ca-certificates)".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn get<S>(stream: S, uri: &Uri) -> Result<String, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| format!("it broke off: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::get(path)
        .header(HOST, uri.authority().map_or("", http::uri::Authority::as_str))
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answered {}", response.status()));
    }
    let body =
        Limited::new(response.into_body(), MAX_BYTES).collect().await.map_err(|error| error.to_string())?;
    String::from_utf8(body.to_bytes().to_vec()).map_err(|_| "it is not UTF-8".to_owned())
}
