//! Who is asking: the peer of the connection, or the client that trusted proxies speak for.
//!
//! `X-Forwarded-For`, or where there is none `Forwarded` (RFC 7239), is walked from the right through trusted hops
//! only: what stands left of the first untrusted address is anybody's word, and goes no further. A proxy that keeps
//! one of the two lets the other through as a client has written it, and nearly all keep the first: so that one
//! counts alone where it is there. Not here: what the address may do (nothing, by itself).

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::config::value::UNIX_PEER;

/// `X-Forwarded-For`.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `X-Forwarded-Host`.
pub const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `X-Request-Id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a request came to the gateway by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// Plain HTTP, from the client or from a proxy that ends TLS.
    Http,
    /// HTTPS, ended here.
    Https,
}

impl Scheme {
    /// As URLs and forwarding headers name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// One connection's other end, and what is said of it upstream. Made once a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    address: IpAddr,
    trusted: bool,
    scheme: Scheme,
    /// The value of `X-Forwarded-For` where nobody else is spoken for; `None`: the peer has no address.
    forwarded_for: Option<HeaderValue>,
    /// `Forwarded` for the Host last seen on this connection: it rarely changes.
    forwarded: Option<(HeaderValue, HeaderValue)>,
}

impl Peer {
    /// The peer at `address`, believed if one of `trusted` holds it; its requests come by `scheme`.
    pub fn new(address: SocketAddr, trusted: &[IpNet], scheme: Scheme) -> Self {
        // An IPv4 client of a dual-stack socket is written as the IPv4 address that it is.
        let address = address.ip().to_canonical();
        let forwarded_for = (address != UNIX_PEER)
            .then(|| HeaderValue::try_from(address.to_string()).expect("an address is visible ASCII"));
        Self { address, trusted: is_trusted(address, trusted), scheme, forwarded_for, forwarded: None }
    }

    /// Whether what it says about others is believed.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// The address of the client: the peer's, or the one that trusted proxies name.
    pub fn client(&self, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
        if !self.trusted {
            return self.address;
        }
        known_hops(headers, trusted).first().copied().unwrap_or(self.address)
    }

    /// Sets the forwarding headers for the upstream. `headers` hold the client's own only if the peer
    /// is trusted (`wire::headers` removes them otherwise).
    pub fn describe(
        &mut self,
        headers: &mut HeaderMap,
        trusted: &[IpNet],
        request_id: impl FnOnce() -> HeaderValue,
    ) {
        let Some(host) = headers.get(HOST).cloned() else {
            // HTTP/1.0 without Host: nothing is known of it.
            self.name_client(headers);
            headers.insert(REQUEST_ID, request_id());
            return;
        };
        if self.trusted {
            self.extend(headers, host, trusted);
            headers.entry(REQUEST_ID).or_insert_with(request_id);
        } else {
            self.name_client(headers);
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static(self.scheme.name()));
            headers.insert(FORWARDED, self.forwarded(&host));
            headers.insert(FORWARDED_HOST, host);
            headers.insert(REQUEST_ID, request_id());
        }
    }

    fn name_client(&self, headers: &mut HeaderMap) {
        if let Some(address) = &self.forwarded_for {
            headers.insert(FORWARDED_FOR, address.clone());
        }
    }

    /// What is known of a trusted proxy's account stays, and the proxy is added to it.
    fn extend(&mut self, headers: &mut HeaderMap, host: HeaderValue, trusted: &[IpNet]) {
        let own = self.forwarded(&host);
        let (mut chain, mut elements) = (String::new(), String::new());
        for hop in known_hops(headers, trusted) {
            write!(chain, "{hop}, ").expect("writing to a string cannot fail");
            write_for(&mut elements, hop);
            elements.push_str(", ");
        }
        match self.forwarded_for {
            Some(_) => write!(chain, "{}", self.address).expect("writing to a string cannot fail"),
            None => chain.truncate(chain.trim_end_matches(", ").len()),
        }
        elements.push_str(own.to_str().unwrap_or_default());
        for (name, value) in [(FORWARDED_FOR, chain), (FORWARDED, elements)] {
            headers
                .insert(name, HeaderValue::try_from(value).expect("addresses and a Host are visible ASCII"));
        }
        if self.forwarded_for.is_none() && headers[FORWARDED_FOR].is_empty() {
            headers.remove(FORWARDED_FOR);
        }
        headers.entry(FORWARDED_HOST).or_insert(host);
        headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(self.scheme.name()));
    }

    /// RFC 7239: `for=…;host=…;proto=…`.
    fn forwarded(&mut self, host: &HeaderValue) -> HeaderValue {
        if let Some((known, forwarded)) = &self.forwarded
            && known == host
        {
            return forwarded.clone();
        }
        let mut text = String::with_capacity(64);
        let host_text = host.to_str().unwrap_or_default();
        write_for(&mut text, self.address);
        write!(text, ";host=\"{host_text}\";proto={}", self.scheme.name())
            .expect("writing to a string cannot fail");
        let forwarded = HeaderValue::try_from(text).expect("a Host that passed hygiene is visible ASCII");
        self.forwarded = Some((host.clone(), forwarded.clone()));
        forwarded
    }
}

/// Whether one of the networks `trusted` holds `address`, in canonical form.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// `for=…` (RFC 7239 §4, §6).
fn write_for(text: &mut String, address: IpAddr) {
    match address {
        UNIX_PEER => write!(text, "for=unknown"),
        IpAddr::V4(address) => write!(text, "for={address}"),
        IpAddr::V6(address) => write!(text, "for=\"[{address}]\""),
    }
    .expect("writing to a string cannot fail");
}

/// Whom a trusted peer speaks for: the client first, then the trusted proxies that it came through, without the
/// peer. Something that is no address ends the walk: the last hop before it is the client.
fn known_hops(headers: &HeaderMap, trusted: &[IpNet]) -> SmallVec<[IpAddr; 4]> {
    let mut hops = SmallVec::new();
    let mut goes_on = |hop: Option<IpAddr>| {
        hops.extend(hop);
        hop.is_some_and(|address| is_trusted(address, trusted))
    };
    if headers.contains_key(FORWARDED_FOR) {
        let lines = headers.get_all(FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or("?"));
        let entries = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|hop| !hop.is_empty());
        let _ = entries.rev().map(parse_hop).all(&mut goes_on);
    } else if headers.contains_key(FORWARDED) {
        let lines = headers.get_all(FORWARDED).iter().map(|value| value.to_str().unwrap_or("?"));
        // One that cannot be read says nothing about any hop: where a quoted text ends is anybody's guess.
        let elements: Option<SmallVec<[_; 4]>> =
            lines.map(elements).try_fold(SmallVec::new(), |mut all, line| {
                all.extend(line?);
                Some(all)
            });
        let _ = elements.into_iter().flatten().rev().all(&mut goes_on);
    }
    hops.reverse();
    hops
}

/// The `for` of each element of a `Forwarded` line (RFC 7239 §4), where it is an address; `None` for a line that is
/// not well-formed, or an element with two.
fn elements(line: &str) -> Option<SmallVec<[Option<IpAddr>; 4]>> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let mut found = SmallVec::new();
    let mut rest = line.trim();
    let mut named = None;
    loop {
        let (name, value) = rest.split_once('=')?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => {
                let (value, after) = quoted.split_once('"')?;
                // No address needs an escape.
                if value.contains('\\') {
                    return None;
                }
                (value, after)
            }
            None => value.split_at(value.find(|c| !token(c)).unwrap_or(value.len())),
        };
        if name.is_empty() || value.is_empty() || !name.chars().all(token) {
            return None;
        }
        if name.eq_ignore_ascii_case("for") && named.replace(parse_hop(value)).is_some() {
            return None;
        }
        rest = after.trim_start();
        match rest.chars().next() {
            Some(';') => rest = &rest[1..],
            Some(',') => {
                found.push(named.take().flatten());
                rest = rest[1..].trim_start();
            }
            Some(_) => return None,
            None => {
                found.push(named.take().flatten());
                return Some(found);
            }
        }
    }
}

/// An address, with or without a port, IPv6 with or without brackets.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let address = hop.parse::<IpAddr>().or_else(|_| hop.parse::<SocketAddr>().map(|socket| socket.ip()));
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address = address.ok().or_else(bracketed).map(|address: IpAddr| address.to_canonical());
    // Nobody has this one, and to us it means somebody in particular.
    address.filter(|address| *address != UNIX_PEER)
}

/// A client as log lines name it: its address, or `unix` where a Unix socket's peer has told no other.
pub fn shown(client: IpAddr) -> String {
    if client == UNIX_PEER { "unix".to_owned() } else { client.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn forwarded_addresses_are_believed_through_trusted_hops_only() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "::1/128"].map(|net| net.parse().unwrap()).to_vec();
        for (peer, forwarded, client) in [
            ("203.0.113.9:1", "1.1.1.1", "203.0.113.9"),
            ("10.0.0.1:1", "", "10.0.0.1"),
            ("10.0.0.1:1", "1.1.1.1", "1.1.1.1"),
            ("10.0.0.1:1", "6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
            ("10.0.0.1:1", "6.6.6.6, garbage, 10.0.0.2", "10.0.0.2"),
            ("10.0.0.1:1", "6.6.6.6, 1.1.1.1:4711", "1.1.1.1"),
            ("[::1]:1", "[2001:db8::1]:80, 10.9.9.9", "2001:db8::1"),
            ("[::ffff:10.0.0.1]:1", "1.1.1.1", "1.1.1.1"),
            ("10.0.0.1:1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("10.0.0.1:1", "6.6.6.6, ::, 10.0.0.2", "10.0.0.2"),
        ] {
            let peer = Peer::new(peer.parse().unwrap(), &trusted, Scheme::Http);
            let map = headers(&[("x-forwarded-for", forwarded)]);
            assert_eq!(peer.client(&map, &trusted), client.parse::<IpAddr>().unwrap(), "{forwarded}");
        }
    }

    #[test]
    fn forwarded_is_walked_where_it_is_alone_and_counts_for_nothing_where_it_cannot_be_read() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8".parse().unwrap()].to_vec();
        let peer = Peer::new("10.0.0.1:1".parse().unwrap(), &trusted, Scheme::Http);
        for (forwarded, client) in [
            ("for=1.1.1.1", "1.1.1.1"),
            ("For=1.1.1.1;proto=https;by=10.0.0.1", "1.1.1.1"),
            ("proto=https;for=\"1.1.1.1:4711\" , for=10.0.0.2", "1.1.1.1"),
            ("for=6.6.6.6, for=1.1.1.1, for=10.0.0.2", "1.1.1.1"),
            ("for=\"[2001:db8::1]:80\";host=\"a,b;c\"", "2001:db8::1"),
            ("for=6.6.6.6, for=unknown, for=10.0.0.2", "10.0.0.2"),
            ("for=6.6.6.6, for=_hidden", "10.0.0.1"),
            ("for=6.6.6.6, proto=https", "10.0.0.1"),
            ("for=1.1.1.1, for=10.0.0.2;", "10.0.0.1"),
            ("for=1.1.1.1;for=10.0.0.2", "10.0.0.1"),
            ("for=\"1.1.1.1", "10.0.0.1"),
            ("for=\"1.1.1.1\\\"\"", "10.0.0.1"),
            ("for=1.1.1.1,,for=10.0.0.2", "10.0.0.1"),
            ("for =1.1.1.1", "10.0.0.1"),
            ("1.1.1.1", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            let map = headers(&[("forwarded", forwarded)]);
            assert_eq!(peer.client(&map, &trusted), client.parse::<IpAddr>().unwrap(), "{forwarded}");
            // A client's own, past a proxy that keeps the other header.
            let both = headers(&[("forwarded", forwarded), ("x-forwarded-for", "7.7.7.7")]);
            assert_eq!(peer.client(&both, &trusted), "7.7.7.7".parse::<IpAddr>().unwrap(), "{forwarded}");
        }
        let lines = headers(&[("forwarded", "for=6.6.6.6, for=1.1.1.1"), ("forwarded", "for=10.0.0.2")]);
        assert_eq!(peer.client(&lines, &trusted), "1.1.1.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn the_upstream_hears_nothing_of_what_a_stranger_wrote_before_the_first_proxy() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8".parse().unwrap()].to_vec();
        let own = "for=10.0.0.1;host=\"cms\";proto=http";
        for (lines, chain, elements) in [
            (
                &[("x-forwarded-for", "6.6.6.6, 1.1.1.1:4711, 10.0.0.2"), ("forwarded", "for=6.6.6.6")][..],
                "1.1.1.1, 10.0.0.2, 10.0.0.1",
                "for=1.1.1.1, for=10.0.0.2, ",
            ),
            (&[("x-forwarded-for", "6.6.6.6, <script>")], "10.0.0.1", ""),
            (
                &[("forwarded", "for=6.6.6.6, for=\"[2001:db8::1]:80\";by=_x, for=10.0.0.2")],
                "2001:db8::1, 10.0.0.2, 10.0.0.1",
                "for=\"[2001:db8::1]\", for=10.0.0.2, ",
            ),
            (&[("forwarded", "for=6.6.6.6;;")], "10.0.0.1", ""),
            (&[], "10.0.0.1", ""),
        ] {
            let mut map = headers(&[("host", "cms")]);
            map.extend(headers(lines));
            let mut peer = Peer::new("10.0.0.1:1".parse().unwrap(), &trusted, Scheme::Http);
            peer.describe(&mut map, &trusted, || HeaderValue::from_static("id"));
            assert_eq!(map["x-forwarded-for"], chain, "{lines:?}");
            assert_eq!(map["forwarded"], format!("{elements}{own}"), "{lines:?}");
            assert_eq!(map.get_all("forwarded").iter().count(), 1, "{lines:?}");
        }
    }

    #[test]
    fn the_upstream_hears_what_is_known_and_a_trusted_proxys_word() {
        let id = || HeaderValue::from_static("id");
        let mut peer = Peer::new("192.0.2.1:5".parse().unwrap(), &[], Scheme::Http);
        let mut map = headers(&[("host", "cms.example")]);
        peer.describe(&mut map, &[], id);
        for (name, value) in [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "cms.example"),
            ("forwarded", "for=192.0.2.1;host=\"cms.example\";proto=http"),
            ("x-request-id", "id"),
        ] {
            assert_eq!(map[name], value);
        }
        // A Unix socket's peer has no address, and one that is trusted names its client's.
        let mut peer = Peer::new(SocketAddr::new(UNIX_PEER, 0), &[], Scheme::Http);
        let mut map = headers(&[("host", "cms.example")]);
        peer.describe(&mut map, &[], id);
        assert_eq!(map.get("x-forwarded-for"), None);
        assert_eq!(map["forwarded"], "for=unknown;host=\"cms.example\";proto=http");
        let trusted = [IpNet::from(UNIX_PEER)];
        let mut peer = Peer::new(SocketAddr::new(UNIX_PEER, 0), &trusted, Scheme::Http);
        for (sent, named, elements) in [
            ("1.1.1.1", Some("1.1.1.1"), "for=1.1.1.1, for=unknown;host=\"cms.example\";proto=http"),
            ("6.6.6.6, 1.1.1.1", Some("1.1.1.1"), "for=1.1.1.1, for=unknown;host=\"cms.example\";proto=http"),
            ("garbage", None, "for=unknown;host=\"cms.example\";proto=http"),
        ] {
            let mut map = headers(&[("host", "cms.example"), ("x-forwarded-for", sent)]);
            let client = named.map_or(UNIX_PEER, |named| named.parse().unwrap());
            assert_eq!(peer.client(&map, &trusted), client, "{sent}");
            peer.describe(&mut map, &trusted, id);
            assert_eq!(map.get("x-forwarded-for").map(|value| value.to_str().unwrap()), named, "{sent}");
            assert_eq!(map["forwarded"], elements, "{sent}");
        }
        // HTTPS that ends here is known to be.
        let mut peer = Peer::new("192.0.2.1:5".parse().unwrap(), &[], Scheme::Https);
        let mut map = headers(&[("host", "cms.example"), ("x-forwarded-proto", "http")]);
        peer.describe(&mut map, &[], id);
        assert_eq!(map["x-forwarded-proto"], "https");
        assert_eq!(map["forwarded"], "for=192.0.2.1;host=\"cms.example\";proto=https");
        let trusted = ["2001:db8::/32".parse().unwrap()];
        let mut peer = Peer::new("[2001:db8::1]:5".parse().unwrap(), &trusted, Scheme::Http);
        let mut map = headers(&[
            ("host", "inner"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outer"),
            ("x-request-id", "theirs"),
            ("forwarded", "for=1.1.1.1"),
        ]);
        peer.describe(&mut map, &trusted, id);
        for (name, value) in [
            ("x-forwarded-for", "1.1.1.1, 2001:db8::1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outer"),
            ("forwarded", "for=1.1.1.1, for=\"[2001:db8::1]\";host=\"inner\";proto=http"),
            ("x-request-id", "theirs"),
        ] {
            assert_eq!(map[name], value);
        }
    }
}
