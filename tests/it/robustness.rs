//! Whatever comes, the process goes on, and says what happened in lines that nobody else wrote.

use crate::harness::{Gateway, PASSWORD, Raw, RawUpstream, Upstream, field, status_of};

const OPEN: &str = "rules: [{ path: /open/*, allow: public }, { path: /in/*, allow: Viewer }]";

#[tokio::test]
async fn a_login_body_that_is_none_is_told_what_is_wrong_with_it() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, OPEN).await;
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    let good = format!(r#"{{"username":"vera","password":"{PASSWORD}"}}"#);
    let large = format!(r#"{{"username":"vera","password":"{}"}}"#, "x".repeat(70_000));
    for (content_type, body, status) in [
        (json, good.as_str(), 200),
        ("application/json; charset=utf-8", &good, 200),
        ("APPLICATION/JSON", &good, 200),
        (form, "username=vera&password=correct+horse%20battery", 200),
        ("text/plain", &good, 415),
        ("", &good, 415),
        ("multipart/form-data; boundary=x", &good, 415),
        (json, &large, 413),
        (form, &large, 413),
        (json, "", 400),
        (json, "{", 400),
        (json, "[]", 400),
        (json, "null", 400),
        (json, r#"{"username":"vera"}"#, 400),
        (json, r#"{"password":"x"}"#, 400),
        (json, r#"{"username":1,"password":"x"}"#, 400),
        (json, r#"{"username":null,"password":"x"}"#, 400),
        (json, r#"{"username":["vera"],"password":"x"}"#, 400),
        (json, "\u{feff}", 400),
        (form, "username=vera", 400),
        (form, "", 400),
        (json, r#"{"username":"vera","password":"wrong"}"#, 401),
        (json, r#"{"username":"nobody","password":"wrong"}"#, 401),
        (json, r#"{"username":"VERA\u0000","password":"wrong"}"#, 401),
        (form, "username=vera&password=wrong", 401),
    ] {
        let mut call = gateway.post("/auth/login").body(body.to_owned());
        if !content_type.is_empty() {
            call = call.header("content-type", content_type);
        }
        let answer = call.send().await;
        let shown = &body[..body.len().min(60)];
        assert_eq!(answer.status, status, "{content_type} {shown}: {}", answer.text());
        if status != 200 {
            assert!(answer.json()["error"].is_string(), "{content_type} {shown}");
        }
    }
    // Deeply nested, and not UTF-8.
    for body in ["[".repeat(60_000).into_bytes(), b"{\"username\":\"\xff\",\"password\":\"x\"}".to_vec()] {
        let answer = gateway.post("/auth/login").header("content-type", json).body(body).send().await;
        assert_eq!(answer.status, 400);
    }
    assert_eq!(gateway.get("/auth/login").send().await.status, 405);
    assert_eq!(upstream.count(), 0);
    assert_eq!(gateway.metric("portcullis_panics_total").await, 0.0);
}

#[tokio::test]
async fn more_logins_than_can_wait_are_turned_away_and_the_rest_are_served() {
    let upstream = Upstream::start().await;
    // Of one account from one address, more than may fail wait for one another and not for a core.
    let limits = "login: { max_failures: 1000, max_failures_per_address: 1000 }";
    let gateway = Gateway::start(&upstream, &format!("{OPEN}\n{limits}")).await;
    let mut logins = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let call = gateway
            .post("/auth/login")
            .json(&serde_json::json!({ "username": "vera", "password": PASSWORD }));
        logins.spawn(call.send());
    }
    let (mut served, mut turned_away) = (0, 0);
    while let Some(answer) = logins.join_next().await {
        let answer = answer.unwrap();
        match answer.status {
            200 => served += 1,
            503 => {
                assert_eq!(answer.header("retry-after"), Some("1"));
                turned_away += 1;
            }
            other => panic!("{other}: {}", answer.text()),
        }
        // Everybody else is served meanwhile.
        if served + turned_away == 100 {
            assert_eq!(gateway.get("/open/x").send().await.status, 200);
        }
    }
    assert!(served >= 64, "{served} served, {turned_away} turned away");
    assert!(turned_away > 0, "{served} served, {turned_away} turned away");
    gateway.login("vera").await;
}

#[tokio::test]
async fn hundreds_of_kept_connections_come_and_go_and_leave_nothing_behind() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        &format!("{OPEN}\nupstream: {{ url: \"http://UPSTREAM\", idle_timeout: 1s }}"),
    )
    .await;
    let token = gateway.login("vera").await;
    let quiet = descriptors(&gateway);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..400 {
        let (address, token) = (gateway.address, token.clone());
        clients.spawn(async move {
            let mut client = Raw::connect(address).await;
            for round in 0..5 {
                let body = format!("{number}-{round}");
                client
                    .send(format!(
                        "POST /in/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ))
                    .await;
                assert_eq!(client.message().await.1, "upstream");
            }
            client
        });
    }
    let mut kept = Vec::new();
    while let Some(client) = clients.join_next().await {
        kept.push(client.unwrap());
    }
    assert_eq!(upstream.count(), 2000);
    assert_eq!(gateway.metric("portcullis_connections").await, 400.0);
    drop(kept);
    gateway.metric_becomes("portcullis_connections", 0.0).await;
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    while descriptors(&gateway) > quiet + 2 {
        assert!(
            std::time::Instant::now() < deadline,
            "{} descriptors, {quiet} before",
            descriptors(&gateway)
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn descriptors(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count()
}

/// Processor time of the gateway so far, in clock ticks (proc(5), fields 14 and 15).
fn ticks(gateway: &Gateway) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn without_file_descriptors_it_waits_and_neither_dies_nor_spins() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&upstream, OPEN).await;
    let limit = descriptors(&gateway) + 20;
    let status = std::process::Command::new("prlimit")
        .args([&format!("--pid={}", gateway.pid()), &format!("--nofile={limit}:{limit}")])
        .status()
        .unwrap();
    assert!(status.success());
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(gateway.connect().await);
    }
    gateway.wait_for_line(0, |line| line.contains("cannot accept a connection")).await;
    // An accepted one finds no descriptor for the upstream.
    held[0].send("GET /open/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status_of(&held[0].message().await.0), 502);
    let before = ticks(&gateway);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let used = ticks(&gateway) - before;
    assert!(used < 30, "{used} of 100 ticks of a second, doing nothing");
    assert!(gateway.is_running());
    drop(held);
    assert_eq!(gateway.get("/open/x").send().await.status, 200);
    let complaints = gateway.lines().iter().filter(|line| line.contains("cannot accept")).count();
    assert!(complaints < 5, "{complaints} lines about it");
    gateway.metric_becomes("portcullis_connections", 0.0).await;
}

/// A small generator of numbers that are the same in every run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

#[tokio::test]
async fn two_thousand_streams_of_garbage_change_nothing() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&upstream, OPEN).await;
    let pieces: [&[u8]; 28] = [
        b"GET ",
        b"POST ",
        b"/open/x",
        b"/in/%2e%2e",
        b"/auth/login",
        b" HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"\0",
        b"\xff\xfe",
        b"\n",
        b"\r",
        b": ",
        b"X-Auth-User: root\r\n",
        b"Authorization: Bearer a.b.c\r\n",
        b"?a=%",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"http://a/open/x",
        b"TE: trailers\r\n",
        b"{\"username\":\"vera\"}",
    ];
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for round in 0..2000 {
        let mut bytes = Vec::new();
        for _ in 0..numbers.below(12) {
            match numbers.below(8) {
                0 => bytes.extend((0..numbers.below(40)).map(|_| u8::try_from(numbers.below(256)).unwrap())),
                1..=3 => bytes.extend_from_slice(b"POST /open/x HTTP/1.1\r\nHost: a\r\n"),
                _ => bytes.extend_from_slice(pieces[numbers.below(pieces.len())]),
            }
        }
        let mut client = gateway.connect().await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, &bytes).await;
        match round % 3 {
            0 => client.reset(),
            1 => drop(client),
            _ => {
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await;
                client.rest().await;
            }
        }
    }
    assert!(gateway.is_running());
    assert_eq!(gateway.metric("portcullis_panics_total").await, 0.0);
    gateway.metric_becomes("portcullis_connections", 0.0).await;
    assert_eq!(gateway.get("/open/x").send().await.status, 200);
    assert!(upstream.seen().iter().all(|seen| seen.target.starts_with("/open/x")), "only what is open");
    for line in gateway.lines() {
        serde_json::from_str::<serde_json::Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[tokio::test]
async fn hostile_requests_leave_single_lines_without_a_secret() {
    let upstream = Upstream::start().await;
    let mut gateway =
        Gateway::start(&upstream, &format!("{OPEN}\nshutdown: {{ drain: 0s, timeout: 5s }}")).await;
    let token = gateway.login("vera").await;
    let other = gateway.login("eddie").await;
    for target in [
        "/open/a\"b",
        "/open/{\"log\":\"audit\"}",
        "/open/x?token=hunter2-in-a-query",
        "/in/\"x\"}",
        "/none/%0a",
    ] {
        let mut client = gateway.connect().await;
        client
            .send(format!(
                "GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nUser-Agent: \"}}\u{e9}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        client.rest().await;
    }
    gateway.get("/in/x").bearer(&format!("{other}x")).send().await;
    for (user, password) in [
        ("eve\"\n{\"log\":\"audit\",\"event\":\"login\"}", "hunter2-wrong"),
        ("\u{1b}[31m\u{2028}", "hunter2-wrong"),
    ] {
        let attempt = serde_json::json!({ "username": user, "password": password });
        assert_eq!(gateway.post("/auth/login").json(&attempt).send().await.status, 401);
    }
    // A password in the field of the name is no rarity.
    let attempt = serde_json::json!({ "username": "vera", "password": "hunter2-wrong" });
    assert_eq!(gateway.post("/auth/login").json(&attempt).send().await.status, 401);
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await, Some(0));
    gateway.wait_for_line(0, |line| line == "(the gateway has ended)").await;
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    let lines = gateway.lines();
    for line in lines.iter().filter(|line| !line.starts_with('(')) {
        let parsed: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        *kinds.entry(parsed["log"].as_str().unwrap_or("other").to_owned()).or_default() += 1;
        assert!(line.bytes().all(|byte| byte >= b' '), "{line}");
        for secret in [&token, &other, "hunter2", PASSWORD, &token[token.len() - 40..]] {
            assert!(!line.contains(secret), "{line}");
        }
    }
    assert_eq!(kinds["access"], 2 + 5 + 1 + 3, "{lines:#?}");
    let logins = lines
        .iter()
        .filter(|line| line.contains("\"event\":\"login\"") && line.contains("\"log\":\"audit\""));
    assert_eq!(logins.count(), 2, "only those that were");
}

#[tokio::test]
async fn many_clients_that_vanish_leave_no_connection_to_the_upstream_behind() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, OPEN).await;
    let mut servers = Vec::new();
    for number in 0..60 {
        let mut client = gateway.connect().await;
        client.send("GET /open/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut server = upstream.accept().await;
        let head = server.head().await;
        assert_eq!(field(&head, "host"), Some("a"));
        if number % 2 == 0 {
            client.reset()
        } else {
            drop(client)
        }
        servers.push(server);
    }
    for server in &mut servers {
        assert_eq!(server.rest().await, "");
    }
    gateway.metric_becomes("portcullis_connections", 0.0).await;
}
