//! Addresses, networks and URLs of `gateway.yaml`.
//!
//! Hosts are checked by form only (RFC 3986 §3.2.2) and never looked up here. None of them may hold a user
//! name or a password. Not here: binding, connecting, resolving.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::value::{Value, ValueError, text_value};

/// Where to listen: `host:port`, the host a name or an address (IPv6 in brackets), the port 0 for "any free one".
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// 0 lets the system choose.
    pub port: u16,
}

impl Value for Address {
    const NAME: &'static str = "address";
    const WHAT: &'static str = "an address such as 127.0.0.1:8080";

    fn parse(text: &str) -> Result<Self, ValueError> {
        const FORM: ValueError =
            ValueError::Form("is not an address: write host:port, such as 0.0.0.0:8080 or [::]:8080");
        let (host, port) = text.rsplit_once(':').ok_or(FORM)?;
        Ok(Address { host: self::host(host).ok_or(FORM)?, port: self::port(port).ok_or(FORM)? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_host(f, &self.host)?;
        write!(f, ":{}", self.port)
    }
}

text_value!(Address);

fn write_host(f: &mut fmt::Formatter<'_>, host: &str) -> fmt::Result {
    if host.contains(':') { write!(f, "[{host}]") } else { f.write_str(host) }
}

/// A port as digits alone: `+80` is none.
fn port(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The host of an authority (RFC 3986 §3.2.2): an address, bracketed when IPv6, or a DNS name.
fn host(text: &str) -> Option<String> {
    if let Some(inside) = text.strip_prefix('[') {
        return inside.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(|address| address.to_string());
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let looks_like_ipv4 = text.rsplit('.').next()?.bytes().all(|b| b.is_ascii_digit());
    if looks_like_ipv4 {
        return text.parse::<std::net::Ipv4Addr>().ok().map(|address| address.to_string());
    }
    (text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label))
        .then(|| text.to_ascii_lowercase())
}

/// A network in CIDR form, or one address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cidr(pub IpNet);

impl Value for Cidr {
    const NAME: &'static str = "cidr";
    const WHAT: &'static str = "a network such as 10.0.0.0/8";

    fn parse(text: &str) -> Result<Self, ValueError> {
        const FORM: ValueError = ValueError::Form("is neither a network such as 10.0.0.0/8 nor an address");
        let network =
            IpNet::from_str(text).or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| FORM)?;
        Ok(Cidr(network.trunc()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_value!(Cidr);

/// An upstream: `http://host[:port]` and nothing else.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct UpstreamUrl {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// 80 unless given; never 0.
    pub port: u16,
}

impl UpstreamUrl {
    /// What `Host` is for this upstream: the port only when it is not 80 (RFC 9110 §7.2).
    pub fn authority(&self) -> String {
        let text = self.to_string();
        let authority = text.strip_prefix("http://").unwrap_or(&text);
        authority.strip_suffix(":80").unwrap_or(authority).to_owned()
    }
}

/// The authority of a URL into host and port, with what is wrong with it.
fn authority(text: &str, default_port: u16) -> Result<(String, u16), ValueError> {
    if text.contains('@') {
        return Err(ValueError::Form("must not hold a user name or password"));
    }
    const FORM: ValueError = ValueError::Form("has no valid host and port, such as 127.0.0.1:3000");
    let (name, port_text) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let port = port_text.map_or(Some(default_port), port).filter(|port| *port > 0).ok_or(FORM)?;
    Ok((host(name).ok_or(FORM)?, port))
}

impl Value for UpstreamUrl {
    const NAME: &'static str = "upstream-url";
    const WHAT: &'static str = "a URL such as http://127.0.0.1:3000";

    fn parse(text: &str) -> Result<Self, ValueError> {
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(match text.split_once("://") {
                Some(("https", _)) => {
                    ValueError::Form("begins with https://; only http:// upstreams are supported")
                }
                _ => ValueError::Form("is not a URL: it must begin with http://"),
            });
        };
        if rest.contains(['?', '#']) {
            return Err(ValueError::Form("must not hold a query or a fragment"));
        }
        let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !path.is_empty() {
            return Err(ValueError::Form("must not hold a path: a request's own is forwarded as it is"));
        }
        authority(name, 80).map(|(host, port)| UpstreamUrl { host, port })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("http://")?;
        write_host(f, &self.host)?;
        write!(f, ":{}", self.port)
    }
}

text_value!(UpstreamUrl);

/// A web origin (RFC 6454 §6.2): `https://host[:port]`, as browsers send it: lower case, no default port.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Origin(String);

impl Origin {
    /// The bytes of an `Origin` header that names it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Value for Origin {
    const NAME: &'static str = "origin";
    const WHAT: &'static str = "an origin such as https://app.example.org";

    fn parse(text: &str) -> Result<Self, ValueError> {
        const FORM: ValueError = ValueError::Form(
            "is not an origin: write scheme, host and perhaps port, such as https://app.example.org",
        );
        let (scheme, default, rest) = match text.split_once("://") {
            Some(("https", rest)) => ("https", 443, rest),
            Some(("http", rest)) => ("http", 80, rest),
            _ => return Err(FORM),
        };
        let (host, port) = authority(rest.strip_suffix('/').unwrap_or(rest), default).map_err(|_| FORM)?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Ok(Origin(if port == default {
            format!("{scheme}://{host}")
        } else {
            format!("{scheme}://{host}:{port}")
        }))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_value!(Origin);

/// Where another issuer's public keys are: a URL to fetch, or a file beside the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JwksSource {
    /// `https://…` or `http://…`, with no user name in it.
    Url(String),
    /// As written.
    File(PathBuf),
}

impl Value for JwksSource {
    const NAME: &'static str = "jwks";
    const WHAT: &'static str = "a URL or a file";

    fn parse(text: &str) -> Result<Self, ValueError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            if text.is_empty() || text.contains(['\0', '\n']) {
                return Err(ValueError::Form("is neither a URL nor a file's name"));
            }
            return Ok(JwksSource::File(PathBuf::from(text)));
        };
        let default = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return Err(ValueError::Form("must begin with https:// or http://")),
        };
        if !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains('#') {
            return Err(ValueError::Form("is not a valid URL"));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        authority(&rest[..end], default)?;
        Ok(JwksSource::Url(text.to_owned()))
    }
}

impl fmt::Display for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JwksSource::Url(url) => f.write_str(url),
            JwksSource::File(file) => write!(f, "{}", file.display()),
        }
    }
}

text_value!(JwksSource);
