//! Load balancers that forward requests themselves and ask the gateway whether they may: real ones, each with the
//! configuration that its page in `docs/load-balancers` shows.

use std::net::SocketAddr;

use crate::differential::{self, grammar::Attempt};
use crate::harness::partners::{Partner, deployed, program, skip};
use crate::harness::{Call, Gateway, PASSWORD, Raw, RawUpstream, Upstream, field, status_of};

/// What every load balancer here is told by.
const RULES: &str = "trusted_proxies: [127.0.0.1]
rules:
  - { path: /public/*, allow: public }
  - { path: /view/*, allow: Viewer }
  - { path: /edit/*, allow: Editor }
  - { path: /page, methods: [DELETE], allow: SuperAdmin }
  - { path: /page, allow: Viewer }
login: { cookie: { secure: false }, page: true }
";

/// A load balancer's kind.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Nginx,
    HaProxy,
    Caddy,
    Apache,
    Varnish,
}

impl Kind {
    /// What `forward_auth.headers` is for it.
    fn headers(self) -> &'static str {
        match self {
            Kind::Nginx => "nginx",
            Kind::HaProxy | Kind::Caddy | Kind::Apache | Kind::Varnish => "traefik",
        }
    }

    /// Starts it between clients, `gateway` and `cms`.
    async fn start(self, gateway: &Gateway, cms: SocketAddr) -> Option<Partner> {
        let (cms, own, asked) =
            (cms.to_string(), gateway.address.to_string(), gateway.asked_at().to_string());
        match self {
            Kind::Nginx => {
                let Some(nginx) = program("nginx") else {
                    skip("nginx", "nginx");
                    return None;
                };
                let server = deployed(
                    "nginx/portcullis.conf",
                    &[
                        ("127.0.0.1:3000", &cms),
                        ("127.0.0.1:8080", &own),
                        ("127.0.0.1:9091", &asked),
                        ("listen 80;", "listen 127.0.0.1:PORT; keepalive_requests 1000000;"),
                    ],
                );
                let main = "daemon off;\nmaster_process off;\nworker_processes 1;\npid FOLDER/nginx.pid;\n\
                    error_log stderr crit;\nevents { worker_connections 256; }\nhttp {\n  access_log off;\n  \
                    client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy; fastcgi_temp_path FOLDER/fastcgi;\n  \
                    uwsgi_temp_path FOLDER/uwsgi; scgi_temp_path FOLDER/scgi;\n  include FOLDER/portcullis.conf;\n}\n";
                let files = [("portcullis.conf", server.as_str()), ("nginx.conf", main)];
                let command = [nginx.to_str()?, "-p", "FOLDER", "-c", "FOLDER/nginx.conf"];
                Some(Partner::start(&[("x", "")], &files, &[&command]).await)
            }
            Kind::HaProxy => {
                let Some(haproxy) = program("haproxy") else {
                    skip("HAProxy", "haproxy");
                    return None;
                };
                let main = deployed(
                    "haproxy/portcullis.cfg",
                    &[
                        ("127.0.0.1:3000", &cms),
                        ("127.0.0.1:8080", &own),
                        ("bind :80", "bind 127.0.0.1:PORT"),
                        ("lua-load portcullis.lua", "lua-load FOLDER/portcullis.lua"),
                    ],
                );
                let question = deployed("haproxy/portcullis.lua", &[("127.0.0.1:9091", &asked)]);
                let files = [("portcullis.cfg", main.as_str()), ("portcullis.lua", &question)];
                let command = [haproxy.to_str()?, "-db", "-f", "FOLDER/portcullis.cfg"];
                Some(Partner::start(&[("x", "")], &files, &[&command]).await)
            }
            Kind::Caddy => {
                let Some(caddy) = program("caddy") else {
                    skip("Caddy", "caddy");
                    return None;
                };
                let site = deployed(
                    "caddy/Caddyfile",
                    &[
                        ("127.0.0.1:3000", &cms),
                        ("127.0.0.1:8080", &own),
                        ("127.0.0.1:9091", &asked),
                        ("http://:80 {", "http://:PORT {\n\tbind 127.0.0.1"),
                    ],
                );
                let main = format!("{{\n\tadmin off\n\tstorage file_system FOLDER\n}}\n{site}");
                let command = [
                    "env",
                    "XDG_CONFIG_HOME=FOLDER",
                    caddy.to_str()?,
                    "run",
                    "--adapter",
                    "caddyfile",
                    "--config",
                    "FOLDER/Caddyfile",
                ];
                Some(Partner::start(&[("x", "")], &[("Caddyfile", &main)], &[&command]).await)
            }
            Kind::Apache => {
                let (Some(apache), true) =
                    (program("apache2"), std::path::Path::new("/usr/share/lua/5.3/socket.lua").exists())
                else {
                    skip("Apache", "apache2-bin or lua-socket");
                    return None;
                };
                let site = deployed(
                    "apache/portcullis.conf",
                    &[
                        ("127.0.0.1:3000", &cms),
                        ("127.0.0.1:8080", &own),
                        ("LuaHookAccessChecker portcullis.lua", "LuaHookAccessChecker FOLDER/portcullis.lua"),
                    ],
                );
                let question = deployed(
                    "apache/portcullis.lua",
                    &[("\"127.0.0.1\", 9091", &format!("\"127.0.0.1\", {}", asked.rsplit(':').next()?))],
                );
                let mut main = String::from(
                    "ServerRoot FOLDER\nServerName cms\nListen 127.0.0.1:PORT\nPidFile FOLDER/pid\n",
                );
                for module in
                    ["mpm_event", "authz_core", "authz_host", "headers", "proxy", "proxy_http", "lua"]
                {
                    main.push_str(&format!(
                        "LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so\n"
                    ));
                }
                main.push_str(
                    "ErrorLog FOLDER/log\nLogLevel crit lua:error\nUser nobody\nGroup nogroup\nKeepAlive On\n\
                     MaxKeepAliveRequests 0\nKeepAliveTimeout 60\nInclude FOLDER/portcullis.conf\n",
                );
                let files = [
                    ("httpd.conf", main.as_str()),
                    ("portcullis.conf", &site),
                    ("portcullis.lua", &question),
                ];
                let command = [apache.to_str()?, "-DFOREGROUND", "-f", "FOLDER/httpd.conf"];
                Some(Partner::start(&[("x", "")], &files, &[&command]).await)
            }
            Kind::Varnish => {
                let Some(varnish) = program("varnishd") else {
                    skip("Varnish", "varnish");
                    return None;
                };
                let port = |address: &str| format!(".port = \"{}\"", address.rsplit(':').next().unwrap());
                let vcl = deployed(
                    "varnish/portcullis.vcl",
                    &[
                        (".port = \"3000\"", &port(&cms)),
                        (".port = \"8080\"", &port(&own)),
                        (".port = \"9091\"", &port(&asked)),
                    ],
                );
                let command = [
                    varnish.to_str()?,
                    "-F",
                    "-f",
                    "FOLDER/portcullis.vcl",
                    "-a",
                    "127.0.0.1:PORT",
                    "-n",
                    "FOLDER/varnish",
                    "-j",
                    "none",
                    "-s",
                    "malloc,32m",
                ];
                Some(Partner::start(&[("x", "")], &[("portcullis.vcl", &vcl)], &[&command]).await)
            }
        }
    }
}

/// A CMS behind a load balancer that asks a gateway.
struct Site {
    cms: Upstream,
    gateway: Gateway,
    balancer: Partner,
}

impl Site {
    async fn start(kind: Kind) -> Option<Self> {
        let cms = Upstream::start().await;
        let form = format!("forward_auth: {{ listen: 127.0.0.1:0, headers: {} }}\n{RULES}", kind.headers());
        let gateway = Gateway::start(&cms, &form).await;
        let balancer = kind.start(&gateway, cms.address).await?;
        cms.forget();
        Some(Self { cms, gateway, balancer })
    }

    fn call(&self, method: &str, target: &str) -> Call {
        Call::new(self.balancer.address, method, target)
    }

    fn get(&self, target: &str) -> Call {
        self.call("GET", target)
    }

    /// A token, through the load balancer.
    async fn login(&self, name: &str) -> String {
        let credentials = serde_json::json!({ "username": name, "password": PASSWORD });
        let answer = self.call("POST", "/auth/login").json(&credentials).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    /// The status of a call that must not reach the CMS.
    async fn refused(&self, call: Call, what: &str) -> u16 {
        let before = self.cms.count();
        let answer = call.send().await;
        assert_eq!(self.cms.count(), before, "{what} reached the CMS: {:?}", self.cms.last());
        answer.status
    }

    /// What the CMS was told about the caller, in any spelling: name and value, sorted.
    fn told(&self) -> Vec<(String, String)> {
        let seen = self.cms.last();
        let mut told: Vec<_> = seen
            .headers
            .iter()
            .map(|(name, value)| {
                let folded: String =
                    name.as_str().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
                (folded, String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .filter(|(name, value)| name.starts_with("x-auth-") && !value.is_empty())
            .collect();
        told.sort();
        told
    }
}

fn is(user: &str, id: &str, role: &str) -> Vec<(String, String)> {
    [("x-auth-id", id), ("x-auth-role", role), ("x-auth-user", user)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

/// Everything that has to hold in front of every CMS, whoever forwards.
async fn holds_behind(kind: Kind) {
    let Some(site) = Site::start(kind).await else { return };
    decides(&site).await;
    is_not_misled(&site, kind).await;
    carries_on(&site).await;
    serves_browsers(&site).await;
}

async fn decides(site: &Site) {
    let vera = site.login("vera").await;
    let answer = site.get("/view/x").send().await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(site.cms.count(), 0);
    for (method, target, token, status) in [
        ("GET", "/view/x", Some("nonsense"), 401),
        ("GET", "/edit/x", None, 401),
        ("GET", "/edit/x", Some(vera.as_str()), 403),
        ("GET", "/nowhere", Some(&vera), 403),
        ("DELETE", "/page", Some(&vera), 403),
        ("POST", "/edit/x", Some(&vera), 403),
    ] {
        let mut call = site.call(method, target);
        if let Some(token) = token {
            call = call.bearer(token);
        }
        assert_eq!(site.refused(call, target).await, status, "{method} {target}");
    }
    // The gateway's own paths never reach the CMS, asked for in whatever way.
    for target in ["/auth/login", "/auth//login", "/AUTH/LOGIN", "/auth/login/", "/.well-known/jwks.json"] {
        let status = site.refused(site.get(target).bearer(&vera), target).await;
        assert!(matches!(status, 200 | 303 | 400 | 403 | 404), "{target}: {status}");
    }
    let answer = site.get("/view/x").bearer(&vera).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "upstream"));
    assert_eq!(site.told(), is("vera", "1", "Viewer"));
    let answer = site.get("/public/x").send().await;
    assert_eq!((answer.status, site.told()), (200, vec![]));
    let sam = site.login("sam").await;
    assert_eq!(site.call("DELETE", "/page").bearer(&sam).send().await.status, 200);
    assert_eq!(site.told(), is("sam", "3", "SuperAdmin"));
    assert_eq!(site.cms.last().header("authorization"), None, "the token is the gateway's");
}

/// Names in which a client may claim to be somebody.
const CLAIMS: [&[(&str, &str)]; 6] = [
    &[("X-Auth-User", "root"), ("X-Auth-Role", "SuperAdmin"), ("X-Auth-Id", "0")],
    &[("x_auth_user", "root"), ("X_AUTH_ROLE", "SuperAdmin")],
    &[("X-Auth_User", "root")],
    &[("X.Auth.User", "root"), ("X-Auth.Role", "SuperAdmin")],
    &[("X-Auth-User", "root"), ("X-Auth-User", "admin")],
    &[("X-Auth-User", "")],
];

/// Names in which a client may claim to ask for something else.
const DETOURS: [&[(&str, &str)]; 12] = [
    &[("X-Forwarded-Uri", "/public/x"), ("X-Forwarded-Method", "GET"), ("X-Forwarded-Host", "evil")],
    &[("X-Original-URI", "/public/x"), ("X-Original-Method", "GET")],
    &[("X-Original-URI", "/public/x"), ("X-Original-URI", "/public/y")],
    &[("X_Original_URI", "/public/x"), ("X_Original_Method", "GET")],
    &[("X_Forwarded_Uri", "/public/x"), ("X-Forwarded_Method", "GET")],
    &[("X-Original-URL", "/public/x")],
    &[("X-Rewrite-URL", "/public/x")],
    &[("X-Forwarded-Path", "/public/x")],
    &[("X-Forwarded-Prefix", "/public")],
    &[("X-HTTP-Method-Override", "GET")],
    &[("Connection", "X-Original-URI, X-Original-Method, X-Forwarded-Uri, X-Forwarded-Method")],
    &[("Connection", "X-Auth-User, Authorization")],
];

async fn is_not_misled(site: &Site, kind: Kind) {
    let vera = site.login("vera").await;
    let with = |mut call: Call, lines: &[(&str, &str)]| {
        for (name, value) in lines {
            call = call.header(name, value);
        }
        call
    };
    for lines in CLAIMS {
        for (target, token, expected) in
            [("/view/x", Some(&vera), is("vera", "1", "Viewer")), ("/public/x", None, vec![])]
        {
            let mut call = with(site.get(target), lines);
            if let Some(token) = token {
                call = call.bearer(token);
            }
            let before = site.cms.count();
            let status = call.send().await.status;
            // Refused, or forwarded as who it is.
            match status {
                200 => assert_eq!(site.told(), expected, "{kind:?} {lines:?} {target}"),
                400 | 403 => assert_eq!(site.cms.count(), before, "{lines:?}"),
                _ => panic!("{kind:?} {lines:?} {target}: {status}"),
            }
        }
        let call = with(site.get("/edit/x").bearer(&vera), lines);
        assert!(matches!(site.refused(call, "/edit/x").await, 400 | 403), "{lines:?}");
    }
    let call = with(site.get("/view/x").bearer(&vera), CLAIMS[0]);
    assert_eq!(call.send().await.status, 200, "{kind:?}: the usual spelling is overwritten, not refused");
    for lines in DETOURS {
        for (method, target, token) in
            [("GET", "/view/x", None), ("GET", "/edit/x", Some(&vera)), ("DELETE", "/page", Some(&vera))]
        {
            let mut call = with(site.call(method, target), lines);
            if let Some(token) = token {
                call = call.bearer(token);
            }
            let status = site.refused(call, &format!("{kind:?} {target} {lines:?}")).await;
            assert!(matches!(status, 400 | 401 | 403), "{kind:?} {target} {lines:?}: {status}");
        }
        // The other way round: what is led to a page that asks for more.
        let lines: Vec<_> =
            lines.iter().map(|(name, value)| (*name, value.replace("/public", "/edit"))).collect();
        let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let before = site.cms.count();
        let status = with(site.get("/public/x"), &lines).send().await.status;
        if site.cms.count() > before {
            let seen = site.cms.last();
            for name in ["x-original-url", "x-original-uri", "x-rewrite-url", "x-forwarded-path"] {
                assert_eq!(seen.header(name).unwrap_or_default(), "", "{kind:?} {lines:?}");
            }
            let forwarded = seen.header("x-forwarded-uri").unwrap_or_default();
            assert!(["", "/public/x"].contains(&forwarded), "{kind:?} {lines:?}");
        } else {
            assert!(matches!(status, 400 | 401 | 403), "{kind:?} {lines:?}: {status}");
        }
    }
    // Who asks is told by the load balancer alone.
    let call = site.get("/view/whose").bearer("nonsense").header("X-Forwarded-For", "6.6.6.6");
    site.refused(call, "a forged token").await;
    let told = |line: &str| line.contains(r#""event":"refused""#) && line.contains("/view/whose");
    let at = site.gateway.wait_for_line(0, told).await;
    let line: serde_json::Value = serde_json::from_str(&site.gateway.lines()[at]).unwrap();
    assert_eq!(line["client"], "127.0.0.1", "{line}");
}

/// What is allowed arrives as it was sent.
async fn carries_on(site: &Site) {
    let eddie = site.login("eddie").await;
    for target in
        ["/edit/x?a=b%20c&d=&e=%2F", "/edit/%C3%A4%20b", "/edit/a;b=c/d+e", "/edit/?", "/edit/a%25b"]
    {
        let answer = site.get(target).bearer(&eddie).send().await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        assert_eq!(site.cms.last().target, target);
    }
    let body = "x".repeat(100_000);
    let answer = site.call("POST", "/edit/x").bearer(&eddie).body(body.clone()).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!((site.cms.last().method.as_str(), &site.cms.last().body[..]), ("POST", body.as_bytes()));
    let call = site.call("POST", "/edit/x").body(body.clone());
    assert_eq!(site.refused(call, "an anonymous POST").await, 401);
    let address = site.balancer.address;
    let chunked = |authorization: &str| {
        format!(
            "POST /edit/x HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
             {authorization}\r\n5\r\nhello\r\n0\r\n\r\n"
        )
    };
    let mut client = Raw::connect(address).await;
    client.send(chunked(&format!("Authorization: Bearer {eddie}\r\n"))).await;
    assert_eq!(status_of(&client.rest().await), 200);
    assert_eq!(&site.cms.last().body[..], b"hello");
    let before = site.cms.count();
    let mut client = Raw::connect(address).await;
    client.send(chunked("")).await;
    assert_eq!((status_of(&client.rest().await), site.cms.count()), (401, before));
}

async fn serves_browsers(site: &Site) {
    let page = |call: Call| call.header("accept", "text/html");
    let answer = page(site.get("/view/x?a=b")).send().await;
    let login = "/auth/login?next=/view/x%3Fa%3Db";
    assert_eq!((answer.status, answer.header("location")), (303, Some(login)), "{}", answer.text());
    let answer = page(site.get(login)).send().await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("<form"), "{}", answer.text());
    let form = format!("username=eddie&password={}", PASSWORD.replace(' ', "+"));
    let answer = page(site.call("POST", login))
        .header("content-type", "application/x-www-form-urlencoded")
        .header("origin", &format!("http://{}", site.balancer.address))
        .body(form)
        .send()
        .await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("/view/x?a=b")), "{}", answer.text());
    let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let signed_in = |call: Call| call.header("cookie", &format!("a=b; {cookie}; c=d"));
    let answer = signed_in(page(site.get("/view/x"))).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(site.told(), is("eddie", "2", "Editor"));
    let sent = site.cms.last().header("cookie").unwrap_or_default().to_owned();
    assert!(!sent.contains("portcullis_token") && sent.contains("a=b") && sent.contains("c=d"), "{sent}");
    let here = format!("http://{}", site.balancer.address);
    for (name, value, status) in [
        ("sec-fetch-site", "same-origin", 200),
        ("origin", here.as_str(), 200),
        ("sec-fetch-site", "cross-site", 403),
        ("origin", "http://evil.example", 403),
        ("x-forwarded-host", "evil.example", 403),
        ("accept", "*/*", 403),
    ] {
        let call = signed_in(site.call("POST", "/edit/x")).header(name, value);
        let found = call.send().await.status;
        assert_eq!(found, status, "{name}: {value}");
    }
    // A page of another site begins a WebSocket with a GET.
    for (origin, status) in [(here.as_str(), 200), ("http://evil.example", 403)] {
        let call = signed_in(site.get("/edit/x"))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("origin", origin);
        assert_eq!(call.send().await.status, status, "{origin}");
    }
    let call = signed_in(page(site.call("POST", "/auth/logout"))).header("sec-fetch-site", "same-origin");
    let answer = call.send().await;
    assert!(matches!(answer.status, 200 | 204 | 303), "{}", answer.text());
    assert_eq!(site.refused(signed_in(site.get("/view/x")), "after the logout").await, 401);
}

