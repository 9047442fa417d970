//! One request in, one request out: what two parsers could read in two ways is refused, the connection
//! is closed, and nothing behind it is ever executed. Which products' advisories this answers is in `advisories`.

use crate::harness::{Gateway, Raw, RawUpstream, Upstream, field, status_of};

const OPEN: &str = "rules: [{ path: /*, allow: public }]";

/// What follows every refused request: if it is ever carried out, somebody's second request was smuggled.
const SECOND: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends `bytes`; there must be one answer, with this status, in the gateway's words, and then the end.
async fn is_refused(gateway: &Gateway, bytes: &[u8], status: u16) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    let mut client = gateway.connect().await;
    // The gateway may have heard enough before the end.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, bytes).await;
    let Some(head) = client.try_until("\r\n\r\n").await else { panic!("no answer to {shown:?}") };
    assert_eq!(status_of(&head), status, "{shown:?}: {head}");
    assert_eq!(field(&head, "content-type"), Some("application/json"), "{shown:?}");
    assert_eq!(field(&head, "cache-control"), Some("no-store"), "{shown:?}");
    assert_eq!(field(&head, "connection"), Some("close"), "{shown:?}: {head}");
    let length = field(&head, "content-length").unwrap().parse().unwrap();
    let body: serde_json::Value = serde_json::from_slice(&client.take(length).await).unwrap();
    assert!(body["error"].is_string(), "{shown:?}: {body}");
    let rest = client.rest().await;
    assert_eq!(rest, "", "{shown:?}: more than one answer");
}

#[tokio::test]
async fn a_request_that_could_be_read_as_two_is_refused_and_the_second_never_executed() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    // Each row: the head, CR LF CR LF included, and what keeps the row from being forwarded.
    let rows: &[(&str, &str)] = &[
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "CL.TE",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            "TE.CL",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
            "TE.TE",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "TE.TE",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "last is not chunked",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
            "a second coding",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "chunked twice",
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", "no chunked"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", "identity"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\nContent-Length: 0\r\n\r\n", "unknown coding"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "quoted"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", "parameter"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", "empty"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "vertical tab"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            "space before the colon",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "space before the name",
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "folded"),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tTransfer-Encoding: chunked\r\n\r\n", "folded with a tab"),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n", "bare CR"),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "bare LF"),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 0\n\n", "LF for CR LF"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", "LF for the last CR LF"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n", "CR for the empty line"),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "chunked in 1.0"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", "two alike"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-length: 38\r\n\r\n", "two unlike"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n", "a list"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n", "a sign"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", "negative"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x0\r\n\r\n", "hexadecimal"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0 0\r\n\r\n", "a blank within"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1e1\r\n\r\n", "an exponent"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", "overflow"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", "empty"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\n", "space before the colon"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 0\r\n\r\n", "tab before the colon"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent\0-Length: 0\r\n\r\n", "NUL in a name"),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", "NUL in a value"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: b\r\n\r\n", "a name that is no token"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX(y): b\r\n\r\n", "a name that is no token"),
        ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", "no colon"),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", "no name"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", "DEL"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[2J\r\n\r\n", "a control character"),
        ("GET / HTTP/1.1\r\n\r\n", "no Host"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "two Hosts"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "two Hosts"),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "two Hosts in 1.0"),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n", "empty Host"),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "a list of Hosts"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "a blank in Host"),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", "user information"),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "a path in Host"),
        ("GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", "a query in Host"),
        ("GET / HTTP/1.1\r\nHost: a#b\r\n\r\n", "a fragment in Host"),
        ("GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", "a backslash in Host"),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", "a port that is none"),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "half a bracket"),
        ("GET / HTTP/1.1\r\nHost: \u{e9}.example\r\n\r\n", "a name that is no name"),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "absolute-form of another host"),
        ("GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", "absolute-form of another port"),
        ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", "absolute-form with a user"),
        ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", "absolute-form of no host"),
        ("GET http://a/ HTTP/1.0\r\n\r\n", "absolute-form without a Host to compare"),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "another scheme"),
        ("GET //a/x y HTTP/1.1\r\nHost: a\r\n\r\n", "three blanks"),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", "no slash"),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "asterisk for GET"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "asterisk"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "CONNECT"),
        ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT of a path"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "TRACE"),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n", "lower case"),
        ("Get / HTTP/1.1\r\nHost: a\r\n\r\n", "mixed case"),
        ("G\u{c9}T / HTTP/1.1\r\nHost: a\r\n\r\n", "a method that is no token"),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "a tab for a blank"),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "two blanks"),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", "two blanks"),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "a blank before"),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "an empty line before"),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "a blank behind"),
        ("GET / HTTP/1.1 x\r\nHost: a\r\n\r\n", "a word behind"),
        ("GET /\r\n\r\n", "HTTP/0.9"),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", "HTTP/0.9 by name"),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", "HTTP/1.2"),
        ("GET / HTTP/11\r\nHost: a\r\n\r\n", "HTTP/11"),
        ("GET / HTTP/1.01\r\nHost: a\r\n\r\n", "HTTP/1.01"),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", "HTTP/2 in clear"),
        ("GET / HTTP/3\r\nHost: a\r\n\r\n", "HTTP/3 by name"),
        ("GET / ICAP/1.1\r\nHost: a\r\n\r\n", "another protocol"),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", "protocol in lower case"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "the preface of HTTP/2"),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n", "TLS"),
        ("SSH-2.0-x\r\n\r\n", "SSH"),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", "a fragment"),
        ("GET /?a#b HTTP/1.1\r\nHost: a\r\n\r\n", "a fragment behind a query"),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", "NUL in the target"),
        ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", "a control character in the target"),
        ("GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", "DEL in the target"),
    ];
    for (request, why) in rows {
        is_refused(&gateway, format!("{request}{SECOND}").as_bytes(), 400).await;
        assert_eq!(upstream.count(), 0, "the upstream saw something: {why}");
        // Behind an honest request the same bytes fare no better.
        let mut client = gateway.connect().await;
        client.send(format!("GET /honest HTTP/1.1\r\nHost: a\r\n\r\n{request}{SECOND}")).await;
        assert_eq!(status_of(&client.message().await.0), 200, "{why}");
        assert_eq!(status_of(&client.message().await.0), 400, "{why}");
        assert_eq!(client.rest().await, "", "{why}");
        assert!(upstream.seen().iter().all(|seen| seen.target == "/honest"), "{why}");
        upstream.forget();
    }
    assert_eq!(gateway.get("/").send().await.status, 200);
}

