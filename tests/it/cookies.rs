//! The cookie: who it speaks for, where it goes, and what a page of another site can do with it.

use std::time::{SystemTime, UNIX_EPOCH};

use http::Response;
use http_body_util::Full;
use portcullis::token::decode_without_verifying;
use serde_json::{Value, json};

use crate::harness::{Answer, Call, Gateway, PASSWORD, RawUpstream, Upstream};

const RULES: &str = "rules: [{ path: /in/*, allow: Viewer }, { path: /high, allow: SuperAdmin }, { path: /open/*, allow: public }]\n";

const CHROMIUM: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

async fn start(upstream: &Upstream, login: &str) -> Gateway {
    Gateway::start(upstream, &format!("{RULES}login: {login}")).await
}

/// A login as the login page's form sends it.
fn form(gateway: &Gateway, target: &str, password: &str) -> Call {
    gateway
        .post(target)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", CHROMIUM)
        .header("sec-fetch-mode", "navigate")
        .header("sec-fetch-site", "same-origin")
        .body(format!("username=vera&password={}", password.replace(' ', "+")))
}

fn set_cookies(answer: &Answer) -> Vec<&str> {
    answer.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn a_login_leaves_a_cookie_that_scripts_cannot_read() {
    let upstream = Upstream::start().await;
    for (cookie, name, attributes) in [
        ("true", "__Host-portcullis_token", "; Max-Age=3600; Path=/; HttpOnly; Secure; SameSite=Lax"),
        ("{ secure: false }", "portcullis_token", "; Max-Age=3600; Path=/; HttpOnly; SameSite=Lax"),
        (
            "{ name: site, same_site: strict }",
            "site",
            "; Max-Age=3600; Path=/; HttpOnly; Secure; SameSite=Strict",
        ),
        (
            "{ name: __Secure-s, same_site: none }",
            "__Secure-s",
            "; Max-Age=3600; Path=/; HttpOnly; Secure; SameSite=None",
        ),
    ] {
        let gateway = start(&upstream, &format!("{{ cookie: {cookie} }}")).await;
        let body = json!({ "username": "vera", "password": PASSWORD });
        let answer = gateway.post("/auth/login").json(&body).send().await;
        let json = answer.json();
        let token = json["token"].as_str().unwrap();
        assert_eq!(set_cookies(&answer), [format!("{name}={token}{attributes}")], "a program gets both");
        assert_eq!((answer.status, json["user"]["role"].as_str()), (200, Some("Viewer")));
        let answer = form(&gateway, "/auth/login?next=/in/x", PASSWORD).send().await;
        assert_eq!((answer.status, answer.header("location")), (303, Some("/in/x")));
        assert!(set_cookies(&answer)[0].starts_with(&format!("{name}=ey")), "{:?}", set_cookies(&answer));
        assert!(answer.body.is_empty(), "no token where a page could be kept");
        let answer = form(&gateway, "/auth/login", "wrong password").send().await;
        assert_eq!((answer.status, set_cookies(&answer)), (401, vec![]));
    }
    let gateway = start(&upstream, "{}").await;
    let answer = form(&gateway, "/auth/login?next=/in/x", PASSWORD).send().await;
    assert_eq!((answer.status, set_cookies(&answer)), (200, vec![]), "without a cookie, nothing changes");
    assert!(answer.json()["token"].is_string());
}

#[tokio::test]
async fn the_cookie_speaks_for_its_bearer_and_never_goes_upstream() {
    let upstream = Upstream::start().await;
    for forward in [false, true] {
        let login =
            format!("{{ cookie: {{ secure: false, name: tok }} }}\nidentity: {{ forward_token: {forward} }}");
        let gateway = start(&upstream, &login).await;
        let (vera, eddie) = (gateway.login("vera").await, gateway.login("eddie").await);
        let (vera, eddie) = (vera.as_str(), eddie.as_str());
        let v = |text: &str| text.replace("{vera}", vera).replace("{eddie}", eddie);
        for (cookies, authorization, user, left, with_token) in [
            (&["tok={vera}"][..], None, Some("vera"), None, Some("tok={vera}")),
            (
                &["a=1; tok={vera}; b=\"x y\""],
                None,
                Some("vera"),
                Some("a=1; b=\"x y\""),
                Some("a=1; tok={vera}; b=\"x y\""),
            ),
            (&["a=1;tok={vera};;b"], None, Some("vera"), Some("a=1;;b"), Some("a=1;tok={vera};;b")),
            (
                &["Tok={eddie}; tok={vera}; t%6fk={eddie}; tok[]={eddie}"],
                None,
                Some("vera"),
                None,
                Some("tok={vera}"),
            ),
            (&["tok={vera}"], Some("Basic eDp5"), Some("vera"), None, Some("tok={vera}")),
            // A bearer decides alone: beside it, there is no cookie.
            (&["a=1; tok={vera}"], Some("Bearer {eddie}"), Some("eddie"), Some("a=1"), Some("a=1")),
        ] {
            for path in ["/in/x", "/open/x"] {
                let mut call = gateway.get(path);
                for line in cookies {
                    call = call.header("cookie", &v(line));
                }
                if let Some(authorization) = authorization {
                    call = call.header("authorization", &v(authorization));
                }
                assert_eq!(call.send().await.status, 200, "{cookies:?}");
                let seen = upstream.last();
                assert_eq!(seen.header("x-auth-user"), user, "{cookies:?}");
                let expected = if forward { with_token } else { left }.map(v);
                assert_eq!(seen.header("cookie").map(str::to_owned), expected, "{cookies:?} {forward}");
            }
        }
        // No token: 401 where one is needed, nobody on a public route.
        for (cookie, message) in [
            (v("tok=\"{vera}\""), "Invalid token"),
            (v("tok={vera}x"), "Invalid token"),
            (v("tok="), "Invalid token"),
            (v("TOK={vera}"), "Missing Authorization header"),
            (v("to={vera}; tok2={vera}; xtok={vera}"), "Missing Authorization header"),
            (v("x=tok={vera}"), "Missing Authorization header"),
        ] {
            let answer = gateway.get("/in/x").header("cookie", &cookie).send().await;
            assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some(message)), "{cookie}");
            assert_eq!(gateway.get("/open/x").header("cookie", &cookie).send().await.status, 200);
            assert_eq!(upstream.last().header("x-auth-user"), None, "{cookie}");
        }
        // Nor does the query ever hold one.
        assert_eq!(gateway.get(&v("/in/x?tok={vera}&access_token={vera}")).send().await.status, 401);
    }
}

