//! Password hashes of other systems: recognised by their text, checked as the system that made them would.
//!
//! A [`StoredHash`] is a row's hash, taken apart and held to bounds, so that no row can exhaust the
//! machine. What it costs to check one is its [`Cost`]; [`mix`] spends the same on names that nobody has.
//! One file a family: `argon2`, `bcrypt`, `pbkdf2`, `scrypt`, `phpass`, `crypt`, `digest`.
//! `docs/password-hashes.md` says which system writes what. Pure, apart from the memory and the time that
//! it takes. Not here: making hashes, threads and queues (`password`), and which of the weak formats are
//! let in (`config::recipe`).

mod argon2;
mod bcrypt;
mod crypt;
mod digest;
pub mod mix;
mod pbkdf2;
mod phpass;
mod scrypt;

use std::{borrow::Cow, error::Error, fmt};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

use crate::config::recipe::{Digest, HashPolicy};

/// The longest stored hash, in bytes. Payload's first format, the longest, has 1024.
pub const MAX_HASH_BYTES: usize = 4096;
/// The longest salt with a column of its own, in bytes.
pub const MAX_SALT_BYTES: usize = 1024;
/// A shorter output would be found by chance. In bytes.
const LEAST_OUTPUT: usize = 16;
/// The longest output that a format without a fixed length may have, in bytes.
const MOST_OUTPUT: usize = 512;

/// The standard alphabet, padded or not, canonical or not: writers differ, and nothing hangs on it.
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);

/// What a stored hash is, by its text.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Format {
    /// `$argon2id$…`, also `argon2$argon2id$…` of Django (RFC 9106).
    Argon2id,
    /// `$argon2i$…`, also `argon2$argon2i$…` of Django.
    Argon2i,
    /// `$2a$`, `$2b$`, `$2y$`, also `bcrypt$$2b$…` of Django.
    Bcrypt,
    /// `$wp$2y$…`: bcrypt of an HMAC, since WordPress 6.8.
    WordPressBcrypt,
    /// `bcrypt_sha256$$2b$…`: bcrypt of a SHA-256, of Django.
    DjangoBcryptSha256,
    /// `pbkdf2_sha256$…` of Django, `$pbkdf2-sha256$…` of TYPO3.
    Pbkdf2Sha256,
    /// `pbkdf2_sha1$…` of Django.
    Pbkdf2Sha1,
    /// `pbkdf2-sha256-v1:…`, `-v2-…` and 1024 bare hexadecimal digits, with a salt of its own column.
    Payload,
    /// `scrypt$…` of Django (RFC 7914).
    Scrypt,
    /// `$P$`, `$H$`: stretched MD5.
    Phpass,
    /// `$S$`: stretched SHA-512.
    Drupal,
    /// `U$S$`, `U$P$`, `U$H$`, `M$P$`: an older system's MD5, stretched when it was migrated.
    StretchedMd5,
    /// `$1$`: a thousand rounds of MD5.
    Md5Crypt,
    /// `$apr1$`: the same, of Apache.
    Apr1,
    /// `$5$`.
    Sha256Crypt,
    /// `$6$`.
    Sha512Crypt,
    /// `{SSHA}`, `{SHA}`, `{SMD5}` and their like: one digest (weak).
    Ldap,
    /// 32 hexadecimal digits, a colon and a salt: one MD5 (weak).
    JoomlaMd5,
    /// `md5$salt$…`, `sha1$salt$…`: one digest (weak).
    DjangoDigest,
    /// 32, 40, 64, 96 or 128 hexadecimal digits: one digest without a salt (weak).
    BareDigest,
    /// A digest made by the recipe of the configuration (weak).
    Recipe,
}

