//! Path patterns: literal segments, `:name` for exactly one segment, a final `/*` for the prefix
//! itself and everything below it. Which of two patterns is the more specific is decided segment by
//! segment from the left: literal before `:name` before `/*`.

use std::fmt;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::canonical_combining_class;

use super::path::{EncodedSlash, NormalizedPath};

/// One segment of a pattern.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub(super) enum Segment {
    Literal(String),
    Any,
}

/// A compiled `path` of a rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern {
    written: String,
    segments: Vec<Segment>,
    /// Whether a final `/*` stands behind the segments.
    open: bool,
}

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PatternError {
    /// It does not start with `/`.
    NotAbsolute,
    /// Two slashes in a row.
    EmptySegment,
    /// `*` anywhere but alone in the last segment.
    MisplacedStar,
    /// `:` without a name of letters, digits and underscores behind it.
    BadName,
    /// A `?` or `#`: a path has neither.
    QueryOrFragment,
    /// A literal that no request path can hold (dot segment, backslash, control, bad escape).
    Impossible,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "a path starts with '/'",
            Self::EmptySegment => "a path has no empty segment ('//')",
            Self::MisplacedStar => "'*' stands alone as the last segment, as in '/admin/*'",
            Self::BadName => "':' is followed by a name of letters, digits and '_', as in '/user/:id'",
            Self::QueryOrFragment => "a path holds no '?' or '#'; use 'query' for parameters",
            Self::Impossible => {
                "no request can match it: dot segments, backslashes, control characters and invalid escapes are refused"
            }
        })
    }
}

impl std::error::Error for PatternError {}

impl Pattern {
    /// Compiles `written`. Literals may be percent-encoded or plain UTF-8; they are compared decoded.
    ///
    /// # Errors
    /// [`PatternError`], its text one clause that fits behind the pattern.
    pub fn parse(written: &str) -> Result<Self, PatternError> {
        let Some(mut rest) = written.strip_prefix('/') else { return Err(PatternError::NotAbsolute) };
        if written.contains(['?', '#']) {
            return Err(PatternError::QueryOrFragment);
        }
        let mut open = false;
        if rest == "*" {
            (rest, open) = ("", true);
        } else if let Some(prefix) = rest.strip_suffix("/*") {
            (rest, open) = (prefix, true);
            if rest.is_empty() {
                return Err(PatternError::EmptySegment);
            }
        } else if let Some(trimmed) = rest.strip_suffix('/') {
            rest = trimmed;
            if rest.is_empty() {
                return Err(PatternError::EmptySegment);
            }
        }
        let mut parsed = Vec::new();
        if !rest.is_empty() {
            for segment in rest.split('/') {
                parsed.push(Segment::parse(segment)?);
            }
        }
        Ok(Self { written: written.to_owned(), segments: parsed, open })
    }

    /// As it stands in the file.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The pattern's segments, and whether a `/*` follows them.
    pub(super) fn parts(&self) -> (&[Segment], bool) {
        (&self.segments, self.open)
    }

    /// Whether both match exactly the same paths.
    pub(super) fn same_paths(&self, other: &Self) -> bool {
        self.segments == other.segments && self.open == other.open
    }

    /// Whether letter case could make a difference to a literal of it.
    pub(super) fn is_cased(&self) -> bool {
        self.literals().any(|literal| fold(literal) != *literal)
    }

    /// The literal segments.
    pub(super) fn literals(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(literal) => Some(literal.as_str()),
            Segment::Any => None,
        })
    }

    /// Whether the pattern matches a decoded path, letter case ignored if `fold_case`: the plain
    /// definition, which the tries are held against.
    #[cfg(test)]
    pub(super) fn matches(&self, text: &str, fold_case: bool) -> bool {
        let mut given = super::path::segments(text);
        for segment in &self.segments {
            match (segment, given.next()) {
                (_, None) => return false,
                (Segment::Any, Some(_)) => {}
                (Segment::Literal(literal), Some(given)) => {
                    if literal != given && !(fold_case && fold(literal) == fold(given)) {
                        return false;
                    }
                }
            }
        }
        self.open || given.next().is_none()
    }

    /// Decoded paths that the pattern matches: one for a closed pattern, two for an open one.
    pub(super) fn samples(&self) -> Vec<String> {
        let mut text = String::new();
        for segment in &self.segments {
            text.push('/');
            text.push_str(match segment {
                Segment::Literal(literal) => literal,
                Segment::Any => "-",
            });
        }
        let below = format!("{text}/-");
        if text.is_empty() {
            text.push('/');
        }
        if self.open { vec![text, below] } else { vec![text] }
    }
}