#[tokio::test]
async fn the_cookie_twice_is_refused_in_every_way_to_send_it() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "{ cookie: { secure: false, name: tok } }").await;
    let token = gateway.login("vera").await;
    let one = format!("tok={token}");
    for lines in [
        &[format!("{one}; {one}")][..],
        &[one.clone(), one.clone()],
        &[format!("a=1; {one}; tok=; b=2")],
        &[format!("{one};tok")],
        &[one.clone(), "a=1; tok=x".to_owned()],
        &[format!("{one}; a=\"; tok=x\"")],
        &[format!("{one};\ttok =x")],
    ] {
        for (path, bearer) in [("/in/x", false), ("/in/x", true), ("/open/x", false)] {
            let mut call = gateway.get(path);
            for line in lines {
                call = call.header("cookie", line);
            }
            if bearer {
                call = call.bearer(&token);
            }
            let answer = call.send().await;
            let told = answer.json()["error"].to_string();
            assert_eq!(answer.status, 400, "{lines:?}");
            assert!(told.contains("the cookie with the token is there more than once"), "{told}");
        }
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn what_changes_something_by_cookie_comes_from_a_page_of_this_site() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "{ cookie: { secure: false, name: tok } }").await;
    let token = gateway.login("vera").await;
    let cookie = format!("tok={token}");
    let here = format!("http://{}", gateway.address);
    let from = |headers: &[(&str, &str)], mut call: Call| {
        for (name, value) in headers {
            call = call.header(name, value);
        }
        call
    };
    let sources: [(&[(&str, &str)], bool); 12] = [
        (&[("sec-fetch-site", "same-origin")], true),
        (&[("origin", &here)], true),
        (&[("sec-fetch-site", "same-origin"), ("origin", "null")], true),
        (&[("sec-fetch-site", "same-site")], false),
        (&[("sec-fetch-site", "cross-site")], false),
        (&[("sec-fetch-site", "none")], false),
        (&[("sec-fetch-site", "cross-site"), ("origin", &here)], false),
        (&[("origin", "http://evil.example")], false),
        (&[("origin", "null")], false),
        // Not believed from a stranger, who could be no browser at all.
        (&[("origin", "http://evil.example"), ("x-forwarded-host", "evil.example")], false),
        (&[("referer", &here)], false),
        (&[], false),
    ];
    for (headers, allowed) in sources {
        for (method, target, overriding) in [
            ("POST", "/in/x", None),
            ("PUT", "/in/x", None),
            ("PATCH", "/in/x", None),
            ("DELETE", "/in/x", None),
            ("PROPFIND", "/in/x", None),
            ("POST", "/open/x", None),
            ("GET", "/in/x?_method=DELETE", None),
            ("GET", "/in/x?a=1&_METHOD[]=put", None),
            ("GET", "/in/x", Some("x-http-method-override")),
            ("HEAD", "/open/x", Some("X_HTTP_Method")),
        ] {
            let mut call = from(headers, gateway.request(method, target).header("cookie", &cookie));
            if let Some(name) = overriding {
                call = call.header(name, "DELETE");
            }
            let answer = call.send().await;
            let expected = if allowed { 200 } else { 403 };
            assert_eq!(answer.status, expected, "{method} {target} {overriding:?} {headers:?}");
        }
        // Reading is for everybody, and a bearer token no browser sends by itself.
        for method in ["GET", "HEAD", "OPTIONS"] {
            let call = from(headers, gateway.request(method, "/in/x").header("cookie", &cookie));
            assert_eq!(call.send().await.status, 200, "{method} {headers:?}");
        }
        let call = from(headers, gateway.post("/in/x").bearer(&token).header("cookie", &cookie));
        assert_eq!(call.send().await.status, 200, "{headers:?}");
        // Nobody's name is used, so anybody may.
        for anonymous in ["tok=x", "a=b"] {
            let call = from(headers, gateway.post("/open/x").header("cookie", anonymous));
            assert_eq!(call.send().await.status, 200, "{headers:?}");
        }
        // An upgrade, by GET as it is, talks both ways.
        let call = from(headers, gateway.get("/in/ws").header("cookie", &cookie))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket");
        // This upstream answers 200 instead of switching.
        assert_eq!(call.send().await.status, if allowed { 200 } else { 403 }, "{headers:?}");
    }
    let answer = gateway.post("/in/x").header("cookie", &cookie).send().await;
    assert_eq!(answer.json()["error"], "Refused: this did not come from a page of this site");
    let line = gateway.wait_for_line(0, |line| line.contains("\"reason\":\"cross_site\"")).await;
    assert!(gateway.lines()[line].contains("\"user\":\"vera\""), "{}", gateway.lines()[line]);
    assert!(!gateway.lines().iter().any(|line| line.contains(&token)));
}

