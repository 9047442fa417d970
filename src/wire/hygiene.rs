//! Refuses what two parsers could read as two requests.
//!
//! hyper parses the requests; this stands before it and lets only those bytes through that every
//! parser frames alike (RFC 9112 §2.2, §3, §5.1, §6, §11.2): one request in, one request out. It
//! looks at whole heads, follows bodies to their end, and hands hyper one message at a time, so no
//! byte behind a refused head is ever parsed. Pure: bytes in, verdict out.
//! Not here: what the target means (`policy`), who sends it (`client`, `credentials`).

use std::fmt;
use std::net::Ipv6Addr;

use memchr::{Memchr, memchr, memchr_iter};

/// What may be wrong with the bytes of a request before its meaning is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum HeadError {
    /// The request line is not `METHOD SP target SP HTTP/1.x`.
    RequestLine,
    /// The method is not an upper-case token.
    Method,
    /// CONNECT or TRACE, or `OPTIONS *`.
    MethodRefused,
    /// HTTP/0.9, HTTP/2 without TLS, or an unknown version.
    Version,
    /// The target is longer than `limits.target_bytes`.
    TargetTooLong,
    /// A line that does not end in CR LF, or either of them alone.
    LineEnd,
    /// A line folded onto the next, or white space before the colon.
    Fold,
    /// A header line without a name, or with a name that is no token.
    HeaderName,
    /// A NUL or other control character in a header value.
    HeaderValue,
    /// No Host, more than one, or one that is no `host[:port]`.
    Host,
    /// An absolute-form target whose authority is not the Host.
    AuthorityMismatch,
    /// Content-Length repeated, or not a number.
    ContentLength,
    /// Anything but a single `Transfer-Encoding: chunked`, or that with HTTP/1.0.
    TransferEncoding,
    /// Both Content-Length and Transfer-Encoding.
    BothLengths,
    /// A chunk size, chunk end or trailer that is malformed.
    Chunk,
    /// The head is larger than `limits.header_bytes`.
    HeadTooLarge,
    /// More header lines than `limits.headers`.
    TooManyHeaders,
    /// The head did not arrive within `limits.header_timeout`.
    HeadTooSlow,
    /// The body stopped arriving for `limits.idle_timeout`.
    BodyTooSlow,
    /// Plain HTTP where TLS is spoken.
    PlainHttp,
    /// TLS where plain HTTP is spoken.
    TlsHello,
    /// A pseudo-header of HTTP/2 that is missing or is not what came by this connection.
    Pseudo,
    /// More frames of HTTP/2 that mean nothing than anybody needs.
    Flood,
}

impl HeadError {
    /// A stable code for logs, metrics and `$code`.
    pub fn code(self) -> &'static str {
        match self {
            Self::RequestLine => "request_line",
            Self::Method => "method",
            Self::MethodRefused => "method_refused",
            Self::Version => "http_version",
            Self::TargetTooLong => "target_too_long",
            Self::LineEnd => "line_end",
            Self::Fold => "header_fold",
            Self::HeaderName => "header_name",
            Self::HeaderValue => "header_value",
            Self::Host => "host",
            Self::AuthorityMismatch => "authority_mismatch",
            Self::ContentLength => "content_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::BothLengths => "both_lengths",
            Self::Chunk => "chunk",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyHeaders => "too_many_headers",
            Self::HeadTooSlow => "head_too_slow",
            Self::BodyTooSlow => "body_too_slow",
            Self::PlainHttp => "plain_http",
            Self::TlsHello => "tls_hello",
            Self::Pseudo => "pseudo_header",
            Self::Flood => "http2_flood",
        }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestLine => "the request line is malformed",
            Self::Method => "the method is not an upper-case token",
            Self::MethodRefused => "this method never passes",
            Self::Version => "the HTTP version is not 1.0 or 1.1",
            Self::TargetTooLong => "the request target is too long",
            Self::LineEnd => "a line does not end in CR LF",
            Self::Fold => "a header line is folded or has a blank before its colon",
            Self::HeaderName => "a header name is malformed",
            Self::HeaderValue => "a header value holds a control character",
            Self::Host => "there is no Host, more than one, or a malformed one",
            Self::AuthorityMismatch => "the target's authority is not the Host",
            Self::ContentLength => "Content-Length is repeated or malformed",
            Self::TransferEncoding => "Transfer-Encoding is not a single 'chunked'",
            Self::BothLengths => "Content-Length and Transfer-Encoding stand together",
            Self::Chunk => "the chunked body is malformed",
            Self::HeadTooLarge => "the head is too large",
            Self::TooManyHeaders => "there are too many headers",
            Self::HeadTooSlow => "the head arrived too slowly",
            Self::BodyTooSlow => "the body stopped arriving",
            Self::PlainHttp => "plain HTTP was sent to an HTTPS port",
            Self::TlsHello => "TLS was spoken to a plain HTTP port",
            Self::Pseudo => "a pseudo-header is missing or wrong",
            Self::Flood => "there are too many idle frames",
        })
    }
}

