//! Slow clients cost little, are gone by their deadline, and keep nobody else waiting.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use crate::harness::{Gateway, PATIENCE, Raw, RawUpstream, Upstream, status_of};

const OPEN: &str = "rules: [{ path: /open/*, allow: public }]";

/// Far more than the buffers between an upstream and a client hold.
const LARGE: usize = 32 * 1024 * 1024;

async fn upstream() -> Upstream {
    let large = Bytes::from(vec![b'x'; LARGE]);
    Upstream::answering(move |seen| match seen.target.as_str() {
        "/open/large" => Response::new(Full::new(large.clone())),
        _ => Response::new(Full::from("upstream")),
    })
    .await
}

/// What each kind of slow client has said when it begins to be slow.
const SLOW: [(&str, &str); 4] = [
    ("head", "GET /open/x HTTP/1.1\r\nHost: a\r\nX-Slow"),
    ("body", "POST /open/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nbegin"),
    (
        "login",
        "POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n{",
    ),
    ("read", "GET /open/large HTTP/1.1\r\nHost: a\r\n\r\n"),
];

/// A connection whose own kernel takes next to nothing for it.
async fn small_connection(gateway: &Gateway) -> Raw {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    Raw::new(socket.connect(gateway.address).await.unwrap())
}

#[tokio::test]
async fn three_hundred_slow_clients_of_each_kind_are_gone_by_the_deadline_and_others_are_served_meanwhile() {
    let upstream = upstream().await;
    let gateway = Gateway::start(
        &upstream,
        &format!("{OPEN}\nlimits: {{ header_timeout: 6s, idle_timeout: 6s }}\nupstream: {{ url: \"http://UPSTREAM\", max_connections: 64 }}"),
    )
    .await;
    for (kind, begin) in SLOW {
        // With room for every slow one: what others wait for is the next test's subject.
        let number = if kind == "read" || kind == "body" { 50 } else { 300 };
        let mut slow = Vec::new();
        for _ in 0..number {
            let mut client = small_connection(&gateway).await;
            client.send(begin).await;
            slow.push(client);
        }
        gateway.metric_becomes("portcullis_connections", f64::from(number)).await;
        for _ in 0..20 {
            assert_eq!(gateway.get("/open/x").send().await.status, 200, "beside slow {kind}");
        }
        // Nobody has been given up for somebody else's sake.
        gateway.metric_becomes("portcullis_connections", 0.0).await;
        assert_eq!(gateway.metric("portcullis_stalled_clients_cut_total").await, 0.0, "{kind}");
        if kind != "read" {
            assert_eq!(status_of(&slow[0].head().await), 408, "{kind}");
        }
        let memory = gateway.resident();
        assert!(memory < 256 * 1024, "{memory} KiB after slow {kind}");
    }
}

#[tokio::test]
async fn a_client_that_stands_still_gives_its_upstream_connection_up_for_one_that_waits() {
    let upstream = upstream().await;
    let gateway = Gateway::start(
        &upstream,
        &format!("{OPEN}\nworkers: 2\nupstream: {{ url: \"http://UPSTREAM\", max_connections: 8, connect_timeout: 15s }}"),
    )
    .await;
    for (kind, begin) in SLOW.iter().filter(|(kind, _)| matches!(*kind, "body" | "read")) {
        let before = gateway.metric("portcullis_stalled_clients_cut_total").await;
        let mut slow = Vec::new();
        for _ in 0..40 {
            let mut client = small_connection(&gateway).await;
            client.send(begin).await;
            slow.push(client);
        }
        gateway.metric_becomes("portcullis_connections", 40.0).await;
        for _ in 0..5 {
            assert_eq!(gateway.get("/open/x").send().await.status, 200, "beside slow {kind}");
        }
        let cut = gateway.metric("portcullis_stalled_clients_cut_total").await - before;
        assert!(cut >= 1.0, "{kind}: {cut} cut");
        drop(slow);
        gateway.metric_becomes("portcullis_connections", 0.0).await;
    }
}

#[tokio::test]
async fn a_transfer_that_moves_is_never_cut_whatever_others_wait_for() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(
        upstream.address,
        &format!("{OPEN}\nupstream: {{ url: \"http://UPSTREAM\", max_connections: 1, connect_timeout: 4s }}\nlimits: {{ idle_timeout: 2s }}"),
    )
    .await;
    let mut upload = gateway.connect().await;
    upload.send("POST /open/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    let other = tokio::spawn(gateway.get("/open/x").send());
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        upload.send("x").await;
    }
    assert_eq!(server.take(20).await, [b'x'; 20]);
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(status_of(&upload.message().await.0), 200);
    assert_eq!(other.await.unwrap().status, 503, "it had to wait in vain");
    assert_eq!(gateway.metric("portcullis_stalled_clients_cut_total").await, 0.0);
}

#[tokio::test]
async fn the_admin_address_takes_so_many_connections_and_no_more() {
    let upstream = upstream().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    let quiet = open_files(&gateway);
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(Raw::connect(gateway.admin).await);
    }
    // Those beyond the limit wait in the kernel, and cost the process no descriptor. A few that the database
    // had open before come and go.
    let deadline = Instant::now() + PATIENCE;
    while open_files(&gateway) < quiet + 64 - 8 {
        assert!(Instant::now() < deadline, "{} descriptors, {quiet} before", open_files(&gateway));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(open_files(&gateway) <= quiet + 64 + 8, "{} descriptors, {quiet} before", open_files(&gateway));
    assert_eq!(gateway.get("/open/x").send().await.status, 200);
    drop(held);
    assert_eq!(gateway.admin("GET", "/livez").send().await.status, 200);
}

fn open_files(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count()
}
