//! Revocations and rotations in an SQLite file, that of the users or another one.
//!
//! Whatever is answered with success is on the disk, as in [`super`]. SQLite lets one process write at a
//! time, so the numbers of changes become visible in their order and reading "what is after the last
//! one" misses nothing.

use std::path::Path;
use std::sync::Arc;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::Database;
use crate::store::sessions::{Change, Rotated, Rotation, Seen, Sessions, Successor};
use crate::store::{StoreError, StoreFuture};
use crate::token::Revocation;
use crate::token::revoked::{Key, MOST_LEEWAY, is_of};

/// Rows that are dropped at a time: a moment's work for whoever waits to write.
const PRUNED_AT_ONCE: i64 = 1000;

/// An open session database. Cheap to clone; the clones share their connections.
#[derive(Clone, Debug)]
pub struct SqliteSessions {
    database: Arc<Database>,
}

impl SqliteSessions {
    /// Opens the file as [`SqliteUsers::open`](super::SqliteUsers::open) does.
    ///
    /// # Errors
    /// As there.
    pub async fn open(path: &Path) -> Result<SqliteSessions, StoreError> {
        Ok(SqliteSessions { database: Arc::new(Database::open(path).await?) })
    }

    /// As [`Users::close`](crate::store::Users::close) of the users.
    pub async fn close(&self) {
        self.database.close().await;
    }

    /// Does `work` in one step that other processes see whole or not at all.
    async fn write<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        W: AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    {
        let pool = self.database.pool().await?;
        let failed = |error| self.database.failed(error);
        // IMMEDIATE: a transaction that began as a reader could not wait for another writer.
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let done = work(&mut transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        self.database.holds(&pool)?;
        Ok(done)
    }
}

impl Sessions for SqliteSessions {
    fn changes(&self, after: i64, most: u32) -> StoreFuture<'_, Vec<Change>> {
        Box::pin(async move {
            let pool = self.database.pool().await?;
            // A file that was put in the place of a newer one is read from its beginning.
            sqlx::query(
                "SELECT seq, key, generation, until FROM ended WHERE seq > CASE
                     WHEN ?1 > (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'ended') THEN 0
                     ELSE ?1 END
                 ORDER BY seq LIMIT ?2",
            )
            .bind(after)
            .bind(most)
            .try_map(change)
            .fetch_all(&pool)
            .await
            .map_err(|error| self.database.failed(error))
        })
    }

