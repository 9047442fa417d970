//! HTTP/2: the same requests, the same rules, and whoever abuses what only HTTP/2 has.

use std::process::Command;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::harness::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, H2, HEADERS, PING, RST_STREAM, RawH2, SETTINGS,
    STATUS_200, STATUS_400, fields, frame,
};
use crate::harness::partners::{program, skip};
use crate::harness::tls::{Authority, TlsClient, write};
use crate::harness::{Gateway, RawUpstream, Upstream, field};

const TLS: &str = "tls: { cert: cert.pem, key: cert.key }\n";
const RULES: &str =
    "rules: [{ path: /*, allow: public }, { path: /admin/*, allow: Viewer }, { path: /deny, allow: deny }]\n";

async fn start_at(upstream: std::net::SocketAddr, extra: &str) -> (Gateway, TlsClient) {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path(), "cert", &["localhost"]);
    write(folder.path(), "ca.pem", &authority.pem());
    let gateway = Gateway::start_in(folder, upstream, &format!("{RULES}{TLS}{extra}")).await;
    (gateway, authority.client())
}

async fn start(upstream: &Upstream, extra: &str) -> (Gateway, TlsClient) {
    start_at(upstream.address, extra).await
}

#[tokio::test]
async fn a_request_is_judged_and_forwarded_as_one_of_http1_would_be() {
    let upstream = Upstream::start().await;
    let (gateway, client) = start(&upstream, "").await;
    let h2 = H2::connect(&gateway, &client).await;
    let answer = h2.send(gateway.get("/admin/x?y=z")).await.unwrap();
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    let login = serde_json::json!({ "username": "vera", "password": crate::harness::PASSWORD });
    let answer = h2.send(gateway.post("/auth/login").json(&login)).await.unwrap();
    assert_eq!(answer.status, 200);
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    let call =
        gateway.get("/admin/x?y=z").bearer(&token).header("x-auth-user", "sam").header("X_Auth_User", "sam");
    let answer =
        h2.send(call.header("cookie", "a=1").header("cookie", "b=2").header("te", "trailers")).await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "upstream"));
    assert_eq!(answer.header("connection"), None);
    let seen = upstream.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/admin/x?y=z"));
    for (name, value) in [
        ("host", Some(format!("localhost:{}", gateway.address.port()))),
        ("x-auth-user", Some("vera".to_owned())),
        ("x_auth_user", None),
        ("x-forwarded-proto", Some("https".to_owned())),
        ("x-forwarded-for", Some("127.0.0.1".to_owned())),
        ("cookie", Some("a=1; b=2".to_owned())),
        ("te", Some("trailers".to_owned())),
        ("transfer-encoding", None),
        ("authorization", None),
    ] {
        assert_eq!(seen.header(name).map(str::to_owned), value, "{name}");
    }
    assert_eq!(h2.send(gateway.get("/deny").bearer(&token)).await.unwrap().status, 403);
    assert_eq!(h2.send(gateway.get("/a/%2e%2e/admin/x")).await.unwrap().status, 400);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn methods_and_statuses_without_a_body_have_none() {
    let upstream = Upstream::answering(|seen| {
        let status = match seen.target.as_str() {
            "/204" => 204,
            "/304" => 304,
            _ => 200,
        };
        let mut response = Response::new(Full::from(if status == 200 { "12345" } else { "" }));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        response
    })
    .await;
    let (gateway, client) = start(&upstream, "").await;
    let h2 = H2::connect(&gateway, &client).await;
    for (method, target, status, length, body) in [
        ("HEAD", "/", 200, Some("5"), ""),
        ("GET", "/", 200, Some("5"), "12345"),
        ("GET", "/204", 204, None, ""),
        ("GET", "/304", 304, None, ""),
        ("DELETE", "/", 200, Some("5"), "12345"),
    ] {
        let answer = h2.send(gateway.request(method, target)).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (status, body), "{method} {target}");
        assert_eq!(answer.header("content-length"), length, "{method} {target}");
    }
}

