//! A changed configuration: noticed however it is written, taken whole or not at all, no request lost.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::Full;
use portcullis::token::{Algorithm, decode_without_verifying, generate_pkcs8_pem};
use serde_json::Value;

use crate::harness::{Gateway, KeepAlive, PATIENCE, Upstream};

const RELOADED: &str = "the configuration is reloaded";
const REFUSED: &str = "the configuration is refused";

const CLOSED: &str = "rules: [{ path: /a, allow: Viewer }]";
const OPEN: &str = "rules: [{ path: /a, allow: public }]";

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

async fn status(gateway: &Gateway, target: &str) -> u16 {
    gateway.get(target).send().await.status
}

/// Writes a private file as a key has to be.
fn write_key(path: &Path, pem: &str) {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    std::io::Write::write_all(&mut file, pem.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_file_written_in_place_or_renamed_into_place_applies_by_itself() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CLOSED).await;
    assert_eq!(status(&gateway, "/a").await, 401);
    let open = fs::read_to_string(gateway.config()).unwrap().replace(CLOSED, OPEN);
    let line = gateway.after(RELOADED, || fs::write(gateway.config(), &open).unwrap()).await;
    assert_eq!(json(&line)["reason"], "file");
    assert_eq!(status(&gateway, "/a").await, 200);
    gateway.after(RELOADED, || gateway.write_config(CLOSED)).await;
    assert_eq!(status(&gateway, "/a").await, 401);
    // As editors with backups do: the old file is moved away first.
    gateway
        .after(RELOADED, || {
            fs::rename(gateway.config(), gateway.folder.path().join("gateway.yaml~")).unwrap();
            fs::write(gateway.config(), &open).unwrap();
        })
        .await;
    assert_eq!(status(&gateway, "/a").await, 200);
}

#[tokio::test]
async fn a_config_map_swapped_by_its_data_link_applies_by_itself() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CLOSED).await;
    let folder = gateway.folder.path();
    let text = fs::read_to_string(gateway.config()).unwrap();
    // As the kubelet lays it out: gateway.yaml -> ..data/gateway.yaml, ..data -> ..2026_1.
    fs::create_dir(folder.join("..2026_1")).unwrap();
    fs::write(folder.join("..2026_1/gateway.yaml"), &text).unwrap();
    symlink("..2026_1", folder.join("..data")).unwrap();
    symlink("..data/gateway.yaml", folder.join("link")).unwrap();
    fs::rename(folder.join("link"), gateway.config()).unwrap();
    assert_eq!(status(&gateway, "/a").await, 401);
    for (version, rules, expected) in [("..2026_2", OPEN, 200), ("..2026_3", CLOSED, 401)] {
        fs::create_dir(folder.join(version)).unwrap();
        fs::write(folder.join(version).join("gateway.yaml"), text.replace(CLOSED, rules)).unwrap();
        symlink(version, folder.join("..data_tmp")).unwrap();
        gateway
            .after(RELOADED, || fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap())
            .await;
        assert_eq!(status(&gateway, "/a").await, expected, "{version}");
    }
}

#[tokio::test]
async fn sighup_and_the_admin_address_reload_as_well() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CLOSED).await;
    let line = gateway.after(RELOADED, || gateway.signal("HUP")).await;
    assert_eq!(json(&line)["reason"], "signal");
    let from = gateway.lines().len();
    let answer = gateway.admin("POST", "/reload").send().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "reloaded\n"));
    gateway.wait_for_line(from, |line| line.contains(RELOADED) && line.contains("\"admin\"")).await;
    // Its answer is given when the new file is in force.
    gateway.write_config(OPEN);
    assert_eq!(gateway.admin("POST", "/reload").send().await.status, 200);
    assert_eq!(status(&gateway, "/a").await, 200);
    for (method, expected) in [("GET", 405), ("PUT", 405), ("HEAD", 405)] {
        assert_eq!(gateway.admin(method, "/reload").send().await.status, expected, "{method}");
    }
}

