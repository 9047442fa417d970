//! Public advisories of other products as raw requests, one row each with the invariant that answers it here: what
//! was a way round them, or a second request, is a refusal, needs what the page behind it needs, or arrives without
//! what it claimed. Further spellings of each class are in `hygiene`, `identity` and `differential`.

use crate::harness::{Gateway, Upstream, field, status_of};

/// `/admin` and DELETE are protected, all else is public.
const RULES: &str = "rules:
  - { path: /*, allow: public }
  - { path: /*, methods: [DELETE], allow: SuperAdmin }
  - { path: /admin/*, allow: SuperAdmin }
identity: { secret: { header: X-Gateway-Secret, value: s3cret } }";

/// Advisory, product, and the request; `HEAD` stands for a request line and Host.
type Row = (&'static str, &'static str, &'static str);

const HEAD: &str = "POST /x HTTP/1.1\r\nHost: a\r\n";

/// What has to follow no refusal.
const SECOND: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// One request in, one request out: refused with 400, and nothing behind it is read.
const REFUSED: [Row; 32] = [
    ("CVE-2019-16276", "Go: a space before the colon", "HEADTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    (
        "CVE-2019-16869",
        "Netty: the same",
        "HEADTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    ("CVE-2020-7238", "Netty: a blank before the name", "HEAD Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("CVE-2021-22959", "Node: a space before the colon", "HEADContent-Length : 5\r\n\r\nabcde"),
    (
        "CVE-2022-32213",
        "Node: codings that are not chunked",
        "HEADTransfer-Encoding: chunkedchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "CVE-2022-32214",
        "Node: LF alone between lines",
        "HEADX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "CVE-2022-32215",
        "Node: a folded coding",
        "HEADTransfer-Encoding: chunked\r\n , identity\r\n\r\n0\r\n\r\n",
    ),
    (
        "CVE-2023-30589",
        "Node: CR alone between lines",
        "HEADX: y\r\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "CVE-2021-22960",
        "Node: a chunk extension that is not looked at",
        "HEADTransfer-Encoding: chunked\r\n\r\n1;\n\r\nx\r\n0\r\n\r\n",
    ),
    (
        "CVE-2025-22871",
        "Go: LF alone behind a chunk size",
        "HEADTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
    ),
    (
        "CVE-2025-55315",
        "Kestrel: a line end within a chunk extension",
        "HEADTransfer-Encoding: chunked\r\n\r\n1;x\ny\r\nx\r\n0\r\n\r\n",
    ),
    (
        "CVE-2025-59822",
        "http4s: a trailer without a colon",
        "HEADTransfer-Encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n",
    ),
    (
        "CVE-2023-38697",
        "protocol-http1: a signed chunk size",
        "HEADTransfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n",
    ),
    ("CVE-2023-38697", "protocol-http1: a hexadecimal length", "HEADContent-Length: 0x5\r\n\r\nabcde"),
    ("CVE-2022-24761", "Waitress: a signed length", "HEADContent-Length: +5\r\n\r\nabcde"),
    (
        "CVE-2024-1135",
        "gunicorn: a second coding",
        "HEADTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    (
        "CVE-2024-6827",
        "gunicorn: an unknown coding beside a length",
        "HEADTransfer-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
    ),
    ("CVE-2023-25725", "HAProxy: a header without a name", "HEAD: x\r\nContent-Length: 5\r\n\r\nabcde"),
    ("CVE-2021-32779", "Envoy: a fragment in the target", "GET /admin#/x HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2021-39156", "Istio: a fragment in the target", "GET /x#/../admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2019-9900", "Envoy: NUL in a header", "GET /admin HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n"),
    ("CVE-2019-9901", "Envoy: a dot segment", "GET /x/../admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "CVE-2026-33494",
        "Oathkeeper: a dot segment behind a public prefix",
        "GET /public/../admin/secrets HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    ("CVE-2025-32431", "Traefik: the same", "GET /x/../admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2021-29492", "Envoy: an encoded slash", "GET /x%2f..%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2025-66490", "Traefik: an encoded slash", "GET /admin%2F HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "CVE-2026-34908",
        "UniFi OS: a dot segment and an encoded slash",
        "GET /public/..%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    ("CVE-2021-41773", "Apache: a half-encoded dot segment", "GET /x/.%2e/admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "CVE-2021-42013",
        "Apache: a dot segment encoded twice",
        "GET /x/%%32%65%%32%65/admin HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    ("CVE-2020-5902", "BIG-IP: a parameter in a dot segment", "GET /x/..;/admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2020-1957", "Shiro: a parameter in a path", "GET /x;/../admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "CVE-2022-22978",
        "Spring Security: a line end in a path",
        "GET /admin/x%0a HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
];

/// The strictest reading wins: whoever is nobody gets 401, as for the page itself.
const DECIDED: [Row; 12] = [
    ("CVE-2021-31920", "Istio: slashes in a row", "GET //admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2020-13933", "Shiro: an encoded semicolon", "GET /admin/%3bx HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2026-15573", "Keycloak: a matrix parameter", "GET /admin;x=y HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2026-15573", "Keycloak: a slash at the end", "GET /admin/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2026-27587", "Caddy: letter case of an escaped path", "GET /%41DMIN HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "CVE-2016-5007",
        "Spring Security: blanks about a segment",
        "GET /admin%20/x HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "CVE-2020-11989",
        "Shiro: an escape that is decoded twice",
        "GET /%2561dmin HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    ("CVE-2025-66490", "Traefik: an encoded question mark", "GET /admin%3f HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2025-66490", "Traefik: an encoded hash", "GET /admin%23x HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "",
        "a method named by a header",
        "POST /x HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "",
        "a method named by a parameter",
        "POST /x?_method=delete HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    ),
    ("", "a network path", "GET //host/admin HTTP/1.1\r\nHost: a\r\n\r\n"),
];

/// Who and what is the gateway's to say: allowed, and without the lines that hold `forged`.
const STRIPPED: [Row; 11] = [
    (
        "CVE-2025-64484",
        "oauth2-proxy: underscores for dashes",
        "X_Auth_User: forged\r\nX_Auth-Role: forged\r\n",
    ),
    (
        "CVE-2025-29927",
        "Next.js: a request that is to skip its middleware",
        "X-Middleware-Subrequest: forged\r\n",
    ),
    (
        "CVE-2018-14773",
        "Symfony: another path in a header",
        "X-Original-URL: /forged\r\nX-Rewrite-URL: /forged\r\n",
    ),
    ("CVE-2016-5385", "PHP: a proxy for the application (httpoxy)", "Proxy: http://forged\r\n"),
    ("CVE-2024-52003", "Traefik: a prefix from a stranger", "X-Forwarded-Prefix: /forged\r\n"),
    (
        "CVE-2021-32813",
        "Traefik: Connection names what the gateway sets",
        "Connection: X-Gateway-Secret\r\nX-Gateway-Secret: forged\r\n",
    ),
    (
        "CVE-2022-31813",
        "Apache: Connection names what is forwarded for",
        "Connection: X-Forwarded-For\r\nX-Forwarded-For: forged\r\n",
    ),
    (
        "CVE-2024-45410",
        "Traefik: Connection names the host",
        "Connection: X-Forwarded-Host, Host\r\nX-Forwarded-Host: forged\r\n",
    ),
    ("", "names that no server knows and some fold", "X.Auth.User: forged\r\nx!forwarded!for: forged\r\n"),
    (
        "",
        "an upgrade to HTTP/2",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: forged\r\n",
    ),
    ("", "a path that gunicorn takes for mounted", "SCRIPT_NAME: /forged\r\n"),
];

#[tokio::test]
async fn what_was_an_advisory_for_others_is_a_refusal_here() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    for (rows, status) in [(&REFUSED[..], 400), (&DECIDED[..], 401)] {
        for (advisory, what, request) in rows {
            // A path that is refused leaves the connection as it is: its own end is asked for.
            let request =
                request.replace("HEAD", HEAD).replacen("Host: a\r\n", "Host: a\r\nConnection: close\r\n", 1);
            let answers = gateway.raw(format!("{request}{SECOND}").as_bytes()).await;
            assert_eq!(status_of(&answers), status, "{advisory} {what}: {answers}");
            assert_eq!(answers.matches("HTTP/1.").count(), 1, "{advisory} {what}: {answers}");
            assert_eq!(upstream.count(), 0, "{advisory} {what}");
        }
    }
}

#[tokio::test]
async fn what_was_an_advisory_for_others_is_taken_off_here() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let token = gateway.login("vera").await;
    for (advisory, what, lines) in STRIPPED {
        let request = format!("GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{lines}\r\n");
        let mut client = gateway.connect().await;
        client.send(request).await;
        let (head, _) = client.message().await;
        assert_eq!(status_of(&head), 200, "{advisory} {what}: {head}");
        assert_eq!(field(&head, "upgrade"), None, "{advisory} {what}");
        let seen = upstream.last();
        assert!(!format!("{:?}", seen.headers).contains("forged"), "{advisory} {what}: {:?}", seen.headers);
        for (name, value) in [
            ("x-auth-user", "vera"),
            ("x-auth-role", "Viewer"),
            ("x-gateway-secret", "s3cret"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "a"),
            ("host", "a"),
        ] {
            assert_eq!(seen.header(name), Some(value), "{advisory} {what}");
        }
    }
}
