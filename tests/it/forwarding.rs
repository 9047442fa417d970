//! What is allowed reaches the upstream as it was sent, and what the upstream says comes back, whatever
//! either side does in between.

use std::net::SocketAddr;

use crate::harness::{Gateway, Raw, RawUpstream, Upstream, field, status_of};

const OPEN: &str = "rules: [{ path: /*, allow: public }]";

/// A gateway that lets everybody through to `upstream`, with further lines in its file.
async fn open(upstream: SocketAddr, extra: &str) -> Gateway {
    Gateway::start_at(upstream, &format!("{OPEN}\n{extra}")).await
}

/// A gateway, an upstream in the test's hands, and a connection to the gateway.
async fn three(extra: &str) -> (RawUpstream, Gateway, Raw) {
    let upstream = RawUpstream::start().await;
    let gateway = open(upstream.address, extra).await;
    let client = gateway.connect().await;
    (upstream, gateway, client)
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: cms.example\r\n\r\n")
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn path_and_query_go_on_byte_for_byte_in_origin_form() {
    let (upstream, _gateway, mut client) = three("").await;
    let mut server = None;
    for (target, forwarded) in [
        ("/", "/"),
        ("/?", "/?"),
        ("/a?b=c&d", "/a?b=c&d"),
        ("/a//b/", "/a//b/"),
        ("/%41%7e~", "/%41%7e~"),
        ("/%e2%82%ac", "/%e2%82%ac"),
        ("/:@!$&'()*+,;=-._~", "/:@!$&'()*+,;=-._~"),
        ("/a?/../%2e%2e//?x=%00%zz%", "/a?/../%2e%2e//?x=%00%zz%"),
        ("/a?q[]=1&q[x]=2|{}^`\\'", "/a?q[]=1&q[x]=2|{}^`\\'"),
        ("http://cms.example/x?y=%7E", "/x?y=%7E"),
        ("HTTP://CMS.example/x", "/x"),
        ("https://cms.example/s", "/s"),
        ("http://cms.example", "/"),
        ("http://cms.example?q", "/?q"),
    ] {
        client.send(get(target)).await;
        if server.is_none() {
            server = Some(upstream.accept().await);
        }
        let server = server.as_mut().unwrap();
        let Some(head) = server.try_until("\r\n\r\n").await else { panic!("{target} did not arrive") };
        assert_eq!(head.lines().next().unwrap(), format!("GET {forwarded} HTTP/1.1"), "{target}");
        assert_eq!(field(&head, "host"), Some("cms.example"), "{target}");
        server.send(OK).await;
        assert_eq!(client.message().await.1, "ok", "{target}");
    }
}

#[tokio::test]
async fn every_byte_of_a_target_is_forwarded_as_it_is_or_refused_in_the_gateways_own_words() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    for prefix in ["/a", "/a?"] {
        for byte in 1..=255_u8 {
            let target = [prefix.as_bytes(), &[byte], b"b"].concat();
            let mut client = gateway.connect().await;
            let request =
                [b"GET ", &target[..], b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"].concat();
            client.send(&request).await;
            let before = upstream.count();
            let Some(head) = client.try_until("\r\n\r\n").await else {
                panic!("{prefix} {byte:#x}: no answer");
            };
            let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            let body = String::from_utf8(client.take(length).await).unwrap();
            match status_of(&head) {
                200 => assert_eq!(upstream.last().target.as_bytes(), target, "{byte:#x}"),
                400 => {
                    assert!(body.contains("\"error\""), "{prefix} {byte:#x}: {head}{body}");
                    assert_eq!(upstream.count(), before);
                    // What a query holds is the upstream's affair, as long as a line can hold it.
                    assert!(
                        prefix == "/a" || byte <= b' ' || b"#\"<>".contains(&byte) || byte >= 127,
                        "{byte:#x} refused in a query"
                    );
                }
                other => panic!("{byte:#x}: {other}"),
            }
        }
    }
}

#[tokio::test]
async fn the_host_is_kept_or_made_the_upstreams_and_is_never_missing() {
    for (extra, request, host) in [
        ("", "GET / HTTP/1.1\r\nHost: Cms.Example:81\r\n\r\n", Some("Cms.Example:81")),
        ("", "GET / HTTP/1.0\r\n\r\n", None),
        ("upstream: { url: \"http://UPSTREAM\", host: upstream }", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
    ] {
        let (upstream, _gateway, mut client) = three(extra).await;
        client.send(request).await;
        let mut server = upstream.accept().await;
        let head = server.head().await;
        let own = upstream.address.to_string();
        assert_eq!(field(&head, "host"), Some(host.unwrap_or(&own)), "{request}");
    }
}

#[tokio::test]
async fn every_method_that_may_pass_does() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    for method in
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "MKCOL", "PURGE", "M-SEARCH"]
    {
        let answer = gateway.request(method, "/x").send().await;
        assert_eq!(answer.status, 200, "{method}");
        assert_eq!(upstream.last().method, method);
    }
}