#[tokio::test]
async fn bodies_come_through_whole_with_a_length_and_without_and_trailers_behind_them() {
    let upstream = Upstream::answering(|seen| Response::new(Full::from(seen.body.clone()))).await;
    let (gateway, client) = start(&upstream, "").await;
    let h2 = H2::connect(&gateway, &client).await;
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let answer = h2.send(gateway.post("/x").body(body.clone())).await.unwrap();
    assert!(answer.body == body);
    assert_eq!(upstream.last().header("content-length"), Some("3000000"));

    let stream = client.offering(&["h2"]).connect(gateway.address, "localhost").await.unwrap();
    let http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    trailers.insert("x-auth-user", HeaderValue::from_static("sam"));
    let frames = [
        Frame::data(Bytes::from_static(b"one")),
        Frame::data(Bytes::from_static(b"two")),
        Frame::trailers(trailers),
    ];
    let frames = frames.map(Ok::<_, std::convert::Infallible>);
    let request = Request::post("https://localhost/x").header("trailer", "x-sum, x-auth-user");
    let request = request.body(StreamBody::new(futures_util::stream::iter(frames))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "onetwo");
    let seen = upstream.last();
    assert_eq!((seen.header("content-length"), seen.header("transfer-encoding")), (None, Some("chunked")));
    let trailers = seen.trailers.unwrap();
    assert_eq!(trailers.get("x-sum").unwrap(), "1");
    assert!(!trailers.contains_key("x-auth-user"));
}

#[tokio::test]
async fn requests_side_by_side_each_get_their_own_answer() {
    let upstream = Upstream::answering(|seen| Response::new(Full::from(seen.target.clone()))).await;
    let (gateway, client) = start(&upstream, "").await;
    let h2 = H2::connect(&gateway, &client).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..300 {
        let (h2, call) = (h2.clone(), gateway.get(&format!("/{number}")));
        tasks.spawn(async move { (number, h2.send(call).await.unwrap().text()) });
    }
    let answers = tasks.join_all().await;
    assert!(answers.iter().all(|(number, text)| *text == format!("/{number}")), "{answers:?}");
    assert_eq!(gateway.metric("portcullis_connections").await, 1.0);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_reset_stream_and_never_looks_complete() {
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let upstream = RawUpstream::start().await;
        let (gateway, client) = start_at(upstream.address, "").await;
        let mut raw = RawH2::connect(&gateway, &client).await;
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&GET))).await;
        let mut theirs = upstream.accept().await;
        theirs.head().await;
        theirs.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n")).await;
        theirs.send(if head.starts_with('C') { "half" } else { "4\r\nhalf\r\n" }).await;
        let data = raw.next_of(&[DATA]).await.unwrap();
        assert_eq!((data.content.as_slice(), data.flags & END_STREAM), (&b"half"[..], 0));
        theirs.reset();
        let end = raw.next_of(&[DATA, RST_STREAM]).await.unwrap();
        assert_eq!((end.kind, end.stream), (RST_STREAM, 1), "{head}");
        assert_ne!(end.content, [0; 4], "{head}: NO_ERROR");
        // The connection goes on.
        raw.send(frame(PING, 0, 0, b"12345678")).await;
        assert_eq!(raw.next_of(&[PING, GOAWAY]).await.unwrap().kind, PING);
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_or_resets_is_a_502() {
    let upstream = RawUpstream::start().await;
    let (gateway, client) = start_at(upstream.address, "").await;
    let h2 = H2::connect(&gateway, &client).await;
    let asking = tokio::spawn({
        let call = gateway.post("/x").body("body");
        let h2 = h2.clone();
        async move { h2.send(call).await.unwrap().status }
    });
    let mut theirs = upstream.accept().await;
    theirs.head().await;
    theirs.reset();
    assert_eq!(asking.await.unwrap(), 502);
    drop(upstream);
    assert_eq!(h2.send(gateway.get("/")).await.unwrap().status, 502);
}

#[tokio::test]
async fn a_stream_that_the_client_resets_is_given_up_upstream_too() {
    let upstream = RawUpstream::start().await;
    let (gateway, client) = start_at(upstream.address, "").await;
    let mut raw = RawH2::connect(&gateway, &client).await;
    // While it is answered, and in the middle of a body.
    for (stream, flags) in [(1, END_HEADERS | END_STREAM), (3, END_HEADERS)] {
        raw.send(frame(HEADERS, flags, stream, &fields(&GET))).await;
        raw.send(if stream == 3 { frame(DATA, 0, stream, b"some") } else { Vec::new() }).await;
        let mut theirs = upstream.accept().await;
        theirs.head().await;
        raw.send(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())).await;
        theirs.rest().await;
        gateway.wait_for_line(0, |line| line.contains("499")).await;
    }
}

