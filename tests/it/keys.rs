//! Signing keys that come, sign, and go, under a gateway that serves all the while.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis::config::keyring::{self, NewKey};
use portcullis::token::{Algorithm, decode_without_verifying};
use serde_json::Value;

use crate::harness::{Gateway, KeepAlive, PASSWORD, Upstream, run};

const RULES: &str = "rules: [{ path: /a, allow: Viewer }]";
const RELOADED: &str = "the configuration is reloaded";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

const DAY: u64 = 86_400;

/// A key that the program itself made at that time.
fn make(folder: &Path, kid: &str, made: u64, signs_from: u64) {
    let new = NewKey { kid: kid.to_owned(), algorithm: Algorithm::EdDSA, made, signs_from };
    keyring::create(folder, &new).unwrap();
}

fn kid(token: &str) -> String {
    decode_without_verifying(token).unwrap().header["kid"].as_str().unwrap().to_owned()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command that fails says, and how it exits.
fn refusal(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// `keys list --json`, each key's name and state.
fn states(gateway: &Gateway) -> Vec<(String, String)> {
    let listed: Value = serde_json::from_str(&stdout(&gateway.run(&["keys", "list", "--json"], ""))).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(|key| (text(&key["kid"]), text(&key["state"]))).collect()
}

async fn published(gateway: &Gateway) -> Vec<String> {
    let jwks = gateway.get("/.well-known/jwks.json").send().await.json();
    jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

async fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.get("/a").bearer(token).send().await.status
}

/// The audit lines of one event, in order.
fn audited(gateway: &Gateway, event: &str) -> Vec<Value> {
    let lines = gateway.lines().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    lines.filter(|line| line["log"] == "audit" && line["event"] == event).collect()
}

/// Waits for a key's audit line.
async fn told(gateway: &Gateway, reason: &str, kid: &str) -> Value {
    let (reason, key) = (format!("\"reason\":\"{reason}\""), format!("\"key\":\"{kid}\""));
    let wanted =
        move |line: &str| line.contains("key_change") && line.contains(&reason) && line.contains(&key);
    let at = gateway.wait_for_line(0, wanted).await;
    serde_json::from_str(&gateway.lines()[at]).unwrap()
}

#[tokio::test]
async fn a_new_key_is_published_before_it_signs_and_the_old_one_verifies_after() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let old = gateway.login("vera").await;
    assert_eq!(states(&gateway), [(kid(&old), "signing".to_owned())]);
    let mut said = String::new();
    gateway
        .after(RELOADED, || said = stdout(&gateway.run(&["keys", "rotate", "--publish-for", "3s"], "")))
        .await;
    assert!(said.contains("is published now and signs from"), "{said}");
    let new = said.split(' ').next().unwrap().to_owned();
    assert_eq!(published(&gateway).await, [kid(&old), new.clone()]);
    assert_eq!(states(&gateway)[1], (new.clone(), "published".to_owned()));
    let status_page = gateway.admin("GET", "/status").send().await.json();
    assert_eq!(status_page["keys"]["signing"], kid(&old));
    gateway.metric_becomes("portcullis_signing_keys", 2.0).await;
    let path = gateway.folder.path().join(format!("data/keys/{new}.pem"));
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    // Nobody signs with it before its time, everybody after.
    let signs = told(&gateway, "signs", &new).await;
    assert!(signs.get("by").is_none(), "it was its time, and nobody's command");
    let token = gateway.login("vera").await;
    assert_eq!(kid(&token), new);
    assert_eq!(states(&gateway)[0], (kid(&old), "verifying".to_owned()));
    for token in [&old, &token] {
        assert_eq!(status(&gateway, token).await, 200);
    }
    let created = gateway.metric("portcullis_signing_key_created_timestamp_seconds").await;
    assert!((created - now() as f64).abs() < 60.0, "{created}");
    let made = told(&gateway, "made", &new).await;
    assert!(made["by"].as_str().is_some_and(|by| !by.is_empty()), "{made}");
    told(&gateway, "published", &new).await;
}

#[tokio::test]
async fn the_default_is_a_minute_and_the_time_stands_in_the_file() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let before = now();
    let said = stdout(&gateway.run(&["keys", "rotate"], ""));
    let kid = said.split(' ').next().unwrap();
    let text = fs::read_to_string(gateway.folder.path().join(format!("data/keys/{kid}.pem"))).unwrap();
    let from = text.lines().find_map(|line| line.strip_prefix("Portcullis-Signs-From: ")).unwrap();
    let from = u64::try_from(from.parse::<jiff::Timestamp>().unwrap().as_second()).unwrap();
    assert!((before + 60..=now() + 60).contains(&from), "{text}");
    let jwks: Value = serde_json::from_str(&stdout(&gateway.run(&["keys", "jwks"], ""))).unwrap();
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 2);
    assert!(jwks["keys"].as_array().unwrap().iter().all(|key| key.get("d").is_none()), "public parts only");
}

