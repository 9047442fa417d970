//! Header lines that carry credentials: the token that is found is the one that stands there, and there
//! is never a second.
//!
//! Input: header lines, each `name: value`.

use http::{HeaderMap, HeaderName, HeaderValue};
use portcullis::wire::credentials::{Credentials, read};

/// See the module.
pub fn check(data: &[u8]) {
    let mut headers = HeaderMap::new();
    let mut authorizations = Vec::new();
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
        headers.append(name, given);
    }
    let found = read(&headers);
    match (&authorizations[..], found) {
        ([], Ok(Credentials::None)) => {}
        ([_, _, ..], Err(_)) => {}
        ([one], Ok(found)) => {
            let blank = one.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(one.len());
            let is_bearer = one[..blank].eq_ignore_ascii_case(b"bearer");
            match found {
                Credentials::Bearer(token) => {
                    assert!(is_bearer);
                    // What is not sent is never found; nothing of a token is ever made up.
                    assert!(token.is_empty() || one.ends_with(token.as_bytes()), "{one:?}");
                    let rest = &one[blank..];
                    let sent =
                        std::str::from_utf8(rest).map(|rest| rest.trim_matches(' ')).unwrap_or_default();
                    assert!(token == sent || rest.starts_with(b"\t") && token.is_empty(), "{one:?}");
                }
                Credentials::OtherScheme => assert!(!is_bearer, "{one:?}"),
                Credentials::None => panic!("not seen: {one:?}"),
            }
        }
        _ => panic!("{} Authorization headers, and another answer", authorizations.len()),
    }
}
