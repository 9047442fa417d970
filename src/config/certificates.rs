//! What clients are served HTTPS with: certificates and keys from their files, and which of them a client gets.
//!
//! Everything that can be wrong with a file is found here, when it is loaded: a key for another certificate,
//! a key that everybody may read, a certificate past its date. A handshake only looks a name up (RFC 6066 §3).
//! Not here: the handshake itself (`server::tls`), when files are read again (`reload`).

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use http::HeaderValue;
use jiff::Timestamp;
use jiff::civil::DateTime;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use super::snapshot::sha256;
use super::{keyring, raw};

/// The largest certificate or key file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// `tls`, ready for handshakes.
#[derive(Clone)]
pub struct Tls {
    /// What handshakes are made with.
    pub server: Arc<ServerConfig>,
    /// One a `cert`, in the file's order.
    pub certificates: Vec<Certificate>,
    /// The value of `Strict-Transport-Security`, where it is sent.
    pub hsts: Option<HeaderValue>,
    /// The port that a redirect names, where it is not the listener's own.
    pub redirect_port: Option<u16>,
    /// Of all that handshakes depend on: as long as it is the same, so is what `server` does.
    fingerprint: String,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// A certificate that clients are shown.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Its file, as the configuration names it.
    pub file: String,
    /// The DNS names that it is for, wildcards included.
    pub names: Vec<String>,
    /// When it begins and ends to count, in Unix seconds, both included.
    pub validity: (u64, u64),
    leaf: CertificateDer<'static>,
}

/// A problem with a file, and which of the two of a pair it is in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PairError {
    /// The certificate's.
    Certificate(String),
    /// The key's, or what both owe each other.
    Key(String),
}

/// A certificate with its key, read and found to belong together.
pub struct Pair {
    certificate: Certificate,
    key: Arc<CertifiedKey>,
}

impl Pair {
    /// Reads the two files, which may be one.
    ///
    /// # Errors
    /// One sentence with the file's name in it, and nothing of its content.
    pub fn read(folder: &Path, pair: &raw::KeyPair) -> Result<Self, PairError> {
        let shown = pair.cert.as_str();
        let chain = read_certificates(&folder.join(shown)).map_err(PairError::Certificate)?;
        let leaf = chain[0].clone();
        let unusable = |why: &str| PairError::Certificate(format!("the certificate '{shown}' {why}"));
        let names = webpki::EndEntityCert::try_from(&leaf)
            .map_err(|_| unusable("is not one of X.509 version 3"))?
            .valid_dns_names()
            .map(str::to_ascii_lowercase)
            .collect();
        let validity = validity(&leaf).ok_or_else(|| unusable("does not say from when to when it counts"))?;
        let key = read_key(&folder.join(pair.key.as_str())).map_err(PairError::Key)?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            let (key, what) = (pair.key.as_str(), error);
            PairError::Key(match what {
                rustls::Error::InconsistentKeys(_) => {
                    format!("the key '{key}' is not the key of the certificate '{shown}'")
                }
                _ => format!("the key '{key}' is of a kind that cannot be used"),
            })
        })?;
        let certificate = Certificate { file: shown.to_owned(), names, validity, leaf };
        Ok(Self { certificate, key: Arc::new(key) })
    }

    /// What to tell somebody about its dates at `now`, in Unix seconds.
    pub fn warning(&self, now: u64) -> Option<String> {
        let (begin, end) = self.certificate.validity;
        let date = |seconds: u64| {
            let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
            time.map_or_else(|| seconds.to_string(), |time| time.to_string())
        };
        let file = &self.certificate.file;
        if now > end {
            return Some(format!("the certificate '{file}' has expired on {}: clients refuse it", date(end)));
        }
        (now < begin).then(|| format!("the certificate '{file}' counts only from {} on", date(begin)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// All certificates of a PEM file, at least one.
///
/// # Errors
/// One sentence.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let pem = read_file(path, "certificate")?.0;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => {
            Err(format!("'{shown}' holds no certificate: it must be PEM, with '-----BEGIN CERTIFICATE-----'"))
        }
        Err(_) => Err(format!("the certificate '{shown}' cannot be used: its PEM is damaged")),
    }
}

