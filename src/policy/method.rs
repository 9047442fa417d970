//! Sets of request methods, as `methods` of a rule names them.
//!
//! Methods are case-sensitive tokens (RFC 9110 §9.1). Those that rules usually name have a slot of
//! their own; all others share one, which `write` covers: an unknown method has the requirement of
//! a write.

use std::fmt;

/// The methods with a slot of their own, in slot order; one more slot stands for all others.
const KNOWN: [&str; 7] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];

/// How many slots there are: the known methods and "any other".
pub(super) const SLOTS: usize = KNOWN.len() + 1;

const GET: u8 = 1 << 0;
const HEAD: u8 = 1 << 1;
const READ: u8 = GET | HEAD | 1 << 2;

/// The slot that a method belongs to; the last one for a method that rules rarely name.
pub(super) fn slot(method: &str) -> usize {
    KNOWN.iter().position(|known| *known == method).unwrap_or(KNOWN.len())
}

/// A set of methods; never empty.
#[derive(Clone, Eq, PartialEq)]
pub struct Methods {
    /// One bit a slot.
    slots: u8,
    /// Methods outside [`KNOWN`] that are listed by name.
    named: Vec<String>,
    /// Whether the rule lists no method at all.
    any: bool,
}

/// Why a word is not a method.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MethodError {
    /// Not `read`, `write` or an upper-case token.
    NotAMethod(String),
    /// CONNECT and TRACE never pass, so no rule can allow them.
    NeverPasses(String),
    /// The list is empty, so the rule could match nothing.
    Empty,
}

impl fmt::Display for MethodError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAMethod(word) => {
                write!(f, "'{word}' is not a method: write it in upper case, or use 'read' or 'write'")
            }
            Self::NeverPasses(word) => write!(f, "{word} never passes the gateway, so no rule can name it"),
            Self::Empty => f.write_str("'methods' is empty; leave it out to cover every method"),
        }
    }
}

impl std::error::Error for MethodError {}

/// Whether `word` could be a method on the wire: an RFC 9110 token without lower-case letters.
pub fn is_method(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 32
        && word.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'!' | b'+'))
}

/// Whether a method asks for nothing to be changed (RFC 9110 §9.2.1); an unknown one may.
pub fn is_safe(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS")
}

impl Methods {
    /// Every method.
    pub fn any() -> Self {
        Self { slots: u8::MAX, named: Vec::new(), any: true }
    }

    /// The methods that `words` name; `read` stands for GET, HEAD and OPTIONS, `write` for the rest.
    ///
    /// # Errors
    /// A word that is no method, or no word at all.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, MethodError> {
        let mut methods = Self { slots: 0, named: Vec::new(), any: false };
        for word in words {
            match word {
                "read" => methods.slots |= READ,
                "write" => methods.slots |= !READ,
                "CONNECT" | "TRACE" => return Err(MethodError::NeverPasses(word.to_owned())),
                _ if !is_method(word) => return Err(MethodError::NotAMethod(word.to_owned())),
                _ if slot(word) < KNOWN.len() => methods.slots |= 1 << slot(word),
                _ if methods.named.iter().any(|named| named == word) => {}
                _ => methods.named.push(word.to_owned()),
            }
        }
        if methods.slots == 0 && methods.named.is_empty() {
            return Err(MethodError::Empty);
        }
        Ok(methods)
    }

    /// Whether the rule lists no method, and so yields to one that does.
    pub fn is_any(&self) -> bool {
        self.any
    }

    /// Whether the list itself names `method`.
    pub fn lists(&self, method: &str) -> bool {
        self.slots & 1 << slot(method) != 0 || self.named.iter().any(|named| named == method)
    }

    /// Whether the set covers `method`, HEAD by GET included.
    pub fn covers(&self, method: &str) -> bool {
        self.lists(method) || method == "HEAD" && self.slots & GET != 0
    }

    /// The slots that the list names.
    pub(super) fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        (0..SLOTS).filter(|slot| self.slots & 1 << slot != 0)
    }

    /// Whether HEAD is covered only because GET is.
    pub(super) fn implies_head(&self) -> bool {
        self.slots & GET != 0 && self.slots & HEAD == 0
    }

    /// The listed methods that have no slot of their own.
    pub(super) fn named(&self) -> &[String] {
        &self.named
    }

    /// The first method that both sets list. A method listed by name is more specific than a
    /// `write` that covers it among all others, so those two have nothing in common.
    pub(super) fn common(&self, other: &Self) -> Option<&str> {
        let by_slot = self.slots & other.slots;
        let known =
            KNOWN.iter().enumerate().find(|(slot, _)| by_slot & 1 << slot != 0).map(|(_, name)| *name);
        known.or_else(|| self.named.iter().find(|name| other.named.contains(name)).map(String::as_str))
    }

    /// One method of each kind that the set covers: what a comparison of two policies has to try.
    pub(super) fn samples() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().copied().chain(["PROPFIND"])
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.any {
            return f.write_str("any method");
        }
        let mut words = Vec::new();
        let mut rest = self.slots;
        if rest & READ == READ {
            words.push("read");
            rest &= !READ;
        }
        if rest & !READ == !READ {
            words.push("write");
            rest &= READ;
        }
        words.extend(
            KNOWN.iter().enumerate().filter(|(slot, _)| rest & 1 << slot != 0).map(|(_, name)| *name),
        );
        words.extend(self.named.iter().map(String::as_str));
        f.write_str(&words.join(", "))
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Methods({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_covers_what_it_names_and_get_brings_head() {
        for (words, covered, not) in [
            (vec!["GET"], vec!["GET", "HEAD"], vec!["POST", "OPTIONS", "PROPFIND"]),
            (vec!["read"], vec!["GET", "HEAD", "OPTIONS"], vec!["POST", "PROPFIND"]),
            (vec!["write"], vec!["POST", "DELETE", "PROPFIND", "get"], vec!["GET", "HEAD", "OPTIONS"]),
            (vec!["PROPFIND"], vec!["PROPFIND"], vec!["MKCOL", "GET", "POST"]),
            (vec!["HEAD"], vec!["HEAD"], vec!["GET"]),
        ] {
            let methods = Methods::parse(words.iter().copied()).unwrap();
            for method in covered {
                assert!(methods.covers(method), "{words:?} {method}");
            }
            for method in not {
                assert!(!methods.covers(method), "{words:?} {method}");
            }
        }
        assert!(Methods::any().covers("GET") && Methods::any().covers("BREW"));
    }

    #[test]
    fn a_word_that_is_no_method_is_refused() {
        for (words, error) in [
            (vec!["get"], MethodError::NotAMethod("get".into())),
            (vec!["GET POST"], MethodError::NotAMethod("GET POST".into())),
            (vec![""], MethodError::NotAMethod(String::new())),
            (vec!["TRACE"], MethodError::NeverPasses("TRACE".into())),
            (vec![], MethodError::Empty),
        ] {
            assert_eq!(Methods::parse(words), Err(error));
        }
    }

    #[test]
    fn two_sets_share_what_both_list() {
        for (one, other, common) in [
            (vec!["GET"], vec!["read"], Some("GET")),
            (vec!["GET"], vec!["HEAD"], None),
            (vec!["MKCOL"], vec!["MKCOL", "GET"], Some("MKCOL")),
            (vec!["MKCOL"], vec!["PROPFIND"], None),
            (vec!["MKCOL"], vec!["write"], None),
        ] {
            let parse = |words: &[&str]| Methods::parse(words.iter().copied()).unwrap();
            assert_eq!(parse(&one).common(&parse(&other)), common, "{one:?} {other:?}");
        }
    }
}