#[tokio::test]
async fn behind_a_proxy_the_site_is_where_the_browser_thinks_it_is() {
    let upstream = Upstream::start().await;
    let gateway =
        start(&upstream, "{ cookie: { secure: false, name: tok } }\ntrusted_proxies: [127.0.0.1]").await;
    let cookie = format!("tok={}", gateway.login("vera").await);
    for (origin, forwarded, expected) in [
        ("https://www.example", Some("www.example"), 200),
        ("https://www.example", Some("www.example:443"), 200),
        ("https://evil.example", Some("www.example"), 403),
        ("https://www.example", None, 403),
    ] {
        let mut call = gateway.post("/in/x").header("cookie", &cookie).header("origin", origin);
        if let Some(host) = forwarded {
            call = call.header("x-forwarded-host", host);
        }
        assert_eq!(call.send().await.status, expected, "{origin} {forwarded:?}");
    }
}

#[tokio::test]
async fn a_login_is_refused_only_where_it_comes_from_a_foreign_page() {
    let upstream = Upstream::start().await;
    let login = "{ cookie: { secure: false }, page: true, origins: ['https://app.example'] }";
    let gateway = start(&upstream, login).await;
    let here = format!("http://{}", gateway.address);
    let body = json!({ "username": "vera", "password": PASSWORD });
    for (headers, status, cookie) in [
        (&[][..], 200, true),
        (&[("sec-fetch-site", "same-origin")], 200, true),
        (&[("sec-fetch-site", "none")], 200, true),
        (&[("origin", here.as_str())], 200, true),
        (&[("sec-fetch-site", "same-site")], 403, false),
        (&[("sec-fetch-site", "cross-site")], 403, false),
        (&[("origin", "https://evil.example")], 403, false),
        (&[("origin", "null")], 403, false),
        // A listed one gets the token, and leaves no cookie in a browser that is somebody's.
        (&[("origin", "https://app.example"), ("sec-fetch-site", "cross-site")], 200, false),
        (&[("origin", "https://app.example")], 200, false),
    ] {
        let mut call = gateway.post("/auth/login").json(&body);
        for (name, value) in headers {
            call = call.header(name, value);
        }
        let answer = call.send().await;
        assert_eq!((answer.status, !set_cookies(&answer).is_empty()), (status, cookie), "{headers:?}");
    }
    let refused = form(&gateway, "/auth/login", PASSWORD).header("sec-fetch-site", "cross-site").send().await;
    assert_eq!((refused.status, set_cookies(&refused)), (403, vec![]));
    assert!(refused.text().contains("That came from another site."));
}