impl Format {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Argon2id => "Argon2id",
            Format::Argon2i => "Argon2i",
            Format::Bcrypt => "bcrypt",
            Format::WordPressBcrypt => "WordPress bcrypt",
            Format::DjangoBcryptSha256 => "bcrypt of a SHA-256",
            Format::Pbkdf2Sha256 => "PBKDF2 with SHA-256",
            Format::Pbkdf2Sha1 => "PBKDF2 with SHA-1",
            Format::Payload => "PBKDF2 of Payload",
            Format::Scrypt => "scrypt",
            Format::Phpass => "phpass",
            Format::Drupal => "Drupal's SHA-512",
            Format::StretchedMd5 => "stretched MD5 of a migrated user",
            Format::Md5Crypt => "md5-crypt",
            Format::Apr1 => "apr1",
            Format::Sha256Crypt => "sha256-crypt",
            Format::Sha512Crypt => "sha512-crypt",
            Format::Ldap => "LDAP digest",
            Format::JoomlaMd5 => "MD5 with a salt",
            Format::DjangoDigest => "digest with a salt",
            Format::BareDigest => "digest without a salt",
            Format::Recipe => "digest of a recipe",
        }
    }

    /// Which systems write it.
    #[must_use]
    pub fn written_by(self) -> &'static str {
        match self {
            Format::Argon2id => "Portcullis, PHP, Django, Directus, TYPO3",
            Format::Argon2i => "PHP, TYPO3, older Django",
            Format::Bcrypt => "PHP, Drupal 10.1, Joomla, TYPO3, phpBB, Strapi, htpasswd -B, Django",
            Format::WordPressBcrypt => "WordPress since 6.8",
            Format::DjangoBcryptSha256 | Format::Scrypt | Format::Pbkdf2Sha1 => "Django",
            Format::Pbkdf2Sha256 => "Django, Wagtail, TYPO3",
            Format::Payload => "Payload",
            Format::Phpass => "WordPress before 6.8, phpBB 3, Joomla, TYPO3",
            Format::Drupal => "Drupal 7 to 10.0",
            Format::StretchedMd5 => "Drupal and TYPO3, for users of a version before",
            Format::Md5Crypt => "crypt, older TYPO3",
            Format::Apr1 => "htpasswd",
            Format::Sha256Crypt | Format::Sha512Crypt => "crypt, mkpasswd, htpasswd",
            Format::Ldap => "LDAP directories, htpasswd -s",
            Format::JoomlaMd5 => "Joomla before 2.5.18",
            Format::DjangoDigest => "old Django",
            Format::BareDigest => "in-house systems, the oldest WordPress and phpBB",
            Format::Recipe => "in-house systems",
        }
    }

    /// Whether it is one digest without stretching: whoever reads the table tries billions of passwords a
    /// second. Let in only when [`HashPolicy`] says so.
    #[must_use]
    pub fn is_weak(self) -> bool {
        matches!(
            self,
            Format::Ldap | Format::JoomlaMd5 | Format::DjangoDigest | Format::BareDigest | Format::Recipe
        )
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a stored hash cannot be used. The text never holds any of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnusableHash {
    /// In no known format.
    Unknown,
    /// In a known format that is not taken; which, and why.
    Unsupported(&'static str),
    /// A mark that no password is right: an empty text, `!…` or `*…`.
    NoPassword,
    /// Begun in a known format and cut short, or damaged.
    Malformed(Format),
    /// Asks for more time or memory than a row may, or for less than the format has.
    Parameters(Format),
    /// Not stretched, and not let in.
    Weak(Format),
    /// Of a format with the salt in another column, and none was given, or one that is too long.
    Salt(Format),
}

impl fmt::Display for UnusableHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnusableHash::Unknown => f.write_str("the password hash is in no format that is known here"),
            UnusableHash::Unsupported(what) => {
                write!(f, "the password hash is {what}, which is not supported")
            }
            UnusableHash::NoPassword => {
                f.write_str("the password hash says that this user has no password to log in with")
            }
            UnusableHash::Malformed(format) => {
                write!(f, "the password hash ({format}) is cut short or damaged")
            }
            UnusableHash::Parameters(format) => {
                write!(f, "the password hash ({format}) asks for parameters that are out of bounds")
            }
            UnusableHash::Weak(format) => write!(
                f,
                "the password hash ({format}) is too weak to be believed unless `users.weak_hashes` is true"
            ),
            UnusableHash::Salt(format) => {
                write!(
                    f,
                    "the password hash ({format}) needs a salt of 1 to {MAX_SALT_BYTES} bytes beside it"
                )
            }
        }
    }
}

