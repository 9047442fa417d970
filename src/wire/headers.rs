//! Which of the client's headers go on to the upstream, and in whose name.
//!
//! Upstreams fold names: CGI and WSGI read `X_Auth_User`, `x-auth-user` and `X.Auth.User` as one
//! variable. So names are compared after folding: letter case ignored, every byte that is no letter
//! or digit taken for `-`. What only the gateway may say is removed in every spelling; hop-by-hop names
//! (RFC 9110 §7.6.1) go first, identity is added last. Edited in place, one look at each name.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use smallvec::SmallVec;

/// Concerns one connection only.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    // Answered by the gateway itself, as soon as it begins to read the body.
    "expect",
];

/// Names another path or method to some upstream or framework, or lets a request past its checks.
const REWRITING: [&str; 13] = [
    "x-original-url",
    "x-original-uri",
    "x-original-method",
    "x-rewrite-url",
    "x-rewrite-uri",
    "x-override-url",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-forwarded-prefix",
    "x-forwarded-method",
    "x-middleware-subrequest",
    // gunicorn mounts an application below the SCRIPT_NAME that a trusted peer sends, which cuts the path.
    "script-name",
    "path-info",
];

/// Misleads in other ways, and load balancers set some of these themselves.
const MISLEADING: [&str; 3] = ["x-real-ip", "proxy", "http2-settings"];

/// Set by the gateway from what it knows, or left out: a proxy's word, which a CMS that trusts the gateway
/// would take for the gateway's.
const FORWARDING: [&str; 9] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "forwarded",
    "x-request-id",
];

/// Names another method to some frameworks.
const METHOD_OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// Never removed because a client's `Connection` header names them.
const NEVER_HOP_BY_HOP: [&str; 4] = ["host", "content-length", "content-type", "authorization"];

/// What becomes of a header of the client's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    HopByHop,
    Rewriting,
    Misleading,
    Forwarding,
    Identity,
    MethodOverride,
}

/// The names that are looked for, by length: most headers of a request match none and cost one look.
#[derive(Clone, Debug)]
pub struct HeaderRules {
    by_length: Vec<Vec<(Box<[u8]>, Kind)>>,
}

/// What [`HeaderRules::strip`] saw on its way.
#[derive(Debug, Default)]
pub struct Stripped {
    /// Headers that name a method; still there, because whether they matter is the policy's to say.
    pub method_overrides: SmallVec<[HeaderName; 1]>,
    /// Whether the client asks to switch to WebSocket (RFC 6455 §4.2.1).
    pub websocket: bool,
    /// Whether the client takes trailers.
    pub trailers: bool,
    /// Whether somebody untrusted speaks for others: perhaps a proxy that nobody has declared.
    pub spoke_for_others: bool,
}