#[tokio::test]
async fn a_person_is_sent_to_sign_in_and_a_script_is_told_why() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "{ cookie: { secure: false, name: tok }, page: true }").await;
    let vera = format!("tok={}", gateway.login("vera").await);
    let navigate: &[(&str, &str)] = &[("sec-fetch-mode", "navigate")];
    let old = &[("accept", CHROMIUM)][..];
    for (method, target, headers, expected) in [
        ("GET", "/in/x", navigate, Some("/auth/login?next=/in/x")),
        ("GET", "/in/x?a=b&c=%2F", old, Some("/auth/login?next=/in/x%3Fa%3Db%26c%3D%252F")),
        ("GET", "/in//x", navigate, Some("/auth/login?next=/in//x")),
        ("GET", "//evil.example/", navigate, Some("/auth/login")),
        ("POST", "/in/x", navigate, Some("/auth/login")),
        (
            "GET",
            "/in/x",
            &[("sec-fetch-mode", "navigate"), ("cookie", "tok=x")],
            Some("/auth/login?next=/in/x"),
        ),
        ("GET", "/in/x", &[("sec-fetch-mode", "cors"), ("accept", CHROMIUM)], None),
        ("GET", "/in/x", &[("accept", "*/*")], None),
        ("GET", "/in/x", &[], None),
        ("POST", "/in/x", old, None),
        // Whoever holds a token in their hands is no browser.
        ("GET", "/in/x", &[("sec-fetch-mode", "navigate"), ("authorization", "Bearer x")], None),
    ] {
        let mut call = gateway.request(method, target);
        for (name, value) in headers {
            call = call.header(name, value);
        }
        let answer = call.send().await;
        assert_eq!(answer.header("location"), expected, "{method} {target} {headers:?}");
        assert_eq!(answer.status, if expected.is_some() { 303 } else { 401 });
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        if expected.is_none() {
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert!(answer.header("www-authenticate").is_some());
        }
    }
    let answer =
        gateway.get("/high").header("cookie", &vera).header("sec-fetch-mode", "navigate").send().await;
    assert_eq!((answer.status, answer.header("content-type")), (403, Some("text/html; charset=utf-8")));
    assert!(answer.text().contains("href=\"/auth/login?next=/high\""));
    let answer = gateway.get("/high").header("cookie", &vera).send().await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (403, Some("Access denied")));
    // The page itself, and nothing but the page.
    for (method, status, allow) in
        [("GET", 200, None), ("HEAD", 200, None), ("PUT", 405, Some("GET, HEAD, POST"))]
    {
        let answer = gateway.request(method, "/auth/login").send().await;
        assert_eq!((answer.status, answer.header("allow")), (status, allow));
    }
    let gateway = start(&upstream, "{ cookie: { secure: false } }").await;
    let answer = gateway.get("/in/x").header("sec-fetch-mode", "navigate").send().await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (401, None),
        "without a page there is none to go to"
    );
    let answer = gateway.get("/auth/login").send().await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    // The CMS may have a login form of its own.
    let answer = form(&gateway, "/auth/login?next=/in/x", PASSWORD).send().await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("/in/x")));
    let answer = form(&gateway, "/auth/login?next=/in/x", "wrong password").send().await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("Invalid username or password")));
}

