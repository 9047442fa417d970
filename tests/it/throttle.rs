//! Logins cannot be guessed, and guessing locks nobody out of their own places.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Answer, Gateway, PASSWORD, PATIENCE, Upstream, run};

/// Everybody comes from somewhere: the test is a trusted proxy, and says from where.
const CONFIG: &str = "rules: [{ path: /*, allow: Viewer }]\ntrusted_proxies: [127.0.0.1]";

/// [`CONFIG`] with the limits that a test needs.
fn limits(pair: u32, address: u32) -> String {
    format!("{CONFIG}\nlogin: {{ max_failures: {pair}, max_failures_per_address: {address} }}")
}

async fn attempt(gateway: &Gateway, name: &str, password: &str, client: &str) -> Answer {
    let body = json!({ "username": name, "password": password });
    gateway.post("/auth/login").header("x-forwarded-for", client).json(&body).send().await
}

/// Fails so often, and answers the statuses.
async fn fail(gateway: &Gateway, times: usize, name: &str, client: &str) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..times {
        statuses.push(attempt(gateway, name, "wrong password", client).await.status);
    }
    statuses
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").expect("says when").parse().unwrap()
}

/// Asks until the answer is the one wanted.
async fn until(gateway: &Gateway, name: &str, client: &str, status: u16) {
    let asked = async {
        while attempt(gateway, name, PASSWORD, client).await.status != status {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // The shortest lock of all lasts 15 seconds.
    tokio::time::timeout(2 * PATIENCE, asked).await.unwrap_or_else(|_| panic!("{name} never gets {status}"));
}

/// Kills the gateway as `kill -9` does and starts another one in its folder.
async fn killed_and_started_again(mut gateway: Gateway, upstream: &Upstream, config: &str) -> Gateway {
    gateway.signal("KILL");
    gateway.ended().await;
    let folder = std::mem::replace(&mut gateway.folder, tempfile::tempdir().unwrap());
    drop(gateway);
    Gateway::start_in(folder, upstream.address, config).await
}

/// What `ban list` has.
fn listed(gateway: &Gateway, arguments: &[&str]) -> Vec<Value> {
    let output = gateway.run(&[&["ban", "list", "--json"], arguments].concat(), "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs `ban` and answers what it printed.
fn ban(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = gateway.run(&[&["ban"], arguments].concat(), "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_sixth_guess_is_refused_with_the_time_to_wait_whether_or_not_there_is_such_a_user() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    assert!(gateway.run(&["user", "disable", "eddie"], "").status.success());
    let mut refused = Vec::new();
    for (name, client) in [("vera", "192.0.2.1"), ("nobody", "192.0.2.2"), ("eddie", "192.0.2.3")] {
        assert_eq!(fail(&gateway, 5, name, client).await, [401; 5], "{name}");
        let answer = attempt(&gateway, name, "wrong password", client).await;
        assert_eq!(answer.status, 429, "{name}");
        assert!((1..=15).contains(&retry_after(&answer)), "{name}");
        let mut headers = answer.headers.clone();
        // The one thing that is another at another time.
        headers.remove("date");
        headers.remove("retry-after");
        refused.push((headers, answer.body));
    }
    assert_eq!(refused[0], refused[1], "an unknown user");
    assert_eq!(refused[0], refused[2], "a disabled user");
    assert_eq!(refused[0].1, r#"{"error":"Too many login attempts"}"#);

    // The right password is no way round, the same name in another spelling neither; another place is.
    assert_eq!(attempt(&gateway, "VERA", PASSWORD, "192.0.2.1").await.status, 429);
    assert_eq!(attempt(&gateway, "vera", PASSWORD, "192.0.2.9").await.status, 200);
    // A lock ends by itself, and the right password forgives.
    until(&gateway, "vera", "192.0.2.1", 200).await;
    assert_eq!(fail(&gateway, 5, "vera", "192.0.2.1").await, [401; 5]);

    for (metric, is) in [
        ("portcullis_logins_total{outcome=\"locked_pair\"}", 4.0),
        ("portcullis_lockouts_total{reason=\"locked_pair\"}", 4.0),
        ("portcullis_refusals_total{code=\"too_many_logins\"}", 4.0),
    ] {
        assert!(gateway.metric(metric).await >= is, "{metric} is {}", gateway.metric(metric).await);
    }
    let lines = gateway.lines();
    let locked = |line: &&String| line.contains(r#""event":"lock_out""#) && line.contains(r#""user":"vera""#);
    let line: Value = serde_json::from_str(lines.iter().find(locked).expect("an audit line")).unwrap();
    assert_eq!((&line["reason"], &line["client"]), (&json!("locked_pair"), &json!("192.0.2.1")));
    assert!(!lines.iter().any(|line| line.contains("wrong password")));
}

#[tokio::test]
async fn an_address_or_64_that_guesses_at_many_names_is_locked_and_its_neighbours_are_not() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &limits(3, 4)).await;
    for [one, same, other] in [
        ["192.0.2.1", "192.0.2.1", "192.0.2.2"],
        ["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"],
        ["192.0.2.7:4711", "::ffff:192.0.2.7", "192.0.2.8"],
    ] {
        for name in ["a", "b", "c", "d"] {
            assert_eq!(fail(&gateway, 1, name, one).await, [401]);
        }
        assert_eq!(attempt(&gateway, "vera", PASSWORD, same).await.status, 429, "{same}");
        assert_eq!(attempt(&gateway, "vera", PASSWORD, other).await.status, 200, "{other}");
    }
}

#[tokio::test]
async fn what_an_undeclared_proxy_says_about_the_client_is_not_believed() {
    let upstream = Upstream::start().await;
    let config = "rules: [{ path: /*, allow: Viewer }]";
    let gateway = Gateway::start(&upstream, config).await;
    for number in 0..5 {
        assert_eq!(fail(&gateway, 1, "vera", &format!("192.0.2.{number}")).await, [401]);
    }
    assert_eq!(fail(&gateway, 1, "vera", "192.0.2.99").await, [429]);
}

#[tokio::test]
async fn strangers_lock_nobody_out_of_where_they_have_signed_in() {
    let upstream = Upstream::start().await;
    let config = limits(1, 1000);
    let gateway = Gateway::start(&upstream, &config).await;
    assert_eq!(attempt(&gateway, "vera", PASSWORD, "203.0.113.7").await.status, 200);
    for number in 0..20 {
        assert_eq!(fail(&gateway, 1, "vera", &format!("192.0.2.{number}")).await, [401]);
    }
    let stranger = attempt(&gateway, "vera", PASSWORD, "192.0.2.99").await;
    assert_eq!(stranger.status, 429);
    assert!((1..=15).contains(&retry_after(&stranger)));
    assert_eq!(attempt(&gateway, "vera", PASSWORD, "203.0.113.7").await.status, 200);
    gateway.wait_for_line(0, |line| line.contains(r#""reason":"locked_account""#)).await;
    // A restart does not make a stranger of the owner.
    gateway.metric_becomes("portcullis_login_failure_counts", 41.0).await;
    let gateway = killed_and_started_again(gateway, &upstream, &config).await;
    // Its lock may have ended meanwhile: then one more failure brings the next.
    assert_eq!(fail(&gateway, 2, "vera", "192.0.2.100").await[1], 429);
    assert_eq!(attempt(&gateway, "vera", PASSWORD, "203.0.113.7").await.status, 200);
}

#[tokio::test]
async fn a_thousand_guesses_at_once_are_no_more_than_five() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    let mut guesses = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let call = gateway
            .post("/auth/login")
            .header("x-forwarded-for", "192.0.2.1")
            .json(&json!({ "username": "vera", "password": format!("guess {number}") }));
        guesses.spawn(async move { call.send().await.status });
    }
    let statuses = guesses.join_all().await;
    let count = |status| statuses.iter().filter(|is| **is == status).count();
    assert_eq!(count(401), 5);
    assert_eq!(count(401) + count(429) + count(503), 1000);
    assert_eq!(gateway.metric("portcullis_panics_total").await, 0.0);
}

#[tokio::test]
async fn the_right_password_many_times_at_once_is_no_guess() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    let mut logins = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let call = gateway.post("/auth/login").json(&json!({ "username": "vera", "password": PASSWORD }));
        logins.spawn(async move { call.send().await.status });
    }
    assert_eq!(logins.join_all().await, [200; 12]);
}

#[tokio::test]
async fn more_than_can_be_hashed_or_wait_are_told_to_come_back() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &limits(1000, 1000)).await;
    let mut logins = tokio::task::JoinSet::new();
    for number in 0..400 {
        let call =
            gateway.post("/auth/login").header("x-forwarded-for", &format!("192.0.2.{}", number % 250));
        let call = call.json(&json!({ "username": format!("user{number}"), "password": "wrong password" }));
        logins.spawn(async move { (format!("user{number}"), call.send().await) });
    }
    // All but those that are hashed or wait for it are answered at once.
    let mut busy = Vec::new();
    while busy.len() < 100 {
        let (name, answer) = logins.join_next().await.unwrap().unwrap();
        if answer.status == 401 {
            continue;
        }
        assert_eq!((answer.status, retry_after(&answer)), (503, 1));
        assert_eq!(answer.text(), r#"{"error":"Too busy, try again in a moment"}"#);
        busy.push(name);
    }
    // That was no guess, and counts as none.
    for name in &busy {
        let user = format!(r#""user":"{name}""#);
        let line = gateway.wait_for_line(0, move |line| line.contains(&user)).await;
        assert!(gateway.lines()[line].contains(r#""reason":"login_busy""#), "{}", gateway.lines()[line]);
    }
    let counted = listed(&gateway, &["--all"]);
    assert!(!counted.iter().any(|row| busy.iter().any(|name| row["account"] == name.as_str())));
}

#[tokio::test]
async fn a_killed_gateway_remembers_failures_and_bans() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    fail(&gateway, 5, "vera", "192.0.2.1").await;
    fail(&gateway, 4, "eddie", "192.0.2.2").await;
    // Counts are written behind: within half a second or so.
    gateway.metric_becomes("portcullis_login_failure_counts", 6.0).await;
    let written = async {
        while listed(&gateway, &["--all"]).len() < 6 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("the counts are written");
    ban(&gateway, &["add", "sam"]);
    let gateway = killed_and_started_again(gateway, &upstream, CONFIG).await;
    assert_eq!(attempt(&gateway, "sam", PASSWORD, "192.0.2.3").await.status, 429);
    // Its lock may have ended meanwhile: then one more failure brings the next.
    assert_eq!(fail(&gateway, 2, "vera", "192.0.2.1").await[1], 429);
    assert_eq!(fail(&gateway, 2, "eddie", "192.0.2.2").await, [401, 429]);
}

#[tokio::test]
async fn what_ban_says_is_done_is_done_within_a_second_in_a_gateway_that_runs() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    let token = gateway.login("vera").await;
    for (who, name, client, named) in [
        ("Vera", "vera", "192.0.2.1", r#""user":"vera""#),
        ("192.0.2.0/24", "eddie", "192.0.2.77", r#""network":"192.0.2.0/24""#),
        ("2001:db8::1", "eddie", "2001:db8::2", r#""network":"2001:db8::1""#),
    ] {
        assert_eq!(attempt(&gateway, name, PASSWORD, client).await.status, 200);
        let said = ban(&gateway, &["add", who, "--for", "1h"]);
        assert!(said.contains("cannot log in until 20"), "{said}");
        until(&gateway, name, client, 429).await;
        let wait = retry_after(&attempt(&gateway, name, PASSWORD, client).await);
        assert!((3590..=3600).contains(&wait), "{wait}");
        let audited = move |event: &'static str| {
            move |line: &str| line.contains(event) && line.contains(named) && line.contains(r#""by":""#)
        };
        gateway.wait_for_line(0, audited(r#""event":"ban""#)).await;
        let said = ban(&gateway, &["lift", who]);
        assert!(said.contains("can log in again: lifted 1 ban"), "{said}");
        until(&gateway, name, client, 200).await;
        gateway.wait_for_line(0, audited(r#""event":"lift""#)).await;
    }
    // A ban is about logging in; tokens have an end of their own.
    ban(&gateway, &["add", "vera"]);
    until(&gateway, "vera", "192.0.2.1", 429).await;
    assert_eq!(gateway.get("/page").bearer(&token).send().await.status, 200);
    gateway.metric_becomes("portcullis_bans", 1.0).await;
}

#[tokio::test]
async fn lifting_forgives_failures_that_a_running_gateway_has_counted() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &limits(1, 50)).await;
    assert_eq!(fail(&gateway, 2, "vera", "192.0.2.1").await, [401, 429]);
    let written = async {
        loop {
            let rows = listed(&gateway, &[]);
            if !rows.is_empty() {
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let rows = tokio::time::timeout(PATIENCE, written).await.expect("the lock is listed");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["account"], "vera");
    assert_eq!(rows[0]["network"], "192.0.2.1");
    assert_eq!(rows[0]["by"], "failures");
    assert_eq!(rows[0]["failures"], 1);
    let table = ban(&gateway, &["list", "--all"]);
    for cell in ["vera", "192.0.2.1", "1 failure", "any"] {
        assert!(table.contains(cell), "{table}");
    }
    ban(&gateway, &["lift", "vera"]);
    gateway.metric_becomes("portcullis_login_failure_counts", 1.0).await;
    assert_eq!(fail(&gateway, 2, "vera", "192.0.2.1").await, [401, 429], "as if it had never failed");
    assert!(retry_after(&attempt(&gateway, "vera", PASSWORD, "192.0.2.1").await) <= 15);
}

#[tokio::test]
async fn logins_go_on_and_count_while_the_counts_cannot_be_written() {
    use sqlx::{ConnectOptions, Executor};
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    let file = gateway.folder.path().join("data/portcullis.db");
    let mut store = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
    store.execute("ALTER TABLE login_failures RENAME TO gone").await.unwrap();
    assert_eq!(fail(&gateway, 6, "vera", "192.0.2.1").await, [401, 401, 401, 401, 401, 429]);
    gateway.wait_for_line(0, |line| line.contains("bans and failed logins cannot be read or written")).await;
    assert!(gateway.metric("portcullis_login_failure_store_errors_total").await >= 1.0);
    store.execute("ALTER TABLE gone RENAME TO login_failures").await.unwrap();
    gateway.wait_for_line(0, |line| line.contains("can be read and written again")).await;
    assert_eq!(listed(&gateway, &["--all"]).len(), 3, "what was counted meanwhile is written");
}

#[tokio::test]
async fn a_password_counts_to_its_last_byte_and_one_that_is_too_long_is_a_wrong_one() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &limits(100, 1000)).await;
    let long = "0123456789abcdef".repeat(64);
    let added = gateway.run(&["user", "add", "long", "--role", "Viewer", "--password-stdin"], &long);
    assert!(added.status.success());
    let right = attempt(&gateway, "long", &long, "192.0.2.1").await;
    assert_eq!(right.status, 200);
    let wrong = attempt(&gateway, "long", "wrong password", "192.0.2.1").await;
    for other in [&long[..72], &long[..1023], &format!("{long}x"), &long.repeat(50)] {
        let answer = attempt(&gateway, "long", other, "192.0.2.1").await;
        assert_eq!((answer.status, &answer.body), (401, &wrong.body), "{} bytes", other.len());
    }
}

#[tokio::test]
async fn ban_says_what_is_wrong_with_what_it_was_told() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    for (arguments, code, says) in [
        (&["ban", "add", ""][..], 2, "a user name cannot be empty"),
        (&["ban", "add", "vera", "--for", "soon"], 2, "--for: 'soon' is not a duration"),
        (&["ban", "add", "vera", "--for", "0s"], 2, "--for: '0s'"),
        (&["ban", "add"], 2, "WHO"),
        (&["ban", "lift", " vera"], 2, "blank"),
        (&["ban", "add", "300.1.1.1"], 2, "'300.1.1.1' is no address and no network"),
        (&["ban", "add", "10.0.0.1/33"], 2, "say --account"),
    ] {
        let output = run(gateway.folder.path(), arguments, "");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(says) && !told.contains("panicked"), "{arguments:?}: {told}");
    }
    assert_eq!(ban(&gateway, &["lift", "nobody"]), "nothing was held against `nobody`\n");
    assert_eq!(ban(&gateway, &["list"]), "nobody is locked out\n");
    ban(&gateway, &["add", "10.0.0.1", "--account"]);
    ban(&gateway, &["add", "192.0.2.0/24"]);
    let rows = listed(&gateway, &[]);
    assert_eq!((&rows[0]["account"], &rows[0]["network"]), (&json!("10.0.0.1"), &Value::Null));
    assert_eq!((&rows[1]["network"], &rows[1]["until"]), (&json!("192.0.2.0/24"), &Value::Null));
    let said = ban(&gateway, &["lift", "192.0.2.7"]);
    assert!(said.contains("cannot log in yet: 192.0.2.0/24 is banned still"), "{said}");
}

#[tokio::test]
async fn a_browser_is_told_of_its_lock_in_words() {
    let upstream = Upstream::start().await;
    let login = "login: { max_failures: 1, page: true, cookie: { secure: false } }";
    let gateway = Gateway::start(&upstream, &format!("{CONFIG}\n{login}")).await;
    let form = || {
        gateway
            .post("/auth/login")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-site", "same-origin")
            .header("accept", "text/html")
            .header("content-type", "application/x-www-form-urlencoded")
            .body("username=vera&password=wrong+password")
            .send()
    };
    assert_eq!(form().await.status, 401);
    let locked = form().await;
    assert_eq!(locked.status, 429);
    assert!((1..=15).contains(&retry_after(&locked)));
    let text = locked.text();
    assert!(text.contains("There were too many failed attempts to sign in. Try again in "), "{text}");
    assert!(text.contains("role=\"alert\""), "{text}");
}
