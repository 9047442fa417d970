//! Normalised request paths: the only form of a path that rules ever see.
//!
//! `/public/%2e%2e/x`, `/public%2fx` and `/public\x` mean different things to different upstreams,
//! and each difference is a way round a rule. A path is decoded once, here, and refused if that
//! leaves any doubt (RFC 3986 §2.1, §3.3). Not here: other readings of it (`reading`).

use std::borrow::Cow;
use std::fmt;

/// Stands in a normalised path for a slash that was sent as `%2F` where `encoded_slash: strict`
/// lets it through. No path can bring one: control characters are refused.
pub(super) const ENCODED_SLASH: char = '\u{1}';

/// What to do with `%2F` in a path.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum EncodedSlash {
    /// Refuse the request.
    #[default]
    Reject,
    /// Read it both as part of a segment and as a separator; the strictest reading counts.
    Strict,
}

/// Why a path is refused before any rule is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum PathError {
    /// It does not start with `/`.
    NotAbsolute,
    /// A segment is `.`, `..` or more dots, in whatever encoding.
    DotSegment,
    /// A byte below 0x20 or 0x7F, as sent or encoded.
    Control,
    /// A backslash, as sent or encoded.
    Backslash,
    /// A `%` without two hexadecimal digits.
    BadEscape,
    /// `%2F` where the configuration refuses it, or a slash that a further decoding brings up.
    EncodedSlash,
    /// A `#` as sent: a fragment never belongs in a request target.
    Fragment,
    /// A byte above 0x7E that is not percent-encoded.
    RawNonAscii,
    /// What the escapes decode to is not UTF-8 (overlong forms included).
    InvalidUtf8,
    /// More ways to read it, or more methods named for it, than any honest request has.
    TooManyReadings,
}

impl PathError {
    /// A stable code for logs and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotAbsolute => "path_not_absolute",
            Self::DotSegment => "path_dot_segment",
            Self::Control => "path_control_character",
            Self::Backslash => "path_backslash",
            Self::BadEscape => "path_bad_escape",
            Self::EncodedSlash => "path_encoded_slash",
            Self::Fragment => "path_fragment",
            Self::RawNonAscii => "path_raw_non_ascii",
            Self::InvalidUtf8 => "path_invalid_utf8",
            Self::TooManyReadings => "path_too_many_readings",
        }
    }
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "the path does not start with a slash",
            Self::DotSegment => "the path holds a dot segment",
            Self::Control => "the path holds a control character",
            Self::Backslash => "the path holds a backslash",
            Self::BadEscape => "the path holds a percent sign without two hexadecimal digits",
            Self::EncodedSlash => "the path holds an encoded slash",
            Self::Fragment => "the path holds a fragment",
            Self::RawNonAscii => "the path holds a byte outside ASCII that is not percent-encoded",
            Self::InvalidUtf8 => "the path does not decode to UTF-8",
            Self::TooManyReadings => "the request can be read in too many ways",
        })
    }
}

impl std::error::Error for PathError {}

/// A decoded path without ambiguity: it starts with `/`, its segments are separated by `/` and are
/// never dots alone, and no segment holds a control character or a backslash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NormalizedPath<'a> {
    text: Cow<'a, str>,
    /// Nothing in it that any reading but letter case could change.
    plain: bool,
    /// Holds a character that letter case could change.
    cased: bool,
}

/// What a byte of a raw path means here. The order is that of [`CLASSES`].
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum Class {
    Plain,
    /// `A`–`Z`.
    Upper,
    Slash,
    Dot,
    /// Has a meaning to some reading: `;`, `+`, blanks.
    Odd,
    Percent,
    Backslash,
    Control,
    Fragment,
    NonAscii,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Plain; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            0..=0x1f | 0x7f => Class::Control,
            0x80..=0xff => Class::NonAscii,
            b'A'..=b'Z' => Class::Upper,
            b'/' => Class::Slash,
            b'.' => Class::Dot,
            b';' | b'+' | b' ' | b'?' => Class::Odd,
            b'%' => Class::Percent,
            b'\\' => Class::Backslash,
            b'#' => Class::Fragment,
            _ => Class::Plain,
        };
        byte += 1;
    }
    classes
};

