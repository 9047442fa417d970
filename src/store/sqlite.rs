//! Users in an SQLite file: the store that needs nothing installed. Revocations ([`sessions`]) and
//! failed logins ([`throttle`]) are kept alike, in the same file or in another one.
//!
//! The gateway and the `user` commands may have the file open at once, in several processes; a change
//! that was answered with success is on the disk (WAL with `synchronous = FULL`,
//! <https://www.sqlite.org/pragma.html#pragma_synchronous>). A file that is damaged, another
//! application's, or a later version's is refused before anything is written to it.

pub mod sessions;
pub mod throttle;

use super::{Cause, LocalUsers, NewUser, StoreError, StoreFuture, UserId, UserRecord, Username, Users};
use sqlx::{
    ConnectOptions, Connection, Row, SqlStr, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What `migrations/sqlite/0001_users.sql` writes into the file's header.
const APPLICATION_ID: i64 = 0x506f_7274;

/// How long a statement waits for another process' change, and a caller for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// One writes at a time anyway; the others are for logins that read meanwhile.
const CONNECTIONS: u32 = 4;

/// (version, what it does, its SQL); once released, none may change.
const MIGRATIONS: [(i64, &str, &str); 5] = [
    (1, "users", include_str!("../../migrations/sqlite/0001_users.sql")),
    (2, "sessions", include_str!("../../migrations/sqlite/0002_sessions.sql")),
    (3, "throttle", include_str!("../../migrations/sqlite/0003_throttle.sql")),
    (4, "salts", include_str!("../../migrations/sqlite/0004_salts.sql")),
    (5, "seen", include_str!("../../migrations/sqlite/0005_seen.sql")),
];

/// A database file that is open, and followed when another takes its place.
#[derive(Debug)]
struct Database {
    /// As it was given, for messages.
    path: PathBuf,
    /// Absolute.
    file: PathBuf,
    opened: Mutex<Opened>,
    /// Held by whoever opens the file again.
    reopening: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Opened {
    pool: SqlitePool,
    identity: Identity,
}

/// Device and inode: which file it is, whatever its name.
type Identity = (u64, u64);

impl Database {
    async fn open(path: &Path) -> Result<Database, StoreError> {
        // Absolute, since SQLite would take a relative name that begins with `file:` for a URI.
        let file =
            std::path::absolute(path).map_err(|cause| StoreError::CannotCreate(path.to_owned(), cause))?;
        create_if_missing(&file).map_err(|error| match error {
            CreateError::NotAFile => StoreError::NotAFile(path.to_owned()),
            CreateError::Io(cause) => StoreError::CannotCreate(path.to_owned(), cause),
        })?;
        let opened = open_patiently(&file, path).await?;
        Ok(Database {
            path: path.to_owned(),
            file,
            opened: Mutex::new(opened),
            reopening: Default::default(),
        })
    }

    /// The connections to the file that is there now. A file that was moved away takes no change: it
    /// would be lost with it.
    async fn pool(&self) -> Result<SqlitePool, StoreError> {
        let identity = self.identity()?;
        let opened = self.opened();
        if opened.identity == identity {
            return Ok(opened.pool);
        }
        let _one_at_a_time = self.reopening.lock().await;
        let before = self.opened();
        if before.identity == identity {
            return Ok(before.pool);
        }
        let opened = open_patiently(&self.file, &self.path).await?;
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = opened.clone();
        before.pool.close().await;
        Ok(opened.pool)
    }

    /// Whether what was just written through `pool` is where the next start will look for it.
    fn holds(&self, pool: &SqlitePool) -> Result<(), StoreError> {
        let (identity, opened) = (self.identity()?, self.opened());
        if opened.identity == identity && !pool.is_closed() {
            return Ok(());
        }
        Err(StoreError::Gone(self.path.clone()))
    }

    fn identity(&self) -> Result<Identity, StoreError> {
        identity_of(&self.file).ok_or_else(|| StoreError::Gone(self.path.clone()))
    }

    fn opened(&self) -> Opened {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn close(&self) {
        let pool = self.opened().pool;
        pool.close().await;
    }

    fn failed(&self, error: sqlx::Error) -> StoreError {
        store_error(&self.path, error)
    }
}

fn identity_of(file: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// As [`open_file`], where another process may be doing the same.
async fn open_patiently(file: &Path, shown: &Path) -> Result<Opened, StoreError> {
    // Switching to WAL and the first migration can meet another process that does the same, and
    // SQLite answers "busy" to the former at once, whatever the timeout.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let identity = identity_of(file).ok_or_else(|| StoreError::Gone(shown.to_owned()))?;
        match open_file(file, shown).await {
            Err(StoreError::Busy(..)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            Err(error) => return Err(error),
            Ok(pool) => return Ok(Opened { pool, identity }),
        }
    }
}

/// An open user database. Cheap to clone; the clones share their connections.
#[derive(Clone, Debug)]
pub struct SqliteUsers {
    database: Arc<Database>,
}

impl SqliteUsers {
    /// Opens the file, and makes it (mode 0600) and its folder (mode 0700) when they are not there.
    ///
    /// The pool runs on the runtime that this is called on. An existing file keeps its mode. While the
    /// file is moved away every method answers `Gone`; one that takes its place is opened when it is
    /// needed.
    ///
    /// # Errors
    /// Everything that [`StoreError`] says of a store itself; the file is then as it was.
    pub async fn open(path: &Path) -> Result<SqliteUsers, StoreError> {
        Ok(SqliteUsers { database: Arc::new(Database::open(path).await?) })
    }

    /// The file, as it was given to [`open`](SqliteUsers::open).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.database.path
    }

    fn failed(&self, error: sqlx::Error) -> StoreError {
        self.database.failed(error)
    }

    /// Runs an UPDATE or DELETE that must hit the one user of that name.
    async fn change(
        &self,
        username: &str,
        query: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    ) -> Result<(), StoreError> {
        let pool = self.database.pool().await?;
        let done = query.execute(&pool).await.map_err(|error| self.failed(error))?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NotFound(username.to_owned()));
        }
        self.database.holds(&pool)
    }
}

impl Users for SqliteUsers {
    fn find<'a>(&'a self, username: &'a str) -> StoreFuture<'a, Option<UserRecord>> {
        Box::pin(async move {
            let Ok(username) = Username::parse(username) else { return Ok(None) };
            sqlx::query("SELECT * FROM users WHERE username = ?")
                .bind(username.as_str())
                .try_map(record)
                .fetch_optional(&self.database.pool().await?)
                .await
                .map_err(|error| self.failed(error))
        })
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            sqlx::query("SELECT id FROM users LIMIT 1")
                .execute(&self.database.pool().await?)
                .await
                .map_err(|error| self.failed(error))?;
            Ok(())
        })
    }

    fn sample(&self, most: u32) -> StoreFuture<'_, Vec<UserRecord>> {
        Box::pin(async move {
            sqlx::query("SELECT * FROM users ORDER BY id DESC LIMIT ?")
                .bind(most)
                .try_map(record)
                .fetch_all(&self.database.pool().await?)
                .await
                .map_err(|error| self.failed(error))
        })
    }

    /// Folds the write-ahead log into the file and closes it.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.database.close())
    }

    fn is_own(&self) -> bool {
        true
    }

    fn upgrade_hash<'a>(&'a self, username: &'a str, from: &'a str, to: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            sqlx::query(
                "UPDATE users SET password_hash = ?, password_salt = NULL
                 WHERE username = ? AND password_hash = ?",
            )
            .bind(to)
            .bind(stored_form(username))
            .bind(from)
            .execute(&self.database.pool().await?)
            .await
            .map_err(|error| self.failed(error))?;
            Ok(())
        })
    }
}

