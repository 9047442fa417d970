//! Users in an htpasswd file, as Apache and nginx read it: `name:hash`, a line a user.
//!
//! Read for each login, so that a change counts at once; never written. The roles come from the
//! configuration, since the file has none. Not here: the hash formats (`login::hash`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::io::AsyncReadExt;

use crate::token::fits_identity;

use super::{Fault, StoreError, StoreFuture, UnusableUser, UserId, UserRecord, Users};

/// The largest file, in bytes: some 50,000 users.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// The longest name, in bytes.
const MOST_NAME_BYTES: usize = 255;

/// A file that was written so lately may be half written: `htpasswd` writes it in place.
const SETTLED: Duration = Duration::from_millis(100);

/// As often is it waited for.
const TRIES: usize = 20;

/// Another's htpasswd file.
pub struct HtpasswdUsers {
    file: PathBuf,
    roles: HashMap<String, String>,
    default: Option<String>,
}

impl HtpasswdUsers {
    /// `roles` are those of users by name, `default` is that of all others.
    #[must_use]
    pub fn new(file: &Path, roles: &[(String, String)], default: Option<&str>) -> HtpasswdUsers {
        HtpasswdUsers {
            file: file.to_owned(),
            roles: roles.iter().cloned().collect(),
            default: default.map(str::to_owned),
        }
    }

    fn failed(&self, why: impl Into<String>) -> StoreError {
        StoreError::Cms(format!("htpasswd:{}", self.file.display()), Fault::File(why.into()))
    }

    async fn read(&self) -> Result<String, StoreError> {
        let failed = |error: std::io::Error| self.failed(error.to_string());
        for _ in 0..TRIES {
            let file = tokio::fs::File::open(&self.file).await.map_err(failed)?;
            let before = file.metadata().await.map_err(failed)?;
            if !before.is_file() {
                return Err(self.failed("it is not a file"));
            }
            let mut bytes = Vec::new();
            let mut bounded = file.take(MOST_BYTES + 1);
            bounded.read_to_end(&mut bytes).await.map_err(failed)?;
            if bytes.len() as u64 > MOST_BYTES {
                return Err(self.failed("it is larger than 4 MiB"));
            }
            let after = bounded.get_ref().metadata().await.map_err(failed)?;
            let changed = |metadata: &std::fs::Metadata| metadata.modified().map_err(failed);
            // A time to come is nobody who is writing.
            let age = SystemTime::now().duration_since(changed(&after)?).unwrap_or(SETTLED);
            if age < SETTLED || changed(&before)? != changed(&after)? {
                tokio::time::sleep(SETTLED).await;
                continue;
            }
            return String::from_utf8(bytes).map_err(|_| self.failed("it is not UTF-8 text"));
        }
        Err(self.failed("it never stops changing"))
    }

    fn user(&self, name: &str, hash: &str) -> Result<UserRecord, UnusableUser> {
        let role = self.roles.get(name).or(self.default.as_ref());
        if !fits_identity(name) || name.len() > MOST_NAME_BYTES {
            let what = "is too long, ends with a blank or holds a control character";
            return Err(UnusableUser::Value { column: "name", what });
        }
        Ok(UserRecord {
            id: UserId::Text(name.to_owned()),
            username: name.to_owned(),
            password_hash: hash.to_owned(),
            password_salt: None,
            role: role.ok_or(UnusableUser::NoRole { theirs: String::new() })?.clone(),
            name: None,
            email: None,
            disabled: false,
            created_at: 0,
            changed_at: 0,
        })
    }

    async fn look_up(&self, username: &str) -> Result<Option<UserRecord>, StoreError> {
        let text = self.read().await?;
        let mut found = entries(&text).filter(|(name, _)| *name == username);
        let Some((name, hash)) = found.next() else { return Ok(None) };
        let user = if found.next().is_some() { Err(UnusableUser::Several) } else { self.user(name, hash) };
        user.map(Some).map_err(|why| StoreError::UnusableUser(username.to_owned(), why))
    }
}

/// Names and hashes. Behind a second colon nginx has a comment.
fn entries(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let hash = rest.split(':').next().unwrap_or_default();
        (!name.is_empty()).then_some((name, hash))
    })
}

impl Users for HtpasswdUsers {
    fn find<'a>(&'a self, username: &'a str) -> StoreFuture<'a, Option<UserRecord>> {
        Box::pin(self.look_up(username))
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async move { self.read().await.map(drop) })
    }

    fn sample(&self, most: u32) -> StoreFuture<'_, Vec<UserRecord>> {
        Box::pin(async move {
            let text = self.read().await?;
            let users = entries(&text).filter_map(|(name, hash)| self.user(name, hash).ok());
            Ok(users.take(most as usize).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As long ago as it takes for the file to be believed.
    fn written(file: &Path, text: &[u8]) {
        std::fs::write(file, text).unwrap();
        let then = SystemTime::now() - 2 * SETTLED;
        std::fs::File::options().write(true).open(file).unwrap().set_modified(then).unwrap();
    }

    #[tokio::test]
    async fn a_line_is_a_user_and_a_change_counts_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("htpasswd");
        let roles = [("vera".to_owned(), "Editor".to_owned())];
        let users = HtpasswdUsers::new(&file, &roles, Some("Viewer"));
        written(
            &file,
            b"# users\r\nvera:$apr1$x\r\n\n emil:{SHA}y:a comment\nno colon\n:nameless\nvera2:z\n",
        );
        for (name, is) in [
            ("vera", Some(("$apr1$x", "Editor"))),
            ("emil", Some(("{SHA}y", "Viewer"))),
            ("vera2", Some(("z", "Viewer"))),
            ("Vera", None),
            ("", None),
            ("# users", None),
            ("no colon", None),
        ] {
            let found = users.find(name).await.unwrap();
            let found = found.as_ref().map(|user| (user.password_hash.as_str(), user.role.as_str()));
            assert_eq!(found, is, "{name}");
        }
        assert_eq!(users.sample(2).await.unwrap().len(), 2);
        written(&file, b"emil:other\nvera:1\nvera:2\n");
        assert_eq!(users.find("emil").await.unwrap().unwrap().password_hash, "other");
        let twice = users.find("vera").await.unwrap_err();
        assert!(matches!(twice, StoreError::UnusableUser(_, UnusableUser::Several)));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("htpasswd");
        let users = HtpasswdUsers::new(&file, &[], None);
        assert!(users.find("vera").await.unwrap_err().to_string().contains("No such file"));
        written(&file, b"vera:\xff\n");
        assert!(users.ping().await.unwrap_err().to_string().contains("not UTF-8"));
        written(&file, b"vera:x\n");
        let role = users.find("vera").await.unwrap_err();
        assert!(matches!(role, StoreError::UnusableUser(_, UnusableUser::NoRole { .. })));
        assert!(HtpasswdUsers::new(folder.path(), &[], None).ping().await.is_err());
    }
}