#[tokio::test]
async fn a_key_that_was_published_before_a_restart_signs_at_its_time_after_it() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("elsewhere");
    make(&keys, "a", now() - DAY, now() - DAY);
    let at = now() + 4;
    make(&keys, "b", now(), at);
    // As a Secret is mounted: links, and nothing that the gateway could write to. Links of links are hidden.
    fs::create_dir(folder.path().join("mounted")).unwrap();
    for name in ["a.pem", "b.pem"] {
        std::os::unix::fs::symlink(keys.join(name), folder.path().join("mounted").join(name)).unwrap();
    }
    fs::set_permissions(folder.path().join("mounted"), fs::Permissions::from_mode(0o555)).unwrap();
    let extra = format!("{RULES}\ntokens: {{ keys: {}/mounted }}", folder.path().display());
    let gateway = Gateway::start_in(folder, upstream.address, &extra).await;
    let old = gateway.login("vera").await;
    if now() < at {
        assert_eq!(kid(&old), "a");
    }
    told(&gateway, "signs", "b").await;
    assert!(now() >= at);
    let new = gateway.login("vera").await;
    assert_eq!(kid(&new), "b");
    assert_eq!((status(&gateway, &old).await, status(&gateway, &new).await), (200, 200));
}

#[tokio::test]
async fn twenty_rotations_under_load_refuse_no_token_at_either_of_two_gateways() {
    const ROTATIONS: usize = 20;
    let upstream = Upstream::start().await;
    let shared = tempfile::tempdir().unwrap();
    let extra = format!(
        "{RULES}\ntokens: {{ keys: {} }}\nlog: {{ format: json, access: false }}",
        shared.path().join("keys").display()
    );
    let one = Gateway::start(&upstream, &extra).await;
    let two = Gateway::start(&upstream, &extra).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for (signs, verifies) in [(one.address, two.address), (two.address, one.address)] {
        let stop = Arc::clone(&stop);
        clients.spawn(async move {
            let mut login = KeepAlive::connect(signs).await;
            let (mut here, mut there) = (KeepAlive::connect(signs).await, KeepAlive::connect(verifies).await);
            let mut tokens: Vec<String> = Vec::new();
            let mut kids = BTreeSet::new();
            let mut requests = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                let body = serde_json::json!({ "username": "vera", "password": PASSWORD });
                let call = login.request("POST", "/auth/login").json(&body);
                let answer = login.send(call).await.expect("no connection breaks");
                assert_eq!(answer.status, 200, "{}", answer.text());
                let token = answer.json()["token"].as_str().unwrap().to_owned();
                let fresh = kids.insert(kid(&token));
                if fresh || tokens.is_empty() {
                    tokens.push(token.clone());
                }
                // The one just signed, at once, at the other gateway; one of each older key at both.
                for token in std::iter::once(&token).chain(&tokens) {
                    for connection in [&mut there, &mut here] {
                        let call = connection.request("GET", "/a").bearer(token);
                        let answer = connection.send(call).await.expect("no connection breaks");
                        assert_eq!(answer.status, 200, "{}: {}", kid(token), answer.text());
                        requests += 1;
                    }
                }
            }
            (kids, requests)
        });
    }
    let mut pace = tokio::time::interval(Duration::from_millis(1000));
    let mut made = BTreeSet::new();
    for number in 0..ROTATIONS {
        pace.tick().await;
        // Either may be the one next to which somebody types.
        let by = if number % 2 == 0 { &one } else { &two };
        let said = stdout(&by.run(&["keys", "rotate", "--publish-for", "3s"], ""));
        made.insert(said.split(' ').next().unwrap().to_owned());
        assert!(clients.try_join_next().is_none(), "a client gave up");
    }
    assert_eq!(made.len(), ROTATIONS);
    let last = made.last().unwrap();
    told(&one, "signs", last).await;
    told(&two, "signs", last).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        let (kids, requests) = ended.expect("no client gave up");
        assert!(kids.contains(last) && kids.len() > ROTATIONS / 2, "signed with {} keys", kids.len());
        println!("{} keys signed, {requests} requests", kids.len());
    }
    for gateway in [&one, &two] {
        assert_eq!(gateway.metric(r#"portcullis_refusals_total{code="invalid_token"}"#).await, 0.0);
        assert_eq!(gateway.metric(r#"portcullis_responses_total{class="5xx"}"#).await, 0.0);
        assert_eq!(gateway.metric("portcullis_config_last_reload_successful").await, 1.0);
    }
}

#[tokio::test]
async fn a_key_is_made_when_the_last_is_old_enough_and_what_nothing_needs_goes() {
    let upstream = Upstream::start().await;
    let shared = tempfile::tempdir().unwrap();
    let keys = shared.path().join("keys");
    // Somebody's own, one long spent, and one that is due.
    let pem = portcullis::token::generate_pkcs8_pem(Algorithm::EdDSA).unwrap();
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join("000-theirs.pem"), pem).unwrap();
    fs::set_permissions(keys.join("000-theirs.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    // While both are running.
    let made = now() - 30 * DAY + 6;
    make(&keys, "000000000100", 100, 100);
    make(&keys, &format!("{made:012}"), made, made + 60);
    let due = format!("{:012}", made + 30 * DAY);
    let extra = format!("{RULES}\ntokens: {{ keys: {}, rotate_keys_every: 30d }}", keys.display());
    let one = Gateway::start(&upstream, &extra).await;
    let two = Gateway::start(&upstream, &extra).await;
    for gateway in [&one, &two] {
        told(gateway, "published", &due).await;
        let token = gateway.login("vera").await;
        assert_eq!(kid(&token), format!("{made:012}"), "the new one has not been published for long enough");
        assert_eq!(published(gateway).await, ["000-theirs".to_owned(), format!("{made:012}"), due.clone()]);
    }
    let makers: Vec<Value> = [&one, &two]
        .into_iter()
        .flat_map(|gateway| audited(gateway, "key_change"))
        .filter(|line| line["reason"] == "made")
        .collect();
    assert_eq!(makers.len(), 1, "one of them made it: {makers:?}");
    assert!(makers[0].get("by").is_none(), "{makers:?}");
}

#[tokio::test]
async fn without_rotation_nothing_is_made_and_nothing_goes() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("mine");
    make(&keys, "000000000100", 100, 100);
    make(&keys, "000000000200", 200, 200);
    let extra = format!("{RULES}\ntokens: {{ keys: {} }}", keys.display());
    let gateway = Gateway::start_in(folder, upstream.address, &extra).await;
    // Its age is known from the first look at the keys on, which is when they would have gone.
    gateway.metric_becomes("portcullis_signing_key_created_timestamp_seconds", 200.0).await;
    assert_eq!(published(&gateway).await, ["000000000100", "000000000200"]);
    assert!(audited(&gateway, "key_change").is_empty());
}

#[tokio::test]
async fn a_retired_key_takes_its_tokens_with_it_at_once() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let stolen = gateway.login("vera").await;
    let old = kid(&stolen);
    for arguments in [&["keys", "retire", &old][..], &["keys", "retire", "--now", &old]] {
        let (code, why) = refusal(&gateway.run(arguments, ""));
        assert_eq!(code, Some(1));
        assert!(why.contains("there is no other key") && why.contains("keys rotate"), "{why}");
    }
    let mut said = String::new();
    gateway.after(RELOADED, || said = stdout(&gateway.run(&["keys", "rotate", "--now"], ""))).await;
    assert!(said.contains("signs from now on"), "{said}");
    let fresh = gateway.login("vera").await;
    assert_ne!(kid(&fresh), old);
    let (code, why) = refusal(&gateway.run(&["keys", "retire", &old], ""));
    assert_eq!(code, Some(1));
    assert!(why.contains("is still needed") && why.contains("valid until"), "{why}");
    assert_eq!(status(&gateway, &stolen).await, 200, "nothing has changed");
    gateway.after(RELOADED, || said = stdout(&gateway.run(&["keys", "retire", "--now", &old], ""))).await;
    assert!(said.contains("is retired") && said.contains("is refused from now on"), "{said}");
    let answer = gateway.get("/a").bearer(&stolen).send().await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("Invalid token")));
    assert_eq!(status(&gateway, &fresh).await, 200);
    assert_eq!(published(&gateway).await, [kid(&fresh)]);
    assert_eq!(states(&gateway), [(kid(&fresh), "signing".to_owned()), (old.clone(), "retired".to_owned())]);
    assert!(told(&gateway, "retired", &old).await["by"].is_string());
    told(&gateway, "gone", &old).await;
}