#[tokio::test]
async fn an_early_answer_to_an_upload_is_passed_on() {
    let upstream = RawUpstream::start().await;
    let (gateway, client) = start_at(upstream.address, "").await;
    let mut raw = RawH2::connect(&gateway, &client).await;
    let post = fields(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "a"),
        (":path", "/"),
        ("content-length", "1000000"),
    ]);
    raw.send(frame(HEADERS, END_HEADERS, 1, &post)).await;
    raw.send(frame(DATA, 0, 1, b"some")).await;
    let mut theirs = upstream.accept().await;
    let head = theirs.head().await;
    assert_eq!(field(&head, "content-length"), Some("1000000"));
    theirs.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!").await;
    let data = raw.next_of(&[DATA, RST_STREAM]).await.unwrap();
    assert_eq!((data.kind, data.content.as_slice()), (DATA, &b"no!"[..]));
}

#[tokio::test]
async fn a_head_that_could_be_read_in_two_ways_is_refused_and_never_reaches_the_upstream() {
    let upstream = Upstream::start().await;
    let (gateway, client) = start(&upstream, "").await;
    let head = |changes: &[(usize, (&'static str, &'static str))], more: &[(&'static str, &'static str)]| {
        let mut list = GET.to_vec();
        for (index, field) in changes {
            list[*index] = *field;
        }
        list.extend(more);
        list.retain(|(name, _)| !name.is_empty());
        fields(&list)
    };
    let gone = ("", "");
    // What HTTP/2 forbids is a reset; what HTTP/1.1 would take differently is told.
    for (block, answer) in [
        (head(&[], &[]), Some(STATUS_200)),
        (head(&[(2, ("host", "localhost"))], &[]), None), // pseudo-header behind a header
        (head(&[(2, gone)], &[("host", "localhost")]), Some(STATUS_200)),
        (head(&[(2, gone)], &[]), Some(STATUS_400)),
        (head(&[], &[("host", "localhost")]), Some(STATUS_200)),
        (head(&[], &[("host", "other")]), Some(STATUS_400)),
        (head(&[(2, gone)], &[("host", "a"), ("host", "a")]), Some(STATUS_400)),
        (head(&[(2, (":authority", "user@localhost"))], &[]), Some(STATUS_400)),
        (head(&[(2, (":authority", ""))], &[]), None),
        (head(&[(1, (":scheme", "http"))], &[]), Some(STATUS_400)),
        (head(&[(1, gone)], &[]), None),
        (head(&[(0, gone)], &[]), None),
        (head(&[(0, (":method", "get"))], &[]), Some(STATUS_400)),
        (head(&[(0, (":method", "TRACE"))], &[]), Some(STATUS_400)),
        (head(&[(0, (":method", "CONNECT")), (1, gone), (3, gone)], &[]), Some(STATUS_400)),
        (head(&[(0, (":method", "G T"))], &[]), None),
        (head(&[(3, gone)], &[]), None),
        (head(&[(3, (":path", ""))], &[]), None),
        (head(&[(3, (":path", "admin"))], &[]), None),
        (head(&[(3, (":path", "*")), (0, (":method", "OPTIONS"))], &[]), Some(STATUS_400)),
        (head(&[(3, (":path", "https://localhost/"))], &[]), None),
        (head(&[(3, (":path", "/a b"))], &[]), None),
        (head(&[(3, (":path", "/a\\b"))], &[]), Some(STATUS_400)),
        (head(&[(3, (":path", "/%2e%2e/admin"))], &[]), Some(STATUS_400)),
        (head(&[], &[(":path", "/admin")]), None),
        (head(&[(2, (":path", "/admin"))], &[]), None),
        (head(&[], &[(":status", "200")]), None),
        (head(&[], &[(":unknown", "x")]), None),
        (head(&[], &[("X-Upper", "x")]), None),
        (head(&[], &[("connection", "x-auth-user")]), None),
        (head(&[], &[("transfer-encoding", "chunked")]), None),
        (head(&[], &[("upgrade", "websocket")]), None),
        (head(&[], &[("keep-alive", "x")]), None),
        (head(&[], &[("te", "gzip")]), None),
        (head(&[], &[("x", "a\r\nx-auth-user: sam")]), None),
        (head(&[], &[("x", "a\0b")]), None),
        (head(&[], &[("x y", "z")]), None),
        (head(&[], &[("x", " y")]), Some(STATUS_400)),
        (head(&[], &[("content-length", "5")]), None),
        (head(&[], &[("content-length", "0"), ("content-length", "0")]), Some(STATUS_400)),
        (head(&[], &[("content-length", "x")]), None),
    ] {
        let mut raw = RawH2::connect(&gateway, &client).await;
        let before = upstream.count();
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await;
        let came = raw.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await;
        let told = came.as_ref().filter(|came| came.kind == HEADERS).map(|came| came.content[0]);
        let shown = String::from_utf8_lossy(&block).into_owned();
        assert_eq!(told, answer, "{shown:?} {came:?}");
        assert_eq!(upstream.count() - before, usize::from(answer == Some(STATUS_200)), "{shown:?}");
    }
}