impl LocalUsers for SqliteUsers {
    fn list(&self) -> StoreFuture<'_, Vec<UserRecord>> {
        Box::pin(async move {
            sqlx::query("SELECT * FROM users ORDER BY id")
                .try_map(record)
                .fetch_all(&self.database.pool().await?)
                .await
                .map_err(|error| self.failed(error))
        })
    }

    fn add(&self, user: NewUser) -> StoreFuture<'_, UserRecord> {
        Box::pin(async move {
            let pool = self.database.pool().await?;
            let added = insert(&user).try_map(record).fetch_one(&pool).await.map_err(|error| {
                if is_duplicate(&error) {
                    StoreError::Duplicate(user.username.to_string())
                } else {
                    self.failed(error)
                }
            })?;
            self.database.holds(&pool).map(|()| added)
        })
    }

    fn set_password<'a>(&'a self, username: &'a str, password_hash: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let query = sqlx::query(
                "UPDATE users SET password_hash = ?, password_salt = NULL, changed_at = unixepoch()
                 WHERE username = ?",
            )
            .bind(password_hash)
            .bind(stored_form(username));
            self.change(username, query).await
        })
    }

    fn set_role<'a>(&'a self, username: &'a str, role: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let query = sqlx::query("UPDATE users SET role = ?, changed_at = unixepoch() WHERE username = ?")
                .bind(role)
                .bind(stored_form(username));
            self.change(username, query).await
        })
    }

    fn set_disabled<'a>(&'a self, username: &'a str, disabled: bool) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let query =
                sqlx::query("UPDATE users SET disabled = ?, changed_at = unixepoch() WHERE username = ?")
                    .bind(disabled)
                    .bind(stored_form(username));
            self.change(username, query).await
        })
    }

    fn remove<'a>(&'a self, username: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let query = sqlx::query("DELETE FROM users WHERE username = ?").bind(stored_form(username));
            self.change(username, query).await
        })
    }

    fn import(&self, users: Vec<NewUser>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            // IMMEDIATE: a transaction that began as a reader could not wait for another writer.
            let pool = self.database.pool().await?;
            let mut transaction =
                pool.begin_with("BEGIN IMMEDIATE").await.map_err(|error| self.failed(error))?;
            for user in &users {
                insert(user).execute(&mut *transaction).await.map_err(|error| {
                    if is_duplicate(&error) {
                        StoreError::Duplicate(user.username.to_string())
                    } else {
                        self.failed(error)
                    }
                })?;
            }
            transaction.commit().await.map_err(|error| self.failed(error))?;
            self.database.holds(&pool)
        })
    }
}

