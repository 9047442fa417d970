//! WebSocket, the only upgrade that passes.

use http::{Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::harness::{Gateway, Raw, RawUpstream, Upstream, field, status_of};

const RULES: &str =
    "rules: [{ path: /ws, allow: Viewer }, { path: /open, allow: public }, { path: /edit, allow: Editor }]";

async fn open(
    gateway: &Gateway,
    path: &str,
    token: Option<&str>,
) -> Result<(WebSocketStream<TcpStream>, Response<Option<Vec<u8>>>), Error> {
    let mut request = Request::get(format!("ws://{}{path}", gateway.address))
        .header("host", gateway.address.to_string())
        .header("connection", "keep-alive, Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key())
        .header("x-auth-user", "root");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    client_async(request.body(()).unwrap(), stream).await
}

/// An upstream that echoes; returns the head of the handshake that it took.
async fn echo(upstream: &RawUpstream) -> tokio::task::JoinHandle<http::HeaderMap> {
    let stream = upstream.accept().await.stream;
    tokio::spawn(async move {
        let mut headers = http::HeaderMap::new();
        #[allow(clippy::result_large_err)]
        let note = |request: &Request<()>, response| {
            headers.clone_from(request.headers());
            Ok(response)
        };
        let mut socket = tokio_tungstenite::accept_hdr_async(stream, note).await.unwrap();
        while let Some(Ok(message)) = next(&mut socket).await {
            if message.is_close() {
                break;
            }
            send(&mut socket, message).await;
        }
        headers
    })
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Option<Result<Message, Error>> {
    let next = tokio::time::timeout(crate::harness::PATIENCE, futures_util::StreamExt::next(socket));
    next.await.expect("nothing comes and nothing ends")
}

async fn send(socket: &mut WebSocketStream<TcpStream>, message: Message) {
    futures_util::SinkExt::send(socket, message).await.unwrap();
}

const HANDSHAKE: &str = "GET /open HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[tokio::test]
async fn messages_pass_both_ways_under_the_identity_of_the_handshake() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, RULES).await;
    let token = gateway.login("vera").await;
    let (opened, echoing) = tokio::join!(open(&gateway, "/ws", Some(&token)), echo(&upstream));
    let (mut socket, response) = opened.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    for size in [0, 1, 125, 126, 70_000, 1_000_000] {
        send(&mut socket, Message::text("x".repeat(size))).await;
        assert_eq!(next(&mut socket).await.unwrap().unwrap().len(), size);
    }
    let _ = socket.close(None).await;
    let headers = echoing.await.unwrap();
    assert_eq!(headers["x-auth-user"], "vera");
    assert_eq!(headers.get_all("x-auth-user").iter().count(), 1);
    assert!(!headers.contains_key("authorization"));
    drop(socket);
    gateway.metric_becomes("portcullis_connections", 0.0).await;
}

#[tokio::test]
async fn a_handshake_is_judged_like_any_request() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, RULES).await;
    let token = gateway.login("vera").await;
    for (path, token, status) in [
        ("/ws", None, 401),
        ("/ws", Some("x.y.z"), 401),
        ("/edit", Some(token.as_str()), 403),
        ("/none", None, 401),
    ] {
        let Err(Error::Http(response)) = open(&gateway, path, token).await else {
            panic!("{path} was opened")
        };
        assert_eq!(response.status(), status, "{path}");
    }
    assert!(upstream.is_untouched().await);
}

#[tokio::test]
async fn what_the_upstream_answers_instead_of_switching_comes_back_and_the_connection_goes_on() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, RULES).await;
    let mut client = gateway.connect().await;
    client.send(HANDSHAKE.to_owned() + "GET /open?2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut server = upstream.accept().await;
    let head = server.head().await;
    assert_eq!((field(&head, "upgrade"), field(&head, "connection")), (Some("websocket"), Some("upgrade")));
    server.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await;
    let (head, body) = client.message().await;
    assert_eq!((status_of(&head), body.as_str()), (426, "no"));
    assert!(server.head().await.starts_with("GET /open?2 "));
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.message().await.1, "ok");
}