impl<'a> NormalizedPath<'a> {
    /// Decodes `raw`, a path as received: no query, no fragment.
    ///
    /// # Errors
    /// [`PathError`] for whatever two upstreams could read differently and no reading resolves.
    pub fn parse(raw: &'a str, encoded_slash: EncodedSlash) -> Result<Self, PathError> {
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        if is_simple(raw) {
            return Ok(Self { text: Cow::Borrowed(raw), plain: true, cased: false });
        }
        let (mut plain, mut cased, mut escaped, mut dotted) = (true, false, false, false);
        let mut previous = Class::Plain;
        for &byte in raw.as_bytes() {
            let class = CLASSES[usize::from(byte)];
            match class {
                Class::Plain => {}
                Class::Upper => cased = true,
                Class::Slash => {
                    // An empty segment, or one that ends in a dot, reads differently elsewhere.
                    plain &= previous != Class::Slash && previous != Class::Dot;
                    // A dot in a segment that others follow: perhaps a script with path info.
                    plain &= !dotted;
                }
                Class::Dot => dotted = true,
                Class::Odd => plain = false,
                Class::Percent => escaped = true,
                Class::Backslash => return Err(PathError::Backslash),
                Class::Control => return Err(PathError::Control),
                Class::Fragment => return Err(PathError::Fragment),
                Class::NonAscii => return Err(PathError::RawNonAscii),
            }
            previous = class;
        }
        plain &= previous != Class::Dot;
        if !escaped {
            if dotted && raw.split('/').any(is_dot_segment) {
                return Err(PathError::DotSegment);
            }
            return Ok(Self { text: Cow::Borrowed(raw), plain, cased });
        }
        let text = decode_all(raw, encoded_slash)?;
        if text.split('/').any(is_dot_segment) {
            return Err(PathError::DotSegment);
        }
        Ok(Self { text: Cow::Owned(text), plain: false, cased: true })
    }

    /// The decoded path, with its slashes.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether letter case is the only thing that readings of this path can differ in.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Whether a reading that ignores letter case could differ.
    pub fn is_cased(&self) -> bool {
        self.cased
    }
}

/// Whether a path is as most are: lower-case letters, digits and `-`, `_`, `~` between single slashes.
/// There is nothing to decode, to refuse or to read differently in it.
fn is_simple(raw: &str) -> bool {
    let mut previous = 0;
    for &byte in raw.as_bytes() {
        let fits = match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => true,
            b'/' => previous != b'/',
            _ => false,
        };
        if !fits {
            return false;
        }
        previous = byte;
    }
    true
}

/// The segments of a decoded path; a trailing slash adds none.
pub(super) fn segments(text: &str) -> impl Iterator<Item = &str> + Clone {
    let inner = text.strip_prefix('/').unwrap_or(text);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    // `"".split('/')` yields one empty segment; the root has none.
    let skip = usize::from(inner.is_empty());
    inner.split('/').skip(skip)
}

/// Whether an upstream would take this segment for "here" or "up". More than two dots, too: whoever cuts
/// trailing dots before decoding makes `..` of `%2e%2e.`.
pub fn is_dot_segment(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|byte| byte == b'.')
}