#[tokio::test]
async fn a_malformed_chunk_ends_the_request_and_the_connection() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    for body in [
        "zz\r\n",
        "\r\n0\r\n\r\n",
        "-1\r\n",
        "+1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        " 1\r\nx\r\n0\r\n\r\n",
        "1 \r\nx\r\n0\r\n\r\n",
        "1\t;a\r\nx\r\n0\r\n\r\n",
        "1\nx\r\n0\r\n\r\n",
        "1\r\nx\n0\r\n\r\n",
        "1\r\nxy\r\n0\r\n\r\n",
        "1\rX\r\nx\r\n0\r\n\r\n",
        "1;a\nb\r\nx\r\n0\r\n\r\n",
        "1;a\rb\r\nx\r\n0\r\n\r\n",
        "1;\0\r\nx\r\n0\r\n\r\n",
        "0\r\nX: y\nA: b\r\n\r\n",
        "0\r\n X: y\r\n\r\n",
        "0\r\nX: y\r\n z\r\n\r\n",
        "0\r\n\rX",
        "0\n\n",
        "10000000000000001\r\nx\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\nx\r\n0\r\n\r\n",
        "0\r\nno colon\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\nX: \0\r\n\r\n",
    ] {
        let request =
            format!("POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}{SECOND}");
        is_refused(&gateway, request.as_bytes(), 400).await;
        assert_eq!(upstream.count(), 0, "{body:?}");
    }
    // Many small extensions are no way to make the gateway work for nothing.
    let mut endless = "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    endless.push_str(&format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(10_000)));
    is_refused(&gateway, (endless + SECOND).as_bytes(), 400).await;
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn chunk_extensions_are_read_over_and_do_not_go_on() {
    let (upstream, gateway) = {
        let upstream = RawUpstream::start().await;
        let gateway = Gateway::start_at(upstream.address, OPEN).await;
        (upstream, gateway)
    };
    let mut client = gateway.connect().await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"0\";b\r\nhello\r\n000;x\r\n\r\n")
        .await;
    let mut server = upstream.accept().await;
    server.head().await;
    assert_eq!(server.until("0\r\n\r\n").await, "5\r\nhello\r\n0\r\n\r\n");
}

