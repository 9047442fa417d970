//! A CMS whose users cannot be read is asked by its own login, and its answer is not believed further than needed.

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::{Answer, Gateway, PATIENCE, Seen, Upstream, run};

const PASSWORD: &str = "correct horse & battery=ß";

/// The login of a CMS: what it answers hangs on the name alone, whose password is [`PASSWORD`].
fn cms(seen: &Seen) -> Response<Full<Bytes>> {
    let answer = |status: u16, body: Value| {
        let response = Response::builder().status(status).header("content-type", "application/json");
        response.header("set-cookie", "cms_session=abc; HttpOnly").body(Full::from(body.to_string())).unwrap()
    };
    if seen.target != "/api/auth/login?key=s3cret-of-the-cms" || seen.method != "POST" {
        return answer(200, json!({ "page": seen.target }));
    }
    let sent: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    if sent["password"] != PASSWORD {
        return answer(401, json!({ "error": "no" }));
    }
    let user = |id: Value, role: Value| json!({ "jwt": "the CMS's own", "data": { "user": { "id": id, "login": "vera", "display": "Vera", "mail": "", "role": role } } });
    match sent["login"].as_str().unwrap_or_default() {
        "vera" | "Vera@example.org" => answer(200, user(json!(7), json!("author"))),
        "uuid" => answer(201, user(json!("5f7"), json!(["subscriber", "author"]))),
        "stranger" => answer(200, user(json!(8), json!("shop_manager"))),
        "roleless" => answer(200, user(json!(9), Value::Null)),
        "moved" => Response::builder()
            .status(302)
            .header("location", "/api/auth/login?key=s3cret-of-the-cms")
            .body(Full::default())
            .unwrap(),
        "broken" => answer(500, json!({})),
        "busy" => answer(429, json!({})),
        "idless" => answer(200, json!({ "data": { "user": { "login": "vera", "role": "author" } } })),
        "html" => Response::new(Full::from("<p>Welcome")),
        "long" => answer(200, user(json!("x".repeat(300)), json!("author"))),
        "huge" => answer(200, json!({ "x": "x".repeat(2 * 1024 * 1024) })),
        "unprocessable" => answer(422, json!({})),
        other => answer(404, json!({ "unknown": other })),
    }
}

const CONFIG: &str = "rules: [{ path: /*, allow: Viewer }]\ntrusted_proxies: [127.0.0.1]\nlogin: { max_failures: 3 }\nusers:\n  \
     login: { url: 'http://UPSTREAM/api/auth/login?key=s3cret-of-the-cms', username_field: login, id: data.user.id, username: data.user.login, \
     name: data.user.display, email: data.user.mail, role: data.user.role, cookies: true }\n  role_map: { author: Editor, subscriber: Viewer }";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    folder
}

async fn attempt(gateway: &Gateway, name: &str, password: &str) -> Answer {
    attempt_from("192.0.2.7", gateway, name, password).await
}

async fn attempt_from(client: &str, gateway: &Gateway, name: &str, password: &str) -> Answer {
    let body = json!({ "username": name, "password": password });
    gateway.post("/auth/login").header("x-forwarded-for", client).json(&body).send().await
}

