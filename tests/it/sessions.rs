//! Tokens end when they should: logout, rotation, revocation, changes of users, and what is acknowledged
//! stays so, whatever happens next.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::token::decode_without_verifying;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, Executor, SqliteConnection};

use crate::harness::{
    Answer, Gateway, KeepAlive, PASSWORD, Raw, RawUpstream, Upstream, binary, run, status_of,
};

const RULES: &str = "rules: [{ path: /*, allow: Viewer }, { path: /open, allow: public }]";

const ROTATING: &str = "rules: [{ path: /*, allow: Viewer }]\nlogin: { rotate: /auth/rotate }";

async fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.get("/page").bearer(token).send().await.status
}

async fn log_out(gateway: &Gateway, token: &str) -> u16 {
    gateway.post("/auth/logout").bearer(token).send().await.status
}

async fn rotate(gateway: &Gateway, token: &str) -> Answer {
    gateway.post("/auth/rotate").bearer(token).send().await
}

/// Rotates a token that is live and returns its successor.
async fn successor(gateway: &Gateway, token: &str) -> String {
    let answer = rotate(gateway, token).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["token"].as_str().unwrap().to_owned()
}

fn claims(token: &str) -> Value {
    decode_without_verifying(token).unwrap().claims
}

/// Runs a command that has to succeed.
fn command(gateway: &Gateway, arguments: &[&str], stdin: &str) {
    let output = gateway.run(arguments, stdin);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until a token is refused, which has to be within a second.
async fn refused_within_a_second(gateway: &Gateway, token: &str, what: &str) {
    let began = Instant::now();
    while status(gateway, token).await != 401 {
        assert!(began.elapsed() < Duration::from_secs(1), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A connection of the test's own to the database.
async fn database(gateway: &Gateway, name: &str) -> SqliteConnection {
    let file = gateway.folder.path().join("data").join(name);
    sqlx::sqlite::SqliteConnectOptions::new().filename(file).connect().await.unwrap()
}

#[tokio::test]
async fn a_logged_out_token_is_refused_on_the_next_request_by_every_thread() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &format!("{RULES}\nworkers: 4")).await;
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(KeepAlive::connect(gateway.address).await);
    }
    let other = gateway.login("eddie").await;
    for round in 0..10 {
        let token = gateway.login("vera").await;
        // Known to every thread, so that none has to verify it again.
        for connection in &mut connections {
            let call = connection.request("GET", "/page").bearer(&token);
            assert_eq!(connection.send(call).await.unwrap().status, 200);
        }
        let logout = connections[round % 8].request("POST", "/auth/logout").bearer(&token);
        let answer = connections[round % 8].send(logout).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (204, ""));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        for connection in &mut connections {
            let call = connection.request("GET", "/page").bearer(&token);
            let answer = connection.send(call).await.unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (401, r#"{"error":"Invalid token"}"#));
            assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
        }
        assert_eq!(gateway.get("/open").bearer(&token).send().await.status, 200, "public stays public");
        assert_eq!(upstream.last().header("x-auth-user"), None);
    }
    assert_eq!(status(&gateway, &other).await, 200, "nobody else's token ends");
    gateway.metric_becomes("portcullis_revocations", 10.0).await;
    assert_eq!(gateway.metric("portcullis_logouts_total{outcome=\"success\"}").await, 10.0);
}

#[tokio::test]
async fn a_logout_changes_nothing_for_a_token_that_is_over_or_was_never_one() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &format!("{RULES}\ntokens: {{ ttl: 2s }}")).await;
    let gone = gateway.login("vera").await;
    assert_eq!(log_out(&gateway, &gone).await, 204);
    assert_eq!(log_out(&gateway, &gone).await, 204, "again");
    for (authorization, status) in [("Bearer x.y.z", 401), ("Bearer", 401), ("Basic eDp5", 401), ("", 401)] {
        let call = gateway.post("/auth/logout");
        let call = if authorization.is_empty() { call } else { call.header("authorization", authorization) };
        assert_eq!(call.send().await.status, status, "{authorization}");
    }
    let twice = gateway.post("/auth/logout").bearer(&gone).bearer(&gone).send().await;
    assert_eq!(twice.status, 400);
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        let answer = gateway.request(method, "/auth/logout").bearer(&gone).send().await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{method}");
    }
    let token = gateway.login("vera").await;
    let with_body = gateway.post("/auth/logout").bearer(&token).json(&json!({ "a": [1] })).send().await;
    assert_eq!(with_body.status, 204);
    // Under any reading the path is ours.
    for path in ["/auth/LOGOUT", "/auth//logout", "/auth/logout/", "/auth/logout;x", "/auth/%6cogout"] {
        let answer = gateway.post(path).bearer(&gone).send().await;
        assert!([204, 401, 403].contains(&answer.status), "{path}: {}", answer.status);
    }
    let expiring = gateway.login("vera").await;
    while status(&gateway, &expiring).await == 200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = gateway.metric("portcullis_revocations").await;
    assert_eq!(log_out(&gateway, &expiring).await, 204);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(gateway.metric("portcullis_revocations").await, before);
    let seen: Vec<_> = upstream.seen().into_iter().map(|seen| seen.target).collect();
    assert!(seen.iter().all(|target| target == "/page"), "{seen:?}");
}