#[tokio::test]
async fn a_broken_file_is_refused_with_its_position_and_the_old_rules_stay() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&upstream, CLOSED).await;
    let good = "portcullis_config_last_reload_successful";
    assert_eq!(gateway.metric(good).await, 1.0);
    for (broken, told) in [
        (
            "rules: [{ path: /a, allow: Vewer }]",
            "gateway.yaml:7:28: unknown role 'Vewer', did you mean 'Viewer'?",
        ),
        ("rules: [{ path: /a, allow: public", "gateway.yaml:"),
        ("rulez: []", "unknown key 'rulez', did you mean 'rules'?"),
        (
            "rules: [{ path: /a, allow: public }]\nexpect: [{ request: GET /a, as: anonymous, is: 401 }]",
            "gateway.yaml:8:",
        ),
        (
            "rules: [{ path: /a, allow: public }]\ntokens: { ttl: ${NO_SUCH_VARIABLE_ANYWHERE} }",
            "NO_SUCH_VARIABLE_ANYWHERE",
        ),
    ] {
        let line = gateway.after(REFUSED, || gateway.write_config(broken)).await;
        let problems = json(&line)["problems"].as_str().unwrap().to_owned();
        assert!(problems.contains(told), "{broken}: {problems}");
        assert_eq!(status(&gateway, "/a").await, 401, "the old rules stay: {broken}");
        assert_eq!(gateway.metric(good).await, 0.0);
        let answer = gateway.admin("POST", "/reload").send().await;
        assert_eq!(answer.status, 422);
        assert!(answer.text().contains(told), "{}", answer.text());
        let load = gateway.admin("GET", "/status").send().await.json()["configuration"]["last_load"].clone();
        assert!(load["error"].as_str().unwrap().contains(told), "{load}");
        gateway.login("vera").await;
    }
    for (what, gone) in [("an empty file", true), ("no file", false)] {
        let change = || match gone {
            true => fs::write(gateway.config(), "").unwrap(),
            false => fs::remove_file(gateway.config()).unwrap(),
        };
        gateway.after(REFUSED, change).await;
        assert_eq!(status(&gateway, "/a").await, 401, "{what}");
    }
    gateway.after(RELOADED, || gateway.write_config(OPEN)).await;
    assert_eq!(gateway.metric(good).await, 1.0);
    assert_eq!(status(&gateway, "/a").await, 200);
    assert!(gateway.is_running());
}

#[tokio::test]
async fn the_line_of_a_reload_says_which_rules_and_which_answers_changed() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /a, allow: Viewer }, { path: /b/:id, methods: [DELETE], allow: SuperAdmin }]",
    )
    .await;
    let line = gateway
        .after(RELOADED, || {
            gateway.write_config(
                "rules: [{ path: /a, allow: Editor }, { path: /c/*, methods: read, allow: public }]",
            );
        })
        .await;
    let line = json(&line);
    let list =
        |key: &str| -> Vec<String> { line[key].as_str().unwrap().split("; ").map(str::to_owned).collect() };
    assert_eq!(list("rules_added"), ["/a: Editor", "read /c/*: public"]);
    assert_eq!(list("rules_removed"), ["/a: Viewer", "DELETE /b/:id: SuperAdmin"]);
    let answers = list("answers");
    for expected in [
        "GET /a as Viewer: allowed -> 403",
        "DELETE /b/- as SuperAdmin: allowed -> 403",
        "GET /c as anonymous: 401 -> allowed",
    ] {
        assert!(answers.iter().any(|answer| answer == expected), "{expected} is not in {answers:#?}");
    }
    assert!(!answers.iter().any(|answer| answer.starts_with("GET /a as Editor")), "that one is the same");
    assert!(line["answers_changed"].as_u64().unwrap() >= answers.len() as u64);
    // The same rules again: nothing to tell.
    let line = json(&gateway.after(RELOADED, || gateway.signal("HUP")).await);
    assert_eq!((&line["rules_added"], &line["answers_changed"]), (&Value::from(""), &Value::from(0)));
}