fn insert(user: &NewUser) -> sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments> {
    sqlx::query(
        "INSERT INTO users (username, password_hash, password_salt, role, name, email, disabled)
         VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING *",
    )
    .bind(user.username.as_str())
    .bind(user.password_hash.as_str())
    .bind(user.password_salt.as_deref())
    .bind(user.role.as_str())
    .bind(user.name.as_deref())
    .bind(user.email.as_deref())
    .bind(user.disabled)
}

fn record(row: SqliteRow) -> Result<UserRecord, sqlx::Error> {
    Ok(UserRecord {
        id: UserId::Number(row.try_get("id")?),
        username: row.try_get("username")?,
        password_hash: row.try_get("password_hash")?,
        password_salt: row.try_get("password_salt")?,
        role: row.try_get("role")?,
        name: row.try_get("name")?,
        email: row.try_get("email")?,
        disabled: row.try_get("disabled")?,
        created_at: row.try_get("created_at")?,
        changed_at: row.try_get("changed_at")?,
    })
}

/// The name as a row would have it, or NULL, which equals nothing, for what no row can have.
fn stored_form(username: &str) -> Option<String> {
    Username::parse(username).ok().map(|name| name.to_string())
}

fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}

enum CreateError {
    NotAFile,
    Io(io::Error),
}

