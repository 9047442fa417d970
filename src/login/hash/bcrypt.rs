//! bcrypt (Provos and Mazières, 1999): `$2y$10$`, 22 digits of salt, 31 of output.
//!
//! It reads 72 bytes of a password and no more. What lies behind them counts for nothing in the systems
//! that give it whole passwords (PHP, Joomla, `htpasswd -B`), and so it does here; WordPress 6.8 and
//! Django's `bcrypt_sha256` hash the password to something shorter first. `$2a$`, `$2b$` and `$2y$` name
//! one algorithm, but for faults long fixed (crypt_blowfish 1.1).

use base64::{Engine, alphabet, engine::GeneralPurpose};
use zeroize::Zeroizing;

use super::{Format, LENIENT, Parsed, UnusableHash, number};

/// As many bytes of a password count.
const PASSWORD_BYTES: usize = 72;
/// Logarithm of the rounds that a row may ask for: some two seconds.
const MOST_COST: u32 = 15;

const DIGITS: GeneralPurpose = GeneralPurpose::new(&alphabet::BCRYPT, LENIENT);

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Bcrypt {
    cost: u32,
    salt: [u8; 16],
}

/// Reads `$2y$10$…` from its first `$` on.
pub(super) fn parse(format: Format, text: &str) -> Parsed<Bcrypt> {
    let malformed = UnusableHash::Malformed(format);
    let fields: Vec<&str> = text.split('$').collect();
    let ["", "2a" | "2b" | "2y", cost, digits] = fields[..] else { return Err(malformed) };
    if cost.len() != 2 || digits.len() != 22 + 31 {
        return Err(malformed);
    }
    let cost = number::<u32>(cost.strip_prefix('0').unwrap_or(cost)).ok_or(malformed)?;
    if !(4..=MOST_COST).contains(&cost) {
        return Err(UnusableHash::Parameters(format));
    }
    let (salt, output) = digits.split_at(22);
    let salt = DIGITS.decode(salt).map_err(|_| malformed)?.try_into().map_err(|_| malformed)?;
    let output = DIGITS.decode(output).map_err(|_| malformed)?;
    Ok((Bcrypt { cost, salt }, output))
}

impl Bcrypt {
    pub(super) fn compute(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        // With its closing NUL, if there is room for that.
        let mut key = Zeroizing::new(Vec::with_capacity(PASSWORD_BYTES + 1));
        key.extend_from_slice(&password[..password.len().min(PASSWORD_BYTES)]);
        key.push(0);
        key.truncate(PASSWORD_BYTES);
        // The last of 24 bytes is written nowhere.
        Zeroizing::new(::bcrypt::bcrypt(self.cost, self.salt, &key)[..23].to_vec())
    }

    pub(super) fn blank(&mut self) {
        self.salt = [0; 16];
    }

    pub(super) fn describe(&self) -> String {
        format!("cost {}", self.cost)
    }
}
