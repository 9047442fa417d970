//! scrypt (RFC 7914) as Django writes it: `scrypt$16384$salt$8$5$output`.

use ::scrypt::Params;
use base64::Engine;
use zeroize::Zeroizing;

use super::{BASE64, Format, OutOfMemory, Parsed, UnusableHash, number};

/// The most memory that a row may ask for, 128·N·r, in bytes.
const MOST_MEMORY: u64 = 256 << 20;
/// The most work, N·r·p: some two seconds.
const MOST_WORK: u64 = 1 << 22;

#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Scrypt {
    log_n: u8,
    r: u32,
    p: u32,
    salt: Vec<u8>,
}

/// Reads what follows `scrypt$`: N, salt as text, r, p, output in base64.
pub(super) fn parse(rest: &str) -> Parsed<Scrypt> {
    let malformed = UnusableHash::Malformed(Format::Scrypt);
    let parameters = UnusableHash::Parameters(Format::Scrypt);
    let fields: Vec<&str> = rest.split('$').collect();
    let [n, salt, r, p, output] = fields[..] else { return Err(malformed) };
    let output = BASE64.decode(output).map_err(|_| malformed)?;
    if salt.is_empty() || output.len() != 64 {
        return Err(malformed);
    }
    let n = number::<u32>(n).filter(|n| *n > 1 && n.is_power_of_two()).ok_or(parameters)?;
    let r = number::<u32>(r).filter(|r| (1..=1024).contains(r)).ok_or(parameters)?;
    let p = number::<u32>(p).filter(|p| (1..=1024).contains(p)).ok_or(parameters)?;
    let units = u64::from(n) * u64::from(r);
    if units * 128 > MOST_MEMORY || units * u64::from(p) > MOST_WORK {
        return Err(parameters);
    }
    let log_n = u8::try_from(n.ilog2()).map_err(|_| parameters)?;
    Params::new(log_n, r, p).map_err(|_| parameters)?;
    Ok((Scrypt { log_n, r, p, salt: salt.as_bytes().to_vec() }, output))
}

impl Scrypt {
    pub(super) fn compute(&self, password: &[u8], bytes: usize) -> Result<Zeroizing<Vec<u8>>, OutOfMemory> {
        let params = Params::new(self.log_n, self.r, self.p).map_err(|_| OutOfMemory)?;
        let mut output = Zeroizing::new(vec![0; bytes]);
        ::scrypt::scrypt(password, &self.salt, &params, &mut output).map_err(|_| OutOfMemory)?;
        Ok(output)
    }

    pub(super) fn blank(&mut self) {
        self.salt = vec![0; 16];
    }

    pub(super) fn describe(&self) -> String {
        format!("N {}, r {}, p {}", 1u64 << self.log_n, self.r, self.p)
    }
}
