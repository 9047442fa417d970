//! Tokens of other issuers: their keys from a file, a URL, a secret or a PEM; their claims in our words.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::{Response, StatusCode};
use http_body_util::Full;
use jsonwebtoken::{EncodingKey, Header, encode};
use portcullis::token::{Algorithm, SigningKey, generate_pkcs8_pem, jwks};
use serde_json::{Value, json};

use crate::harness::{Gateway, PATIENCE, Upstream};

const RELOADED: &str = "the configuration is reloaded";
const SECRET: &str = "a secret of more than thirty-two bytes, shared";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Another issuer: one key pair and what its tokens hold.
struct Issuer {
    kid: &'static str,
    pem: String,
    key: SigningKey,
}

impl Issuer {
    fn new(kid: &'static str) -> Self {
        let pem = generate_pkcs8_pem(Algorithm::ES256).unwrap();
        let key = SigningKey::from_pkcs8_pem(kid, &pem, Algorithm::ES256).unwrap();
        Self { kid, pem, key }
    }

    fn jwks(&self) -> String {
        jwks(std::slice::from_ref(&self.key)).to_string()
    }

    /// A token with the usual claims, and `more` over them; null takes one away.
    fn token(&self, more: &Value) -> String {
        let header = Header { kid: Some(self.kid.into()), ..Header::new(jsonwebtoken::Algorithm::ES256) };
        encode(&header, &claims(more), &EncodingKey::from_ec_pem(self.pem.as_bytes()).unwrap()).unwrap()
    }
}

fn claims(more: &Value) -> Value {
    let mut claims = json!({ "iss": "https://id.example", "aud": "cms", "sub": "u-1", "iat": now(),
        "exp": now() + 600, "role": "Editor" });
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn with_secret(secret: &str, more: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(jsonwebtoken::Algorithm::HS256), &claims(more), &key).unwrap()
}

/// A file with one trusted issuer; `more` are further keys of its entry.
fn config(more: &str) -> String {
    format!(
        "rules: [{{ path: /editor, allow: Editor }}, {{ path: /any, allow: authenticated }}]\n\
         tokens:\n  trust:\n    - {{ issuer: https://id.example, audience: cms, {more} }}"
    )
}

async fn ask(gateway: &Gateway, target: &str, token: &str) -> u16 {
    gateway.get(target).bearer(token).send().await.status
}

#[tokio::test]
async fn a_trusted_issuers_token_passes_and_the_upstream_is_told_whose_it_is() {
    let upstream = Upstream::start().await;
    let issuer = Issuer::new("k1");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("keys.json"), issuer.jwks()).unwrap();
    let gateway = Gateway::start_in(
        folder,
        upstream.address,
        &config("jwks: keys.json, id_prefix: 'corp:', user_claim: preferred_username"),
    )
    .await;
    let token = issuer.token(&json!({ "preferred_username": "Ann", "aud": ["other", "cms"] }));
    assert_eq!(ask(&gateway, "/editor", &token).await, 200);
    let seen = upstream.last();
    assert_eq!(seen.header("x-auth-id"), Some("corp:u-1"));
    assert_eq!(seen.header("x-auth-user"), Some("Ann"));
    assert_eq!(seen.header("x-auth-role"), Some("Editor"));
    assert_eq!(seen.header("authorization"), None);
    // Our own tokens count as before.
    let own = gateway.login("eddie").await;
    assert_eq!(ask(&gateway, "/editor", &own).await, 200);
    assert_eq!(upstream.last().header("x-auth-id"), Some("2"));
    // And ours alone are what the published keys are for.
    let published = gateway.get("/.well-known/jwks.json").send().await.text();
    assert!(!published.contains("\"k1\""), "{published}");
}

