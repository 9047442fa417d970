//! The cookie: who it speaks for, where it goes, and what a page of another site can do with it.

use crate::harness::{Answer, Call, Gateway, PASSWORD, Upstream};

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
        let body = serde_json::json!({ "username": "vera", "password": PASSWORD });
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
    let body = serde_json::json!({ "username": "vera", "password": PASSWORD });
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