#[tokio::test]
async fn a_change_that_needs_a_restart_is_warned_about_and_the_rest_applies() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CLOSED).await;
    let text = fs::read_to_string(gateway.config()).unwrap();
    for (from, to, name) in [
        ("listen: 127.0.0.1:0", "listen: 127.0.0.1:1", "listen"),
        ("admin: 127.0.0.1:0", "admin: false", "admin"),
        ("roles:", "users: sqlite:other.db\nroles:", "users"),
        ("roles:", "workers: 3\nroles:", "workers"),
    ] {
        let changed = text.replace(from, to).replace(CLOSED, OPEN);
        assert_ne!(changed, text);
        let start = gateway.lines().len();
        let end = gateway.after(RELOADED, || fs::write(gateway.config(), changed).unwrap()).await;
        let warned: Vec<String> = gateway.lines()[start..]
            .iter()
            .filter(|line| line.contains("only with a restart"))
            .cloned()
            .collect();
        assert_eq!(warned.len(), 1, "{name}: {warned:?} before {end}");
        assert!(
            warned[0].contains(&format!("'{name}'")) && json(&warned[0])["level"] == "WARN",
            "{}",
            warned[0]
        );
        assert_eq!(status(&gateway, "/a").await, 200, "the rest applies, at the old address: {name}");
        gateway.after(RELOADED, || fs::write(gateway.config(), &text).unwrap()).await;
        assert_eq!(status(&gateway, "/a").await, 401);
    }
}

/// The `kid` of a token's header.
fn kid(token: &str) -> String {
    let header = decode_without_verifying(token).unwrap().header;
    header["kid"].as_str().unwrap().to_owned()
}

async fn published(gateway: &Gateway) -> Vec<String> {
    let keys = gateway.get("/.well-known/jwks.json").send().await.json();
    keys["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_second_key_in_the_folder_signs_from_then_on_and_both_verify_until_the_first_is_taken_away() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CLOSED).await;
    let old = gateway.login("vera").await;
    let keys = gateway.folder.path().join("data/keys");
    let pem = generate_pkcs8_pem(Algorithm::EdDSA).unwrap();
    gateway.after(RELOADED, || write_key(&keys.join("999999999999.pem"), &pem)).await;
    let new = gateway.login("vera").await;
    assert_eq!(kid(&new), "999999999999");
    assert_ne!(kid(&old), kid(&new));
    for token in [&old, &new] {
        assert_eq!(gateway.get("/a").bearer(token).send().await.status, 200);
    }
    assert_eq!(published(&gateway).await, [kid(&old), kid(&new)]);
    // The old one retired: its tokens, verified and cached a moment ago, are worth nothing at once.
    let first = keys.join(format!("{}.pem", kid(&old)));
    gateway.after(RELOADED, || fs::remove_file(first).unwrap()).await;
    let answer = gateway.get("/a").bearer(&old).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (401, r#"{"error":"Invalid token"}"#));
    assert_eq!(gateway.get("/a").bearer(&new).send().await.status, 200);
    assert_eq!(published(&gateway).await, [kid(&new)]);
}

#[tokio::test]
async fn a_key_that_everybody_may_read_is_refused_by_a_reload_and_the_old_keys_stay() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CLOSED).await;
    let token = gateway.login("vera").await;
    let path = gateway.folder.path().join("data/keys/zz.pem");
    let pem = generate_pkcs8_pem(Algorithm::EdDSA).unwrap();
    let line = gateway
        .after(REFUSED, || {
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).unwrap();
            std::io::Write::write_all(&mut file, pem.as_bytes()).unwrap();
        })
        .await;
    assert!(
        line.contains("everybody may read") && line.contains("zz.pem") && !line.contains("PRIVATE"),
        "{line}"
    );
    assert_eq!(gateway.get("/a").bearer(&token).send().await.status, 200);
    assert_eq!(kid(&gateway.login("vera").await), kid(&token));
}

#[tokio::test]
async fn a_reload_that_would_leave_no_key_to_sign_with_is_refused() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CLOSED).await;
    let token = gateway.login("vera").await;
    let es256 = format!("{CLOSED}\ntokens: {{ algorithm: ES256 }}");
    let line = gateway.after(REFUSED, || gateway.write_config(&es256)).await;
    assert!(line.contains("is for ES256: put one there"), "{line}");
    assert_eq!(kid(&gateway.login("vera").await), kid(&token));
    // With a key for it the same file is taken, and the tokens of the other one still count.
    let keys = gateway.folder.path().join("data/keys");
    let pem = generate_pkcs8_pem(Algorithm::ES256).unwrap();
    gateway.after(RELOADED, || write_key(&keys.join("es.pem"), &pem)).await;
    let new = gateway.login("vera").await;
    assert_eq!(kid(&new), "es");
    for token in [&token, &new] {
        assert_eq!(gateway.get("/a").bearer(token).send().await.status, 200);
    }
    // A folder that is empty, if only for a moment, ends nobody's session.
    let aside = gateway.folder.path().join("aside");
    let line = gateway.after(REFUSED, || fs::rename(&keys, &aside).unwrap()).await;
    assert!(line.contains("no key in"), "{line}");
    assert_eq!(gateway.get("/a").bearer(&token).send().await.status, 200);
    gateway.after(RELOADED, || fs::rename(&aside, &keys).unwrap()).await;
}

