//! Who somebody is, is the gateway's to say and nobody else's.

use crate::harness::{Gateway, Raw, RawUpstream, Upstream, field, status_of};

const RULES: &str = "rules: [{ path: /in/*, allow: Viewer }, { path: /open/*, allow: public }]\n\
    identity: { email: X-Auth-Email, name: X-Auth-Name, secret: { header: X-Gateway-Secret, value: s3cret } }";

/// The head that the upstream sees for `lines`, one connection each.
async fn seen_for(gateway: &Gateway, upstream: &RawUpstream, target: &str, lines: &str) -> String {
    let mut client = gateway.connect().await;
    client.send(format!("GET {target} HTTP/1.1\r\nHost: cms.example\r\n{lines}\r\n")).await;
    let mut server = upstream.accept().await;
    let head = server.head().await;
    server.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(status_of(&client.head().await), 200);
    head
}

/// Every name in a head, folded as CGI and WSGI fold it.
fn folded(head: &str) -> Vec<String> {
    let names = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    names
        .map(|(name, _)| {
            name.chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
                .collect()
        })
        .collect()
}

async fn with_raw_upstream(extra: &str) -> (RawUpstream, Gateway, String) {
    // A recording upstream for the login, which needs none, and then the one in the test's hands.
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, extra).await;
    let token = gateway.login("vera").await;
    (upstream, gateway, token)
}

#[tokio::test]
async fn no_spelling_of_an_identity_header_passes_and_the_gateways_own_comes_once() {
    let (upstream, gateway, token) = with_raw_upstream(RULES).await;
    let bearer = format!("Authorization: Bearer {token}\r\n");
    for forged in [
        "X-Auth-User: root\r\n",
        "x-auth-user: root\r\nX-AUTH-USER: admin\r\n",
        "X_Auth_User: root\r\nX-Auth_Role: SuperAdmin\r\n",
        "x_auth_id: 1\r\nx_auth_user: root\r\nx_auth_role: SuperAdmin\r\n",
        "X.Auth.User: root\r\nX~Auth~Role: SuperAdmin\r\nX!Auth!Id: 1\r\n",
        "X|Auth|User: root\r\nX*Auth*User: root\r\nX'Auth'User: root\r\nX+Auth+User: root\r\n",
        "X#Auth$User: root\r\nX%Auth&User: root\r\nX^Auth`User: root\r\n",
        "X-Gateway-Secret: s3cret\r\nX_Gateway_Secret: s3cret\r\n",
        "X-Auth-Email: root@x\r\nX_AUTH_NAME: root\r\n",
        "Connection: X-Auth-User, X-Auth-Role, X-Auth-Id, X-Gateway-Secret\r\nX-Auth-User: root\r\n",
        "Connection: close\r\nConnection: x-auth-user\r\n",
        "Connection: authorization, host\r\n",
    ] {
        let head = seen_for(&gateway, &upstream, "/in/x", &format!("{forged}{bearer}")).await;
        for (name, value) in [
            ("x-auth-user", "vera"),
            ("x-auth-role", "Viewer"),
            ("x-auth-email", "vera@example.com"),
            ("x-auth-name", "VERA"),
            ("x-gateway-secret", "s3cret"),
            ("host", "cms.example"),
        ] {
            assert_eq!(field(&head, name), Some(value), "{forged}: {head}");
            assert_eq!(folded(&head).iter().filter(|folded| *folded == name).count(), 1, "{forged}: {head}");
        }
        assert_eq!(field(&head, "authorization"), None, "{forged}");
        // Without credentials on a public route nobody is anybody, and the secret stands all the same.
        let head = seen_for(&gateway, &upstream, "/open/x", forged).await;
        for name in ["x-auth-user", "x-auth-role", "x-auth-id", "x-auth-email", "x-auth-name"] {
            assert!(!folded(&head).iter().any(|folded| folded == name), "{forged}: {head}");
        }
        assert_eq!(field(&head, "x-gateway-secret"), Some("s3cret"), "{forged}");
        assert_eq!(folded(&head).iter().filter(|folded| *folded == "x-gateway-secret").count(), 1);
        // With them, it is who the token says.
        let head = seen_for(&gateway, &upstream, "/open/x", &format!("{forged}{bearer}")).await;
        assert_eq!(field(&head, "x-auth-user"), Some("vera"), "{forged}");
    }
}

