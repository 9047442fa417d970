//! The PROXY protocol, versions 1 and 2: who the client is, from a load balancer that passes bytes on.
//!
//! The header stands before the first byte of the connection, TLS included (HAProxy's `proxy-protocol.txt`, §2).
//! Read strictly: an address in another spelling, a family that is not what its length says, or a broken list of
//! extras refuses the connection, because what is misread here becomes somebody's address in every log. Pure: bytes
//! in, address out. Not here: whom to believe it, and when it must come (`server::proxy_protocol`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// How version 1 begins (§2.1).
const TEXT: &[u8] = b"PROXY ";

/// The longest line of version 1, with its CR LF (§2.1).
const MAX_LINE: usize = 107;

/// How version 2 begins (§2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, command, family, and the length of what follows.
const FIXED: usize = 16;

/// The largest header that is taken. Load balancers add extras, a client's certificate at most.
pub const MAX_HEADER: usize = 4096;

/// The checksum's type among the extras, `PP2_TYPE_CRC32C` (§2.2.3).
const CHECKSUM: u8 = 0x03;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// Perhaps the beginning of a header: too few to tell.
    Undecided,
    /// The beginning of a header.
    Partial,
    /// No header, and nothing that could become one.
    Absent,
    /// A whole header of so many bytes.
    Whole {
        /// How many of them are the header.
        length: usize,
        /// The client; `None`: the load balancer speaks for itself, or for somebody without an address.
        client: Option<SocketAddr>,
    },
}

/// A header that cannot be relied on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// A line that is not as §2.1 writes it, or has no end where it has to have one.
    Line,
    /// An address or a port that is none, or is written in another way than the one that is allowed.
    Address,
    /// A version, command or family that is not known or cannot be a TCP connection's.
    Kind,
    /// More than [`MAX_HEADER`] bytes, or fewer than its addresses take.
    Length,
    /// Extras that do not fill their place exactly.
    Extras,
    /// A checksum of other bytes.
    Checksum,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line => "its line is malformed",
            Self::Address => "an address in it is malformed",
            Self::Kind => "it is of a version, command or family that is not known",
            Self::Length => "its length is wrong",
            Self::Extras => "its list of extras is malformed",
            Self::Checksum => "its checksum is wrong",
        })
    }
}

impl std::error::Error for Malformed {}

/// What became of the header of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It names a client.
    Client,
    /// The load balancer speaks for itself.
    Local,
    /// None came, and none had to.
    Absent,
    /// None came, and one had to.
    Missing,
    /// One had to come, from somebody who is not trusted with it.
    Untrusted,
    /// It could not be read.
    Malformed,
    /// It did not come in time, or the connection ended in the middle of it.
    CutShort,
}

impl Outcome {
    /// All of them, for the metric.
    pub const ALL: [Self; 7] = [
        Self::Client,
        Self::Local,
        Self::Absent,
        Self::Missing,
        Self::Untrusted,
        Self::Malformed,
        Self::CutShort,
    ];

    /// A fixed name, for the metric and the log. The list is closed.
    pub fn code(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Local => "local",
            Self::Absent => "absent",
            Self::Missing => "missing",
            Self::Untrusted => "untrusted",
            Self::Malformed => "malformed",
            Self::CutShort => "cut_short",
        }
    }
}

/// Looks at the first bytes of a connection.
///
/// # Errors
/// [`Malformed`] for a header that is wrong; never for bytes that are no header.
pub fn look(bytes: &[u8]) -> Result<Look, Malformed> {
    for (beginning, read) in [(TEXT, text as fn(&[u8]) -> _), (SIGNATURE, binary)] {
        if bytes.starts_with(beginning) {
            return match read(bytes)? {
                // Nobody connects from there, and it is how peers without an address are told here.
                Look::Whole { client: Some(client), .. } if client.ip().to_canonical().is_unspecified() => {
                    Err(Malformed::Address)
                }
                look => Ok(look),
            };
        }
        if beginning.starts_with(bytes) {
            return Ok(Look::Undecided);
        }
    }
    Ok(Look::Absent)
}