#[tokio::test]
async fn answers_without_a_body_stay_as_they_are_and_the_connection_goes_on() {
    let (upstream, _gateway, mut client) = three("").await;
    let mut server = None;
    for (method, answer, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", Some("1234")),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", None),
        // A length is allowed here and says nothing (RFC 9110 §15.4.5).
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", None),
        ("DELETE", "HTTP/1.1 204 No Content\r\n\r\n", None),
    ] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        if server.is_none() {
            server = Some(upstream.accept().await);
        }
        let server = server.as_mut().unwrap();
        server.head().await;
        server.send(answer).await;
        let head = client.head().await;
        assert_eq!(head.lines().next(), answer.lines().next());
        assert_eq!(field(&head, "content-length"), length, "{method} {answer}");
    }
    client.send(get("/last")).await;
    let server = server.as_mut().unwrap();
    assert!(server.head().await.starts_with("GET /last "));
    server.send(OK).await;
    assert_eq!(client.message().await.1, "ok", "nothing stood between the answers");
}

#[tokio::test]
async fn a_body_goes_on_whole_with_the_framing_that_it_came_with() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for (framing, body) in [
            ("Content-Length: 5", "hello"),
            ("Content-Length: 0", ""),
            ("Transfer-Encoding: chunked", "2\r\nhe\r\n3;ext=\"1\"\r\nllo\r\n0\r\n\r\n"),
            ("transfer-encoding: Chunked", "0\r\n\r\n"),
        ] {
            let mut client = gateway.connect().await;
            client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")).await;
            let head = client.head().await;
            assert_eq!(status_of(&head), 200, "{method} {framing}");
            let seen = upstream.last();
            let expected = if body.contains("he") { "hello" } else { "" };
            assert_eq!(seen.body, expected, "{method} {framing}");
            let fixed = framing.starts_with('C');
            assert_eq!(seen.header("content-length").is_some(), fixed, "{method} {framing}");
            assert_eq!(seen.header("transfer-encoding").is_some(), !fixed, "{method} {framing}");
        }
    }
}