#[tokio::test]
async fn a_browser_never_leaves_this_site_by_signing_in() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "{ cookie: { secure: false }, page: true }").await;
    for (next, goes_to) in [
        ("/in/x%3Fa%3Db", "/in/x?a=b"),
        ("%2Fin%2Fx", "/in/x"),
        ("", "/"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("%2F%2Fevil.example/", "/"),
        ("/%5Cevil.example", "/"),
        ("/%5cevil.example", "/"),
        ("/%09/evil.example", "/"),
        ("/%0d%0aSet-Cookie:a=b", "/"),
        ("/%252fevil.example", "/"),
        ("/..//evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/in/x&next=/in/y", "/"),
    ] {
        let answer = form(&gateway, &format!("/auth/login?next={next}"), PASSWORD).send().await;
        assert_eq!((answer.status, answer.header("location")), (303, Some(goes_to)), "{next}");
    }
}

#[tokio::test]
async fn a_failed_login_is_a_page_with_the_status_of_its_reason() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "{ cookie: true, page: { title: 'A & B' } }").await;
    let body = |body: &str| form(&gateway, "/auth/login?next=/in/x", "").body(body.to_owned());
    for (call, status, words) in [
        (body("username=vera&password=wrong"), 401, "The user name or the password is not right."),
        (body("username=vera"), 400, "Fill in your user name and your password."),
        (body(""), 400, "Fill in your user name and your password."),
        (
            form(&gateway, "/auth/login", PASSWORD).header("origin", "http://cms.example"),
            400,
            "this page came without encryption",
        ),
    ] {
        let answer = call.send().await;
        assert_eq!((answer.status, set_cookies(&answer)), (status, vec![]));
        let page = answer.text();
        assert!(page.contains(words) && page.contains("A &amp; B") && !page.contains("A & B"), "{page}");
        assert!(answer.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));
    }
    let reasons: Vec<String> = ["wrong_credentials", "login_body", "login_without_https"]
        .map(|code| format!("portcullis_refusals_total{{code=\"{code}\"}}"))
        .to_vec();
    for (metric, count) in reasons.iter().zip([1.0, 2.0, 1.0]) {
        assert!((gateway.metric(metric).await - count).abs() < 0.5, "{metric}");
    }
}

