//! Argon2id and Argon2i in the PHC string format (RFC 9106; `$argon2id$v=19$m=…,t=…,p=…$salt$output`).

use ::argon2::{Algorithm, Params, Version};
use base64::Engine;
use zeroize::Zeroizing;

use super::{BASE64, Format, LEAST_OUTPUT, MOST_OUTPUT, OutOfMemory, Parsed, UnusableHash, number};

/// The most that a row may ask for: KiB, passes, lanes.
pub(crate) const MOST: (u32, u32, u32) = (256 * 1024, 10, 8);

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Argon2 {
    id: bool,
    version_16: bool,
    kib: u32,
    passes: u32,
    lanes: u32,
    salt: Vec<u8>,
}

/// Reads what follows `$argon2id$` or `$argon2i$`.
pub(super) fn parse(format: Format, rest: &str) -> Parsed<Argon2> {
    let malformed = UnusableHash::Malformed(format);
    let parameters = UnusableHash::Parameters(format);
    let mut fields: Vec<&str> = rest.split('$').collect();
    // Without a version it is the first one, 16 (the reference implementation, decode_string).
    let version_16 = match fields.first() {
        Some(&"v=19") => false,
        Some(&"v=16") => true,
        Some(field) if field.starts_with("m=") => {
            fields.insert(0, "v=16");
            true
        }
        _ => return Err(malformed),
    };
    let [_, costs, salt, output] = fields[..] else { return Err(malformed) };
    let costs: Vec<&str> = costs.split(',').collect();
    let [kib, passes, lanes] = costs[..] else { return Err(malformed) };
    let cost = |text: &str, name: &str| {
        let digits = text.strip_prefix(name).ok_or(malformed)?;
        number::<u64>(digits).and_then(|number| u32::try_from(number).ok()).ok_or(parameters)
    };
    let (kib, passes, lanes) = (cost(kib, "m=")?, cost(passes, "t=")?, cost(lanes, "p=")?);
    if kib > MOST.0 || passes > MOST.1 || lanes > MOST.2 {
        return Err(parameters);
    }
    let salt = BASE64.decode(salt).map_err(|_| malformed)?;
    let output = BASE64.decode(output).map_err(|_| malformed)?;
    if salt.len() < 8 || !(LEAST_OUTPUT..=MOST_OUTPUT).contains(&output.len()) {
        return Err(malformed);
    }
    Params::new(kib, passes, lanes, Some(output.len())).map_err(|_| parameters)?;
    Ok((Argon2 { id: format == Format::Argon2id, version_16, kib, passes, lanes, salt }, output))
}

impl Argon2 {
    pub(super) fn compute(&self, password: &[u8], bytes: usize) -> Result<Zeroizing<Vec<u8>>, OutOfMemory> {
        let algorithm = if self.id { Algorithm::Argon2id } else { Algorithm::Argon2i };
        let version = if self.version_16 { Version::V0x10 } else { Version::V0x13 };
        let params = Params::new(self.kib, self.passes, self.lanes, Some(bytes)).map_err(|_| OutOfMemory)?;
        let mut output = Zeroizing::new(vec![0; bytes]);
        ::argon2::Argon2::new(algorithm, version, params)
            .hash_password_into(password, &self.salt, &mut output)
            .map_err(|_| OutOfMemory)?;
        Ok(output)
    }

    pub(super) fn is_at_least(&self, kib: u32, passes: u32) -> bool {
        !self.version_16 && self.kib >= kib && self.passes >= passes
    }

    pub(super) fn blank(&mut self) {
        self.salt = vec![0; 16];
    }

    pub(super) fn describe(&self) -> String {
        format!("{} KiB, passes {}, lanes {}", self.kib, self.passes, self.lanes)
    }
}