/// A WebSocket goes through to the CMS and back, for whoever may begin one.
async fn carries_websockets(kind: Kind) {
    let cms = RawUpstream::start().await;
    let form = format!("forward_auth: {{ listen: 127.0.0.1:0, headers: {} }}\n{RULES}", kind.headers());
    let gateway = Gateway::start_at(cms.address, &form).await;
    // What a load balancer asks for when it is looked whether it serves, is refused by the gateway.
    let Some(balancer) = kind.start(&gateway, cms.address).await else { return };
    let vera = gateway.login("vera").await;
    for (token, status) in [("nonsense", 401), (vera.as_str(), 101)] {
        let mut client = Raw::connect(balancer.address).await;
        client
            .send(format!(
                "GET /view/live HTTP/1.1\r\nHost: cms\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Authorization: Bearer {token}\r\n\r\n"
            ))
            .await;
        if status == 101 {
            let mut served = cms.accept().await;
            let head = served.head().await;
            assert_eq!(
                field(&head, "upgrade").map(str::to_ascii_lowercase).as_deref(),
                Some("websocket"),
                "{kind:?}"
            );
            assert_eq!(field(&head, "x-auth-user"), Some("vera"), "{kind:?}");
            served
                .send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
                )
                .await;
            assert_eq!(status_of(&client.head().await), status, "{kind:?}");
            client.send(b"\x81\x82abcdef").await;
            assert_eq!(served.take(8).await, b"\x81\x82abcdef", "{kind:?}");
            served.send(b"\x81\x02hi").await;
            assert_eq!(client.take(4).await, b"\x81\x02hi", "{kind:?}");
        } else {
            assert_eq!(status_of(&client.head().await), status, "{kind:?}");
            assert!(cms.is_untouched().await, "{kind:?}");
        }
    }
}