#[tokio::test]
async fn signing_out_ends_the_session_and_clears_the_cookie() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "{ cookie: { secure: false, name: tok }, page: true }").await;
    let cleared = "tok=; Max-Age=0; Path=/; HttpOnly; SameSite=Lax";
    let site: &[(&str, &str)] = &[("sec-fetch-site", "same-origin")];
    let person: &[(&str, &str)] = &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate")];
    let old_person: &[(&str, &str)] = &[("origin", "HERE"), ("accept", CHROMIUM)];
    for (target, headers, status, location) in [
        ("/auth/logout", site, 204, None),
        ("/auth/logout?all", site, 204, None),
        ("/auth/logout", person, 303, Some("/auth/login?signed_out")),
        ("/auth/logout", old_person, 303, Some("/auth/login?signed_out")),
        ("/auth/logout?next=/open/bye", person, 303, Some("/open/bye")),
        ("/auth/logout?all&next=//evil.example", person, 303, Some("/auth/login?signed_out")),
    ] {
        let cookie = format!("tok={}", gateway.login("vera").await);
        let mut call = gateway.post(target).header("cookie", &cookie);
        for (name, value) in headers {
            call = call.header(name, &value.replace("HERE", &format!("http://{}", gateway.address)));
        }
        let answer = call.send().await;
        assert_eq!((answer.status, answer.header("location")), (status, location), "{target} {headers:?}");
        assert_eq!(set_cookies(&answer), [cleared]);
        assert_eq!(gateway.get("/in/x").header("cookie", &cookie).send().await.status, 401);
    }
    // Nobody is signed out by another site's page, which could not say whose cookie it is either.
    let token = gateway.login("vera").await;
    let cookie = format!("tok={token}");
    for headers in [
        &[][..],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")],
        &[("sec-fetch-site", "none")],
        &[("origin", "https://evil.example")],
    ] {
        let mut call = gateway.post("/auth/logout").header("cookie", &cookie);
        for (name, value) in headers {
            call = call.header(name, value);
        }
        let answer = call.send().await;
        assert_eq!((answer.status, set_cookies(&answer)), (403, vec![]), "{headers:?}");
        assert_eq!(gateway.get("/in/x").header("cookie", &cookie).send().await.status, 200);
    }
    // Whoever has nothing that counts is signed out already, and is told so where a person asks.
    for (cookie, program) in [("tok=x", 401), ("a=b", 401)] {
        let call = |headers: &[(&str, &str)]| {
            let call = gateway.post("/auth/logout").header("cookie", cookie);
            headers.iter().fold(call, |call, (name, value)| call.header(name, value))
        };
        assert_eq!(call(site).send().await.status, program, "{cookie}");
        let answer = call(person).send().await;
        assert_eq!((answer.status, set_cookies(&answer)), (303, vec![cleared]), "{cookie}");
    }
    let page = gateway.get("/auth/login?signed_out").send().await.text();
    assert!(page.contains("You are signed out."), "{page}");
    // With a bearer token no page is asked for, and none is asked where it is from.
    let answer =
        gateway.post("/auth/logout").bearer(&token).header("sec-fetch-site", "cross-site").send().await;
    assert_eq!(answer.status, 204);
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A token like `real`, with other claims, signed with the secret that the gateway has.
fn like(real: &str, more: Value) -> String {
    let mut claims = decode_without_verifying(real).unwrap().claims;
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().shift_remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    header.kid = Some("shared".to_owned());
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&header, &claims, &key).unwrap()
}

fn renewing(renew: bool) -> String {
    format!(
        "{RULES}tokens: {{ algorithm: HS256, keys: {{ secret: {SECRET} }} }}\n\
         login: {{ rotate: /auth/rotate, cookie: {{ secure: false, name: tok, renew: {renew} }} }}"
    )
}

/// The token in the cookie that an answer sets.
fn fresh(answer: &Answer) -> Option<String> {
    let cookies = set_cookies(answer);
    let own: Vec<&str> = cookies.iter().filter_map(|cookie| cookie.strip_prefix("tok=")).collect();
    assert!(own.len() < 2, "{own:?}");
    own.first().map(|cookie| cookie.split(';').next().unwrap().to_owned())
}