    fn end_token(&self, token: Key, until: u64) -> StoreFuture<'_, Change> {
        Box::pin(
            self.write(async move |connection: &mut SqliteConnection| end(connection, token, until).await),
        )
    }

    fn end_family(&self, family: Key, until: u64) -> StoreFuture<'_, Change> {
        Box::pin(self.write(async move |connection: &mut SqliteConnection| {
            end_family(connection, family, until).await
        }))
    }

    fn raise(&self, subject: Key, until: u64) -> StoreFuture<'_, Change> {
        Box::pin(self.write(async move |connection: &mut SqliteConnection| {
            // By the clock where that is further on: past what a lost or restored database had given.
            sqlx::query(
                "INSERT OR REPLACE INTO ended (key, generation, until)
                 SELECT ?1, max(coalesce((SELECT generation FROM ended WHERE key = ?1), 0) + 1,
                                CAST(unixepoch('subsec') * 1000 AS INTEGER)), ?2
                 RETURNING seq, key, generation, until",
            )
            .bind(subject.to_bytes().to_vec())
            .bind(stored(until))
            .try_map(change)
            .fetch_one(connection)
            .await
        }))
    }

    fn generation(&self, subject: Key) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let pool = self.database.pool().await?;
            let mut connection = pool.acquire().await.map_err(|error| self.database.failed(error))?;
            generation(&mut connection, subject).await.map_err(|error| self.database.failed(error))
        })
    }

    fn rotate(&self, rotation: Rotation) -> StoreFuture<'_, Rotated> {
        Box::pin(
            self.write(async move |connection: &mut SqliteConnection| rotate(connection, rotation).await),
        )
    }

    fn note(&self, seen: Seen) -> StoreFuture<'_, ()> {
        Box::pin(self.write(async move |connection: &mut SqliteConnection| {
            sqlx::query(
                "INSERT INTO seen_users (subject, username, role, password, until) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (subject) DO UPDATE SET username = excluded.username, role = excluded.role,
                     password = excluded.password, until = max(until, excluded.until)",
            )
            .bind(seen.subject.to_bytes().to_vec())
            .bind(&seen.username)
            .bind(&seen.role)
            .bind(seen.password.to_vec())
            .bind(stored(seen.until))
            .execute(connection)
            .await?;
            Ok(())
        }))
    }

    fn seen(&self, subject: Key) -> StoreFuture<'_, Option<Seen>> {
        Box::pin(async move {
            let pool = self.database.pool().await?;
            sqlx::query("SELECT * FROM seen_users WHERE subject = ?")
                .bind(subject.to_bytes().to_vec())
                .try_map(seen)
                .fetch_optional(&pool)
                .await
                .map_err(|error| self.database.failed(error))
        })
    }

    fn seen_after(&self, after: Option<Key>, now: u64, most: u32) -> StoreFuture<'_, Vec<Seen>> {
        Box::pin(async move {
            let pool = self.database.pool().await?;
            sqlx::query("SELECT * FROM seen_users WHERE subject > ? AND until > ? ORDER BY subject LIMIT ?")
                .bind(after.map_or_else(Vec::new, |key| key.to_bytes().to_vec()))
                .bind(stored(now))
                .bind(most)
                .try_map(seen)
                .fetch_all(&pool)
                .await
                .map_err(|error| self.database.failed(error))
        })
    }

    fn forget(&self, subject: Key) -> StoreFuture<'_, ()> {
        Box::pin(self.write(async move |connection: &mut SqliteConnection| {
            let query = sqlx::query("DELETE FROM seen_users WHERE subject = ?");
            query.bind(subject.to_bytes().to_vec()).execute(connection).await.map(drop)
        }))
    }

    fn prune(&self, before: u64) -> StoreFuture<'_, bool> {
        Box::pin(self.write(async move |connection: &mut SqliteConnection| {
            let mut more = false;
            for sql in [
                "DELETE FROM ended WHERE seq IN (SELECT seq FROM ended WHERE until < ? LIMIT ?)",
                "DELETE FROM rotations WHERE token IN (SELECT token FROM rotations WHERE until < ? LIMIT ?)",
                "DELETE FROM seen_users WHERE subject IN (SELECT subject FROM seen_users WHERE until < ? LIMIT ?)",
            ] {
                let done = sqlx::query(sql).bind(stored(before)).bind(PRUNED_AT_ONCE);
                let dropped = done.execute(&mut *connection).await?.rows_affected();
                more |= i64::try_from(dropped).is_ok_and(|dropped| dropped == PRUNED_AT_ONCE);
            }
            Ok(more)
        }))
    }
}

async fn end(connection: &mut SqliteConnection, key: Key, until: u64) -> Result<Change, sqlx::Error> {
    // Replaced, not updated: its new number is what tells others that it lasts longer.
    sqlx::query(
        "INSERT OR REPLACE INTO ended (key, until)
         SELECT ?1, max(?2, coalesce((SELECT until FROM ended WHERE key = ?1), 0))
         RETURNING seq, key, generation, until",
    )
    .bind(key.to_bytes().to_vec())
    .bind(stored(until))
    .try_map(change)
    .fetch_one(connection)
    .await
}

async fn end_family(
    connection: &mut SqliteConnection,
    family: Key,
    until: u64,
) -> Result<Change, sqlx::Error> {
    let last: i64 = sqlx::query_scalar("SELECT coalesce(max(expires_at), 0) FROM rotations WHERE family = ?")
        .bind(family.to_bytes().to_vec())
        .fetch_one(&mut *connection)
        .await?;
    let last = u64::try_from(last).unwrap_or(0).saturating_add(MOST_LEEWAY);
    end(connection, family, until.max(last)).await
}

async fn generation(connection: &mut SqliteConnection, subject: Key) -> Result<u64, sqlx::Error> {
    let generation: Option<i64> = sqlx::query_scalar("SELECT generation FROM ended WHERE key = ?")
        .bind(subject.to_bytes().to_vec())
        .fetch_optional(connection)
        .await?
        .flatten();
    Ok(generation.and_then(|generation| u64::try_from(generation).ok()).unwrap_or(0))
}