#[tokio::test]
async fn a_chunked_answer_comes_back_whole_and_each_event_before_the_next_is_sent() {
    let (upstream, _gateway, mut client) = three("").await;
    client.send(get("/events")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!(field(&head, "transfer-encoding"), Some("chunked"));
    for number in 0..5 {
        let event = format!("data: {number}\n\n");
        server.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
        client.until(&format!("data: {number}\n\n\r\n")).await;
    }
    server.send("0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_chunk_of_an_upload_is_with_the_upstream_before_the_next_is_sent() {
    let (upstream, _gateway, mut client) = three("").await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    for number in 0..5 {
        client.send(format!("3\r\n<{number}>\r\n")).await;
        server.until(&format!("<{number}>\r\n")).await;
    }
    client.send("0\r\n\r\n").await;
    server.until("0\r\n\r\n").await;
    server.send(OK).await;
    assert_eq!(client.message().await.1, "ok");
}

const LARGE: usize = 100 * 1024 * 1024;

/// Writes until nobody takes anything any more for a while; returns how much went.
async fn fill(stream: &mut tokio::net::TcpStream, at_most: usize) -> usize {
    use tokio::io::AsyncWriteExt;
    let block = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    // Half a second without progress is what "stalled" means here; nothing is asserted about time.
    let pause = std::time::Duration::from_millis(500);
    while sent < at_most {
        let length = block.len().min(at_most - sent);
        match tokio::time::timeout(pause, stream.write(&block[..length])).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
    }
    sent
}

async fn drink(stream: &mut tokio::net::TcpStream, mut left: usize) {
    use tokio::io::AsyncReadExt;
    let mut space = vec![0; 256 * 1024];
    while left > 0 {
        let most = left.min(space.len());
        let length = tokio::time::timeout(crate::harness::PATIENCE, stream.read(&mut space[..most])).await;
        let length = length.expect("it stalls").unwrap();
        assert!(length > 0, "it ended {left} bytes early");
        left -= length;
    }
}

#[tokio::test]
async fn a_large_upload_waits_for_its_receiver_and_not_in_memory() {
    use tokio::io::AsyncWriteExt;
    let (upstream, gateway, mut client) = three("").await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    let before = gateway.resident();
    let sent = fill(&mut client.stream, LARGE).await;
    assert!(sent < LARGE / 2, "{sent} bytes went though nobody took them");
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more");
    let (mut client_reads, mut client_writes) = client.stream.into_split();
    let rest = tokio::spawn(async move {
        client_writes.write_all(&vec![b'x'; LARGE - sent]).await.unwrap();
        client_writes
    });
    // Some of it may have come with the head.
    let mut left = LARGE;
    let with_head = server.held();
    left -= with_head;
    drink(&mut server.stream, left).await;
    server.send(OK).await;
    let _writes = rest.await.unwrap();
    let mut answer = [0; 15];
    tokio::io::AsyncReadExt::read_exact(&mut client_reads, &mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more at the end");
}

#[tokio::test]
async fn a_large_download_waits_for_its_receiver_and_not_in_memory() {
    use tokio::io::AsyncWriteExt;
    let (upstream, gateway, mut client) = three("").await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    let before = gateway.resident();
    server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")).await;
    client.head().await;
    let sent = fill(&mut server.stream, LARGE).await;
    assert!(sent < LARGE / 2, "{sent} bytes went though nobody took them");
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more");
    let rest = tokio::spawn(async move {
        server.stream.write_all(&vec![b'x'; LARGE - sent]).await.unwrap();
        server
    });
    let with_head = client.held();
    drink(&mut client.stream, LARGE - with_head).await;
    let mut server = rest.await.unwrap();
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more at the end");
    client.clear();
    client.send(get("/again")).await;
    server.head().await;
    server.send(OK).await;
    assert_eq!(client.message().await.1, "ok", "both connections go on");
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_to_go_on_or_refused() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(
        upstream.address,
        "rules: [{ path: /open, allow: public }, { path: /closed, allow: Editor }]",
    )
    .await;
    let ask = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    };
    let mut client = gateway.connect().await;
    client.send(ask("/open")).await;
    assert_eq!(status_of(&client.head().await), 100);
    client.send("body").await;
    let mut server = upstream.accept().await;
    let (head, body) = server.message().await;
    assert_eq!((field(&head, "expect"), body.as_str()), (None, "body"));
    server.send(OK).await;
    let (head, body) = client.message().await;
    assert_eq!((status_of(&head), body.as_str()), (200, "ok"));

    let mut client = gateway.connect().await;
    client.send(ask("/closed")).await;
    assert_eq!(status_of(&client.head().await), 401, "the final status, and no 100 before it");
}

#[tokio::test]
async fn trailers_pass_both_ways_without_what_the_decision_rested_on() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(
        upstream.address,
        &format!("{OPEN}\nidentity: {{ secret: {{ header: X-Gateway-Secret, value: s3cret }} }}"),
    )
    .await;
    let bad = [
        "X-Auth-User: root",
        "x_auth_role: SuperAdmin",
        "X-Gateway-Secret: guess",
        "Authorization: Bearer x",
        "Cookie: a=b",
        "Set-Cookie: a=b",
        "Content-Length: 3",
        "Transfer-Encoding: chunked",
        "Host: evil",
        "X-Forwarded-For: 1.1.1.1",
        "Connection: close",
        "X-HTTP-Method-Override: DELETE",
        "Content-Type: text/html",
        "Trailer: x",
    ];
    let names: Vec<&str> = bad.iter().map(|line| line.split(':').next().unwrap()).collect();
    let trailer = format!("Trailer: X-Sum, {}\r\n", names.join(", "));
    let body = format!("2\r\nhi\r\n0\r\nX-Sum: 42\r\n{}\r\n\r\n", bad.join("\r\n"));
    let mut client = gateway.connect().await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n{trailer}Transfer-Encoding: chunked\r\n\r\n{body}"
        ))
        .await;
    let mut server = upstream.accept().await;
    let head = server.head().await;
    assert_eq!(field(&head, "te"), Some("trailers"));
    server.until("2\r\nhi\r\n0\r\n").await;
    let trailers = server.head().await.to_lowercase();
    assert_eq!(trailers, "x-sum: 42\r\n\r\n");
    server.send(format!("HTTP/1.1 200 OK\r\n{trailer}Transfer-Encoding: chunked\r\n\r\n{body}")).await;
    client.head().await;
    client.until("2\r\nhi\r\n0\r\n").await;
    assert_eq!(client.head().await.to_lowercase(), "x-sum: 42\r\n\r\n");
}

