//! HTTPS: which certificate a client gets, renewal without a dropped connection, and whoever speaks something else.

use std::process::Command;

use rcgen::date_time_ymd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::partners::{program, skip};
use crate::harness::tls::{Authority, shown, write};
use crate::harness::{Gateway, KeepAlive, Raw, Upstream, address_in, read_to_end, refused_start, run};

const RULES: &str = "rules: [{ path: /*, allow: public }]\n";

/// A gateway whose file ends with `extra`, with a certificate for localhost in its folder.
async fn start(upstream: &Upstream, extra: &str) -> (Gateway, Authority) {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path(), "cert", &["localhost", "127.0.0.1"]);
    let gateway = Gateway::start_in(folder, upstream.address, &format!("{RULES}{extra}")).await;
    (gateway, authority)
}

const TLS: &str = "tls: { cert: cert.pem, key: cert.key }\n";

#[tokio::test]
async fn https_is_served_by_both_versions_and_the_upstream_hears_of_it() {
    let upstream = Upstream::start().await;
    let (gateway, authority) = start(&upstream, TLS).await;
    for client in [authority.client(), authority.client().of_1_2(), authority.client().offering(&[])] {
        let answer = gateway.get_by_https(&client, "/x").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "upstream"));
        assert_eq!(answer.header("strict-transport-security"), None);
        let seen = upstream.last();
        assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
        assert!(seen.header("forwarded").unwrap().ends_with(";proto=https"));
    }
    gateway.metric_becomes("portcullis_tls_handshakes_total{outcome=\"success\"}", 3.0).await;
}

#[tokio::test]
async fn a_large_body_comes_through_whole_both_ways() {
    let upstream = Upstream::answering(|seen| http::Response::new(seen.body.clone().into())).await;
    let (gateway, authority) = start(&upstream, TLS).await;
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let stream = authority.client().connect(gateway.address, "localhost").await.unwrap();
    let answer = gateway.post("/x").body(body.clone()).over(stream).await.unwrap();
    assert!(answer.body == body);
}