/// The bytes of a file, and what is known of it.
fn read_file(path: &Path, kind: &str) -> Result<(Vec<u8>, fs::Metadata), String> {
    let shown = path.display();
    let metadata =
        fs::metadata(path).map_err(|error| format!("cannot read the {kind} '{shown}': {error}"))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(format!("the {kind} '{shown}' is not a file of at most 1 MiB"));
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot read the {kind} '{shown}': {error}"))?;
    Ok((bytes, metadata))
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    let (pem, metadata) = read_file(path, "key")?;
    let pem = zeroize::Zeroizing::new(pem);
    keyring::refuse_if_anybody_reads(path, &metadata).map_err(|error| error.to_string())?;
    if pem.windows(b"ENCRYPTED".len()).any(|window| window == b"ENCRYPTED") {
        return Err(format!(
            "the key '{shown}' is encrypted: store it without a passphrase, for its owner alone"
        ));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        format!("'{shown}' holds no private key: it must be PEM, with '-----BEGIN PRIVATE KEY-----'")
    })
}

impl Tls {
    /// What serves `pairs`, the first of them where nobody asks for a name of another. `client_ca`: whose
    /// certificates clients show, and whether they must.
    ///
    /// # Errors
    /// One sentence: the CA cannot be used.
    ///
    /// # Panics
    /// Never: `pairs` holds at least one.
    pub fn new(
        pairs: Vec<Pair>,
        settings: &raw::Tls,
        client_ca: Option<Vec<CertificateDer<'static>>>,
    ) -> Result<Self, String> {
        let (mut certificates, mut by_name) = (Vec::new(), HashMap::<String, Vec<Arc<CertifiedKey>>>::new());
        let default = Arc::clone(&pairs.first().expect("'cert' and 'key' are required").key);
        let mut known = String::new();
        for Pair { certificate, key } in pairs {
            key.cert.iter().for_each(|der| known.push_str(&sha256(der)));
            for name in &certificate.names {
                by_name.entry(name.clone()).or_default().push(Arc::clone(&key));
            }
            certificates.push(certificate);
        }
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let optional =
                    settings.client_auth.as_ref().is_some_and(|auth| auth.value == raw::ClientAuth::Optional);
                known.push_str(if optional { "optional" } else { "required" });
                let mut roots = RootCertStore::empty();
                for authority in authorities {
                    known.push_str(&sha256(&authority));
                    roots.add(authority).map_err(|error| error.to_string())?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                let verifier = if optional { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
            }
        };
        let mut server = builder.with_cert_resolver(Arc::new(ByName { by_name, default }));
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions are resumed from what the client keeps: nothing is held for it here.
        server.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
        let hsts = settings.hsts.value.0.map(|time| {
            HeaderValue::try_from(format!("max-age={}", time.get().as_secs()))
                .expect("digits are a header value")
        });
        let redirect_port =
            settings.redirect.as_ref().and_then(|redirect| Some(redirect.port.as_ref()?.value));
        Ok(Self {
            server: Arc::new(server),
            certificates,
            hsts,
            redirect_port,
            fingerprint: sha256(known.as_bytes()),
        })
    }

    /// Keeps what handshakes are made with as it was in `before` where nothing about it has changed, so that
    /// clients go on resuming their sessions.
    pub fn continuing(&self, before: &Tls) -> Self {
        let same = self.fingerprint == before.fingerprint;
        Self { server: Arc::clone(if same { &before.server } else { &self.server }), ..self.clone() }
    }

    /// Whether a certificate is for `host`, a DNS name or an IP address without brackets (RFC 9525 §6).
    pub fn is_for(&self, host: &str) -> bool {
        let Ok(name) = ServerName::try_from(host) else { return false };
        self.certificates.iter().any(|certificate| {
            webpki::EndEntityCert::try_from(&certificate.leaf)
                .is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
        })
    }
}

/// Which certificate a client gets.
#[derive(Debug)]
struct ByName {
    /// The names in the certificates, in lower case; several where there is one a kind of key.
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Arc<CertifiedKey>,
}

impl ByName {
    fn find(&self, name: &str) -> Option<&[Arc<CertifiedKey>]> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let found = self.by_name.get(&name).or_else(|| {
            // A wildcard stands for exactly one label (RFC 9525 §6.3).
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        });
        found.map(Vec::as_slice)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = hello.server_name().and_then(|name| self.find(name));
        let candidates = found.unwrap_or(std::slice::from_ref(&self.default));
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates.iter().find(fits).or(candidates.first()).cloned()
    }
}

