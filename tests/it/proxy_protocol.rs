//! The PROXY protocol: who the client is, said by a load balancer that passes bytes on.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

use crate::harness::partners::{Partner, deployed, program, skip};
use crate::harness::{Gateway, Raw, Upstream, status_of};

const RULES: &str = "rules: [{ path: /public/*, allow: public }]\n";

const GET: &str = "GET /public/x HTTP/1.1\r\nHost: cms\r\nConnection: close\r\n\r\n";

/// A header of version 2.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, block].concat()
}

fn v4(extras: &[u8]) -> Vec<u8> {
    v2(0x21, 0x11, &[&[203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x34, 0, 80], extras].concat())
}

async fn gateway(upstream: &Upstream, mode: &str, trusted: &str, more: &str) -> Gateway {
    let file = format!("proxy_protocol: {mode}\ntrusted_proxies: [{trusted}]\n{RULES}{more}");
    Gateway::start(upstream, &file).await
}

/// What comes back for a header and a request behind it.
async fn ask(gateway: &Gateway, header: &[u8]) -> String {
    gateway.raw(&[header, GET.as_bytes()].concat()).await
}

fn counted(outcome: &str) -> String {
    format!("portcullis_proxy_headers_total{{outcome=\"{outcome}\"}}")
}

#[tokio::test]
async fn the_client_is_whom_a_trusted_load_balancer_names() {
    let upstream = Upstream::start().await;
    for mode in ["optional", "required"] {
        let gateway = gateway(&upstream, mode, "127.0.0.1", "").await;
        for (header, client) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec(), "203.0.113.9"),
            (b"PROXY TCP6 2001:db8::9 ::1 4660 80\r\n".to_vec(), "2001:db8::9"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
            (v4(&[]), "203.0.113.9"),
            (v4(&[0x02, 0, 3, b'c', b'm', b's']), "203.0.113.9"),
            (v2(0x20, 0, &[]), "127.0.0.1"),
        ] {
            let from = gateway.lines().len();
            assert_eq!(status_of(&ask(&gateway, &header).await), 200, "{mode} {header:?}");
            assert_eq!(upstream.last().header("x-forwarded-for"), Some(client), "{mode} {header:?}");
            let told = upstream.last().header("forwarded").unwrap().to_owned();
            assert!(told.contains(client), "{told}");
            let line = format!(r#""client":"{client}""#);
            gateway.wait_for_line(from, move |seen| seen.contains(&line)).await;
        }
        assert_eq!(gateway.metric(&counted("client")).await, 4.0);
        assert_eq!(gateway.metric(&counted("local")).await, 2.0);
    }
}

#[tokio::test]
async fn a_header_arrives_in_pieces_and_nothing_behind_it_is_lost() {
    let upstream = Upstream::start().await;
    for mode in ["optional", "required"] {
        let gateway = gateway(&upstream, mode, "127.0.0.1", "").await;
        for header in [b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec(), v4(&[0x04, 0, 2, 0, 0])] {
            let whole = [&header[..], GET.as_bytes()].concat();
            for piece in [1, 7, 16] {
                let mut client = gateway.connect().await;
                for bytes in whole.chunks(piece) {
                    client.send(bytes).await;
                    tokio::task::yield_now().await;
                }
                assert_eq!(status_of(&client.rest().await), 200, "{mode} {piece}");
                assert_eq!(upstream.last().header("x-forwarded-for"), Some("203.0.113.9"));
            }
        }
    }
}

#[tokio::test]
async fn what_a_client_says_of_others_is_believed_only_if_it_is_trusted_itself() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream, "required", "127.0.0.1, 198.51.100.0/24", "").await;
    for (client, expected) in [
        ("TCP4 203.0.113.9 10.0.0.1 1 2", "203.0.113.9"),
        ("TCP4 198.51.100.7 10.0.0.1 1 2", "6.6.6.6, 198.51.100.7"),
        ("TCP4 127.0.0.1 10.0.0.1 1 2", "6.6.6.6, 127.0.0.1"),
        // Its own connection, or that of somebody whom it cannot name.
        ("UNKNOWN", "127.0.0.1"),
    ] {
        let request = format!(
            "PROXY {client}\r\nGET /public/x HTTP/1.1\r\nHost: cms\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Connection: close\r\n\r\n"
        );
        assert_eq!(status_of(&gateway.raw(request.as_bytes()).await), 200, "{client}");
        assert_eq!(upstream.last().header("x-forwarded-for"), Some(expected), "{client}");
    }
}

