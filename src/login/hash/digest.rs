//! One digest and nothing more: the weak formats, and the recipes of in-house systems.
//!
//! All of them are a [`Recipe`] over a password and a salt; what differs is how the text is written.

use aws_lc_rs::digest as sha;
use base64::Engine;
use md5::Digest as _;
use zeroize::Zeroizing;

use super::{BASE64, Format, MAX_SALT_BYTES, UnusableHash, hex, unhex};
use crate::config::recipe::{Digest, HashPolicy, Recipe, Term};

/// A recipe and the salt that it is used with.
#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Salted {
    recipe: Recipe,
    salt: Vec<u8>,
}

/// The format, its scheme and the output of a text without a prefix of its own; `salt` is the column's.
pub(super) fn recognise(
    text: &str,
    salt: Option<&str>,
    policy: &HashPolicy,
) -> Result<(Format, Salted, Vec<u8>), UnusableHash> {
    if let Some((scheme, encoded)) = text.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        return ldap(scheme, encoded);
    }
    if let Some((digest, rest)) = [(Digest::Md5, "md5$"), (Digest::Sha1, "sha1$")]
        .iter()
        .find_map(|(digest, prefix)| Some((*digest, text.strip_prefix(prefix)?)))
    {
        let malformed = UnusableHash::Malformed(Format::DjangoDigest);
        let (salt, digits) = rest.split_once('$').ok_or(malformed)?;
        let output = unhex(digits).filter(|output| output.len() == digest.bytes()).ok_or(malformed)?;
        let recipe = Recipe::of(digest, vec![Term::Salt, Term::Password]);
        return Ok((Format::DjangoDigest, Salted { recipe, salt: salt.as_bytes().to_vec() }, output));
    }
    if let Some(recipe) = &policy.recipe {
        return by_recipe(text, salt, recipe);
    }
    if let Some((digits, salt)) = text.split_once(':')
        && digits.len() == 32
        && let Some(output) = unhex(digits)
    {
        let recipe = Recipe::of(Digest::Md5, vec![Term::Password, Term::Salt]);
        return Ok((Format::JoomlaMd5, Salted { recipe, salt: salt.as_bytes().to_vec() }, output));
    }
    let output = unhex(text).ok_or(UnusableHash::Unknown)?;
    let lengths = [Digest::Md5, Digest::Sha1, Digest::Sha256, Digest::Sha384, Digest::Sha512];
    let digest = lengths.into_iter().find(|digest| digest.bytes() == output.len());
    let recipe = Recipe::of(digest.ok_or(UnusableHash::Unknown)?, vec![Term::Password]);
    Ok((Format::BareDigest, Salted { recipe, salt: Vec::new() }, output))
}

/// `{SSHA}` and its like (RFC 2307 §5.3, OpenLDAP): base64 of the output, followed by the salt.
fn ldap(scheme: &str, encoded: &str) -> Result<(Format, Salted, Vec<u8>), UnusableHash> {
    let malformed = UnusableHash::Malformed(Format::Ldap);
    let (digest, salted) = match scheme.to_ascii_uppercase().as_str() {
        "MD5" => (Digest::Md5, false),
        "SMD5" => (Digest::Md5, true),
        "SHA" => (Digest::Sha1, false),
        "SSHA" => (Digest::Sha1, true),
        "SHA256" => (Digest::Sha256, false),
        "SSHA256" => (Digest::Sha256, true),
        "SHA384" => (Digest::Sha384, false),
        "SSHA384" => (Digest::Sha384, true),
        "SHA512" => (Digest::Sha512, false),
        "SSHA512" => (Digest::Sha512, true),
        _ => return Err(UnusableHash::Unknown),
    };
    let mut output = BASE64.decode(encoded).map_err(|_| malformed)?;
    if output.len() < digest.bytes() || (output.len() > digest.bytes()) != salted {
        return Err(malformed);
    }
    let salt = output.split_off(digest.bytes());
    let message = if salted { vec![Term::Password, Term::Salt] } else { vec![Term::Password] };
    Ok((Format::Ldap, Salted { recipe: Recipe::of(digest, message), salt }, output))
}

