//! The two contracts that hold to the letter, on the very files of `deploy/examples`.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Executor};

use crate::harness::{Answer, Gateway, PASSWORD, PATIENCE, Upstream, run};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(name)
}

/// An example without its addresses, which a test fills in; all the rest stays as it is.
fn without_addresses(name: &str) -> String {
    let text = std::fs::read_to_string(example(name)).unwrap();
    let addresses = ["listen:", "admin:", "upstream:"];
    let kept: Vec<&str> =
        text.lines().filter(|line| !addresses.iter().any(|key| line.starts_with(key))).collect();
    assert_eq!(text.lines().count() - kept.len(), addresses.len(), "each address is one line");
    kept.join("\n")
}

/// The example with tokens that last for a few seconds.
fn short_lived(name: &str) -> String {
    let text = without_addresses(name);
    let short: Vec<&str> =
        text.lines().map(|line| if line.starts_with("  ttl: ") { "  ttl: 3s" } else { line }).collect();
    assert_ne!(text, short.join("\n"));
    short.join("\n")
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(token: &str) -> Value {
    portcullis::token::decode_without_verifying(token).unwrap().claims
}

/// Asks again and again across a token's expiry: every answer that was certainly before it is a
/// success, every one that was certainly after it is a 401, the first one included.
async fn holds_to_its_expiry(gateway: &Gateway, token: &str, method: &str, target: &str) -> Answer {
    let expires = claims(token)["exp"].as_u64().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut accepted = 0;
    loop {
        let before = unix_now();
        let answer = gateway.request(method, target).bearer(token).send().await;
        let after = unix_now();
        if after < expires {
            assert_eq!(answer.status, 200, "before its expiry");
        }
        if before >= expires {
            assert_eq!(answer.status, 401, "past its expiry");
        }
        if answer.status == 401 {
            assert!(after >= expires && accepted > 0, "it was good before");
            return answer;
        }
        accepted += 1;
        assert!(Instant::now() < deadline, "the token never expires");
    }
}

/// A login with a name and a password.
async fn log_in(gateway: &Gateway, path: &str, username: &str, password: &str) -> Answer {
    gateway.post(path).json(&json!({ "username": username, "password": password })).send().await
}

#[test]
fn every_example_is_accepted_by_check_without_a_warning() {
    let mut seen = 0;
    for entry in std::fs::read_dir(example("")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        seen += 1;
        // In a folder of its own: a check writes nothing beside the example.
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(&path, folder.path().join("gateway.yaml")).unwrap();
        let output = run(folder.path(), &["check"], "");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: {told}", path.display());
        assert!(told.contains(" is valid: ") && !told.contains("warning"), "{}: {told}", path.display());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "check writes nothing");
    }
    assert_eq!(seen, 2);
}

/// A NodeForgeCMS gateway with the users `ada` (admin) and `ed` (editor).
async fn nodeforge(upstream: &Upstream, file: &str) -> Gateway {
    let gateway = Gateway::start(upstream, file).await;
    for (name, role) in [("ada", "admin"), ("ed", "editor")] {
        let added = gateway.run(&["user", "add", name, "--role", role, "--password-stdin"], PASSWORD);
        assert!(added.status.success(), "{added:?}");
    }
    gateway
}

