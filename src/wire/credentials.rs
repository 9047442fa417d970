//! The `Authorization` header: the raw token, or why there is none (RFC 6750 §2.1).
//!
//! The query string and the body are never looked at. Not here: whether the token is any good (`token`).

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// What a request brings to prove who it is.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Credentials<'a> {
    /// No `Authorization` at all.
    None,
    /// A bearer token as sent; perhaps empty or malformed.
    Bearer(&'a str),
    /// Another scheme, which is the upstream's business.
    OtherScheme,
}

/// More than one `Authorization`: two upstreams could believe different ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ambiguous;

/// Finds the credentials.
///
/// # Errors
/// [`Ambiguous`] for a second `Authorization` header.
pub fn read(headers: &HeaderMap) -> Result<Credentials<'_>, Ambiguous> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(Credentials::None) };
    if values.next().is_some() {
        return Err(Ambiguous);
    }
    let bytes = value.as_bytes();
    let scheme_end = bytes.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(bytes.len());
    let (scheme, rest) = bytes.split_at(scheme_end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(Credentials::OtherScheme);
    }
    // What is no text, or stands behind a tab, is no token; as an empty one it is refused like any
    // malformed one.
    let token = std::str::from_utf8(rest).ok().filter(|rest| !rest.starts_with('\t')).unwrap_or_default();
    Ok(Credentials::Bearer(token.trim_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_scheme_is_read_in_any_case_and_needs_its_blank() {
        for (value, expected) in [
            ("Bearer abc", Credentials::Bearer("abc")),
            ("bearer abc", Credentials::Bearer("abc")),
            ("BEARER  abc ", Credentials::Bearer("abc")),
            ("Bearer", Credentials::Bearer("")),
            ("Bearer a b", Credentials::Bearer("a b")),
            ("Bearerabc", Credentials::OtherScheme),
            ("Bearer\tabc", Credentials::Bearer("")),
            ("Basic YTpi", Credentials::OtherScheme),
            ("", Credentials::OtherScheme),
            ("Bearer \u{e9}", Credentials::Bearer("\u{e9}")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            assert!(read(&headers) == Ok(expected), "{value}");
        }
        assert!(read(&HeaderMap::new()) == Ok(Credentials::None));
    }

    #[test]
    fn two_authorization_headers_are_ambiguous() {
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic b"));
        assert!(read(&headers) == Err(Ambiguous));
    }
}