#[tokio::test]
async fn a_client_gets_the_certificate_for_the_name_it_asks_for_or_the_first() {
    let upstream = Upstream::start().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    for (file, names) in [("cert", &["localhost"][..]), ("b", &["b.example"]), ("w", &["*.w.example"])] {
        authority.write(folder.path(), file, names);
    }
    let extra = "tls: { cert: cert.pem, key: cert.key, more: [{ cert: b.pem, key: b.key }, { cert: w.pem, key: w.key }] }\n";
    let gateway = Gateway::start_in(folder, upstream.address, &format!("{RULES}{extra}")).await;
    let client = authority.client();
    for name in ["localhost", "b.example", "a.w.example"] {
        let stream = client.connect(gateway.address, name).await.unwrap();
        assert_eq!(gateway.get("/").over(stream).await.unwrap().status, 200, "{name}");
    }
    // The first one it is, and it is not for that name.
    for name in ["c.example", "a.b.w.example"] {
        let refused = client.connect(gateway.address, name).await.unwrap_err();
        assert!(refused.to_string().contains("only valid for DnsName(\"localhost\")"), "{name}: {refused}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_no_connection_drops_for_it() {
    let upstream = Upstream::start().await;
    let (gateway, authority) = start(&upstream, TLS).await;
    let client = authority.client();
    let first = client.connect(gateway.address, "localhost").await.unwrap();
    let before = shown(&first);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(first)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(gateway.get("/").request).await.unwrap().status(), 200);
    let folder = gateway.folder.path().to_path_buf();
    gateway
        .after("the configuration is reloaded", || {
            authority.write(&folder, "cert", &["localhost", "127.0.0.1"])
        })
        .await;
    sender.ready().await.unwrap();
    assert_eq!(sender.send_request(gateway.get("/").request).await.unwrap().status(), 200);
    let second = client.connect(gateway.address, "localhost").await.unwrap();
    assert!(shown(&second) != before);
    assert_eq!(gateway.get("/").over(second).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_broken_renewal_keeps_the_old_pair_and_says_so_until_it_is_mended() {
    let upstream = Upstream::start().await;
    let (gateway, authority) = start(&upstream, TLS).await;
    let client = authority.client();
    let folder = gateway.folder.path().to_path_buf();
    let good = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (cert, key) = (good("cert.pem"), good("cert.key"));
    let (other_cert, _) = authority.issue(&["localhost"]);
    for (file, text, said) in [
        ("cert.pem", other_cert.as_str(), "is not the key of the certificate"),
        ("cert.pem", "", "holds no certificate"),
        ("cert.pem", &cert[..cert.len() / 2], "cannot be used: its PEM is damaged"),
        ("cert.key", "junk", "holds no private key"),
    ] {
        let line = gateway.after("the configuration is refused", || write(&folder, file, text)).await;
        assert!(line.contains(said) && line.contains("gateway.yaml:"), "{line}");
        assert!(!line.contains("PRIVATE KEY-----\\n"), "{line}");
        assert_eq!(gateway.metric("portcullis_config_last_reload_successful").await, 0.0);
        assert_eq!(gateway.get_by_https(&client, "/").await.status, 200, "{said}");
        let mended = if file == "cert.pem" { &cert } else { &key };
        gateway.after("the configuration is reloaded", || write(&folder, file, mended)).await;
        assert_eq!(gateway.metric("portcullis_config_last_reload_successful").await, 1.0);
    }
}

#[tokio::test]
async fn turning_tls_on_or_off_waits_for_a_restart_and_the_rest_applies() {
    let upstream = Upstream::start().await;
    let (gateway, authority) = start(&upstream, TLS).await;
    let line = gateway
        .after("changes only with a restart", || {
            gateway.write_config("rules: [{ path: /a, allow: public }]\n")
        })
        .await;
    assert!(line.contains("'tls'"), "{line}");
    gateway.wait_for_line(0, |line| line.contains("the configuration is reloaded")).await;
    assert_eq!(gateway.get_by_https(&authority.client(), "/a").await.status, 200);
    assert_eq!(gateway.get_by_https(&authority.client(), "/b").await.status, 401);
}

#[tokio::test]
async fn a_file_whose_certificate_cannot_be_used_is_refused_at_its_line() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path(), "cert", &["localhost"]);
    authority.write(folder.path(), "other", &["localhost"]);
    std::fs::copy(folder.path().join("cert.key"), folder.path().join("open.key")).unwrap();
    std::fs::set_permissions(
        folder.path().join("open.key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    for (tls, at, said) in [
        (
            "{ cert: cert.pem, key: other.key }",
            "other.key",
            "the key 'other.key' is not the key of the certificate 'cert.pem'",
        ),
        ("{ cert: cert.pem, key: open.key }", "open.key", "everybody may read the key"),
        ("{ cert: none.pem, key: cert.key }", "none.pem", "cannot read the certificate"),
        ("{ cert: cert.pem }", "{", "the key 'key' is missing in 'tls'"),
        ("{ cert: cert.pem, key: cert.key, client_ca: none.pem }", "none.pem", "cannot read the certificate"),
        (
            "{ cert: cert.pem, key: cert.key, client_auth: optional }",
            "optional",
            "'client_auth' needs 'client_ca'",
        ),
        (
            "{ cert: cert.pem, key: cert.key, more: [{ cert: other.pem, key: cert.key }] }",
            "cert.key }]",
            "is not the key of",
        ),
        ("{ cert: cert.pem, key: cert.key, hsts: 1000d }", "1000d", "is more than 730d"),
        ("{ cert: cert.pem, key: cert.key, redirect: 80 }", "80", "must be"),
    ] {
        let text =
            format!("upstream: http://127.0.0.1:9\nroles: [A]\nlisten: 127.0.0.1:0\ntls: {tls}\n{RULES}");
        std::fs::write(folder.path().join("gateway.yaml"), text).unwrap();
        let column = "tls: ".len() + tls.find(at).unwrap() + 1;
        for output in [run(folder.path(), &["check"], ""), refused_start(folder.path())] {
            let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(2), "{told}");
            assert!(
                told.contains(&format!("gateway.yaml:4:{column}:")) && told.contains(said),
                "{tls}: {told}"
            );
        }
    }
}

#[tokio::test]
async fn an_expired_certificate_is_told_of_and_its_end_is_a_metric() {
    let upstream = Upstream::start().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = authority.issue_with(&["localhost"], |parameters| {
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(2021, 2, 3);
    });
    write(folder.path(), "cert.pem", &cert);
    write(folder.path(), "cert.key", &key);
    let gateway = Gateway::start_in(folder, upstream.address, &format!("{RULES}{TLS}")).await;
    let told = "the certificate 'cert.pem' has expired on 2021-02-03T00:00:00Z";
    assert!(gateway.lines().iter().any(|line| line.contains(told)), "{:#?}", gateway.lines());
    let metric = "portcullis_certificate_expiry_timestamp_seconds{certificate=\"cert.pem\"}";
    assert_eq!(gateway.metric(metric).await, 1_612_310_400.0);
    let status = gateway.admin("GET", "/status").send().await.json();
    assert_eq!(status["certificates"][0]["expired"], true);
    assert_eq!(status["certificates"][0]["names"], serde_json::json!(["localhost"]));
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_the_ca_get_in_where_that_is_required() {
    let upstream = Upstream::start().await;
    let clients = Authority::new();
    for (auth, without) in
        [("", false), (", client_auth: required", false), (", client_auth: optional", true)]
    {
        let authority = Authority::new();
        let folder = tempfile::tempdir().unwrap();
        authority.write(folder.path(), "cert", &["localhost"]);
        write(folder.path(), "ca.pem", &clients.pem());
        let extra = format!("{RULES}tls: {{ cert: cert.pem, key: cert.key, client_ca: ca.pem{auth} }}\n");
        let gateway = Gateway::start_in(folder, upstream.address, &extra).await;
        let tls = authority.client();
        for (client, gets_in) in [
            (tls.clone().showing(clients.issue(&["client.example"])), true),
            (tls.clone().showing(Authority::new().issue(&["client.example"])), false),
            (tls, without),
        ] {
            // In TLS 1.3 the client learns of it only with the first bytes that it reads.
            let answer = match client.connect(gateway.address, "localhost").await {
                Ok(stream) => gateway.get("/").over(stream).await.map(|answer| answer.status).ok(),
                Err(_) => None,
            };
            assert_eq!(answer, gets_in.then_some(200), "{auth}");
        }
    }
}

#[tokio::test]
async fn plain_http_at_the_https_port_gets_a_sentence_and_other_bytes_nothing() {
    let upstream = Upstream::start().await;
    let (gateway, authority) = start(&upstream, TLS).await;
    let told = gateway.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{told}");
    assert!(
        told.contains("plain HTTP was sent to an HTTPS port") && told.contains("connection: close"),
        "{told}"
    );
    for bytes in [&b"\x00\x01"[..], b"\x80\x2e\x01\x00\x02", b"\x16\x03\x01\x00\x05hello", b"\x16\x03"] {
        let mut client = gateway.connect().await;
        client.send(bytes).await;
        client.stream.shutdown().await.unwrap();
        let rest = client.rest().await;
        assert!(!rest.contains("HTTP"), "{rest}");
    }
    gateway.metric_becomes("portcullis_tls_handshakes_total{outcome=\"plain_http\"}", 1.0).await;
    gateway.metric_becomes("portcullis_tls_handshakes_total{outcome=\"failed\"}", 4.0).await;
    assert_eq!(gateway.metric("portcullis_refusals_total{code=\"plain_http\"}").await, 1.0);
    assert_eq!(upstream.count(), 0);
    assert_eq!(gateway.get_by_https(&authority.client(), "/").await.status, 200);
}

#[tokio::test]
async fn a_proxy_protocol_header_comes_before_the_handshake() {
    let upstream = Upstream::start().await;
    let extra = format!("{TLS}trusted_proxies: [127.0.0.1]\nproxy_protocol: required\n");
    let (gateway, authority) = start(&upstream, &extra).await;
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n";
    let stream = authority.client().connect_after(header, gateway.address, "localhost").await.unwrap();
    assert_eq!(gateway.get("/x").over(stream).await.unwrap().status, 200);
    let seen = upstream.last();
    assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert!(authority.client().connect(gateway.address, "localhost").await.is_err());
}

#[tokio::test]
async fn a_tls_client_at_a_plain_port_is_refused_and_the_connection_ends() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let refused = Authority::new().client().connect(gateway.address, "localhost").await;
    assert!(refused.is_err());
    gateway.metric_becomes("portcullis_connections", 0.0).await;
    assert_eq!(gateway.metric("portcullis_refusals_total{code=\"tls_hello\"}").await, 1.0);
}

#[tokio::test]
async fn a_handshake_that_stands_still_is_given_up() {
    let upstream = Upstream::start().await;
    let (gateway, _) = start(&upstream, &format!("{TLS}limits: {{ header_timeout: 200ms }}\n")).await;
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut client = gateway.connect().await;
        client.send(bytes).await;
        assert_eq!(client.rest().await, "");
    }
    gateway.metric_becomes("portcullis_tls_handshakes_total{outcome=\"timed_out\"}", 2.0).await;
    gateway.metric_becomes("portcullis_connections", 0.0).await;
}