#[tokio::test]
async fn the_signing_key_can_be_retired_while_its_successor_waits_and_that_one_signs_at_once() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let old = kid(&gateway.login("vera").await);
    let mut said = String::new();
    gateway.after(RELOADED, || said = stdout(&gateway.run(&["keys", "rotate"], ""))).await;
    let (_, why) = refusal(&gateway.run(&["keys", "retire", &old], ""));
    assert!(why.contains(" signs: every token that it signed would be refused"), "{why}");
    gateway.after(RELOADED, || drop(stdout(&gateway.run(&["keys", "retire", "--now", &old], "")))).await;
    assert_eq!(kid(&gateway.login("vera").await), said.split(' ').next().unwrap());
}

#[tokio::test]
async fn what_cannot_be_done_to_keys_is_one_sentence() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    for (arguments, code, told) in [
        (&["keys", "retire", "nobody"][..], 1, "there is no key 'nobody'"),
        (&["keys", "retire", "../../gateway"], 1, "there is no key"),
        (&["keys", "rotate", "--publish-for", "0s"], 2, "--publish-for"),
        (&["keys", "rotate", "--publish-for", "soon"], 2, "--publish-for"),
        (&["keys", "rotate", "--publish-for", "8d"], 2, "--publish-for"),
        (&["keys", "rotate", "--publish-for", "5s", "--now"], 2, "cannot be used with"),
    ] {
        let (found, why) = refusal(&gateway.run(arguments, ""));
        assert_eq!(found, Some(code), "{arguments:?}: {why}");
        assert!(why.contains(told), "{arguments:?}: {why}");
    }
    assert_eq!(states(&gateway).len(), 1, "nothing was made");
    // Beside a secret there are no keys to look after.
    let secret = tempfile::tempdir().unwrap();
    let file = |rotate: &str| {
        format!(
            "upstream: http://127.0.0.1:1\nroles: [Viewer]\ntokens:\n  algorithm: HS256\n  \
             keys: {{ secret: 0123456789abcdef0123456789abcdef }}\n{rotate}"
        )
    };
    fs::write(secret.path().join("gateway.yaml"), file("")).unwrap();
    for arguments in [&["keys", "rotate"][..], &["keys", "retire", "shared"]] {
        let (code, why) = refusal(&run(secret.path(), arguments, ""));
        assert_eq!(code, Some(2));
        assert!(why.contains("signed with a secret"), "{why}");
    }
    assert!(stdout(&run(secret.path(), &["keys", "jwks"], "")).contains("\"keys\": []"));
    assert!(stdout(&run(secret.path(), &["keys", "list"], "")).contains("signing"));
    fs::write(secret.path().join("gateway.yaml"), file("  rotate_keys_every: 30d\n")).unwrap();
    let checked = run(secret.path(), &["check"], "");
    let told = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(2));
    assert!(told.contains("gateway.yaml:6:") && told.contains("a secret is not rotated"), "{told}");
}

