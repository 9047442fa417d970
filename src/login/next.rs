//! Where a browser goes after signing in: a path on this site and nothing else.
//!
//! `next` comes from a link that anybody can write. Browsers read `//evil.example`, `/\evil.example` and
//! `/<tab>/evil.example` as another host, and a proxy that decodes once too often makes more of such
//! texts. So only a path that stays one however often it is decoded is taken, and `/` instead of any other.
//! Pure.

use std::borrow::Cow;
use std::fmt::Write;

use http::uri::PathAndQuery;

use crate::policy::path::{decode_valid, is_dot_segment};

/// The longest `next`, in bytes: an address line longer than that is worth no second visit.
const MAX_BYTES: usize = 2048;

/// A path on this site, with its query: visible ASCII, begins with exactly one slash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Next(String);

impl Default for Next {
    fn default() -> Self {
        Self("/".to_owned())
    }
}

impl Next {
    /// What the parameter `next` of a query asks for; `/` where it is absent, there twice, or no path on
    /// this site.
    pub fn in_query(query: Option<&str>) -> Self {
        let mut values = query
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|pair| pair.strip_prefix("next="));
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(&decode_valid(value)),
            _ => Self::default(),
        }
    }

    /// The path that a request is for.
    pub fn of(target: &PathAndQuery) -> Self {
        Self::parse(target.as_str())
    }

    fn parse(text: &str) -> Self {
        if is_on_this_site(text) { Self(text.to_owned()) } else { Self::default() }
    }

    /// As a `Location` has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `login_path` with this as its `next`.
    pub fn after(&self, login_path: &str) -> String {
        if *self == Self::default() {
            return login_path.to_owned();
        }
        let mut url = format!("{login_path}?next=");
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
                url.push(byte as char);
            } else {
                write!(url, "%{byte:02X}").expect("writing to a string cannot fail");
            }
        }
        url
    }
}

fn is_on_this_site(text: &str) -> bool {
    if text.len() > MAX_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('#') {
        return false;
    }
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    if query.contains('\\') {
        return false;
    }
    let mut path = path.to_owned();
    loop {
        let plain = path.starts_with('/')
            && !path.starts_with("//")
            && !path.contains(|c: char| c == '\\' || c.is_control() || c.is_whitespace() && !c.is_ascii())
            && !path.split('/').any(is_dot_segment);
        if !plain {
            return false;
        }
        // A text only becomes shorter, so this ends.
        let Cow::Owned(once_more) = decode_valid(&path) else { return true };
        path = once_more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_a_path_on_this_site_is_gone_to() {
        for stays in [
            "/",
            "/admin/content/news?page=2&q=a%20b",
            "/a%20b/%C3%A4?x=/y//z",
            "/a//b",
            "/a?next=https://evil.example",
            "/100%",
            "/a%25b",
        ] {
            assert_eq!(Next::parse(stays).as_str(), stays);
        }
        let long = format!("/{}", "a".repeat(MAX_BYTES));
        for goes in [
            "",
            "x",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "https://evil.example",
            "https:evil.example",
            "javascript:alert(1)",
            "/\t/evil.example",
            "\t//evil.example",
            " //evil.example",
            "/\n/evil.example",
            "/\r\nSet-Cookie: a=b",
            "/%2fevil.example",
            "/%2Fevil.example",
            "/%252fevil.example",
            "/%25252fevil.example",
            "/%5cevil.example",
            "/%255cevil.example",
            "/%09/evil.example",
            "/%0d%0aSet-Cookie:%20a=b",
            "/%00",
            "%2f%2fevil.example",
            "%2fa",
            "/./",
            "/a/..//evil.example",
            "/.%2e//evil.example",
            "/%2e%2e%2f/evil.example",
            "/a?\\",
            "/a#b",
            "/ä",
            "/%e3%80%80/evil.example",
            "//evil.example?/",
            "?x",
            &long,
        ] {
            assert_eq!(Next::parse(goes).as_str(), "/", "{goes:?}");
        }
    }

    #[test]
    fn it_is_read_from_a_query_as_it_was_written_into_one() {
        for text in ["/a", "/a?b=c&d=e+f%20g", "/a%2Cb?next=x&next=y", "/"] {
            let next = Next::parse(text);
            assert_eq!(next.as_str(), text);
            let url = next.after("/auth/login");
            let query = url.split_once('?').map(|(_, query)| query);
            assert_eq!(Next::in_query(query), next, "{url}");
        }
        assert_eq!(Next::parse("/a?b=c&d").after("/in"), "/in?next=/a%3Fb%3Dc%26d");
        for (query, expected) in [
            (None, "/"),
            (Some(""), "/"),
            (Some("next=/a"), "/a"),
            (Some("x=1&next=%2Fa"), "/a"),
            (Some("next=/a&next=/b"), "/"),
            (Some("Next=/a"), "/"),
            (Some("next="), "/"),
            (Some("next=%2F%2Fevil.example"), "/"),
            (Some("next=%252F%252Fevil.example"), "/"),
            (Some("next=/%ff"), "/"),
        ] {
            assert_eq!(Next::in_query(query).as_str(), expected, "{query:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_a_browser_stays_here(text in "[/\\\\%a-f0-9.:?#@\t\r\n ]{0,24}") {
            let next = Next::parse(&text);
            let second = next.as_str().as_bytes().get(1).copied();
            prop_assert!(next.as_str().starts_with('/') && !matches!(second, Some(b'/' | b'\\')));
            prop_assert!(next.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
