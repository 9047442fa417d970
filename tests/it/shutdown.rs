//! From the signal to the last byte.

use crate::harness::{Gateway, RawUpstream, Upstream, field, status_of};

const OPEN: &str = "rules: [{ path: /*, allow: public }]";

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

async fn stopping(gateway: &Gateway) {
    gateway.wait_for_line(0, |line| line.contains("\"stopping\"")).await;
}

#[tokio::test]
async fn while_it_drains_it_is_not_ready_and_serves_all_the_same() {
    let upstream = Upstream::start().await;
    let mut gateway =
        Gateway::start(&upstream, &format!("{OPEN}\nshutdown: {{ drain: 2s, timeout: 10s }}")).await;
    let mut idle = gateway.connect().await;
    idle.send(get("/before")).await;
    assert_eq!(status_of(&idle.message().await.0), 200);
    assert_eq!(gateway.admin("GET", "/readyz").send().await.status, 200);
    gateway.signal("TERM");
    stopping(&gateway).await;
    assert_eq!(gateway.admin("GET", "/readyz").send().await.status, 503);
    assert_eq!(gateway.admin("GET", "/livez").send().await.status, 200);
    assert_eq!(gateway.get("/new").send().await.status, 200, "a new connection");
    idle.send(get("/old")).await;
    assert_eq!(status_of(&idle.message().await.0), 200, "an old one");
    // Then the idle connection is closed, and everything with it.
    assert_eq!(idle.rest().await, "");
    assert_eq!(gateway.ended().await, Some(0));
    assert!(tokio::net::TcpStream::connect(gateway.address).await.is_err());
}

#[tokio::test]
async fn a_request_under_way_is_finished_and_no_new_connection_taken() {
    for signal in ["TERM", "INT"] {
        let upstream = RawUpstream::start().await;
        let mut gateway =
            Gateway::start_at(upstream.address, &format!("{OPEN}\nshutdown: {{ drain: 0s, timeout: 20s }}"))
                .await;
        let mut client = gateway.connect().await;
        client.send(get("/slow")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        let mut upload = gateway.connect().await;
        upload.send("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo").await;
        let mut taker = upstream.accept().await;
        taker.until("bo").await;
        gateway.signal(signal);
        stopping(&gateway).await;
        // Until the listener is gone.
        while let Ok(stream) = tokio::net::TcpStream::connect(gateway.address).await {
            drop(stream);
            tokio::task::yield_now().await;
        }
        assert!(gateway.is_running(), "{signal}");
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
        client.until("half").await;
        server.send("half").await;
        assert_eq!(client.rest().await, "half", "and then the connection ends");
        upload.send("dy").await;
        taker.until("dy").await;
        taker.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let (head, body) = upload.message().await;
        assert_eq!((status_of(&head), body.as_str()), (200, "ok"), "{signal}");
        assert_eq!(field(&head, "connection"), Some("close"), "{signal}: said where it can be said");
        assert_eq!(gateway.ended().await, Some(0), "{signal}");
        let lines = gateway.lines();
        assert!(lines.iter().any(|line| line.contains("\"stopped\"")), "{lines:?}");
        let logged = lines.iter().filter(|line| line.contains("\"log\":\"access\"")).count();
        assert_eq!(logged, 2, "the last lines are written: {lines:?}");
    }
}

#[tokio::test]
async fn what_does_not_finish_in_time_or_before_a_second_signal_is_cut() {
    for (timeout, again) in [("500ms", false), ("60s", true)] {
        let upstream = RawUpstream::start().await;
        let mut gateway = Gateway::start_at(
            upstream.address,
            &format!("{OPEN}\nshutdown: {{ drain: 0s, timeout: {timeout} }}"),
        )
        .await;
        let mut client = gateway.connect().await;
        client.send(get("/slow")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
        client.until("half").await;
        gateway.signal("TERM");
        stopping(&gateway).await;
        if again {
            gateway.signal("TERM");
        }
        let rest = client.rest().await;
        assert!(!rest.contains("0\r\n\r\n"), "{rest}");
        assert_eq!(gateway.ended().await, Some(0), "{timeout}");
        assert!(gateway.lines().iter().any(|line| line.contains("before every request was finished")));
    }
}

#[tokio::test]
async fn a_second_signal_during_the_drain_ends_it_at_once() {
    let upstream = Upstream::start().await;
    let mut gateway =
        Gateway::start(&upstream, &format!("{OPEN}\nshutdown: {{ drain: 60s, timeout: 90s }}")).await;
    gateway.signal("TERM");
    stopping(&gateway).await;
    gateway.signal("INT");
    assert_eq!(gateway.ended().await, Some(0));
}