impl std::error::Error for HeadError {}

/// What a head may measure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HeadLimits {
    /// Bytes of the whole head.
    pub head_bytes: usize,
    /// Bytes of the request target.
    pub target_bytes: usize,
    /// Header lines.
    pub headers: usize,
}

/// How the body behind a head is framed (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// So many bytes; 0 without a body.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Where in the stream of messages the next byte stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Before or in a head.
    Head,
    /// In a body with so many bytes to come.
    Length(u64),
    /// In a chunked body.
    Chunked(Chunk),
    /// Behind an upgrade: not HTTP any more.
    Raw,
}

/// Where in a chunked body the next byte stands (RFC 9112 §7.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Chunk {
    /// In the size: its value and digits so far.
    Size(u64, u8),
    /// In an extension: its bytes so far.
    Extension(u64, u16),
    /// Behind the CR of the size line.
    SizeEnd(u64),
    /// In data, so many bytes to come.
    Data(u64),
    /// Before the CR behind data.
    DataEnd,
    /// Before the LF behind data.
    DataEndLf,
    /// In the trailer section: bytes in this line, bytes in all.
    Trailer(u32, u32),
    /// Behind a CR in the trailer section; whether the line was empty.
    TrailerEnd(bool, u32),
}

/// The longest chunk extension that is read over.
const MAX_EXTENSION: u16 = 256;

/// The largest trailer section.
const MAX_TRAILERS: u32 = 8 * 1024;

/// Follows one connection's bytes from message to message.
#[derive(Debug)]
pub struct Guard {
    limits: HeadLimits,
    state: State,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Piece {
    /// So many bytes belong to the message being read, and may be handed on.
    Pass(usize),
    /// The head is not complete: more bytes are needed before any is handed on.
    Partial,
}

impl Guard {
    /// A guard at the beginning of a connection.
    pub fn new(limits: HeadLimits) -> Self {
        Self { limits, state: State::Head }
    }

    /// Whether the next byte begins a message.
    pub fn between_messages(&self) -> bool {
        self.state == State::Head
    }

    /// From now on everything passes: the connection was upgraded.
    pub fn let_all_pass(&mut self) {
        self.state = State::Raw;
    }