/// Sends the requests of the differential test, with what one load balancer makes of each path, past a gateway
/// that lets everything pass but a marker.
async fn nothing_gets_past(kind: Kind) {
    let Some(cms) = differential::php().await else { return };
    let form = format!(
        "forward_auth: {{ listen: 127.0.0.1:0, headers: {} }}\n{}",
        kind.headers(),
        differential::RULES
    );
    let gateway = Gateway::start_at(cms.address, &form).await;
    let Some(balancer) = kind.start(&gateway, cms.address).await else { return };
    let token = format!("Bearer {}", gateway.login("vera").await);
    let (seed, count) =
        (differential::given("PORTCULLIS_SEED", 1), differential::given("PORTCULLIS_TARGETS", 3000));
    let (mut found, mut passed, mut naive) = (Vec::new(), 0_u64, 0_u64);
    let look = |number, attempt: Attempt, reply: differential::Reply| {
        passed += u64::from(reply.status == 200);
        if reply.marker {
            found.push((number, attempt));
        }
    };
    differential::send(balancer.address, seed, count, Some(token), look).await;
    differential::send(cms.address, seed, 500, None, |_, attempt, reply| {
        naive += u64::from(reply.marker && attempt.passes_a_naive_gateway());
    })
    .await;
    for (number, attempt) in found.iter().take(20) {
        let target = attempt.target.escape_ascii();
        eprintln!("  {number}: {} {target} {:?}", attempt.method, attempt.headers);
    }
    assert!(found.is_empty(), "{kind:?}, seed {seed}: {} requests reached the marker", found.len());
    eprintln!("{kind:?}: of {count} requests {passed} passed; of 500 sent directly {naive} would do harm");
    // It would also hold if nothing passed, or if there were nothing to find.
    assert!(passed * 50 >= count && naive * 20 >= 500, "{kind:?}: {passed} of {count} passed, {naive} harm");
}