/// Makes the file ourselves, since SQLite would make it with the process' umask. The files `-wal` and
/// `-shm` beside it take the mode of the main one.
fn create_if_missing(file: &Path) -> Result<(), CreateError> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
    if let Ok(found) = fs::metadata(file) {
        return if found.is_file() { Ok(()) } else { Err(CreateError::NotAFile) };
    }
    if let Some(folder) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(CreateError::Io)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        // Another process was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(CreateError::Io(error)),
        Ok(made) => {
            // Made by root for a gateway that is not, such as before its first start.
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            let owner = fs::metadata(folder.unwrap_or(Path::new("."))).map_err(CreateError::Io)?;
            let mine = made.metadata().map_err(CreateError::Io)?;
            if mine.uid() == 0 && owner.uid() != 0 {
                fchown(&made, Some(owner.uid()), Some(owner.gid())).map_err(CreateError::Io)?;
            }
            Ok(())
        }
    }
}

/// Inspects, migrates and opens a file that exists; `shown` is its path for messages.
async fn open_file(file: &Path, shown: &Path) -> Result<SqlitePool, StoreError> {
    let failed = |error| store_error(shown, error);
    // `foreign_keys` is per connection, and writes nothing.
    let reading = SqliteConnectOptions::new()
        .filename(file)
        .foreign_keys(true)
        .busy_timeout(PATIENCE)
        .disable_statement_logging();

    // The look before the leap: without the journal mode of below, which would write to the file.
    let mut connection = reading.connect().await.map_err(failed)?;
    let inspected = inspect(&mut connection, shown).await;
    connection.close().await.map_err(failed)?;
    inspected?;

    let writing = reading.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE * 2)
        // A file does not hang up: asking before each use would double the cost of one.
        .test_before_acquire(false)
        .connect_with(writing)
        .await
        .map_err(failed)?;
    match migrate(&pool, shown).await {
        Ok(()) => Ok(pool),
        Err(error) => {
            pool.close().await;
            Err(error)
        }
    }
}

/// Refuses what is damaged or not ours, without changing it. An empty database is ours to fill.
async fn inspect(connection: &mut SqliteConnection, shown: &Path) -> Result<(), StoreError> {
    let failed = |error| store_error(shown, error);
    let objects: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    let application: i64 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    if application != APPLICATION_ID && (objects > 0 || application != 0) {
        return Err(StoreError::Foreign(shown.to_owned()));
    }
    let verdict: String =
        sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *connection).await.map_err(failed)?;
    if verdict != "ok" {
        return Err(StoreError::Corrupt(shown.to_owned(), Some(Cause::from(verdict))));
    }
    Ok(())
}

/// Brings the schema up to date, all of it or nothing.
async fn migrate(pool: &SqlitePool, shown: &Path) -> Result<(), StoreError> {
    let failed = |error| store_error(shown, error);
    let migrator = Migrator::with_migrations(
        MIGRATIONS
            .map(|(version, what, sql)| {
                let what = Cow::Borrowed(what);
                Migration::new(version, what, MigrationType::Simple, SqlStr::from_static(sql), false)
            })
            .to_vec(),
    );
    // sqlx has no lock of its own for SQLite: two processes that start at once would both create the
    // tables. The write lock makes the second wait, and then find the work done.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    // Not `run`: its future is not `Send` for every lifetime, which `run_direct` is there to get around.
    migrator.run_direct(None, &mut *transaction, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(error),
        MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => {
            StoreError::Newer(shown.to_owned())
        }
        other => StoreError::Corrupt(shown.to_owned(), Some(Box::new(other))),
    })?;
    transaction.commit().await.map_err(failed)
}

