//! Which password hashes the configuration lets in beside the sound ones, and the language of
//! `users.hash_recipe`: how an in-house system makes a digest of a password.
//!
//! ```text
//! recipe  = name "(" sum ")"  |  "hmac_" name "(" sum "," sum ")"       key first, then message
//! name    = "md5" | "sha1" | "sha256" | "sha384" | "sha512"
//! sum     = term { "+" term }
//! term    = "password" | "salt" | recipe | 'text' | "text"
//! ```
//!
//! A recipe inside another gives its digest as lower-case hexadecimal digits, as `md5()` of PHP and
//! MySQL do. Not here: computing one (`login::hash`).

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::value::{Value, ValueError, text_value};

/// The longest recipe, in bytes.
const MAX_BYTES: usize = 1024;
/// How deep recipes stand in one another.
const MAX_DEPTH: usize = 8;

/// What beside sound password hashes is believed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HashPolicy {
    /// Whether formats without stretching are, as far as their text tells what they are.
    pub weak: bool,
    /// How digests are made whose text does not tell.
    pub recipe: Option<Recipe>,
}

/// A digest function.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Digest {
    /// RFC 1321; 16 bytes.
    Md5,
    /// FIPS 180-4; 20 bytes.
    Sha1,
    /// FIPS 180-4; 32 bytes.
    Sha256,
    /// FIPS 180-4; 48 bytes.
    Sha384,
    /// FIPS 180-4; 64 bytes.
    Sha512,
}

impl Digest {
    const ALL: [(&'static str, Digest); 5] = [
        ("md5", Digest::Md5),
        ("sha1", Digest::Sha1),
        ("sha256", Digest::Sha256),
        ("sha384", Digest::Sha384),
        ("sha512", Digest::Sha512),
    ];

    /// Its name in a recipe.
    #[must_use]
    pub fn name(self) -> &'static str {
        Digest::ALL.iter().find(|(_, digest)| *digest == self).map_or("", |(name, _)| name)
    }

    /// How long its output is, in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Digest::Md5 => 16,
            Digest::Sha1 => 20,
            Digest::Sha256 => 32,
            Digest::Sha384 => 48,
            Digest::Sha512 => 64,
        }
    }
}

/// A piece of what is digested.
#[derive(Clone, Eq, Hash, PartialEq)]
pub enum Term {
    /// The password as it was sent.
    Password,
    /// The salt, as its column has it.
    Salt,
    /// A text of the recipe's own; it may be a secret ("pepper").
    Text(String),
    /// Another digest, as lower-case hexadecimal digits.
    Hex(Recipe),
}

/// How a digest of a password is made. Never shown, since its texts may be secret.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Recipe {
    /// With which function.
    pub digest: Digest,
    /// HMAC's key (RFC 2104); `None` for the plain function.
    pub key: Option<Vec<Term>>,
    /// Of what.
    pub message: Vec<Term>,
}

impl Recipe {
    /// The plain function over these.
    #[must_use]
    pub fn of(digest: Digest, message: Vec<Term>) -> Recipe {
        Recipe { digest, key: None, message }
    }

    /// Whether it needs a salt.
    #[must_use]
    pub fn is_salted(&self) -> bool {
        self.has(&Term::Salt)
    }

    fn has(&self, wanted: &Term) -> bool {
        self.key.iter().flatten().chain(&self.message).any(|term| match term {
            Term::Hex(inner) => inner.has(wanted),
            term => term == wanted,
        })
    }
}

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipe({}, ..)", self.digest.name())
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Value for Recipe {
    const NAME: &'static str = "hash-recipe";
    const WHAT: &'static str = "a recipe such as md5(password + salt)";

    fn parse(text: &str) -> Result<Recipe, ValueError> {
        if text.len() > MAX_BYTES {
            return Err(ValueError::Form("is longer than 1024 bytes"));
        }
        let mut reader = Reader { rest: text.trim_ascii_start() };
        let recipe = reader.recipe(0)?;
        if !reader.rest.is_empty() {
            return Err(ValueError::Form("goes on after its last parenthesis"));
        }
        if !recipe.has(&Term::Password) {
            return Err(ValueError::Form("does not use the password"));
        }
        Ok(recipe)
    }
}

text_value!(Recipe);

