//! Addresses, networks and URLs of `gateway.yaml`.
//!
//! Hosts are checked by form only (RFC 3986 §3.2.2) and never looked up here. Only a database's URL may hold a
//! user name and a password, and never shows the latter. Not here: binding, connecting, resolving.

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

/// Where clients connect: a TCP address, a Unix socket, or sockets that systemd has opened.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ListenAddress {
    /// `host:port`.
    Tcp(Address),
    /// `unix:path`; a relative path means beside the configuration.
    Unix(PathBuf),
    /// `systemd` is every socket that was handed over, `systemd:name` those with that `FileDescriptorName=`.
    Systemd(Option<String>),
}

/// The mode of a Unix socket, as `chmod` takes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileMode(pub u32);

impl Value for FileMode {
    const NAME: &'static str = "file-mode";
    const WHAT: &'static str = "a mode such as '0660'";

    fn parse(text: &str) -> Result<Self, ValueError> {
        let digits =
            text.len() == 4 && text.starts_with('0') && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let mode = digits.then(|| u32::from_str_radix(text, 8).ok()).flatten();
        // Connecting takes the right to write (unix(7)); without the owner's the gateway could not look after it.
        mode.filter(|mode| mode & 0o600 == 0o600).map(FileMode).ok_or(ValueError::Form(
            "is not a socket's mode: write four octal digits in quotes, '0660' or the like",
        ))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

text_value!(FileMode);

/// The longest path of a Unix socket: what `sun_path` holds on the smallest system, less the NUL.
const LONGEST_SOCKET_PATH: usize = 103;

impl Value for ListenAddress {
    const NAME: &'static str = "listen-address";
    const WHAT: &'static str = "an address such as 0.0.0.0:8080 or unix:/run/portcullis.sock";

    fn parse(text: &str) -> Result<Self, ValueError> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.ends_with('/') || path.contains('\0') {
                return Err(ValueError::Form(
                    "names no file: write unix:path, such as unix:/run/portcullis.sock",
                ));
            }
            if path.len() > LONGEST_SOCKET_PATH {
                return Err(ValueError::Form("is too long: the path of a Unix socket has at most 103 bytes"));
            }
            return Ok(ListenAddress::Unix(PathBuf::from(path)));
        }
        match text.strip_prefix("systemd") {
            Some("") => return Ok(ListenAddress::Systemd(None)),
            Some(rest) if rest.starts_with(':') => {
                let name = &rest[1..];
                // What systemd.socket(5) takes for FileDescriptorName=.
                let fits = name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
                return if fits
                    && !name.is_empty()
                    && name.len() <= 255
                    && !name.bytes().all(|b| b.is_ascii_digit())
                {
                    Ok(ListenAddress::Systemd(Some(name.to_owned())))
                } else {
                    Err(ValueError::Form(
                        "names no socket: write systemd, or systemd:name with its FileDescriptorName=",
                    ))
                };
            }
            _ => {}
        }
        const FORM: ValueError = ValueError::Form(
            "is not an address: write host:port, such as 0.0.0.0:8080 or [::]:8080, unix:path, or systemd",
        );
        Address::parse(text).map(ListenAddress::Tcp).map_err(|_| FORM)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddress::Systemd(None) => f.write_str("systemd"),
            ListenAddress::Systemd(Some(name)) => write!(f, "systemd:{name}"),
        }
    }
}

text_value!(ListenAddress);

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

/// A network in CIDR form, one address, or `unix`: whoever connects to a Unix socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cidr(pub IpNet);

/// The address that stands for the peer of a Unix socket, which has none: no packet comes from it (RFC 4291 §2.5.2).
pub const UNIX_PEER: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

impl Value for Cidr {
    const NAME: &'static str = "cidr";
    const WHAT: &'static str = "a network such as 10.0.0.0/8";