impl Error for UnusableHash {}

/// The machine had no memory for a hash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OutOfMemory;

/// A stored hash, taken apart, its parameters within bounds.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct StoredHash {
    format: Format,
    spelling: Spelling,
    scheme: Scheme,
    /// What the scheme gives for the right password.
    output: Vec<u8>,
}

/// How much it takes to check a password: a [`StoredHash`] whose salt and output mean nothing.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Cost(StoredHash);

/// What the original system does to a password before it is hashed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Spelling {
    AsSent,
    /// Nothing matches a password with a NUL: the original reads a C string. bcrypt, crypt.
    CString,
    /// Nothing matches one of more than 512 bytes. Drupal.
    AtMost512,
    /// Its MD5 as hexadecimal digits: an old hash that was stretched later.
    Md5Hex,
    /// Its SHA-256 as hexadecimal digits. Django.
    Sha256Hex,
    /// An HMAC-SHA-384 in base64, of the trimmed password. WordPress 6.8.
    WordPressHmac,
    /// As sent; or trimmed, with quotes escaped as the forms of WordPress do.
    WordPress,
    /// As sent; or with `&`, `<`, `>` and `"` as entities, as the forms of phpBB do.
    PhpBb,
}

/// A family with its parameters and salt.
#[derive(Clone, Eq, Hash, PartialEq)]
enum Scheme {
    Argon2(argon2::Argon2),
    Bcrypt(bcrypt::Bcrypt),
    Pbkdf2(pbkdf2::Pbkdf2),
    Scrypt(scrypt::Scrypt),
    Phpass(phpass::Phpass),
    Md5Crypt(crypt::Md5Crypt),
    ShaCrypt(crypt::ShaCrypt),
    Digest(digest::Salted),
}

/// What a family's parser makes of a text: itself, and the output to be met.
type Parsed<S> = Result<(S, Vec<u8>), UnusableHash>;

impl StoredHash {
    /// Reads a row's hash; `salt` is what a column of its own has, for the formats that need one.
    ///
    /// Blanks at the end do not count, since a `CHAR` column fills up with them.
    ///
    /// # Errors
    /// Why no password can be right.
    pub fn parse(text: &str, salt: Option<&str>, policy: &HashPolicy) -> Result<StoredHash, UnusableHash> {
        let hash = StoredHash::examine(text, salt, policy)?;
        let let_in = !hash.format.is_weak() || policy.weak || hash.format == Format::Recipe;
        if let_in { Ok(hash) } else { Err(UnusableHash::Weak(hash.format)) }
    }

    /// As [`parse`](StoredHash::parse), but whatever the policy says about weak formats: for an operator
    /// who wants to know what a hash is.
    ///
    /// # Errors
    /// Why no password can be right.
    pub fn examine(text: &str, salt: Option<&str>, policy: &HashPolicy) -> Result<StoredHash, UnusableHash> {
        let text = text.trim_ascii_end();
        if text.is_empty() || text.starts_with(['!', '*']) {
            return Err(UnusableHash::NoPassword);
        }
        if text.len() > MAX_HASH_BYTES || !text.is_ascii() {
            return Err(UnusableHash::Unknown);
        }
        recognise(text, salt, policy)
    }

    /// What it is.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its parameters in words, without salt or output.
    #[must_use]
    pub fn parameters(&self) -> String {
        match &self.scheme {
            Scheme::Argon2(scheme) => scheme.describe(),
            Scheme::Bcrypt(scheme) => scheme.describe(),
            Scheme::Pbkdf2(scheme) => scheme.describe(),
            Scheme::Scrypt(scheme) => scheme.describe(),
            Scheme::Phpass(scheme) => scheme.describe(),
            Scheme::Md5Crypt(scheme) => scheme.describe(),
            Scheme::ShaCrypt(scheme) => scheme.describe(),
            Scheme::Digest(scheme) => scheme.describe(),
        }
    }

