//! phpass's portable hashes (<https://www.openwall.com/phpass/>): `$P$`, a digit for the logarithm of the
//! rounds, 8 of salt, then the output. With MD5, or with SHA-512 in Drupal, which keeps 43 of 86 digits.

use zeroize::Zeroizing;

use super::{Format, ITOA64, Parsed, UnusableHash, atoi64, digest::digest, is_itoa64};
use crate::config::recipe::Digest;

/// Logarithm of the least rounds, as in the original.
const LEAST_ROUNDS: u8 = 7;
/// Logarithm of the rounds that a row may ask for: about a second. The originals allow 30, and write 11 to 16.
const MOST_ROUNDS: u8 = 20;

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Phpass {
    digest: Digest,
    log_rounds: u8,
    salt: [u8; 8],
}

/// Reads what follows the prefix.
pub(super) fn parse(format: Format, prefix: &str, rest: &str) -> Parsed<Phpass> {
    let malformed = UnusableHash::Malformed(format);
    let digest = if prefix.ends_with("$S$") { Digest::Sha512 } else { Digest::Md5 };
    if rest.len() != 1 + 8 + digits_of(digest) || !is_itoa64(rest) {
        return Err(malformed);
    }
    let (head, output) = rest.split_at(9);
    let log_rounds = atoi64(head.as_bytes()[0]).ok_or(malformed)?;
    if !(LEAST_ROUNDS..=MOST_ROUNDS).contains(&log_rounds) {
        return Err(UnusableHash::Parameters(format));
    }
    let salt = head.as_bytes()[1..].try_into().map_err(|_| malformed)?;
    Ok((Phpass { digest, log_rounds, salt }, output.as_bytes().to_vec()))
}

/// How many digits of the output are kept.
fn digits_of(digest: Digest) -> usize {
    if digest == Digest::Sha512 { 43 } else { 22 }
}

impl Phpass {
    /// The output's digits.
    pub(super) fn compute(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut state = digest(self.digest, &[&self.salt, password]);
        for _ in 0..1u32 << self.log_rounds {
            state = digest(self.digest, &[&state, password]);
        }
        let mut digits = encoded(&state);
        digits.truncate(digits_of(self.digest));
        digits
    }

    pub(super) fn blank(&mut self) {
        self.salt = [b'.'; 8];
    }

    pub(super) fn describe(&self) -> String {
        format!("{} rounds of {}", 1u32 << self.log_rounds, self.digest.name())
    }
}

/// Six bits a digit, from the lowest bits of the first byte on.
fn encoded(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut digits = Zeroizing::new(Vec::with_capacity(bytes.len() * 8 / 6 + 1));
    for chunk in bytes.chunks(3) {
        let value = chunk.iter().rev().fold(0usize, |value, byte| value << 8 | usize::from(*byte));
        for at in 0..=chunk.len() {
            digits.push(ITOA64[value >> (6 * at) & 0x3f]);
        }
    }
    digits
}