#[tokio::test]
async fn who_comes_by_plain_http_is_redirected_to_the_same_page_and_nowhere_else() {
    let upstream = Upstream::start().await;
    let extra = "tls: { cert: cert.pem, key: cert.key, hsts: 180d, redirect: 127.0.0.1:0 }\n";
    let (gateway, authority) = start(&upstream, extra).await;
    let plain = address_in(&gateway.lines(), "redirecting to HTTPS").unwrap();
    let port = gateway.address.port();
    for (request, location) in [
        ("GET /a%20b?c=d HTTP/1.1\r\nHost: localhost", Some(format!("https://localhost:{port}/a%20b?c=d"))),
        (
            "POST /a HTTP/1.1\r\nContent-Length: 3\r\nHost: LocalHost:80",
            Some(format!("https://LocalHost:{port}/a")),
        ),
        (
            "GET //evil.example/ HTTP/1.1\r\nHost: 127.0.0.1:8080",
            Some(format!("https://127.0.0.1:{port}//evil.example/")),
        ),
        ("GET http://localhost/x HTTP/1.1\r\nHost: localhost", Some(format!("https://localhost:{port}/x"))),
        ("GET / HTTP/1.1\r\nHost: evil.example", None),
        ("GET / HTTP/1.1\r\nHost: localhost.evil.example", None),
        ("GET / HTTP/1.1\r\nHost: [::1]", None),
        ("GET / HTTP/1.1\r\nHost: user@localhost", None),
        ("GET / HTTP/1.1\r\nX: y", None),
        ("GET / HTTP/1.0", None),
    ] {
        let mut client = Raw::connect(plain).await;
        client.send(format!("{request}\r\n\r\n")).await;
        let told = client.rest().await;
        match location {
            Some(location) => {
                assert!(told.starts_with("HTTP/1.1 308 "), "{request}: {told}");
                assert!(told.contains(&format!("\r\nlocation: {location}\r\n")), "{request}: {told}");
            }
            None => assert!(
                told.starts_with("HTTP/1.1 400 ") || told.starts_with("HTTP/1.0 400 "),
                "{request}: {told}"
            ),
        }
        assert!(!told.contains("strict-transport-security"), "{told}");
    }
    assert_eq!(upstream.count(), 0);
    let answer = gateway.get_by_https(&authority.client(), "/").await;
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=15552000"));
}

