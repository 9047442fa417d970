//! A real WordPress behind the gateway: the preset, the must-use plugin, and every way round them that is known.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::harness::partners::Partner;
use crate::harness::{Answer, Call, Gateway};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Lowest to highest; each is the name of a user, too.
const ROLES: [&str; 5] = ["subscriber", "contributor", "author", "editor", "administrator"];

/// The lowest role that WordPress itself lets see a page of its dashboard.
const PAGES: [(&str, &str); 10] = [
    ("/wp-admin/index.php", "subscriber"),
    ("/wp-admin/profile.php", "subscriber"),
    ("/wp-admin/edit.php", "contributor"),
    ("/wp-admin/post-new.php", "contributor"),
    ("/wp-admin/edit-comments.php", "contributor"),
    ("/wp-admin/upload.php", "author"),
    ("/wp-admin/edit.php?post_type=page", "editor"),
    ("/wp-admin/users.php", "administrator"),
    ("/wp-admin/plugins.php", "administrator"),
    ("/wp-admin/options-general.php", "administrator"),
];

/// WordPress, and the gateway in front of it.
struct Site {
    wordpress: Partner,
    gateway: Gateway,
}

impl Site {
    /// `identity` is that of the file; `None`: WordPress cannot run here, and that has been told.
    async fn start(identity: &str, environment: &[(&str, &str)]) -> Option<Site> {
        // WordPress has to know the gateway's address, and the gateway WordPress's.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{address}");
        let mut all = vec![("PUBLIC_URL", url.as_str())];
        all.extend(environment);
        let (wordpress, database) = Partner::wordpress(&all).await?;
        let file = format!(
            "listen: {address}\npreset: wordpress\nroles: [{}]\nlogin: {{ cookie: {{ secure: false }} }}\n\
             users: mysql://gateway:gateway@{database}/wp\n{identity}",
            ROLES.join(", ")
        );
        // No users of the gateway's own are made where there is a folder for them already.
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let gateway = Gateway::start_in(folder, wordpress.address, &file).await;
        Some(Site { wordpress, gateway })
    }

    async fn with_secret() -> Option<Site> {
        let identity = format!("identity: {{ secret: {{ value: {SECRET} }} }}");
        Self::start(&identity, &[("GATEWAY_SECRET", SECRET)]).await
    }

    /// The cookie of somebody who has filled in the gateway's login page with the WordPress password.
    async fn sign_in(&self, user: &str) -> String {
        let answer = self.attempt(user, &format!("password of {user}")).await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (303, Some("/wp-admin/")),
            "{}",
            answer.text()
        );
        answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
    }

    /// What the login page's form leads to.
    async fn attempt(&self, user: &str, password: &str) -> Answer {
        let call = self.gateway.post("/auth/login?next=/wp-admin/");
        call.header("content-type", "application/x-www-form-urlencoded")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-site", "same-origin")
            .body(format!("username={user}&password={}", password.replace(' ', "+")))
            .send()
            .await
    }

    /// A request as a browser on a page of the site makes it.
    fn browser(&self, method: &str, target: &str, cookie: &str) -> Call {
        let call = self.gateway.request(method, target);
        call.header("cookie", cookie).header("sec-fetch-site", "same-origin")
    }

    /// The status of a page of WordPress's for a user, asked past the gateway with its secret.
    async fn asked_directly(&self, target: &str, user: &str) -> u16 {
        let call = Call::new(self.wordpress.address, "GET", target);
        call.header("x-gateway-secret", SECRET).header("x-auth-user", user).send().await.status
    }

    /// Whether WordPress was asked for anything with `marker` in its target.
    fn was_asked(&self, marker: &str) -> bool {
        self.wordpress.log().lines().any(|line| line.contains(marker))
    }
}

/// A target with a parameter by which it is found in a log.
fn marked(target: &str, marker: &str) -> String {
    format!("{target}{}{marker}=1", if target.contains('?') { '&' } else { '?' })
}

