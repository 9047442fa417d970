//! People with a browser: sign in, work, are refused, sign out. In a real one.

use bytes::Bytes;
use http::{HeaderValue, Response};
use http_body_util::Full;
use serde_json::json;

use crate::harness::browser::Browser;
use crate::harness::{Gateway, PASSWORD, Seen, Upstream};

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

const CONFIG: &str = "rules:\n  \
    - { path: /, allow: public }\n  \
    - { path: /desk/*, allow: Viewer }\n  \
    - { path: /schema/*, allow: SuperAdmin }\n\
    login: { cookie: true, page: { title: Example News } }";

/// A CMS of one kind of page, which says who looks at it and holds a form.
fn cms(seen: &Seen) -> Response<Full<Bytes>> {
    let who = seen.header("x-auth-user").unwrap_or("nobody");
    let page = format!(
        "<!doctype html><html lang=en><title>CMS</title><h1>Desk</h1><p>Hello {who}, {method} {target}</p>\
         <form method=post action=/desk/save><button id=save>Save</button></form>\
         <form method=post action=/auth/logout><button id=out>Sign out</button></form>",
        method = seen.method,
        target = seen.target,
    );
    let mut response = Response::new(Full::from(page));
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

/// Another site: whatever it is asked, it is a page with a form that goes to `target` and sends itself.
async fn trap(target: String) -> Upstream {
    Upstream::answering(move |_| {
        let page = format!(
            "<!doctype html><title>Trap</title><form method=post action=\"{target}\">\
             <input name=username value=eddie><input name=password value=\"{PASSWORD}\">\
             <button id=go>Win a prize</button></form>"
        );
        let mut response = Response::new(Full::from(page));
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/html; charset=utf-8"));
        response
    })
    .await
}

/// Fills in the login page that is open and sends it.
async fn sign_in(browser: &Browser, username: &str, password: &str) {
    let name = browser.find("input[autocomplete=username]").await;
    browser.click(&name).await;
    browser.press(username).await;
    let field = browser.find("input[type=password]").await;
    browser.click(&field).await;
    browser.press(password).await;
    let button = browser.find("button").await;
    browser.click(&button).await;
}

#[tokio::test]
async fn people_sign_in_see_the_cms_and_are_refused_where_their_role_is_too_low() {
    let Some(browser) = Browser::start().await else { return };
    let upstream = Upstream::answering(cms).await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    let site = format!("http://{}", gateway.address);

    browser.open(&format!("{site}/desk/today?page=2&q=a%20b")).await;
    assert_eq!(browser.title().await, "Sign in · Example News");
    assert_eq!(browser.url().await, format!("{site}/auth/login?next=/desk/today%3Fpage%3D2%26q%3Da%2520b"));
    assert_eq!(upstream.count(), 0, "the CMS has seen nobody");
    browser.keep_screenshot("sign-in").await;

    sign_in(&browser, "vera", "wrong password").await;
    let alert = browser.find("[role=alert]").await;
    assert_eq!(browser.title().await, "Problem: Sign in · Example News");
    let (role, _) = browser.spoken(&alert).await;
    assert_eq!(role, "alert");
    assert!(browser.text().await.contains("The user name or the password is not right."));
    let name = browser.find("input[autocomplete=username]").await;
    assert_eq!(browser.property(&name, "value").await, "vera");
    let focused = browser.focused().await;
    assert_eq!(browser.property(&focused, "type").await, "password", "the name need not be typed again");
    browser.keep_screenshot("sign-in-failed").await;

    browser.press(PASSWORD).await;
    browser.press(ENTER).await;
    browser.arrives(&format!("{site}/desk/today?page=2&q=a%20b")).await;
    assert!(browser.text().await.contains("Hello vera, GET /desk/today?page=2&q=a%20b"));
    assert_eq!(upstream.last().header("cookie"), None, "the token stays with the gateway");
    let cookies = browser.cookies().await;
    assert_eq!(cookies.len(), 1, "{cookies:?}");
    for (key, value) in [
        ("name", json!("__Host-portcullis_token")),
        ("httpOnly", json!(true)),
        ("secure", json!(true)),
        ("sameSite", json!("Lax")),
        ("path", json!("/")),
    ] {
        assert_eq!(cookies[0][key], value);
    }
    assert_eq!(browser.run("return document.cookie").await, "", "no script can read it");

    // The CMS's own forms work, and so do its scripts.
    let save = browser.find("#save").await;
    browser.click(&save).await;
    browser.arrives(&format!("{site}/desk/save")).await;
    assert!(browser.text().await.contains("Hello vera, POST /desk/save"));
    let script = "return (await fetch('/desk/save', { method: 'DELETE' })).status";
    assert_eq!(browser.run(script).await, 200);
    // A script that may not is told so, and is not sent to a page.
    let script =
        "const a = await fetch('/schema/x'); return [a.status, a.redirected, (await a.json()).error]";
    assert_eq!(browser.run(script).await, json!([403, false, "Access denied"]));

    browser.open(&format!("{site}/schema/pages")).await;
    assert_eq!(browser.title().await, "No access · Example News");
    assert!(browser.text().await.contains("You are signed in as vera"));
    browser.keep_screenshot("no-access").await;
    let somebody_else = browser.find("main a[href^='/auth/login']").await;
    browser.click(&somebody_else).await;
    browser.arrives(&format!("{site}/auth/login?next=/schema/pages")).await;
    assert!(browser.text().await.contains("You are signed in as vera. Continue"));
    browser.keep_screenshot("signed-in-already").await;
    sign_in(&browser, "sam", PASSWORD).await;
    browser.arrives(&format!("{site}/schema/pages")).await;
    assert!(browser.text().await.contains("Hello sam, GET /schema/pages"));

    // The CMS's own button signs out, and whoever has a copy of the cookie is signed out, too.
    let mine = browser.cookies().await;
    let out = browser.find("#out").await;
    browser.click(&out).await;
    browser.arrives(&format!("{site}/auth/login?signed_out")).await;
    assert!(browser.text().await.contains("You are signed out."));
    browser.keep_screenshot("signed-out").await;
    assert_eq!(browser.cookies().await, Vec::<serde_json::Value>::new());
    let copy = format!("{}={}", mine[0]["name"].as_str().unwrap(), mine[0]["value"].as_str().unwrap());
    assert_eq!(gateway.get("/desk/x").header("cookie", &copy).send().await.status, 401);
    browser.open(&format!("{site}/")).await;
    assert!(browser.text().await.contains("Hello nobody"));
    let script = "const a = await fetch('/desk/x'); return [a.status, a.redirected, (await a.json()).error]";
    assert_eq!(browser.run(script).await, json!([401, false, "Missing Authorization header"]));
    browser.open(&format!("{site}/desk/today")).await;
    assert_eq!(browser.title().await, "Sign in · Example News");
}

#[tokio::test]
async fn no_form_of_another_site_does_anything_in_somebodys_name() {
    let Some(browser) = Browser::start().await else { return };
    let upstream = Upstream::answering(cms).await;
    // `lax` keeps the cookie back, `none` does not: then the gateway's own check stands alone.
    for same_site in ["lax", "none"] {
        let config = CONFIG.replace("cookie: true", &format!("cookie: {{ same_site: {same_site} }}"));
        let gateway = Gateway::start(&upstream, &config).await;
        let site = format!("http://{}", gateway.address);
        browser.open(&format!("{site}/auth/login?next=/desk/")).await;
        sign_in(&browser, "vera", PASSWORD).await;
        browser.arrives(&format!("{site}/desk/")).await;
        let mine = browser.cookies().await;
        upstream.forget();

        let trap_at_save = trap(format!("{site}/desk/save")).await;
        let trap_at_login = trap(format!("{site}/auth/login?next=/desk/")).await;
        // By another name, the same machine is another site; by another port, another origin of the same.
        for host in ["localhost", "127.0.0.1"] {
            browser.open(&format!("http://{host}:{}/", trap_at_save.address.port())).await;
            let go = browser.find("#go").await;
            browser.click(&go).await;
            let kept_back = same_site == "lax" && host == "localhost";
            let (url, told) = match kept_back {
                true => (format!("{site}/auth/login"), "User name"),
                false => (format!("{site}/desk/save"), "this did not come from a page of this site"),
            };
            browser.arrives(&url).await;
            assert!(browser.text().await.contains(told), "{same_site} {host}");

            // Nor is anybody made to work under another's name.
            browser.open(&format!("http://{host}:{}/", trap_at_login.address.port())).await;
            let go = browser.find("#go").await;
            browser.click(&go).await;
            browser.arrives(&format!("{site}/auth/login?next=/desk/")).await;
            assert!(browser.text().await.contains("That came from another site."), "{same_site} {host}");
        }
        browser.keep_screenshot("from-another-site").await;
        assert_eq!(upstream.count(), 0, "nothing of it reached the CMS");
        browser.open(&format!("{site}/desk/")).await;
        assert!(browser.text().await.contains("Hello vera"));
        assert_eq!(browser.cookies().await, mine);
        browser.forget_cookies().await;
    }
}

#[tokio::test]
async fn the_keyboard_alone_is_enough_and_no_script_is_needed() {
    let Some(browser) = Browser::start().await else { return };
    let upstream = Upstream::answering(cms).await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    let site = format!("http://{}", gateway.address);
    browser.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": true })).await;
    browser.open(&format!("{site}/desk/today")).await;
    // In the order of reading, each with a name that can be spoken; the first is ready to be typed in.
    let mut spoken = Vec::new();
    for step in 0..3 {
        if step > 0 {
            browser.press(TAB).await;
        }
        spoken.push(browser.spoken(&browser.focused().await).await);
    }
    let expected = [("textbox", "User name"), ("textbox", "Password"), ("button", "Sign in")];
    assert_eq!(spoken, expected.map(|(role, name)| (role.to_owned(), name.to_owned())));
    browser.open(&format!("{site}/desk/today")).await;
    browser.press(&format!("eddie{TAB}{PASSWORD}{ENTER}")).await;
    browser.arrives(&format!("{site}/desk/today")).await;
    assert!(browser.text().await.contains("Hello eddie"));
}

#[tokio::test]
async fn the_page_fits_a_phone_and_a_dark_room() {
    let Some(browser) = Browser::start().await else { return };
    let upstream = Upstream::answering(cms).await;
    let gateway = Gateway::start(&upstream, CONFIG).await;
    let site = format!("http://{}", gateway.address);
    let light = "return getComputedStyle(document.body).backgroundColor";
    let mut backgrounds = Vec::new();
    for scheme in ["light", "dark"] {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        for (device, width, height, mobile) in [("desk", 1000, 700, false), ("phone", 320, 568, true)] {
            let metrics =
                json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": mobile });
            browser.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
            browser.open(&format!("{site}/auth/login")).await;
            sign_in(&browser, "vera", "wrong password").await;
            browser.find("[role=alert]").await;
            browser.keep_screenshot(&format!("{device}-{scheme}")).await;
            // As wide as the screen and not wider, with letters that no phone enlarges by itself.
            assert_eq!(browser.run("return document.documentElement.scrollWidth").await, width, "{device}");
            let size = "return getComputedStyle(document.querySelector('input')).fontSize";
            assert_eq!(browser.run(size).await, "16px");
            backgrounds.push(browser.run(light).await);
        }
    }
    assert_ne!(backgrounds[0], backgrounds[2], "light and dark differ");
    // Text is told from what it stands on (WCAG 2.2, 1.4.3: 4.5 to 1).
    let contrast = "
        const lum = c => c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = e => {
            for (; e; e = e.parentElement) {
                const c = getComputedStyle(e).backgroundColor;
                if (c !== 'rgba(0, 0, 0, 0)') return c;
            }
        };
        return Math.min(...['.site', 'h1', '.problem', 'label', 'input', 'button'].map(s => {
            const e = document.querySelector(s);
            const [a, b] = [lum(getComputedStyle(e).color), lum(ground(e))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }))";
    for scheme in ["light", "dark"] {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        let worst = browser.run(contrast).await;
        assert!(worst.as_f64().unwrap() >= 4.5, "{scheme}: {worst}");
    }
}
