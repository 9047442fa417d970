//! What people see: the login page, and what a browser is told instead of a JSON refusal.
//!
//! Each answer is one HTML document with nothing to load and no script, so that it works wherever a browser
//! does, and so that its policy (CSP Level 3) can forbid everything but its own style and a form to this
//! site. All that is not ours is escaped. Not here: who gets a page and who JSON (`wire::browser`), where a
//! browser may be sent (`next`).

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};

use super::next::Next;
use crate::config::snapshot::LoginSettings;
use crate::wire::answer::Refusal;

/// The query of the login page after a logout.
const SIGNED_OUT: &str = "signed_out";

const STYLE: &str = include_str!("page.css");

/// What the login page says above its form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Notice<'a> {
    /// Nothing.
    None,
    /// That a logout has worked.
    SignedOut,
    /// Who is signed in already, by the name to log in with.
    SignedIn(&'a str),
}

/// The login page. `next` is where its form leads.
pub fn sign_in(settings: &LoginSettings, next: &Next, notice: Notice<'_>) -> Response<Bytes> {
    let notice = match notice {
        Notice::None => String::new(),
        Notice::SignedOut => "<p class=\"note\" role=\"status\">You are signed out.</p>\n".to_owned(),
        Notice::SignedIn(name) => format!(
            "<p class=\"note\" role=\"status\">You are signed in as <b>{}</b>. <a href=\"{}\">Continue</a></p>\n",
            escape(name),
            escape(next.as_str())
        ),
    };
    document(
        StatusCode::OK,
        settings,
        "",
        "Sign in",
        &format!("{notice}{}", form(settings, next, None, false)),
    )
}

/// The login page once more, after an attempt that failed: with the status and the headers of `answer`,
/// the JSON that would tell of `refusal`, and what happened in words. `username` stands in the form again.
pub fn try_again(
    settings: &LoginSettings,
    next: &Next,
    username: Option<&str>,
    refusal: &Refusal,
    answer: &Response<Bytes>,
) -> Response<Bytes> {
    let main = format!(
        "<p class=\"problem\" id=\"problem\" role=\"alert\">{}</p>\n{}",
        escape(&in_other_words(refusal, answer)),
        form(settings, next, username, true)
    );
    with_headers_of(answer, document(answer.status(), settings, "Problem: ", "Sign in", &main))
}

/// A page that says what `answer` would, with what its headers say, `Retry-After` for example.
fn with_headers_of(answer: &Response<Bytes>, mut page: Response<Bytes>) -> Response<Bytes> {
    for (name, value) in answer.headers().iter().filter(|(name, _)| *name != CONTENT_TYPE) {
        page.headers_mut().insert(name.clone(), value.clone());
    }
    page
}

/// For people, what `Refusal::message` is for programs.
fn in_other_words(refusal: &Refusal, answer: &Response<Bytes>) -> String {
    if *refusal == Refusal::LoginWithoutHttps {
        return "You cannot sign in here, because this page came without encryption. \
                Open it with https:// at the beginning of its address."
            .to_owned();
    }
    let text = match answer.status() {
        StatusCode::UNAUTHORIZED => "The user name or the password is not right.",
        StatusCode::TOO_MANY_REQUESTS => {
            let seconds =
                answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let wait = seconds.map_or("a while".to_owned(), in_words);
            return format!("There were too many failed attempts to sign in. Try again in {wait}.");
        }
        StatusCode::FORBIDDEN => "That came from another site. If it was you, sign in here.",
        StatusCode::SERVICE_UNAVAILABLE => "Too many people are signing in at once. Try again in a moment.",
        StatusCode::BAD_REQUEST => "Fill in your user name and your password.",
        _ => "Signing in does not work at the moment. Try again later.",
    };
    text.to_owned()
}