#[tokio::test]
async fn what_commands_change_is_in_the_gateway_s_log_with_who_did_it() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::write(
        folder.path().join("gateway.yaml"),
        format!("upstream: http://{}\nroles: [Viewer, Editor]\n{RULES}\n", upstream.address),
    )
    .unwrap();
    // Before it runs, and while it does.
    stdout(&run(folder.path(), &["user", "add", "ann", "--role", "Viewer", "--password-stdin"], PASSWORD));
    let gateway = Gateway::start_in(folder, upstream.address, RULES).await;
    for (arguments, stdin) in [
        (&["user", "passwd", "ann", "--password-stdin"][..], "another horse battery"),
        (&["user", "role", "ann", "Editor"], ""),
        (&["user", "disable", "ann"], ""),
        (&["user", "enable", "ann"], ""),
        (&["token", "issue", "ann"], ""),
        (&["user", "list"], ""),
        (&["user", "remove", "ann"], ""),
    ] {
        stdout(&gateway.run(arguments, stdin));
    }
    // What fails changes nothing and is no event.
    assert_eq!(gateway.run(&["user", "disable", "ann"], "").status.code(), Some(1));
    gateway.wait_for_line(0, |line| line.contains("\"reason\":\"removed\"")).await;
    let lines = audited(&gateway, "user_change");
    let changes: Vec<&str> = lines.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    assert_eq!(changes, ["added", "password", "role", "disabled", "enabled", "removed"]);
    assert_eq!(audited(&gateway, "token_issued").len(), 1);
    for line in lines.iter().chain(&audited(&gateway, "token_issued")) {
        assert_eq!(line["user"], "ann");
        assert!(line["by"].as_str().is_some_and(|by| !by.is_empty()), "{line}");
    }
    let first = gateway.lines().iter().position(|line| line.contains("\"listening\"")).unwrap();
    assert!(gateway.lines()[first..].iter().any(|line| line.contains("\"reason\":\"added\"")));
    let left = fs::read_dir(gateway.folder.path().join("data/audit")).unwrap().count();
    assert!(left <= 1, "{left} are left: the last may still be on its way out");
}