const FORM: ValueError =
    ValueError::Form("is not a recipe: write one such as md5(password + salt) or sha1(salt + md5(password))");

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn takes(&mut self, mark: char) -> bool {
        let found = self.rest.strip_prefix(mark);
        if let Some(rest) = found {
            self.rest = rest.trim_ascii_start();
        }
        found.is_some()
    }

    fn word(&mut self) -> &str {
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_ascii_start();
        word
    }

    fn recipe(&mut self, depth: usize) -> Result<Recipe, ValueError> {
        let name = self.word().to_owned();
        self.call(&name, depth)
    }

    fn call(&mut self, name: &str, depth: usize) -> Result<Recipe, ValueError> {
        if depth == MAX_DEPTH {
            return Err(ValueError::Form("has more than 8 digests inside one another"));
        }
        let (keyed, name) = name.strip_prefix("hmac_").map_or((false, name), |name| (true, name));
        let known = Digest::ALL.iter().find(|(known, _)| *known == name);
        let Some((_, digest)) = known else {
            return Err(if self.rest.starts_with('(') {
                ValueError::Form(
                    "names a function that is none of md5, sha1, sha256, sha384, sha512 and hmac_ with one of these",
                )
            } else {
                FORM
            });
        };
        if !self.takes('(') {
            return Err(FORM);
        }
        let mut key = None;
        if keyed {
            key = Some(self.sum(depth)?);
            if !self.takes(',') {
                return Err(ValueError::Form("has an hmac_ without a comma between key and message"));
            }
        }
        let message = self.sum(depth)?;
        if !self.takes(')') {
            return Err(FORM);
        }
        Ok(Recipe { digest: *digest, key, message })
    }

    fn sum(&mut self, depth: usize) -> Result<Vec<Term>, ValueError> {
        let mut terms = vec![self.term(depth)?];
        while self.takes('+') {
            terms.push(self.term(depth)?);
        }
        Ok(terms)
    }

    fn term(&mut self, depth: usize) -> Result<Term, ValueError> {
        for quote in ['\'', '"'] {
            if let Some(rest) = self.rest.strip_prefix(quote) {
                let (text, rest) =
                    rest.split_once(quote).ok_or(ValueError::Form("has a text without its closing quote"))?;
                self.rest = rest.trim_ascii_start();
                return Ok(Term::Text(text.to_owned()));
            }
        }
        let word = self.word().to_owned();
        match word.as_str() {
            "password" => Ok(Term::Password),
            "salt" => Ok(Term::Salt),
            name => self.call(name, depth + 1).map(Term::Hex),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_reads_as_it_is_written() {
        let password = || Term::Password;
        let salt = || Term::Salt;
        let text = |text: &str| Term::Text(text.to_owned());
        for (written, is) in [
            ("md5(password)", Recipe::of(Digest::Md5, vec![password()])),
            (" sha512 ( salt+password ) ", Recipe::of(Digest::Sha512, vec![salt(), password()])),
            (
                "sha1(salt + sha1(salt + sha1(password)))",
                Recipe::of(
                    Digest::Sha1,
                    vec![
                        salt(),
                        Term::Hex(Recipe::of(
                            Digest::Sha1,
                            vec![salt(), Term::Hex(Recipe::of(Digest::Sha1, vec![password()]))],
                        )),
                    ],
                ),
            ),
            (
                "hmac_sha256('pe\"pper)', password + \":\")",
                Recipe {
                    digest: Digest::Sha256,
                    key: Some(vec![text("pe\"pper)")]),
                    message: vec![password(), text(":")],
                },
            ),
        ] {
            assert!(Recipe::parse(written) == Ok(is), "{written}");
        }
    }

    #[test]
    fn what_is_no_recipe_is_refused_with_a_reason() {
        for (written, why) in [
            ("", "is not a recipe"),
            ("password", "is not a recipe"),
            ("md5", "is not a recipe"),
            ("md5()", "is not a recipe"),
            ("md5(password", "is not a recipe"),
            ("md5(password salt)", "is not a recipe"),
            ("md5(password) + salt", "goes on after"),
            ("md5(salt)", "does not use the password"),
            ("md5('password')", "does not use the password"),
            ("crc32(password)", "names a function"),
            ("md5(rot13(password))", "names a function"),
            ("MD5(password)", "names a function"),
            ("hmac_md5(password)", "without a comma"),
            ("md5('pepper + password)", "closing quote"),
        ] {
            let told = Recipe::parse(written).unwrap_err().to_string();
            assert!(told.starts_with(why) || told.contains(why), "{written}: {told}");
        }
        let deep = |depth: usize| format!("{}password{}", "md5(".repeat(depth), ")".repeat(depth));
        assert!(Recipe::parse(&deep(8)).is_ok());
        assert!(Recipe::parse(&deep(9)).unwrap_err().to_string().contains("more than 8"));
        assert!(Recipe::parse(&format!("md5(password + '{}')", "x".repeat(1024))).is_err());
    }

    #[test]
    fn a_pepper_is_in_no_output() {
        let recipe = Recipe::parse("md5('hunter2' + password)").unwrap();
        assert!(!format!("{recipe:?} {recipe}").contains("hunter2"));
    }
}