/// Sends a browser on after its logout: to `next`, else to the login page, which says that it has worked.
/// The cookie is for the caller to clear.
pub fn signed_out(settings: &LoginSettings, next: &Next) -> Response<Bytes> {
    match settings.page {
        Some(_) if *next == Next::default() => see_other(&format!("{}?{SIGNED_OUT}", settings.path)),
        _ => see_other(next.as_str()),
    }
}

/// Whether the login page is shown after a logout.
pub fn is_signed_out(query: Option<&str>) -> bool {
    query == Some(SIGNED_OUT)
}

/// What a person sees whose logout failed, and a way to try again: `query` is what it was sent with.
pub fn still_signed_in(
    settings: &LoginSettings,
    query: Option<&str>,
    refusal: &Refusal,
    answer: &Response<Bytes>,
) -> Response<Bytes> {
    let why = match refusal {
        Refusal::CrossSite => "That came from another site. If you want to sign out, do it here.",
        _ => "You are still signed in: signing out does not work at the moment.",
    };
    let target = settings.logout.as_deref().unwrap_or_default();
    let main = format!(
        "<p class=\"problem\" role=\"alert\">{why}</p>\n\
         <form method=\"post\" action=\"{}{}\">\n<button type=\"submit\" autofocus>Sign out</button>\n</form>\n",
        escape(target),
        escape(&query.map_or(String::new(), |query| format!("?{query}"))),
    );
    with_headers_of(answer, document(answer.status(), settings, "Problem: ", "Sign out", &main))
}

/// What a signed-in person sees where the rules ask for more than their role.
pub fn denied(settings: &LoginSettings, here: &Next, username: &str) -> Response<Bytes> {
    let sign_out = settings.logout.as_deref().map_or(String::new(), |logout| {
        format!(
            "<form method=\"post\" action=\"{}\">\n<button type=\"submit\">Sign out</button>\n</form>\n",
            escape(logout)
        )
    });
    let main = format!(
        "<p>You are signed in as <b>{}</b>, and this page is for people with other rights.</p>\n\
         <p class=\"ways\"><a href=\"/\">Go to the start page</a>\n\
         <a href=\"{}\">Sign in as somebody else</a></p>\n{sign_out}",
        escape(username),
        escape(&here.after(&settings.path))
    );
    document(StatusCode::FORBIDDEN, settings, "", "No access", &main)
}

/// Sends a browser to the login page, to come back to `next` from there.
pub fn go_and_sign_in(settings: &LoginSettings, next: &Next) -> Response<Bytes> {
    see_other(&next.after(&settings.path))
}

/// Sends a browser on after its login, with the cookie that `answer` has set.
pub fn signed_in(next: &Next, answer: &Response<Bytes>) -> Response<Bytes> {
    let mut response = see_other(next.as_str());
    for cookie in answer.headers().get_all(SET_COOKIE) {
        response.headers_mut().append(SET_COOKIE, cookie.clone());
    }
    response
}

