//! An HTTP/2 request's head, checked and put as HTTP/1.1 has it.
//!
//! hyper and h2 have refused what HTTP/2 itself forbids (RFC 9113 §8.2, §8.3: names in upper case, headers that
//! concern a connection, pseudo-headers that are missing, repeated or unknown). Here is what they leave open, by
//! the same measure as a head of HTTP/1 (`hygiene`), because that is what the upstream reads. Pure.

use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::request::Parts;
use http::{HeaderValue, Method, Uri, Version};

use super::hygiene::{HeadError, HeadLimits, check_target, is_authority, parse_length};

/// Checks a head and puts it into the form in which one of HTTP/1.1 arrives: the target in origin-form, one
/// Host, one Cookie.
///
/// # Errors
/// The first thing in it that two parsers could take differently once it is HTTP/1.1.
pub fn as_http1(parts: &mut Parts, limits: &HeadLimits) -> Result<(), HeadError> {
    if !crate::policy::method::is_method(parts.method.as_str()) {
        return Err(HeadError::Method);
    }
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        return Err(HeadError::MethodRefused);
    }
    if parts.uri.scheme_str().is_some_and(|scheme| scheme != "https") {
        return Err(HeadError::Pseudo);
    }
    let target = parts.uri.path_and_query().cloned().ok_or(HeadError::Pseudo)?;
    if target == "*" {
        return Err(HeadError::MethodRefused);
    }
    if target.as_str().len() > limits.target_bytes {
        return Err(HeadError::TargetTooLong);
    }
    if !target.as_str().starts_with('/') {
        return Err(HeadError::RequestLine);
    }
    check_target(target.as_str().as_bytes())?;
    if parts.headers.len() > limits.headers {
        return Err(HeadError::TooManyHeaders);
    }
    for value in parts.headers.values() {
        // What another parser would cut off (RFC 9113 §8.2.1).
        let ends = [value.as_bytes().first(), value.as_bytes().last()];
        if ends.into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t')) {
            return Err(HeadError::HeaderValue);
        }
    }
    let host = host(parts)?;
    parts.headers.insert(HOST, host);
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (Some(_), Some(_)) => return Err(HeadError::ContentLength),
        (Some(length), None) => drop(parse_length(length.as_bytes())?),
        (None, _) => {}
    }
    join_cookies(parts);
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(target);
    parts.uri = Uri::from_parts(uri).map_err(|_| HeadError::RequestLine)?;
    parts.version = Version::HTTP_11;
    Ok(())
}

/// The one host that the request is for (RFC 9113 §8.3.1).
fn host(parts: &Parts) -> Result<HeaderValue, HeadError> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(HeadError::Host),
        (host, None) => host,
    };
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    match (authority, host) {
        (Some(authority), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {
            Err(HeadError::AuthorityMismatch)
        }
        (Some(authority), _) if is_authority(authority.as_bytes()) => {
            HeaderValue::from_str(authority).map_err(|_| HeadError::Host)
        }
        (None, Some(host)) if is_authority(host.as_bytes()) => Ok(host.clone()),
        _ => Err(HeadError::Host),
    }
}

/// HTTP/2 may bring a cookie in crumbs, HTTP/1.1 may not (RFC 9113 §8.2.3).
fn join_cookies(parts: &mut Parts) {
    let crumbs: Vec<&[u8]> = parts.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        parts.headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const LIMITS: HeadLimits = HeadLimits { head_bytes: 1024, target_bytes: 30, headers: 4 };

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri).version(Version::HTTP_2);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_head_that_http1_would_not_carry_alike_is_refused() {
        for (method, uri, headers, why) in [
            ("get", "https://a/", &[][..], HeadError::Method),
            ("TRACE", "https://a/", &[], HeadError::MethodRefused),
            ("CONNECT", "a:443", &[], HeadError::MethodRefused),
            ("OPTIONS", "*", &[("host", "a")], HeadError::MethodRefused),
            ("GET", "http://a/", &[], HeadError::Pseudo),
            ("GET", "ftp://a/", &[], HeadError::Pseudo),
            ("GET", "https://a/0123456789012345678901234567890", &[], HeadError::TargetTooLong),
            ("GET", "/", &[], HeadError::Host),
            ("GET", "https://user@a/", &[], HeadError::Host),
            ("GET", "https://a/", &[("host", "b")], HeadError::AuthorityMismatch),
            ("GET", "https://a/", &[("host", "a:443")], HeadError::AuthorityMismatch),
            ("GET", "https://a/", &[("host", "a"), ("host", "a")], HeadError::Host),
            ("GET", "/", &[("host", "a b")], HeadError::Host),
            ("GET", "/", &[("host", "")], HeadError::Host),
            (
                "POST",
                "https://a/",
                &[("content-length", "1"), ("content-length", "1")],
                HeadError::ContentLength,
            ),
            ("POST", "https://a/", &[("content-length", "+1")], HeadError::ContentLength),
            ("GET", "https://a/", &[("x", " y")], HeadError::HeaderValue),
            ("GET", "https://a/", &[("x", "y\t")], HeadError::HeaderValue),
            (
                "GET",
                "https://a/",
                &[("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "")],
                HeadError::TooManyHeaders,
            ),
        ] {
            let mut parts = parts(method, uri, headers);
            assert_eq!(as_http1(&mut parts, &LIMITS), Err(why), "{method} {uri} {headers:?}");
        }
    }

    #[test]
    fn a_head_becomes_what_http1_would_have_brought() {
        for (uri, headers, target, host, cookie) in [
            ("https://Cms.example:8443/a%2Fb?c=d", &[][..], "/a%2Fb?c=d", "Cms.example:8443", None),
            ("https://a/", &[("host", "A")], "/", "a", None),
            ("/x", &[("host", "a")], "/x", "a", None),
            (
                "https://a",
                &[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "a=3")],
                "/",
                "a",
                Some("a=1; b=2; a=3"),
            ),
        ] {
            let mut parts = parts("GET", uri, headers);
            assert_eq!(as_http1(&mut parts, &LIMITS), Ok(()), "{uri}");
            assert_eq!(parts.uri.to_string(), target);
            assert_eq!(parts.headers[HOST], host);
            assert_eq!(parts.headers.get_all(HOST).iter().count(), 1);
            assert_eq!(parts.headers.get(COOKIE).map(|value| value.to_str().unwrap()), cookie);
            assert!(parts.headers.get_all(COOKIE).iter().count() <= 1);
        }
    }
}
