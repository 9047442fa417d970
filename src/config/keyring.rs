//! The folder of signing keys: PKCS#8 files `<kid>.pem`, the last by name signs, all verify.
//!
//! A key that this program makes says above its PEM section (RFC 7468 §2 lets anything stand there) when it
//! was made and from when on it signs. So the file alone says it: to every replica that has it, through a
//! read-only mount, after a restart. A file without such lines signs as soon as it is the last by name.
//!
//! Here because a configuration is whole only with its keys. Not here: what a key is (`token::keys`), which
//! one signs when (`token::ring`).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::token::{Algorithm, Ring, RingKey, SigningKey, generate_pkcs8_pem};

/// How long a new key is published before it signs, in seconds. Whoever verifies has it by then: a replica
/// looks at the folder every few seconds, the public keys may be cached for half of this.
pub const PUBLISHED_FIRST: u64 = 60;

/// The lines above the PEM section.
const MADE: &str = "Portcullis-Made:";
const SIGNS_FROM: &str = "Portcullis-Signs-From:";

/// What a retired key's file is called instead of `.pem`, behind the time in Unix seconds.
const RETIRED: &str = "retired";

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

impl KeyringError {
    /// The work on a folder ended in a bug.
    pub fn broke_off() -> Self {
        Self("the work on the key folder broke off".to_owned())
    }
}

/// Reads every `<kid>.pem` of `folder`. A folder that is not there has no keys.
///
/// # Errors
/// A file that others may read, or that is no key; a folder that cannot be read.
pub fn read(folder: &Path, algorithm: Algorithm) -> Result<Ring, KeyringError> {
    let keys = files(folder)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "pem"))
        .map(|path| read_key(&path, algorithm));
    Ok(Ring::new(keys.collect::<Result<_, _>>()?, algorithm))
}

/// Everything in the folder that is not hidden: a Kubernetes mount holds its own links beside the keys.
fn files(folder: &Path) -> Result<Vec<PathBuf>, KeyringError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read the key folder", folder, &error)),
    };
    let is_hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let mut found: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| !is_hidden(path)).collect();
    found.sort();
    Ok(found)
}

/// Keys that were retired: their names and when, in Unix seconds.
///
/// # Errors
/// The folder cannot be read.
pub fn retired(folder: &Path) -> Result<Vec<(String, u64)>, KeyringError> {
    let parse = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(RETIRED)?.strip_suffix('.')?;
        let (kid, at) = name.rsplit_once('.')?;
        Some((kid.to_owned(), at.parse().ok()?))
    };
    Ok(files(folder)?.into_iter().filter_map(parse).collect())
}

/// That no key in `folder` is for `algorithm`, where one is needed at once.
pub fn missing(folder: &Path, algorithm: Algorithm) -> KeyringError {
    let (name, shown) = (algorithm.name(), folder.display());
    KeyringError(format!("no key in '{shown}' is for {name}: put one there, or restart and one will be made"))
}

/// A key that is to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its name.
    pub kid: String,
    /// What it is for.
    pub algorithm: Algorithm,
    /// Now, in Unix seconds.
    pub made: u64,
    /// From when on it signs, in Unix seconds.
    pub signs_from: u64,
}

/// Makes a key in `folder`, and the folder if need be, and returns it. The file is there whole or not at
/// all, and only its owner, who is the folder's, can read it.
///
/// # Errors
/// The folder cannot be written to.
pub fn create(folder: &Path, new: &NewKey) -> Result<RingKey, KeyringError> {
    let pem = generate_pkcs8_pem(new.algorithm)
        .map_err(|error| KeyringError(format!("cannot make a key: {error}")))?;
    let text = format!("{MADE} {}\n{SIGNS_FROM} {}\n{pem}", stamp(new.made), stamp(new.signs_from));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| failed("create the key folder", folder, &error))?;
    let path = folder.join(format!("{}.pem", new.kid));
    // Not by the process' number: in containers that is 1 for every replica.
    let mut random = [0; 8];
    let filled = aws_lc_rs::rand::fill(&mut random);
    filled.map_err(|_| KeyringError("cannot make a key: the system gives no randomness".to_owned()))?;
    let unfinished = folder.join(format!(".{}.{:016x}.new", new.kid, u64::from_ne_bytes(random)));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let owner = fs::metadata(folder)?;
        // Made by root for a gateway that is not: what it cannot read would keep it from loading anything. The
        // other way round nothing can be given away, nor has to be: a volume of Kubernetes is root's.
        if file.metadata()?.uid() == 0 && owner.uid() != 0 {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // Another replica that makes one in the same second takes the same name. Whoever comes second takes
        // the key that is there; a rename would put another in the place of one that signs already.
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
    read_key(&path, new.algorithm)
}