#[tokio::test]
async fn an_upstream_that_fails_before_its_answer_is_a_502() {
    for (said, why) in [
        ("", "closes at once"),
        ("HTTP/1.1 200 OK\r\nContent-", "closes within the head"),
        ("garbage\r\n\r\n", "is no HTTP"),
        ("HTTP/1.1 2 OK\r\n\r\n", "has no status"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "has no length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "has two lengths"),
        ("HTTP/1.1 200 OK\r\nbad header: x\r\n\r\n", "has a malformed header"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "is another protocol"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx", "has another coding"),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "switches"),
    ] {
        let (upstream, gateway, mut client) = three("").await;
        client.send(get("/")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send(said).await;
        drop(server);
        let (head, body) = client.message().await;
        assert_eq!(status_of(&head), 502, "{why}");
        assert_eq!(body, r#"{"error":"Upstream unavailable"}"#, "{why}");
        assert!(upstream.is_untouched().await, "a fresh connection's failure is not repeated: {why}");
        assert_eq!(gateway.metric("portcullis_upstream_retries_total").await, 0.0, "{why}");
        // The client's connection is none the worse for it.
        client.send(get("/again")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send(OK).await;
        assert_eq!(client.message().await.1, "ok", "{why}");
    }
}

#[tokio::test]
async fn huge_headers_of_the_upstream_are_passed_or_a_502_and_never_a_hang() {
    for (size, status) in [(60_000, 200), (1_000_000, 502), (10_000_000, 502)] {
        let (upstream, gateway, mut client) = three("").await;
        client.send(get("/")).await;
        let before = gateway.resident();
        let mut server = upstream.accept().await;
        server.head().await;
        let huge = format!("HTTP/1.1 200 OK\r\nX-Huge: {}\r\nContent-Length: 2\r\n\r\nok", "x".repeat(size));
        // The gateway may hang up before it has taken all.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut server.stream, huge.as_bytes()).await;
        assert_eq!(status_of(&client.head().await), status, "{size}");
        let grown = gateway.resident().saturating_sub(before);
        // A first request takes some 7 MiB by itself.
        assert!(grown < 12 * 1024, "{size} bytes of headers took {grown} KiB");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_complete() {
    for (head, body, complete) in [
        ("Content-Length: 10", "half", false),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n", false),
        ("Transfer-Encoding: chunked", "8\r\nhalf", false),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n0\r\n", false),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\nzz\r\n", false),
        ("X-Until: close", "half", true),
    ] {
        let (upstream, _gateway, mut client) = three("").await;
        client.send(get("/")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}")).await;
        client.until("half").await;
        drop(server);
        let rest = client.rest_of(complete).await;
        assert_eq!(rest.contains("0\r\n\r\n"), complete, "{head}: {rest:?}");
        assert!(!rest.contains("HTTP/1.1"), "{head}: {rest:?}");
    }
    // A reset instead of an end, where nothing else says how long the answer is.
    let (upstream, _gateway, mut client) = three("").await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\n\r\nhalf").await;
    client.until("half").await;
    server.reset();
    assert!(!client.rest().await.contains("0\r\n\r\n"));
}

#[tokio::test]
async fn an_upload_that_breaks_off_never_looks_complete() {
    for (head, body) in [
        ("Content-Length: 10", "half"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: chunked", "8\r\nhalf"),
    ] {
        let (upstream, gateway, mut client) = three("").await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{body}")).await;
        let mut server = upstream.accept().await;
        server.until("half").await;
        drop(client);
        let rest = server.rest().await;
        assert!(!rest.contains("0\r\n\r\n"), "{head}: {rest:?}");
        gateway.metric_becomes("portcullis_connections", 0.0).await;
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_reaches_the_client() {
    for (close, whole) in [("", true), ("Connection: close\r\n", true), ("Connection: close\r\n", false)] {
        let (upstream, gateway, mut client) = three("").await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin").await;
        let mut server = upstream.accept().await;
        server.until("begin").await;
        server.send(format!("HTTP/1.1 413 Content Too Large\r\n{close}Content-Length: 3\r\n\r\nbig")).await;
        if !close.is_empty() {
            drop(server);
        }
        if whole {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, &vec![b'x'; 1_000_000 - 5]).await;
        }
        let (head, body) = client.message().await;
        assert_eq!((status_of(&head), body.as_str()), (413, "big"));
        drop(client);
        gateway.metric_becomes("portcullis_connections", 0.0).await;
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_in_the_middle_of_a_large_upload() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /closed, allow: Editor }, { path: /open, allow: public }]\nlimits: { body_bytes: 1MiB }",
    )
    .await;
    for (path, status) in [("/closed", 401), ("/open", 413)] {
        let mut client = gateway.connect().await;
        let length = 20 * 1024 * 1024;
        client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).await;
        // As many clients do: everything is written before anything is read.
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..length / block.len() {
            if tokio::io::AsyncWriteExt::write_all(&mut client.stream, &block).await.is_err() {
                break;
            }
        }
        assert_eq!(status_of(&client.head().await), status, "{path}");
        assert_eq!(upstream.count(), 0);
    }
}

#[tokio::test]
async fn interim_answers_of_the_upstream_do_not_stand_for_the_final_one() {
    let (upstream, _gateway, mut client) = three("").await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server
        .send(format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n{OK}"
        ))
        .await;
    loop {
        let head = client.head().await;
        if status_of(&head) >= 200 {
            assert_eq!(status_of(&head), 200);
            break;
        }
    }
    assert_eq!(client.take(2).await, b"ok");
}

#[tokio::test]
async fn an_answer_without_length_ends_with_its_connection() {
    for (version, chunked) in [("1.1", true), ("1.0", false)] {
        let (upstream, _gateway, mut client) = three("").await;
        client.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\n\r\nto the end").await;
        drop(server);
        let head = client.head().await;
        assert_eq!(field(&head, "transfer-encoding").is_some(), chunked, "{head}");
        let body = if chunked { client.until("0\r\n\r\n").await } else { client.rest().await };
        assert!(body.contains("to the end"), "{body}");
    }
}

#[tokio::test]
async fn what_an_upstream_says_beyond_its_answer_reaches_nobody() {
    let upstream = RawUpstream::start().await;
    let gateway = open(upstream.address, "workers: 1").await;
    for (split, pipelined) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut client = gateway.connect().await;
        let two = if pipelined { get("/1") + &get("/2") } else { get("/1") };
        client.send(two).await;
        let mut server = upstream.accept().await;
        server.until("/1").await;
        let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        if split {
            server.send(OK).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut server.stream, smuggled.as_bytes()).await;
        } else {
            server.send(format!("{OK}{smuggled}")).await;
        }
        assert_eq!(client.message().await.1, "ok");
        if !pipelined {
            client.send(get("/2")).await;
        }
        let mut other = upstream.accept().await;
        assert!(other.head().await.starts_with("GET /2 "));
        other.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngood").await;
        assert_eq!(client.message().await.1, "good", "split: {split}, pipelined: {pipelined}");
    }
}

#[tokio::test]
async fn an_answer_with_two_framings_is_read_in_one_way_only() {
    let (upstream, _gateway, mut client) = three("").await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    let head = client.head().await;
    if status_of(&head) == 200 {
        assert_eq!(field(&head, "content-length"), None, "{head}");
        client.until("5\r\nhello\r\n0\r\n\r\n").await;
    } else {
        assert_eq!(status_of(&head), 502);
    }
}

#[tokio::test]
async fn an_upstream_that_is_silent_is_a_504_and_one_that_is_not_there_a_502() {
    let (upstream, _gateway, mut client) =
        three("upstream: { url: \"http://UPSTREAM\", response_timeout: 300ms }").await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    let (head, body) = client.message().await;
    assert_eq!((status_of(&head), body.as_str()), (504, r#"{"error":"Upstream unavailable"}"#));
    server.head().await;
    assert_eq!(server.rest().await, "", "the connection is not kept");

    // As silent, but in the middle of an upload that it does not take.
    let mut client = Raw::connect(_gateway.address).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").await;
    let _server = upstream.accept().await;
    fill(&mut client.stream, 100_000_000).await;
    assert_eq!(status_of(&client.head().await), 504);

    let address = {
        let gone = RawUpstream::start().await;
        gone.address
    };
    let gateway = open(address, "").await;
    let answer = gateway.get("/").send().await;
    assert_eq!((answer.status, answer.text().as_str()), (502, r#"{"error":"Upstream unavailable"}"#));
}

#[tokio::test]
async fn the_time_to_answer_runs_from_the_end_of_the_upload_and_only_a_stalled_one_is_cut() {
    let extra =
        "upstream: { url: \"http://UPSTREAM\", response_timeout: 300ms }\nlimits: { idle_timeout: 500ms }";
    let (upstream, gateway, mut client) = three(extra).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    // Twice the longest of the deadlines, but never idle for one.
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    for _ in 0..20 {
        tick.tick().await;
        client.send("x").await;
        assert_eq!(server.take(1).await, b"x");
    }
    server.send(OK).await;
    assert_eq!(client.message().await.1, "ok");

    let mut client = gateway.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\nxxx").await;
    let head = client.head().await;
    assert_eq!(status_of(&head), 408, "{head}");
    assert!(client.rest().await.contains("\"error\""), "and then closed");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up_after_a_while() {
    let (upstream, gateway, mut client) = three("limits: { idle_timeout: 500ms }").await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")).await;
    let block = vec![b'x'; 64 * 1024];
    let mut cut = false;
    for _ in 0..LARGE / block.len() {
        if tokio::io::AsyncWriteExt::write_all(&mut server.stream, &block).await.is_err() {
            cut = true;
            break;
        }
    }
    assert!(cut, "the upstream's connection ends with the client's");
    gateway.metric_becomes("portcullis_connections", 0.0).await;
}

#[tokio::test]
async fn connections_to_the_upstream_are_queued_for_and_then_refused() {
    let extra = "upstream: { url: \"http://UPSTREAM\", max_connections: 1, connect_timeout: 1s }\nworkers: 2";
    let (upstream, gateway, mut first) = three(extra).await;
    first.send(get("/1")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    // All are taken, and none comes free: refused.
    let (mut second, mut third) = (gateway.connect().await, gateway.connect().await);
    second.send(get("/2")).await;
    third.send(get("/3")).await;
    for client in [&mut second, &mut third] {
        let (head, _) = client.message().await;
        assert_eq!((status_of(&head), field(&head, "retry-after")), (503, Some("1")));
    }
    // Again, and this time it comes free while they wait, one on its own thread and one on the other.
    second.send(get("/2")).await;
    third.send(get("/3")).await;
    let waiting = tokio::spawn(async move {
        let mut served = Vec::new();
        for client in [&mut second, &mut third] {
            served.push(status_of(&client.message().await.0));
        }
        served
    });
    server.send(OK).await;
    assert_eq!(first.message().await.1, "ok");
    let address = upstream.address;
    let serving = tokio::spawn(async move {
        // The one connection, or another after it: whoever asks is answered.
        let mut served = 0;
        let mut server = server;
        while served < 2 {
            if server.try_until("\r\n\r\n").await.is_none() {
                server = upstream.accept().await;
                continue;
            }
            server.send(OK).await;
            served += 1;
        }
        (upstream, server)
    });
    assert_eq!(waiting.await.unwrap(), [200, 200], "{address}");
    serving.await.unwrap();
}

#[tokio::test]
async fn a_request_on_a_connection_that_went_stale_is_sent_once_more_if_that_is_safe() {
    for (request, again) in [
        (get("/x"), true),
        ("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), true),
        ("DELETE /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), true),
        ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".to_owned(), false),
        ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".to_owned(), false),
        ("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".to_owned(), false),
        ("PATCH /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), false),
    ] {
        for max_connections in [1, 100] {
            let extra = format!(
                "workers: 1\nupstream: {{ url: \"http://UPSTREAM\", max_connections: {max_connections} }}"
            );
            let (upstream, gateway, mut client) = three(&extra).await;
            client.send(get("/first")).await;
            let mut server = upstream.accept().await;
            server.head().await;
            server.send(OK).await;
            client.message().await;
            // The upstream has the request and closes: just what it looks like when it closed before.
            client.send(&request).await;
            server.head().await;
            drop(server);
            if again {
                let mut server = upstream.accept().await;
                assert!(server.head().await.contains(" /x "));
                drop(server);
            }
            let head = client.head().await;
            assert_eq!(status_of(&head), 502, "{request}: {head}");
            assert!(upstream.is_untouched().await, "never a third time: {request}");
            let retries = gateway.metric("portcullis_upstream_retries_total").await;
            assert_eq!(retries, f64::from(u8::from(again)), "{request}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_the_upstream_has_closed_is_not_used_again() {
    let upstream = RawUpstream::start().await;
    let gateway = open(upstream.address, "workers: 1").await;
    for _ in 0..20 {
        let mut client = gateway.connect().await;
        client.send(get("/first")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send(OK).await;
        client.message().await;
        drop(server);
        // Not repeatable, so it is answered only if it is sent on a good connection, or not yet sent.
        client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
        let mut server = upstream.accept().await;
        let (_, body) = server.message().await;
        assert_eq!(body, "hi");
        server.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(client.message().await.1, "ok");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let upstream = Upstream::answering(|seen| {
        http::Response::new(http_body_util::Full::from(format!("<{}{}>", seen.target, seen.body.len())))
    })
    .await;
    let gateway =
        Gateway::start(&upstream, "rules: [{ path: /open/*, allow: public }, { path: /no, allow: Editor }]")
            .await;
    let mut client = gateway.connect().await;
    let mut requests = String::new();
    for number in 0..200 {
        requests += &match number % 4 {
            0 => get(&format!("/open/{number}")),
            1 => format!(
                "POST /open/{number} HTTP/1.1\r\nHost: a\r\nContent-Length: {number}\r\n\r\n{}",
                "x".repeat(number)
            ),
            2 => format!(
                "PUT /open/{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{number:x}\r\n{}\r\n0\r\n\r\n",
                "x".repeat(number)
            ),
            _ => get("/no"),
        };
    }
    client.send(requests).await;
    for number in 0..200 {
        let (head, body) = client.message().await;
        let length = if number % 4 == 0 { 0 } else { number };
        let expected = if number % 4 == 3 {
            (401, r#"{"error":"Missing Authorization header"}"#.to_owned())
        } else {
            (200, format!("</open/{number}{length}>"))
        };
        assert_eq!((status_of(&head), body), expected, "{number}");
    }
}

#[tokio::test]
async fn old_clients_and_those_that_want_to_leave_are_served_and_let_go() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    for (request, kept) in [
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: Close, x\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nKeep-Alive: timeout=1\r\n\r\n", true),
    ] {
        let mut client = gateway.connect().await;
        client.send(request).await;
        let (head, body) = client.message().await;
        assert_eq!((status_of(&head), body.as_str()), (200, "upstream"), "{request}");
        if kept {
            client.send(request).await;
            assert_eq!(client.message().await.1, "upstream", "{request}");
        } else {
            assert_eq!(client.rest().await, "", "{request}");
        }
        let seen = upstream.last();
        assert_eq!((seen.header("connection"), seen.header("keep-alive")), (None, None), "{request}");
    }
}

#[tokio::test]
async fn one_connection_to_the_upstream_serves_many_requests() {
    let (upstream, gateway, mut client) = three("workers: 1").await;
    client.send(get("/0")).await;
    let mut server = upstream.accept().await;
    for number in 0..50 {
        assert!(server.head().await.starts_with(&format!("GET /{number} ")));
        server.send(OK).await;
        assert_eq!(client.message().await.1, "ok");
        if number % 10 == 9 {
            // Another client, the same connection.
            client = gateway.connect().await;
        }
        client.send(get(&format!("/{}", number + 1))).await;
    }
    assert!(upstream.is_untouched().await);
}

#[tokio::test]
async fn hop_by_hop_headers_of_an_answer_stay_behind_and_all_others_pass() {
    let (upstream, _gateway, mut client) = three("").await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server
        .send(
            "HTTP/1.1 418 I am a teapot\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Odd: \u{e9}\r\nServer: Old/1\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Authenticate: x\r\nContent-Length: 2\r\n\r\nok",
        )
        .await;
    let head = client.head().await;
    assert_eq!(status_of(&head), 418);
    for gone in ["x-hop", "keep-alive", "upgrade", "proxy-authenticate", "connection"] {
        assert_eq!(field(&head, gone), None, "{gone}");
    }
    assert_eq!(field(&head, "server"), Some("Old/1"));
    assert_eq!(field(&head, "x-odd"), Some("\u{e9}"));
    assert!(head.contains("a=1") && head.contains("b=2"), "{head}");
}

#[tokio::test]
async fn a_client_that_vanishes_frees_the_connection_to_the_upstream() {
    let extra = "workers: 1\nupstream: { url: \"http://UPSTREAM\", max_connections: 1 }";
    for (request, answered) in [
        (get("/slow"), ""),
        (get("/slow"), "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        ("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf".to_owned(), ""),
    ] {
        let (upstream, gateway, mut client) = three(extra).await;
        client.send(&request).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send(answered).await;
        if !answered.is_empty() {
            client.until("half").await;
        }
        drop(client);
        assert!(!server.rest().await.contains("HTTP"), "the connection ends: {request}");
        let mut client = gateway.connect().await;
        client.send(get("/next")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send(OK).await;
        assert_eq!(client.message().await.1, "ok", "{request}");
    }
}

#[tokio::test]
async fn an_idle_connection_of_one_thread_does_not_keep_another_waiting_for_its_slot() {
    let upstream = Upstream::start().await;
    let extra = "upstream: { url: \"http://UPSTREAM\", max_connections: 1 }\nworkers: 2";
    let gateway = Gateway::start(&upstream, &format!("{OPEN}\n{extra}")).await;
    let mut clients = [gateway.connect().await, gateway.connect().await];
    for client in &mut clients {
        // Connections go to the threads in turn, so these two have one each.
        client.send(get("/")).await;
        assert_eq!(status_of(&client.head().await), 200);
    }
}

#[tokio::test]
async fn a_body_that_hyper_and_not_the_guard_refuses_is_the_clients_fault() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    for end in ["0\r\nbad trailer\r\n\r\n", "0\r\na b: c\r\n\r\n", "0\r\n: c\r\n\r\n"] {
        let mut client = gateway.connect().await;
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n{end}"))
            .await;
        let (head, body) = client.message().await;
        assert_eq!(status_of(&head), 400, "{end}");
        assert!(body.contains("\"error\""));
        assert_eq!(client.rest().await, "", "{end}");
        assert_eq!(upstream.count(), 0, "{end}");
    }
}

#[tokio::test]
async fn a_body_that_turns_bad_during_the_answer_brings_no_second_answer() {
    for (begin, bad) in [
        ("Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", "zz\r\n"),
        ("Transfer-Encoding: chunked\r\n\r\n1\r\nx", "xx"),
    ] {
        let (upstream, _gateway, mut client) = three("").await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{begin}")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin").await;
        client.until("begin").await;
        client.send(bad).await;
        let rest = client.rest().await;
        assert!(!rest.contains("HTTP/1.1"), "{rest}");
    }
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, "rules: []").await;
    for bad in ["zz\r\n", "1\r\nxx", "0\r\n x\r\n"] {
        let answers = gateway
            .raw(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{bad}GET / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .await;
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    }
}

#[tokio::test]
async fn a_refused_second_request_does_not_cut_into_the_answer_to_the_first() {
    let size = 3_000_000;
    let upstream =
        Upstream::answering(move |_| http::Response::new(http_body_util::Full::from("x".repeat(size)))).await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    let mut client = gateway.connect().await;
    client.send(get("/large") + "GET / HTTP/1.1\r\nBad Header\r\n\r\n").await;
    let (head, body) = client.message().await;
    assert_eq!((status_of(&head), body.len()), (200, size));
    assert!(body.bytes().all(|byte| byte == b'x'));
    let (head, _) = client.message().await;
    assert_eq!((status_of(&head), field(&head, "connection")), (400, Some("close")));
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_request_that_was_answered_with_garbage_is_not_sent_again() {
    let (upstream, _gateway, mut client) = three("workers: 1").await;
    client.send(get("/first")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send(OK).await;
    client.message().await;
    client.send(get("/x")).await;
    server.head().await;
    server.send("garbage\r\n\r\n").await;
    assert_eq!(status_of(&client.message().await.0), 502);
    assert!(upstream.is_untouched().await);
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_is_asked_to_wait() {
    let upstream = Upstream::start().await;
    let gateway =
        Gateway::start(&upstream, "rules: [{ path: /open, allow: public }, { path: /no, allow: Editor }]")
            .await;
    for path in ["/open", "/no"] {
        let mut client = gateway.connect().await;
        client.send(get(path)).await;
        client.head().await;
        let before = gateway.resident();
        let request = get(path);
        let many = request.repeat(1000);
        let pause = std::time::Duration::from_millis(500);
        let mut sent = 0;
        while sent < LARGE / 2 {
            let write = tokio::io::AsyncWriteExt::write_all(&mut client.stream, many.as_bytes());
            if tokio::time::timeout(pause, write).await.is_err() {
                break;
            }
            sent += many.len();
        }
        assert!(sent < LARGE / 2, "{path}: {sent} bytes of requests were taken");
        let grown = gateway.resident().saturating_sub(before);
        assert!(grown < 8 * 1024, "{path}: {grown} KiB more");
    }
}