#[tokio::test]
async fn a_browser_in_use_gets_a_fresh_cookie_past_half_its_life_and_within_the_session() {
    let upstream = Upstream::answering(|seen| {
        let mut response = Response::new(Full::from("page"));
        response.headers_mut().insert("set-cookie", "cms=1".parse().unwrap());
        if let Some((_, control)) = seen.target.split_once("?cc=") {
            response.headers_mut().insert("cache-control", control.parse().unwrap());
        }
        response
    })
    .await;
    let gateway = Gateway::start(&upstream, &renewing(true)).await;
    let real = gateway.login("vera").await;
    let (minute, day) = (60, 86_400);
    let navigate: &[(&str, &str)] = &[("sec-fetch-mode", "navigate")];
    let old: &[(&str, &str)] = &[("accept", CHROMIUM)];
    let post: &[(&str, &str)] = &[("sec-fetch-mode", "navigate"), ("sec-fetch-site", "same-origin")];
    let script: &[(&str, &str)] = &[("sec-fetch-mode", "cors"), ("sec-fetch-site", "same-origin")];
    // Minutes since it was issued and since the login; what is left of the fresh one in minutes.
    for (method, target, headers, age, session, left) in [
        ("GET", "/in/x", navigate, 31, 31, Some(60)),
        ("GET", "/open/x", navigate, 59, 59, Some(60)),
        ("GET", "/in/x", old, 40, 5 * 24 * 60, Some(60)),
        ("POST", "/in/x", post, 40, 40, Some(60)),
        ("GET", "/in/x", navigate, 29, 29, None),
        ("GET", "/in/x", script, 50, 50, None),
        ("GET", "/in/x", &[], 50, 50, None),
        ("POST", "/in/x", old, 50, 50, None),
        // What is left of seven days, if that is more than the token has.
        ("GET", "/in/x", navigate, 50, 7 * 24 * 60 - 30, Some(30)),
        ("GET", "/in/x", navigate, 50, 7 * 24 * 60 - 5, None),
        ("GET", "/in/x", navigate, 50, 8 * 24 * 60, None),
    ] {
        let (iat, auth_time) = (now() - age * minute, now() - session * minute);
        let times = json!({ "jti": format!("{age}-{session}"), "iat": iat, "exp": iat + 60 * minute, "auth_time": auth_time });
        let old_token = like(&real, times);
        let mut call = gateway.request(method, target).header("cookie", &format!("tok={old_token}"));
        for (name, value) in headers {
            call = call.header(name, value);
        }
        if method == "POST" && *headers == *old {
            call = call.header("origin", &format!("http://{}", gateway.address));
        }
        let answer = call.send().await;
        assert_eq!(answer.status, 200);
        assert!(set_cookies(&answer).contains(&"cms=1"), "the CMS's own cookies come through");
        let row = format!("{method} {target} {headers:?} {age} {session}");
        let token = fresh(&answer);
        assert_eq!(token.is_some(), left.is_some(), "{row}");
        let (Some(token), Some(left)) = (token, left) else { continue };
        let (was, is) = (
            decode_without_verifying(&old_token).unwrap().claims,
            decode_without_verifying(&token).unwrap().claims,
        );
        for claim in
            ["iss", "aud", "sub", "preferred_username", "role", "name", "email", "sid", "auth_time", "gen"]
        {
            assert_eq!(is[claim], was[claim], "{row}: {claim}");
        }
        assert_ne!(is["jti"], was["jti"]);
        let lasts = is["exp"].as_u64().unwrap().abs_diff(now() + left * minute);
        assert!(lasts < minute, "{row}: {is}");
        assert!(is["exp"].as_u64() <= is["auth_time"].as_u64().map(|begin| begin + 7 * day));
        assert_eq!(answer.header("cache-control"), Some("private"), "no cache keeps it for others");
        let answer = gateway.get("/in/x").header("cookie", &format!("tok={token}")).send().await;
        assert_eq!(answer.status, 200, "it counts");
    }
    let iat = now() - 50 * minute;
    let times = json!({ "iat": iat, "exp": iat + 60 * minute, "auth_time": iat });
    let due = like(&real, times.clone());
    // On nothing that a cache would keep for everybody; and a bearer token is a program's to look after.
    for (control, is_fresh) in
        [("public", false), ("s-maxage=9", false), ("no-store", true), ("private", true)]
    {
        let call = gateway.get(&format!("/in/x?cc={control}")).header("cookie", &format!("tok={due}"));
        let answer = call.header("sec-fetch-mode", "navigate").send().await;
        assert_eq!((fresh(&answer).is_some(), answer.header("cache-control")), (is_fresh, Some(control)));
    }
    let answer = gateway.get("/in/x").bearer(&due).header("sec-fetch-mode", "navigate").send().await;
    assert_eq!((answer.status, fresh(&answer)), (200, None));
    // Somebody else who has the secret made this one: nobody knows what would end its copy.
    let mut foreign = times;
    foreign["gen"] = Value::Null;
    let foreign = like(&real, foreign);
    let call = gateway.get("/in/x").header("cookie", &format!("tok={foreign}"));
    let answer = call.header("sec-fetch-mode", "navigate").send().await;
    assert_eq!((answer.status, fresh(&answer)), (200, None));
    // And only where it is wanted.
    let gateway = Gateway::start(&upstream, &renewing(false)).await;
    let call = gateway.get("/in/x").header("cookie", &format!("tok={due}"));
    let answer = call.header("sec-fetch-mode", "navigate").send().await;
    assert_eq!((answer.status, fresh(&answer)), (200, None));
}