/// Takes a key out of use: its file stays beside the others, under a name that is no key's.
///
/// # Errors
/// There is no such file, or the folder cannot be written to.
pub fn retire(folder: &Path, kid: &str, now: u64) -> Result<(), KeyringError> {
    let path = folder.join(format!("{kid}.pem"));
    fs::rename(&path, folder.join(format!("{kid}.{now}.{RETIRED}")))
        .and_then(|()| fs::File::open(folder)?.sync_all())
        .map_err(|error| failed("retire the key", &path, &error))
}

/// Removes a key for good.
///
/// # Errors
/// The folder cannot be written to. That the file has gone already is none: a replica was faster.
pub fn remove(folder: &Path, kid: &str) -> Result<(), KeyringError> {
    let path = folder.join(format!("{kid}.pem"));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove the key", &path, &error)),
        _ => Ok(()),
    }
}

fn read_key(path: &Path, algorithm: Algorithm) -> Result<RingKey, KeyringError> {
    let kid = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let metadata = fs::metadata(path).map_err(|error| failed("read the key", path, &error))?;
    if !metadata.is_file() || metadata.len() > MAX_KEY_BYTES {
        return Err(KeyringError(format!("'{}' is not a key file", path.display())));
    }
    refuse_if_anybody_reads(path, &metadata)?;
    let pem = fs::read_to_string(path).map_err(|error| failed("read the key", path, &error))?;
    let key = SigningKey::from_pkcs8_pem(kid, &pem, algorithm)
        .map_err(|error| KeyringError(format!("the key '{}' cannot be used: {error}", path.display())))?;
    let made = mark(path, &pem, MADE)?;
    let signs_from = mark(path, &pem, SIGNS_FROM)?;
    let date = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
    Ok(RingKey {
        key,
        own: made.is_some(),
        made: Some(made.unwrap_or(date(metadata.mtime()))),
        signs_from: signs_from.unwrap_or(0),
        // Whoever copies a file may keep its date; when it came to lie here is the inode's.
        began: signs_from.unwrap_or(date(metadata.ctime().max(metadata.mtime()))),
    })
}

/// A private key that everybody on the machine may read is nobody's.
pub(super) fn refuse_if_anybody_reads(path: &Path, metadata: &fs::Metadata) -> Result<(), KeyringError> {
    if metadata.permissions().mode() & 0o004 == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(KeyringError(format!("everybody may read the key '{path}': run 'chmod o-rwx {path}'")))
}

/// The time behind `name` above the PEM section, in Unix seconds.
fn mark(path: &Path, pem: &str, name: &str) -> Result<Option<u64>, KeyringError> {
    let above = pem.lines().take_while(|line| !line.starts_with("-----BEGIN"));
    let Some(text) = above.filter_map(|line| line.strip_prefix(name)).map(str::trim).next() else {
        return Ok(None);
    };
    let seconds = text.parse::<Timestamp>().ok().and_then(|time| u64::try_from(time.as_second()).ok());
    seconds.map(Some).ok_or_else(|| {
        let path = path.display();
        KeyringError(format!(
            "the key '{path}' cannot be used: '{name}' wants a time such as 2026-11-23T20:04:56Z"
        ))
    })
}