async fn nodeforge_token(gateway: &Gateway, username: &str) -> String {
    let answer = log_in(gateway, "/api/auth/login", username, PASSWORD).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["data"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn nodeforge_login_answers_with_data_token_and_user() {
    let upstream = Upstream::start().await;
    let gateway = nodeforge(&upstream, &without_addresses("nodeforge.yaml")).await;
    for (name, role, id) in [("ada", "admin", 1), ("ed", "editor", 2)] {
        let answer = log_in(&gateway, "/api/auth/login", name, PASSWORD).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let body = answer.json();
        let token = body["data"]["token"].as_str().expect("data.token is a string");
        assert!(body["data"]["user"]["id"].is_i64(), "data.user.id is an integer");
        // The whole body, so that nothing more and nothing less is in it.
        let whole = format!(
            r#"{{"data":{{"token":"{token}","user":{{"id":{id},"username":"{name}","role":"{role}"}}}}}}"#
        );
        assert_eq!(answer.text(), whole);
        let claims = claims(token);
        assert_eq!((&claims["sub"], &claims["role"]), (&json!(id.to_string()), &json!(role)));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 24 * 3600);
    }
    assert_eq!(upstream.count(), 0, "the CMS never sees a password");
}

#[tokio::test]
async fn nodeforge_refuses_wrong_credentials_with_one_and_the_same_401() {
    let upstream = Upstream::start().await;
    let gateway = nodeforge(&upstream, &without_addresses("nodeforge.yaml")).await;
    for (username, password) in
        [("ed", "wrong password"), ("nobody", PASSWORD), ("ed", "x"), ("ed ", PASSWORD), ("ed", "Ed")]
    {
        let answer = log_in(&gateway, "/api/auth/login", username, password).await;
        assert_eq!(answer.status, 401, "{username}");
        assert_eq!(answer.text(), r#"{"error":"Invalid username or password"}"#);
    }
}

#[tokio::test]
async fn nodeforge_reads_are_public_and_writes_need_a_token() {
    let upstream = Upstream::start().await;
    let gateway = nodeforge(&upstream, &without_addresses("nodeforge.yaml")).await;
    for target in ["/", "/api/articles", "/api/articles/7", "/api/categories?page=2", "/style.css"] {
        for method in ["GET", "HEAD"] {
            assert_eq!(gateway.request(method, target).send().await.status, 200, "{method} {target}");
        }
    }
    let ed = nodeforge_token(&gateway, "ed").await;
    let before = upstream.count();
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let answer = gateway.request(method, "/api/articles/7").send().await;
        assert_eq!(answer.status, 401, "{method}");
        assert_eq!(answer.text(), r#"{"error":"Missing Authorization header"}"#);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(upstream.count(), before, "nothing of it reached the CMS");
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let answer = gateway.request(method, "/api/articles/7").bearer(&ed).body("text").send().await;
        assert_eq!(answer.status, 200, "{method}");
        let seen = upstream.last();
        assert_eq!((seen.method.as_str(), &seen.body[..]), (method, &b"text"[..]));
        assert_eq!(seen.header("x-auth-id"), Some("2"));
        assert_eq!(seen.header("x-auth-user"), Some("ed"));
        assert_eq!(seen.header("x-auth-role"), Some("editor"));
    }
}

#[tokio::test]
async fn nodeforge_wants_the_bearer_prefix_with_its_space() {
    let upstream = Upstream::start().await;
    let gateway = nodeforge(&upstream, &without_addresses("nodeforge.yaml")).await;
    let token = nodeforge_token(&gateway, "ed").await;
    let missing = r#"{"error":"Missing Authorization header"}"#;
    let invalid = r#"{"error":"Invalid token"}"#;
    let (head, signature) = token.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    for (authorization, body) in [
        (token.clone(), missing),
        (format!("Bearer{token}"), missing),
        (format!("Bearer:{token}"), missing),
        (format!("Bearer\t{token}"), invalid),
        (format!("Token {token}"), missing),
        (format!("\"Bearer {token}\""), missing),
        ("Bearer".to_owned(), invalid),
        ("Bearer ".to_owned(), invalid),
        ("Bearer nonsense".to_owned(), invalid),
        ("Bearer a.b.c".to_owned(), invalid),
        (format!("Bearer {head}"), invalid),
        (format!("Bearer {head}."), invalid),
        (format!("Bearer {forged}"), invalid),
        (format!("Bearer {token}x"), invalid),
        (format!("Bearer {token} {token}"), invalid),
        (format!("Bearer Bearer {token}"), invalid),
    ] {
        let answer = gateway.post("/api/articles").header("authorization", &authorization).send().await;
        assert_eq!((answer.status, answer.text().as_str()), (401, body), "{authorization}");
    }
    assert_eq!(upstream.count(), 0);
    for authorization in [format!("Bearer {token}"), format!("bearer {token}")] {
        let answer = gateway.post("/api/articles").header("authorization", &authorization).send().await;
        assert_eq!(answer.status, 200, "{authorization}");
    }
}

#[tokio::test]
async fn nodeforge_tokens_expire_and_there_is_no_refresh() {
    let upstream = Upstream::start().await;
    let gateway = nodeforge(&upstream, &short_lived("nodeforge.yaml")).await;
    let token = nodeforge_token(&gateway, "ed").await;
    let answer = holds_to_its_expiry(&gateway, &token, "POST", "/api/articles").await;
    assert_eq!(answer.text(), r#"{"error":"Token expired"}"#);
    assert!(answer.header("www-authenticate").unwrap().starts_with(r#"Bearer error="invalid_token""#));
    for path in ["/api/auth/refresh", "/api/auth/login"] {
        let count = upstream.count();
        let answer = gateway.post(path).bearer(&token).send().await;
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
        assert_eq!(upstream.count(), count);
    }
    // Logging in again is the way on.
    let token = nodeforge_token(&gateway, "ed").await;
    assert_eq!(gateway.post("/api/articles").bearer(&token).send().await.status, 200);
}

#[tokio::test]
async fn nodeforge_user_administration_is_for_admins_only() {
    let upstream = Upstream::start().await;
    let gateway = nodeforge(&upstream, &without_addresses("nodeforge.yaml")).await;
    let (ada, ed) = (nodeforge_token(&gateway, "ada").await, nodeforge_token(&gateway, "ed").await);
    for (method, target) in [
        ("GET", "/api/users"),
        ("POST", "/api/users"),
        ("GET", "/api/users/3"),
        ("PUT", "/api/users/3"),
        ("PATCH", "/api/users/3/role"),
        ("DELETE", "/api/users/3"),
        ("DELETE", "/api//users/3"),
        ("DELETE", "/API/Users/3"),
    ] {
        let anonymous = gateway.request(method, target).send().await;
        assert_eq!(anonymous.status, 401, "{method} {target}");
        assert_eq!(anonymous.text(), r#"{"error":"Missing Authorization header"}"#);
        let editor = gateway.request(method, target).bearer(&ed).send().await;
        assert_eq!(editor.status, 403, "{method} {target}");
        assert_eq!(editor.text(), r#"{"error":"Access denied"}"#);
    }
    assert_eq!(upstream.count(), 0);
    for (method, target) in [("GET", "/api/users"), ("POST", "/api/users"), ("DELETE", "/api/users/3")] {
        assert_eq!(
            gateway.request(method, target).bearer(&ada).send().await.status,
            200,
            "{method} {target}"
        );
    }
    // An admin may all that an editor may.
    assert_eq!(gateway.post("/api/articles").bearer(&ada).send().await.status, 200);
    assert_eq!(upstream.last().header("x-auth-role"), Some("admin"));
}

#[tokio::test]
async fn admin_api_login_answers_with_token_and_user_and_claims_say_who_what_and_how_long() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &without_addresses("admin-api.yaml")).await;
    for (id, name, role) in [(1, "vera", "Viewer"), (2, "eddie", "Editor"), (3, "sam", "SuperAdmin")] {
        let answer = log_in(&gateway, "/auth/login", name, PASSWORD).await;
        assert_eq!(answer.status, 200);
        let body = answer.json();
        let token = body["token"].as_str().unwrap();
        let full_name = name.to_uppercase();
        assert_eq!(
            answer.text(),
            format!(
                r#"{{"token":"{token}","user":{{"id":{id},"name":"{full_name}","email":"{name}@example.com","role":"{role}"}}}}"#
            )
        );
        let claims = claims(token);
        assert_eq!(claims["sub"], json!(id.to_string()));
        assert_eq!(claims["role"], json!(role));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
        assert_eq!(answer.header("cache-control"), Some("no-store"), "a token is in it");
    }
    // What is not known of a user is null, and its key stays.
    let added = gateway.run(&["user", "add", "bare", "--role", "Viewer", "--password-stdin"], PASSWORD);
    assert!(added.status.success());
    let user = &log_in(&gateway, "/auth/login", "bare", PASSWORD).await.json()["user"];
    assert_eq!(user.to_string(), r#"{"id":4,"name":null,"email":null,"role":"Viewer"}"#);
}

#[tokio::test]
async fn admin_api_gives_each_role_its_paths_and_nothing_else() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &without_addresses("admin-api.yaml")).await;
    let tokens = [gateway.login("vera").await, gateway.login("eddie").await, gateway.login("sam").await];
    // The lowest role that may: 0 Viewer, 1 Editor, 2 SuperAdmin, 3 nobody.
    for (method, target, lowest) in [
        ("GET", "/admin/schema/tables", 2),
        ("POST", "/admin/schema/tables", 2),
        ("DELETE", "/admin/schema", 2),
        ("GET", "/admin/api/keys", 2),
        ("PUT", "/admin/api/keys/1", 2),
        ("PUT", "/admin/user/5", 2),
        ("POST", "/admin/user/5", 2),
        ("PATCH", "/admin/user/5", 2),
        ("DELETE", "/admin/user/5", 2),
        ("POST", "/admin/user", 2),
        ("GET", "/admin/user/5/sessions", 2),
        ("GET", "/admin/content/pages", 1),
        ("POST", "/admin/content/pages", 1),
        ("DELETE", "/admin/content/pages/5", 1),
        ("POST", "/admin/media/upload", 1),
        ("GET", "/admin/media", 1),
        ("GET", "/admin/users", 0),
        ("HEAD", "/admin/users", 0),
        ("GET", "/admin/users/5", 0),
        ("GET", "/admin/user/5", 0),
        ("HEAD", "/admin/user/5", 0),
        ("POST", "/admin/users", 3),
        ("DELETE", "/admin/users/5", 3),
        ("GET", "/admin/anything-else", 3),
        ("GET", "/admin", 3),
        ("GET", "/", 3),
        ("GET", "/public/page", 3),
    ] {
        let anonymous = gateway.request(method, target).send().await;
        assert_eq!(anonymous.status, 401, "{method} {target}");
        if method != "HEAD" {
            assert_eq!(anonymous.text(), r#"{"error":"Missing Authorization header"}"#);
        }
        for (rank, token) in tokens.iter().enumerate() {
            let count = upstream.count();
            let answer = gateway.request(method, target).bearer(token).send().await;
            let allowed = rank >= lowest;
            assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{method} {target} as {rank}");
            assert_eq!(upstream.count() - count, usize::from(allowed));
            if !allowed && method != "HEAD" {
                assert_eq!(answer.text(), r#"{"error":"Access denied"}"#);
                assert_eq!(answer.header("content-type"), Some("application/json"));
            }
        }
    }
}

#[tokio::test]
async fn admin_api_answers_401_for_an_invalid_token_and_on_the_first_request_past_its_expiry() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &short_lived("admin-api.yaml")).await;
    for token in ["nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
        let answer = gateway.get("/admin/users").bearer(token).send().await;
        assert_eq!((answer.status, answer.text().as_str()), (401, r#"{"error":"Invalid token"}"#));
        assert_eq!(answer.header("www-authenticate"), Some(r#"Bearer error="invalid_token""#));
    }
    let token = gateway.login("vera").await;
    let answer = holds_to_its_expiry(&gateway, &token, "GET", "/admin/users").await;
    assert_eq!(answer.text(), r#"{"error":"Token expired"}"#);
}

#[tokio::test]
async fn admin_api_answers_500_while_the_user_store_fails_and_logs_in_when_it_is_back() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&upstream, &without_addresses("admin-api.yaml")).await;
    let token = gateway.login("vera").await;
    let file = gateway.folder.path().join("data/portcullis.db");
    let mut store = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
    store.execute("ALTER TABLE users RENAME TO gone").await.unwrap();
    // Whoever it is for: a store that fails says nothing about its users.
    for (username, password) in [("vera", PASSWORD), ("vera", "wrong password"), ("nobody", PASSWORD)] {
        let answer = log_in(&gateway, "/auth/login", username, password).await;
        assert_eq!((answer.status, answer.text().as_str()), (500, r#"{"error":"Failed to fetch user"}"#));
    }
    // A token that is out needs no store.
    assert_eq!(gateway.get("/admin/users").bearer(&token).send().await.status, 200);
    store.execute("ALTER TABLE gone RENAME TO users").await.unwrap();
    gateway.login("vera").await;
    assert!(gateway.is_running());
    assert_eq!(gateway.metric("portcullis_panics_total").await, 0.0);
}
