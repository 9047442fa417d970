//! Real upstreams behind the real gateway, and requests written so that the two read them differently.
//!
//! Each upstream serves a marker under what is protected, and more willingly than any CMS would: besides its own
//! routing it takes the path in every way that code of its language is known to take one, in every combination.
//! All else is public, so whatever the rules fail to recognise is let through. If the marker comes back for any of
//! thousands of generated requests without a token, or with a role too low, there is a way round the rules.
//!
//! `PORTCULLIS_TARGETS` is how many requests go to each upstream (5000; half as many again where encoded slashes
//! pass), `PORTCULLIS_SEED` which ones (1).
//!
//! Known limits: readings that nobody but the upstream can know are not among these, and rules have to be written
//! for the paths that it routes by. Aliases and mounts (`alias` of nginx without a final slash, `/public../admin`),
//! suffixes that it adds (`/users` for `users.php`, Apache's MultiViews), short names of Windows (`/ADMIN~1`),
//! routing by a form field or a whole query string (`/?/admin/x`), letters that a database's collation holds for
//! others that are neither a compatibility form nor the same with an accent (`ø` for `o`), and code that decodes
//! Base64 or UTF-7. Servlet containers are not among the partners; what is known of them (`;params`) is.

pub mod grammar;

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use grammar::{Attempt, attempt};
use http::Response;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::partners::{Partner, in_repository, program, skip};
use crate::harness::{Gateway, Raw, Upstream, field, status_of};

pub const MARKER: &str = "PROTECTED-MARKER";