    /// Looks at `bytes`, the unread part of the stream, and says how many of them may be handed on.
    /// They never reach beyond the end of the message that they belong to. Not to be called with
    /// no bytes.
    ///
    /// # Errors
    /// The message is not to be read any further, and nothing behind it either.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Piece, HeadError> {
        match self.state {
            State::Raw => Ok(Piece::Pass(bytes.len())),
            State::Head => {
                let checked = check_head(bytes, &self.limits).and_then(|head| match head {
                    Some(head) => Ok(Some(head)),
                    None => self.judge_partial(bytes).map(|()| None),
                });
                // The first byte of a handshake record (RFC 8446 §5.1) begins no request.
                let checked = checked.map_err(|why| if bytes[0] == 0x16 { HeadError::TlsHello } else { why });
                let Some(head) = checked? else { return Ok(Piece::Partial) };
                self.state = match head.framing {
                    Framing::Length(0) => State::Head,
                    Framing::Length(length) => State::Length(length),
                    Framing::Chunked => State::Chunked(Chunk::Size(0, 0)),
                };
                Ok(Piece::Pass(head.length))
            }
            State::Length(left) => {
                let pass = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                let left = left - pass as u64;
                self.state = if left == 0 { State::Head } else { State::Length(left) };
                Ok(Piece::Pass(pass))
            }
            State::Chunked(chunk) => self.follow_chunks(chunk, bytes).map(Piece::Pass),
        }
    }

    /// What can be said about a head before its end has come: enough to refuse a wrong one soon.
    fn judge_partial(&self, bytes: &[u8]) -> Result<(), HeadError> {
        let line_end = memchr(b'\n', bytes);
        if line_end.is_none() && bytes.len() > self.limits.target_bytes + 64 {
            return Err(HeadError::TargetTooLong);
        }
        let begins_a_method = std::str::from_utf8(&bytes[..1]).is_ok_and(crate::policy::method::is_method);
        if line_end.is_none() && !begins_a_method {
            return Err(HeadError::Method);
        }
        if bytes.len() > self.limits.head_bytes { Err(HeadError::HeadTooLarge) } else { Ok(()) }
    }

    fn follow_chunks(&mut self, mut chunk: Chunk, bytes: &[u8]) -> Result<usize, HeadError> {
        let mut index = 0;
        while index < bytes.len() {
            let byte = bytes[index];
            chunk = match chunk {
                Chunk::Data(left) => {
                    let rest = (bytes.len() - index) as u64;
                    let step = left.min(rest);
                    index += usize::try_from(step).expect("not more than the bytes at hand");
                    chunk = if step == left { Chunk::DataEnd } else { Chunk::Data(left - step) };
                    continue;
                }
                Chunk::Size(size, digits) => match (byte as char).to_digit(16) {
                    Some(digit) if digits < 15 => Chunk::Size(size << 4 | u64::from(digit), digits + 1),
                    None if digits > 0 && byte == b'\r' => Chunk::SizeEnd(size),
                    None if digits > 0 && byte == b';' => Chunk::Extension(size, 0),
                    _ => return Err(HeadError::Chunk),
                },
                Chunk::Extension(size, length) => match byte {
                    b'\r' => Chunk::SizeEnd(size),
                    b'\t' | b' '..=b'~' if length < MAX_EXTENSION => Chunk::Extension(size, length + 1),
                    _ => return Err(HeadError::Chunk),
                },
                Chunk::SizeEnd(_) if byte != b'\n' => return Err(HeadError::Chunk),
                Chunk::SizeEnd(0) => Chunk::Trailer(0, 0),
                Chunk::SizeEnd(size) => Chunk::Data(size),
                Chunk::DataEnd if byte == b'\r' => Chunk::DataEndLf,
                Chunk::DataEndLf if byte == b'\n' => Chunk::Size(0, 0),
                Chunk::DataEnd | Chunk::DataEndLf => return Err(HeadError::Chunk),
                Chunk::Trailer(line, all) => match byte {
                    b'\r' => Chunk::TrailerEnd(line == 0, all),
                    _ if byte == b'\n' || byte == 0 || all >= MAX_TRAILERS => return Err(HeadError::Chunk),
                    b' ' | b'\t' if line == 0 => return Err(HeadError::Fold),
                    _ => Chunk::Trailer(line + 1, all + 1),
                },
                Chunk::TrailerEnd(..) if byte != b'\n' => return Err(HeadError::Chunk),
                Chunk::TrailerEnd(false, all) => Chunk::Trailer(0, all),
                Chunk::TrailerEnd(true, _) => {
                    self.state = State::Head;
                    return Ok(index + 1);
                }
            };
            index += 1;
        }
        self.state = State::Chunked(chunk);
        Ok(bytes.len())
    }
}