/// The recipe's output, as hexadecimal digits in either case or in base64.
fn by_recipe(
    text: &str,
    salt: Option<&str>,
    recipe: &Recipe,
) -> Result<(Format, Salted, Vec<u8>), UnusableHash> {
    let bytes = recipe.digest.bytes();
    let is_output = |output: &Vec<u8>| output.len() == bytes;
    let output = unhex(text)
        .filter(is_output)
        .or_else(|| BASE64.decode(text).ok().filter(is_output))
        .ok_or(UnusableHash::Malformed(Format::Recipe))?;
    let salt = match salt {
        _ if !recipe.is_salted() => "",
        Some(salt) if (1..=MAX_SALT_BYTES).contains(&salt.len()) => salt,
        _ => return Err(UnusableHash::Salt(Format::Recipe)),
    };
    Ok((Format::Recipe, Salted { recipe: recipe.clone(), salt: salt.as_bytes().to_vec() }, output))
}

impl Salted {
    pub(super) fn compute(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        output(&self.recipe, password, &self.salt)
    }

    pub(super) fn blank(&mut self) {
        if self.recipe.is_salted() {
            self.salt = vec![0; 16];
        }
    }

    pub(super) fn describe(&self) -> String {
        let salted = if self.recipe.is_salted() { "with" } else { "without" };
        format!("{} {salted} a salt", self.recipe.digest.name())
    }
}

fn output(recipe: &Recipe, password: &[u8], salt: &[u8]) -> Zeroizing<Vec<u8>> {
    let joined = |terms: &[Term]| {
        let pieces: Vec<Zeroizing<Vec<u8>>> = terms
            .iter()
            .map(|term| match term {
                Term::Password => Zeroizing::new(password.to_vec()),
                Term::Salt => Zeroizing::new(salt.to_vec()),
                Term::Text(text) => Zeroizing::new(text.as_bytes().to_vec()),
                Term::Hex(inner) => hex(&output(inner, password, salt)),
            })
            .collect();
        let slices: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_slice()).collect();
        Zeroizing::new(slices.concat())
    };
    let message = joined(&recipe.message);
    match &recipe.key {
        None => digest(recipe.digest, &[&message]),
        Some(key) => hmac(recipe.digest, &joined(key), &message),
    }
}

/// HMAC (RFC 2104). By hand, since aws-lc-rs has none with MD5.
fn hmac(function: Digest, key: &[u8], message: &[u8]) -> Zeroizing<Vec<u8>> {
    let block = if function.bytes() > 32 { 128 } else { 64 };
    let mut padded = Zeroizing::new(vec![0; block]);
    let key = if key.len() > block { digest(function, &[key]) } else { Zeroizing::new(key.to_vec()) };
    padded[..key.len()].copy_from_slice(&key);
    let masked = |mask: u8| Zeroizing::new(padded.iter().map(|byte| byte ^ mask).collect::<Vec<u8>>());
    let inner = digest(function, &[&masked(0x36), message]);
    digest(function, &[&masked(0x5c), &inner])
}

/// The digest of the parts, one after the other.
pub(super) fn digest(function: Digest, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let algorithm = match function {
        Digest::Md5 => {
            let mut md5 = md5::Md5::new();
            parts.iter().for_each(|part| md5.update(part));
            return Zeroizing::new(md5.finalize().to_vec());
        }
        Digest::Sha1 => &sha::SHA1_FOR_LEGACY_USE_ONLY,
        Digest::Sha256 => &sha::SHA256,
        Digest::Sha384 => &sha::SHA384,
        Digest::Sha512 => &sha::SHA512,
    };
    let mut context = sha::Context::new(algorithm);
    parts.iter().for_each(|part| context.update(part));
    Zeroizing::new(context.finish().as_ref().to_vec())
}