/// Version 1 (§2.1): `PROXY TCP4 source destination source-port destination-port CR LF`.
fn text(bytes: &[u8]) -> Result<Look, Malformed> {
    let within = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Ok(Look::Partial) } else { Err(Malformed::Line) };
    };
    let line = within[..end].strip_suffix(b"\r").ok_or(Malformed::Line)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed::Line)?;
    let mut words = line.split(' ').skip(1);
    let client = match words.next() {
        // What follows is to be ignored, and is no more than a line can hold.
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(endpoints::<Ipv4Addr>(words)?),
        Some("TCP6") => Some(endpoints::<Ipv6Addr>(words)?),
        _ => return Err(Malformed::Kind),
    };
    Ok(Look::Whole { length: end + 1, client })
}

/// The source among the four words that follow the family.
fn endpoints<'a, A>(mut words: impl Iterator<Item = &'a str>) -> Result<SocketAddr, Malformed>
where
    A: FromStr + Into<IpAddr>,
{
    let mut address = || words.next()?.parse::<A>().ok();
    let (source, destination) = (address(), address());
    let mut port = || {
        let digits = words.next()?;
        let plain =
            digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        digits.parse::<u16>().ok().filter(|_| plain)
    };
    match (source, destination, port(), port(), words.next()) {
        (Some(source), Some(_), Some(port), Some(_), None) => Ok(SocketAddr::new(source.into(), port)),
        (Some(_), Some(_), Some(_), Some(_), Some(_)) => Err(Malformed::Line),
        _ => Err(Malformed::Address),
    }
}

/// Version 2 (§2.2).
fn binary(bytes: &[u8]) -> Result<Look, Malformed> {
    let [command, family, high, low, ..] = bytes[SIGNATURE.len()..] else { return Ok(Look::Partial) };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_HEADER {
        return Err(Malformed::Length);
    }
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed::Kind),
    };
    // How many bytes the addresses take, and how many of these the source's.
    let addresses = match family {
        _ if local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => return Err(Malformed::Kind),
    };
    if length < FIXED + addresses {
        return Err(Malformed::Length);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Look::Partial) };
    let (block, extras) = header[FIXED..].split_at(addresses);
    // The load balancer's own connection: whatever it sends along is to be skipped (§2.2).
    if !local {
        check_extras(header, extras)?;
    }
    let client = match (family, block) {
        _ if local => None,
        (0x11, [a, b, c, d, _, _, _, _, high, low, ..]) => {
            let port = u16::from_be_bytes([*high, *low]);
            Some(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), port))
        }
        (0x21, block) => {
            let source: [u8; 16] = block[..16].try_into().expect("sixteen bytes of thirty-six");
            let port = u16::from_be_bytes([block[32], block[33]]);
            Some(SocketAddr::new(Ipv6Addr::from(source).into(), port))
        }
        // A Unix socket, or nothing that is said: nobody with an address.
        _ => None,
    };
    Ok(Look::Whole { length, client })
}