/// The value of a field or script variable on a page, by what stands before it.
fn behind<'p>(page: &'p str, before: &str) -> &'p str {
    let start = page.find(before).unwrap_or_else(|| panic!("no {before} in {page}")) + before.len();
    page[start..].split(['"', '\'']).next().unwrap()
}

#[tokio::test]
async fn wordpress_is_asked_only_for_what_the_role_may_see() {
    let Some(site) = Site::with_secret().await else { return };
    let mut cells = 0;
    for (rank, role) in ROLES.iter().enumerate() {
        let cookie = site.sign_in(role).await;
        for (page, lowest) in PAGES {
            let needed = ROLES.iter().position(|one| *one == lowest).unwrap();
            let expected = if rank >= needed { 200 } else { 403 };
            let marker = format!("cell{cells}");
            cells += 1;
            let answer = site.browser("GET", &marked(page, &marker), &cookie).send().await;
            assert_eq!(answer.status, expected, "{role} {page}: {}", answer.text());
            // The table is WordPress's own, and what it would refuse it is not even asked for.
            assert_eq!(site.asked_directly(page, role).await, expected, "WordPress: {role} {page}");
            if expected == 403 {
                assert_eq!(answer.json()["error"], "Access denied");
                assert!(!site.was_asked(&marker), "{role} {page}");
            } else {
                assert!(answer.text().contains("</html>") && site.was_asked(&marker), "{role} {page}");
            }
        }
    }
    assert_eq!(cells, 50);
}