async fn has_ended(connection: &mut SqliteConnection, key: Key) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM ended WHERE key = ?)")
        .bind(key.to_bytes().to_vec())
        .fetch_one(connection)
        .await
}

async fn rotate(connection: &mut SqliteConnection, rotation: Rotation) -> Result<Rotated, sqlx::Error> {
    let Rotation { token, family, subject, generation: own, issued_at, until, .. } = rotation;
    let mark = generation(connection, subject).await?;
    if !is_of(own, issued_at, mark) || has_ended(connection, family).await? {
        return Ok(Rotated::Ended);
    }
    let before = sqlx::query("SELECT * FROM rotations WHERE token = ?")
        .bind(token.to_bytes().to_vec())
        .fetch_optional(&mut *connection)
        .await?;
    if let Some(row) = before {
        let rotated_at = number(&row, "rotated_at")?;
        if rotation.now_ms <= rotated_at.saturating_add(rotation.grace_ms) {
            return Ok(Rotated::Again(Successor {
                jti: row.try_get("jti")?,
                issued_at: number(&row, "issued_at")?,
                expires_at: number(&row, "expires_at")?,
                generation: number(&row, "generation")?,
            }));
        }
        return end_family(connection, family, until).await.map(Rotated::Reused);
    }
    if has_ended(connection, token).await? {
        return Ok(Rotated::Ended);
    }
    let successor = Successor { generation: own.unwrap_or(0).max(mark), ..rotation.successor };
    sqlx::query("INSERT INTO rotations VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(token.to_bytes().to_vec())
        .bind(family.to_bytes().to_vec())
        .bind(&successor.jti)
        .bind(stored(successor.issued_at))
        .bind(stored(successor.expires_at))
        .bind(stored(successor.generation))
        .bind(stored(rotation.now_ms))
        // For as long as either token could be shown.
        .bind(stored(until.max(successor.expires_at.saturating_add(MOST_LEEWAY))))
        .execute(&mut *connection)
        .await?;
    let change = end(connection, token, until).await?;
    Ok(Rotated::Fresh(successor, change))
}

/// A row of `seq, key, generation, until`: by their places, since there may be a million.
fn change(row: SqliteRow) -> Result<Change, sqlx::Error> {
    let key = row.try_get::<&[u8], _>(1).map(Key::from_bytes)?;
    let key = key.ok_or_else(|| sqlx::Error::Decode("a key has 16 bytes".into()))?;
    let until = unsigned(row.try_get(3)?)?;
    Ok(Change {
        seq: row.try_get(0)?,
        revocation: match row.try_get(2)? {
            None => Revocation::End { key, until },
            Some(generation) => Revocation::Mark { subject: key, generation: unsigned(generation)?, until },
        },
    })
}

fn seen(row: SqliteRow) -> Result<Seen, sqlx::Error> {
    let sixteen = || sqlx::Error::Decode("a key and a mark have 16 bytes".into());
    Ok(Seen {
        subject: Key::from_bytes(row.try_get("subject")?).ok_or_else(sixteen)?,
        username: row.try_get("username")?,
        role: row.try_get("role")?,
        password: row.try_get::<&[u8], _>("password")?.try_into().map_err(|_| sixteen())?,
        until: number(&row, "until")?,
    })
}

fn number(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    unsigned(row.try_get(column)?)
}

fn unsigned(number: i64) -> Result<u64, sqlx::Error> {
    u64::try_from(number).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Times fit by far; what would not is the end of time.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sessions::{EndingTokens, end_user, find_with_generation, local_subject};
    use crate::store::sqlite::SqliteUsers;
    use crate::store::{LocalUsers, NewUser, UserId, Username};

    const NOW: u64 = 2_000_000_000;

    async fn fresh() -> (tempfile::TempDir, SqliteSessions) {
        let folder = tempfile::tempdir().unwrap();
        let sessions = SqliteSessions::open(&folder.path().join("sessions.db")).await.unwrap();
        (folder, sessions)
    }

    fn token(jti: &str) -> Key {
        Key::token("", jti)
    }

    /// Rotates `from` into `to` at so many milliseconds, with ten seconds of grace.
    fn rotation(from: &str, to: &str, at_ms: u64) -> Rotation {
        Rotation {
            token: token(from),
            family: Key::family("login"),
            subject: Key::subject("", "7"),
            generation: Some(0),
            issued_at: NOW,
            until: NOW + 100,
            successor: Successor { jti: to.into(), issued_at: NOW, expires_at: NOW + 500, generation: 0 },
            now_ms: NOW * 1000 + at_ms,
            grace_ms: 10_000,
        }
    }

    #[tokio::test]
    async fn changes_are_read_in_their_order_and_each_once() {
        let (_folder, sessions) = fresh().await;
        let other = SqliteSessions::open(&sessions.database.path).await.unwrap();
        let first = sessions.end_token(token("a"), 100).await.unwrap();
        let second = other.end_family(token("f"), 100).await.unwrap();
        assert_eq!(sessions.changes(0, 10).await.unwrap(), [first.clone(), second.clone()]);
        assert_eq!(sessions.changes(0, 1).await.unwrap(), std::slice::from_ref(&first));
        assert_eq!(sessions.changes(second.seq, 10).await.unwrap(), []);
        // What lasts longer is news; it never lasts shorter.
        let longer = other.end_token(token("a"), 200).await.unwrap();
        assert_eq!(sessions.changes(second.seq, 10).await.unwrap(), std::slice::from_ref(&longer));
        let shorter = other.end_token(token("a"), 50).await.unwrap();
        assert_eq!(shorter.revocation, longer.revocation);
    }

    #[tokio::test]
    async fn a_mark_rises_with_every_change_however_many_come_at_once() {
        let (_folder, sessions) = fresh().await;
        let subject = local_subject(&UserId::Number(7));
        assert_eq!(sessions.generation(subject).await.unwrap(), 0);
        let mut raising = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let sessions = sessions.clone();
            raising.spawn(async move {
                let change = end_user(&sessions, subject, true, NOW).await.unwrap();
                match change.revocation {
                    Revocation::Mark { generation, .. } => generation,
                    Revocation::End { .. } => unreachable!("it is a mark"),
                }
            });
        }
        let mut marks = raising.join_all().await;
        marks.sort_unstable();
        marks.dedup();
        assert_eq!(marks.len(), 20);
        assert_eq!(sessions.generation(subject).await.unwrap(), marks[19]);
    }

    #[tokio::test]
    async fn a_token_is_rotated_once_and_its_reuse_ends_the_family() {
        let (_folder, sessions) = fresh().await;
        let Rotated::Fresh(successor, change) = sessions.rotate(rotation("a", "b", 0)).await.unwrap() else {
            panic!("it is live")
        };
        assert_eq!(successor.jti, "b");
        assert_eq!(change.revocation, Revocation::End { key: token("a"), until: NOW + 100 });
        // Two tabs: the same successor, whatever the second one would have made.
        let again = sessions.rotate(rotation("a", "c", 10_000)).await.unwrap();
        assert_eq!(again, Rotated::Again(successor));
        assert!(matches!(sessions.rotate(rotation("b", "c", 20_000)).await.unwrap(), Rotated::Fresh(..)));
        let reused = sessions.rotate(rotation("a", "d", 10_001)).await.unwrap();
        let Rotated::Reused(change) = reused else { panic!("{reused:?}") };
        let until = NOW + 500 + MOST_LEEWAY;
        assert_eq!(change.revocation, Revocation::End { key: Key::family("login"), until });
        for from in ["a", "b", "c"] {
            assert_eq!(sessions.rotate(rotation(from, "e", 20_001)).await.unwrap(), Rotated::Ended);
        }
    }

    #[tokio::test]
    async fn many_that_rotate_one_token_at_once_get_one_successor() {
        let (_folder, sessions) = fresh().await;
        let mut rotating = tokio::task::JoinSet::new();
        for n in 0..10 {
            let sessions = SqliteSessions::open(&sessions.database.path).await.unwrap();
            rotating.spawn(async move {
                match sessions.rotate(rotation("a", &n.to_string(), 0)).await.unwrap() {
                    Rotated::Fresh(successor, _) => (successor, true),
                    Rotated::Again(successor) => (successor, false),
                    other => panic!("{other:?}"),
                }
            });
        }
        let outcomes = rotating.join_all().await;
        assert_eq!(outcomes.iter().filter(|(_, fresh)| *fresh).count(), 1);
        assert!(outcomes.iter().all(|(successor, _)| *successor == outcomes[0].0));
    }

    #[tokio::test]
    async fn what_has_ended_is_not_rotated() {
        let subject = Key::subject("", "7");
        for (what, key) in [("the token", token("a")), ("its family", Key::family("login"))] {
            let (_folder, sessions) = fresh().await;
            sessions.end_token(key, NOW + 500).await.unwrap();
            assert_eq!(sessions.rotate(rotation("a", "b", 0)).await.unwrap(), Rotated::Ended, "{what}");
        }
        let (_folder, sessions) = fresh().await;
        sessions.raise(subject, NOW + 500).await.unwrap();
        let mark = sessions.generation(subject).await.unwrap();
        for (generation, issued_at, ended) in [
            (Some(mark - 1), NOW, true),
            (Some(mark), NOW, false),
            (None, mark / 1000, true),
            (None, mark / 1000 + 1, false),
        ] {
            let (_folder, sessions) = fresh().await;
            sessions.raise(subject, NOW + 500).await.unwrap();
            sqlx::query("UPDATE ended SET generation = ?")
                .bind(stored(mark))
                .execute(&sessions.database.opened().pool)
                .await
                .unwrap();
            let rotation = Rotation { generation, issued_at, ..rotation("a", "b", 0) };
            let rotated = sessions.rotate(rotation).await.unwrap();
            assert_eq!(rotated == Rotated::Ended, ended, "{generation:?} {issued_at}");
            if let Rotated::Fresh(successor, _) = rotated {
                assert_eq!(successor.generation, mark);
            }
        }
    }

    #[tokio::test]
    async fn what_is_over_is_dropped_and_its_number_never_given_again() {
        let (_folder, sessions) = fresh().await;
        for n in 0..1500 {
            sessions.end_token(token(&n.to_string()), 100).await.unwrap();
        }
        sessions.rotate(rotation("a", "b", 0)).await.unwrap();
        let last = sessions.changes(1500, 10).await.unwrap()[0].seq;
        assert!(sessions.prune(101).await.unwrap());
        assert!(!sessions.prune(101).await.unwrap());
        assert_eq!(sessions.changes(0, 10).await.unwrap().len(), 1);
        assert!(matches!(sessions.rotate(rotation("a", "c", 0)).await.unwrap(), Rotated::Again(_)));
        assert!(!sessions.prune(NOW + 501 + MOST_LEEWAY).await.unwrap());
        assert!(matches!(sessions.rotate(rotation("a", "c", 0)).await.unwrap(), Rotated::Fresh(..)));
        assert!(sessions.changes(0, 10).await.unwrap()[0].seq > last);
    }

    async fn with_generation(
        users: &SqliteUsers,
        sessions: &SqliteSessions,
    ) -> Option<(crate::store::UserRecord, u64)> {
        let generation = async |subject| sessions.generation(subject).await;
        find_with_generation(users, "vera", generation).await.unwrap()
    }

    #[tokio::test]
    async fn a_change_of_a_user_ends_what_was_made_from_the_old_record() {
        let (_folder, sessions) = fresh().await;
        let users = SqliteUsers::open(&sessions.database.path).await.unwrap();
        let new = NewUser {
            username: Username::parse("vera").unwrap(),
            password_hash: "hash".into(),
            password_salt: None,
            role: "Viewer".into(),
            name: None,
            email: None,
            disabled: false,
        };
        let id = users.add(new).await.unwrap().id;
        let ending = EndingTokens::new(users.clone(), Box::new(sessions.clone()));
        let mut last = 0;
        for (what, change) in [
            ("role", ending.set_role("VERA", "Editor")),
            ("password", ending.set_password("vera", "other")),
            ("disable", ending.set_disabled("vera", true)),
            ("remove", ending.remove("vera")),
        ] {
            let (_, before) = with_generation(&users, &sessions).await.unwrap();
            change.await.unwrap();
            let mark = sessions.generation(local_subject(&id)).await.unwrap();
            assert!(mark > before && before >= last, "{what}");
            last = before;
        }
        assert!(with_generation(&users, &sessions).await.is_none());
        assert!(matches!(ending.set_role("vera", "Editor").await, Err(StoreError::NotFound(_))));
    }
}