#[tokio::test]
async fn extended_connect_is_not_offered_and_not_taken() {
    let upstream = Upstream::start().await;
    let (gateway, client) = start(&upstream, "").await;
    let mut raw = RawH2::connect(&gateway, &client).await;
    let settings = raw.next_of(&[SETTINGS]).await.unwrap();
    // SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 §3).
    assert!(settings.content.chunks(6).all(|setting| setting[..2] != [0, 8]), "{settings:?}");
    let connect = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":authority", "a"),
        (":path", "/"),
    ];
    raw.send(frame(HEADERS, END_HEADERS, 1, &fields(&connect))).await;
    let came = raw.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap();
    assert!(came.kind != HEADERS || came.content[0] == STATUS_400, "{came:?}");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn http2_without_tls_is_refused() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, "rules: [{ path: /*, allow: public }]").await;
    let told = gateway.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
    let told = gateway
        .raw(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
        .await;
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{told}");
    assert_eq!(upstream.last().header("upgrade"), None);
}

#[tokio::test]
async fn floods_end_their_connection_with_a_goaway_and_honest_requests_go_on() {
    let upstream = Upstream::start().await;
    let (gateway, client) = start(&upstream, "log: { format: json, access: false }\n").await;
    let h2 = H2::connect(&gateway, &client).await;
    assert_eq!(h2.send(gateway.get("/")).await.unwrap().status, 200);
    let before = gateway.resident();
    let get = fields(&GET);
    type One = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;
    let rapid_reset: One = Box::new({
        let get = get.clone();
        move |n| {
            let stream = 2 * n + 1;
            let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get);
            both.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            both
        }
    });
    // A window that overflows makes the gateway reset the stream ("MadeYouReset", CVE-2025-8671).
    let made_you_reset: One = Box::new({
        let get = get.clone();
        move |n| {
            let stream = 2 * n + 1;
            let mut both = frame(HEADERS, END_HEADERS, stream, &get);
            both.extend(frame(8, 0, stream, &0x7fff_ffffu32.to_be_bytes()));
            both
        }
    });
    let continuation: One = Box::new(move |n| match n {
        0 => frame(HEADERS, 0, 1, &get),
        _ => frame(CONTINUATION, 0, 1, &fields(&[("x", &"y".repeat(100))])),
    });
    let empty_continuation: One = Box::new(move |n| match n {
        0 => frame(HEADERS, 0, 1, &fields(&GET)),
        _ => frame(CONTINUATION, 0, 1, b""),
    });
    let empty_data: One = Box::new(move |n| match n {
        0 => frame(HEADERS, END_HEADERS, 1, &fields(&GET)),
        _ => frame(DATA, 0, 1, b""),
    });
    for (name, one) in [
        ("rapid reset", rapid_reset),
        ("made you reset", made_you_reset),
        ("CONTINUATION", continuation),
        ("empty CONTINUATION", empty_continuation),
        ("empty DATA", empty_data),
        ("SETTINGS", Box::new(|_| frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0]))),
        ("PING", Box::new(|_| frame(PING, 0, 0, b"12345678"))),
        ("PRIORITY", Box::new(|n| frame(2, 0, 2 * n + 1, &[0, 0, 0, 0, 1]))),
        ("unknown frames", Box::new(|_| frame(99, 0, 0, b"?"))),
    ] {
        let RawH2 { stream } = RawH2::connect(&gateway, &client).await;
        let (reading, mut writing) = tokio::io::split(stream);
        let flood = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            for n in 0..10_000 {
                if writing.write_all(&one(n)).await.is_err() || writing.flush().await.is_err() {
                    return n;
                }
            }
            10_000
        });
        let told = tokio::time::timeout(crate::harness::PATIENCE, frames_until_the_end(reading)).await;
        let told = told.unwrap_or_else(|_| panic!("{name}: the connection does not end"));
        let goaway = told.iter().find(|(kind, _)| *kind == GOAWAY);
        assert!(goaway.is_some(), "{name}: {:?}", told.last());
        assert_ne!(goaway.unwrap().1[4..8], [0; 4], "{name}: NO_ERROR");
        flood.abort();
        assert_eq!(h2.send(gateway.get("/")).await.unwrap().status, 200, "{name}");
    }
    gateway.metric_becomes("portcullis_connections", 1.0).await;
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more");
}

