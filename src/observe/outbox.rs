//! How a command's doings reach the gateway's audit log: a file each in the folder `audit` of `state`.
//!
//! A command is a process of its own, and whoever reads the gateway's log wants to find there what it
//! changed. It leaves a file; the running gateway writes the line within a second, another one at its
//! start, with the time at which it happened. A line comes once: who renames the file writes it.
//! Not here: what there is to say (`audit`).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::audit::{Audit, Event, Reason};

/// The folder, in `state`.
const FOLDER: &str = "audit";

/// The largest file that is taken for one of ours, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// What files are called while a gateway writes their lines.
const TAKEN: &str = "taken";

/// A file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Left {
    /// Since the epoch.
    milliseconds: u64,
    event: String,
    reason: Option<String>,
    user: Option<String>,
    key: Option<String>,
    network: Option<String>,
    by: String,
}

/// Leaves an event for the gateway with this `state` folder to log; `by` is found out here.
///
/// # Errors
/// The folder cannot be written to.
pub fn leave(state: &Path, audit: &Audit<'_>) -> io::Result<()> {
    let folder = state.join(FOLDER);
    if !folder.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        // Made by root for a gateway that is not: it has to remove what is in there. In Kubernetes it is the folder
        // that is root's, and who is not root gives nothing away.
        let (owner, mine) = (fs::metadata(state)?, fs::metadata(&folder)?);
        if mine.uid() == 0 && owner.uid() != 0 {
            chown(&folder, Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("the system gives no randomness"))?;
    // Sorts by time.
    let name = format!("{:020}-{:016x}", now.as_nanos(), u64::from_ne_bytes(random));
    let unfinished = folder.join(format!(".{name}"));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let (owner, mine) = (fs::metadata(&folder)?, file.metadata()?);
        let left = Left {
            milliseconds: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            event: audit.event.code().to_owned(),
            reason: audit.reason.map(|reason| reason.code().to_owned()),
            user: audit.user.map(str::to_owned),
            key: audit.key.map(str::to_owned),
            network: audit.network.map(str::to_owned),
            by: name_of(mine.uid()),
        };
        if mine.uid() == 0 && owner.uid() != 0 {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.write_all(serde_json::to_string(&left)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, folder.join(format!("{name}.json")))?;
        fs::File::open(&folder)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

/// Hands every event that was left to `log`, in the order of their times. A file is removed once `log` has
/// returned. With `unfinished` also those that a gateway has begun with and not ended: for a start.
pub fn take(state: &Path, unfinished: bool, mut log: impl FnMut(&Audit<'_>)) {
    let Ok(entries) = fs::read_dir(state.join(FOLDER)) else { return };
    let mut files: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    files.sort();
    for path in files {
        let taken = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => path.with_extension(TAKEN),
            Some(TAKEN) if unfinished => path.clone(),
            _ => continue,
        };
        if fs::rename(&path, &taken).is_err() {
            // Another gateway was faster.
            continue;
        }
        match read(&taken) {
            Ok((left, event)) => log(&Audit {
                reason: left.reason.as_deref().and_then(|code| Reason::of_command(event, code)),
                user: left.user.as_deref(),
                key: left.key.as_deref(),
                network: left.network.as_deref(),
                by: Some(&left.by),
                at: Some(Duration::from_millis(left.milliseconds)),
                ..Audit::of(event)
            }),
            Err(why) => tracing::warn!(file = %taken.display(), why, "not an event of a command"),
        }
        let _ = fs::remove_file(&taken);
    }
}

fn read(path: &Path) -> Result<(Left, Event), &'static str> {
    let metadata = fs::metadata(path).map_err(|_| "it cannot be read")?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err("it is no file, or too large");
    }
    let text = fs::read_to_string(path).map_err(|_| "it cannot be read")?;
    let left: Left = serde_json::from_str(&text).map_err(|_| "it holds something else")?;
    let event = Event::from_code(&left.event).ok_or("there is no such event")?;
    if left.reason.as_deref().is_some_and(|code| Reason::of_command(event, code).is_none()) {
        return Err("there is no such reason");
    }
    Ok((left, event))
}

/// Who runs this process, by the name of its user; behind `sudo` also who asked for that. The latter is
/// what the environment says, and only as true as that.
fn name_of(uid: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    let name = name.unwrap_or_else(|| uid.to_string());
    match std::env::var("SUDO_USER") {
        Ok(behind) if !behind.is_empty() && behind != name => format!("{name} (sudo: {behind})"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::audit::{KeyChange, UserChange};

    fn taken(state: &Path, unfinished: bool) -> Vec<String> {
        let mut lines = Vec::new();
        take(state, unfinished, |audit| {
            let mut line = Vec::new();
            audit.write(crate::observe::LogFormat::Json, &mut line);
            lines.push(String::from_utf8(line).unwrap());
        });
        lines
    }

    #[test]
    fn what_a_command_leaves_comes_once_in_order_and_with_its_time() {
        let state = tempfile::tempdir().unwrap();
        assert!(taken(state.path(), true).is_empty());
        let user = Audit {
            user: Some("ve\"ra"),
            reason: Some(Reason::UserChange(UserChange::Disabled)),
            ..Audit::of(Event::UserChange)
        };
        let key = Audit {
            key: Some("k1"),
            reason: Some(Reason::KeyChange(KeyChange::Retired)),
            ..Audit::of(Event::KeyChange)
        };
        leave(state.path(), &user).unwrap();
        leave(state.path(), &key).unwrap();
        let lines = taken(state.path(), false);
        let me = name_of(fs::metadata(state.path()).unwrap().uid());
        let members = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
        let (first, second) = (members(&lines[0]), members(&lines[1]));
        assert_eq!(first["event"], "user_change");
        assert_eq!((&first["reason"], &first["user"]), (&"disabled".into(), &"ve\"ra".into()));
        assert_eq!(first["by"], me.as_str());
        assert_eq!((&second["event"], &second["key"]), (&"key_change".into(), &"k1".into()));
        assert!(first["timestamp"].as_str() <= second["timestamp"].as_str());
        assert!(taken(state.path(), true).is_empty(), "nothing comes twice");
    }

    #[test]
    fn what_a_gateway_did_not_end_comes_at_the_next_start_and_what_is_no_event_never() {
        let state = tempfile::tempdir().unwrap();
        leave(state.path(), &Audit::of(Event::UserChange)).unwrap();
        let folder = state.path().join(FOLDER);
        let left = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&left).unwrap();
        fs::rename(&left, left.with_extension(TAKEN)).unwrap();
        assert!(taken(state.path(), false).is_empty());
        assert_eq!(taken(state.path(), true).len(), 1);
        for (name, content) in [
            ("1.json", "nonsense".to_owned()),
            ("2.json", text.replace("user_change", "user_changes")),
            ("3.json", text.replace("\"reason\":null", "\"reason\":\"signs\"")),
            ("4.json", text.replace("\"by\":", "\"bye\":")),
            ("5.txt", text.clone()),
            (".6", text),
        ] {
            fs::write(folder.join(name), content).unwrap();
        }
        assert!(taken(state.path(), true).is_empty());
    }
}
