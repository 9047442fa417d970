//! What a browser says about a request: whether a person waits for a page (Fetch Metadata, W3C).
//!
//! Decides the form of an answer, a page or JSON, and never what is allowed. Not here: whether a request
//! comes from a page of this site (`csrf`).

use http::header::{ACCEPT, ORIGIN};
use http::{HeaderMap, Method};

/// `Sec-Fetch-Mode`: scripts cannot set it.
const MODE: &str = "sec-fetch-mode";

/// Whether a browser is about to show the answer to a person: `Sec-Fetch-Mode: navigate`, or without that
/// header a GET that takes HTML.
pub fn is_navigation(method: &Method, headers: &HeaderMap) -> bool {
    match headers.get(MODE) {
        Some(mode) => mode == "navigate",
        None => *method == Method::GET && takes_html(headers),
    }
}

/// The same for an endpoint of the gateway's own that forms are sent to.
pub fn is_form_navigation(headers: &HeaderMap) -> bool {
    match headers.get(MODE) {
        Some(mode) => mode == "navigate",
        None => takes_html(headers),
    }
}

/// Whether the page that a form was sent from came by plain HTTP, and not from the browser's own machine:
/// there a browser drops a secure cookie without a word (RFC 6265bis §5.7).
pub fn came_without_https(headers: &HeaderMap) -> bool {
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or_default();
    let Some(authority) = origin.strip_prefix("http://") else { return false };
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let is_local = host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    !is_local
}

/// Whether `Accept` names `text/html` (RFC 9110 §12.5.1). `*/*` does not count: scripts send it.
fn takes_html(headers: &HeaderMap) -> bool {
    let ranges =
        headers.get_all(ACCEPT).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    ranges.into_iter().any(|range| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let is_html = parts.next().is_some_and(|media| media.eq_ignore_ascii_case(b"text/html"));
        // `q=0` means: not this one.
        let refused = parts.any(|parameter| {
            let weight = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
            weight.is_some_and(|weight| weight.iter().all(|byte| matches!(byte, b'0' | b'.')))
        });
        is_html && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    const CHROMIUM: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";

    #[test]
    fn a_person_waits_for_a_page_and_a_script_for_json() {
        for (method, lines, expected) in [
            ("GET", &[("sec-fetch-mode", "navigate")][..], true),
            ("POST", &[("sec-fetch-mode", "navigate")], true),
            ("GET", &[("sec-fetch-mode", "cors"), ("accept", CHROMIUM)], false),
            ("GET", &[("sec-fetch-mode", "no-cors"), ("accept", "text/html")], false),
            ("GET", &[("accept", CHROMIUM)], true),
            ("GET", &[("accept", "application/json"), ("accept", "x/y, TEXT/HTML ; level=1")], true),
            ("POST", &[("accept", CHROMIUM)], false),
            ("GET", &[("accept", "*/*")], false),
            ("GET", &[("accept", "text/html;q=0")], false),
            ("GET", &[("accept", "text/html;q=0.1")], true),
            ("GET", &[("accept", "text/htmlx, application/json")], false),
            ("GET", &[], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(is_navigation(&method, &headers), expected, "{method} {lines:?}");
        }
    }

    #[test]
    fn only_a_page_without_https_from_another_machine_loses_its_cookie() {
        for (origin, expected) in [
            ("http://cms.example", true),
            ("http://cms.example:8080", true),
            ("http://192.0.2.1:8080", true),
            ("http://[2001:db8::1]:8080", true),
            ("http://localhost.example", true),
            ("https://cms.example", false),
            ("http://localhost:8080", false),
            ("http://cms.localhost", false),
            ("http://127.0.0.1:8080", false),
            ("http://[::1]:8080", false),
            ("null", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
            assert_eq!(came_without_https(&headers), expected, "{origin}");
        }
        assert!(!came_without_https(&HeaderMap::new()));
    }
}