impl HeaderRules {
    /// `identity`: the names that the gateway sets, the secret's included.
    pub fn new<'a>(identity: impl IntoIterator<Item = &'a HeaderName>) -> Self {
        let kinds = [
            (&HOP_BY_HOP[..], Kind::HopByHop),
            (&REWRITING[..], Kind::Rewriting),
            (&MISLEADING[..], Kind::Misleading),
            (&FORWARDING[..], Kind::Forwarding),
            (&METHOD_OVERRIDES[..], Kind::MethodOverride),
        ];
        let identity = identity.into_iter().map(|name| (fold(name.as_str()), Kind::Identity));
        let known =
            kinds.into_iter().flat_map(|(names, kind)| names.iter().map(move |name| (fold(name), kind)));
        let mut by_length: Vec<Vec<(Box<[u8]>, Kind)>> = Vec::new();
        for (name, kind) in identity.chain(known) {
            if by_length.len() <= name.len() {
                by_length.resize(name.len() + 1, Vec::new());
            }
            by_length[name.len()].push((name.into_boxed_slice(), kind));
        }
        Self { by_length }
    }

    /// Whether a header of that name names another method to some frameworks.
    pub fn names_method(&self, name: &HeaderName) -> bool {
        self.kind(name.as_str()) == Some(Kind::MethodOverride)
    }

    /// Whether a header of that name could mislead an upstream where the gateway does not get to remove it, because a
    /// load balancer forwards the request: one that names another path or method, and any name that only a proxy or
    /// the gateway uses in a spelling that neither would use. No honest client sends any of these.
    pub fn is_beyond_removal(&self, name: &HeaderName) -> bool {
        match self.find(name.as_str()) {
            Some((_, Kind::Rewriting)) => true,
            Some((known, Kind::Misleading | Kind::Forwarding | Kind::Identity)) => {
                **known != *name.as_str().as_bytes()
            }
            Some((_, Kind::HopByHop | Kind::MethodOverride)) | None => false,
        }
    }

    /// Removes what must not go on: hop-by-hop headers and those that `Connection` names, every
    /// spelling of an identity header, misleading ones, and the forwarding ones unless the client is
    /// a trusted proxy. Headers that name a method stay.
    pub fn strip(&self, headers: &mut HeaderMap, trusted: bool) -> Stripped {
        let mut stripped = Stripped::default();
        let mut gone: SmallVec<[HeaderName; 8]> = SmallVec::new();
        // Looked up again only where the look at all names has met them.
        let mut hop_by_hop = false;
        for name in headers.keys() {
            match self.kind(name.as_str()) {
                None => {}
                Some(Kind::HopByHop) => {
                    hop_by_hop = true;
                    gone.push(name.clone());
                }
                Some(Kind::MethodOverride) => stripped.method_overrides.push(name.clone()),
                // In another spelling it is not the proxy's but what the proxy let through.
                Some(Kind::Forwarding) if trusted && FORWARDING.contains(&name.as_str()) => {}
                Some(Kind::Forwarding) => {
                    stripped.spoke_for_others |= matches!(name.as_str(), "x-forwarded-for" | "forwarded");
                    gone.push(name.clone());
                }
                Some(_) => gone.push(name.clone()),
            }
        }
        if hop_by_hop {
            stripped.websocket = any_has_token(headers, &CONNECTION, "upgrade")
                && headers
                    .get(UPGRADE)
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
            stripped.trailers = any_has_token(headers, &TE, "trailers");
            for nominated in nominated(headers) {
                gone.push(nominated);
            }
        }
        for name in gone {
            headers.remove(name);
        }
        stripped
    }

    /// Whether a name may not stand in a trailer section: framing, credentials, forwarding, identity.
    pub fn is_forbidden_trailer(&self, name: &str) -> bool {
        const FRAMING: [&str; 9] = [
            "host",
            "content-length",
            "content-type",
            "content-encoding",
            "content-range",
            "trailer",
            "authorization",
            "cookie",
            "set-cookie",
        ];
        self.kind(name).is_some() || FRAMING.iter().any(|framing| folds_to(name, framing.as_bytes()))
    }

    fn kind(&self, name: &str) -> Option<Kind> {
        self.find(name).map(|(_, kind)| *kind)
    }

    fn find(&self, name: &str) -> Option<&(Box<[u8]>, Kind)> {
        let candidates = self.by_length.get(name.len())?;
        // The first bytes of names are much alike; the last one tells nearly all of a length apart.
        let last = fold_byte(*name.as_bytes().last()?);
        let mut alike = candidates.iter().filter(|(known, _)| known.last() == Some(&last));
        alike.find(|(known, _)| folds_to(name, known))
    }
}

/// Removes what concerns only the connection to the upstream from its response.
pub fn strip_response(headers: &mut HeaderMap) {
    if headers.get_all(CONNECTION).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"keep-alive")) {
        let nominated: SmallVec<[HeaderName; 4]> = nominated(headers).collect();
        for name in nominated {
            headers.remove(name);
        }
    }
    // Few responses carry any of these, so they are looked at once instead of being looked up each.
    let hop_by_hop = |name: &&HeaderName| {
        matches!(
            name.as_str(),
            "connection"
                | "keep-alive"
                | "proxy-connection"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "te"
                | "transfer-encoding"
                | "upgrade"
        )
    };
    let gone: SmallVec<[HeaderName; 4]> = headers.keys().filter(hop_by_hop).cloned().collect();
    for name in gone {
        if name == TRANSFER_ENCODING {
            // The body was read as chunks, so no other length counts (RFC 9112 §6.3).
            headers.remove(CONTENT_LENGTH);
        }
        headers.remove(name);
    }
}

/// The folded form of a name: lower case, everything that is no letter or digit as `-`.
pub fn fold(name: &str) -> Vec<u8> {
    name.bytes().map(fold_byte).collect()
}

/// A header value for text that may hold anything: printable ASCII as it is, all else and `%`
/// percent-encoded as UTF-8, so that no value can break a header or be mistaken for another.
pub fn value_of(text: &str) -> HeaderValue {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=31 | 127.. => {
                write!(encoded, "%{byte:02X}").expect("writing to a string cannot fail");
            }
            _ => encoded.push(byte as char),
        }
    }
    HeaderValue::try_from(encoded).expect("printable ASCII is a header value")
}

