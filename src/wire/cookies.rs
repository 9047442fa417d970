//! The gateway's own cookie: found in a request, cut out of it, written into an answer (RFC 6265bis §5.6, §5.8.3).
//!
//! Its name is compared exactly. What only looks like it never counts and never goes on: PHP reads
//! `portcullis.token` and `%70ortcullis_token` as `portcullis_token`, others ignore letter case or take a
//! comma for the end of a cookie, and each could show an upstream another token than the one that was
//! decided on. All other cookies go on byte for byte. Not here: whether the token is any good (`token`).

use std::borrow::Cow;

use http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use super::headers::folds_alike;
use crate::config::snapshot::Cookie;
use crate::policy::path::decode_valid;

/// The cookie stands in a request more than once: two upstreams could believe different ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Twice;

/// The value of the cookie, as sent: quotes, if any, are part of it. Empty for one without a value.
///
/// # Errors
/// [`Twice`], with two headers as with two pairs in one.
pub fn find<'h>(headers: &'h HeaderMap, cookie: &Cookie) -> Result<Option<&'h [u8]>, Twice> {
    let mut found = None;
    for pair in headers.get_all(COOKIE).iter().flat_map(|line| pairs(line.as_bytes())) {
        let (name, value) = split(pair);
        if name == cookie.name.as_bytes() && found.replace(value).is_some() {
            return Err(Twice);
        }
    }
    Ok(found)
}

/// Removes the cookie and everything that an upstream could take for it. `keep`: the cookie itself stays,
/// and only its look-alikes go.
pub fn cut(headers: &mut HeaderMap, cookie: &Cookie, keep: bool) {
    let goes = |pair: &[u8]| {
        let (name, _) = split(pair);
        if name == cookie.name.as_bytes() { !keep } else { looks_like(pair, &cookie.name) }
    };
    if !headers.get_all(COOKIE).iter().any(|line| pairs(line.as_bytes()).any(goes)) {
        return;
    }
    let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    for line in lines {
        let mut left =
            pairs(line.as_bytes()).filter(|pair| !goes(pair)).fold(Vec::new(), |mut left, pair| {
                if !left.is_empty() {
                    left.push(b';');
                }
                left.extend_from_slice(pair);
                left
            });
        // The blank that stood behind what was first.
        let blanks = left.iter().take_while(|byte| **byte == b' ').count();
        left.drain(..blanks);
        if !left.is_empty() {
            headers.append(
                COOKIE,
                HeaderValue::from_bytes(&left).expect("pieces of a header value are a header value"),
            );
        }
    }
}

/// The `Set-Cookie` that keeps `token` for `max_age` seconds.
pub fn set(cookie: &Cookie, token: &str, max_age: u64) -> HeaderValue {
    let text = format!("{}={token}; Max-Age={max_age}{}", cookie.name, cookie.attributes);
    let mut value = HeaderValue::try_from(text).expect("a checked name and base64url are visible ASCII");
    value.set_sensitive(true);
    value
}

/// Whether an answer of the upstream's may take one person's cookie along: not where a cache may keep it for
/// others (RFC 9111 §5.2.2; a `Set-Cookie` does not stop one).
pub fn may_ride_on(headers: &HeaderMap) -> bool {
    !directives(headers).any(|directive| matches!(directive, b"public" | b"s-maxage"))
}

/// Adds a cookie to an answer of the upstream's, and has no cache keep it for others.
pub fn ride_on(headers: &mut HeaderMap, cookie: HeaderValue) {
    if !directives(headers).any(|directive| matches!(directive, b"private" | b"no-store")) {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    headers.append(SET_COOKIE, cookie);
}

/// The names in `Cache-Control`, as far as they are in lower case, as everybody writes them.
fn directives(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let all =
        headers.get_all(CACHE_CONTROL).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    all.map(|directive| directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii())
}

/// The name of the cookie that a `Set-Cookie` sets.
pub fn name_of(set_cookie: &HeaderValue) -> Option<&str> {
    set_cookie.to_str().ok()?.split_once('=').map(|(name, _)| name.trim())
}

/// The `Set-Cookie` that removes it.
pub fn clear(cookie: &Cookie) -> HeaderValue {
    HeaderValue::try_from(format!("{}=; Max-Age=0{}", cookie.name, cookie.attributes))
        .expect("a checked name is visible ASCII")
}

/// The pairs of one `Cookie` header, with the blanks around them.
fn pairs(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b';')
}