#[tokio::test]
async fn paths_that_upstreams_could_read_differently_are_refused() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    for path in [
        "/a/../b",
        "/..",
        "/a/.",
        "/./a",
        "/%2e%2e/a",
        "/a/%2E./b",
        "/a/.%2e",
        "/%252e%252e/",
        "/a\\b",
        "/a%5cb",
        "/a%5Cb",
        "/a%2fb",
        "/a%2Fb",
        "/a%252fb",
        "/%00",
        "/a%0ab",
        "/a%0d",
        "/a%7f",
        "/a%1f",
        "/%",
        "/%4",
        "/%zz",
        "/a%",
        "/%c0%af",
        "/%c0%ae%c0%ae/",
        "/%ff",
        "/%ed%a0%80",
        "/..;/a",
        "/a/..;x/b",
        "/%2e%2e%3b/",
        "/\u{e9}",
        "/a/..%00/",
        "/a/%2e%2e%2f",
        "/a/.;/b",
        "/a/%ef%bc%8e%ef%bc%8e/b",
    ] {
        let mut client = gateway.connect().await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        let (head, body) = client.message().await;
        assert_eq!(status_of(&head), 400, "{path}");
        assert!(body.contains("\"error\""), "{path}: {body}");
        assert_eq!(upstream.count(), 0, "{path}");
    }
}

#[tokio::test]
async fn a_request_arrives_whole_wherever_its_bytes_are_cut() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    let request = "POST /x?y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n\
                   3;e\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n";
    let mut client = gateway.connect().await;
    for cut in 1..request.len() {
        client.send(&request[..cut]).await;
        // A turn of the gateway's between the two: its answer to another connection.
        assert_eq!(gateway.admin("GET", "/livez").send().await.status, 200);
        client.send(&request[cut..]).await;
        let (head, body) = client.message().await;
        assert_eq!((status_of(&head), body.as_str()), (200, "upstream"), "{cut}");
        assert_eq!(upstream.last().body, "abcde", "{cut}");
    }
    // And byte by byte.
    for byte in request.bytes() {
        client.send([byte]).await;
    }
    assert_eq!(client.message().await.1, "upstream");
    assert_eq!(upstream.count(), request.len());
}

#[tokio::test]
async fn what_is_too_large_or_too_many_has_a_status_of_its_own() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        &format!(
            "{OPEN}\nlimits: {{ header_bytes: 8KiB, target_bytes: 1KiB, headers: 20, body_bytes: 1KiB }}"
        ),
    )
    .await;
    let long = |length| "x".repeat(length);
    let lines = |count: usize| "X: y\r\n".repeat(count);
    for (request, status) in [
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", long(1024)), 414),
        (format!("GET /?{} HTTP/1.1\r\nHost: a\r\n\r\n", long(1023)), 414),
        (format!("GET /{}", long(10_000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", long(8192)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", long(10_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}: y\r\n\r\n", long(8192)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines(20)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}", lines(2000)), 431),
    ] {
        is_refused(&gateway, (request + SECOND).as_bytes(), status).await;
        assert_eq!(upstream.count(), 0);
    }
    for (request, seen) in [
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", long(1023)), 1),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines(19)), 2),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", long(8192 - 32)), 3),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n{}", long(1024)), 4),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n{}\r\n0\r\n\r\n",
                long(1024)
            ),
            5,
        ),
    ] {
        let mut client = gateway.connect().await;
        client.send(&request).await;
        assert_eq!(status_of(&client.head().await), 200, "{request}");
        assert_eq!(upstream.count(), seen);
    }
    for (framing, body) in [
        ("Content-Length: 1025", String::new()),
        ("Content-Length: 99999999999", String::new()),
        ("Transfer-Encoding: chunked", format!("401\r\n{}\r\n0\r\n\r\n", long(1025))),
        ("Transfer-Encoding: chunked", format!("400\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", long(1024))),
    ] {
        let mut client = gateway.connect().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")).await;
        let (head, text) = client.message().await;
        assert_eq!(
            (status_of(&head), text.as_str()),
            (413, r#"{"error":"Request body too large"}"#),
            "{framing}"
        );
        assert_eq!(upstream.count(), 5, "{framing}");
    }
}

