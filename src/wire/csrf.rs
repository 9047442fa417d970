//! Whether a request comes from a page of this site, so that its cookie may speak for whoever sits there.
//!
//! A browser sends the cookie along with what other sites' pages ask for, too. It also says where a request
//! comes from, in headers that scripts cannot set: `Sec-Fetch-Site` (Fetch Metadata, W3C), and, where that
//! is not sent (older browsers, plain HTTP), `Origin` (RFC 6454 §7). What nobody says is not taken for
//! granted. Not here: which requests need it (`server`), CORS (`login::cors`).

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName};

use super::client::{FORWARDED_HOST, Scheme};

/// `Sec-Fetch-Site`.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where a request comes from, as far as a browser says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// A page of the very origin that it goes to.
    SameOrigin,
    /// A page of another one, or one that hides where it is from.
    Foreign,
    /// Nobody says: no browser, or what a person typed.
    Unsaid,
}

/// Where the request, which came by `scheme`, comes from. `headers` hold `X-Forwarded-Host` only if a trusted
/// proxy has set it (`wire::headers`).
pub fn source(headers: &HeaderMap, scheme: Scheme) -> Source {
    let mut sites = headers.get_all(SITE).iter();
    match (sites.next().map(|site| site.as_bytes()), sites.next()) {
        (Some(b"same-origin"), None) => return Source::SameOrigin,
        (Some(b"none"), None) => return Source::Unsaid,
        (Some(_), _) => return Source::Foreign,
        (None, _) => {}
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => Source::Unsaid,
        (Some(origin), None) if is_here(origin.as_bytes(), headers, scheme) => Source::SameOrigin,
        (Some(_), _) => Source::Foreign,
    }
}

/// Whether an origin's host and port are those that the request is for. By HTTPS, a page that came by plain HTTP
/// is none of this site's; where plain HTTP arrives, a proxy may have ended TLS.
fn is_here(origin: &[u8], headers: &HeaderMap, scheme: Scheme) -> bool {
    let (scheme_port, authority) = match origin {
        [b'h', b't', b't', b'p', b's', b':', b'/', b'/', rest @ ..] => (&b":443"[..], rest),
        [b'h', b't', b't', b'p', b':', b'/', b'/', rest @ ..] if scheme == Scheme::Http => {
            (&b":80"[..], rest)
        }
        // `null` above all.
        _ => return false,
    };
    // A port that the scheme has anyway may be written or not.
    let plain =
        |authority: &'_ [u8]| authority.strip_suffix(scheme_port).unwrap_or(authority).to_ascii_lowercase();
    // Of several proxies, the first is the one that the browser talked to.
    let first =
        |value: &[u8]| value.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii().to_vec();
    let forwarded = headers.get(FORWARDED_HOST).map(|value| first(value.as_bytes()));
    let host = headers.get(HOST).map(|value| value.as_bytes().to_vec());
    forwarded.into_iter().chain(host).any(|known| !known.is_empty() && plain(&known) == plain(authority))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_request_is_of_this_site_only_where_a_browser_says_so() {
        use Source::{Foreign, SameOrigin, Unsaid};
        for (lines, expected) in [
            (&[][..], Unsaid),
            (&[("sec-fetch-site", "same-origin")], SameOrigin),
            (&[("sec-fetch-site", "same-site")], Foreign),
            (&[("sec-fetch-site", "cross-site")], Foreign),
            (&[("sec-fetch-site", "none")], Unsaid),
            (&[("sec-fetch-site", "")], Foreign),
            (&[("sec-fetch-site", "Same-Origin")], Foreign),
            (&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-origin")], Foreign),
            (&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], Foreign),
            // The first says more: `Origin` is not asked beside it.
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://cms.example")], Foreign),
            (&[("sec-fetch-site", "same-origin"), ("origin", "null")], SameOrigin),
            (&[("origin", "https://cms.example")], SameOrigin),
            (&[("origin", "http://cms.example")], SameOrigin),
            (&[("origin", "https://CMS.example:443")], SameOrigin),
            (&[("origin", "http://cms.example:443")], Foreign),
            (&[("origin", "https://cms.example:8443")], Foreign),
            (&[("origin", "https://cms.example.evil")], Foreign),
            (&[("origin", "https://evil.example")], Foreign),
            (&[("origin", "https://evil.example/cms.example")], Foreign),
            (&[("origin", "https://cms.example@evil.example")], Foreign),
            (&[("origin", "ftp://cms.example")], Foreign),
            (&[("origin", "cms.example")], Foreign),
            (&[("origin", "null")], Foreign),
            (&[("origin", "")], Foreign),
            (&[("origin", "https://")], Foreign),
            (&[("origin", "https://cms.example"), ("origin", "https://cms.example")], Foreign),
            (&[("origin", "https://cms.example https://evil.example")], Foreign),
            // What a trusted proxy says that the browser asked for.
            (&[("x-forwarded-host", "www.example"), ("origin", "https://www.example")], SameOrigin),
            (
                &[("x-forwarded-host", "www.example, in.example"), ("origin", "https://www.example")],
                SameOrigin,
            ),
            (&[("x-forwarded-host", "www.example, in.example"), ("origin", "https://in.example")], Foreign),
            (&[("x-forwarded-host", ""), ("origin", "https://")], Foreign),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("cms.example"));
            for (name, value) in lines {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert_eq!(source(&headers, Scheme::Http), expected, "{lines:?}");
        }
        for (host, origin, expected) in [
            ("cms.example:8080", "http://cms.example:8080", SameOrigin),
            ("cms.example:8080", "http://cms.example", Foreign),
            ("cms.example:80", "http://cms.example", SameOrigin),
            ("cms.example:443", "https://cms.example", SameOrigin),
            ("[::1]:8080", "http://[::1]:8080", SameOrigin),
            ("127.0.0.1:1", "http://localhost:1", Foreign),
            ("", "http://", Foreign),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
            assert_eq!(source(&headers, Scheme::Http), expected, "{host} {origin}");
            let plain = origin.starts_with("http:");
            let expected = if plain { Foreign } else { expected };
            assert_eq!(source(&headers, Scheme::Https), expected, "{host} {origin} by HTTPS");
        }
    }
}
