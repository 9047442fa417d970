//! Clients that speak HTTP/2: one that does as it should, and one whose every frame is in the test's hands.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::tls::TlsClient;
use super::{Answer, Call, Gateway, PATIENCE};

/// A connection that requests can be sent on side by side.
#[derive(Clone)]
pub struct H2 {
    sender: SendRequest<Full<Bytes>>,
    port: u16,
}

impl H2 {
    pub async fn connect(gateway: &Gateway, client: &TlsClient) -> Self {
        let stream = client.clone().offering(&["h2"]).connect(gateway.address, "localhost").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = http.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, port: gateway.address.port() }
    }

    /// The request as HTTP/2 has it: an authority and no Host.
    pub fn request_of(&self, call: Call) -> Request<Full<Bytes>> {
        let mut request = call.request;
        request.headers_mut().remove("host");
        let uri = format!("https://localhost:{}{}", self.port, request.uri());
        *request.uri_mut() = uri.parse().unwrap();
        request
    }

    pub async fn send(&self, call: Call) -> hyper::Result<Answer> {
        let request = self.request_of(call);
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let answered = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("no answer");
        let (parts, body) = answered?.into_parts();
        let body =
            tokio::time::timeout(PATIENCE, body.collect()).await.expect("the answer stops")?.to_bytes();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// What an answer's head begins with: `:status 200` and `:status 400` of the static table (RFC 7541 appendix A).
pub const STATUS_200: u8 = 0x88;
pub const STATUS_400: u8 = 0x8c;

/// A frame (RFC 9113 §4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(content);
    frame
}

/// A header list, each field written out (RFC 7541 §6.2.2).
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The pseudo-headers of a GET.
pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/")];

/// One frame that came.
#[derive(Debug)]
pub struct Came {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub content: Vec<u8>,
}

/// A connection whose frames a test makes.
pub struct RawH2 {
    pub stream: TlsStream<TcpStream>,
}

impl RawH2 {
    /// After the preface and empty settings.
    pub async fn connect(gateway: &Gateway, client: &TlsClient) -> Self {
        Self::connect_with(gateway, client, &[]).await
    }

    /// With settings of the client's own.
    pub async fn connect_with(gateway: &Gateway, client: &TlsClient, settings: &[u8]) -> Self {
        let stream = client.clone().offering(&["h2"]).connect(gateway.address, "localhost").await.unwrap();
        let mut raw = Self { stream };
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.send(frame(SETTINGS, 0, 0, settings)).await;
        raw
    }

    /// Sends bytes; whether they are still taken is for the test to see.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Came> {
        let read = async {
            let mut header = [0; 9];
            self.stream.read_exact(&mut header).await.ok()?;
            let [a, b, c, kind, flags, stream @ ..] = header;
            let mut content = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.stream.read_exact(&mut content).await.ok()?;
            Some(Came { kind, flags, stream: u32::from_be_bytes(stream), content })
        };
        tokio::time::timeout(PATIENCE, read).await.expect("nothing comes and nothing ends")
    }

    /// The next frame of one of these kinds.
    pub async fn next_of(&mut self, kinds: &[u8]) -> Option<Came> {
        loop {
            let came = self.next().await?;
            if kinds.contains(&came.kind) {
                return Some(came);
            }
        }
    }

    /// The reason of the GOAWAY that the connection ends with.
    pub async fn goaway(&mut self) -> Option<u32> {
        let mut reason = None;
        while let Some(came) = self.next().await {
            if came.kind == GOAWAY {
                reason = Some(u32::from_be_bytes(came.content[4..8].try_into().unwrap()));
            }
        }
        reason
    }
}
