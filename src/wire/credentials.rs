//! Where a request's token is: the `Authorization` header (RFC 6750 §2.1), then the gateway's cookie.
//!
//! A bearer token that is present decides alone, however bad it is. The query string and the body are never
//! looked at. Not here: whether the token is any good (`token`).

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::cookies;
use crate::config::snapshot::Cookie;

/// What a request brings to prove who it is.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Credentials<'a> {
    /// Nothing that the gateway reads; another scheme of `Authorization` is the upstream's business.
    None,
    /// A bearer token as sent; perhaps empty or malformed.
    Bearer(&'a str),
    /// The cookie's value as sent; perhaps empty or malformed.
    Cookie(&'a str),
}

/// Credentials that two upstreams could read differently.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ambiguous {
    /// More than one `Authorization`.
    Authorization,
    /// The cookie more than once, beside a bearer token, too.
    Cookie,
}

/// Finds the credentials. `cookie`: the gateway's own, where it has one.
///
/// # Errors
/// [`Ambiguous`] for a second `Authorization` header or a second cookie of that name.
pub fn read<'h>(headers: &'h HeaderMap, cookie: Option<&Cookie>) -> Result<Credentials<'h>, Ambiguous> {
    let in_cookie = match cookie {
        Some(cookie) => cookies::find(headers, cookie).map_err(|cookies::Twice| Ambiguous::Cookie)?,
        None => None,
    };
    if let Some(token) = bearer(headers)? {
        return Ok(Credentials::Bearer(token));
    }
    // What is no text is no token; as an empty one it is refused like any malformed one.
    Ok(in_cookie.map_or(Credentials::None, |token| {
        Credentials::Cookie(std::str::from_utf8(token).unwrap_or_default())
    }))
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Ambiguous> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Ambiguous::Authorization);
    }
    let bytes = value.as_bytes();
    let scheme_end = bytes.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(bytes.len());
    let (scheme, rest) = bytes.split_at(scheme_end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(None);
    }
    // What is no text, or stands behind a tab, is no token either.
    let token = std::str::from_utf8(rest).ok().filter(|rest| !rest.starts_with('\t')).unwrap_or_default();
    Ok(Some(token.trim_matches(' ')))
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
            ("Bearerabc", Credentials::None),
            ("Bearer\tabc", Credentials::Bearer("")),
            ("Basic YTpi", Credentials::None),
            ("", Credentials::None),
            ("Bearer \u{e9}", Credentials::Bearer("\u{e9}")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            assert!(read(&headers, None) == Ok(expected), "{value}");
        }
        assert!(read(&HeaderMap::new(), None) == Ok(Credentials::None));
    }

    #[test]
    fn two_authorization_headers_are_ambiguous() {
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic b"));
        assert!(read(&headers, None) == Err(Ambiguous::Authorization));
    }

    #[test]
    fn a_bearer_token_decides_alone_and_another_scheme_leaves_it_to_the_cookie() {
        let cookie = Cookie { name: "t".into(), attributes: "", secure: false, renew: true };
        for (authorization, cookies, expected) in [
            (None, "t=c", Ok(Credentials::Cookie("c"))),
            (Some("Bearer b"), "t=c", Ok(Credentials::Bearer("b"))),
            (Some("Bearer"), "t=c", Ok(Credentials::Bearer(""))),
            (Some("Basic b"), "t=c", Ok(Credentials::Cookie("c"))),
            (Some("Basic b"), "u=c", Ok(Credentials::None)),
            (None, "t=", Ok(Credentials::Cookie(""))),
            (None, "T=c", Ok(Credentials::None)),
            (Some("Bearer b"), "t=c; t=d", Err(Ambiguous::Cookie)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::COOKIE, HeaderValue::from_static(cookies));
            if let Some(authorization) = authorization {
                headers.insert(AUTHORIZATION, HeaderValue::from_static(authorization));
            }
            assert!(read(&headers, Some(&cookie)) == expected, "{authorization:?} {cookies}");
            let without = read(&headers, None);
            assert!(!matches!(without, Ok(Credentials::Cookie(_)) | Err(_)), "no cookie is configured");
        }
    }
}