#[tokio::test]
async fn a_redirect_names_the_port_that_it_is_told_to() {
    let upstream = Upstream::start().await;
    for (port, shown) in [(443, String::new()), (8443, ":8443".to_owned())] {
        let extra = format!(
            "tls: {{ cert: cert.pem, key: cert.key, redirect: {{ listen: 127.0.0.1:0, port: {port} }} }}\n"
        );
        let (gateway, _authority) = start(&upstream, &extra).await;
        let plain = address_in(&gateway.lines(), "redirecting to HTTPS").unwrap();
        let mut client = KeepAlive::connect(plain).await;
        let answer = client.send(client.request("GET", "/x").host("localhost")).await.unwrap();
        assert_eq!(answer.header("location"), Some(format!("https://localhost{shown}/x").as_str()));
    }
}

#[tokio::test]
async fn a_page_that_came_by_plain_http_is_foreign_to_one_by_https() {
    let upstream = Upstream::start().await;
    let extra = format!("{TLS}login: {{ cookie: true }}\n").replace("public", "Viewer");
    let (gateway, authority) = start(&upstream, &extra).await;
    let host = format!("localhost:{}", gateway.address.port());
    for (scheme, status) in [("https", 401), ("http", 403)] {
        let stream = authority.client().connect(gateway.address, "localhost").await.unwrap();
        let login = gateway.post("/auth/login").host(&host).header("origin", &format!("{scheme}://{host}"));
        let login = login.json(&serde_json::json!({ "username": "vera", "password": "wrong" }));
        assert_eq!(login.over(stream).await.unwrap().status, status, "{scheme}");
    }
}