#[tokio::test]
async fn the_cms_says_who_somebody_is() {
    let upstream = Upstream::answering(cms).await;
    let gateway = Gateway::start_in(folder(), upstream.address, CONFIG).await;
    let answer = attempt(&gateway, "vera", PASSWORD).await;
    let user = json!({ "id": 7, "name": "Vera", "email": null, "role": "Editor" });
    assert_eq!((answer.status, &answer.json()["user"]), (200, &user), "{}", gateway.lines().join("\n"));
    assert_eq!(answer.header("set-cookie"), Some("cms_session=abc; HttpOnly"));
    let asked = upstream.last();
    assert_eq!(asked.headers["x-forwarded-for"], "192.0.2.7");
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(gateway.get("/page").bearer(&token).send().await.status, 200);
    for (name, value) in [("x-auth-id", "7"), ("x-auth-user", "vera"), ("x-auth-role", "Editor")] {
        assert_eq!(upstream.last().headers[name], value);
    }
    assert_eq!(attempt(&gateway, "uuid", PASSWORD).await.json()["user"]["id"], "5f7");
    // Logged out is logged out, whatever the CMS thinks.
    assert_eq!(gateway.post("/auth/logout").bearer(&token).send().await.status, 204);
    assert_eq!(gateway.get("/page").bearer(&token).send().await.status, 401);

    for (name, password, status) in [
        ("vera", "wrong", 401),
        ("unprocessable", PASSWORD, 401),
        ("stranger", PASSWORD, 401),
        ("roleless", PASSWORD, 401),
        ("moved", PASSWORD, 500),
        ("broken", PASSWORD, 500),
        ("busy", PASSWORD, 500),
        ("idless", PASSWORD, 500),
        ("html", PASSWORD, 500),
        ("long", PASSWORD, 500),
        ("huge", PASSWORD, 500),
        ("nobody", PASSWORD, 500),
    ] {
        let answer = attempt(&gateway, name, password).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(answer.header("set-cookie"), None, "{name}");
    }
    for status in [401, 401, 429, 429] {
        assert_eq!(attempt(&gateway, "VERA", "wrong").await.status, status);
    }
    let log = gateway.lines().join("\n");
    assert!(log.contains("\"reason\":\"no_role\"") && log.contains("it answered 302"), "{log}");
    let told = String::from_utf8(gateway.run(&["check", "--network"], "").stdout).unwrap();
    assert!(told.contains("ok      users by http://") && told.contains("/api/auth/login, which"), "{told}");
    for secret in ["battery", "s3cret-of-the-cms"] {
        assert!(!log.contains(secret) && !told.contains(secret), "{told}\n{log}");
    }
    for command in [&["token", "issue", "vera"][..], &["user", "list"]] {
        assert_eq!(gateway.run(command, "").status.code(), Some(1));
    }
}

#[tokio::test]
async fn a_guess_counts_however_the_cms_says_no() {
    let upstream = Upstream::answering(cms).await;
    let gateway = Gateway::start_in(folder(), upstream.address, CONFIG).await;
    for (at, (name, is_counted)) in [
        ("unprocessable", true),
        ("nobody", true),
        ("moved", true),
        ("idless", true),
        ("html", true),
        ("long", true),
        ("huge", true),
        ("busy", false),
        ("broken", false),
    ]
    .into_iter()
    .enumerate()
    {
        // Everybody from somewhere else, so that failures of one name are no matter of the next.
        let client = format!("198.51.100.{at}");
        for _ in 0..3 {
            assert_ne!(attempt_from(&client, &gateway, name, PASSWORD).await.status, 429, "{name}");
        }
        let status = attempt_from(&client, &gateway, name, PASSWORD).await.status;
        assert_eq!(status, if is_counted { 429 } else { 500 }, "{name}");
    }
}