#[tokio::test]
async fn a_foreign_token_that_is_not_wholly_right_is_refused() {
    let upstream = Upstream::start().await;
    let issuer = Issuer::new("k1");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("keys.json"), issuer.jwks()).unwrap();
    let gateway = Gateway::start_in(folder, upstream.address, &config("jwks: keys.json")).await;
    let stranger = Issuer { kid: "k1", ..Issuer::new("k1") };
    let unnamed = Issuer { kid: "k2", pem: issuer.pem.clone(), key: issuer.key.clone() };
    for (token, why) in [
        (issuer.token(&json!({ "iss": "https://id.example/" })), "another issuer"),
        (issuer.token(&json!({ "iss": "portcullis", "aud": "portcullis" })), "ours, signed by them"),
        (issuer.token(&json!({ "aud": "shop" })), "another audience"),
        (issuer.token(&json!({ "aud": null })), "no audience"),
        (issuer.token(&json!({ "sub": null })), "no subject"),
        (issuer.token(&json!({ "sub": 5 })), "a subject that is no text"),
        (issuer.token(&json!({ "exp": null })), "no expiry"),
        (issuer.token(&json!({ "iat": null })), "no time of issue"),
        (issuer.token(&json!({ "nbf": now() + 300 })), "not yet"),
        (stranger.token(&json!({})), "another key of the same name"),
        (unnamed.token(&json!({})), "a key that nobody knows"),
        (with_secret(&issuer.jwks(), &json!({})), "the public key taken for a secret"),
    ] {
        let answer = gateway.get("/any").bearer(&token).send().await;
        assert_eq!((answer.status, answer.text().as_str()), (401, r#"{"error":"Invalid token"}"#), "{why}");
    }
    let expired = issuer.token(&json!({ "iat": now() - 600, "exp": now() - 1 }));
    let answer = gateway.get("/any").bearer(&expired).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (401, r#"{"error":"Token expired"}"#));
    assert_eq!(upstream.count(), 0);
    assert_eq!(ask(&gateway, "/any", &issuer.token(&json!({}))).await, 200, "the one that is right passes");
}

#[tokio::test]
async fn a_role_is_found_where_the_issuer_keeps_it_and_means_what_the_map_says() {
    let upstream = Upstream::start().await;
    let issuer = Issuer::new("k1");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("keys.json"), issuer.jwks()).unwrap();
    let gateway = Gateway::start_in(folder, upstream.address, &config("jwks: keys.json")).await;
    let keycloak = "jwks: keys.json, role_claim: realm_access.roles, role_map: { cms-editors: Editor, cms-admins: SuperAdmin }";
    let flat = "jwks: keys.json, role_claim: groups";
    // The role header that the upstream sees on /any; whether /editor is open.
    for (trust, more, role, editor) in [
        ("jwks: keys.json", json!({}), Some("Editor"), 200),
        ("jwks: keys.json", json!({ "role": "Viewer" }), Some("Viewer"), 403),
        ("jwks: keys.json", json!({ "role": "editor" }), None, 403),
        ("jwks: keys.json", json!({ "role": null }), None, 403),
        (flat, json!({ "groups": ["staff", "Viewer", "SuperAdmin", "Editor"] }), Some("SuperAdmin"), 200),
        (flat, json!({ "groups": "Viewer" }), Some("Viewer"), 403),
        (flat, json!({ "groups": [] }), None, 403),
        (
            keycloak,
            json!({ "realm_access": { "roles": ["cms-editors", "offline_access"] } }),
            Some("Editor"),
            200,
        ),
        (
            keycloak,
            json!({ "realm_access": { "roles": ["cms-editors", "cms-admins"] } }),
            Some("SuperAdmin"),
            200,
        ),
        // With a map only what it lists counts, a role of ours included.
        (keycloak, json!({ "realm_access": { "roles": ["SuperAdmin"] } }), None, 403),
        (keycloak, json!({ "realm_access": "cms-admins" }), None, 403),
        // A claim whose whole name has dots is meant by that name.
        (keycloak, json!({ "realm_access.roles": ["cms-admins"] }), Some("SuperAdmin"), 200),
        ("jwks: keys.json, role_map: {}", json!({ "role": "SuperAdmin" }), None, 403),
    ] {
        gateway.write_config(&config(trust));
        assert_eq!(gateway.admin("POST", "/reload").send().await.status, 200);
        let token = issuer.token(&more);
        assert_eq!(ask(&gateway, "/any", &token).await, 200, "{more}");
        assert_eq!(upstream.last().header("x-auth-role"), role, "{trust}: {more}");
        assert_eq!(ask(&gateway, "/editor", &token).await, editor, "{trust}: {more}");
    }
}

#[tokio::test]
async fn a_shared_secret_and_a_public_key_are_trusted_as_well() {
    let upstream = Upstream::start().await;
    let issuer = Issuer::new("k1");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret.txt"), SECRET).unwrap();
    fs::write(folder.path().join("public.pem"), public_pem(&issuer)).unwrap();
    let gateway = Gateway::start_in(folder, upstream.address, &config("secret: '${file:secret.txt}'")).await;
    assert_eq!(ask(&gateway, "/editor", &with_secret(SECRET, &json!({}))).await, 200);
    assert_eq!(
        ask(&gateway, "/editor", &with_secret("another secret of thirty-two bytes", &json!({}))).await,
        401
    );
    assert_eq!(ask(&gateway, "/editor", &issuer.token(&json!({}))).await, 401);
    gateway.after(RELOADED, || gateway.write_config(&config("public_key: public.pem"))).await;
    assert_eq!(ask(&gateway, "/editor", &issuer.token(&json!({}))).await, 200);
    assert_eq!(ask(&gateway, "/editor", &with_secret(SECRET, &json!({}))).await, 401);
    // The PEM itself is no secret to sign with.
    assert_eq!(ask(&gateway, "/editor", &with_secret(&public_pem(&issuer), &json!({}))).await, 401);
}

/// The public half of an issuer's key as PEM.
fn public_pem(issuer: &Issuer) -> String {
    use base64::Engine;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    let jwk = issuer.key.public_jwk().unwrap();
    let part = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    // SubjectPublicKeyInfo of an uncompressed point on P-256 (RFC 5480 §2).
    let mut der = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04".to_vec();
    der.extend(part("x"));
    der.extend(part("y"));
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(der))
}