    fn parse(text: &str) -> Result<Self, ValueError> {
        const FORM: ValueError =
            ValueError::Form("is neither a network such as 10.0.0.0/8 nor an address, nor unix");
        if text == "unix" {
            return Ok(Cidr(IpNet::from(UNIX_PEER)));
        }
        let network =
            IpNet::from_str(text).or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| FORM)?;
        Ok(Cidr(network.trunc()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == IpNet::from(UNIX_PEER) {
            return f.write_str("unix");
        }
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

/// A page of another server: `https://host[:port]/path`, or `http://…`, with no user name in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpUrl(String);

impl HttpUrl {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Value for HttpUrl {
    const NAME: &'static str = "http-url";
    const WHAT: &'static str = "a URL such as http://127.0.0.1:3000/api/login";

    fn parse(text: &str) -> Result<Self, ValueError> {
        if !text.contains("://") {
            return Err(ValueError::Form("is not a URL: it must begin with https:// or http://"));
        }
        JwksSource::parse(text).map(|_| HttpUrl(text.to_owned()))
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_value!(HttpUrl);

/// A database: `postgres://user:password@host:5432/database?sslmode=require`, or `mysql://…`, user, password and
/// database percent-encoded where they hold more than letters and digits. Shown without password and parameters.
#[derive(Clone, Eq, PartialEq)]
pub struct DatabaseUrl(String);

/// What may stand after the `?`, for PostgreSQL and for MySQL.
const POSTGRES_PARAMETERS: [&str; 6] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "application_name"];
const MYSQL_PARAMETERS: [&str; 7] =
    ["ssl-mode", "ssl-ca", "ssl-cert", "ssl-key", "charset", "collation", "socket"];

impl DatabaseUrl {
    /// The URL with its password. Secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Value for DatabaseUrl {
    const NAME: &'static str = "database-url";
    const WHAT: &'static str = "a URL such as postgres://cms:secret@127.0.0.1/cms";

    fn parse(text: &str) -> Result<Self, ValueError> {
        const FORM: ValueError = ValueError::Form(
            "is not a database's URL: write postgres://user:password@host:port/database, or mysql://…, with every \
             other character than letters and digits of a password as %XX",
        );
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        if !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains('#') {
            return Err(FORM);
        }
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (place, database) = rest.split_once('/').ok_or(FORM)?;
        if database.is_empty() || database.contains('/') {
            return Err(ValueError::Form(
                "names no database: write it after the host, as in …@host:port/database",
            ));
        }
        let postgres = scheme.starts_with("postgres");
        let known: &[&str] = if postgres { &POSTGRES_PARAMETERS } else { &MYSQL_PARAMETERS };
        let mut has_socket = false;
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let name = parameter.split_once('=').ok_or(FORM)?.0;
            if !known.contains(&name) {
                return Err(ValueError::Form(if postgres {
                    "has an unknown parameter; known here: sslmode, sslrootcert, sslcert, sslkey, host, \
                     application_name"
                } else {
                    "has an unknown parameter; known here: ssl-mode, ssl-ca, ssl-cert, ssl-key, charset, \
                     collation, socket"
                }));
            }
            has_socket |= matches!(name, "host" | "socket");
        }
        let (user, place) = place.rsplit_once('@').unwrap_or(("", place));
        if user.contains('@') {
            return Err(FORM);
        }
        if !(place.is_empty() && has_socket) {
            authority(place, 1).map_err(|_| FORM)?;
        }
        // What its driver makes of the rest: the value of `sslmode`, for example.
        let taken = if postgres {
            sqlx::postgres::PgConnectOptions::from_str(text).map(drop)
        } else {
            sqlx::mysql::MySqlConnectOptions::from_str(text).map(drop)
        };
        taken.map_err(|_| FORM)?;
        Ok(DatabaseUrl(text.to_owned()))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
        match rest.rsplit_once('@') {
            Some((user, place)) => {
                let user = user.split_once(':').map_or(user, |(user, _)| user);
                write!(f, "{scheme}://{user}@{place}")
            }
            None => write!(f, "{scheme}://{rest}"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_in_full_and_never_shows_its_password() {
        for (text, shown) in [
            ("postgres://cms:s3cret@127.0.0.1:5432/cms?sslmode=disable", "postgres://cms@127.0.0.1:5432/cms"),
            ("mysql://cms:p%40ss%2Fword@db.example.org/wp", "mysql://cms@db.example.org/wp"),
            ("mariadb://wp@[::1]:3306/wp?ssl-mode=REQUIRED", "mariadb://wp@[::1]:3306/wp"),
            ("postgresql:///cms?host=/run/postgresql", "postgresql:///cms"),
            ("mysql:///wp?socket=/run/mysqld/mysqld.sock", "mysql:///wp"),
        ] {
            let url = DatabaseUrl::parse(text).unwrap();
            assert_eq!((url.to_string().as_str(), url.expose()), (shown, text));
            assert!(!format!("{url:?}").contains("s3cret"));
        }
        for text in [
            "postgres://cms:s3cret@127.0.0.1",
            "postgres://cms:s3cret@127.0.0.1/",
            "postgres://cms:s3#cret@127.0.0.1/cms",
            "postgres://cms:s3/cret@127.0.0.1/cms",
            "postgres://127.0.0.1:99999/cms",
            "postgres:///cms",
            "postgres://127.0.0.1/cms?sslmode=perhaps",
            "postgres://127.0.0.1/cms?password=s3cret",
            "mysql://127.0.0.1/cms?sslmode=REQUIRED&x",
        ] {
            let refused = DatabaseUrl::parse(text);
            assert!(refused.is_err(), "{text}");
            assert!(!format!("{refused:?}").contains("s3cret"));
        }
    }
}