/// Goes over the type-length-value list behind the addresses (§2.2.1), which has to fill its place exactly.
fn check_extras(header: &[u8], mut extras: &[u8]) -> Result<(), Malformed> {
    while !extras.is_empty() {
        let [kind, high, low, rest @ ..] = extras else { return Err(Malformed::Extras) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(Malformed::Extras)?;
        if *kind == CHECKSUM {
            let stated: [u8; 4] = value.try_into().map_err(|_| Malformed::Extras)?;
            let place = header.len() - rest.len() - length;
            if checksum(header, place) != u32::from_be_bytes(stated) {
                return Err(Malformed::Checksum);
            }
        }
        extras = rest;
    }
    Ok(())
}

/// CRC-32C (Castagnoli, RFC 3309) of the header with zeros where the checksum itself stands, at `place`.
fn checksum(header: &[u8], place: usize) -> u32 {
    let crc = header.iter().enumerate().fold(u32::MAX, |crc, (at, byte)| {
        let byte = if (place..place + 4).contains(&at) { 0 } else { *byte };
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 * (crc & 1)))
    });
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, block].concat()
    }

    fn v4_block(extras: &[u8]) -> Vec<u8> {
        [&[192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80], extras].concat()
    }

    fn whole(length: usize, client: Option<&str>) -> Result<Look, Malformed> {
        Ok(Look::Whole { length, client: client.map(|client| client.parse().unwrap()) })
    }

    #[test]
    fn a_line_names_the_client() {
        for (line, client) in [
            ("PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n", Some("192.0.2.7:4660")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n", Some("255.255.255.255:65535")),
            ("PROXY TCP6 2001:db8::7 ::1 4660 80\r\n", Some("[2001:db8::7]:4660")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
        ] {
            let with_more = format!("{line}GET / HTTP/1.1\r\n");
            assert_eq!(look(with_more.as_bytes()), whole(line.len(), client), "{line}");
            for length in 0..line.len() {
                let expected = if length < 6 { Look::Undecided } else { Look::Partial };
                assert_eq!(look(&line.as_bytes()[..length]), Ok(expected), "{line}, {length}");
            }
        }
    }

    #[test]
    fn a_line_in_any_other_spelling_is_refused() {
        for (line, why) in [
            ("PROXY \r\n", Malformed::Kind),
            ("PROXY tcp4 192.0.2.7 10.0.0.1 1 2\r\n", Malformed::Kind),
            ("PROXY  TCP4 192.0.2.7 10.0.0.1 1 2\r\n", Malformed::Kind),
            ("PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n", Malformed::Kind),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 1\r\n", Malformed::Address),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 1 2 3\r\n", Malformed::Line),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 1 2 \r\n", Malformed::Line),
            ("PROXY TCP4 192.0.2.7  10.0.0.1 1 2\r\n", Malformed::Address),
            ("PROXY TCP4 192.0.2.07 10.0.0.1 1 2\r\n", Malformed::Address),
            ("PROXY TCP4 192.0.2 10.0.0.1 1 2\r\n", Malformed::Address),
            ("PROXY TCP4 2001:db8::7 ::1 1 2\r\n", Malformed::Address),
            ("PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n", Malformed::Address),
            ("PROXY TCP6 :: ::1 1 2\r\n", Malformed::Address),
            ("PROXY TCP4 0.0.0.0 10.0.0.1 1 2\r\n", Malformed::Address),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 01 2\r\n", Malformed::Address),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 +1 2\r\n", Malformed::Address),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 65536 2\r\n", Malformed::Address),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 1 2\n", Malformed::Line),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\r\n", Malformed::Address),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 1 \u{e9}\r\n", Malformed::Address),
        ] {
            assert_eq!(look(line.as_bytes()), Err(why), "{line}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(93));
        assert_eq!((endless.len(), look(endless.as_bytes())), (MAX_LINE, Err(Malformed::Line)));
        assert_eq!(look(&endless.as_bytes()[..MAX_LINE - 1]), Ok(Look::Partial));
        let late = format!("{endless}\r\n");
        assert_eq!(look(late.as_bytes()), Err(Malformed::Line));
    }

    #[test]
    fn a_binary_header_names_the_client() {
        let v6 =
            [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..], &[0; 16], &[0x12, 0x34, 0, 80]];
        for (header, client) in [
            (v2(0x21, 0x11, &v4_block(&[])), Some("192.0.2.7:4660")),
            (v2(0x21, 0x11, &v4_block(&[0x04, 0, 3, 0, 0, 0, 0xee, 0, 0])), Some("192.0.2.7:4660")),
            (v2(0x21, 0x21, &v6.concat()), Some("[2001:db8::7]:4660")),
            (v2(0x21, 0x31, &[b'a'; 216]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x20, 0x00, &[]), None),
            // A health check's own, whatever it carries.
            (v2(0x20, 0x11, &v4_block(&[])), None),
            (v2(0x20, 0xff, &[1, 2, 3]), None),
        ] {
            assert_eq!(look(&[&header[..], b"GET /"].concat()), whole(header.len(), client), "{header:?}");
            for length in 0..header.len() {
                let expected = if length < 12 { Look::Undecided } else { Look::Partial };
                assert_eq!(look(&header[..length]), Ok(expected), "{header:?}, {length}");
            }
        }
    }

    #[test]
    fn a_binary_header_that_does_not_add_up_is_refused() {
        for (header, why) in [
            (v2(0x11, 0x11, &v4_block(&[])), Malformed::Kind),
            (v2(0x22, 0x11, &v4_block(&[])), Malformed::Kind),
            (v2(0x21, 0x12, &v4_block(&[])), Malformed::Kind),
            (v2(0x21, 0x22, &[0; 36]), Malformed::Kind),
            (v2(0x21, 0x41, &[0; 36]), Malformed::Kind),
            (v2(0x21, 0x11, &v4_block(&[])[..11]), Malformed::Length),
            (v2(0x21, 0x21, &[0; 35]), Malformed::Length),
            (v2(0x21, 0x31, &[0; 215]), Malformed::Length),
            (v2(0x21, 0x11, &[0; MAX_HEADER - FIXED + 1]), Malformed::Length),
            (v2(0x21, 0x11, &v4_block(&[0x04])), Malformed::Extras),
            (v2(0x21, 0x11, &v4_block(&[0x04, 0, 2, 0])), Malformed::Extras),
            (v2(0x21, 0x11, &v4_block(&[0x04, 0xff, 0xff])), Malformed::Extras),
            (v2(0x21, 0x11, &v4_block(&[CHECKSUM, 0, 3, 0, 0, 0])), Malformed::Extras),
            (v2(0x21, 0x11, &v4_block(&[CHECKSUM, 0, 4, 0, 0, 0, 0])), Malformed::Checksum),
        ] {
            assert_eq!(look(&header), Err(why), "{header:?}");
        }
    }

    #[test]
    fn a_checksum_that_is_there_has_to_be_right() {
        // The check value of CRC-32C.
        assert_eq!(checksum(b"123456789", 9), 0xE306_9283);
        let mut header = v2(0x21, 0x11, &v4_block(&[CHECKSUM, 0, 4, 0, 0, 0, 0, 0x04, 0, 1, 9]));
        let place = header.len() - 8;
        let right = checksum(&header, place).to_be_bytes();
        header[place..place + 4].copy_from_slice(&right);
        assert_eq!(look(&header), whole(header.len(), Some("192.0.2.7:4660")));
        // The addresses, the checksum, what follows it.
        for at in (FIXED..FIXED + 12).chain(place..place + 4).chain([header.len() - 1]) {
            let mut other = header.clone();
            other[at] ^= 1;
            assert_eq!(look(&other), Err(Malformed::Checksum), "byte {at}");
        }
    }

    #[test]
    fn what_begins_otherwise_is_no_header() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"PROPFIND / HTTP/1.1",
            b"PROXY\t",
            b"proxy ",
            b"\x16\x03\x01",
            b"\r\n\r\nGET",
        ] {
            assert_eq!(look(bytes), Ok(Look::Absent), "{bytes:?}");
        }
        assert_eq!(look(b""), Ok(Look::Undecided));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_claim_more_than_there_is(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..3) {
            let bytes = match kind {
                0 => bytes,
                1 => [TEXT, &bytes[..]].concat(),
                _ => [SIGNATURE, &[0x21], &bytes[..]].concat(),
            };
            if let Ok(Look::Whole { length, .. }) = look(&bytes) {
                prop_assert!(length <= bytes.len() && length <= MAX_HEADER);
                // What follows changes nothing, and less is never enough.
                prop_assert_eq!(look(&bytes[..length]), look(&bytes));
                let cut = look(&bytes[..length - 1]);
                prop_assert!(matches!(cut, Ok(Look::Partial)), "{:?}", cut);
            }
        }

        #[test]
        fn an_address_comes_out_as_it_went_in(address: IpAddr, port: u16, binary: bool, extras in prop::collection::vec((4..=255_u8, prop::collection::vec(any::<u8>(), 0..40)), 0..4)) {
            let client = SocketAddr::new(address, port);
            let header = match (address, binary) {
                (IpAddr::V4(a), false) => format!("PROXY TCP4 {a} 10.0.0.1 {port} 443\r\n").into_bytes(),
                (IpAddr::V6(a), false) => format!("PROXY TCP6 {a} ::1 {port} 443\r\n").into_bytes(),
                (address, true) => {
                    let (family, mut block) = match address {
                        IpAddr::V4(a) => (0x11, [&a.octets()[..], &[10, 0, 0, 1]].concat()),
                        IpAddr::V6(a) => (0x21, [&a.octets()[..], &[0; 16]].concat()),
                    };
                    block.extend([port.to_be_bytes(), 443_u16.to_be_bytes()].concat());
                    for (kind, value) in &extras {
                        block.push(*kind);
                        block.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
                        block.extend(value);
                    }
                    v2(0x21, family, &block)
                }
            };
            let expected = match address.to_canonical().is_unspecified() {
                true => Err(Malformed::Address),
                false => Ok(Look::Whole { length: header.len(), client: Some(client) }),
            };
            prop_assert_eq!(look(&header), expected);
        }
    }
}