/// Tells the driver's errors apart by result code (<https://www.sqlite.org/rescode.html>), never by text.
fn store_error(path: &Path, error: sqlx::Error) -> StoreError {
    const PERM: i32 = 3;
    const BUSY: i32 = 5;
    const LOCKED: i32 = 6;
    const READONLY: i32 = 8;
    const CORRUPT: i32 = 11;
    const FULL: i32 = 13;
    const CANTOPEN: i32 = 14;
    const NOTADB: i32 = 26;

    let path = path.to_owned();
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<i32>().ok())
        // The low byte is the primary code of an extended one.
        .map(|code| code & 0xff);
    match (code, &error) {
        (Some(PERM | READONLY | CANTOPEN), _) => StoreError::Unwritable(path, Box::new(error)),
        (Some(BUSY | LOCKED), _) | (None, sqlx::Error::PoolTimedOut) => {
            StoreError::Busy(path, Some(Box::new(error)))
        }
        (Some(FULL), _) => StoreError::Full(path, Box::new(error)),
        (Some(CORRUPT | NOTADB), _)
        | (
            None,
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_),
        ) => StoreError::Corrupt(path, Some(Box::new(error))),
        _ => StoreError::Unavailable(path, Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{error::Error, os::unix::fs::PermissionsExt};

    fn user(name: &str) -> NewUser {
        NewUser {
            username: Username::parse(name).unwrap(),
            password_hash: format!("hash of {name}"),
            password_salt: None,
            role: "Viewer".into(),
            name: Some("Vera Viewer".into()),
            email: None,
            disabled: false,
        }
    }

    async fn fresh() -> (tempfile::TempDir, SqliteUsers) {
        let folder = tempfile::tempdir().unwrap();
        let users = SqliteUsers::open(&folder.path().join("data/users.db")).await.unwrap();
        (folder, users)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn what_is_acknowledged_is_synced_and_every_connection_is_set_up_alike() {
        let (_folder, users) = fresh().await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = users.database.opened().pool.acquire().await.unwrap();
            for (pragma, is) in [("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 5000)] {
                let sql = sqlx::AssertSqlSafe(format!("PRAGMA {pragma}"));
                let value: i64 = sqlx::query_scalar(sql).fetch_one(&mut *connection).await.unwrap();
                assert_eq!(value, is, "{pragma}");
            }
            let mode: String =
                sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await.unwrap();
            assert_eq!(mode, "wal");
            held.push(connection);
        }
    }

    #[tokio::test]
    async fn only_the_owner_can_read_the_files() {
        let (folder, users) = fresh().await;
        users.add(user("vera")).await.unwrap();
        assert_eq!(mode(&folder.path().join("data")), 0o700);
        for name in ["users.db", "users.db-wal", "users.db-shm"] {
            assert_eq!(mode(&folder.path().join("data").join(name)), 0o600, "{name}");
        }
    }

    #[tokio::test]
    async fn a_user_is_found_as_added_whatever_the_letter_case_or_normal_form() {
        let (_folder, users) = fresh().await;
        let added = users.add(user("Ödegård")).await.unwrap();
        assert_eq!(
            (added.id.clone(), added.role.as_str(), added.disabled),
            (UserId::Number(1), "Viewer", false)
        );
        assert_eq!(added.name.as_deref(), Some("Vera Viewer"));
        assert!(added.created_at > 1_700_000_000 && added.created_at == added.changed_at);
        for name in ["Ödegård", "ÖDEGåRD", "O\u{308}dega\u{30a}rd"] {
            assert_eq!(users.find(name).await.unwrap().as_ref(), Some(&added), "{name}");
        }
        // Only ASCII is folded: anything more would depend on the Unicode version of the day.
        for name in ["ödegård", "Odegard", "", "Ödegård ", "Ödegård\0", "%", "' OR 1=1 --"] {
            assert_eq!(users.find(name).await.unwrap(), None, "{name}");
        }
        users.ping().await.unwrap();
    }

    #[tokio::test]
    async fn changes_are_made_to_the_one_user_and_to_none_when_unknown() {
        let (_folder, users) = fresh().await;
        users.add(user("vera")).await.unwrap();
        users.add(user("emil")).await.unwrap();
        users.set_password("VERA", "another").await.unwrap();
        users.set_role("vera", "Editor").await.unwrap();
        users.set_disabled("vera", true).await.unwrap();
        users.set_disabled("vera", true).await.unwrap();
        let vera = users.find("vera").await.unwrap().unwrap();
        assert_eq!(
            (vera.password_hash.as_str(), vera.role.as_str(), vera.disabled),
            ("another", "Editor", true)
        );
        let emil = users.find("emil").await.unwrap().unwrap();
        assert_eq!(
            (emil.password_hash.as_str(), emil.role.as_str(), emil.disabled),
            ("hash of emil", "Viewer", false)
        );
        for name in ["nobody", "", "ve\nra"] {
            for outcome in [
                users.set_password(name, "x").await,
                users.set_role(name, "x").await,
                users.set_disabled(name, true).await,
                users.remove(name).await,
            ] {
                assert!(
                    matches!(&outcome, Err(StoreError::NotFound(unknown)) if unknown == name),
                    "{outcome:?}"
                );
            }
        }
        assert_eq!(users.list().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_taken_name_is_refused_in_any_letter_case() {
        let (_folder, users) = fresh().await;
        users.add(user("vera")).await.unwrap();
        let refused = users.add(user("VERA")).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Duplicate(name) if name == "VERA"), "{refused}");
    }

    #[tokio::test]
    async fn an_id_is_never_given_twice() {
        let (folder, users) = fresh().await;
        assert_eq!(users.add(user("vera")).await.unwrap().id, UserId::Number(1));
        assert_eq!(users.add(user("emil")).await.unwrap().id, UserId::Number(2));
        users.remove("emil").await.unwrap();
        users.remove("vera").await.unwrap();
        users.close().await;
        let users = SqliteUsers::open(&folder.path().join("data/users.db")).await.unwrap();
        assert_eq!(users.add(user("vera")).await.unwrap().id, UserId::Number(3));
    }

    #[tokio::test]
    async fn two_handles_see_each_others_changes_at_once() {
        let (_folder, serving) = fresh().await;
        let command = SqliteUsers::open(serving.path()).await.unwrap();
        for round in 0..20 {
            let name = format!("user{round}");
            let (one, other) = if round % 2 == 0 { (&serving, &command) } else { (&command, &serving) };
            one.add(user(&name)).await.unwrap();
            assert!(other.find(&name).await.unwrap().is_some());
            other.set_disabled(&name, true).await.unwrap();
            assert!(one.find(&name).await.unwrap().unwrap().disabled);
        }
    }

    #[tokio::test]
    async fn many_processes_may_open_the_same_new_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.db");
        let mut openings = tokio::task::JoinSet::new();
        for round in 0..8 {
            let path = path.clone();
            openings.spawn(async move {
                let users = SqliteUsers::open(&path).await.unwrap();
                users.add(user(&format!("user{round}"))).await.unwrap();
            });
        }
        while let Some(opened) = openings.join_next().await {
            opened.unwrap();
        }
        assert_eq!(SqliteUsers::open(&path).await.unwrap().list().await.unwrap().len(), 8);
    }

    #[tokio::test]
    async fn an_import_is_all_or_nothing() {
        let (_folder, users) = fresh().await;
        users.add(user("vera")).await.unwrap();
        let refused = users.import(vec![user("emil"), user("Vera"), user("sue")]).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Duplicate(name) if name == "Vera"), "{refused}");
        assert_eq!(users.list().await.unwrap().len(), 1);
        users.import(vec![user("emil"), user("sue")]).await.unwrap();
        assert_eq!(users.list().await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn what_is_not_a_sound_database_of_ours_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.db");
        let users = SqliteUsers::open(&path).await.unwrap();
        users.import((0..200).map(|n| user(&format!("user{n}"))).collect()).await.unwrap();
        users.close().await;
        let sound = fs::read(&path).unwrap();

        let mut torn = sound.clone();
        for byte in &mut torn[4096..12288] {
            *byte ^= 0x5a;
        }
        let mut cut = sound.clone();
        cut.truncate(sound.len() / 2);
        for (what, bytes) in
            [("text", b"users: vera\n".repeat(500)), ("torn pages", torn), ("half of it", cut)]
        {
            fs::write(&path, &bytes).unwrap();
            let refused = SqliteUsers::open(&path).await.unwrap_err();
            assert!(matches!(refused, StoreError::Corrupt(..)), "{what}: {refused:?}");
            assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
            assert!(refused.source().is_some_and(|cause| !refused.to_string().contains(&cause.to_string())));
            assert!(fs::read(&path).unwrap() == bytes, "{what}");
        }
    }

    #[tokio::test]
    async fn another_applications_database_and_a_later_versions_are_left_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cms.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut cms = options.connect().await.unwrap();
        sqlx::raw_sql("CREATE TABLE posts (id INTEGER)").execute(&mut cms).await.unwrap();
        cms.close().await.unwrap();
        let before = fs::read(&path).unwrap();
        let refused = SqliteUsers::open(&path).await.unwrap_err();
        assert!(matches!(refused, StoreError::Foreign(_)), "{refused:?}");
        assert!(fs::read(&path).unwrap() == before);

        let (_folder, users) = fresh().await;
        sqlx::raw_sql(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'of next year', true, x'00', 0)",
        )
        .execute(&users.database.opened().pool)
        .await
        .unwrap();
        let refused = SqliteUsers::open(users.path()).await.unwrap_err();
        assert!(matches!(refused, StoreError::Newer(_)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_place_where_no_file_can_be_is_said_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let refused = SqliteUsers::open(folder.path()).await.unwrap_err();
        assert!(matches!(refused, StoreError::NotAFile(_)), "{refused:?}");
        let refused = SqliteUsers::open(&folder.path().join("file/users.db")).await.unwrap_err();
        assert!(matches!(refused, StoreError::CannotCreate(..)), "{refused:?}");
        assert!(!refused.to_string().contains('\n'));
    }

    #[tokio::test]
    async fn a_folder_that_may_not_be_written_is_said_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.db");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
        if fs::write(folder.path().join("probe"), "").is_ok() {
            println!("SKIPPED: this user may write to any folder");
            return;
        }
        let refused = SqliteUsers::open(&path).await.unwrap_err();
        assert!(matches!(refused, StoreError::CannotCreate(..)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_file_that_was_moved_takes_no_change_and_works_again_when_it_is_back() {
        let (folder, users) = fresh().await;
        users.add(user("vera")).await.unwrap();
        let (here, there) = (users.path().to_owned(), folder.path().join("moved.db"));
        fs::rename(&here, &there).unwrap();
        for refused in [
            users.ping().await.unwrap_err(),
            users.find("vera").await.map(drop).unwrap_err(),
            users.set_role("vera", "Editor").await.unwrap_err(),
            users.import(vec![user("emil")]).await.unwrap_err(),
        ] {
            assert!(matches!(refused, StoreError::Gone(_)), "{refused:?}");
        }
        fs::rename(&there, &here).unwrap();
        assert_eq!(users.find("vera").await.unwrap().unwrap().role, "Viewer");
        // And so does another file in its place.
        let other = SqliteUsers::open(&folder.path().join("other.db")).await.unwrap();
        other.add(user("emil")).await.unwrap();
        other.close().await;
        fs::remove_file(folder.path().join("data/users.db-wal")).unwrap();
        fs::rename(folder.path().join("other.db"), &here).unwrap();
        assert!(users.find("emil").await.unwrap().is_some());
        assert!(users.find("vera").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_full_disk_loses_the_change_and_nothing_else() {
        let (_folder, users) = fresh().await;
        users.add(user("vera")).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = users.database.opened().pool.acquire().await.unwrap();
            sqlx::raw_sql("PRAGMA max_page_count = 1").execute(&mut *connection).await.unwrap();
            held.push(connection);
        }
        drop(held);
        let many = (0..500).map(|n| user(&format!("user{n}"))).collect();
        let refused = users.import(many).await.unwrap_err();
        assert!(matches!(refused, StoreError::Full(..)), "{refused:?}");
        assert_eq!(users.list().await.unwrap().len(), 1);
    }
}