/// 303: whatever came, what follows is a GET (RFC 9110 §15.4.4).
fn see_other(location: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::try_from(location).expect("a checked path is visible ASCII"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn form(settings: &LoginSettings, next: &Next, username: Option<&str>, failed: bool) -> String {
    // What a text field cannot show is nothing that somebody typed.
    let username = username.filter(|name| !name.chars().any(char::is_control)).unwrap_or_default();
    let described = if failed { " aria-describedby=\"problem\" aria-invalid=\"true\"" } else { "" };
    // Whoever has typed the name already goes on with the password.
    let (in_name, in_password) = if username.is_empty() { (" autofocus", "") } else { ("", " autofocus") };
    format!(
        "<form method=\"post\" action=\"{action}\">\n\
         <label for=\"username\">User name</label>\n\
         <input id=\"username\" name=\"{username_field}\" value=\"{username}\" autocomplete=\"username\" \
         autocapitalize=\"none\" autocorrect=\"off\" spellcheck=\"false\" required{described}{in_name}>\n\
         <label for=\"password\">Password</label>\n\
         <input id=\"password\" name=\"{password_field}\" type=\"password\" autocomplete=\"current-password\" \
         required{described}{in_password}>\n\
         <button type=\"submit\">Sign in</button>\n\
         </form>\n",
        action = escape(&next.after(&settings.path)),
        username_field = escape(&settings.username_field),
        password_field = escape(&settings.password_field),
        username = escape(username),
    )
}

/// `main` is HTML, the rest text. `prefix`: what a screen reader says first, with the window's title.
fn document(
    status: StatusCode,
    settings: &LoginSettings,
    prefix: &str,
    heading: &str,
    main: &str,
) -> Response<Bytes> {
    let site = settings.page.as_ref().and_then(|page| page.title.as_deref()).map(escape);
    let title = site.as_ref().map_or(heading.to_owned(), |site| format!("{heading} · {site}"));
    let site = site.map_or(String::new(), |site| format!("<p class=\"site\">{site}</p>\n"));
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"robots\" content=\"noindex\">\n\
         <title>{prefix}{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         {site}<h1>{heading}</h1>\n{main}</main>\n</body>\n</html>\n"
    );
    let mut response = Response::new(Bytes::from(html));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, content_security_policy());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // Not `no-referrer`: the form's `Origin` would be `null`, which no login is taken from.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// Nothing is loaded, run, framed or sent elsewhere; the one style is known by its hash.
fn content_security_policy() -> HeaderValue {
    static POLICY: OnceLock<HeaderValue> = OnceLock::new();
    let policy = POLICY.get_or_init(|| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, STYLE.as_bytes());
        let hash = STANDARD.encode(digest.as_ref());
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; frame-ancestors 'none'; \
             base-uri 'none'"
        );
        HeaderValue::try_from(policy).expect("base64 is visible ASCII")
    });
    policy.clone()
}