/// From when to when a certificate counts, in Unix seconds (RFC 5280 §4.1.2.5).
fn validity(der: &[u8]) -> Option<(u64, u64)> {
    const SEQUENCE: u8 = 0x30;
    let (_, certificate, _) = element(der)?;
    let (_, mut rest, _) = element(certificate)?;
    // Version (optional), serial number, signature algorithm, issuer; then two times.
    if rest.first() == Some(&0xa0) {
        rest = element(rest)?.2;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (tag, times, _) = element(rest)?;
    if tag != SEQUENCE {
        return None;
    }
    let (tag, begin, rest) = element(times)?;
    let begin = time(tag, begin)?;
    let (tag, end, _) = element(rest)?;
    Some((begin, time(tag, end)?))
}

/// The first element of `der`: its tag, its content, and what follows it (X.690 §8.1).
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `UTCTime` or `GeneralizedTime`, in the one form that RFC 5280 §4.1.2.5 leaves of each.
fn time(tag: u8, content: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(content).ok()?;
    let full = match (tag, text.len()) {
        (0x17, 13) => {
            let century = if text.get(..2)?.parse::<u8>().ok()? >= 50 { "19" } else { "20" };
            format!("{century}{text}")
        }
        (0x18, 15) => text.to_owned(),
        _ => return None,
    };
    let at = |from: usize| full.get(from..from + 2);
    if full.get(14..) != Some("Z") {
        return None;
    }
    // Not a `Timestamp`, which ends before the 31st of December 9999 that stands for "never".
    let time: DateTime =
        format!("{}-{}-{}T{}:{}:{}", full.get(..4)?, at(4)?, at(6)?, at(8)?, at(10)?, at(12)?)
            .parse()
            .ok()?;
    Some(
        u64::try_from(time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0)).as_secs()).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::de::At;
    use crate::config::value::{Name, Value};
    use std::os::unix::fs::PermissionsExt;

    fn write(folder: &Path, name: &str, text: &str, mode: u32) {
        fs::write(folder.join(name), text).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Writes `NAME.pem` and `NAME.key` for `names`.
    fn make(folder: &Path, name: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        write(folder, &format!("{name}.pem"), &made.cert.pem(), 0o600);
        write(folder, &format!("{name}.key"), &made.signing_key.serialize_pem(), 0o600);
    }

    fn read(folder: &Path, cert: &str, key: &str) -> Result<Pair, PairError> {
        let name = |text: &str| At::nowhere(Name::parse(text).unwrap());
        Pair::read(folder, &raw::KeyPair { cert: name(cert), key: name(key) })
    }

    #[test]
    fn a_certificate_or_key_that_cannot_be_used_is_refused_with_a_sentence() {
        use PairError::{Certificate, Key};
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make(folder, "a", &["a.example"]);
        make(folder, "b", &["b.example"]);
        let pem = fs::read_to_string(folder.join("a.pem")).unwrap();
        let key = fs::read_to_string(folder.join("a.key")).unwrap();
        write(folder, "text.pem", "no certificate", 0o644);
        write(folder, "cut.pem", &pem[..pem.len() / 2], 0o644);
        write(folder, "junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o644);
        write(folder, "open.key", &key, 0o644);
        write(
            folder,
            "locked.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            0o600,
        );
        write(folder, "both.pem", &format!("{pem}{key}"), 0o600);
        assert!(read(folder, "a.pem", "a.key").is_ok());
        assert!(read(folder, "both.pem", "both.pem").is_ok());
        for (cert, key, said) in [
            ("a.pem", "b.key", Key("the key 'b.key' is not the key of the certificate 'a.pem'".into())),
            ("none.pem", "a.key", Certificate("cannot read the certificate 'FOLDER/none.pem': No such file or directory (os error 2)".into())),
            ("text.pem", "a.key", Certificate("'FOLDER/text.pem' holds no certificate: it must be PEM, with '-----BEGIN CERTIFICATE-----'".into())),
            ("cut.pem", "a.key", Certificate("the certificate 'FOLDER/cut.pem' cannot be used: its PEM is damaged".into())),
            ("junk.pem", "a.key", Certificate("the certificate 'junk.pem' is not one of X.509 version 3".into())),
            ("a.key", "a.key", Certificate("'FOLDER/a.key' holds no certificate: it must be PEM, with '-----BEGIN CERTIFICATE-----'".into())),
            ("a.pem", "a.pem", Key("'FOLDER/a.pem' holds no private key: it must be PEM, with '-----BEGIN PRIVATE KEY-----'".into())),
            ("a.pem", "open.key", Key("everybody may read the key 'FOLDER/open.key': run 'chmod o-rwx FOLDER/open.key'".into())),
            ("a.pem", "locked.key", Key("the key 'FOLDER/locked.key' is encrypted: store it without a passphrase, for its owner alone".into())),
        ] {
            let told = read(folder, cert, key).err().expect(cert);
            let plain = |text: String| text.replace(folder.to_str().unwrap(), "FOLDER");
            let told = match told {
                Certificate(text) => Certificate(plain(text)),
                Key(text) => Key(plain(text)),
            };
            // A name that is shown in full is one that the file may have spelt out itself.
            assert_eq!(told, said, "{cert} {key}");
        }
    }

    #[test]
    fn the_dates_of_a_certificate_are_read_in_both_forms() {
        for (begin, end, seconds) in [
            ((2020, 1, 2), (2049, 12, 31), (1_577_923_200, 2_524_521_600)),
            ((1999, 12, 31), (2050, 1, 1), (946_598_400, 2_524_608_000)),
            ((1950, 1, 1), (9999, 12, 31), (0, 253_402_214_400)),
        ] {
            let mut parameters = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            parameters.not_before = rcgen::date_time_ymd(begin.0, begin.1, begin.2);
            parameters.not_after = rcgen::date_time_ymd(end.0, end.1, end.2);
            let made = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            assert_eq!(validity(made.der()), Some(seconds), "{begin:?} {end:?}");
        }
        for der in
            [&b""[..], b"\x30", b"\x30\x82\x01", b"\x30\x03\x30\x01\x02", b"\x30\x85\x01\x01\x01\x01\x01\x00"]
        {
            assert_eq!(validity(der), None, "{der:?}");
        }
    }

    #[test]
    fn a_name_finds_its_certificate_and_a_wildcard_stands_for_one_label() {
        let folder = tempfile::tempdir().unwrap();
        for (file, names) in
            [("a", &["a.example", "127.0.0.1"][..]), ("w", &["*.w.example"]), ("x", &["x.w.example"])]
        {
            make(folder.path(), file, names);
        }
        let pairs: Vec<Pair> = ["a", "w", "x"]
            .map(|name| read(folder.path(), &format!("{name}.pem"), &format!("{name}.key")).unwrap())
            .into();
        let of = |index: usize| sha256(&pairs[index].key.cert[0]);
        let expected = [
            ("a.example", Some(of(0))),
            ("A.Example.", Some(of(0))),
            ("y.w.example", Some(of(1))),
            ("x.w.example", Some(of(2))),
            ("w.example", None),
            ("y.x.w.example", None),
            ("b.example", None),
        ];
        let name = |text: &str| At::nowhere(Name::parse(text).unwrap());
        let settings = raw::Tls {
            cert: name("a.pem"),
            key: name("a.key"),
            more: Vec::new(),
            client_ca: None,
            client_auth: None,
            redirect: None,
            hsts: At::nowhere(raw::OrOff(None)),
        };
        let by_name = {
            let mut by_name = HashMap::<String, Vec<Arc<CertifiedKey>>>::new();
            for pair in &pairs {
                for name in &pair.certificate.names {
                    by_name.entry(name.clone()).or_default().push(Arc::clone(&pair.key));
                }
            }
            ByName { by_name, default: Arc::clone(&pairs[0].key) }
        };
        for (name, certificate) in expected {
            let found = by_name.find(name).map(|keys| sha256(&keys[0].cert[0]));
            assert_eq!(found, certificate, "{name}");
        }
        let tls = Tls::new(pairs, &settings, None).unwrap();
        for (host, is) in [
            ("a.example", true),
            ("127.0.0.1", true),
            ("q.w.example", true),
            ("127.0.0.2", false),
            ("evil.example", false),
            ("", false),
        ] {
            assert_eq!(tls.is_for(host), is, "{host}");
        }
    }
}