    /// Whether it is Argon2id of at least so many KiB and passes.
    #[must_use]
    pub fn is_argon2id_of_at_least(&self, kib: u32, passes: u32) -> bool {
        matches!(&self.scheme, Scheme::Argon2(scheme)
            if self.format == Format::Argon2id && scheme.is_at_least(kib, passes))
    }

    /// Whether the original system takes this password in more than one spelling.
    #[must_use]
    pub fn has_spellings(&self, password: &[u8]) -> bool {
        self.spelling.of(password).len() > 1
    }

    /// Whether this is the password.
    ///
    /// Takes as long for a wrong password as for the right one, but for one that the original system
    /// takes in two spellings: there, the password decides how long, and never the hash.
    ///
    /// # Errors
    /// There is no memory for it; nothing was decided.
    pub fn verify(&self, password: &[u8]) -> Result<bool, OutOfMemory> {
        let mut equal = false;
        for spelled in self.spelling.of(password) {
            let computed = self.compute(&spelled)?;
            equal |= verify_slices_are_equal(&computed, &self.output).is_ok();
        }
        // Computed all the same, so that such a password takes no other time.
        Ok(equal && self.spelling.allows(password))
    }

    /// What checking a password against it takes.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let mut blank = self.clone();
        blank.output.fill(0);
        match &mut blank.scheme {
            Scheme::Argon2(scheme) => scheme.blank(),
            Scheme::Bcrypt(scheme) => scheme.blank(),
            Scheme::Pbkdf2(scheme) => scheme.blank(),
            Scheme::Scrypt(scheme) => scheme.blank(),
            Scheme::Phpass(scheme) => scheme.blank(),
            Scheme::Md5Crypt(scheme) => scheme.blank(),
            Scheme::ShaCrypt(scheme) => scheme.blank(),
            Scheme::Digest(scheme) => scheme.blank(),
        }
        Cost(blank)
    }

    fn compute(&self, password: &[u8]) -> Result<Zeroizing<Vec<u8>>, OutOfMemory> {
        let bytes = self.output.len();
        match &self.scheme {
            Scheme::Argon2(scheme) => scheme.compute(password, bytes),
            Scheme::Bcrypt(scheme) => Ok(scheme.compute(password)),
            Scheme::Pbkdf2(scheme) => Ok(scheme.compute(password, bytes)),
            Scheme::Scrypt(scheme) => scheme.compute(password, bytes),
            Scheme::Phpass(scheme) => Ok(scheme.compute(password)),
            Scheme::Md5Crypt(scheme) => Ok(scheme.compute(password)),
            Scheme::ShaCrypt(scheme) => Ok(scheme.compute(password)),
            Scheme::Digest(scheme) => Ok(scheme.compute(password)),
        }
    }
}

impl fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredHash({}, {}, ..)", self.format, self.parameters())
    }
}

impl Cost {
    /// Spends it on a password, for nothing.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn spend(&self, password: &[u8]) -> Result<(), OutOfMemory> {
        self.0.verify(password).map(drop)
    }
}

impl fmt::Debug for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cost({}, {})", self.0.format, self.0.parameters())
    }
}