#[tokio::test]
async fn a_ban_and_a_lock_hold_under_every_name_that_the_cms_takes_for_one_user() {
    let upstream = Upstream::answering(cms).await;
    let gateway = Gateway::start_in(folder(), upstream.address, CONFIG).await;
    let other_name = "Vera@example.org";
    let until = async |client: &'static str, status: u16| {
        let asked = async {
            while attempt_from(client, &gateway, "vera", PASSWORD).await.status != status {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("the command is followed");
    };
    // Not in the place of the wrong guesses below, or it would be its owner's own.
    assert_eq!(attempt_from("192.0.2.8", &gateway, other_name, PASSWORD).await.status, 200);
    assert!(gateway.run(&["ban", "add", "vera"], "").status.success());
    until("192.0.2.8", 429).await;
    let refused = attempt_from("192.0.2.8", &gateway, other_name, PASSWORD).await;
    assert_eq!((refused.status, refused.header("set-cookie")), (429, None), "{}", refused.text());
    assert!(gateway.run(&["ban", "lift", "vera"], "").status.success());
    until("192.0.2.8", 200).await;
    assert_eq!(attempt_from("192.0.2.8", &gateway, other_name, PASSWORD).await.status, 200);

    for status in [401, 401, 401, 429] {
        assert_eq!(attempt_from("192.0.2.9", &gateway, "vera", "wrong").await.status, status);
    }
    assert_eq!(attempt_from("192.0.2.9", &gateway, other_name, PASSWORD).await.status, 429);
    // In one place, not everywhere.
    assert_eq!(attempt_from("192.0.2.8", &gateway, other_name, PASSWORD).await.status, 200);
}

#[tokio::test]
async fn a_success_that_is_listed_as_a_failure_lets_nobody_in() {
    let upstream = Upstream::answering(|_| {
        let body = json!({ "user": { "id": 3, "username": "emil" }, "next": "a second factor" });
        Response::builder().status(202).body(Full::from(body.to_string())).unwrap()
    })
    .await;
    let config = "rules: [{ path: /*, allow: Viewer }]\nusers: { login: { url: 'http://UPSTREAM/login', failures: [202, 401] }, role: Viewer }";
    let gateway = Gateway::start_in(folder(), upstream.address, config).await;
    assert_eq!(attempt(&gateway, "emil", PASSWORD).await.status, 401);
}

#[tokio::test]
async fn a_login_of_the_cms_that_is_slow_or_away_is_an_error() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = CONFIG
        .replace("cookies: true", "timeout: 200ms")
        .replace("UPSTREAM", &silent.local_addr().unwrap().to_string());
    let upstream = Upstream::start().await;
    let gateway = Gateway::start_in(folder(), upstream.address, &config).await;
    let answer = attempt(&gateway, "vera", PASSWORD).await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (500, Some("Failed to fetch user")));
    drop(silent);
    assert_eq!(attempt(&gateway, "vera", PASSWORD).await.status, 500);
    assert!(gateway.lines().join("\n").contains("it did not answer in time"));
}

#[tokio::test]
async fn a_form_and_fixed_roles_are_for_a_cms_that_says_little() {
    let upstream = Upstream::answering(|seen| {
        let body = json!({ "id": 3, "username": "emil" });
        let expected = b"user%5Bname%5D=emil&password=correct%20horse%20%26%20battery%3D%C3%9F";
        let status = if seen.body.as_ref() == expected { 200 } else { 403 };
        Response::builder().status(status).body(Full::from(body.to_string())).unwrap()
    })
    .await;
    let config = "rules: [{ path: /*, allow: Viewer }]\nusers: { login: { url: 'http://UPSTREAM/login', format: form, \
                  username_field: 'user[name]', id: id, username: username }, role: Viewer }";
    let gateway = Gateway::start_in(folder(), upstream.address, config).await;
    let answer = attempt(&gateway, "emil", PASSWORD).await;
    assert_eq!(
        (answer.status, answer.json()["user"]["role"].as_str()),
        (200, Some("Viewer")),
        "{}",
        answer.text()
    );
    assert_eq!(attempt(&gateway, "emil", "other").await.status, 401);
}

#[test]
fn what_a_login_of_the_cms_cannot_be_is_said_at_its_place() {
    for (rest, told) in [
        ("users: { login: ftp://cms/login }", "must begin with https:// or http://"),
        ("users: { login: 'http://me:hunter2@cms/login' }", "must not hold a user name or password"),
        (
            "users: { login: http://cms/login }",
            "'login' needs 'role' in it, or beside it a 'role' for everybody",
        ),
        (
            "users: { login: http://cms/login, role: Viewer, store: sqlite:x }",
            "'store' needs no 'login' beside it",
        ),
        (
            "users: { login: http://cms/login, role: Viewer, weak_hashes: true }",
            "'weak_hashes' needs a 'store'",
        ),
        (
            "users: { login: http://cms/login, role: Viewer }\nlogin: { rotate: /auth/rotate }",
            "'login.rotate' needs a store of users",
        ),
        (
            "users: { login: { url: http://cms/login, failures: [500] }, role: Viewer }",
            "must be from 200 to 499, not 500",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = format!(
            "upstream: http://127.0.0.1:9\nroles: [Viewer, Editor]\nrules: [{{ path: /, allow: deny }}]\n{rest}\n"
        );
        std::fs::write(folder.path().join("gateway.yaml"), file).unwrap();
        let output = run(folder.path(), &["check"], "");
        let found = String::from_utf8(output.stdout).unwrap();
        assert!(found.contains(told), "{rest}\n{found}");
        assert!(!found.contains("hunter2"), "{found}");
        assert_eq!(output.status.code(), Some(2), "{found}");
    }
}
