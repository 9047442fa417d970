//! What the rules say beyond paths: query rules, rules on trial, encoded slashes, scripts, preflights.

use crate::harness::{Answer, Call, Gateway, Upstream};

async fn status(gateway: &Gateway, target: &str) -> u16 {
    gateway.get(target).send().await.status
}

#[tokio::test]
async fn a_query_rule_raises_what_its_path_asks_in_every_spelling_php_reads_alike() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules:\n  - { path: /*, allow: public }\n  \
         - { path: /, query: { rest_route: /wp/v2/users/* }, allow: Editor }\n  \
         - { path: /index.php, query: { option: com_users }, allow: SuperAdmin }\n  \
         - { path: /*, query: { debug: '*' }, allow: deny }",
    )
    .await;
    let eddie = gateway.login("eddie").await;
    for (target, anonymous, editor) in [
        ("/", 200, 200),
        ("/?rest_route=/wp/v2/posts", 200, 200),
        ("/?rest_route=/wp/v2/usersx", 200, 200),
        ("/?rest_route=/wp/v2/users", 401, 200),
        ("/?rest_route=/wp/v2/users/1", 401, 200),
        ("/?rest_route=/WP/v2/Users", 401, 200),
        ("/?rest_route=%2Fwp%2Fv2%2Fusers", 401, 200),
        ("/?rest_route=/wp/v2/posts&rest_route=/wp/v2/users", 401, 200),
        ("/?rest_route=/wp/v2/users&rest_route=/wp/v2/posts", 401, 200),
        ("/?rest.route=/wp/v2/users", 401, 200),
        ("/?rest+route=/wp/v2/users", 401, 200),
        ("/?rest%5Froute=/wp/v2/users", 401, 200),
        ("/?rest_route[]=/wp/v2/users", 401, 200),
        ("/index.php?option=com_content", 200, 200),
        ("/index.php?option=com_users", 401, 403),
        ("/index.php?OPTION=COM_USERS", 401, 403),
        ("/index.php?a=b&option=com_users&c=d", 401, 403),
        ("/other.php?option=com_users", 200, 200),
        ("/any/where?debug", 401, 403),
        ("/any/where?debug=0", 401, 403),
        ("/any/where?debugger=0", 200, 200),
    ] {
        assert_eq!(status(&gateway, target).await, anonymous, "{target}");
        let answer = gateway.get(target).bearer(&eddie).send().await;
        assert_eq!(answer.status, editor, "{target} as Editor");
        if editor == 200 {
            assert_eq!(upstream.last().target, target, "the query goes on as sent");
        }
    }
}

#[tokio::test]
async fn a_query_rule_never_lowers_what_its_path_asks() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /a, allow: Editor }, { path: /a, query: { open: '1' }, allow: public }]",
    )
    .await;
    for target in ["/a", "/a?open=1"] {
        assert_eq!(status(&gateway, target).await, 401, "{target}");
    }
    // `check` says that such a rule does nothing.
    let check = gateway.run(&["check"], "");
    let told = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && told.contains("gateway.yaml:7:") && told.contains("warning"), "{told}");
}

#[tokio::test]
async fn a_rule_on_trial_decides_nothing_and_is_counted_and_logged() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules:\n  - { path: /*, allow: Viewer }\n  - { path: /admin/*, allow: SuperAdmin, mode: report }\n  \
         - { path: /open/*, allow: public, mode: report }",
    )
    .await;
    let (vera, sam) = (gateway.login("vera").await, gateway.login("sam").await);
    let counted = |rule: &str, would: &str| {
        format!(r#"portcullis_trial_requests_total{{rule="{rule}",would="{would}"}}"#)
    };
    let denied = counted("/admin/*", "403");
    assert_eq!(gateway.metric(&denied).await, 0.0);
    let from = gateway.lines().len();
    assert_eq!(gateway.get("/admin/x").bearer(&vera).send().await.status, 200);
    let line = gateway.wait_for_line(from, |line| line.contains("a rule on trial would differ")).await;
    let line: serde_json::Value = serde_json::from_str(&gateway.lines()[line]).unwrap();
    assert_eq!(
        (&line["rule"], &line["answered"], &line["would"]),
        (&"/admin/*".into(), &"allowed".into(), &"403".into())
    );
    assert_eq!(gateway.metric(&denied).await, 1.0);
    // The same answer under both is no news.
    assert_eq!(gateway.get("/admin/x").bearer(&sam).send().await.status, 200);
    assert_eq!(status(&gateway, "/admin/x").await, 401);
    assert_eq!(gateway.metric(&denied).await, 1.0);
    // A rule on trial opens nothing either, and says that it would.
    assert_eq!(status(&gateway, "/open/x").await, 401);
    assert_eq!(gateway.metric(&counted("/open/*", "allowed")).await, 1.0);
}

#[tokio::test]
async fn an_encoded_slash_is_refused_or_taken_in_its_strictest_reading() {
    let rules = "rules: [{ path: /files/:name, allow: public }, { path: /files/secret/*, allow: Editor }, \
                 { path: /other/:a, allow: public }]";
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, rules).await;
    for target in ["/files/a%2Fb", "/files/a%2fb", "/files/secret%2Fx", "/files/a%252Fb"] {
        assert_eq!(status(&gateway, target).await, 400, "{target}");
    }
    assert_eq!(upstream.count(), 0);
    gateway
        .after("the configuration is reloaded", || {
            gateway.write_config(&format!("{rules}\npaths: {{ encoded_slash: strict }}"));
        })
        .await;
    let eddie = gateway.login("eddie").await;
    for (target, anonymous, editor) in [
        ("/files/a", 200, 200),
        // As one segment public, as two covered by nothing: the stricter of both.
        ("/files/a%2Fb", 401, 403),
        ("/files/secret%2Fx", 401, 200),
        ("/files/secret%2fx", 401, 200),
        ("/files%2Fsecret/x", 401, 403),
        ("/other/a%2Fb", 401, 403),
        ("/files/a%2F..%2Fb", 400, 400),
    ] {
        assert_eq!(status(&gateway, target).await, anonymous, "{target}");
        assert_eq!(gateway.get(target).bearer(&eddie).send().await.status, editor, "{target} as Editor");
    }
    gateway.get("/files/secret%2Fx").bearer(&eddie).send().await;
    assert_eq!(upstream.last().target, "/files/secret%2Fx", "it goes on as sent");
}

#[tokio::test]
async fn a_path_that_goes_on_after_a_script_is_the_scripts_as_well() {
    let upstream = Upstream::start().await;
    let rules = "rules: [{ path: /*, allow: public }, { path: /users.php, allow: Editor }, { path: /a.cgi, allow: Editor }]";
    let gateway = Gateway::start(&upstream, rules).await;
    for (target, expected) in [
        ("/users.php", 401),
        ("/users.php/x", 401),
        ("/users.php/style.css", 401),
        ("/Users.PHP/x", 401),
        ("/users.phpx/x", 200),
        ("/users/x", 200),
        ("/a.cgi/x", 200),
    ] {
        assert_eq!(status(&gateway, target).await, expected, "{target}");
    }
    gateway
        .after("the configuration is reloaded", || {
            gateway.write_config(&format!("{rules}\npaths: {{ scripts: [cgi] }}"));
        })
        .await;
    assert_eq!(status(&gateway, "/a.cgi/x").await, 401);
    assert_eq!(status(&gateway, "/users.php/x").await, 200);
}

/// What a browser sends before a request that a page of another site wants to make.
fn preflight(gateway: &Gateway, target: &str, origin: &str) -> Call {
    gateway
        .request("OPTIONS", target)
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization")
}

#[tokio::test]
async fn a_preflight_is_judged_by_the_rules_or_goes_on_anonymous() {
    let upstream = Upstream::start().await;
    let rules = "rules: [{ path: /a, allow: Editor }, { path: /b, methods: read, allow: public }]";
    let gateway = Gateway::start(&upstream, rules).await;
    let site = "https://site.example";
    assert_eq!(preflight(&gateway, "/a", site).send().await.status, 401);
    assert_eq!(preflight(&gateway, "/b", site).send().await.status, 200, "OPTIONS is a read");
    gateway
        .after("the configuration is reloaded", || {
            gateway.write_config(&format!("{rules}\ncors_preflight: forward"))
        })
        .await;
    let eddie = gateway.login("eddie").await;
    assert_eq!(preflight(&gateway, "/a", site).bearer(&eddie).send().await.status, 200);
    let seen = upstream.last();
    assert_eq!(seen.method, "OPTIONS");
    assert_eq!(seen.header("origin"), Some(site));
    assert_eq!(seen.header("access-control-request-method"), Some("POST"));
    for name in ["x-auth-id", "x-auth-user", "x-auth-role", "authorization"] {
        assert_eq!(seen.header(name), None, "it goes on anonymous: {name}");
    }
    // Only a true one: without either header, or with another method, the rules decide.
    let count = upstream.count();
    for call in [
        gateway.request("OPTIONS", "/a").header("origin", site),
        gateway.request("OPTIONS", "/a").header("access-control-request-method", "POST"),
        gateway.request("OPTIONS", "/a"),
        gateway.get("/a").header("origin", site).header("access-control-request-method", "POST"),
    ] {
        assert_eq!(call.send().await.status, 401);
    }
    // Nor does anything ride along on it: another method, or a path that is the gateway's own.
    for (target, override_with, expected) in [
        ("/a", Some("DELETE"), 401),
        ("/a?_method=DELETE", None, 401),
        ("/nowhere", Some("POST"), 401),
        ("/auth/login", None, 405),
        ("/Auth/Login", None, 401),
        ("//auth/login", None, 401),
    ] {
        let mut call = preflight(&gateway, target, site);
        if let Some(method) = override_with {
            call = call.header("x-http-method-override", method);
        }
        assert_eq!(call.send().await.status, expected, "{target} {override_with:?}");
    }
    assert_eq!(upstream.count(), count);
    // No rule has to cover OPTIONS for it.
    assert_eq!(preflight(&gateway, "/nowhere", site).send().await.status, 200);
    assert_eq!(
        preflight(&gateway, "/../a", site).send().await.status,
        400,
        "what is malformed stays refused"
    );
}

#[tokio::test]
async fn pages_of_the_listed_sites_may_log_in_and_no_others() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: []\nlogin: { origins: ['https://site.example', 'http://localhost:5173'] }",
    )
    .await;
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").map(str::to_owned);
    for site in ["https://site.example", "http://localhost:5173"] {
        let answer = preflight(&gateway, "/auth/login", site).send().await;
        assert_eq!((answer.status, allowed(&answer).as_deref()), (204, Some(site)));
        assert_eq!(answer.header("access-control-allow-methods"), Some("POST"));
        assert!(answer.header("access-control-allow-headers").unwrap().contains("content-type"));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        assert!(answer.header("vary").unwrap().to_lowercase().contains("origin"));
        for (password, expected) in [(crate::harness::PASSWORD, 200), ("wrong password", 401)] {
            let body = serde_json::json!({ "username": "vera", "password": password });
            let answer = gateway.post("/auth/login").header("origin", site).json(&body).send().await;
            assert_eq!((answer.status, allowed(&answer).as_deref()), (expected, Some(site)), "{site}");
        }
        // The refusals of a malformed login can be read, too.
        let answer = gateway.post("/auth/login").header("origin", site).body("x").send().await;
        assert_eq!((answer.status, allowed(&answer).as_deref()), (415, Some(site)));
    }
    for site in ["https://site.example.evil", "http://site.example", "https://site.example:444", "null", ""] {
        let answer = preflight(&gateway, "/auth/login", site).send().await;
        assert_eq!((answer.status, allowed(&answer)), (405, None), "{site}");
        let body = serde_json::json!({ "username": "vera", "password": crate::harness::PASSWORD });
        let answer = gateway.post("/auth/login").header("origin", site).json(&body).send().await;
        assert_eq!(allowed(&answer), None, "{site}");
    }
}

#[tokio::test]
async fn rules_that_differ_in_a_value_of_the_query_alone_are_counted_apart() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules:\n  \
           - { path: /*, allow: public }\n  \
           - { path: /*, query: { option: users }, allow: SuperAdmin }\n  \
           - { path: /*, query: { option: content }, allow: Editor }",
    )
    .await;
    for target in ["/?option=users", "/?option=content", "/?option=content"] {
        assert_eq!(gateway.get(target).send().await.status, 401);
    }
    for (value, count) in [("users", 1.0), ("content", 2.0)] {
        let name =
            format!("portcullis_requests_total{{decision=\"unauthorized\",rule=\"/*?option={value}\"}}");
        assert_eq!(gateway.metric(&name).await, count, "{value}");
    }
}