/// The families, by prefix. What has none comes last.
fn recognise(text: &str, salt: Option<&str>, policy: &HashPolicy) -> Result<StoredHash, UnusableHash> {
    use Format::*;
    // Django writes its own name of the algorithm before what the library made.
    if let Some(rest) = text.strip_prefix("argon2$") {
        return recognise_argon2(&format!("${rest}")).ok_or(UnusableHash::Malformed(Argon2id))?;
    }
    if let Some(found) = recognise_argon2(text) {
        return found;
    }
    if let Some(rest) = text.strip_prefix("$wp$") {
        let parsed = bcrypt::parse(WordPressBcrypt, &format!("${rest}"));
        return stored(WordPressBcrypt, Spelling::WordPressHmac, parsed, Scheme::Bcrypt);
    }
    if let Some(rest) = text.strip_prefix("bcrypt_sha256$") {
        let parsed = bcrypt::parse(DjangoBcryptSha256, rest);
        return stored(DjangoBcryptSha256, Spelling::Sha256Hex, parsed, Scheme::Bcrypt);
    }
    let plain = text.strip_prefix("bcrypt$").unwrap_or(text);
    if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| plain.starts_with(prefix)) || plain.len() != text.len() {
        return stored(Bcrypt, Spelling::CString, bcrypt::parse(Bcrypt, plain), Scheme::Bcrypt);
    }
    for (prefix, format) in
        [("pbkdf2_sha256$", Pbkdf2Sha256), ("pbkdf2_sha1$", Pbkdf2Sha1), ("$pbkdf2-sha256$", Pbkdf2Sha256)]
    {
        if let Some(rest) = text.strip_prefix(prefix) {
            let parsed = match prefix.starts_with('$') {
                true => pbkdf2::parse_modular(rest),
                false => pbkdf2::parse_django(format, rest),
            };
            return stored(format, Spelling::AsSent, parsed, Scheme::Pbkdf2);
        }
    }
    if let Some(parsed) = pbkdf2::parse_payload(text, salt) {
        return stored(Payload, Spelling::AsSent, parsed, Scheme::Pbkdf2);
    }
    if let Some(rest) = text.strip_prefix("scrypt$") {
        return stored(Scrypt, Spelling::AsSent, scrypt::parse(rest), Scheme::Scrypt);
    }
    for (prefix, format, spelling) in [
        ("$P$", Phpass, Spelling::WordPress),
        ("$H$", Phpass, Spelling::PhpBb),
        ("$S$", Drupal, Spelling::AtMost512),
        ("U$S$", StretchedMd5, Spelling::Md5Hex),
        ("U$P$", StretchedMd5, Spelling::Md5Hex),
        ("U$H$", StretchedMd5, Spelling::Md5Hex),
        ("M$P$", StretchedMd5, Spelling::Md5Hex),
    ] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return stored(format, spelling, phpass::parse(format, prefix, rest), Scheme::Phpass);
        }
    }
    for (prefix, format) in [("$1$", Md5Crypt), ("$apr1$", Apr1)] {
        if let Some(rest) = text.strip_prefix(prefix) {
            let parsed = crypt::parse_md5(format, prefix, rest);
            return stored(format, Spelling::CString, parsed, Scheme::Md5Crypt);
        }
    }
    for (prefix, format) in [("$5$", Sha256Crypt), ("$6$", Sha512Crypt)] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return stored(format, Spelling::CString, crypt::parse_sha(format, rest), Scheme::ShaCrypt);
        }
    }
    for (prefix, what) in [
        ("$2x$", "a bcrypt hash of a faulty implementation ($2x$)"),
        ("$2$", "a bcrypt hash of its first version ($2$)"),
        ("$y$", "a yescrypt hash ($y$)"),
        ("$gy$", "a gost-yescrypt hash ($gy$)"),
        ("$7$", "an scrypt hash of crypt ($7$)"),
        ("$3$", "an NT hash ($3$)"),
        ("$argon2d$", "an Argon2d hash"),
        ("$H\\", "a converted hash of phpBB, of more than one format"),
        ("$CP$", "a converted hash of phpBB"),
        ("{CRYPT}", "wrapped in {CRYPT}: give what follows it"),
    ] {
        if text.starts_with(prefix) {
            return Err(UnusableHash::Unsupported(what));
        }
    }
    digest::recognise(text, salt, policy).map(|(format, scheme, output)| StoredHash {
        format,
        spelling: Spelling::AsSent,
        scheme: Scheme::Digest(scheme),
        output,
    })
}

fn recognise_argon2(text: &str) -> Option<Result<StoredHash, UnusableHash>> {
    let (format, rest) = if let Some(rest) = text.strip_prefix("$argon2id$") {
        (Format::Argon2id, rest)
    } else {
        (Format::Argon2i, text.strip_prefix("$argon2i$")?)
    };
    Some(stored(format, Spelling::AsSent, argon2::parse(format, rest), Scheme::Argon2))
}

fn stored<S>(
    format: Format,
    spelling: Spelling,
    parsed: Parsed<S>,
    scheme: impl FnOnce(S) -> Scheme,
) -> Result<StoredHash, UnusableHash> {
    parsed.map(|(parsed, output)| StoredHash { format, spelling, scheme: scheme(parsed), output })
}