#[tokio::test]
async fn what_ends_a_login_or_its_user_ends_renewed_cookies_as_well() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, &renewing(true)).await;
    for how in ["logout with the old one", "logout with the new one", "token revoke", "a role", "a password"]
    {
        let real = gateway.login("vera").await;
        let iat = now() - 50 * 60;
        let old = like(&real, json!({ "iat": iat, "exp": iat + 3600, "auth_time": iat }));
        let call = gateway.get("/in/x").header("cookie", &format!("tok={old}"));
        let new = fresh(&call.header("sec-fetch-mode", "navigate").send().await).expect(how);
        let log_out = |token: &str| gateway.post("/auth/logout").bearer(token).send();
        let command = |arguments: &[&str], stdin: &str| {
            let output = gateway.run(arguments, stdin);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        match how {
            "logout with the old one" => assert_eq!(log_out(&old).await.status, 204),
            "logout with the new one" => assert_eq!(log_out(&new).await.status, 204),
            "token revoke" => command(&["token", "revoke", "-"], &old),
            "a role" => command(&["user", "role", "vera", "Viewer"], ""),
            _ => command(&["user", "passwd", "vera", "--password-stdin"], PASSWORD),
        }
        for token in [&old, &new] {
            let call = || gateway.get("/in/x").header("cookie", &format!("tok={token}"));
            let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
            while call().send().await.status != 401 {
                assert!(std::time::Instant::now() < deadline, "{how}");
            }
            let answer = call().header("sec-fetch-mode", "navigate").send().await;
            assert_eq!((answer.status, fresh(&answer)), (401, None), "{how}: nor is it renewed");
        }
    }
}

#[tokio::test]
async fn a_session_that_ends_while_the_cms_thinks_is_not_renewed() {
    let upstream = RawUpstream::start().await;
    let gateway = Gateway::start_at(upstream.address, &renewing(true)).await;
    for ends in [false, true] {
        let real = gateway.login("vera").await;
        let iat = now() - 50 * 60;
        let due = like(&real, json!({ "iat": iat, "exp": iat + 3600, "auth_time": iat }));
        let mut client = gateway.connect().await;
        client
            .send(format!(
                "GET /in/x HTTP/1.1\r\nHost: a\r\nCookie: tok={due}\r\nSec-Fetch-Mode: navigate\r\n\r\n"
            ))
            .await;
        let mut server = upstream.accept().await;
        server.head().await;
        if ends {
            assert_eq!(gateway.post("/auth/logout").bearer(&real).send().await.status, 204);
        }
        server.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(client.head().await.contains("set-cookie: tok="), !ends);
    }
}