impl Segment {
    fn parse(written: &str) -> Result<Self, PatternError> {
        if written.is_empty() {
            return Err(PatternError::EmptySegment);
        }
        if written.contains('*') {
            return Err(PatternError::MisplacedStar);
        }
        if let Some(name) = written.strip_prefix(':') {
            let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            return if good { Ok(Self::Any) } else { Err(PatternError::BadName) };
        }
        // Decoded by the code that decodes requests, with the file's own UTF-8 encoded first.
        let mut ascii = String::from("/");
        for byte in written.bytes() {
            if byte.is_ascii() { ascii.push(byte as char) } else { ascii.push_str(&format!("%{byte:02X}")) }
        }
        let path =
            NormalizedPath::parse(&ascii, EncodedSlash::Reject).map_err(|_| PatternError::Impossible)?;
        Ok(Self::Literal(path.as_str()[1..].to_owned()))
    }
}

/// Letter case and accents taken away, as upstreams and their databases compare that regard neither: MySQL's
/// default collation finds the page `admin` for `/ádmin`. Twice the same as once.
pub(super) fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let letters = text.nfkd().filter(|c| canonical_combining_class(*c) == 0);
    // There and back again: `ß` is `SS` and `ı` is `I` in upper case alone, and `ẞ` becomes `ß` first.
    letters
        .flat_map(char::to_lowercase)
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .nfkd()
        .filter(|c| canonical_combining_class(*c) == 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_segments() {
        for (pattern, path, matches) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/*", "/", true),
            ("/*", "/a/b", true),
            ("/admin/*", "/admin", true),
            ("/admin/*", "/admin/", true),
            ("/admin/*", "/admin/x/y", true),
            ("/admin/*", "/administrator", false),
            ("/user/:id", "/user/7", true),
            ("/user/:id", "/user/7/", true),
            ("/user/:id", "/user", false),
            ("/user/:id", "/user/7/x", false),
            ("/user/:id/*", "/user/7", true),
            ("/a/", "/a", true),
            ("/caf%C3%A9", "/café", true),
            ("/café", "/café", true),
            ("/Admin", "/admin", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(path, false), matches, "{pattern} {path}");
        }
        assert!(Pattern::parse("/Admin/:x").unwrap().matches("/aDMIN/Q", true));
    }

    #[test]
    fn a_pattern_that_could_never_mean_anything_is_refused() {
        for (written, error) in [
            ("", PatternError::NotAbsolute),
            ("admin", PatternError::NotAbsolute),
            ("/a//b", PatternError::EmptySegment),
            ("//", PatternError::EmptySegment),
            ("//*", PatternError::EmptySegment),
            ("/a*", PatternError::MisplacedStar),
            ("/*/a", PatternError::MisplacedStar),
            ("/**", PatternError::MisplacedStar),
            ("/:", PatternError::BadName),
            ("/:a-b", PatternError::BadName),
            ("/a?b", PatternError::QueryOrFragment),
            ("/a/../b", PatternError::Impossible),
            ("/a%2fb", PatternError::Impossible),
            ("/a%zz", PatternError::Impossible),
        ] {
            assert_eq!(Pattern::parse(written).map(|_| ()), Err(error), "{written}");
        }
    }

    #[test]
    fn folding_twice_is_folding_once() {
        // Beyond these planes no letter folds.
        for c in '\0'..='\u{1ffff}' {
            let folded = fold(c.encode_utf8(&mut [0; 4]));
            assert_eq!(fold(&folded), folded, "{c:?}");
        }
    }
}
