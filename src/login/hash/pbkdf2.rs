//! PBKDF2 (RFC 8018 §5.2) as Django, TYPO3 and Payload write it.

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;
use base64::Engine;
use zeroize::Zeroizing;

use super::{BASE64, Format, LEAST_OUTPUT, MAX_SALT_BYTES, MOST_OUTPUT, Parsed, UnusableHash, number, unhex};

/// Rounds times blocks of output that a row may ask for. Django's own default was a million in 2025, and
/// grows by a fifth a release.
const MOST_WORK: u64 = 5_000_000;

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Pbkdf2 {
    sha1: bool,
    rounds: NonZeroU32,
    salt: Vec<u8>,
}

/// Reads what follows `pbkdf2_sha256$` or `pbkdf2_sha1$`: rounds, salt as text, output in base64.
pub(super) fn parse_django(format: Format, rest: &str) -> Parsed<Pbkdf2> {
    let malformed = UnusableHash::Malformed(format);
    let fields: Vec<&str> = rest.split('$').collect();
    let [rounds, salt, output] = fields[..] else { return Err(malformed) };
    let output = BASE64.decode(output).map_err(|_| malformed)?;
    // Django compares all of it, and makes as much as one block has.
    let sha1 = format == Format::Pbkdf2Sha1;
    if salt.is_empty() || output.len() != if sha1 { 20 } else { 32 } {
        return Err(malformed);
    }
    checked(format, sha1, rounds, salt.as_bytes().to_vec(), output)
}

/// Reads what follows `$pbkdf2-sha256$`: rounds, then salt and output in base64 with `.` for `+`.
pub(super) fn parse_modular(rest: &str) -> Parsed<Pbkdf2> {
    let format = Format::Pbkdf2Sha256;
    let malformed = UnusableHash::Malformed(format);
    let fields: Vec<&str> = rest.split('$').collect();
    let [rounds, salt, output] = fields[..] else { return Err(malformed) };
    let decoded = |text: &str| BASE64.decode(text.replace('.', "+")).map_err(|_| malformed);
    let (salt, output) = (decoded(salt)?, decoded(output)?);
    if output.len() != 32 {
        return Err(malformed);
    }
    checked(format, false, rounds, salt, output)
}

/// Reads Payload's three forms, all with the salt in a column of its own:
/// `pbkdf2-sha256-v2-i600000-l32:…`, `pbkdf2-sha256-v1:…` (600,000 rounds, 32 bytes), and bare hexadecimal
/// digits (25,000 rounds, 512 bytes). `None` for what is none of them.
pub(super) fn parse_payload(text: &str, salt: Option<&str>) -> Option<Parsed<Pbkdf2>> {
    let format = Format::Payload;
    let malformed = UnusableHash::Malformed(format);
    let (rounds, bytes, digits) = if let Some(rest) = text.strip_prefix("pbkdf2-sha256-v2-i") {
        let Some((parameters, digits)) = rest.split_once(':') else { return Some(Err(malformed)) };
        let Some((rounds, bytes)) = parameters.split_once("-l") else { return Some(Err(malformed)) };
        let Some(bytes) = number::<usize>(bytes) else { return Some(Err(malformed)) };
        (rounds, bytes, digits)
    } else if let Some(digits) = text.strip_prefix("pbkdf2-sha256-v1:") {
        ("600000", 32, digits)
    } else if text.len() == 1024 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        ("25000", 512, text)
    } else {
        return None;
    };
    let Some(output) = unhex(digits).filter(|output| output.len() == bytes) else {
        return Some(Err(malformed));
    };
    let salt = salt.filter(|salt| (1..=MAX_SALT_BYTES).contains(&salt.len()));
    let Some(salt) = salt else { return Some(Err(UnusableHash::Salt(format))) };
    Some(checked(format, false, rounds, salt.as_bytes().to_vec(), output))
}

fn checked(format: Format, sha1: bool, rounds: &str, salt: Vec<u8>, output: Vec<u8>) -> Parsed<Pbkdf2> {
    if !(LEAST_OUTPUT..=MOST_OUTPUT).contains(&output.len()) {
        return Err(UnusableHash::Malformed(format));
    }
    let parameters = UnusableHash::Parameters(format);
    let rounds = number::<u32>(rounds).and_then(NonZeroU32::new).ok_or(parameters)?;
    let blocks = output.len().div_ceil(if sha1 { 20 } else { 32 }) as u64;
    if u64::from(rounds.get()) * blocks > MOST_WORK {
        return Err(parameters);
    }
    Ok((Pbkdf2 { sha1, rounds, salt }, output))
}

impl Pbkdf2 {
    pub(super) fn compute(&self, password: &[u8], bytes: usize) -> Zeroizing<Vec<u8>> {
        let algorithm = if self.sha1 { pbkdf2::PBKDF2_HMAC_SHA1 } else { pbkdf2::PBKDF2_HMAC_SHA256 };
        let mut output = Zeroizing::new(vec![0; bytes]);
        pbkdf2::derive(algorithm, self.rounds, &self.salt, password, &mut output);
        output
    }

    pub(super) fn blank(&mut self) {
        self.salt = vec![0; 16];
    }

    pub(super) fn describe(&self) -> String {
        format!("{} rounds", self.rounds)
    }
}