/// The bytes that may stand in a token (RFC 9110 §5.6.2), as a table: every byte of every name is looked up.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(byte as u8, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'#'..=b'\'' | b'*' | b'+'
            | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
        byte += 1;
    }
    table
};

/// A head whose end has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    /// Its bytes, the empty line included.
    pub length: usize,
    /// How its body is framed.
    pub framing: Framing,
}

/// Checks the head that `bytes` begin with; `None` if its end has not come. One pass over the lines.
///
/// # Errors
/// The first thing in it that two parsers could take differently.
pub fn check_head(bytes: &[u8], limits: &HeadLimits) -> Result<Option<Head>, HeadError> {
    let mut lines = Lines { bytes, ends: memchr_iter(b'\n', bytes), next: 0 };
    let Some(request_line) = lines.next() else { return Ok(None) };
    let (authority, minor) = check_request_line(request_line?, limits)?;
    let (mut host, mut length, mut chunked) = (None, None, false);
    let mut count = 0;
    loop {
        let Some(line) = lines.next() else { return Ok(None) };
        if lines.next > limits.head_bytes {
            return Err(HeadError::HeadTooLarge);
        }
        let line = line?;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > limits.headers {
            return Err(HeadError::TooManyHeaders);
        }
        let (name, value) = check_header_line(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let value = value.trim_ascii();
                if host.is_some() || !is_authority(value) {
                    return Err(HeadError::Host);
                }
                host = Some(value);
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if length.is_some() {
                    return Err(HeadError::ContentLength);
                }
                length = Some(parse_length(value.trim_ascii())?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || minor == b'0' || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::TransferEncoding);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    match (host, authority) {
        (None, _) if minor == b'1' => return Err(HeadError::Host),
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => {
            return Err(HeadError::AuthorityMismatch);
        }
        // An HTTP/1.0 request in absolute-form has no Host to agree with.
        (None, Some(_)) => return Err(HeadError::AuthorityMismatch),
        _ => {}
    }
    let framing = match (length, chunked) {
        (Some(_), true) => return Err(HeadError::BothLengths),
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(Some(Head { length: lines.next, framing }))
}

/// Name and value of a header line.
fn check_header_line(line: &[u8]) -> Result<(&[u8], &[u8]), HeadError> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(HeadError::Fold);
    }
    let end = line.iter().position(|byte| !TOKEN[usize::from(*byte)]).ok_or(HeadError::HeaderName)?;
    let (name, rest) = line.split_at(end);
    let value = match rest {
        [b':', value @ ..] if !name.is_empty() => value,
        // A blank before the colon is the older trick.
        [b' ' | b'\t', after @ ..] if after.trim_ascii_start().starts_with(b":") => {
            return Err(HeadError::Fold);
        }
        _ => return Err(HeadError::HeaderName),
    };
    // Without an early end this loop runs many bytes at a time, which matters: a token is long.
    let any_control =
        value.iter().fold(false, |any, byte| any | ((*byte < 32) & (*byte != b'\t')) | (*byte == 127));
    if any_control {
        return Err(if value.contains(&b'\r') { HeadError::LineEnd } else { HeadError::HeaderValue });
    }
    Ok((name, value))
}

/// The complete lines of a head, each without its CR LF. A CR inside one is found by whoever reads it.
struct Lines<'a> {
    bytes: &'a [u8],
    ends: Memchr<'a>,
    /// Where the next line begins.
    next: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], HeadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.ends.next()?;
        let line = &self.bytes[self.next..end];
        self.next = end + 1;
        Some(match line.split_last() {
            Some((b'\r', line)) => Ok(line),
            _ => Err(HeadError::LineEnd),
        })
    }
}