#[tokio::test]
async fn a_jwks_file_that_changes_applies_and_a_broken_one_is_refused() {
    let upstream = Upstream::start().await;
    let (first, second) = (Issuer::new("k1"), Issuer::new("k2"));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("keys.json"), first.jwks()).unwrap();
    let gateway = Gateway::start_in(folder, upstream.address, &config("jwks: keys.json")).await;
    let (old, new) = (first.token(&json!({})), second.token(&json!({})));
    assert_eq!((ask(&gateway, "/editor", &old).await, ask(&gateway, "/editor", &new).await), (200, 401));
    let file = gateway.folder.path().join("keys.json");
    gateway.after(RELOADED, || fs::write(&file, second.jwks()).unwrap()).await;
    assert_eq!((ask(&gateway, "/editor", &old).await, ask(&gateway, "/editor", &new).await), (401, 200));
    gateway.after("the configuration is refused", || fs::write(&file, "{ not json").unwrap()).await;
    assert_eq!(ask(&gateway, "/editor", &new).await, 200);
}

/// What a server of keys answers, which may change: `None` is 503.
type Keys = Arc<Mutex<Option<String>>>;

async fn key_server(keys: &Keys) -> Upstream {
    let keys = Arc::clone(keys);
    Upstream::answering(move |_| match &*keys.lock().unwrap() {
        Some(jwks) => Response::new(Full::from(jwks.clone())),
        None => {
            let mut response = Response::new(Full::from("away"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    })
    .await
}

/// Asks until the answer is `expected`.
async fn until(gateway: &Gateway, token: &str, expected: u16) {
    let deadline = Instant::now() + PATIENCE;
    while ask(gateway, "/editor", token).await != expected {
        assert!(Instant::now() < deadline, "it never is {expected}:\n{}", gateway.lines().join("\n"));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn keys_behind_a_url_are_fetched_kept_while_it_is_away_and_looked_at_again_for_a_new_one() {
    let upstream = Upstream::start().await;
    let (first, second) = (Issuer::new("k1"), Issuer::new("k2"));
    let keys: Keys = Arc::new(Mutex::new(Some(first.jwks())));
    let server = key_server(&keys).await;
    let url = format!("jwks: 'http://{}/keys?a=b'", server.address);
    let gateway = Gateway::start(&upstream, &config(&url)).await;
    let (old, new) = (first.token(&json!({})), second.token(&json!({})));
    until(&gateway, &old, 200).await;
    assert_eq!(server.last().target, "/keys?a=b");
    assert_eq!(server.count(), 1, "requests do not fetch, and what is fresh is not fetched again");
    let fetched = r#"portcullis_jwks_last_refresh_timestamp_seconds{issuer="https://id.example"}"#;
    assert!(gateway.metric(fetched).await > 0.0);
    // Away: a key that nobody knows makes the gateway look, and what was good stays.
    *keys.lock().unwrap() = None;
    let from = gateway.lines().len();
    for _ in 0..50 {
        assert_eq!(ask(&gateway, "/editor", &new).await, 401);
    }
    gateway.wait_for_line(from, |line| line.contains("cannot fetch a trusted issuer's keys")).await;
    assert!(server.count() <= 3, "fifty requests, {} fetches", server.count());
    assert_eq!(ask(&gateway, "/editor", &old).await, 200, "stale keys are kept");
    let failures = r#"portcullis_jwks_refresh_failures_total{issuer="https://id.example"}"#;
    assert!(gateway.metric(failures).await >= 1.0);
    // A reload of the file forgets none of it.
    gateway.after(RELOADED, || gateway.signal("HUP")).await;
    assert_eq!(ask(&gateway, "/editor", &old).await, 200);
    // Back, with the new key beside the old one.
    *keys.lock().unwrap() = Some(jwks(&[first.key.clone(), second.key.clone()]).to_string());
    until(&gateway, &new, 200).await;
    assert_eq!(ask(&gateway, "/editor", &old).await, 200);
}

#[tokio::test]
async fn a_url_that_is_unreachable_at_start_delays_nothing_and_counts_once_it_is_there() {
    let upstream = Upstream::start().await;
    let issuer = Issuer::new("k1");
    // Bound and not listening: connections are refused until the server takes the port over.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let gateway = Gateway::start(&upstream, &config(&format!("jwks: 'http://{address}/keys'"))).await;
    gateway.wait_for_line(0, |line| line.contains("cannot fetch a trusted issuer's keys")).await;
    let token = issuer.token(&json!({}));
    assert_eq!(ask(&gateway, "/editor", &token).await, 401);
    let own = gateway.login("eddie").await;
    assert_eq!(ask(&gateway, "/editor", &own).await, 200, "the rest works");
    assert_eq!(gateway.admin("GET", "/readyz").send().await.status, 200);
    let _server = serve_at(address, issuer.jwks()).await;
    until(&gateway, &token, 200).await;
}

/// Answers every request at one address with the same text until dropped.
async fn serve_at(address: std::net::SocketAddr, text: String) -> tokio::task::JoinSet<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    serving
}
