//! Who is asking: the peer of the connection, or the client that trusted proxies speak for.
//!
//! `X-Forwarded-For` is walked from the right through trusted hops only: what stands left of the
//! first untrusted address is anybody's word. Not here: what the address may do (nothing, by itself).

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

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
        let mut client = self.address;
        for hop in hops(headers).rev() {
            // Something that is no address ends the walk: the last hop known is the client.
            let Some(address) = parse_hop(hop) else { break };
            client = address;
            if !is_trusted(address, trusted) {
                break;
            }
        }
        client
    }

    /// Sets the forwarding headers for the upstream. `headers` hold the client's own only if the peer
    /// is trusted (`wire::headers` removes them otherwise).
    pub fn describe(&mut self, headers: &mut HeaderMap, request_id: impl FnOnce() -> HeaderValue) {
        let Some(host) = headers.get(HOST).cloned() else {
            // HTTP/1.0 without Host: nothing is known of it.
            self.name_client(headers);
            headers.insert(REQUEST_ID, request_id());
            return;
        };
        if self.trusted {
            self.extend(headers, host);
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

    /// A trusted proxy's account stays, and the proxy is added to it.
    fn extend(&mut self, headers: &mut HeaderMap, host: HeaderValue) {
        if self.forwarded_for.is_some() {
            let mut chain: String = hops(headers).collect::<Vec<_>>().join(", ");
            if !chain.is_empty() {
                chain.push_str(", ");
            }
            chain.push_str(&self.address.to_string());
            if let Ok(chain) = HeaderValue::try_from(chain) {
                headers.insert(FORWARDED_FOR, chain);
            }
        }
        let own = self.forwarded(&host);
        let before = headers.get_all(FORWARDED).iter().filter_map(|value| value.to_str().ok());
        let elements: Vec<&str> = before.chain(own.to_str().ok()).collect();
        if let Ok(elements) = HeaderValue::try_from(elements.join(", ")) {
            headers.insert(FORWARDED, elements);
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
        match self.address {
            // RFC 7239 §6.2.
            UNIX_PEER => write!(text, "for=unknown"),
            IpAddr::V4(address) => write!(text, "for={address}"),
            IpAddr::V6(address) => write!(text, "for=\"[{address}]\""),
        }
        .and_then(|()| write!(text, ";host=\"{host_text}\";proto={}", self.scheme.name()))
        .expect("writing to a string cannot fail");
        let forwarded = HeaderValue::try_from(text).expect("a Host that passed hygiene is visible ASCII");
        self.forwarded = Some((host.clone(), forwarded.clone()));
        forwarded
    }
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The entries of `X-Forwarded-For`, first to last, over all its lines.
fn hops(headers: &HeaderMap) -> impl DoubleEndedIterator<Item = &str> {
    let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|hop| !hop.is_empty())
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
    fn the_upstream_hears_what_is_known_and_a_trusted_proxys_word() {
        let id = || HeaderValue::from_static("id");
        let mut peer = Peer::new("192.0.2.1:5".parse().unwrap(), &[], Scheme::Http);
        let mut map = headers(&[("host", "cms.example")]);
        peer.describe(&mut map, id);
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
        peer.describe(&mut map, id);
        assert_eq!(map.get("x-forwarded-for"), None);
        assert_eq!(map["forwarded"], "for=unknown;host=\"cms.example\";proto=http");
        let trusted = [IpNet::from(UNIX_PEER)];
        let mut peer = Peer::new(SocketAddr::new(UNIX_PEER, 0), &trusted, Scheme::Http);
        let mut map = headers(&[("host", "cms.example"), ("x-forwarded-for", "1.1.1.1")]);
        assert_eq!(peer.client(&map, &trusted), "1.1.1.1".parse::<IpAddr>().unwrap());
        peer.describe(&mut map, id);
        assert_eq!(map["x-forwarded-for"], "1.1.1.1");
        // HTTPS that ends here is known to be.
        let mut peer = Peer::new("192.0.2.1:5".parse().unwrap(), &[], Scheme::Https);
        let mut map = headers(&[("host", "cms.example"), ("x-forwarded-proto", "http")]);
        peer.describe(&mut map, id);
        assert_eq!(map["x-forwarded-proto"], "https");
        assert_eq!(map["forwarded"], "for=192.0.2.1;host=\"cms.example\";proto=https");
        let mut peer =
            Peer::new("[2001:db8::1]:5".parse().unwrap(), &["2001:db8::/32".parse().unwrap()], Scheme::Http);
        let mut map = headers(&[
            ("host", "inner"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outer"),
            ("x-request-id", "theirs"),
            ("forwarded", "for=1.1.1.1"),
        ]);
        peer.describe(&mut map, id);
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