/// Returns the authority of an absolute-form target, and the digit of the minor version.
fn check_request_line<'a>(line: &'a [u8], limits: &HeadLimits) -> Result<(Option<&'a [u8]>, u8), HeadError> {
    let (method, rest) =
        memchr(b' ', line).map(|at| (&line[..at], &line[at + 1..])).ok_or(HeadError::RequestLine)?;
    let (target, version) =
        memchr(b' ', rest).map(|at| (&rest[..at], &rest[at + 1..])).ok_or(HeadError::RequestLine)?;
    let minor = match version {
        b"HTTP/1.1" => b'1',
        b"HTTP/1.0" => b'0',
        _ if version.starts_with(b"HTTP/") && memchr(b' ', version).is_none() => {
            return Err(HeadError::Version);
        }
        _ => return Err(HeadError::RequestLine),
    };
    Ok((check_request(method, target, limits.target_bytes)?, minor))
}

/// Checks a method and a target, wherever they stand, and returns the authority of a target in absolute-form.
/// `target_bytes`: how long it may be.
///
/// # Errors
/// The first thing in them that two parsers could take differently.
pub fn check_request<'a>(
    method: &[u8],
    target: &'a [u8],
    target_bytes: usize,
) -> Result<Option<&'a [u8]>, HeadError> {
    if !std::str::from_utf8(method).is_ok_and(crate::policy::method::is_method) {
        return Err(HeadError::Method);
    }
    if matches!(method, b"CONNECT" | b"TRACE") || target == b"*" {
        return Err(HeadError::MethodRefused);
    }
    if target.len() > target_bytes {
        return Err(HeadError::TargetTooLong);
    }
    check_target(target)?;
    if target[0] == b'/' {
        return Ok(None);
    }
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let rest = &target[scheme.ok_or(HeadError::RequestLine)?.len()..];
    let authority =
        &rest[..rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len())];
    if is_authority(authority) { Ok(Some(authority)) } else { Err(HeadError::AuthorityMismatch) }
}

/// Refuses the bytes that no target holds (RFC 3986 appendix A) and that the parser behind does not take.
/// It takes more than that grammar: what is sent raw all the same, by browsers too, goes on as it is.
/// A fragment is never sent (RFC 9112 §3.2), and parsers differ in whether they cut or keep it.
pub(super) fn check_target(target: &[u8]) -> Result<(), HeadError> {
    let (mut query, mut ascii) = (false, true);
    for byte in target {
        let fits = match byte {
            0..=b' ' | b'#' | b'<' | b'>' | 127 => false,
            b'`' => query,
            b'"' => !query,
            b'?' => {
                query = true;
                true
            }
            128.. => {
                ascii = false;
                true
            }
            _ => true,
        };
        if !fits {
            return Err(HeadError::RequestLine);
        }
    }
    let readable = ascii || std::str::from_utf8(target).is_ok();
    if target.is_empty() || !readable { Err(HeadError::RequestLine) } else { Ok(()) }
}

/// `host` or `host:port`, without user information (RFC 9110 §7.2); strict about its characters.
pub fn is_authority(value: &[u8]) -> bool {
    let (host, port) = match value.iter().rposition(|byte| *byte == b':') {
        // A colon inside the brackets of an IPv6 address separates no port.
        Some(colon) if !value[colon..].contains(&b']') => (&value[..colon], Some(&value[colon + 1..])),
        _ => (value, None),
    };
    let named = host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte));
    let literal = || {
        let inside = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
        inside
            .and_then(|inside| std::str::from_utf8(inside).ok())
            .is_some_and(|text| text.parse::<Ipv6Addr>().is_ok())
    };
    let port_fits = port.is_none_or(is_port);
    !host.is_empty() && host.len() <= 255 && (named || literal()) && port_fits
}

/// 0 to 65535 in at most five digits.
fn is_port(digits: &[u8]) -> bool {
    (1..=5).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_digit)
        && digits.iter().fold(0, |port, digit| port * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
}