impl Spelling {
    /// The ways in which the original system could have read this password, without repetition.
    fn of(self, password: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
        let first = |bytes: &[u8]| Zeroizing::new(bytes.to_vec());
        match self {
            Spelling::AsSent | Spelling::CString | Spelling::AtMost512 => vec![first(password)],
            Spelling::Md5Hex => vec![hex(&digest::digest(Digest::Md5, &[password]))],
            Spelling::Sha256Hex => {
                vec![hex(&digest::digest(Digest::Sha256, &[password]))]
            }
            Spelling::WordPressHmac => or_else(trimmed(password), slashed(trimmed(password)))
                .iter()
                .map(|form| wordpress(form))
                .collect(),
            Spelling::WordPress => or_else(password, slashed(trimmed(password))),
            Spelling::PhpBb => or_else(password, escaped(password)),
        }
    }

    fn allows(self, password: &[u8]) -> bool {
        match self {
            Spelling::CString => !password.contains(&0),
            Spelling::AtMost512 => password.len() <= 512,
            _ => true,
        }
    }
}

fn or_else(first: &[u8], second: Cow<'_, [u8]>) -> Vec<Zeroizing<Vec<u8>>> {
    let mut forms = vec![Zeroizing::new(first.to_vec())];
    // Owned, so that the copy is zeroed, too.
    let second = Zeroizing::new(second.into_owned());
    if *second != *forms[0] {
        forms.push(second);
    }
    forms
}

/// What PHP's `trim` leaves.
fn trimmed(password: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0 | 0x0b);
    let start = password.iter().position(|byte| !blank(byte)).unwrap_or(password.len());
    let end = password.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &password[start..end]
}

/// What PHP's `addslashes` makes: WordPress hashes what its form sent with quotes escaped.
fn slashed(password: &[u8]) -> Cow<'_, [u8]> {
    replaced(password, |byte| match byte {
        b'\'' => Some(b"\\'"),
        b'"' => Some(b"\\\""),
        b'\\' => Some(b"\\\\"),
        0 => Some(b"\\0"),
        _ => None,
    })
}

/// What PHP's `htmlspecialchars` makes with `ENT_COMPAT`: phpBB does that to every field of a form.
fn escaped(password: &[u8]) -> Cow<'_, [u8]> {
    replaced(password, |byte| match byte {
        b'&' => Some(b"&amp;"),
        b'<' => Some(b"&lt;"),
        b'>' => Some(b"&gt;"),
        b'"' => Some(b"&quot;"),
        _ => None,
    })
}

fn replaced(password: &[u8], by: impl Fn(u8) -> Option<&'static [u8]>) -> Cow<'_, [u8]> {
    if !password.iter().any(|byte| by(*byte).is_some()) {
        return Cow::Borrowed(password);
    }
    // Never moved while it grows, or a copy would stay behind.
    let mut out = Vec::with_capacity(password.len() * 6);
    for byte in password {
        out.extend_from_slice(by(*byte).unwrap_or(std::slice::from_ref(byte)));
    }
    Cow::Owned(out)
}

fn wordpress(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA384, b"wp-sha384");
    let tag = aws_lc_rs::hmac::sign(&key, password);
    Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(tag).into_bytes())
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let digits = b"0123456789abcdef";
    Zeroizing::new(
        bytes
            .iter()
            .flat_map(|byte| [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]])
            .collect(),
    )
}

/// The bytes of hexadecimal digits in either case; `None` for anything else.
fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// A decimal number without sign or leading zeros.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !(text.len() > 1 && text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The digits that crypt and phpass write six bits in, the lowest first.
const ITOA64: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The value of such a digit.
fn atoi64(digit: u8) -> Option<u8> {
    ITOA64.iter().position(|known| *known == digit).and_then(|at| u8::try_from(at).ok())
}

fn is_itoa64(text: &str) -> bool {
    text.bytes().all(|digit| atoi64(digit).is_some())
}

#[cfg(test)]
mod tests;