#[tokio::test]
async fn values_of_users_are_encoded_so_that_they_cannot_break_a_header() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let user = serde_json::json!({ "username": "zoë 100%", "role": "Viewer", "name": "Zoë, \"the\" 1st",
        "email": "z@example.com", "password": crate::harness::PASSWORD });
    let added = gateway.run(&["user", "import", "-"], &format!("{user}\n"));
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let token = gateway.login("zoë 100%").await;
    assert_eq!(gateway.get("/in/x").bearer(&token).send().await.status, 200);
    let seen = upstream.last();
    assert_eq!(seen.header("x-auth-user"), Some("zo%C3%AB 100%25"));
    assert_eq!(seen.header("x-auth-name"), Some("Zo%C3%AB, \"the\" 1st"));
}

#[tokio::test]
async fn the_clients_token_goes_on_only_if_that_is_asked_for() {
    for forward in [false, true] {
        let upstream = Upstream::start().await;
        let extra = format!(
            "rules: [{{ path: /in, allow: Viewer }}, {{ path: /open, allow: public }}]\nidentity: {{ forward_token: {forward} }}"
        );
        let gateway = Gateway::start(&upstream, &extra).await;
        let token = gateway.login("vera").await;
        let bearer = format!("Bearer {token}");
        for path in ["/in", "/open"] {
            assert_eq!(gateway.get(path).bearer(&token).send().await.status, 200);
            assert_eq!(upstream.last().header("authorization"), forward.then_some(bearer.as_str()), "{path}");
        }
        // A bad token on a public route is nobody's.
        for bad in ["Bearer x.y.z", "bearer", "BEARER  ", &format!("Bearer {token}x")] {
            let answer = gateway.get("/open").header("authorization", bad).send().await;
            assert_eq!(answer.status, 200, "{bad}");
            assert_eq!(upstream.last().header("x-auth-user"), None, "{bad}");
            if !forward {
                assert_eq!(upstream.last().header("authorization"), None, "{bad}");
            }
        }
        // What is not the gateway's goes on untouched.
        for other in ["Basic dmVyYTp4", "Digest username=\"x\"", "Token abc", "Bearerabc"] {
            assert_eq!(gateway.get("/open").header("authorization", other).send().await.status, 200);
            assert_eq!(upstream.last().header("authorization"), Some(other));
            assert_eq!(gateway.get("/in").header("authorization", other).send().await.status, 401, "{other}");
        }
        let before = upstream.count();
        for path in ["/in", "/open"] {
            let answer = gateway.get(path).bearer(&token).header("authorization", "Basic x").send().await;
            assert_eq!(answer.status, 400, "{path}");
        }
        assert_eq!(upstream.count(), before);
    }
}