pub(super) fn parse_length(value: &[u8]) -> Result<u64, HeadError> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::ContentLength);
    }
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { head_bytes: 1024, target_bytes: 100, headers: 5 };

    fn check(head: &str) -> Result<Framing, HeadError> {
        let head = check_head(head.as_bytes(), &LIMITS)?;
        Ok(head.expect("the tests' heads have an end").framing)
    }

    #[test]
    fn a_head_that_two_parsers_could_frame_differently_is_refused() {
        for (head, why) in [
            ("GET / HTTP/1.1\nHost: a\n\n", HeadError::LineEnd),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", HeadError::LineEnd),
            ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", HeadError::LineEnd),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", HeadError::RequestLine),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
            ("GET /\r\n\r\n", HeadError::RequestLine),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", HeadError::Version),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", HeadError::Version),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
            ("get / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Method),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Method),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", HeadError::MethodRefused),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::MethodRefused),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::MethodRefused),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::AuthorityMismatch),
            ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::AuthorityMismatch),
            ("GET http://a/ HTTP/1.0\r\n\r\n", HeadError::AuthorityMismatch),
            ("GET / HTTP/1.1\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a:x\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a:\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: [:::::]\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: []\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a\r\n x\r\n\r\n", HeadError::Fold),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", HeadError::Fold),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", HeadError::Fold),
            ("GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", HeadError::HeaderName),
            ("GET / HTTP/1.1\r\nHost: a\r\nx\r\n\r\n", HeadError::HeaderName),
            ("GET / HTTP/1.1\r\nHost: a\r\nx y: z\r\n\r\n", HeadError::HeaderName),
            ("GET / HTTP/1.1\r\nHost: a\r\nx: \0\r\n\r\n", HeadError::HeaderValue),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                HeadError::ContentLength,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", HeadError::ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", HeadError::ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n", HeadError::ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", HeadError::ContentLength),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\n",
                HeadError::ContentLength,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                HeadError::BothLengths,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::BothLengths,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                HeadError::TransferEncoding,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
                HeadError::TransferEncoding,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n", HeadError::HeaderValue),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::TransferEncoding,
            ),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", HeadError::TransferEncoding),
            (
                "GET / HTTP/1.1\r\nHost: a\r\na: 1\r\na: 1\r\na: 1\r\na: 1\r\na: 1\r\n\r\n",
                HeadError::TooManyHeaders,
            ),
        ] {
            assert_eq!(check(head), Err(why), "{head:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100));
        assert_eq!(check(&long), Err(HeadError::TargetTooLong));
    }

    #[test]
    fn an_honest_head_says_how_its_body_is_framed() {
        for (head, framing) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.0\r\n\r\n", Framing::Length(0)),
            ("GET http://a:80/x?y HTTP/1.1\r\nHost: A:80\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.1\r\nHost: [::ffff:192.0.2.1]\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.1\r\nHost: a:65535\r\n\r\n", Framing::Length(0)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n", Framing::Length(12)),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked),
        ] {
            assert_eq!(check(head), Ok(framing), "{head:?}");
        }
    }

    /// Feeds `stream` in pieces of `step` bytes; returns the messages as they were handed on.
    fn messages(stream: &[u8], step: usize) -> Result<Vec<Vec<u8>>, HeadError> {
        let mut guard = Guard::new(LIMITS);
        let (mut messages, mut message, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for piece in stream.chunks(step) {
            waiting.extend_from_slice(piece);
            while !waiting.is_empty() {
                let Piece::Pass(length) = guard.next(&waiting)? else { break };
                message.extend(waiting.drain(..length));
                if guard.between_messages() {
                    messages.push(std::mem::take(&mut message));
                }
            }
        }
        Ok(messages)
    }

    #[test]
    fn a_stream_is_cut_into_its_messages_however_it_arrives() {
        let parts: [&[u8]; 4] = [
            b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /",
            b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nGET \r\n0A\r\n0123456789\r\n0\r\nt: v\r\n\r\n",
            b"GET /4 HTTP/1.1\r\nHost: a\r\n\r\n",
        ];
        let stream = parts.concat();
        for step in 1..stream.len() {
            assert_eq!(messages(&stream, step).unwrap(), parts.map(<[u8]>::to_vec), "{step}");
        }
    }

    #[test]
    fn a_malformed_chunk_ends_the_reading() {
        for body in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "1\n",
            "1 \r\nx",
            "1\r\nxy",
            "1\r\nx\n0",
            "1;\0\r\n",
            "0\r\n x\r\n\r\n",
            "0\r\na\nb\r\n\r\n",
            "1000000000000000\r\n",
            "1;\rx",
        ] {
            let stream = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            assert!(messages(stream.as_bytes(), 7).is_err(), "{body:?}");
        }
    }

    #[test]
    fn a_partial_head_is_refused_as_soon_as_it_is_hopeless() {
        for (bytes, why) in [
            ("GET / HTTP/1.1\nHost".to_owned(), HeadError::LineEnd),
            (format!("GET /{}", "x".repeat(300)), HeadError::TargetTooLong),
            (format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "x".repeat(1100)), HeadError::HeadTooLarge),
            ("\u{16}\u{3}\u{1}".to_owned(), HeadError::TlsHello),
            ("\u{16}\u{3}\u{1}\n\n".to_owned(), HeadError::TlsHello),
            ("\u{17}\u{3}\u{1}".to_owned(), HeadError::Method),
        ] {
            assert_eq!(Guard::new(LIMITS).next(bytes.as_bytes()), Err(why), "{bytes:?}");
        }
    }

    #[test]
    fn whatever_a_method_may_begin_with_is_waited_for() {
        for method in ["M-SEARCH", "-LOST", "3GET", "_", "!X"] {
            let head = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut guard = Guard::new(LIMITS);
            for cut in 1..head.len() {
                assert_eq!(guard.next(&head.as_bytes()[..cut]), Ok(Piece::Partial), "{method} {cut}");
            }
            assert_eq!(guard.next(head.as_bytes()), Ok(Piece::Pass(head.len())), "{method}");
        }
    }

    #[test]
    fn a_target_passes_exactly_if_the_parser_behind_takes_it_whole() {
        for byte in 0..=255_u8 {
            for target in
                [[b'/', byte, b'a'].as_slice(), &[b'/', b'?', byte, b'b'], &[b'/', b'?', b'?', byte]]
            {
                let parsed = http::uri::PathAndQuery::try_from(target);
                let whole = parsed.is_ok_and(|parsed| parsed.as_str().as_bytes() == target);
                let head = [b"GET ", target, b" HTTP/1.1\r\n\r\n"].concat();
                let mut request = httparse::Request::new(&mut []);
                let whole = whole
                    && request.parse(&head).is_ok()
                    && request.path.is_some_and(|path| path.as_bytes() == target);
                assert_eq!(check_target(target).is_ok(), whole, "{target:?}");
            }
        }
        assert_eq!(check_target("/\u{e9}".as_bytes()), Ok(()), "the policy says more about these");
    }

    proptest! {
        #[test]
        fn what_passes_here_is_framed_alike_by_the_parser_behind(head in "(GET|POST) /[a-z]{0,3} HTTP/1\\.[01]\r\n(Host: a\r\n|Content-Length: [0-9]{1,2}\r\n|Transfer-Encoding: chunked\r\n|x:[ -~]{0,4}\r\n|\r|\n| ){0,4}\r\n") {
            if let Ok(Some(Head { length, .. })) = check_head(head.as_bytes(), &LIMITS) {
                let mut headers = [httparse::EMPTY_HEADER; 16];
                let mut request = httparse::Request::new(&mut headers);
                let parsed = request.parse(head.as_bytes());
                prop_assert_eq!(parsed, Ok(httparse::Status::Complete(length)));
            }
        }
    }
}