fn fold_byte(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

/// Whether two names are one after folding.
pub fn folds_alike(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(|(a, b)| fold_byte(a) == fold_byte(b))
}

fn folds_to(name: &str, folded: &[u8]) -> bool {
    name.len() == folded.len() && name.bytes().zip(folded).all(|(byte, known)| fold_byte(byte) == *known)
}

/// Whether a comma-separated list holds `token`, in any case.
pub fn has_token(value: &HeaderValue, token: &str) -> bool {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The same over every line of a header.
fn any_has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| has_token(value, token))
}

/// The headers that `Connection` names and that may be removed for it.
fn nominated(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> + '_ {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| !NEVER_HOP_BY_HOP.contains(&name.as_str()) && headers.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    fn rules() -> HeaderRules {
        let names =
            ["x-auth-id", "x-auth-user", "x-auth-role", "x-gateway-secret"].map(HeaderName::from_static);
        HeaderRules::new(&names)
    }

    #[test]
    fn what_only_the_gateway_may_say_is_removed_in_every_spelling() {
        for name in [
            "X-Auth-User",
            "x_auth_user",
            "X_AUTH-USER",
            "x.auth.user",
            "x-auth_user",
            "X~Auth!User",
            "X-Gateway_Secret",
            "X-Original-URL",
            "x_original_uri",
            "X-Rewrite-Url",
            "X-Forwarded-Prefix",
            "X-Real-IP",
            "X_Real_IP",
            "Proxy",
            "X-Middleware-Subrequest",
            "X-Forwarded-For",
            "Forwarded",
            "x_forwarded_host",
            "X-Forwarded-Port",
            "X-Forwarded-Ssl",
            "Connection",
            "Keep-Alive",
            "TE",
            "Upgrade",
            "Transfer-Encoding",
            "Proxy-Authorization",
            "X-Request-Id",
            "HTTP2-Settings",
            "Expect",
            "SCRIPT_NAME",
            "Path-Info",
        ] {
            let mut map = headers(&[(name, "x"), (name, "y"), ("accept", "z")]);
            rules().strip(&mut map, false);
            assert_eq!(map, headers(&[("accept", "z")]), "{name}");
        }
    }

    #[test]
    fn what_is_the_clients_to_say_goes_on() {
        let kept = [
            ("host", "a"),
            ("cookie", "b"),
            ("x-auth-users", "c"),
            ("xauth-user", "d"),
            ("traceparent", "e"),
            ("x-csrf-token", "f"),
            ("trailer", "g"),
            ("authorization", "Basic h"),
            ("content-length", "3"),
        ];
        let mut map = headers(&kept);
        rules().strip(&mut map, false);
        assert_eq!(map, headers(&kept));
    }

    #[test]
    fn a_trusted_proxys_forwarding_headers_stay_and_nothing_else() {
        let mut map = headers(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-port", "443"),
            ("x-auth-user", "root"),
            ("x-forwarded-uri", "/x"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded_host", "evil"),
        ]);
        rules().strip(&mut map, true);
        assert_eq!(map, headers(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-port", "443")]));
    }

    #[test]
    fn connection_names_more_to_remove_but_not_what_frames_the_message() {
        let mut map = headers(&[
            ("connection", "close, X-Secret , host,content-length"),
            ("connection", "Accept"),
            ("x-secret", "a"),
            ("accept", "b"),
            ("host", "h"),
            ("content-length", "0"),
            ("cookie", "c"),
        ]);
        rules().strip(&mut map, false);
        assert_eq!(map, headers(&[("host", "h"), ("content-length", "0"), ("cookie", "c")]));
    }

    #[test]
    fn a_name_of_anyone_cannot_break_a_header() {
        for (text, value) in [
            ("vera", "vera"),
            ("a b", "a b"),
            ("a\r\nX: y", "a%0D%0AX: y"),
            ("Zoë", "Zo%C3%AB"),
            ("50%", "50%25"),
        ] {
            assert_eq!(value_of(text), value, "{text}");
        }
    }

    #[test]
    fn a_request_for_websocket_is_told_from_other_upgrades() {
        for (lines, expected) in [
            (&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")][..], true),
            (&[("connection", "keep-alive"), ("connection", "upgrade"), ("upgrade", "websocket")], true),
            (&[("connection", "upgrade"), ("upgrade", "h2c")], false),
            (&[("upgrade", "websocket")], false),
        ] {
            assert_eq!(rules().strip(&mut headers(lines), false).websocket, expected, "{lines:?}");
        }
    }
}
