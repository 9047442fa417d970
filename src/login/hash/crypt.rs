//! The hashes of crypt(3): MD5 (`$1$`, and `$apr1$` of Apache), SHA-256 (`$5$`) and SHA-512 (`$6$`).
//!
//! MD5 after Poul-Henning Kamp's algorithm, SHA after Ulrich Drepper's specification
//! (<https://www.akkadia.org/drepper/SHA-crypt.txt>).

use zeroize::Zeroizing;

use super::{Format, ITOA64, Parsed, UnusableHash, digest::digest, is_itoa64, number};
use crate::config::recipe::Digest;

/// Rounds of MD5; fixed.
const MD5_ROUNDS: usize = 1000;
/// Rounds of SHA that a text without `rounds=` means.
const SHA_ROUNDS: u32 = 5000;
/// The fewest rounds of SHA that there are.
const LEAST_SHA_ROUNDS: u32 = 1000;
/// The most that a row may ask for: about a second. The specification allows 999,999,999.
const MOST_SHA_ROUNDS: u32 = 1_000_000;

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Md5Crypt {
    prefix: &'static str,
    /// Up to 8 bytes.
    salt: Vec<u8>,
}

/// Reads what follows `$1$` or `$apr1$`.
pub(super) fn parse_md5(format: Format, prefix: &'static str, rest: &str) -> Parsed<Md5Crypt> {
    let malformed = UnusableHash::Malformed(format);
    let (salt, output) = rest.split_once('$').ok_or(malformed)?;
    if salt.len() > 8 || output.len() != 22 || !is_itoa64(output) {
        return Err(malformed);
    }
    Ok((Md5Crypt { prefix, salt: salt.as_bytes().to_vec() }, output.as_bytes().to_vec()))
}

impl Md5Crypt {
    pub(super) fn compute(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        let md5 = |parts: &[&[u8]]| digest(Digest::Md5, parts);
        let inner = md5(&[password, &self.salt, password]);
        let mut parts: Vec<&[u8]> = vec![password, self.prefix.as_bytes(), &self.salt];
        parts.extend(repeated(&inner, password.len()));
        // A bit of the length that is set adds a NUL, one that is not the password's first byte.
        let mut length = password.len();
        while length > 0 {
            parts.push(if length & 1 == 1 { &[0] } else { &password[..1] });
            length >>= 1;
        }
        let mut state = md5(&parts);
        for round in 0..MD5_ROUNDS {
            let mut parts: Vec<&[u8]> = vec![if round % 2 == 1 { password } else { &state }];
            if round % 3 != 0 {
                parts.push(&self.salt);
            }
            if round % 7 != 0 {
                parts.push(password);
            }
            parts.push(if round % 2 == 1 { &state } else { password });
            state = md5(&parts);
        }
        let mut digits = Zeroizing::new(Vec::with_capacity(22));
        for [a, b, c] in [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]] {
            push_digits(&mut digits, [state[a], state[b], state[c]], 4);
        }
        push_digits(&mut digits, [0, 0, state[11]], 2);
        digits
    }

    pub(super) fn blank(&mut self) {
        self.salt = vec![b'.'; 8];
    }

    pub(super) fn describe(&self) -> String {
        format!("{MD5_ROUNDS} rounds of md5")
    }
}

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct ShaCrypt {
    digest: Digest,
    rounds: u32,
    /// Up to 16 bytes.
    salt: Vec<u8>,
}

/// Reads what follows `$5$` or `$6$`.
pub(super) fn parse_sha(format: Format, rest: &str) -> Parsed<ShaCrypt> {
    let malformed = UnusableHash::Malformed(format);
    let (digest, digits) =
        if format == Format::Sha256Crypt { (Digest::Sha256, 43) } else { (Digest::Sha512, 86) };
    let mut fields: Vec<&str> = rest.split('$').collect();
    let mut rounds = SHA_ROUNDS;
    if let Some(written) = fields.first().and_then(|first| first.strip_prefix("rounds=")) {
        rounds = number::<u32>(written)
            .filter(|rounds| (LEAST_SHA_ROUNDS..=MOST_SHA_ROUNDS).contains(rounds))
            .ok_or(UnusableHash::Parameters(format))?;
        fields.remove(0);
    }
    let [salt, output] = fields[..] else { return Err(malformed) };
    if salt.len() > 16 || output.len() != digits || !is_itoa64(output) {
        return Err(malformed);
    }
    Ok((ShaCrypt { digest, rounds, salt: salt.as_bytes().to_vec() }, output.as_bytes().to_vec()))
}

impl ShaCrypt {
    pub(super) fn compute(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        let sha = |parts: &[&[u8]]| digest(self.digest, parts);
        // The letters are those of the specification's steps.
        let b = sha(&[password, &self.salt, password]);
        let mut parts: Vec<&[u8]> = vec![password, &self.salt];
        parts.extend(repeated(&b, password.len()));
        let mut length = password.len();
        while length > 0 {
            parts.push(if length & 1 == 1 { &b } else { password });
            length >>= 1;
        }
        let a = sha(&parts);
        let dp = sha(&vec![password; password.len()]);
        let p = Zeroizing::new(repeated(&dp, password.len()).collect::<Vec<_>>().concat());
        let ds = sha(&vec![self.salt.as_slice(); 16 + usize::from(a[0])]);
        let s = Zeroizing::new(repeated(&ds, self.salt.len()).collect::<Vec<_>>().concat());
        let mut state = a;
        for round in 0..self.rounds {
            let odd = round % 2 == 1;
            let mut parts = [&[][..]; 4];
            parts[0] = if odd { &p } else { &state };
            if round % 3 != 0 {
                parts[1] = &s;
            }
            if round % 7 != 0 {
                parts[2] = &p;
            }
            parts[3] = if odd { &state } else { &p };
            state = sha(&parts);
        }
        self.digits(&state)
    }

    /// The output in the specification's order of bytes (step 22).
    fn digits(&self, c: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut digits = Zeroizing::new(Vec::with_capacity(86));
        if self.digest == Digest::Sha256 {
            let (mut x, mut y, mut z) = (0, 10, 20);
            for _ in 0..10 {
                push_digits(&mut digits, [c[x], c[y], c[z]], 4);
                (x, y, z) = (z + 1, x + 1, y + 1);
            }
            push_digits(&mut digits, [0, c[31], c[30]], 3);
        } else {
            let (mut x, mut y, mut z) = (0, 21, 42);
            for _ in 0..21 {
                push_digits(&mut digits, [c[x], c[y], c[z]], 4);
                (x, y, z) = (y + 1, z + 1, x + 1);
            }
            push_digits(&mut digits, [0, 0, c[63]], 2);
        }
        digits
    }

    pub(super) fn blank(&mut self) {
        self.salt = vec![b'.'; 16];
    }

    pub(super) fn describe(&self) -> String {
        format!("{} rounds of {}", self.rounds, self.digest.name())
    }
}

/// `bytes` again and again, `length` bytes in all.
fn repeated(bytes: &[u8], length: usize) -> impl Iterator<Item = &[u8]> {
    (0..length).step_by(bytes.len()).map(move |from| &bytes[..bytes.len().min(length - from)])
}

/// The highest byte comes first, the lowest digit does.
fn push_digits(digits: &mut Vec<u8>, bytes: [u8; 3], count: usize) {
    let mut value = bytes.iter().fold(0usize, |value, byte| value << 8 | usize::from(*byte));
    for _ in 0..count {
        digits.push(ITOA64[value & 0x3f]);
        value >>= 6;
    }
}