#[tokio::test]
async fn a_slow_head_is_a_408_and_an_idle_connection_is_closed_without_a_word() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        &format!("{OPEN}\nlimits: {{ header_timeout: 300ms, idle_timeout: 600ms }}"),
    )
    .await;
    is_refused(&gateway, b"G", 408).await;
    is_refused(&gateway, b"GET / HTTP/1.1\r\nHost: a\r\nX:", 408).await;
    // Whoever trickles is no faster than whoever stops.
    let mut client = gateway.connect().await;
    client.send("GET / HTTP/1.1\r\n").await;
    let (mut reads, mut writes) = client.stream.into_split();
    let trickle = tokio::spawn(async move {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            tick.tick().await;
            if tokio::io::AsyncWriteExt::write_all(&mut writes, b"X: y\r\n").await.is_err() {
                return;
            }
        }
    });
    let mut answer = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut reads, &mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    trickle.abort();
    // Nothing at all, and nothing more.
    let mut silent = gateway.connect().await;
    assert_eq!(silent.rest().await, "");
    let mut client = gateway.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.message().await.1, "upstream");
    assert_eq!(client.rest().await, "");
    gateway.metric_becomes("portcullis_connections", 0.0).await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &format!("{OPEN}\nlimits: {{ connections: 3 }}")).await;
    let mut held: Vec<Raw> = Vec::new();
    for _ in 0..3 {
        let mut client = gateway.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.message().await.1, "upstream");
        held.push(client);
    }
    let mut client = gateway.connect().await;
    let (head, body) = client.message().await;
    assert_eq!((status_of(&head), field(&head, "retry-after")), (503, Some("1")));
    assert!(body.contains("\"error\""));
    assert_eq!(client.rest().await, "");
    drop(held);
    gateway.metric_becomes("portcullis_connections", 0.0).await;
    assert_eq!(gateway.get("/").send().await.status, 200);
}

#[tokio::test]
async fn what_is_left_of_a_body_that_nobody_read_is_never_taken_for_a_request() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /no, allow: Editor }, { path: /smuggled, allow: public }, { path: /open, allow: public }]",
    )
    .await;
    let length = SECOND.len();
    for head in [
        format!("POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"),
        format!("POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", length * 100_000),
        format!("GET /no HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"),
        format!("POST /no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"),
        format!("POST /no HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n"),
        format!("POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"),
        format!("PUT /auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"),
        format!("GET /.well-known/jwks.json HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"),
        format!("GET /open HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"),
        format!(
            "GET /open HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: {length}\r\n\r\n"
        ),
    ] {
        for split in [false, true] {
            let mut client = gateway.connect().await;
            if split {
                client.send(&head).await;
                assert_ne!(gateway.get("/no").send().await.status, 200);
                let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, SECOND.as_bytes()).await;
            } else {
                client.send(format!("{head}{SECOND}")).await;
            }
            let status = loop {
                let answer = client.head().await;
                if status_of(&answer) >= 200 {
                    let length = field(&answer, "content-length").unwrap().parse().unwrap();
                    client.take(length).await;
                    break status_of(&answer);
                }
            };
            // Whether the connection goes on or not: what comes next is the answer to what is sent next.
            let _ = tokio::io::AsyncWriteExt::write_all(
                &mut client.stream,
                b"GET /open HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            )
            .await;
            drop(tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await);
            let rest = client.rest().await;
            assert!(rest.matches("HTTP/1.1 ").count() <= 1, "{head}: {status}, then {rest}");
            assert!(upstream.seen().iter().all(|seen| seen.target != "/smuggled"), "{head}");
        }
    }
}

#[tokio::test]
async fn nothing_is_executed_behind_the_last_request_of_a_connection() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    for last in [
        "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /last HTTP/1.0\r\nHost: a\r\n\r\n",
        "POST /last HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let answers = gateway.raw(format!("{last}{SECOND}").as_bytes()).await;
        assert_eq!(answers.matches("HTTP/1.").count(), 1, "{answers}");
        assert_eq!(upstream.last().target, "/last");
    }
    assert_eq!(upstream.count(), 3);
}