/// Asks as a load balancer would that describes by `headers: nginx`.
fn ask(gateway: &Gateway, method: &str, target: &str) -> Call {
    Call::new(gateway.asked_at(), "GET", "/whatever")
        .host("cms.example")
        .header("x-original-method", method)
        .header("x-original-uri", target)
}

async fn asked(headers: &str, rest: &str) -> Gateway {
    let nobody = Upstream::start().await;
    let file = format!("forward_auth: {{ listen: 127.0.0.1:0, headers: {headers} }}\n{RULES}{rest}");
    Gateway::start(&nobody, &file).await
}

#[tokio::test]
async fn an_answer_says_who_the_caller_is_and_nothing_of_what_the_caller_says() {
    let gateway = asked(
        "nginx",
        "identity: { email: X-Auth-Email, secret: { header: X-Gateway, value: of-the-gateway } }",
    )
    .await;
    let vera = gateway.login("vera").await;
    let answer = ask(&gateway, "GET", "/view/x")
        .bearer(&vera)
        .header("x-auth-user", "root")
        .header("x-auth-email", "root@example.com")
        .header("x-gateway", "guessed")
        .send()
        .await;
    assert_eq!((answer.status, answer.text().as_str()), (200, ""));
    for (name, value) in [
        ("x-auth-user", "vera"),
        ("x-auth-role", "Viewer"),
        ("x-auth-email", "vera@example.com"),
        ("x-gateway", "of-the-gateway"),
        ("cache-control", "no-store"),
    ] {
        let values: Vec<_> = answer.headers.get_all(name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
    let answer = ask(&gateway, "GET", "/public/x").header("x-auth-user", "root").send().await;
    assert_eq!((answer.status, answer.header("x-auth-user")), (200, None));
    assert_eq!(answer.header("x-gateway"), Some("of-the-gateway"));
    let counted = gateway.metric("portcullis_requests_total{decision=\"allowed\",rule=\"/view/*\"}").await;
    assert_eq!(counted, 1.0, "as if the gateway had forwarded it");
}

#[tokio::test]
async fn each_form_gets_the_answers_that_its_load_balancer_can_use() {
    let own = "{ method: X-Ask-Method, uri: X-Ask-Uri, host: X-Ask-Host }";
    for (headers, names, anonymous, strange) in [
        ("nginx", ["x-original-method", "x-original-uri", "x-unused"], 401, 403),
        (own, ["x-ask-method", "x-ask-uri", "x-ask-host"], 401, 403),
        ("traefik", ["x-forwarded-method", "x-forwarded-uri", "x-forwarded-host"], 303, 400),
    ] {
        let gateway = asked(headers, "").await;
        let vera = gateway.login("vera").await;
        let call = |method: &str, target: &str| {
            Call::new(gateway.asked_at(), "POST", "/anything?at=all")
                .header(names[0], method)
                .header(names[1], target)
                .header(names[2], "cms.example")
        };
        let answer = call("GET", "/view/x").header("accept", "text/html").send().await;
        let login = Some("/auth/login?next=/view/x");
        assert_eq!((answer.status, answer.header("location")), (anonymous, login), "{headers}");
        for (method, target, token, status) in [
            ("GET", "/view/x", true, 200),
            ("GET", "/view/x", false, 401),
            ("GET", "/edit/x", true, 403),
            ("GET", "/view/../edit/x", true, strange),
            ("GET", "/view/%2e%2e/x", true, strange),
            ("TRACE", "/view/x", true, strange),
            ("GET", "/auth/login", true, 403),
            ("GET", "/.well-known/jwks.json", false, 403),
        ] {
            let mut call = call(method, target);
            if token {
                call = call.bearer(&vera);
            }
            assert_eq!(call.send().await.status, status, "{headers} {method} {target}");
        }
        // Not described, and described by somebody else.
        let bare = Call::new(gateway.asked_at(), "GET", "/view/x").bearer(&vera);
        assert_eq!(bare.send().await.status, strange, "{headers}");
        let forged = call("GET", "/view/x").bearer(&vera).header("X-Rewrite-Url", "/edit/x");
        assert_eq!(forged.send().await.status, strange, "{headers}");
    }
}

#[tokio::test]
async fn envoy_asks_with_the_request_itself() {
    let gateway = asked("envoy", "").await;
    let vera = gateway.login("vera").await;
    let call = |method: &str, target: &str| Call::new(gateway.asked_at(), method, target).bearer(&vera);
    for (method, target, status) in [
        ("GET", "/view/x?a=b", 200),
        ("GET", "/edit/x", 403),
        ("DELETE", "/page", 403),
        ("GET", "/page", 200),
        ("GET", "/view/%2e%2e/x", 400),
    ] {
        assert_eq!(call(method, target).send().await.status, status, "{method} {target}");
    }
    assert_eq!(call("GET", "/view/x").header("x-original-uri", "/public/x").send().await.status, 400);
}

#[tokio::test]
async fn without_an_upstream_only_the_gateways_own_paths_are_served() {
    let gateway = asked("nginx", "").await;
    let vera = gateway.login("vera").await;
    for (target, status) in [
        ("/public/x", 404),
        ("/view/x", 404),
        ("/", 404),
        ("/auth/login", 200),
        ("/.well-known/jwks.json", 200),
    ] {
        assert_eq!(gateway.get(target).bearer(&vera).send().await.status, status, "{target}");
        let answer = gateway.get(target).header("accept", "text/html").send().await;
        assert_eq!(answer.status, status, "{target}, anonymous");
    }
    let status = gateway.admin("GET", "/status").send().await.json();
    assert_eq!(status["upstreams"], serde_json::json!([]));
}

#[tokio::test]
async fn a_cookie_in_use_is_renewed_by_the_answer() {
    let gateway = asked("nginx", "tokens: { ttl: 1s, leeway: 1m }").await;
    let form = format!("username=vera&password={}", PASSWORD.replace(' ', "+"));
    let answer = gateway
        .post("/auth/login")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", "text/html")
        .body(form)
        .send()
        .await;
    let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let call =
        |accept: &str| ask(&gateway, "GET", "/view/x").header("cookie", &cookie).header("accept", accept);
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    let renewed = loop {
        let answer = call("text/html").send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        if let Some(renewed) = answer.header("set-cookie") {
            break renewed.to_owned();
        }
        assert!(std::time::Instant::now() < deadline, "past half of its life nothing renews it");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(renewed.starts_with("portcullis_token=") && !renewed.starts_with(&cookie), "{renewed}");
    assert_eq!(call("*/*").send().await.header("set-cookie"), None, "a script's request renews nothing");
}

#[tokio::test]
async fn the_body_of_a_question_is_not_waited_for() {
    let gateway = asked("nginx", "").await;
    let vera = gateway.login("vera").await;
    let mut client = Raw::connect(gateway.asked_at()).await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {vera}\r\nX-Original-Method: POST\r\n\
         X-Original-URI: /view/x\r\nContent-Length: 1000000000\r\n\r\n"
    );
    client.send(head).await;
    let (head, _) = client.message().await;
    assert_eq!(status_of(&head), 200);
}

#[tokio::test]
async fn a_question_about_a_malformed_request_does_not_end_the_connection() {
    let gateway = asked("traefik", "").await;
    let mut client = crate::harness::KeepAlive::connect(gateway.asked_at()).await;
    for (target, status) in
        [("/public/a#b", 400), ("/public/x", 200), ("/public/../x", 400), ("/public/x", 200)]
    {
        let call = client
            .request("GET", "/")
            .header("x-forwarded-method", "GET")
            .header("x-forwarded-uri", target)
            .header("x-forwarded-host", "cms");
        assert_eq!(client.send(call).await.unwrap().status, status, "{target}");
    }
}

#[tokio::test]
async fn a_reload_changes_how_requests_are_described_but_not_where_one_asks() {
    let gateway = asked("nginx", "").await;
    let file =
        |headers: &str| format!("forward_auth: {{ listen: 127.0.0.1:0, headers: {headers} }}\n{RULES}");
    gateway.after("the configuration is reloaded", || gateway.write_config(&file("traefik"))).await;
    assert_eq!(ask(&gateway, "GET", "/public/x").send().await.status, 400);
    let other = file("nginx").replace("127.0.0.1:0", "127.0.0.1:1");
    gateway.after("'forward_auth.listen' changes only with a restart", || gateway.write_config(&other)).await;
    assert_eq!(ask(&gateway, "GET", "/public/x").send().await.status, 200);
    let off = format!("upstream: http://127.0.0.1:1\n{RULES}");
    gateway.after("the configuration is reloaded", || gateway.write_config(&off)).await;
    assert_eq!(ask(&gateway, "GET", "/public/x").send().await.status, 500, "nobody is let through unasked");
}

#[tokio::test]
async fn nginx_forwards_what_the_gateway_allows_and_nothing_else() {
    holds_behind(Kind::Nginx).await;
}

#[tokio::test]
async fn no_request_gets_past_the_gateway_through_nginx() {
    nothing_gets_past(Kind::Nginx).await;
}

#[tokio::test]
async fn every_load_balancer_carries_the_websockets_that_the_gateway_allows() {
    for kind in [Kind::Nginx, Kind::HaProxy, Kind::Caddy, Kind::Apache, Kind::Varnish] {
        carries_websockets(kind).await;
    }
}

#[tokio::test]
async fn haproxy_forwards_what_the_gateway_allows_and_nothing_else() {
    holds_behind(Kind::HaProxy).await;
}

#[tokio::test]
async fn no_request_gets_past_the_gateway_through_haproxy() {
    nothing_gets_past(Kind::HaProxy).await;
}

#[tokio::test]
async fn caddy_forwards_what_the_gateway_allows_and_nothing_else() {
    holds_behind(Kind::Caddy).await;
}

#[tokio::test]
async fn no_request_gets_past_the_gateway_through_caddy() {
    nothing_gets_past(Kind::Caddy).await;
}

#[tokio::test]
async fn apache_forwards_what_the_gateway_allows_and_nothing_else() {
    holds_behind(Kind::Apache).await;
}

#[tokio::test]
async fn no_request_gets_past_the_gateway_through_apache() {
    nothing_gets_past(Kind::Apache).await;
}

#[tokio::test]
async fn varnish_forwards_what_the_gateway_allows_and_nothing_else() {
    holds_behind(Kind::Varnish).await;
}

#[tokio::test]
async fn no_request_gets_past_the_gateway_through_varnish() {
    nothing_gets_past(Kind::Varnish).await;
}