#[tokio::test]
async fn a_secret_behind_a_reference_applies_when_its_file_changes() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret.txt");
    fs::write(&secret, "a first secret of thirty-two bytes and more\n").unwrap();
    fs::write(folder.path().join("header.txt"), "one\n").unwrap();
    let gateway = Gateway::start_in(
        folder,
        upstream.address,
        "rules: [{ path: /a, allow: public }, { path: /b, allow: Viewer }]\n\
         tokens: { algorithm: HS256, keys: { secret: \"${file:secret.txt}\" } }\n\
         identity: { secret: { header: X-Gateway-Secret, value: \"${file:header.txt}\" } }",
    )
    .await;
    let token = gateway.login("vera").await;
    assert_eq!(gateway.get("/b").bearer(&token).send().await.status, 200);
    assert_eq!(upstream.last().header("x-gateway-secret"), Some("one"));
    let header = gateway.folder.path().join("header.txt");
    gateway.after(RELOADED, || fs::write(header, "two\n").unwrap()).await;
    assert_eq!(status(&gateway, "/a").await, 200);
    assert_eq!(upstream.last().header("x-gateway-secret"), Some("two"));
    gateway
        .after(RELOADED, || fs::write(&secret, "another secret of thirty-two bytes or more\n").unwrap())
        .await;
    assert_eq!(gateway.get("/b").bearer(&token).send().await.status, 401, "signed with the old secret");
    let token = gateway.login("vera").await;
    assert_eq!(gateway.get("/b").bearer(&token).send().await.status, 200);
    // Gone is refused, not taken for empty.
    gateway.after(REFUSED, || fs::remove_file(&secret).unwrap()).await;
    assert_eq!(gateway.get("/b").bearer(&token).send().await.status, 200);
    assert!(!gateway.lines().join("\n").contains("another secret"), "no secret is in the log");
}

/// One of two files. They differ in who may pass, in the identity header and in the body of refusals.
fn version(one: bool) -> String {
    let (open, closed, header) = if one { ("/x", "/y", "X-One") } else { ("/y", "/x", "X-Two") };
    let errors = if one { "{ one: $status }" } else { "{ two: $status }" };
    format!(
        "rules: [{{ path: {open}, allow: Viewer }}, {{ path: {closed}, allow: SuperAdmin }}]\n\
         identity: {{ user: {header} }}\nerrors: {{ body: {errors} }}\nlog: {{ format: json, access: false }}"
    )
}

/// Which of the two files an answer to Viewer fits: for `/x` or `/y`, `None` for neither.
fn fits(target: &str, status: u16, body: &str) -> Option<bool> {
    match (target, status, body) {
        ("/x", 200, "x-one=vera x-two=-") | ("/y", 403, r#"{"one":403}"#) => Some(true),
        ("/y", 200, "x-one=- x-two=vera") | ("/x", 403, r#"{"two":403}"#) => Some(false),
        _ => None,
    }
}

#[tokio::test]
async fn a_file_refused_for_a_reference_applies_when_what_it_names_appears() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CLOSED).await;
    let late =
        format!("{OPEN}\nidentity: {{ secret: {{ header: X-Gateway-Secret, value: '${{file:late}}' }} }}");
    gateway.after(REFUSED, || gateway.write_config(&late)).await;
    assert_eq!(status(&gateway, "/a").await, 401);
    gateway.after(RELOADED, || fs::write(gateway.folder.path().join("late"), "open-sesame").unwrap()).await;
    assert_eq!(status(&gateway, "/a").await, 200);
    assert_eq!(upstream.last().header("x-gateway-secret"), Some("open-sesame"));
}