/// For text and for attributes in double quotes (HTML §13.3).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// A wait as people say it, never shorter than it is.
fn in_words(seconds: u64) -> String {
    let (amount, unit) = match seconds {
        0..=89 => (seconds.max(1), "second"),
        90..=5_399 => (seconds.div_ceil(60), "minute"),
        _ => (seconds.div_ceil(3_600), "hour"),
    };
    format!("{amount} {unit}{}", if amount == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::snapshot::Page;
    use crate::config::template::Template;
    use crate::wire::answer::WrongCredentials;

    fn settings() -> LoginSettings {
        LoginSettings {
            username_field: "log\"in".into(),
            password_field: "pwd".into(),
            response: Template::new(serde_json::Value::Null),
            path: "/auth/login".into(),
            cookie: None,
            page: Some(Page { title: Some("News & <Views>".into()) }),
            logout: Some("/auth/logout".into()),
            origins: Vec::new(),
            max_failures: 5,
            max_failures_per_address: 50,
            rotate_grace: std::time::Duration::ZERO,
        }
    }

    /// Where the status alone decides about the words.
    const WRONG: Refusal = Refusal::WrongCredentials(WrongCredentials::WrongPassword);

    fn text(response: &Response<Bytes>) -> &str {
        std::str::from_utf8(response.body()).unwrap()
    }

    fn refused(status: u16, retry_after: Option<&'static str>) -> Response<Bytes> {
        let mut response = Response::builder().status(status).body(Bytes::new()).unwrap();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }

    #[test]
    fn nothing_of_anybodys_becomes_markup() {
        let next = Next::in_query(Some("next=/a%3Fb%3D%22%3E%3Cscript%3E"));
        let evil = "\"><script>alert(1)</script>&'";
        for response in [
            sign_in(&settings(), &next, Notice::SignedIn(evil)),
            try_again(&settings(), &next, Some(evil), &WRONG, &refused(401, None)),
            denied(&settings(), &next, evil),
        ] {
            let page = text(&response);
            assert!(!page.contains("<script") && !page.contains("<Views>"), "{page}");
            assert!(page.contains("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#39;"), "{page}");
            assert!(page.contains("News &amp; &lt;Views&gt;"), "{page}");
        }
        assert!(text(&sign_in(&settings(), &next, Notice::None)).contains("name=\"log&quot;in\""));
    }

    #[test]
    fn a_failure_is_said_in_words_and_tied_to_the_fields() {
        for (status, retry_after, words) in [
            (401, None, "The user name or the password is not right."),
            (429, Some("1"), "Try again in 1 second."),
            (429, Some("60"), "Try again in 60 seconds."),
            (429, Some("241"), "Try again in 5 minutes."),
            (429, Some("7201"), "Try again in 3 hours."),
            (429, None, "Try again in a while."),
            (400, None, "Fill in your user name and your password."),
            (403, None, "That came from another site."),
            (500, None, "Signing in does not work at the moment."),
            (503, Some("1"), "Try again in a moment."),
        ] {
            let response =
                try_again(&settings(), &Next::default(), Some("vera"), &WRONG, &refused(status, retry_after));
            assert_eq!(response.status(), status);
            assert_eq!(response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap()), retry_after);
            let page = text(&response);
            assert!(page.contains("role=\"alert\"") && page.contains(words), "{page}");
            assert_eq!(page.matches("aria-describedby=\"problem\"").count(), 2);
            assert!(
                page.contains("value=\"vera\"")
                    && page
                        .contains("required aria-describedby=\"problem\" aria-invalid=\"true\" autofocus>")
            );
        }
        let page = try_again(&settings(), &Next::default(), Some("ve\0ra"), &WRONG, &refused(401, None));
        assert!(text(&page).contains("value=\"\""), "nobody typed that");
    }

    #[test]
    fn every_page_forbids_what_it_does_not_need() {
        let plain = Refusal::LoginWithoutHttps;
        let answer = plain.response(&settings().response, "");
        for response in [
            sign_in(&settings(), &Next::default(), Notice::SignedOut),
            try_again(&settings(), &Next::default(), None, &plain, &answer),
            denied(&settings(), &Next::default(), "vera"),
        ] {
            let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
            for part in [
                "default-src 'none'",
                "style-src 'sha256-",
                "form-action 'self'",
                "frame-ancestors 'none'",
                "base-uri 'none'",
            ] {
                assert!(policy.contains(part), "{policy}");
            }
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
            assert_eq!(response.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
            let page = text(&response);
            for never in ["<script", "src=", "url(", "@import", "http://", "style=\"", "onclick"] {
                assert!(!page.contains(never), "{never}");
            }
        }
    }

    #[test]
    fn a_logout_that_failed_says_so_and_offers_another_try() {
        for (refusal, status, words) in [
            (Refusal::SessionStore, 503, "You are still signed in"),
            (Refusal::CrossSite, 403, "That came from another site."),
        ] {
            let answer = refusal.response(&settings().response, "");
            let response = still_signed_in(&settings(), Some("all&x=\"><b>"), &refusal, &answer);
            assert_eq!(response.status(), status);
            assert_eq!(response.headers().get(RETRY_AFTER), answer.headers().get(RETRY_AFTER));
            let page = text(&response);
            assert!(page.contains(words) && page.contains("role=\"alert\""), "{page}");
            assert!(page.contains("action=\"/auth/logout?all&amp;x=&quot;&gt;&lt;b&gt;\""), "{page}");
        }
    }

    #[test]
    fn a_browser_is_sent_on_with_its_cookie_and_nothing_else() {
        let mut answer = Response::new(Bytes::from("{\"token\":\"t\"}"));
        answer.headers_mut().append(SET_COOKIE, HeaderValue::from_static("a=b"));
        let next = Next::in_query(Some("next=/a%3Fb"));
        let response = signed_in(&next, &answer);
        assert_eq!(response.status(), 303);
        assert_eq!(response.headers()[LOCATION], "/a?b");
        assert_eq!(response.headers()[SET_COOKIE], "a=b");
        assert!(response.body().is_empty());
        assert_eq!(go_and_sign_in(&settings(), &next).headers()[LOCATION], "/auth/login?next=/a%3Fb");
    }
}