#[tokio::test]
async fn failed_logins_are_counted_for_the_client_and_not_for_the_load_balancer() {
    let upstream = Upstream::start().await;
    let more = "login: { max_failures: 1, max_failures_per_address: 1 }";
    let gateway = gateway(&upstream, "required", "127.0.0.1", more).await;
    let body = r#"{"username":"nobody","password":"wrong"}"#;
    let login = |client: &str| {
        format!(
            "PROXY TCP4 {client} 10.0.0.1 1 2\r\nPOST /auth/login HTTP/1.1\r\nHost: cms\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for (client, status) in [("203.0.113.9", 401), ("203.0.113.9", 429), ("198.51.100.9", 401)] {
        assert_eq!(status_of(&gateway.raw(login(client).as_bytes()).await), status, "{client}");
    }
    gateway
        .wait_for_line(0, |line| line.contains(r#""event":"lock_out""#) && line.contains("203.0.113.9"))
        .await;
}

#[tokio::test]
async fn a_header_that_is_broken_or_missing_closes_the_connection() {
    let upstream = Upstream::start().await;
    for (mode, header, outcome) in [
        ("required", Vec::new(), "missing"),
        ("required", b"\x16\x03\x01\x02\x00".to_vec(), "missing"),
        ("required", b"PROXY TCP4 203.0.113.09 10.0.0.1 1 2\r\n".to_vec(), "malformed"),
        ("optional", b"PROXY TCP4 203.0.113.9 10.0.0.1 1\r\n".to_vec(), "malformed"),
        ("optional", b"PROXY UDP4 203.0.113.9 10.0.0.1 1 2\r\n".to_vec(), "malformed"),
        ("optional", v2(0x31, 0x11, &[0; 12]), "malformed"),
        ("optional", v2(0x21, 0x11, &[0; 11]), "malformed"),
        ("optional", v4(&[0x04, 0xff, 0xff]), "malformed"),
        ("optional", v4(&[0x03, 0, 4, 1, 2, 3, 4]), "malformed"),
        ("optional", v2(0x21, 0x11, &[0; 60_000]), "malformed"),
    ] {
        let gateway = gateway(&upstream, mode, "127.0.0.1", "").await;
        let mut client = gateway.connect().await;
        // It may be closed before all is written.
        let _ =
            tokio::io::AsyncWriteExt::write_all(&mut client.stream, &[&header[..], GET.as_bytes()].concat())
                .await;
        assert_eq!(client.rest().await, "", "{mode} {header:?}");
        assert_eq!(gateway.metric(&counted(outcome)).await, 1.0, "{mode} {header:?}");
        gateway.wait_for_line(0, |line| line.contains("PROXY protocol header")).await;
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_header_that_is_cut_short_or_never_comes_is_waited_for_only_so_long() {
    let upstream = Upstream::start().await;
    let more = "limits: { header_timeout: 300ms }";
    for (mode, beginning) in [
        ("required", &b""[..]),
        ("required", b"PRO"),
        ("required", b"PROXY TCP4 "),
        ("optional", b"PROXY TCP4 "),
    ] {
        let gateway = gateway(&upstream, mode, "127.0.0.1", more).await;
        let mut client = gateway.connect().await;
        client.send(beginning).await;
        assert_eq!(client.rest().await, "", "{mode} {beginning:?}");
        assert_eq!(gateway.metric(&counted("cut_short")).await, 1.0, "{mode} {beginning:?}");
    }
    // Closed by the other side.
    let strict = gateway(&upstream, "required", "127.0.0.1", "").await;
    let client = strict.connect().await;
    drop(client);
    strict.metric_becomes(&counted("cut_short"), 1.0).await;
    // Whoever need not send one may take its time, and may send something that begins alike.
    let lax = gateway(&upstream, "optional", "127.0.0.1", more).await;
    let mut client = lax.connect().await;
    lax.metric_becomes(&counted("absent"), 1.0).await;
    client.send(GET).await;
    assert_eq!(status_of(&client.rest().await), 200);
    let mut client = lax.connect().await;
    client.send("PR").await;
    lax.metric_becomes(&counted("absent"), 2.0).await;
    client.send("OPFIND /public/x HTTP/1.1\r\nHost: cms\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status_of(&client.rest().await), 200);
    assert_eq!(upstream.last().method, "PROPFIND");
}

#[tokio::test]
async fn a_header_from_a_stranger_is_a_forgery() {
    let upstream = Upstream::start().await;
    for (mode, header, expected) in [
        ("off", &b"PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n"[..], Some(400)),
        ("off", &v4(&[]), Some(400)),
        ("optional", b"PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n", Some(400)),
        ("optional", &v4(&[]), Some(400)),
        ("optional", b"", Some(200)),
        ("required", b"PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n", None),
        ("required", b"", None),
    ] {
        upstream.forget();
        let gateway = gateway(&upstream, mode, "192.0.2.1", "").await;
        let answer = ask(&gateway, header).await;
        let status = (!answer.is_empty()).then(|| status_of(&answer));
        assert_eq!(status, expected, "{mode} {header:?}");
        assert_eq!(upstream.count(), usize::from(expected == Some(200)), "{mode} {header:?}");
        assert_eq!(gateway.metric(&counted("untrusted")).await, f64::from(u8::from(expected.is_none())));
    }
}

/// Asks through a load balancer from an address that is not its own, and finds that address behind the gateway.
async fn names_its_client(name: &str, balancer: &Partner, upstream: &Upstream, gateway: &Gateway) {
    for last in [5, 6] {
        let from = Ipv4Addr::new(127, 0, 0, last);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let mut client = Raw::new(socket.connect(balancer.address).await.unwrap());
        client.send(GET).await;
        assert_eq!(status_of(&client.rest().await), 200, "{name}");
        assert_eq!(upstream.last().header("x-forwarded-for"), Some(from.to_string().as_str()), "{name}");
    }
    assert!(gateway.metric(&counted("client")).await >= 2.0, "{name}");
}

#[tokio::test]
async fn haproxy_names_its_clients_in_both_versions_and_checks_in_its_own_name() {
    let Some(haproxy) = program("haproxy") else { return skip("HAProxy", "haproxy") };
    let upstream = Upstream::start().await;
    for version in ["send-proxy", "send-proxy-v2"] {
        let gateway = gateway(&upstream, "required", "127.0.0.1", "").await;
        let address = gateway.address.to_string();
        let configuration = deployed(
            "haproxy/tcp.cfg",
            &[
                ("bind :80", "bind 127.0.0.1:PORT"),
                ("127.0.0.1:8080", &address),
                (" send-proxy-v2 ", &format!(" {version} ")),
                ("timeout check   5s", "timeout check 5s\n    default-server inter 200ms"),
            ],
        );
        let command = [haproxy.to_str().unwrap(), "-db", "-f", "FOLDER/haproxy.cfg"];
        let balancer = Partner::start(&[("x", "")], &[("haproxy.cfg", &configuration)], &[&command]).await;
        names_its_client(version, &balancer, &upstream, &gateway).await;
        // Version 1 has no word for a check but UNKNOWN, or names the load balancer itself.
        let ends = std::time::Instant::now() + crate::harness::PATIENCE;
        let of_its_own = async || {
            let line = |line: &String| line.contains(r#""path":"/.well-known/jwks.json""#);
            gateway
                .lines()
                .iter()
                .filter(|found| line(found))
                .all(|found| found.contains(r#""client":"127.0.0.1""#))
                && gateway.lines().iter().any(line)
        };
        while !of_its_own().await {
            assert!(std::time::Instant::now() < ends, "{version}: no health check in its own name");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn nginx_names_its_clients() {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let (Some(nginx), true) = (program("nginx"), std::path::Path::new(module).exists()) else {
        return skip("nginx as a stream proxy", "nginx or libnginx-mod-stream");
    };
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream, "required", "127.0.0.1", "").await;
    let address = gateway.address.to_string();
    let server = deployed(
        "nginx/stream.conf",
        &[("listen 80;", "listen 127.0.0.1:PORT;"), ("127.0.0.1:8080", &address)],
    );
    let main = format!(
        "daemon off;\nmaster_process off;\nload_module {module};\npid FOLDER/nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 64; }}\nstream {{ include FOLDER/stream.conf; }}\n"
    );
    let command = [nginx.to_str().unwrap(), "-p", "FOLDER", "-c", "FOLDER/nginx.conf"];
    let files = [("stream.conf", server.as_str()), ("nginx.conf", &main)];
    let balancer = Partner::start(&[("x", "")], &files, &[&command]).await;
    names_its_client("nginx", &balancer, &upstream, &gateway).await;
}