async fn frames_until_the_end(mut reading: impl tokio::io::AsyncRead + Unpin) -> Vec<(u8, Vec<u8>)> {
    use tokio::io::AsyncReadExt;
    let mut bytes = Vec::new();
    // Cut or closed, what counts is what was said before.
    while let Ok(1..) = reading.read_buf(&mut bytes).await {}
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((header, more)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let Some((content, more)) = more.split_at_checked(length) else { break };
        frames.push((header[3], content.to_vec()));
        rest = more;
    }
    frames
}

#[tokio::test]
async fn a_head_that_is_too_large_is_told_so_and_the_connection_goes_on() {
    let upstream = Upstream::start().await;
    let (gateway, client) = start(&upstream, "limits: { header_bytes: 8KiB, headers: 20 }\n").await;
    let h2 = H2::connect(&gateway, &client).await;
    let large = h2.send(gateway.get("/").header("x", &"y".repeat(9000))).await.unwrap();
    assert_eq!(large.status, 431);
    let mut many = gateway.get("/");
    for number in 0..21 {
        many = many.header(&format!("x-{number}"), "y");
    }
    assert_eq!(h2.send(many).await.unwrap().status, 431);
    assert_eq!(h2.send(gateway.get("/")).await.unwrap().status, 200);
}

#[tokio::test]
async fn whoever_stands_still_loses_the_stream_and_an_idle_connection_ends() {
    let body = Bytes::from(vec![b'x'; 1_000_000]);
    let upstream = Upstream::answering(move |_| Response::new(Full::from(body.clone()))).await;
    let (gateway, client) =
        start(&upstream, "limits: { header_timeout: 300ms, idle_timeout: 400ms }\n").await;
    // A body that does not come.
    let mut raw = RawH2::connect(&gateway, &client).await;
    raw.send(frame(HEADERS, END_HEADERS, 1, &fields(&GET))).await;
    let came = raw.next_of(&[HEADERS, RST_STREAM]).await.unwrap();
    assert_eq!(came.kind, HEADERS, "408");
    assert_eq!(gateway.metric("portcullis_refusals_total{code=\"body_too_slow\"}").await, 1.0);
    // And the connection, with nothing to do.
    assert_eq!(raw.goaway().await, Some(0));
    // An answer that nobody takes.
    let mut raw = RawH2::connect(&gateway, &client).await;
    raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&GET))).await;
    let end = raw.next_of(&[RST_STREAM, GOAWAY]).await.unwrap();
    assert_eq!((end.kind, end.stream), (RST_STREAM, 1));
    // A head that does not end, and a preface that does not come.
    let mut raw = RawH2::connect(&gateway, &client).await;
    raw.send(frame(HEADERS, 0, 1, &fields(&GET))).await;
    while raw.next().await.is_some() {}
    let mut silent = client.clone().offering(&["h2"]).connect(gateway.address, "localhost").await.unwrap();
    let mut told = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut told).await;
    gateway.metric_becomes("portcullis_connections", 0.0).await;
}

