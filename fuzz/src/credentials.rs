//! Header lines that carry credentials: the token that is found is the one that stands there, there is
//! never a second, and what goes on to the upstream has none left that it could take for one.
//!
//! Input: header lines, each `name: value`. The gateway's cookie is called `t`.

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use portcullis::config::snapshot::Cookie;
use portcullis::wire::cookies;
use portcullis::wire::credentials::{Ambiguous, Credentials, read};

/// See the module.
pub fn check(data: &[u8]) {
    let mut headers = HeaderMap::new();
    let (mut authorizations, mut pairs) = (Vec::new(), Vec::new());
    for line in data.split(|byte| *byte == b'\n').take(16) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        let (Ok(name), Ok(given)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value))
        else {
            continue;
        };
        if name == "authorization" {
            authorizations.push(value.to_vec());
        }
        if name == "cookie" {
            pairs.extend(value.split(|byte| *byte == b';').map(<[u8]>::to_vec));
        }
        headers.append(name, given);
    }
    without_cookie(&authorizations, read(&headers, None));
    let cookie = Cookie { name: "t".into(), attributes: "", secure: false, renew: true };
    with_cookie(&authorizations, &pairs, read(&headers, Some(&cookie)));
    for keep in [false, true] {
        let mut left = headers.clone();
        cookies::cut(&mut left, &cookie, keep);
        nothing_is_left(&pairs, &left, keep);
        let once = left.clone();
        cookies::cut(&mut left, &cookie, keep);
        assert_eq!(once, left, "cut once is cut");
    }
}

/// Where there is no cookie of ours, no cookie says anything.
fn without_cookie(authorizations: &[Vec<u8>], found: Result<Credentials<'_>, Ambiguous>) {
    match (authorizations, found) {
        ([], Ok(Credentials::None)) => {}
        ([_, _, ..], Err(Ambiguous::Authorization)) => {}
        ([one], Ok(Credentials::None)) => assert!(!is_bearer(one), "not seen: {one:?}"),
        ([one], Ok(Credentials::Bearer(token))) => is_sent(one, token),
        _ => panic!("{} Authorization headers, and another answer", authorizations.len()),
    }
}

fn with_cookie(authorizations: &[Vec<u8>], pairs: &[Vec<u8>], found: Result<Credentials<'_>, Ambiguous>) {
    let ours: Vec<&[u8]> =
        pairs.iter().map(|pair| pair.trim_ascii()).filter(|pair| name_of(pair) == b"t").collect();
    match found {
        Err(Ambiguous::Cookie) => assert!(ours.len() > 1, "{ours:?}"),
        Err(Ambiguous::Authorization) => assert!(authorizations.len() > 1),
        Ok(_) if authorizations.len() > 1 || ours.len() > 1 => panic!("one of several was believed"),
        Ok(Credentials::Bearer(token)) => is_sent(&authorizations[0], token),
        Ok(Credentials::Cookie(token)) => {
            assert!(!authorizations.first().is_some_and(|one| is_bearer(one)), "a bearer decides alone");
            assert!(token.is_empty() || ours[0].ends_with(token.as_bytes()), "{ours:?}");
        }
        Ok(Credentials::None) => {
            assert!(ours.is_empty(), "not seen: {ours:?}");
            assert!(!authorizations.first().is_some_and(|one| is_bearer(one)));
        }
    }
}

/// Every other cookie goes on as it came; ours and what PHP would take for it does not.
fn nothing_is_left(pairs: &[Vec<u8>], left: &HeaderMap, keep: bool) {
    let got: Vec<&[u8]> = left
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .collect();
    for pair in &got {
        assert!(keep || name_of(pair) != b"t", "{got:?}");
        assert!(pairs.iter().any(|sent| sent.trim_ascii() == *pair), "nobody sent {pair:?}");
    }
    if keep {
        let count = |of: &mut dyn Iterator<Item = &[u8]>| of.filter(|pair| name_of(pair) == b"t").count();
        let sent = count(&mut pairs.iter().map(|pair| pair.trim_ascii()));
        assert_eq!(count(&mut got.iter().copied()), sent, "ours stays");
    }
}

fn name_of(pair: &[u8]) -> &[u8] {
    let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
    pair[..end].trim_ascii()
}

fn is_bearer(value: &[u8]) -> bool {
    let blank = value.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(value.len());
    value[..blank].eq_ignore_ascii_case(b"bearer")
}

/// Nothing of a token is ever made up, and nothing of it is lost.
fn is_sent(one: &[u8], token: &str) {
    assert!(is_bearer(one));
    assert!(token.is_empty() || one.ends_with(token.as_bytes()), "{one:?}");
    let rest = &one["bearer".len()..];
    let sent = std::str::from_utf8(rest).map(|rest| rest.trim_matches(' ')).unwrap_or_default();
    assert!(token == sent || rest.starts_with(b"\t") && token.is_empty(), "{one:?}");
}