/// Everything is public but what is protected.
pub const RULES: &str = "rules:
  - { path: /*, allow: public }
  - { path: /admin/*, allow: SuperAdmin }
  - { path: /admin/open/*, allow: public }
  - { path: /administrator/*, allow: public }
  - { path: /users.php, allow: SuperAdmin }
  - { path: /item/:id, allow: public }
  - { path: /item/*, allow: SuperAdmin }
  - { path: /page, methods: [DELETE], allow: SuperAdmin }
  - { path: /*, query: { rest_route: /private/* }, allow: SuperAdmin }
";

const INDEX: &str = include_str!("site/index.php");

/// What every upstream serves, besides what it routes by itself.
const FILES: [(&str, &str); 7] = [
    ("admin/secret.txt", MARKER),
    ("admin/users.php", "<?php echo 'PROTECTED-MARKER';"),
    ("users.php", "<?php echo 'PROTECTED-MARKER';"),
    ("admin/open/page.txt", "harmless"),
    ("public/page.txt", "harmless"),
    ("administrator/page.txt", "harmless"),
    ("index.php", INDEX),
];

/// nginx with files and, by FastCGI, PHP: as a WordPress behind it is configured, and lenient in headers.
async fn nginx() -> Option<Partner> {
    let (Some(nginx), Some(fpm)) = (program("nginx"), program("php-fpm")) else {
        skip("nginx", "nginx or php-fpm");
        return None;
    };
    let php = "[global]\nerror_log = FOLDER/fpm.log\ndaemonize = no\n[www]\nlisten = FOLDER/fpm.sock\nlisten.mode = 0666\n\
               pm = static\npm.max_children = 3\nclear_env = yes\nuser = nobody\ngroup = nogroup\n";
    let configuration =
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid FOLDER/nginx.pid;\nerror_log stderr crit;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy; fastcgi_temp_path FOLDER/fastcgi;
  uwsgi_temp_path FOLDER/uwsgi; scgi_temp_path FOLDER/scgi;
  server {
    listen 127.0.0.1:PORT;
    root FOLDER/site;
    underscores_in_headers on; ignore_invalid_headers off;
    keepalive_requests 1000000;
    location / { try_files $uri $uri/ /index.php?$query_string; }
    location ~* [^/]\\.php(/|$) {
      fastcgi_split_path_info ^(.+?\\.php)(/.*)$;
      set $info $fastcgi_path_info;
      try_files $fastcgi_script_name /index.php?$query_string;
      fastcgi_pass unix:FOLDER/fpm.sock;
      fastcgi_param SCRIPT_FILENAME FOLDER/site$fastcgi_script_name;
      fastcgi_param SCRIPT_NAME $fastcgi_script_name;
      fastcgi_param PATH_INFO $info;
      fastcgi_param QUERY_STRING $query_string;
      fastcgi_param REQUEST_METHOD $request_method;
      fastcgi_param REQUEST_URI $request_uri;
      fastcgi_param CONTENT_LENGTH $content_length;
      fastcgi_param CONTENT_TYPE $content_type;
    }
  }
}
";
    let (nginx, fpm) = (nginx.to_str()?, fpm.to_str()?);
    Some(
        Partner::start(
            &FILES,
            &[("fpm.conf", php), ("nginx.conf", configuration)],
            &[
                &[fpm, "--nodaemonize", "--fpm-config", "FOLDER/fpm.conf"],
                &[nginx, "-p", "FOLDER", "-c", "FOLDER/nginx.conf"],
            ],
        )
        .await,
    )
}

/// Apache with files, PHP as its module, path info and a rewriting front controller.
async fn apache() -> Option<Partner> {
    let modules = std::path::Path::new("/usr/lib/apache2/modules");
    let php = std::fs::read_dir(modules).into_iter().flatten().flatten().map(|entry| entry.path());
    let php = php.filter_map(|path| path.to_str().map(str::to_owned)).find(|path| path.contains("/libphp"));
    let (Some(apache), Some(php)) = (program("apache2"), php) else {
        skip("Apache", "apache2-bin or libapache2-mod-php");
        return None;
    };
    let mut configuration = String::from(
        "ServerRoot FOLDER\nServerName localhost\nListen 127.0.0.1:PORT\nPidFile FOLDER/httpd.pid\n",
    );
    for module in ["mpm_prefork", "authz_core", "dir", "mime", "rewrite", "negotiation"] {
        writeln!(configuration, "LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so")
            .unwrap();
    }
    writeln!(configuration, "LoadModule php_module {php}").unwrap();
    configuration.push_str(
        "ErrorLog FOLDER/error.log
LogLevel crit
TypesConfig /dev/null
User nobody
Group nogroup
StartServers 8
MinSpareServers 1
MaxRequestWorkers 16
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 60
DocumentRoot FOLDER/site
AllowEncodedSlashes On
<Directory FOLDER/site>
  Require all granted
  AcceptPathInfo On
  DirectoryIndex index.php
  RewriteEngine On
  RewriteCond %{REQUEST_FILENAME} !-f
  RewriteCond %{REQUEST_FILENAME} !-d
  RewriteRule .* index.php [L]
</Directory>
<FilesMatch \"\\.php$\">
  SetHandler application/x-httpd-php
</FilesMatch>
",
    );
    let apache = apache.to_str()?;
    Some(
        Partner::start(
            &FILES,
            &[("httpd.conf", &configuration)],
            &[&[apache, "-DFOREGROUND", "-f", "FOLDER/httpd.conf"]],
        )
        .await,
    )
}

/// PHP's own server with the kind of router that WordPress and Laravel bring for it.
pub async fn php() -> Option<Partner> {
    let Some(php) = program("php") else {
        skip("php -S", "php-cli");
        return None;
    };
    let mut files = FILES.to_vec();
    files.push(("router.php", include_str!("site/router.php")));
    let php = php.to_str()?;
    Some(
        Partner::start(
            &files,
            &[],
            &[&[php, "-S", "127.0.0.1:PORT", "-t", "FOLDER/site", "FOLDER/site/router.php"]],
        )
        .await,
    )
}

/// Django behind gunicorn, which is told to trust whoever sends it headers.
async fn django() -> Option<Partner> {
    let Some(gunicorn) = in_repository("target/wagtail/venv/bin/gunicorn") else {
        skip("gunicorn with Django", "target/wagtail (deploy/wagtail/setup.sh target/wagtail)");
        return None;
    };
    let gunicorn = gunicorn.to_str()?;
    Some(
        Partner::start(
            &[("app.py", include_str!("site/app.py"))],
            &[],
            &[&[
                gunicorn,
                "--bind",
                "127.0.0.1:PORT",
                "--workers",
                "2",
                "--threads",
                "8",
                "--keep-alive",
                "60",
                "--header-map",
                "dangerous",
                "--forwarded-allow-ips",
                "*",
                "--log-level",
                "critical",
                "app:application",
            ]],
        )
        .await,
    )
}

/// Express on Node.
async fn express() -> Option<Partner> {
    let (Some(node), Some(express)) = (program("node"), in_repository("target/express/node_modules/express"))
    else {
        skip("Express", "node or target/express (script/test installs it)");
        return None;
    };
    let (node, express) = (node.to_str()?, express.to_str()?);
    let mut files = FILES.to_vec();
    files.push(("../app.js", include_str!("site/app.js")));
    Some(Partner::start(&files, &[], &[&[node, "FOLDER/app.js", express, "PORT", "FOLDER/site"]]).await)
}

impl Raw {
    /// A whole answer, however its body is framed: the status, and the body as it came.
    async fn answer(&mut self) -> (u16, String) {
        let head = self.head().await;
        let body = match field(&head, "content-length") {
            Some(length) => String::from_utf8_lossy(&self.take(length.parse().unwrap()).await).into_owned(),
            None if field(&head, "transfer-encoding").is_some() => self.until("\r\n0\r\n\r\n").await,
            None => self.rest().await,
        };
        (status_of(&head), body)
    }
}

/// A number from the environment.
pub fn given(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// What came back for one request.
pub struct Reply {
    /// 0 without an answer.
    pub status: u16,
    /// In the gateway's own words.
    own: bool,
    pub marker: bool,
}

/// A connection for one request after the other, made anew when the other side ends it.
struct Sender {
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl Sender {
    async fn ask(&mut self, request: &[u8]) -> Reply {
        // Once more where the connection was closed while nobody looked.
        for fresh in [false, true] {
            if fresh || self.stream.is_none() {
                let stream = TcpStream::connect(self.address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                self.stream = Some(stream);
            }
            if let Some(reply) = self.try_ask(request).await {
                return reply;
            }
            self.stream = None;
        }
        Reply { status: 0, own: false, marker: false }
    }

    async fn try_ask(&mut self, request: &[u8]) -> Option<Reply> {
        let stream = self.stream.as_mut()?;
        stream.write_all(request).await.ok()?;
        let (mut bytes, mut space) = (Vec::new(), [0; 8192]);
        loop {
            let read = tokio::time::timeout(crate::harness::PATIENCE, stream.read(&mut space)).await;
            let length = read.ok()?.unwrap_or(0);
            bytes.extend_from_slice(&space[..length]);
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                if length == 0 {
                    return None;
                }
                continue;
            };
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let body = &bytes[end + 4..];
            let complete = match field("content-length:") {
                Some(announced) => body.len() >= announced.parse::<usize>().unwrap_or(usize::MAX),
                None => field("transfer-encoding:").is_some() && body.ends_with(b"0\r\n\r\n"),
            };
            if complete || length == 0 {
                let own = field("content-type:") == Some("application/json");
                let marker = String::from_utf8_lossy(body).contains(MARKER);
                if length == 0 || field("connection:") == Some("close") {
                    self.stream = None;
                }
                let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
                return Some(Reply { status, own, marker });
            }
        }
    }
}

/// Sends the requests `0..count` of `seed` to `address` and calls `each` with what came back.
pub async fn send(
    address: SocketAddr,
    seed: u64,
    count: u64,
    authorization: Option<String>,
    mut each: impl FnMut(u64, Attempt, Reply),
) {
    const CONNECTIONS: u64 = 8;
    let (replies, mut incoming) = tokio::sync::mpsc::channel(64);
    let authorization = Arc::new(authorization);
    let mut senders = tokio::task::JoinSet::new();
    for first in 0..CONNECTIONS {
        let (replies, authorization) = (replies.clone(), Arc::clone(&authorization));
        senders.spawn(async move {
            let mut sender = Sender { address, stream: None };
            let host = address.to_string();
            let mut number = first;
            while number < count {
                let attempt = attempt(seed, number);
                // Every other one is somebody, and not enough.
                let authorization = authorization.as_deref().filter(|_| number / CONNECTIONS % 2 == 1);
                let reply = sender.ask(&attempt.bytes(&host, authorization)).await;
                if replies.send((number, attempt, reply)).await.is_err() {
                    return;
                }
                number += CONNECTIONS;
            }
        });
    }
    drop(replies);
    while let Some((number, attempt, reply)) = incoming.recv().await {
        each(number, attempt, reply);
    }
    while let Some(ended) = senders.join_next().await {
        ended.unwrap();
    }
}

/// Asks one upstream about everything: directly, to know that the requests are good for something, and through
/// the gateway, where nothing may come of them.
async fn hold(name: &str, partner: Option<Partner>) {
    let Some(partner) = partner else { return };
    let (seed, count) = (given("PORTCULLIS_SEED", 1), given("PORTCULLIS_TARGETS", 5000));
    // A gateway that compares prefixes would be walked around all the time.
    let sample = count.min(1000);
    let (mut reached, mut naive) = (0_u64, 0_u64);
    send(partner.address, seed, sample, None, |_, attempt, reply| {
        reached += u64::from(reply.marker);
        naive += u64::from(reply.marker && attempt.passes_a_naive_gateway());
    })
    .await;

    // Without teeth this would show nothing.
    assert!(
        naive * 20 >= sample,
        "{name}: only {naive} of {sample} requests pass a naive gateway and do harm"
    );
    eprintln!(
        "{name}: seed {seed}: of {sample} requests sent directly {reached} reached the marker, {naive} of them past \
         a comparison of prefixes"
    );
    for (paths, count) in [("", count), ("paths: { encoded_slash: strict }", count.div_ceil(2))] {
        let gateway = Gateway::start_at(partner.address, &format!("{RULES}{paths}")).await;
        let token = format!("Bearer {}", gateway.login("vera").await);
        let (mut found, mut passed, mut failed) = (Vec::new(), 0_u64, 0_u64);
        send(gateway.address, seed, count, Some(token), |number, attempt, reply| {
            passed += u64::from(!reply.own);
            failed += u64::from(reply.status == 0 || reply.status >= 500);
            if reply.marker {
                found.push((number, attempt));
            }
        })
        .await;
        eprintln!("{name}: of {count} sent through the gateway {passed} passed and {failed} failed {paths}");
        for (number, attempt) in found.iter().take(40) {
            let target = attempt.target.escape_ascii();
            eprintln!("  {number}: {} {target} {:?}", attempt.method, attempt.headers);
        }
        assert!(found.is_empty(), "{name}, seed {seed}: {} requests reached the marker {paths}", found.len());
        // Nor would a gateway that refuses whatever it is sent.
        assert!(passed * 20 >= count, "{name}: the gateway let only {passed} of {count} requests through");
        assert!(failed * 20 <= count, "{name}: {failed} of {count} were not answered\n{}", partner.log());
    }
}

#[tokio::test]
async fn no_request_reaches_what_is_protected_on_nginx() {
    hold("nginx with PHP-FPM", nginx().await).await;
}

#[tokio::test]
async fn no_request_reaches_what_is_protected_on_apache() {
    hold("Apache with mod_php", apache().await).await;
}

#[tokio::test]
async fn no_request_reaches_what_is_protected_on_phps_own_server() {
    hold("php -S", php().await).await;
}

#[tokio::test]
async fn no_request_reaches_what_is_protected_on_django() {
    hold("gunicorn with Django", django().await).await;
}

#[tokio::test]
async fn no_request_reaches_what_is_protected_on_express() {
    hold("Express", express().await).await;
}

#[tokio::test]
async fn what_is_let_through_arrives_byte_for_byte() {
    let upstream = Upstream::answering(|seen| Response::new(Full::from(seen.target.clone()))).await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let (seed, mut passed) = (given("PORTCULLIS_SEED", 1), 0);
    let mut client = gateway.connect().await;
    for number in 0..2000 {
        let attempt = attempt(seed, number);
        let _ = client.stream.write_all(&attempt.bytes("a", None)).await;
        let (status, body) = client.answer().await;
        if status == 200 {
            let sent = attempt.target.strip_prefix(b"http://HOST").unwrap_or(&attempt.target);
            assert_eq!(body.as_bytes(), sent, "{number} of seed {seed}");
            passed += 1;
        } else if status == 400 {
            client = gateway.connect().await;
        }
    }
    assert!(passed >= 100, "only {passed}");
}

/// Ways to say who one is without being it. Each value that must not arrive holds `forged`.
const FORGERIES: [&str; 18] = [
    "X-Auth-User: forged\r\nX-Auth-Role: forged\r\nX-Auth-Id: forged\r\n",
    "x-auth-user: forged\r\nX-AUTH-USER: forged\r\n",
    "X_Auth_User: forged\r\nx_auth_role: forged\r\nX_AUTH_ID: forged\r\n",
    "X-Auth_User: forged\r\nX_Auth-User: forged\r\n",
    "X.Auth.User: forged\r\nX~Auth~Role: forged\r\nX!Auth!Id: forged\r\n",
    "X|Auth|User: forged\r\nX*Auth*Role: forged\r\nX'Auth'Id: forged\r\nX+Auth+User: forged\r\n",
    "X#Auth$User: forged\r\nX%Auth&Role: forged\r\nX^Auth`Id: forged\r\n",
    "Connection: X-Auth-User, X-Auth-Role, X-Auth-Id\r\nX-Auth-User: forged\r\n",
    "Connection: x_auth_user\r\nX_Auth_User: forged\r\n",
    "Connection: close, X-Auth-User\r\n",
    "X-Auth-User:forged\r\nX-Auth-User:\tforged\r\n",
    "X-Auth-User:\r\nX-Auth-User: forged\r\n",
    "X-Auth-User: vera, forged\r\n",
    "X-Forwarded-For: forged\r\nForwarded: for=forged\r\nX_Forwarded_For: forged\r\nX-Real-IP: forged\r\n",
    "Proxy: forged\r\nX-Forwarded_Host: forged\r\n",
    "SCRIPT_NAME: /forged\r\nPath-Info: /forged\r\n",
    "Transfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: X-Auth-User\r\n",
    "Transfer-Encoding: chunked\r\nConnection: TE\r\nTE: trailers\r\n",
];

/// Names that no parser may read as another; a request with one is refused as a whole.
const MALFORMED: [&str; 6] = [
    "X-Auth-User : forged\r\n",
    " X-Auth-User: forged\r\n",
    "A: b\r\n X-Auth-User: forged\r\n",
    "X\u{2010}Auth\u{2010}User: forged\r\n",
    "\u{ff38}-Auth-User: forged\r\n",
    "A: b\rX-Auth-User: forged\r\n",
];

/// What an upstream's own application sees of the headers that a client forges.
async fn sees_the_gateways_word_alone(name: &str, partner: Option<Partner>) {
    let Some(partner) = partner else { return };
    let gateway = Gateway::start_at(partner.address, RULES).await;
    let bearer = format!("Authorization: Bearer {}\r\n", gateway.login("vera").await);
    let ask = async |address: SocketAddr, lines: &str| {
        let chunked = lines.contains("chunked");
        let method = if chunked { "POST" } else { "GET" };
        let body =
            if chunked { "1\r\nx\r\n0\r\nX-Auth-User: forged\r\nx_auth_role: forged\r\n\r\n" } else { "" };
        let request = format!("{method} /open/whoami HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}");
        let mut connection = Raw::connect(address).await;
        connection.send(request).await;
        connection.answer().await
    };
    // The application tells all that it sees, or this would show nothing.
    let (_, told) = ask(partner.address, FORGERIES[0]).await;
    assert!(told.contains("forged"), "{name}: {told}");
    for lines in FORGERIES {
        for (bearer, user, role) in [(bearer.as_str(), Some("vera"), Some("Viewer")), ("", None, None)] {
            let (status, told) = ask(gateway.address, &format!("{lines}{bearer}")).await;
            assert_eq!(status, 200, "{name}: {lines}: {told}");
            assert!(!told.contains("forged"), "{name}: {lines}: {told}");
            let values = |header: &str| -> std::collections::BTreeSet<&str> {
                let lines = told.lines().filter_map(|line| line.split_once(": "));
                let folded = |name: &str| name.trim_start_matches("HTTP_").replace('_', "-").to_lowercase();
                lines.filter(|(name, _)| folded(name) == header).map(|(_, value)| value.trim()).collect()
            };
            assert_eq!(values("x-auth-user"), user.into_iter().collect(), "{name}: {lines}: {told}");
            assert_eq!(values("x-auth-role"), role.into_iter().collect(), "{name}: {lines}: {told}");
            assert_eq!(values("x-auth-id").len(), usize::from(user.is_some()), "{name}: {lines}: {told}");
        }
    }
    for lines in MALFORMED {
        assert_eq!(ask(gateway.address, &format!("{lines}{bearer}")).await.0, 400, "{name}: {lines:?}");
    }
}

#[tokio::test]
async fn applications_on_nginx_and_apache_see_the_gateways_word_alone() {
    sees_the_gateways_word_alone("nginx with PHP-FPM", nginx().await).await;
    sees_the_gateways_word_alone("Apache with mod_php", apache().await).await;
}

#[tokio::test]
async fn applications_on_php_django_and_express_see_the_gateways_word_alone() {
    sees_the_gateways_word_alone("php -S", php().await).await;
    sees_the_gateways_word_alone("gunicorn with Django", django().await).await;
    sees_the_gateways_word_alone("Express", express().await).await;
}