/// A time as it stands in a file.
fn stamp(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.unwrap_or(Timestamp::MAX).to_string()
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

    fn new(kid: &str, algorithm: Algorithm) -> NewKey {
        NewKey { kid: kid.to_owned(), algorithm, made: 1_795_464_296, signs_from: 1_795_464_356 }
    }

    fn kids(ring: &Ring) -> Vec<&str> {
        ring.keys().iter().map(|one| one.key.kid()).collect()
    }

    #[test]
    fn a_key_is_made_once_and_only_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("data/keys");
        assert!(read(&keys, Algorithm::EdDSA).unwrap().keys().is_empty());
        create(&keys, &new("a", Algorithm::EdDSA)).unwrap();
        create(&keys, &new("b", Algorithm::ES256)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&keys), mode(&keys.join("a.pem"))), (0o700, 0o600));
        assert_eq!(kids(&read(&keys, Algorithm::EdDSA).unwrap()), ["a", "b"]);
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 2, "nothing unfinished is left");
    }

    #[test]
    fn a_key_says_itself_when_it_was_made_and_from_when_on_it_signs() {
        let folder = tempfile::tempdir().unwrap();
        create(folder.path(), &new("a", Algorithm::EdDSA)).unwrap();
        let text = fs::read_to_string(folder.path().join("a.pem")).unwrap();
        assert!(
            text.starts_with(
                "Portcullis-Made: 2026-11-23T20:04:56Z\nPortcullis-Signs-From: 2026-11-23T20:05:56Z\n-----BEGIN PRIVATE KEY-----\n"
            ),
            "{}",
            &text[..100]
        );
        // As through a Secret: the same bytes, another file.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::copy(folder.path().join("a.pem"), elsewhere.path().join("a.pem")).unwrap();
        for folder in [&folder, &elsewhere] {
            let ring = read(folder.path(), Algorithm::EdDSA).unwrap();
            let one = &ring.keys()[0];
            assert_eq!(
                (one.made, one.signs_from, one.began, one.own),
                (Some(1_795_464_296), 1_795_464_356, 1_795_464_356, true)
            );
        }
    }

    #[test]
    fn a_key_that_somebody_else_made_signs_at_once_and_is_dated_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let pem = generate_pkcs8_pem(Algorithm::EdDSA).unwrap();
        for (name, text, signs_from, own) in [
            ("a", pem.clone(), 0, false),
            ("b", format!("Bag Attributes\n  friendlyName: x\n{pem}"), 0, false),
            ("c", format!("{SIGNS_FROM}   1970-01-01T01:00:00+00:00  \n{pem}"), 3600, false),
            ("d", format!("{pem}{MADE} 1970-01-01T00:00:01Z\n"), 0, false),
            ("e", format!("{MADE} 1970-01-01T00:00:01Z\n{pem}"), 0, true),
        ] {
            let path = folder.path().join(format!("{name}.pem"));
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let ring = read(folder.path(), Algorithm::EdDSA).unwrap();
            let one = ring.find(name).unwrap();
            assert_eq!((one.signs_from, one.own), (signs_from, own), "{name}");
            let file = fs::metadata(&path).unwrap();
            let made = if own { 1 } else { u64::try_from(file.mtime()).unwrap() };
            assert_eq!(one.made, Some(made), "{name}");
            let began = if name == "c" { 3600 } else { u64::try_from(file.ctime()).unwrap() };
            assert_eq!(one.began, began, "{name}");
        }
    }

    #[test]
    fn a_time_that_cannot_be_read_is_refused_and_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pem");
        let pem = generate_pkcs8_pem(Algorithm::EdDSA).unwrap();
        for text in ["", "soon", "2026-11-23", "-009999-01-02T01:59:59Z", "1795464296"] {
            fs::write(&path, format!("{SIGNS_FROM} {text}\n{pem}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = read(folder.path(), Algorithm::EdDSA).unwrap_err().to_string();
            assert!(error.contains("a.pem") && error.contains("Portcullis-Signs-From"), "{text}: {error}");
        }
    }

    #[test]
    fn a_retired_key_lies_beside_the_others_and_is_none_of_them() {
        let folder = tempfile::tempdir().unwrap();
        for kid in ["a", "b.c"] {
            create(folder.path(), &new(kid, Algorithm::EdDSA)).unwrap();
            retire(folder.path(), kid, 17).unwrap();
        }
        assert!(read(folder.path(), Algorithm::EdDSA).unwrap().keys().is_empty());
        assert_eq!(retired(folder.path()).unwrap(), [("a".to_owned(), 17), ("b.c".to_owned(), 17)]);
        assert!(retire(folder.path(), "a", 18).unwrap_err().to_string().contains("a.pem"));
        create(folder.path(), &new("d", Algorithm::EdDSA)).unwrap();
        remove(folder.path(), "d").unwrap();
        remove(folder.path(), "d").unwrap();
        assert!(read(folder.path(), Algorithm::EdDSA).unwrap().keys().is_empty());
    }

    #[test]
    fn a_key_made_by_root_belongs_to_whom_the_folder_belongs_to() {
        let folder = tempfile::tempdir().unwrap();
        if fs::metadata(folder.path()).unwrap().uid() != 0 {
            println!("skipped: only root can give a file away");
            return;
        }
        std::os::unix::fs::chown(folder.path(), Some(4321), Some(4322)).unwrap();
        create(folder.path(), &new("a", Algorithm::EdDSA)).unwrap();
        let file = fs::metadata(folder.path().join("a.pem")).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (4321, 4322, 0o600));
    }

    #[test]
    fn whoever_makes_a_key_of_the_same_name_later_takes_the_one_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let makers: Vec<_> = (0..4)
            .map(|_| {
                let folder = folder.path().to_owned();
                std::thread::spawn(move || {
                    create(&folder, &new("a", Algorithm::EdDSA)).unwrap().key.public_jwk()
                })
            })
            .collect();
        let made: Vec<_> = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
        assert!(made.iter().all(|key| *key == made[0]), "each signs with what all verify with");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        create(folder.path(), &new("a", Algorithm::EdDSA)).unwrap();
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
