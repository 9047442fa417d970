//! From files to snapshots, at start and whenever something changed.
//!
//! [`Loader`] reads and builds; [`watch`] notices changes. What counts as a change is content: the file,
//! everything that it points to, the key folder. The parent folders are watched, because editors rename and
//! Kubernetes swaps a link (`..data`); a slow poll catches what no notification tells. Not here: the swap
//! itself, which is the server's.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use notify::{RecursiveMode, Watcher};

use super::snapshot::{Built, Surroundings, build, sha256};
use super::{Diagnostics, Source, read};

/// The largest configuration file, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// How long a change may go on before it is looked at: an editor writes more than once.
const SETTLE: Duration = Duration::from_millis(30);

/// How long it is waited for at most.
const LONGEST_SETTLE: Duration = Duration::from_millis(300);

/// How often the files are looked at without being told to.
const POLL: Duration = Duration::from_secs(5);

/// Why a configuration was not loaded.
#[derive(Debug)]
pub enum LoadError {
    /// The file cannot be read; a sentence.
    Unreadable(String),
    /// What is wrong with it, and the files that its references name: one of them may be what is missing.
    Invalid(Diagnostics, Box<Source>, Vec<PathBuf>),
}

impl LoadError {
    /// For people, with the lines shown.
    pub fn render(&self, colour: bool) -> String {
        match self {
            Self::Unreadable(what) => format!("{what}\n"),
            Self::Invalid(diagnostics, source, _) => diagnostics.render(source, colour),
        }
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for LoadError {}

/// Reads and builds the configuration at one path.
#[derive(Clone, Debug)]
pub struct Loader {
    path: PathBuf,
}

impl Loader {
    /// `path`: as given with `--config`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's text and where it came from.
    ///
    /// # Errors
    /// One sentence: not there, a folder, too large, not UTF-8, not readable.
    pub fn source(&self) -> Result<Source, LoadError> {
        let shown = self.path.display();
        let fail = |what: String| LoadError::Unreadable(what);
        let metadata = fs::metadata(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => fail(format!(
                "there is no '{shown}': write one with 'portcullis init', or name it with --config"
            )),
            _ => fail(format!("cannot read '{shown}': {error}")),
        })?;
        if metadata.is_dir() {
            return Err(fail(format!("'{shown}' is a folder, not a file")));
        }
        if metadata.len() > MAX_FILE {
            return Err(fail(format!("'{shown}' is larger than 64 MiB")));
        }
        let bytes = fs::read(&self.path).map_err(|error| fail(format!("cannot read '{shown}': {error}")))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line =
                error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count()
                    + 1;
            fail(format!("'{shown}' is not UTF-8: line {line} holds other bytes"))
        })?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Ok(Source {
            name: shown.to_string(),
            text,
            folder: folder.map_or_else(|| PathBuf::from("."), Path::to_path_buf),
        })
    }

    /// As [`Loader::load`], and what the files held that it was made from. `known`: those that are followed
    /// already. A file that turns out to be named is looked at first and then read once more, so that no
    /// change to it can fall between the two.
    pub fn load_as_it_stands(
        &self,
        surroundings: &Surroundings,
        known: &[PathBuf],
    ) -> (Result<(Built, Source), LoadError>, Fingerprints) {
        let mut files = known.to_vec();
        // A file that names others with each look is left to the poll.
        let mut looks = 3;
        loop {
            let held = Fingerprints::take(&self.path, &files);
            let loaded = self.load(surroundings);
            let named = match &loaded {
                Ok((built, _)) => &built.snapshot.watched[..],
                Err(LoadError::Invalid(.., named)) => named,
                Err(LoadError::Unreadable(_)) => &[],
            };
            looks -= 1;
            if looks == 0 || named.iter().all(|file| held.0.contains_key(file)) {
                return (loaded, held);
            }
            files.extend_from_slice(named);
        }
    }

    /// Reads the file and builds a snapshot of it.
    ///
    /// # Errors
    /// The file cannot be read, or everything that is wrong with it.
    pub fn load(&self, surroundings: &Surroundings) -> Result<(Built, Source), LoadError> {
        let source = self.source()?;
        let reading = read(&source, &|name| std::env::var(name).ok());
        let files = reading.files.clone();
        match build(reading, &source, surroundings) {
            Ok(built) => Ok((built, source)),
            Err(diagnostics) => Err(LoadError::Invalid(diagnostics, Box::new(source), files)),
        }
    }
}

/// Keeps the watching thread's list of files up to date.
pub struct Watch {
    files: std::sync::mpsc::Sender<Message>,
}

enum Message {
    /// Something happened in a watched folder.
    Event,
    /// These files count from now on: as they were loaded, or else as they are now.
    Files(Vec<PathBuf>, Fingerprints),
}