#[tokio::test]
async fn a_client_that_takes_slowly_gets_everything() {
    let body = Bytes::from((0..400_000u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let upstream = Upstream::answering({
        let body = body.clone();
        move |_| Response::new(Full::from(body.clone()))
    })
    .await;
    let (gateway, client) = start(&upstream, "limits: { idle_timeout: 2s }\n").await;
    let mut raw = RawH2::connect(&gateway, &client).await;
    raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&GET))).await;
    let mut got = Vec::new();
    while got.len() < body.len() {
        let data = raw.next_of(&[DATA, RST_STREAM, GOAWAY]).await.unwrap();
        assert_eq!(data.kind, DATA);
        got.extend(&data.content);
        let more = u32::try_from(data.content.len()).unwrap().to_be_bytes();
        if data.content.is_empty() {
            continue;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        raw.send([frame(8, 0, 0, &more), frame(8, 0, 1, &more)].concat()).await;
    }
    assert!(got == body);
}

#[tokio::test]
async fn a_reload_counts_from_the_next_request_of_a_connection_on() {
    let upstream = Upstream::start().await;
    let (gateway, client) = start(&upstream, "").await;
    let h2 = H2::connect(&gateway, &client).await;
    assert_eq!(h2.send(gateway.get("/x")).await.unwrap().status, 200);
    gateway
        .after("the configuration is reloaded", || {
            gateway.write_config(&format!("rules: [{{ path: /*, allow: Viewer }}]\n{TLS}"));
        })
        .await;
    assert_eq!(h2.send(gateway.get("/x")).await.unwrap().status, 401);
}

#[tokio::test]
async fn a_stopping_gateway_says_goaway_and_finishes_what_is_under_way() {
    let upstream = RawUpstream::start().await;
    let (mut gateway, client) = start_at(upstream.address, "").await;
    let mut idle = RawH2::connect(&gateway, &client).await;
    idle.send(frame(PING, 0, 0, b"12345678")).await;
    idle.next_of(&[PING]).await.unwrap();
    let h2 = H2::connect(&gateway, &client).await;
    let asking = tokio::spawn({
        let call = gateway.get("/x");
        async move { h2.send(call).await }
    });
    let mut theirs = upstream.accept().await;
    theirs.head().await;
    gateway.signal("TERM");
    gateway.wait_for_line(0, |line| line.contains("stopping")).await;
    assert_eq!(idle.next_of(&[GOAWAY]).await.unwrap().kind, GOAWAY);
    theirs.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast").await;
    assert_eq!(asking.await.unwrap().unwrap().text(), "last");
    assert_eq!(gateway.ended().await, Some(0));
    assert!(gateway.lines().iter().any(|line| line.contains("\"stopped\"")), "{:#?}", gateway.lines());
}

#[tokio::test]
async fn curl_nghttp_and_h2load_speak_with_it() {
    let upstream = Upstream::start().await;
    let (gateway, _) = start(&upstream, "log: { format: json, access: false }\n").await;
    let port = gateway.address.port();
    let url = format!("https://localhost:{port}/x");
    let ca = gateway.folder.path().join("ca.pem").to_str().unwrap().to_owned();
    let run = |program: std::path::PathBuf, arguments: Vec<String>| async move {
        let run = move || Command::new(program).args(arguments).output().unwrap();
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match program("curl") {
        None => skip("HTTP/2 by curl", "curl"),
        Some(curl) => {
            let resolve = format!("localhost:{port}:127.0.0.1");
            let common = ["-sS", "--http2", "--max-time", "20", "--cacert", &ca, "--resolve", &resolve];
            let told = run(
                curl.clone(),
                strings(&[&common[..], &["-w", " %{http_version} %{http_code}", &url]].concat()),
            )
            .await;
            assert_eq!(told, "upstream 2 200");
            let post = ["-w", " %{http_version} %{http_code}", "--data-binary", "a=b", &url];
            assert_eq!(run(curl, strings(&[&common[..], &post].concat())).await, "upstream 2 200");
            assert_eq!(upstream.last().body, "a=b");
        }
    }
    match program("nghttp") {
        None => skip("HTTP/2 by nghttp", "nghttp (nghttp2-client)"),
        Some(nghttp) => {
            let told = run(nghttp, strings(&["-nv", "--no-dep", &url])).await;
            assert!(told.contains(":status: 200") && told.contains("END_STREAM"), "{told}");
        }
    }
    match program("h2load") {
        None => skip("HTTP/2 by h2load", "h2load (nghttp2-client)"),
        Some(h2load) => {
            let told = run(h2load, strings(&["-n", "2000", "-c", "4", "-m", "20", &url])).await;
            assert!(told.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{told}");
        }
    }
}