#[tokio::test]
async fn curl_and_openssl_speak_with_it() {
    let upstream = Upstream::start().await;
    let (gateway, authority) = start(&upstream, TLS).await;
    write(gateway.folder.path(), "ca.pem", &authority.pem());
    let ca = gateway.folder.path().join("ca.pem");
    let ca = ca.to_str().unwrap();
    let port = gateway.address.port();
    let Some(curl) = program("curl") else { return skip("HTTPS by curl", "curl") };
    for arguments in [&["--tls-max", "1.2"][..], &["--tlsv1.3"], &["--http1.1", "--data", "x=y"]] {
        let mut curl = Command::new(&curl);
        curl.args(["-sS", "--cacert", ca, "--max-time", "20"]).args(arguments);
        curl.args(["-w", " %{http_code}", &format!("https://localhost:{port}/x")]);
        curl.args(["--resolve", &format!("localhost:{port}:127.0.0.1")]);
        let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(told, "upstream 200", "{arguments:?}");
    }
    let Some(openssl) = program("openssl") else { return skip("TLS by openssl", "openssl") };
    // (what it insists on, whether it gets a session)
    for (arguments, agreed) in [
        (&["-tls1_3"][..], true),
        (&["-tls1_2"], true),
        (&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "AES128-SHA"], false),
        (&["-alpn", "http/1.1"], true),
        (&["-alpn", "imap"], false),
    ] {
        let mut openssl = Command::new(&openssl);
        openssl.args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{port}"),
            "-servername",
            "localhost",
            "-CAfile",
            ca,
        ]);
        openssl.args(["-verify_return_error", "-brief"]).args(arguments).stdin(std::process::Stdio::null());
        let output = tokio::task::spawn_blocking(move || openssl.output().unwrap()).await.unwrap();
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(told.contains("CONNECTION ESTABLISHED"), agreed, "{arguments:?}: {told}");
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_is_closed_as_tls_wants_it() {
    let upstream = Upstream::start().await;
    let (gateway, authority) = start(&upstream, TLS).await;
    let mut stream = authority.client().connect(gateway.address, "localhost").await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    // Without a close_notify this would be an error: a cut connection.
    stream.read_to_end(&mut told).await.unwrap();
    assert!(told.ends_with(b"upstream"));
    // What is wrong with a head is told by TLS as well.
    let mut stream = authority.client().connect(gateway.address, "localhost").await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    stream.read_to_end(&mut told).await.unwrap();
    assert!(told.starts_with(b"HTTP/1.1 400 "));
    let mut plain = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    plain.write_all(b"\x15\x03\x03").await.unwrap();
    assert_eq!(read_to_end(&mut plain).await, "");
}