#[tokio::test]
async fn a_logout_everywhere_ends_what_the_user_had_and_nothing_that_comes_later() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    for query in ["?all", "?all=true", "?all=1", "?x=y&ALL=yes"] {
        let tokens = [gateway.login("vera").await, gateway.login("vera").await, gateway.login("vera").await];
        let other = gateway.login("eddie").await;
        for query in ["", "?all=false", "?all=0", "?allx=1"] {
            assert_eq!(status(&gateway, &tokens[1]).await, 200, "{query}");
        }
        let seen = gateway.lines().len();
        let answer = gateway.post(&format!("/auth/logout{query}")).bearer(&tokens[0]).send().await;
        assert_eq!(answer.status, 204);
        // At once, and told apart exactly.
        let later = gateway.login("vera").await;
        for token in &tokens {
            assert_eq!(status(&gateway, token).await, 401, "{query}");
        }
        for token in [&later, &other] {
            assert_eq!(status(&gateway, token).await, 200, "{query}");
        }
        gateway
            .wait_for_line(seen, |line| {
                line.contains(r#""event":"logout","user":"vera""#)
                    && line.contains(r#""reason":"everywhere""#)
            })
            .await;
    }
    let token = gateway.login("vera").await;
    let other = gateway.login("vera").await;
    assert_eq!(gateway.post("/auth/logout?all=false").bearer(&token).send().await.status, 204);
    assert_eq!(status(&gateway, &other).await, 200);
}

/// The same ECDSA signature with the other of its two values of `s` (n - s).
fn twin(token: &str) -> String {
    // The order of P-256 (SEC 2, §2.4.2).
    const N: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut borrow = 0;
    for (s, n) in signature[32..].iter_mut().zip(N).rev() {
        let difference = i16::from(n) - i16::from(*s) - borrow;
        borrow = i16::from(difference < 0);
        *s = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn the_spellings_of_one_token_are_one_token() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /*, allow: Viewer }]\ntokens: { algorithm: ES256 }\nlogin: { rotate: /auth/rotate }",
    )
    .await;
    let token = gateway.login("vera").await;
    let other = twin(&token);
    assert_ne!(token, other);
    for spelling in [&token, &other] {
        assert_eq!(status(&gateway, spelling).await, 200);
    }
    assert_eq!(log_out(&gateway, &other).await, 204);
    for spelling in [&token, &other, &format!("{token}="), &format!("{token}.")] {
        assert_eq!(status(&gateway, spelling).await, 401);
    }
    // And a rotated one is rotated in each.
    let token = gateway.login("vera").await;
    let first = successor(&gateway, &token).await;
    let second = successor(&gateway, &twin(&token)).await;
    assert_eq!(claims(&first)["jti"], claims(&second)["jti"]);
    assert_eq!(status(&gateway, &twin(&token)).await, 401);
}

#[tokio::test]
async fn a_change_of_a_user_by_another_process_ends_the_tokens_from_before() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let other = gateway.login("eddie").await;
    for (arguments, stdin, can_log_in) in [
        (&["user", "role", "vera", "Editor"][..], "", true),
        (&["user", "role", "vera", "Editor"], "", true),
        (&["user", "passwd", "vera", "--password-stdin"], PASSWORD, true),
        (&["user", "disable", "vera"], "", false),
        (&["user", "enable", "vera"], "", true),
        (&["token", "revoke", "--user", "vera"], "", true),
        (&["user", "remove", "vera"], "", false),
    ] {
        if arguments[1] == "enable" {
            command(&gateway, arguments, stdin);
            continue;
        }
        let token = gateway.login("vera").await;
        assert_eq!(status(&gateway, &token).await, 200);
        let seen = gateway.lines().len();
        command(&gateway, arguments, stdin);
        if can_log_in {
            // In the same second, and before the gateway has heard of it, perhaps.
            let later = gateway.login("vera").await;
            refused_within_a_second(&gateway, &token, arguments[1]).await;
            assert_eq!(status(&gateway, &later).await, 200, "{arguments:?}");
        } else {
            refused_within_a_second(&gateway, &token, arguments[1]).await;
        }
        let event = if arguments[0] == "token" { "revocation" } else { "user_change" };
        gateway
            .wait_for_line(seen, move |line| line.contains(&format!(r#""event":"{event}","user":"vera""#)))
            .await;
    }
    assert_eq!(status(&gateway, &other).await, 200, "nobody else's token ends");
}

#[tokio::test]
async fn a_token_issued_while_its_user_is_changed_never_outlives_the_change() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    for round in 0..6 {
        let role = ["Viewer", "Editor"][round % 2];
        let folder = gateway.folder.path().to_owned();
        let change = tokio::task::spawn_blocking(move || run(&folder, &["user", "role", "vera", role], ""));
        let mut issued = Vec::new();
        while !change.is_finished() {
            issued.push(gateway.login("vera").await);
        }
        assert!(change.await.unwrap().status.success());
        tokio::time::sleep(Duration::from_secs(1)).await;
        for token in &issued {
            if status(&gateway, token).await == 200 {
                assert_eq!(upstream.last().header("x-auth-role"), Some(role));
            }
        }
    }
}

#[tokio::test]
async fn a_token_is_revoked_by_its_text_its_id_or_its_user() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let tokens = [gateway.login("vera").await, gateway.login("vera").await, gateway.login("vera").await];
    let by_id = claims(&tokens[1])["jti"].as_str().unwrap().to_owned();
    for (index, (arguments, stdin)) in [
        (vec!["token", "revoke", "-"], tokens[0].as_str()),
        (vec!["token", "revoke", "--jti", by_id.as_str()], ""),
        (vec!["token", "revoke", "--user", "VERA"], ""),
    ]
    .into_iter()
    .enumerate()
    {
        for (place, token) in tokens.iter().enumerate() {
            assert_eq!(status(&gateway, token).await, if place < index { 401 } else { 200 });
        }
        command(&gateway, &arguments, stdin);
        refused_within_a_second(&gateway, &tokens[index], &arguments.join(" ")).await;
    }
    for (arguments, code, told) in [
        (vec!["token", "revoke"], 2, "required"),
        (vec!["token", "revoke", "x.y.z"], 1, "nothing to revoke"),
        (vec!["token", "revoke", "--user", "nobody"], 1, "no user 'nobody'"),
        (vec!["token", "revoke", "--user", "vera", "--jti", "x"], 2, "cannot be used with"),
        (vec!["token", "revoke", "--user", "vera", "--issuer", "who"], 2, "not one of 'tokens.trust'"),
    ] {
        let output = gateway.run(&arguments, "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(told), "{said}");
    }
}

#[tokio::test]
async fn a_rotation_gives_a_fresh_token_and_ends_the_old_one() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, ROTATING).await;
    let token = gateway.login("vera").await;
    let seen = gateway.lines().len();
    let answer = rotate(&gateway, &token).await;
    let body = answer.json();
    assert_eq!((answer.status, &body["user"]["role"]), (200, &json!("Viewer")), "it answers like a login");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let fresh = body["token"].as_str().unwrap();
    let (before, after) = (claims(&token), claims(fresh));
    for claim in ["iss", "sub", "aud", "sid", "auth_time", "gen", "preferred_username", "role"] {
        assert_eq!(before[claim], after[claim], "{claim}");
    }
    assert_ne!(before["jti"], after["jti"]);
    assert_eq!((status(&gateway, &token).await, status(&gateway, fresh).await), (401, 200));
    gateway.wait_for_line(seen, |line| line.contains(r#""event":"rotation","user":"vera""#)).await;
    // A logout with either of them is the end of both.
    assert_eq!(log_out(&gateway, fresh).await, 204);
    for over in [&token, fresh] {
        assert_eq!(rotate(&gateway, over).await.status, 401);
    }
    for (method, bearer, status) in [("GET", None, 405), ("POST", None, 401), ("POST", Some("x.y.z"), 401)] {
        let call = gateway.request(method, "/auth/rotate");
        let call = if let Some(token) = bearer { call.bearer(token) } else { call };
        assert_eq!(call.send().await.status, status);
    }
    command(&gateway, &["user", "disable", "eddie"], "");
    assert_eq!(gateway.metric("portcullis_rotations_total{outcome=\"success\"}").await, 1.0);
}

#[tokio::test]
async fn two_tabs_get_the_same_successor_and_later_reuse_ends_the_family() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /*, allow: Viewer }]\nlogin: { rotate: /auth/rotate, rotate_grace: 1s }",
    )
    .await;
    let token = gateway.login("vera").await;
    let (one, other) = tokio::join!(successor(&gateway, &token), successor(&gateway, &token));
    assert_eq!(claims(&one), claims(&other));
    let stranger = gateway.login("vera").await;
    // Elsewhere it is only a token that is over.
    assert_eq!(status(&gateway, &token).await, 401);
    assert_eq!(status(&gateway, &one).await, 200);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(status(&gateway, &token).await, 401);
    assert_eq!(status(&gateway, &one).await, 200);
    let newest = successor(&gateway, &one).await;
    let seen = gateway.lines().len();
    let reused = rotate(&gateway, &token).await;
    assert_eq!((reused.status, reused.text().as_str()), (401, r#"{"error":"Invalid token"}"#));
    gateway.wait_for_line(seen, |line| line.contains(r#""event":"reuse","user":"vera""#)).await;
    for over in [&token, &one, &newest] {
        assert_eq!(status(&gateway, over).await, 401);
        assert_eq!(rotate(&gateway, over).await.status, 401);
    }
    assert_eq!(status(&gateway, &stranger).await, 200, "another login is another family");
    assert_eq!(gateway.metric("portcullis_rotations_total{outcome=\"reuse\"}").await, 1.0);
}

#[tokio::test]
async fn no_rotation_leads_past_the_end_of_the_session() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /*, allow: Viewer }]\ntokens: { ttl: 3s, max_session: 4s, leeway: 5m }\n\
         login: { rotate: /auth/rotate, response: { token: $token, expires_in: $expires_in } }",
    )
    .await;
    let mut token = gateway.login("vera").await;
    let began = claims(&token)["auth_time"].as_u64().unwrap();
    loop {
        let answer = rotate(&gateway, &token).await;
        if answer.status != 200 {
            assert_eq!((answer.status, answer.text().as_str()), (401, r#"{"error":"Token expired"}"#));
            break;
        }
        let body = answer.json();
        token = body["token"].as_str().unwrap().to_owned();
        let claims = claims(&token);
        assert_eq!(claims["auth_time"], began);
        let (issued, expires) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
        assert!(expires <= began + 4 && expires <= issued + 3);
        assert!(body["expires_in"].as_u64().unwrap() <= 3);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now >= began + 4);
}

#[tokio::test]
async fn a_trusted_issuers_token_ends_alone_and_cannot_be_rotated() {
    let upstream = Upstream::start().await;
    let secret = "0123456789abcdef0123456789abcdef";
    let gateway = Gateway::start(
        &upstream,
        &format!(
            "{ROTATING}\ntokens:\n  trust:\n    - {{ issuer: idp, audience: portcullis, secret: {secret}, id_prefix: 'idp:' }}"
        ),
    )
    .await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let token = |extra: Value| {
        let mut claims = json!({ "iss": "idp", "sub": "u1", "aud": "portcullis", "exp": now + 600, "iat": now - 10,
            "sid": "over-there", "role": "Viewer" });
        claims.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    // One without `jti` is known by what is signed.
    for (one, other) in [
        (token(json!({ "jti": "a" })), token(json!({ "jti": "b" }))),
        (token(json!({ "n": 1 })), token(json!({ "n": 2 }))),
    ] {
        assert_eq!((status(&gateway, &one).await, status(&gateway, &other).await), (200, 200));
        let answer = rotate(&gateway, &one).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("issued here at a login"), "{}", answer.text());
        assert_eq!(log_out(&gateway, &one).await, 204);
        assert_eq!((status(&gateway, &one).await, status(&gateway, &other).await), (401, 200));
    }
    let (one, later) = (token(json!({ "jti": "c" })), token(json!({ "jti": "d", "iat": now + 30 })));
    command(&gateway, &["token", "revoke", "--user", "idp:u1", "--issuer", "idp"], "");
    refused_within_a_second(&gateway, &one, "--user --issuer").await;
    assert_eq!(status(&gateway, &later).await, 200);
    command(&gateway, &["token", "revoke", "--jti", "d", "--issuer", "idp"], "");
    refused_within_a_second(&gateway, &later, "--jti --issuer").await;
}

#[tokio::test]
async fn open_connections_end_with_the_token_they_were_opened_with() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, RULES).await;
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let events = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
        Transfer-Encoding: chunked\r\n\r\nb\r\ndata: one\n\n\r\n";
    for (asked, answer, end) in [(websocket, switch, ""), ("", events, "0\r\n\r\n")] {
        let token = gateway.login("vera").await;
        let (mut ours, mut server) = open(&gateway, &upstream, Some(&token), asked, answer).await;
        let other = gateway.login("vera").await;
        let (mut others, mut other_server) = open(&gateway, &upstream, Some(&other), asked, answer).await;
        let (mut nobodys, mut public_server) = open(&gateway, &upstream, None, asked, answer).await;
        assert_eq!(log_out(&gateway, &token).await, 204);
        if end.is_empty() {
            assert_eq!(ours.rest().await, "");
        } else {
            ours.until(end).await;
        }
        assert_eq!(server.rest().await, "", "the upstream hears of it");
        // And nobody else's.
        for (client, server) in [(&mut others, &mut other_server), (&mut nobodys, &mut public_server)] {
            server.send("8\r\ndata: 2\n\r\n").await;
            client.until("data: 2\n").await;
        }
    }
}

async fn open(
    gateway: &Gateway,
    upstream: &RawUpstream,
    token: Option<&str>,
    asked: &str,
    answer: &str,
) -> (Raw, Raw) {
    let mut client = gateway.connect().await;
    let authorization = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    client.send(format!("GET /open HTTP/1.1\r\nHost: a\r\n{authorization}{asked}\r\n")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send(answer).await;
    assert!([101, 200].contains(&status_of(&client.head().await)));
    (client, server)
}

#[tokio::test]
async fn a_stream_of_events_ends_when_its_token_expires_and_a_download_does_not() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, &format!("{RULES}\ntokens: {{ ttl: 2s }}")).await;
    let token = gateway.login("vera").await;
    let head = |kind| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
    };
    let (mut events, mut server) =
        open(&gateway, &upstream, Some(&token), "", &head("text/event-stream")).await;
    let (mut download, mut file) = open(&gateway, &upstream, Some(&token), "", &head("video/mp4")).await;
    events.until("0\r\n\r\n").await;
    assert_eq!(server.rest().await, "");
    assert_eq!(status(&gateway, &token).await, 401);
    file.send("1\r\ny\r\n0\r\n\r\n").await;
    download.until("y").await;
    download.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_store_that_fails_costs_no_session_and_makes_no_promise() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, ROTATING).await;
    let (token, kept) = (gateway.login("vera").await, gateway.login("vera").await);
    let file = gateway.folder.path().join("data/portcullis.db");

    // Unwritable: somebody else has the lock.
    let mut locking = database(&gateway, "portcullis.db").await;
    locking.execute("BEGIN IMMEDIATE").await.unwrap();
    let (logout, rotation) = tokio::join!(
        gateway.post("/auth/logout").bearer(&token).send(),
        gateway.post("/auth/rotate").bearer(&token).send()
    );
    for answer in [logout, rotation] {
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (503, r#"{"error":"Session store unavailable"}"#)
        );
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(status(&gateway, &token).await, 200);
    locking.execute("ROLLBACK").await.unwrap();
    locking.close().await.unwrap();
    assert_eq!(status(&gateway, &successor(&gateway, &token).await).await, 200);

    // Gone.
    std::fs::rename(&file, file.with_extension("moved")).unwrap();
    gateway.metric_becomes("portcullis_store_up{store=\"sessions\"}", 0.0).await;
    gateway.metric_becomes("portcullis_store_up{store=\"users\"}", 0.0).await;
    assert_eq!((log_out(&gateway, &kept).await, rotate(&gateway, &kept).await.status), (503, 503));
    assert_eq!(status(&gateway, &kept).await, 200);
    let login = json!({ "username": "vera", "password": PASSWORD });
    let answer = gateway.post("/auth/login").json(&login).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (500, r#"{"error":"Failed to fetch user"}"#));
    let stores = gateway.admin("GET", "/status").send().await.json()["stores"].clone();
    for store in ["users", "sessions"] {
        assert!(stores[store].as_str().unwrap().contains("moved or removed"), "{stores}");
    }
    assert_eq!(gateway.admin("GET", "/readyz").send().await.status, 200, "a store lost later is no reason");
    assert!(!file.exists(), "nothing is put in its place");

    // And back, without a restart.
    std::fs::rename(file.with_extension("moved"), &file).unwrap();
    gateway.metric_becomes("portcullis_store_up{store=\"sessions\"}", 1.0).await;
    gateway.metric_becomes("portcullis_store_up{store=\"users\"}", 1.0).await;
    gateway.login("vera").await;
    assert_eq!(log_out(&gateway, &kept).await, 204);
    assert_eq!(status(&gateway, &kept).await, 401);
}

#[tokio::test]
async fn until_revocations_have_been_read_no_token_counts() {
    let upstream = Upstream::start().await;
    let extra = format!("{RULES}\nsessions: sqlite:sessions.db");
    let mut gateway = Gateway::start(&upstream, &extra).await;
    let (token, ended) = (gateway.login("vera").await, gateway.login("vera").await);
    assert_eq!(log_out(&gateway, &ended).await, 204);
    gateway.signal("TERM");
    gateway.ended().await;
    let file = gateway.folder.path().join("data/sessions.db");
    let mut locking = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&file)
        .locking_mode(sqlx::sqlite::SqliteLockingMode::Exclusive)
        .connect()
        .await
        .unwrap();
    locking.execute("BEGIN EXCLUSIVE").await.unwrap();
    gateway.kill_and_restart().await;
    let answer = gateway.admin("GET", "/readyz").send().await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "revocations are not loaded\n"));
    for token in [&token, &ended] {
        let answer = gateway.get("/page").bearer(token).send().await;
        let body = r#"{"error":"Starting, try again in a moment"}"#;
        assert_eq!((answer.status, answer.text().as_str()), (503, body));
    }
    assert_eq!(gateway.get("/open").bearer(&token).send().await.status, 200);
    assert_eq!(upstream.last().header("x-auth-user"), None);
    assert_eq!(log_out(&gateway, &token).await, 503);
    locking.close().await.unwrap();
    gateway.metric_becomes("portcullis_store_up{store=\"sessions\"}", 1.0).await;
    assert_eq!(gateway.admin("GET", "/readyz").send().await.status, 200);
    assert_eq!((status(&gateway, &token).await, status(&gateway, &ended).await), (200, 401));
}

#[tokio::test]
async fn a_damaged_file_is_refused_at_start_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(
        folder.path().join("gateway.yaml"),
        "listen: 127.0.0.1:0\nadmin: false\nupstream: http://127.0.0.1:1\nroles: [Viewer]\n\
         sessions: sqlite:sessions.db\n",
    )
    .unwrap();
    let file = folder.path().join("data/sessions.db");
    let damaged = b"sessions: none\n".repeat(1000);
    std::fs::write(&file, &damaged).unwrap();
    let output = crate::harness::refused_start(folder.path());
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("sessions.db is damaged or not an SQLite file"), "{told}");
    assert!(std::fs::read(&file).unwrap() == damaged);
}

#[tokio::test]
async fn what_was_ended_stays_so_through_a_reload() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let (token, kept) = (gateway.login("vera").await, gateway.login("vera").await);
    assert_eq!(log_out(&gateway, &token).await, 204);
    gateway
        .after("the configuration is reloaded", || {
            gateway.write_config("rules: [{ path: /*, allow: Viewer }]\ntokens: { leeway: 1s }");
        })
        .await;
    assert_eq!((status(&gateway, &token).await, status(&gateway, &kept).await), (401, 200));
}

/// Runs a command, and kills it as soon as it has said that it is done.
fn kill_when_done(gateway: &Gateway, arguments: &[&str], stdin: &str) {
    let mut child = Command::new(binary())
        .args(arguments)
        .arg("--config")
        .arg(gateway.config())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert!(!said.is_empty(), "{arguments:?} said nothing");
    let _ = child.kill();
    child.wait().unwrap();
}

#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost_to_a_hundred_kills() {
    const ROUNDS: usize = 15;
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&upstream, ROTATING).await;
    let name = |kind: &str, round: usize| format!("{kind}{round}");
    let kinds = ["logout", "rotate", "revoke", "role", "passwd", "disable", "remove"];
    let users: String = kinds
        .iter()
        .flat_map(|kind| (0..ROUNDS).map(move |round| name(kind, round)))
        .map(|user| format!("{}\n", json!({ "username": user, "role": "Viewer", "password": PASSWORD })))
        .collect();
    command(&gateway, &["user", "import", "-"], &users);
    let mut ended: Vec<String> = Vec::new();
    let mut kills = 0;
    for round in 0..ROUNDS {
        for kind in kinds {
            let user = name(kind, round);
            let token = gateway.login(&user).await;
            let mut lives = None;
            match kind {
                "logout" => assert_eq!(log_out(&gateway, &token).await, 204),
                "rotate" => lives = Some(successor(&gateway, &token).await),
                "revoke" => kill_when_done(&gateway, &["token", "revoke", &token], ""),
                "role" => kill_when_done(&gateway, &["user", "role", &user, "Editor"], ""),
                "passwd" => {
                    kill_when_done(&gateway, &["user", "passwd", &user, "--password-stdin"], "another one");
                }
                _ => kill_when_done(&gateway, &["user", kind, &user], ""),
            }
            gateway.kill_and_restart().await;
            kills += 1;
            assert_eq!(status(&gateway, &token).await, 401, "{user}");
            if let Some(token) = lives {
                assert_eq!(status(&gateway, &token).await, 200, "{user}");
            }
            ended.push(token);
        }
    }
    assert!(kills >= 100, "{kills}");
    for token in &ended {
        assert_eq!(status(&gateway, token).await, 401, "{}", claims(token)["preferred_username"]);
    }
    // And what was changed beside the tokens.
    let output = gateway.run(&["user", "list", "--json"], "");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |user: &str| listed.as_array().unwrap().iter().find(|one| one["username"] == user).cloned();
    for round in 0..ROUNDS {
        assert_eq!(of(&name("role", round)).unwrap()["role"], "Editor");
        assert_eq!(of(&name("disable", round)).unwrap()["disabled"], true);
        assert!(of(&name("remove", round)).is_none());
        let login = json!({ "username": name("passwd", round), "password": "another one" });
        assert_eq!(gateway.post("/auth/login").json(&login).send().await.status, 200);
    }
}
