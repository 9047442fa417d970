//! The folder of signing keys: PKCS#8 files `<kid>.pem`, the last by name signs, all verify.
//!
//! Here because a configuration is whole only with its keys. Not here: what a key is (`token::keys`).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::token::{Algorithm, SigningKey, generate_pkcs8_pem};

/// The largest file that is taken for a key, in bytes.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// Why a folder of keys cannot be used: each a sentence with the path in it, never key material.
#[derive(Debug)]
pub struct KeyringError(String);

impl std::fmt::Display for KeyringError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeyringError {}

/// Reads every `<kid>.pem` of `folder`, sorted by name. A folder that is not there has no keys.
///
/// # Errors
/// A file that others may read, or that is no key; a folder that cannot be read.
pub fn read(folder: &Path, algorithm: Algorithm) -> Result<Vec<SigningKey>, KeyringError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read the key folder", folder, &error)),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        // A Kubernetes mount holds its own links beside the keys; hidden files are never keys.
        .filter(|path| path.extension().is_some_and(|extension| extension == "pem"))
        .filter(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')))
        .collect();
    files.sort();
    files.iter().map(|file| read_key(file, algorithm)).collect()
}

/// The key that signs: the last by name of those for `algorithm`.
pub fn signing(keys: &[SigningKey], algorithm: Algorithm) -> Option<&SigningKey> {
    keys.iter().rev().find(|key| key.algorithm() == algorithm)
}

/// That no key in `folder` is for `algorithm`, where one is needed at once.
pub fn missing(folder: &Path, algorithm: Algorithm) -> KeyringError {
    let (name, shown) = (algorithm.name(), folder.display());
    KeyringError(format!("no key in '{shown}' is for {name}: put one there, or restart and one will be made"))
}

/// Makes a key in `folder`, and the folder if need be, and returns it. Its name is `kid`; the file is
/// there whole or not at all, and only its owner can read it.
///
/// # Errors
/// The folder cannot be written to.
pub fn create(folder: &Path, kid: &str, algorithm: Algorithm) -> Result<SigningKey, KeyringError> {
    let pem =
        generate_pkcs8_pem(algorithm).map_err(|error| KeyringError(format!("cannot make a key: {error}")))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| failed("create the key folder", folder, &error))?;
    let path = folder.join(format!("{kid}.pem"));
    // Not by the process' number: in containers that is 1 for every replica.
    let mut random = [0; 8];
    let filled = aws_lc_rs::rand::fill(&mut random);
    filled.map_err(|_| KeyringError("cannot make a key: the system gives no randomness".to_owned()))?;
    let unfinished = folder.join(format!(".{kid}.{:016x}.new", u64::from_ne_bytes(random)));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        // Another replica that starts in the same second takes the same name. Whoever comes second takes the
        // key that is there; a rename would put another in the place of one that signs already.
        match fs::hard_link(&unfinished, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // A file system without links.
            Err(_) => fs::rename(&unfinished, &path)?,
            Ok(()) => {}
        }
        fs::File::open(folder)?.sync_all()
    };
    let written = write();
    let _ = fs::remove_file(&unfinished);
    written.map_err(|error| failed("write the key", &path, &error))?;
    read_key(&path, algorithm)
}

fn read_key(path: &Path, algorithm: Algorithm) -> Result<SigningKey, KeyringError> {
    let kid = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let metadata = fs::metadata(path).map_err(|error| failed("read the key", path, &error))?;
    if !metadata.is_file() || metadata.len() > MAX_KEY_BYTES {
        return Err(KeyringError(format!("'{}' is not a key file", path.display())));
    }
    if metadata.permissions().mode() & 0o004 != 0 {
        let path = path.display();
        return Err(KeyringError(format!("everybody may read the key '{path}': run 'chmod o-rwx {path}'")));
    }
    let pem = fs::read_to_string(path).map_err(|error| failed("read the key", path, &error))?;
    SigningKey::from_pkcs8_pem(kid, &pem, algorithm)
        .map_err(|error| KeyringError(format!("the key '{}' cannot be used: {error}", path.display())))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> KeyringError {
    KeyringError(format!("cannot {what} '{}': {}", path.display(), plain(error)))
}

/// The system's words without their number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("data/keys");
        assert!(read(&keys, Algorithm::EdDSA).unwrap().is_empty());
        create(&keys, "a", Algorithm::EdDSA).unwrap();
        create(&keys, "b", Algorithm::ES256).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&keys), mode(&keys.join("a.pem"))), (0o700, 0o600));
        let read = read(&keys, Algorithm::EdDSA).unwrap();
        assert_eq!(read.iter().map(SigningKey::kid).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(signing(&read, Algorithm::EdDSA).map(SigningKey::kid), Some("a"));
        assert_eq!(signing(&read, Algorithm::RS256).map(SigningKey::kid), None);
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 2, "nothing unfinished is left");
    }

    #[test]
    fn whoever_makes_a_key_of_the_same_name_later_takes_the_one_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let makers: Vec<_> = (0..4)
            .map(|_| {
                let folder = folder.path().to_owned();
                std::thread::spawn(move || create(&folder, "a", Algorithm::EdDSA).unwrap().public_jwk())
            })
            .collect();
        let made: Vec<_> = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
        assert!(made.iter().all(|key| *key == made[0]), "each signs with what all verify with");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        create(folder.path(), "a", Algorithm::EdDSA).unwrap();
        let path = folder.path().join("a.pem");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read(folder.path(), Algorithm::EdDSA).unwrap_err().to_string();
        assert!(error.contains("everybody may read") && error.contains("a.pem"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(folder.path(), Algorithm::EdDSA).is_ok(), "a group may share it");
        fs::write(&path, "nonsense").unwrap();
        let error = read(folder.path(), Algorithm::EdDSA).unwrap_err().to_string();
        assert!(error.contains("a.pem") && !error.contains("nonsense"), "{error}");
    }
}