/// The value of two hexadecimal digits.
fn hex_pair(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|value| u8::try_from(value).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// Decodes the valid escapes and leaves the others, as PHP and most upstreams do where they decode again.
/// What is not UTF-8 then becomes a replacement character, which no literal and no rule holds.
pub fn decode_valid(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    let mut changed = false;
    while index < bytes.len() {
        let pair = bytes.get(index + 1).zip(bytes.get(index + 2));
        match pair.filter(|_| bytes[index] == b'%').and_then(|(high, low)| hex_pair(*high, *low)) {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
                changed = true;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    if changed { Cow::Owned(String::from_utf8_lossy(&decoded).into_owned()) } else { Cow::Borrowed(text) }
}

fn decode_all(raw: &str, encoded_slash: EncodedSlash) -> Result<String, PathError> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let pair = bytes.next().zip(bytes.next());
        match pair.and_then(|(high, low)| hex_pair(high, low)).ok_or(PathError::BadEscape)? {
            b'/' if encoded_slash == EncodedSlash::Strict => decoded.push(ENCODED_SLASH as u8),
            b'/' => return Err(PathError::EncodedSlash),
            b'\\' => return Err(PathError::Backslash),
            0..=0x1f | 0x7f => return Err(PathError::Control),
            other => decoded.push(other),
        }
    }
    let text = String::from_utf8(decoded).map_err(|_| PathError::InvalidUtf8)?;
    // The C1 range: control characters that UTF-8 spells with two bytes.
    if text.chars().any(|c| ('\u{80}'..='\u{9f}').contains(&c)) {
        return Err(PathError::Control);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(raw: &str) -> Result<String, PathError> {
        NormalizedPath::parse(raw, EncodedSlash::Reject).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn a_path_two_upstreams_could_read_differently_is_refused() {
        for (raw, why) in [
            ("", PathError::NotAbsolute),
            ("a", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("/.", PathError::DotSegment),
            ("/a/../b", PathError::DotSegment),
            ("/a/./b", PathError::DotSegment),
            ("/a/..", PathError::DotSegment),
            ("/a/...", PathError::DotSegment),
            ("/a/%2e%2e./b", PathError::DotSegment),
            ("/admin/%2e%2e/x", PathError::DotSegment),
            ("/admin/%2E/x", PathError::DotSegment),
            ("/admin/.%2e", PathError::DotSegment),
            ("/a%00", PathError::Control),
            ("/a%0a", PathError::Control),
            ("/a%7F", PathError::Control),
            ("/a%C2%85", PathError::Control),
            ("/a\\b", PathError::Backslash),
            ("/a%5cb", PathError::Backslash),
            ("/a%zz", PathError::BadEscape),
            ("/a%", PathError::BadEscape),
            ("/a%2", PathError::BadEscape),
            ("/a%+1", PathError::BadEscape),
            ("/a%2fb", PathError::EncodedSlash),
            ("/a%2F", PathError::EncodedSlash),
            ("/a#b", PathError::Fragment),
            ("/caf\u{e9}", PathError::RawNonAscii),
            ("/%c0%ae%c0%ae/", PathError::InvalidUtf8),
            ("/%ff", PathError::InvalidUtf8),
            ("/%ed%a0%80", PathError::InvalidUtf8),
        ] {
            assert_eq!(parse(raw), Err(why), "{raw}");
        }
    }

    #[test]
    fn an_honest_path_is_decoded_once() {
        for (raw, decoded) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/caf%C3%A9", "/café"),
            ("/a%20b", "/a b"),
            ("/%2561", "/%61"),
            ("/a.b/..c/...d", "/a.b/..c/...d"),
            ("/a+b", "/a+b"),
            ("/a%3Fb%23c", "/a?b#c"),
        ] {
            assert_eq!(parse(raw).as_deref(), Ok(decoded), "{raw}");
        }
    }

    #[test]
    fn only_a_path_that_every_upstream_reads_alike_is_plain() {
        for (raw, plain) in [
            ("/", true),
            ("/admin/users/17", true),
            ("/assets/site.css", true),
            ("/Admin/Users", true),
            ("/a/b/", true),
            ("/a//b", false),
            ("/a+b", false),
            ("/a;x/b", false),
            ("/a./b", false),
            ("/a.", false),
            ("/a.php/b", false),
            ("/v1.2/b", false),
            ("/a%61", false),
        ] {
            assert_eq!(NormalizedPath::parse(raw, EncodedSlash::Reject).unwrap().is_plain(), plain, "{raw}");
        }
    }

    #[test]
    fn a_trailing_slash_adds_no_segment_and_the_root_has_none() {
        for (text, expected) in [
            ("/", vec![]),
            ("/a", vec!["a"]),
            ("/a/", vec!["a"]),
            ("/a//", vec!["a", ""]),
            ("//a", vec!["", "a"]),
            ("//", vec![]),
        ] {
            assert_eq!(segments(text).collect::<Vec<_>>(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_simple_path_is_read_as_any_other(raw in "/([a-z0-9_~-]|/){0,12}") {
            if is_simple(&raw) {
                let cased = format!("{raw}X");
                let long_way = NormalizedPath::parse(&cased, EncodedSlash::Reject).unwrap();
                prop_assert!(long_way.is_plain());
                prop_assert_eq!(long_way.as_str().strip_suffix('X'), Some(raw.as_str()));
            }
        }

        #[test]
        fn normalising_what_is_normal_changes_nothing(raw in "/([a-zA-Z./;+~@%-]|%2e|%25|%20|%3[bBfF]|%C3%A9|%E2%80%8B|%2F){0,14}") {
            for slash in [EncodedSlash::Reject, EncodedSlash::Strict] {
                let Ok(path) = NormalizedPath::parse(&raw, slash) else { continue };
                let mut sent = String::new();
                for c in path.as_str().chars() {
                    match c {
                        ENCODED_SLASH => sent.push_str("%2F"),
                        '/' | 'a'..='z' | 'A'..='Z' | '.' | '-' => sent.push(c),
                        _ => c.to_string().bytes().for_each(|byte| sent.push_str(&format!("%{byte:02X}"))),
                    }
                }
                let again = NormalizedPath::parse(&sent, slash);
                prop_assert_eq!(again.map(|again| again.as_str().to_owned()), Ok(path.as_str().to_owned()), "{} as {}", raw, sent);
            }
        }

        #[test]
        fn whatever_is_accepted_holds_the_promise_of_the_type(raw in "(/|%2e|%2f|%5c|%00|\\.|;|a|%25|%c3|%a9|\\\\|#|é){0,12}") {
            for slash in [EncodedSlash::Reject, EncodedSlash::Strict] {
                if let Ok(path) = NormalizedPath::parse(&raw, slash) {
                    prop_assert!(path.as_str().starts_with('/'));
                    prop_assert!(!path.as_str().split('/').any(is_dot_segment));
                    prop_assert!(!path.as_str().contains('\\'));
                    let stand_in = |c: char| c == ENCODED_SLASH && slash == EncodedSlash::Strict;
                    prop_assert!(!path.as_str().chars().any(|c| c.is_control() && !stand_in(c)));
                }
            }
        }
    }
}