#[tokio::test]
async fn bytes_that_come_with_the_handshakes_on_either_side_are_not_lost() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, RULES).await;
    let mut client = gateway.connect().await;
    client.send(HANDSHAKE.to_owned() + "early client bytes, GET / HTTP/1.1\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send(SWITCH.to_owned() + "early server bytes").await;
    assert_eq!(status_of(&client.head().await), 101);
    assert_eq!(client.take(18).await, b"early server bytes");
    server.until("early client bytes, GET / HTTP/1.1\r\n\r\n").await;
    drop(server);
    assert_eq!(client.rest().await, "", "the end of one side is the end of both");
}

#[tokio::test]
async fn other_upgrades_do_not_pass() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    for upgrade in ["h2c", "HTTP/2.0", "TLS/1.0", "websocket, h2c", "h2c, websocket", "foo"] {
        let answer = gateway
            .get("/open")
            .header("connection", "Upgrade, HTTP2-Settings")
            .header("upgrade", upgrade)
            .header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")
            .send()
            .await;
        assert_eq!(answer.status, 200, "{upgrade}");
        let seen = upstream.last();
        for name in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(seen.header(name), None, "{upgrade}");
        }
    }
    // Named but not asked for, and asked for in HTTP/1.0.
    for request in [
        "GET /open HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "GET /open HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let mut client = gateway.connect().await;
        client.send(request).await;
        assert_eq!(status_of(&client.head().await), 200, "{request}");
        assert_eq!(upstream.last().header("upgrade"), None, "{request}");
    }
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_502() {
    for (request, answer) in [
        ("GET /open HTTP/1.1\r\nHost: a\r\n\r\n", SWITCH),
        (HANDSHAKE, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
        (HANDSHAKE, "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    ] {
        let upstream = RawUpstream::start().await;
        let gateway = Gateway::start_at(upstream.address, RULES).await;
        let mut client = gateway.connect().await;
        client.send(request).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send(answer).await;
        assert_eq!(status_of(&client.head().await), 502, "{answer}");
        assert_eq!(server.rest().await, "", "the connection is not kept");
    }
}

#[tokio::test]
async fn a_connection_ends_with_the_token_that_opened_it() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, &format!("{RULES}\ntokens: {{ ttl: 2s }}")).await;
    let token = gateway.login("vera").await;
    let (opened, echoing) = tokio::join!(open(&gateway, "/ws", Some(&token)), echo(&upstream));
    let (mut socket, _) = opened.unwrap();
    send(&mut socket, Message::text("still there")).await;
    assert_eq!(next(&mut socket).await.unwrap().unwrap().to_text().unwrap(), "still there");
    assert!(!matches!(next(&mut socket).await, Some(Ok(_))), "nothing is sent any more");
    echoing.await.unwrap();
    assert_eq!(gateway.get("/ws").bearer(&token).send().await.text(), r#"{"error":"Token expired"}"#);
}

#[tokio::test]
async fn an_open_connection_counts_against_the_limit_and_takes_its_slot_until_it_ends() {
    let upstream = RawUpstream::start().await;
    let extra = format!("{RULES}\nlimits: {{ connections: 1 }}");
    let gateway = Gateway::start_at(upstream.address, &extra).await;
    let mut client = gateway.connect().await;
    client.send(HANDSHAKE).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send(SWITCH).await;
    assert_eq!(status_of(&client.head().await), 101);
    client.send("ping").await;
    server.until("ping").await;
    assert_eq!(gateway.metric("portcullis_connections").await, 1.0);
    let mut second: Raw = gateway.connect().await;
    assert_eq!(status_of(&second.head().await), 503);
    drop(client);
    assert_eq!(server.rest().await, "");
    gateway.metric_becomes("portcullis_connections", 0.0).await;
}
