//! Requests whose end nobody waits for: the upstream may have acted on them, so the log knows them.

use crate::harness::{Gateway, RawUpstream, Upstream, status_of};

const OPEN: &str = "rules: [{ path: /*, allow: public }]";

fn is_access_to(path: &'static str) -> impl Fn(&str) -> bool + Send + 'static {
    move |line| line.contains(r#""log":"access""#) && line.contains(&format!(r#""path":"{path}""#))
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_leaves_its_access_line() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, OPEN).await;
    let mut client = gateway.connect().await;
    client.send("POST /order HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
    let mut server = upstream.accept().await;
    server.until("hi").await;
    drop(client);
    let index = gateway.wait_for_line(0, is_access_to("/order")).await;
    let line: serde_json::Value = serde_json::from_str(&gateway.lines()[index]).unwrap();
    assert_eq!(
        (&line["status"], &line["cut"], &line["decision"]),
        (&499.into(), &"true".into(), &"allowed".into())
    );
    assert_eq!(server.rest().await, "", "the upstream hears of it");
}

#[tokio::test]
async fn a_request_that_the_end_of_the_gateway_cuts_leaves_its_access_line() {
    let upstream = RawUpstream::start().await;
    let mut gateway =
        Gateway::start_at(upstream.address, &format!("{OPEN}\nshutdown: {{ drain: 0s, timeout: 1s }}")).await;
    let (mut waiting, mut reading) = (gateway.connect().await, gateway.connect().await);
    waiting.send("GET /waiting HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut first = upstream.accept().await;
    first.head().await;
    reading.send("GET /reading HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut second = upstream.accept().await;
    second.head().await;
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await;
    reading.until("half").await;
    gateway.signal("TERM");
    gateway.ended().await;
    for path in ["/waiting", "/reading"] {
        gateway.wait_for_line(0, is_access_to(path)).await;
    }
}

#[tokio::test]
async fn a_method_that_an_upstream_would_find_after_trimming_is_read() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /*, methods: [read], allow: public }, { path: /*, methods: [write], allow: Editor }]",
    )
    .await;
    for (header, status) in [
        (&b"X-HTTP-Method-Override: DELETE"[..], 401),
        (b"X-HTTP-Method-Override: DELETE\xa0", 401),
        (b"X-HTTP-Method-Override: \xc2\xa0delete", 401),
        (b"X_HTTP.Method: DELETE", 401),
        (b"X-HTTP-Method-Override: HEAD\xa0", 200),
    ] {
        let mut client = gateway.connect().await;
        client.send([b"GET /x HTTP/1.1\r\nHost: a\r\n", header, b"\r\n\r\n"].concat()).await;
        assert_eq!(status_of(&client.head().await), status, "{}", String::from_utf8_lossy(header));
    }
}