#[tokio::test]
async fn an_underscore_spelling_of_authorization_proves_nothing() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let token = gateway.login("vera").await;
    for name in ["x-authorization", "authorization_", "proxy-authorization"] {
        let answer = gateway.get("/in/x").header(name, &format!("Bearer {token}")).send().await;
        assert_eq!(answer.status, 401, "{name}");
    }
    for target in [format!("/in/x?token={token}"), format!("/in/x?access_token={token}")] {
        assert_eq!(gateway.get(&target).send().await.status, 401);
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_stranger_is_not_believed_about_others_and_a_declared_proxy_is() {
    let told = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: outer.example\r\n\
                Forwarded: for=203.0.113.7\r\nX-Request-Id: theirs\r\nX_Forwarded_For: 6.6.6.6\r\n\
                traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX-Real-IP: 6.6.6.6\r\n";
    for trusted in [false, true] {
        let upstream = RawUpstream::start().await;
        let networks = if trusted { "[127.0.0.0/8]" } else { "[203.0.113.0/24]" };
        let gateway =
            Gateway::start_at(upstream.address, &format!("{RULES}\ntrusted_proxies: {networks}")).await;
        let head = seen_for(&gateway, &upstream, "/open/x", told).await;
        let expected = if trusted {
            (
                "203.0.113.7, 127.0.0.1",
                "https",
                "outer.example",
                "for=203.0.113.7, for=127.0.0.1;host=\"cms.example\";proto=http",
            )
        } else {
            ("127.0.0.1", "http", "cms.example", "for=127.0.0.1;host=\"cms.example\";proto=http")
        };
        assert_eq!(field(&head, "x-forwarded-for"), Some(expected.0));
        assert_eq!(field(&head, "x-forwarded-proto"), Some(expected.1));
        assert_eq!(field(&head, "x-forwarded-host"), Some(expected.2));
        assert_eq!(field(&head, "forwarded"), Some(expected.3));
        let id = field(&head, "x-request-id").unwrap();
        assert_eq!(id == "theirs", trusted, "{id}");
        assert!(field(&head, "traceparent").unwrap().starts_with("00-4bf92f35"));
        assert_eq!(folded(&head).iter().filter(|name| *name == "x-forwarded-for").count(), 1, "{head}");
        assert!(!head.contains("6.6.6.6"), "{head}");
        gateway
            .wait_for_line(0, move |line| {
                line.contains("\"log\":\"access\"")
                    && line.contains(if trusted {
                        "\"client\":\"203.0.113.7\""
                    } else {
                        "\"client\":\"127.0.0.1\""
                    })
            })
            .await;
    }
}

#[tokio::test]
async fn headers_that_rewrite_the_request_for_some_upstream_are_gone() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, RULES).await;
    for name in [
        "X-Original-URL",
        "X_Original_URL",
        "X-Original-URI",
        "X-Original-Method",
        "X-Rewrite-URL",
        "X-Rewrite-URI",
        "X-Override-URL",
        "X-Forwarded-Uri",
        "X-Forwarded-Path",
        "X-Forwarded-Prefix",
        "X_FORWARDED_PREFIX",
        "X-Forwarded-Method",
        "X-Real-IP",
        "X-Middleware-Subrequest",
        "Proxy",
        "SCRIPT_NAME",
        "Script-Name",
        "PATH_INFO",
        "Path.Info",
        "HTTP2-Settings",
    ] {
        let head = seen_for(&gateway, &upstream, "/open/x", &format!("{name}: /in/secret\r\n")).await;
        assert!(!head.contains("/in/secret"), "{name}: {head}");
    }
}

#[tokio::test]
async fn a_named_method_counts_where_it_matters_and_goes_nowhere() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /page, methods: [GET, POST], allow: public }, { path: /page, methods: [DELETE], allow: Editor },\n  { path: /same, allow: Viewer }]",
    )
    .await;
    let (vera, eddie) = (gateway.login("vera").await, gateway.login("eddie").await);
    for name in ["X-HTTP-Method-Override", "x-http-method", "X_Method_Override", "X_HTTP.Method-Override"] {
        let post = || gateway.post("/page").header(name, "DELETE");
        assert_eq!(post().send().await.status, 401, "{name}");
        assert_eq!(post().bearer(&vera).send().await.status, 403, "{name}");
        assert_eq!(upstream.count(), 0, "{name}");
        assert_eq!(post().bearer(&eddie).send().await.status, 200, "{name}");
        assert!(upstream.last().headers.keys().all(|key| !key.as_str().contains("method")), "{name}");
        // Never less than what the request itself needs.
        let answer = gateway.request("DELETE", "/page").header(name, "GET").send().await;
        assert_eq!(answer.status, 401, "{name}");
        // Twice, one of them harmless.
        let answer = gateway.post("/page").header(name, "GET").header(name, "DELETE").send().await;
        assert_eq!(answer.status, 401, "{name}");
        upstream.forget();
    }
    assert_eq!(gateway.post("/page?_method=delete").send().await.status, 401);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn identity_is_not_to_be_had_through_a_connection_that_somebody_else_used() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, &format!("{RULES}\nworkers: 1")).await;
    let (vera, eddie) = (gateway.login("vera").await, gateway.login("eddie").await);
    let mut client: Raw = gateway.connect().await;
    let mut server = None;
    for (token, user) in
        [(Some(&vera), Some("vera")), (None, None), (Some(&eddie), Some("eddie")), (None, None)]
    {
        let bearer = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        client.send(format!("GET /open/x HTTP/1.1\r\nHost: a\r\n{bearer}\r\n")).await;
        if server.is_none() {
            server = Some(upstream.accept().await);
        }
        let server = server.as_mut().unwrap();
        assert_eq!(field(&server.head().await, "x-auth-user"), user);
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        client.head().await;
    }
}