#[tokio::test]
async fn thirty_reloads_in_three_seconds_drop_no_request_and_mix_no_two_files() {
    const RELOADS: usize = 30;
    const CLIENTS: usize = 8;
    let upstream = Upstream::answering(|seen| {
        let value = |name: &str| seen.header(name).unwrap_or("-").to_owned();
        let body = format!("x-one={} x-two={}", value("x-one"), value("x-two"));
        Response::new(Full::from(body))
    })
    .await;
    let gateway = Gateway::start(&upstream, &version(true)).await;
    let token = gateway.login("vera").await;
    let stop = Arc::new(AtomicBool::new(false));
    let (firsts, seconds) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (stop, token) = (Arc::clone(&stop), token.clone());
        let (firsts, seconds) = (Arc::clone(&firsts), Arc::clone(&seconds));
        let mut connection = KeepAlive::connect(gateway.address).await;
        clients.spawn(async move {
            let mut count = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                let target = if (count + client).is_multiple_of(2) { "/x" } else { "/y" };
                let call = connection.request("GET", target).bearer(&token);
                let answer = connection.send(call).await.expect("no connection breaks");
                let which = fits(target, answer.status, &answer.text());
                match which {
                    Some(true) => firsts.fetch_add(1, Ordering::Relaxed),
                    Some(false) => seconds.fetch_add(1, Ordering::Relaxed),
                    None => panic!("{target} fits neither file: {} {}", answer.status, answer.text()),
                };
                count += 1;
            }
            count
        });
    }
    // Paced at a tenth of a second; each is waited for, so that all thirty really happened.
    let began = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for number in 0..RELOADS {
        pace.tick().await;
        let one = number % 2 == 1;
        gateway.write_config(&version(one));
        // Every third is asked for, the others are noticed.
        if number % 3 == 0 {
            assert_eq!(gateway.admin("POST", "/reload").send().await.status, 200);
        }
        let counter = if one { &firsts } else { &seconds };
        let before = counter.load(Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        // In force once answers fit it: more than could have been under way under the old one.
        while counter.load(Ordering::Relaxed) < before + CLIENTS + 1 {
            assert!(Instant::now() < deadline, "reload {number} never shows");
            assert!(clients.try_join_next().is_none(), "a client gave up");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut requests = 0;
    while let Some(count) = clients.join_next().await {
        requests += count.unwrap();
    }
    let reloads = gateway.lines().iter().filter(|line| line.contains(RELOADED)).count();
    assert!(reloads >= RELOADS, "{reloads} reloads in {took:?}");
    assert!(requests > RELOADS * CLIENTS, "{requests}");
    assert_eq!(gateway.metric(r#"portcullis_responses_total{class="5xx"}"#).await, 0.0);
    assert_eq!(gateway.metric("portcullis_panics_total").await, 0.0);
    println!("{requests} requests, {reloads} reloads in {took:?}");
}

#[tokio::test]
async fn a_request_runs_to_its_last_byte_on_the_file_it_began_with() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start_at(upstream.local_addr().unwrap(), OPEN).await;
    let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    let (mut forwarded, _) = upstream.accept().await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nab") {
        assert_ne!(forwarded.read_buf(&mut seen).await.unwrap(), 0);
    }
    // Its head has been decided on and its body is under way when the file changes.
    gateway.after(RELOADED, || gateway.write_config("rules: [{ path: /a, allow: deny }]")).await;
    assert_eq!(status(&gateway, "/a").await, 401);
    stream.write_all(b"cd").await.unwrap();
    let mut rest = [0; 2];
    forwarded.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"cd");
    forwarded.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    // The next one on the same connection is judged by the new file.
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let rest = crate::harness::read_to_end(&mut stream).await;
    assert!(rest.starts_with("HTTP/1.1 401"), "{rest}");
}

#[tokio::test]
async fn roles_may_change_and_a_token_counts_for_what_its_role_is_worth_now() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "roles: [Viewer, Editor, SuperAdmin]\nrules: [{ path: /a, allow: Editor }]",
    )
    .await;
    let token = gateway.login("vera").await;
    assert_eq!(gateway.get("/a").bearer(&token).send().await.status, 403);
    for (roles, expected) in [
        ("[Editor, Viewer, SuperAdmin]", 200),
        ("[Editor, SuperAdmin]", 403),
        ("[Viewer, Editor, SuperAdmin]", 403),
    ] {
        gateway
            .after(RELOADED, || {
                gateway.write_config(&format!("roles: {roles}\nrules: [{{ path: /a, allow: Editor }}]"))
            })
            .await;
        assert_eq!(gateway.get("/a").bearer(&token).send().await.status, expected, "{roles}");
    }
}