impl Watch {
    /// `files` count from now on, besides the configuration file itself. What is known of them is `loaded`,
    /// then what was known already, then their present content.
    pub fn follow(&self, files: Vec<PathBuf>, loaded: Fingerprints) {
        // Without the thread nothing is watched, and a log line has said so.
        let _ = self.files.send(Message::Files(files, loaded));
    }

    /// Looks at the files without having been told of a change.
    pub fn look(&self) {
        let _ = self.files.send(Message::Event);
    }
}

/// Calls `changed` whenever the content of `config`, or of the files followed, is another than before:
/// for `config` than that with the SHA-256 `loaded`, so that a change between loading and watching counts.
/// `changed` runs on the watching thread and should only pass the news on.
///
/// # Errors
/// The system gives no thread. Without notifications the slow poll remains.
pub fn watch(
    config: PathBuf,
    loaded: String,
    files: Vec<PathBuf>,
    changed: impl Fn() + Send + 'static,
) -> io::Result<Watch> {
    let (sender, messages) = channel();
    let events = sender.clone();
    // Here and not on the thread, which may begin late: what changes meanwhile would be taken for known.
    let mut all = with_config(&config, files);
    let mut known = fingerprints(&all);
    known.insert(config.clone(), loaded);
    thread::Builder::new().name("config-watch".to_owned()).spawn(move || {
        let on_event = move |event: notify::Result<notify::Event>| {
            // Reading the files is an access, too; only changes are news.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = events.send(Message::Event);
            }
        };
        let mut watcher = notify::recommended_watcher(on_event)
            .inspect_err(
                |error| tracing::warn!(%error, "no file notifications; changes are noticed by polling"),
            )
            .ok();
        let mut folders = BTreeSet::new();
        follow_folders(watcher.as_mut(), &mut folders, &all);
        let mut wait = Duration::ZERO;
        loop {
            let mut followed = None;
            match messages.recv_timeout(wait) {
                Ok(Message::Files(files, loaded)) => {
                    known.extend(loaded.0);
                    followed = Some(files);
                }
                Ok(Message::Event) => {
                    // Let the writer finish; what piles up meanwhile is one change. A folder that never
                    // rests is looked at all the same.
                    let latest = Instant::now() + LONGEST_SETTLE;
                    loop {
                        match messages.recv_timeout(SETTLE) {
                            Ok(Message::Files(files, loaded)) => {
                                known.extend(loaded.0);
                                followed = Some(files);
                            }
                            Ok(Message::Event) if Instant::now() < latest => {}
                            _ => break,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some(files) = followed {
                all = with_config(&config, files);
                follow_folders(watcher.as_mut(), &mut folders, &all);
                // What was followed already may have changed since it was looked at.
                let mut next = fingerprints(&all);
                for (file, fingerprint) in &mut next {
                    if let Some(known) = known.remove(file) {
                        *fingerprint = known;
                    }
                }
                known = next;
            }
            wait = POLL;
            let now = fingerprints(&all);
            if now != known {
                known = now;
                changed();
            }
        }
    })?;
    Ok(Watch { files: sender })
}

fn with_config(config: &Path, mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    files.push(config.to_path_buf());
    files.sort();
    files.dedup();
    files
}

fn follow_folders(
    watcher: Option<&mut notify::RecommendedWatcher>,
    folders: &mut BTreeSet<PathBuf>,
    files: &[PathBuf],
) {
    let Some(watcher) = watcher else { return };
    for file in files {
        let parent = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for folder in [Some(parent), file.is_dir().then_some(file.as_path())].into_iter().flatten() {
            if folders.insert(folder.to_path_buf()) {
                // A folder that is not there yet is found by the poll.
                let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
            }
        }
    }
}

/// What files held at one time, before they were loaded: a change in between is then noticed, if only as one
/// that makes no difference.
#[derive(Debug, Default)]
pub struct Fingerprints(BTreeMap<PathBuf, String>);

impl Fingerprints {
    /// Of the configuration file and of what it points to, as far as that is known.
    fn take(config: &Path, files: &[PathBuf]) -> Self {
        Self(fingerprints(&with_config(config, files.to_vec())))
    }
}

/// The SHA-256 of what each file holds; a folder counts with the keys in it.
fn fingerprints(files: &[PathBuf]) -> BTreeMap<PathBuf, String> {
    files.iter().map(|file| (file.clone(), fingerprint(file))).collect()
}

fn fingerprint(file: &Path) -> String {
    let Ok(entries) = fs::read_dir(file) else {
        return match fs::read(file) {
            Err(_) => "nothing".to_owned(),
            // Who may read a private key decides whether it is taken.
            Ok(content) if memchr::memmem::find(&content, b"PRIVATE KEY").is_some() => {
                let mode = fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
                format!("{} {mode:o}", sha256(&content))
            }
            Ok(content) => sha256(&content),
        };
    };
    let mut inside: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    inside.retain(|path| path.extension().is_some_and(|extension| extension == "pem"));
    inside.sort();
    let all: Vec<String> =
        inside.iter().map(|path| format!("{}\0{}\n", path.display(), fingerprint(path))).collect();
    sha256(all.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Receiver;

    fn watched(config: &Path, files: Vec<PathBuf>) -> (Watch, Receiver<()>) {
        let (sender, changes) = channel();
        let loaded = sha256(&fs::read(config).unwrap());
        let watch = watch(config.to_path_buf(), loaded, files, move || {
            let _ = sender.send(());
        })
        .unwrap();
        // The thread has looked at the files once it takes its first message.
        thread::sleep(Duration::from_millis(200));
        (watch, changes)
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_write_a_rename_and_a_swapped_link_are_changes_and_a_touch_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        fs::create_dir(folder.path().join("v1")).unwrap();
        fs::write(folder.path().join("v1/gateway.yaml"), "a").unwrap();
        std::os::unix::fs::symlink("v1", folder.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/gateway.yaml", &config).unwrap();
        let (_watch, changes) = watched(&config, vec![]);

        fs::create_dir(folder.path().join("v2")).unwrap();
        fs::write(folder.path().join("v2/gateway.yaml"), "b").unwrap();
        std::os::unix::fs::symlink("v2", folder.path().join("..data_tmp")).unwrap();
        fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
        changes.recv_timeout(SOON).expect("a ConfigMap's swap is seen");

        fs::remove_file(&config).unwrap();
        fs::write(&config, "c").unwrap();
        changes.recv_timeout(SOON).expect("a write is seen");

        fs::write(folder.path().join("new"), "d").unwrap();
        fs::rename(folder.path().join("new"), &config).unwrap();
        changes.recv_timeout(SOON).expect("a rename is seen");

        while changes.try_recv().is_ok() {}
        fs::write(&config, "d").unwrap();
        fs::write(folder.path().join("unrelated"), "x").unwrap();
        assert!(changes.recv_timeout(Duration::from_millis(500)).is_err(), "the content is the same");
    }

    #[test]
    fn a_change_between_loading_and_watching_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        fs::write(&config, "changed meanwhile").unwrap();
        let (sender, changes) = channel();
        let _watch = watch(config, sha256(b"as loaded"), vec![], move || {
            let _ = sender.send(());
        })
        .unwrap();
        changes.recv_timeout(SOON).expect("the file is not what was loaded");
    }

    #[test]
    fn a_file_that_is_back_at_what_it_was_while_something_else_is_in_force_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        fs::write(&config, "a").unwrap();
        let (watch, changes) = watched(&config, vec![]);
        // Loaded on somebody's word, and put back before this thread has looked.
        let elsewhere = folder.path().join("b");
        fs::write(&elsewhere, "b").unwrap();
        let loaded = Fingerprints([(config.clone(), fingerprint(&elsewhere))].into());
        watch.follow(vec![], loaded);
        changes.recv_timeout(SOON).expect("what is in force is not what the file says");
        watch.follow(vec![], Fingerprints::take(&config, &[]));
        watch.look();
        assert!(changes.recv_timeout(Duration::from_millis(500)).is_err(), "now it is");
    }

    #[test]
    fn a_key_that_appears_in_a_followed_folder_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        fs::write(&config, "a").unwrap();
        let keys = folder.path().join("keys");
        fs::create_dir(&keys).unwrap();
        let (_watch, changes) = watched(&config, vec![keys.clone()]);
        fs::write(keys.join("b.pem"), "key").unwrap();
        changes.recv_timeout(SOON).expect("a new key is seen");
    }

    #[test]
    fn who_may_read_a_private_key_is_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        fs::write(&config, "a").unwrap();
        let key = folder.path().join("key.pem");
        fs::write(&key, "-----BEGIN PRIVATE KEY-----").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let (_watch, changes) = watched(&config, vec![key.clone()]);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        changes.recv_timeout(SOON).expect("chmod is a change");
    }

    #[test]
    fn a_change_in_a_folder_that_never_rests_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        fs::write(&config, "a").unwrap();
        let (_watch, changes) = watched(&config, vec![]);
        let busy = folder.path().join("busy");
        let (stop, stopped) = channel::<()>();
        let writer = thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_millis(5)) {
                fs::write(&busy, "x").unwrap();
            }
        });
        fs::write(&config, "b").unwrap();
        changes.recv_timeout(SOON).expect("the change is seen while the folder is busy");
        drop(stop);
        writer.join().unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        let message = |path: &Path| Loader::new(path).source().unwrap_err().to_string();
        assert!(message(&path).contains("portcullis init"));
        assert!(message(folder.path()).contains("is a folder"));
        fs::write(&path, b"a: b\n\xff").unwrap();
        assert!(message(&path).ends_with("is not UTF-8: line 2 holds other bytes"), "{}", message(&path));
    }
}
