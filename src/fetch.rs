//! One request to another server and its answer, whole and bounded: what keys are fetched with and a CMS is asked by.
//!
//! HTTP/1.1 on a connection of its own, over TLS for `https://`; no redirect is followed and nothing tried twice. Not
//! here: how long that may take, which the caller says, and requests of clients (`proxy`).

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Asks other servers. The system's certificate authorities are read once, when they are first needed.
#[derive(Default)]
pub struct Client {
    tls: OnceLock<TlsConnector>,
}

/// What is asked.
pub struct Question {
    /// How.
    pub method: Method,
    /// Beside `Host`.
    pub headers: HeaderMap,
    /// May be empty.
    pub body: Bytes,
    /// The longest answer, in bytes.
    pub most: usize,
}

/// What is answered, whatever the status.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body, or why there is no such: it was longer than asked for, or broke off.
    pub body: Result<Bytes, String>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Client {
    /// Asks once.
    ///
    /// # Errors
    /// What went wrong, in a few words that name neither the URL nor what was sent.
    pub async fn ask(&self, url: &str, question: Question) -> Result<Answer, String> {
        let most = question.most;
        let (parts, body) = self.begin(url, question).await?.into_parts();
        let body = Limited::new(body, most)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| format!("its answer: {error}"));
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    /// The status that a GET is answered with; the body is not waited for.
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub async fn status(&self, url: &str) -> Result<StatusCode, String> {
        let question =
            Question { method: Method::GET, headers: HeaderMap::new(), body: Bytes::new(), most: 0 };
        Ok(self.begin(url, question).await?.status())
    }

    async fn begin(&self, url: &str, question: Question) -> Result<Response<Incoming>, String> {
        let uri: Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
        let stream = self.connect(&uri).await?;
        let broken = |error: hyper::Error| format!("it broke off: {error}");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let mut request = Request::new(Full::new(question.body));
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        *request.uri_mut() = path.parse().map_err(|_| "it is no URL".to_owned())?;
        *request.method_mut() = question.method;
        *request.headers_mut() = question.headers;
        let host = uri.authority().map_or("", http::uri::Authority::as_str);
        request.headers_mut().insert(HOST, host.parse().map_err(|_| "it names no host".to_owned())?);
        sender.send_request(request).await.map_err(broken)
    }

    /// Gets a text of at most `most` bytes; whatever is not a 200 is an error.
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub async fn get(&self, url: &str, accept: &'static str, most: usize) -> Result<String, String> {
        let headers = HeaderMap::from_iter([(ACCEPT, http::HeaderValue::from_static(accept))]);
        let question = Question { method: Method::GET, headers, body: Bytes::new(), most };
        let answer = self.ask(url, question).await?;
        if answer.status != StatusCode::OK {
            return Err(format!("it answered {}", answer.status));
        }
        String::from_utf8(answer.body?.to_vec()).map_err(|_| "it is not UTF-8".to_owned())
    }

    /// Whether somebody takes connections there, TLS included.
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub async fn reach(&self, url: &str) -> Result<(), String> {
        self.connect(&url.parse().map_err(|_| "it is no URL".to_owned())?).await.map(drop)
    }

    async fn connect(&self, uri: &Uri) -> Result<Box<dyn Stream>, String> {
        let host = uri.host().ok_or("it names no host")?.trim_matches(['[', ']']).to_owned();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| format!("no connection: {error}"))?;
        if !secure {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host).map_err(|_| "its host is no name".to_owned())?;
        let stream = self.tls()?.connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| format!("no secure connection: {error}"))?))
    }

    fn tls(&self) -> Result<&TlsConnector, String> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls);
        }
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
        Ok(self.tls.get_or_init(|| TlsConnector::from(Arc::new(config))))
    }
}