#[tokio::test]
async fn people_sign_in_at_the_gateway_and_work_in_wordpress() {
    let Some(site) = Site::with_secret().await else { return };
    for role in ROLES {
        let cookie = site.sign_in(role).await;
        let page = site.browser("GET", "/wp-admin/", &cookie).send().await.text();
        let shown =
            if role == "administrator" { role.to_owned() } else { role[..1].to_uppercase() + &role[1..] };
        assert!(page.contains(&format!("Howdy, <span class=\"display-name\">{shown}<")), "{role}");
    }
    // The names and passwords are WordPress's, and so is who has none of its roles.
    let told = String::from_utf8(site.gateway.run(&["check", "--network"], "").stdout).unwrap();
    assert!(told.contains("\nok      users in mysql://gateway@"), "{told}");
    for (user, password) in [
        ("editor", "password of author"),
        ("nobody", "password of nobody"),
        ("unknown", "password of unknown"),
        ("editor@example.com", "password of editor"),
    ] {
        let answer = site.attempt(user, password).await;
        assert_eq!((answer.status, answer.headers.get("set-cookie")), (401, None), "{user}");
    }
    let author = site.sign_in("author").await;

    // An image, by the form of the media library.
    let page = site.browser("GET", "/wp-admin/media-new.php", &author).send().await.text();
    let nonce = behind(&page, "\"_wpnonce\":\"").to_owned();
    let image: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89\0\0\0\rIDATx\x9cc\xf8\xcf\xc0\xf0\x1f\0\x05\0\x01\xff\x89\x99=\x1d\0\0\0\0IEND\xaeB`\x82";
    let part = |name: &str, value: &str| {
        format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let mut form = part("action", "upload-attachment") + &part("_wpnonce", &nonce) + &part("name", "dot.png");
    form.push_str("--edge\r\nContent-Disposition: form-data; name=\"async-upload\"; filename=\"dot.png\"\r\nContent-Type: image/png\r\n\r\n");
    let body = [form.as_bytes(), image, b"\r\n--edge--\r\n"].concat();
    let upload = |cookie: &str| {
        site.browser("POST", "/wp-admin/async-upload.php", cookie)
            .header("content-type", "multipart/form-data; boundary=edge")
            .body(body.clone())
    };
    let answer: Value = upload(&author).send().await.json();
    assert_eq!(
        (&answer["success"], &answer["data"]["authorName"]),
        (&json!(true), &json!("Author")),
        "{answer}"
    );
    let path =
        answer["data"]["url"].as_str().unwrap().replace(&format!("http://{}", site.gateway.address), "");
    let public = site.gateway.get(&path).send().await;
    assert_eq!((public.status, &public.body[..]), (200, image), "{path}");
    let subscriber = site.sign_in("subscriber").await;
    assert_eq!(upload(&subscriber).send().await.status, 403);
    let foreign = site.gateway.request("POST", "/wp-admin/async-upload.php").header("cookie", &author);
    assert_eq!(foreign.header("sec-fetch-site", "cross-site").send().await.status, 403);

    // A post, as the editor of blocks and programs publish it.
    let post =
        json!({ "title": "Written behind the gateway", "content": "<p>Hello</p>", "status": "publish" });
    let published = site.browser("POST", "/wp-json/wp/v2/posts", &author).json(&post).send().await;
    assert_eq!(published.status, 201, "{}", published.text());
    let published = published.json();
    let path = published["link"].as_str().unwrap().replace(&format!("http://{}", site.gateway.address), "");
    let page = site.gateway.get(&path).send().await;
    assert!(page.status == 200 && page.text().contains("Written behind the gateway"), "{path}");
    assert!(!page.text().contains("Howdy"), "whoever is not signed in reads it as nobody");
    // What the gateway lets a contributor try, WordPress decides.
    let contributor = site.sign_in("contributor").await;
    let refused = site.browser("POST", "/wp-json/wp/v2/posts", &contributor).json(&post).send().await;
    assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("rest_cannot_publish")));
    let id = &published["id"];
    let edit =
        site.browser("GET", &format!("/wp-admin/post.php?post={id}&action=edit"), &author).send().await;
    assert!(edit.status == 200 && edit.text().contains("Written behind the gateway"));

    // WordPress's own link ends the gateway's session.
    let page = site.browser("GET", "/wp-admin/", &author).send().await.text();
    let link = behind(&page[page.find("wp-admin-bar-logout").unwrap()..], "href=\"")
        .replace("&amp;", "&")
        .replace("&#038;", "&");
    let link = link.replace(&format!("http://{}", site.gateway.address), "");
    let form = site.browser("GET", &link, &author).send().await;
    assert!(form.status == 200 && form.text().contains("action=\"/auth/logout\""), "{link}: {}", form.text());
    let ended = site.browser("POST", "/auth/logout", &author).header("sec-fetch-mode", "navigate");
    let ended = ended.header("content-type", "application/x-www-form-urlencoded").send().await;
    assert!(ended.status == 303 || ended.status == 204, "{}", ended.status);
    assert_eq!(site.browser("GET", "/wp-admin/", &author).send().await.status, 401);
}

#[tokio::test]
async fn the_public_site_works_for_everybody_and_knows_nobody() {
    let Some(site) = Site::with_secret().await else { return };
    for target in [
        "/",
        "/hello-world/",
        "/feed/",
        "/wp-json/wp/v2/posts",
        "/?s=hello",
        "/wp-includes/js/jquery/jquery.min.js",
        "/wp-admin/css/common.css",
    ] {
        let answer = site.gateway.get(target).send().await;
        assert_eq!(answer.status, 200, "{target}");
        for forged in ["x-auth-user", "x_auth_user", "X.Auth.User"] {
            let call = site.gateway.get(target).header(forged, "administrator");
            let answer = call.header("x-gateway-secret", SECRET).send().await;
            assert!(answer.status == 200 && !answer.text().contains("Howdy"), "{forged} {target}");
        }
    }
    let comment = site
        .gateway
        .post("/wp-comments-post.php")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(
            "comment=Good+morning&author=Guest&email=guest%40example.com&comment_post_ID=1&comment_parent=0",
        )
        .send()
        .await;
    assert_eq!(comment.status, 302, "{}", comment.text());
    // Two pages of the dashboard serve the site; `0` is WordPress's answer to no action.
    let ajax = site.gateway.post("/wp-admin/admin-ajax.php").send().await;
    assert_eq!((ajax.status, ajax.text().as_str()), (400, "0"));
    assert_eq!(site.gateway.get("/wp-admin/admin-post.php").send().await.status, 200);
    // Who asks for the dashboard as a browser does is sent to sign in.
    let asked = site.gateway.get("/wp-admin/").header("accept", "text/html").send().await;
    assert_eq!((asked.status, asked.header("location")), (303, Some("/auth/login?next=/wp-admin/")));
}

/// Ways to get past a rule: the request, and a role that must not.
const WAYS_ROUND: &[(&str, &str, &str)] = &[
    // Who has an account here.
    ("", "GET", "/wp-json/wp/v2/users"),
    ("", "GET", "/wp-json/wp/v2/users/1"),
    ("", "GET", "/WP-JSON/wp/v2/users"),
    ("", "GET", "//wp-json//wp/v2/users"),
    ("", "GET", "/wp-json/wp/v2/%75sers"),
    ("", "GET", "/wp-json/wp/v2/%2575sers"),
    ("", "GET", "/index.php/wp-json/wp/v2/users"),
    ("", "GET", "/?rest_route=/wp/v2/users"),
    ("", "GET", "/index.php?rest_route=/wp/v2/users"),
    ("", "GET", "/hello-world/?rest_route=/wp/v2/users/1"),
    ("", "GET", "/?rest_route=%2Fwp%2Fv2%2Fusers"),
    ("", "GET", "/?rest.route=/wp/v2/users"),
    ("", "GET", "/?rest[route=/wp/v2/users"),
    ("", "GET", "/?a=1&&rest_route=/WP/v2/Users"),
    ("", "GET", "/?rest_route=/wp/v2/posts&rest_route=/wp/v2/users"),
    ("subscriber", "GET", "/?rest_route=/wp/v2/users"),
    ("", "GET", "/?author=1"),
    ("", "GET", "/index.php?author=1"),
    ("subscriber", "GET", "/?author=1"),
    ("", "GET", "/?author_name=administrator"),
    ("subscriber", "GET", "/hello-world/?author_name=administrator"),
    ("", "GET", "/wp-sitemap-users-1.xml"),
    ("", "GET", "/?sitemap=users"),
    // The REST API.
    ("", "POST", "/wp-json/wp/v2/posts"),
    ("", "POST", "/?rest_route=/wp/v2/posts"),
    ("administrator", "POST", "/?rest_route=/wp/v2/posts"),
    ("subscriber", "POST", "/wp-json/wp/v2/posts/1?_method=DELETE"),
    ("subscriber", "GET", "/wp-json/wp/v2/posts/1?_method=DELETE"),
    ("contributor", "POST", "/wp-json/wp/v2/pages"),
    ("author", "POST", "/wp-json/wp/v2/posts?rest_route=/wp/v2/pages"),
    ("editor", "POST", "/wp-json/wp/v2/posts?rest_route=/wp/v2/users"),
    ("editor", "POST", "/wp-json/wp/v2/users"),
    ("editor", "GET", "/wp-json/wp/v2/settings"),
    ("editor", "GET", "/?rest_route=/wp/v2/settings"),
    ("editor", "POST", "/wp-json/batch/v1"),
    ("editor", "POST", "/wp-json/wp/v2/posts?rest_route=/batch/v1"),
    ("editor", "GET", "/wp-json/wp/v2/plugins"),
    // Passwords past the gateway.
    ("", "POST", "/xmlrpc.php"),
    ("administrator", "POST", "/xmlrpc.php"),
    ("", "GET", "/xmlrpc.php?rsd"),
    ("", "POST", "/XMLRPC.php"),
    ("", "POST", "/xmlrpc.php/x"),
    ("", "POST", "/wp-login.php"),
    ("administrator", "POST", "/wp-login.php"),
    ("", "POST", "/wp-login.php?action=lostpassword"),
    ("", "POST", "/wp-login.php?action=register"),
    ("administrator", "GET", "/wp-admin/authorize-application.php"),
    ("administrator", "POST", "/wp-json/wp/v2/users/me/application-passwords"),
    ("administrator", "GET", "/wp-json/wp/v2/users/1/application-passwords"),
    // Installation, maintenance, files.
    ("", "GET", "/wp-cron.php"),
    ("", "GET", "/wp-admin/install.php?step=2"),
    ("", "GET", "/wp-admin/upgrade.php?step=1"),
    ("", "GET", "/wp-admin/maint/repair.php"),
    ("", "GET", "/wp-admin/setup-config.php"),
    ("", "GET", "/wp-signup.php"),
    ("administrator", "GET", "/wp-config.php"),
    ("administrator", "GET", "/wp-admin/includes/file.php"),
    ("", "GET", "/wp-content/debug.log"),
    // The dashboard in other words.
    ("editor", "GET", "/wp-admin/users.php"),
    ("editor", "GET", "/wp-admin//users.php"),
    ("editor", "GET", "//wp-admin/users.php"),
    ("editor", "GET", "/WP-ADMIN/USERS.php"),
    ("editor", "GET", "/wp-admin/users.php/profile.php"),
    ("editor", "GET", "/wp-admin/%75sers.php"),
    ("editor", "GET", "/wp-admin/./users.php"),
    ("editor", "GET", "/wp-admin/css/../users.php"),
    ("editor", "GET", "/wp-admin/css/%2e%2e/users.php"),
    ("editor", "GET", "/wp-admin/css;/../users.php"),
    ("editor", "GET", "/wp-admin/users.php%00"),
    ("editor", "GET", "/wp-admin/users.php%20"),
    ("editor", "GET", "/wp-admin\\users.php"),
    ("editor", "GET", "/wp-admin%2fusers.php"),
    ("editor", "GET", "/index.php/wp-admin/users.php"),
    ("editor", "GET", "/wp-admin/network/users.php"),
    ("editor", "GET", "/wp-admin/admin.php?page=any"),
    ("author", "GET", "/wp-admin/edit.php?POST_TYPE=page&post_type=page"),
    ("author", "GET", "/wp-admin/edit.php?post_type[]=page"),
    ("author", "GET", "/wp-admin/edit.php?post.type=page"),
    ("author", "GET", "/wp-admin/post-new.php?post_type=page"),
    ("author", "GET", "/wp-admin/edit-tags.php?taxonomy=category"),
];

#[tokio::test]
async fn no_way_round_a_rule_reaches_wordpress() {
    let Some(site) = Site::with_secret().await else { return };
    let mut cookies = std::collections::HashMap::new();
    for role in ROLES {
        cookies.insert(role, site.sign_in(role).await);
    }
    for (number, (role, method, target)) in WAYS_ROUND.iter().enumerate() {
        let marker = format!("way{number}");
        let target = marked(target, &marker);
        // Byte for byte: an HTTP library would tidy some of them up.
        let cookie = cookies.get(role).map_or(String::new(), |cookie| format!("Cookie: {cookie}\r\n"));
        let told = site
            .gateway
            .raw(
                format!(
                    "{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nSec-Fetch-Site: same-origin\r\n\
                     {cookie}X-Auth-User: administrator\r\nX_Auth_User: administrator\r\nContent-Length: 0\r\n\r\n",
                    site.gateway.address
                )
                .as_bytes(),
            )
            .await;
        let status = crate::harness::status_of(&told);
        assert!(matches!(status, 400 | 401 | 403), "{role} {method} {target}: {told}");
        assert!(!site.was_asked(&marker), "{role} {method} {target}");
    }
}

#[tokio::test]
async fn what_the_gateway_cannot_see_the_plugin_refuses() {
    let Some(site) = Site::with_secret().await else { return };
    let form = |call: Call, body: &str| {
        call.header("content-type", "application/x-www-form-urlencoded").body(body.to_owned())
    };
    // The route of the REST API in a body, before which path and query count for nothing.
    let administrator = site.sign_in("administrator").await;
    for target in ["/wp-json/wp/v2/posts", "/wp-json/", "/wp-comments-post.php"] {
        let call = site.browser("POST", target, &administrator);
        let answer =
            form(call, "rest_route=/wp/v2/users&username=x&password=x&email=x%40example.com").send().await;
        assert_eq!(answer.status, 400, "{target}");
    }
    // Past the gateway, nobody is anybody, and no password opens anything.
    let direct = |method: &str, target: &str| Call::new(site.wordpress.address, method, target);
    for (secret, user, status) in [
        (SECRET, "administrator", 200),
        (SECRET, "Administrator", 403),
        (SECRET, "unknown", 403),
        ("", "administrator", 302),
        ("0123456789abcdef0123456789abcde", "administrator", 302),
        ("0123456789abcdef0123456789abcdef0", "administrator", 302),
    ] {
        let call = direct("GET", "/wp-admin/").header("x-gateway-secret", secret).header("x-auth-user", user);
        assert_eq!(call.send().await.status, status, "{user} by '{secret}'");
    }
    assert_eq!(direct("GET", "/wp-admin/").header("x-auth-user", "administrator").send().await.status, 302);
    let login =
        form(direct("POST", "/wp-login.php"), "log=administrator&pwd=password+of+administrator").send().await;
    let cookies: Vec<_> =
        login.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect();
    assert!(login.status == 302 && !cookies.concat().contains("logged_in"), "{} {cookies:?}", login.status);
    let call = "<?xml version=\"1.0\"?><methodCall><methodName>wp.getUsersBlogs</methodName><params>\
                <param><value>administrator</value></param><param><value>password of administrator</value></param>\
                </params></methodCall>";
    let xmlrpc = direct("POST", "/xmlrpc.php").header("content-type", "text/xml").body(call).send().await;
    assert!(xmlrpc.text().contains("<fault>"), "{}", xmlrpc.text());
    let passwords = site.browser("GET", "/?rest_route=/wp/v2/users/1/application-passwords", &administrator);
    let answer: Answer = passwords.send().await;
    assert_eq!(answer.json()["code"], "application_passwords_disabled", "{}", answer.text());
}

#[tokio::test]
async fn wordpress_believes_a_signed_assertion_without_a_secret() {
    let keys = tempfile::tempdir().unwrap();
    let jwks = keys.path().join("jwks.json");
    let environment = [("PORTCULLIS_JWKS", jwks.to_str().unwrap()), ("PORTCULLIS_AUDIENCE", "wordpress")];
    let identity =
        "identity: { secret: false, assertion: { header: X-Auth-Assertion, audience: wordpress } }";
    let Some(site) = Site::start(identity, &environment).await else { return };
    let cookie = site.sign_in("editor").await;
    // Without the keys, nobody is believed.
    assert_eq!(site.browser("GET", "/wp-admin/", &cookie).send().await.status, 302);
    std::fs::write(&jwks, site.gateway.run(&["keys", "jwks"], "").stdout).unwrap();
    let page = site.browser("GET", "/wp-admin/", &cookie).send().await;
    assert!(page.status == 200 && page.text().contains("Editor"), "{}", page.status);
    for (name, value) in
        [("x-auth-user", "administrator"), ("x-auth-assertion", "a.b.c"), ("x-gateway-secret", "")]
    {
        let call = Call::new(site.wordpress.address, "GET", "/wp-admin/").header(name, value);
        assert_eq!(call.send().await.status, 302, "{name}");
    }
}