/// Name and value, without the blanks around them. What has no `=` is a name without a value to some.
fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    let end = pair.iter().position(|byte| *byte == b'=');
    let (name, value) = end.map_or((pair, &[][..]), |end| (&pair[..end], &pair[end + 1..]));
    (name.trim_ascii(), value.trim_ascii())
}

/// Whether some upstream could find a cookie called `name` in the pair.
fn looks_like(pair: &[u8], name: &str) -> bool {
    // A comma ends a cookie where RFC 2109 is still followed.
    pair.split(|byte| *byte == b',').any(|piece| {
        let piece = split(piece).0;
        // Whatever is shorter cannot be decoded or trimmed into it.
        piece.len() >= name.len() && reads_as(piece, name)
    })
}

fn reads_as(piece: &[u8], name: &str) -> bool {
    let text = String::from_utf8_lossy(piece);
    let decoded = if text.contains('%') { decode_valid(&text) } else { Cow::Borrowed(&*text) };
    // PHP reads `name[x]` as an array called `name`; a NUL ends a name in C.
    let decoded = decoded.split(['[', '\0']).next().unwrap_or_default();
    let trimmed = decoded.trim_matches(|c: char| !c.is_ascii_graphic() || matches!(c, '"' | '\''));
    folds_alike(trimmed, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie() -> Cookie {
        Cookie {
            name: "portcullis_token".into(),
            attributes: "; Path=/; HttpOnly",
            secure: false,
            renew: true,
        }
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in lines {
            map.append(COOKIE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        map
    }

    #[test]
    fn the_cookie_is_found_by_its_exact_name_and_twice_is_once_too_often() {
        let found = |value: &'static str| Ok(Some(value.as_bytes()));
        for (lines, expected) in [
            (&[][..], Ok(None)),
            (&["portcullis_token=a.b.c"], found("a.b.c")),
            (&["x=1; portcullis_token=a.b.c; y=2"], found("a.b.c")),
            (&["x=1;portcullis_token=a.b.c;y=2"], found("a.b.c")),
            (&["x=1", "portcullis_token=a.b.c"], found("a.b.c")),
            (&["  portcullis_token \t=  a.b.c \t; y"], found("a.b.c")),
            (&["portcullis_token=a=b"], found("a=b")),
            (&["portcullis_token=\"a.b.c\""], found("\"a.b.c\"")),
            (&["portcullis_token="], found("")),
            (&["portcullis_token"], found("")),
            (&["Portcullis_Token=a.b.c"], Ok(None)),
            (&["portcullis_token2=a; xportcullis_token=b; portcullis-token=c"], Ok(None)),
            (&["x=portcullis_token; =portcullis_token"], Ok(None)),
            (&["x=1; é=ü; portcullis_token=é"], found("é")),
            (&["portcullis_token=a; portcullis_token=a"], Err(Twice)),
            (&["portcullis_token=a", "portcullis_token=b"], Err(Twice)),
            (&["portcullis_token; portcullis_token=b"], Err(Twice)),
            (&["x=\"1; portcullis_token=a\"; portcullis_token=b"], Err(Twice)),
        ] {
            assert_eq!(find(&headers(lines), &cookie()), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_other_cookies_go_on_byte_for_byte() {
        for (lines, left) in [
            (&["portcullis_token=t"][..], &[][..]),
            (&["portcullis_token=t; "], &[]),
            (&["a=1; portcullis_token=t; b=\"2, 3\"; c"], &["a=1; b=\"2, 3\"; c"]),
            (&["portcullis_token=t; a=1"], &["a=1"]),
            (&["a=1; portcullis_token=t"], &["a=1"]),
            (&["a=1;portcullis_token=t;b=2"], &["a=1;b=2"]),
            (&["a=1; ; b=2;"], &["a=1; ; b=2;"]),
            (&["a=1", "portcullis_token=t", "b=é; c"], &["a=1", "b=é; c"]),
            (
                &["portcullis=1; my_portcullis_token=2; token=3"],
                &["portcullis=1; my_portcullis_token=2; token=3"],
            ),
        ] {
            let mut map = headers(lines);
            cut(&mut map, &cookie(), false);
            assert_eq!(map, headers(left), "{lines:?}");
        }
    }

    #[test]
    fn what_an_upstream_could_take_for_the_cookie_goes_even_where_the_cookie_stays() {
        for alike in [
            "Portcullis_Token=x",
            "portcullis.token=x",
            "portcullis token=x",
            "portcullis-token=x",
            "%70ortcullis_token=x",
            "portcullis%5ftoken=x",
            "portcullis_token[]=x",
            "portcullis_token%00=x",
            "%20portcullis_token=x",
            "\u{a0}portcullis_token=x",
            "\"portcullis_token\"=x",
            "PORTCULLIS_TOKEN",
            "a=1,portcullis_token=x",
            "a=1, Portcullis_Token=x",
        ] {
            let mut map = headers(&[&format!("a=1; {alike}; portcullis_token=t; b=2")]);
            assert_eq!(find(&map, &cookie()), Ok(Some(&b"t"[..])), "{alike}");
            cut(&mut map, &cookie(), true);
            assert_eq!(map, headers(&["a=1; portcullis_token=t; b=2"]), "{alike}");
            cut(&mut map, &cookie(), false);
            assert_eq!(map, headers(&["a=1; b=2"]), "{alike}");
        }
    }

    #[test]
    fn what_is_written_is_what_browsers_take() {
        assert_eq!(set(&cookie(), "a.b.c", 60), "portcullis_token=a.b.c; Max-Age=60; Path=/; HttpOnly");
        assert!(set(&cookie(), "a.b.c", 60).is_sensitive(), "a token is in no debug output");
        assert_eq!(clear(&cookie()), "portcullis_token=; Max-Age=0; Path=/; HttpOnly");
    }

    #[test]
    fn a_cookie_rides_only_on_what_no_cache_keeps_for_others() {
        for (before, after) in [
            (&[][..], Some(&["private"][..])),
            (&["no-cache"], Some(&["no-cache", "private"])),
            (&["max-age=60, must-revalidate"], Some(&["max-age=60, must-revalidate", "private"])),
            (&["private, max-age=60"], Some(&["private, max-age=60"])),
            (&["max-age=0", "no-store"], Some(&["max-age=0", "no-store"])),
            (&["public, max-age=60"], None),
            (&["max-age=0 , s-maxage=60"], None),
            (&["private=\"x\", public"], None),
        ] {
            let mut map = HeaderMap::new();
            for value in before {
                map.append(CACHE_CONTROL, HeaderValue::from_static(value));
            }
            assert_eq!(may_ride_on(&map), after.is_some(), "{before:?}");
            ride_on(&mut map, set(&cookie(), "t", 1));
            if let Some(after) = after {
                assert_eq!(map.get_all(CACHE_CONTROL).iter().collect::<Vec<_>>(), after);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_cut_stays_and_no_bytes_make_it_panic(line in "[ -~\u{a0}-\u{ff}]{0,80}") {
            let mut map = headers(&[&line]);
            cut(&mut map, &cookie(), false);
            proptest::prop_assert_eq!(find(&map, &cookie()), Ok(None));
            let once = map.clone();
            cut(&mut map, &cookie(), false);
            proptest::prop_assert_eq!(map, once);
        }
    }
}
