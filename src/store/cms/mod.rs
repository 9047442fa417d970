//! The users of a CMS, found in its own database by a query of the operator's, and never changed.
//!
//! SQLite, PostgreSQL, MySQL and MariaDB. The gateway needs no more than `SELECT` on what the query names; it
//! makes no table and writes no row. A database that is away, slow or restarts is an error now and works again by
//! itself. Not here: how the query binds a name (`config`), which hash formats there are (`login::hash`).

mod connection;
mod roles;
mod row;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::ConnectOptions;
use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Fault, StoreError, StoreFuture, UserRecord, Users};
use connection::{Connection, Place};
pub use roles::Roles;
use row::ColumnProblem;
pub use row::MOST_ROWS;

/// For one question, waiting for a connection included.
const PATIENCE: Duration = Duration::from_secs(5);

/// As many questions at a time.
const CONNECTIONS: usize = 8;

/// A connection that nobody has used for so long is not used again.
const IDLE: Duration = Duration::from_secs(60);

/// The longest name that is asked for, in bytes.
const MOST_NAME_BYTES: usize = 1024;

/// Which database.
#[derive(Clone)]
pub enum Database {
    /// An SQLite file.
    Sqlite(PathBuf),
    /// A `postgres://` URL with its password.
    Postgres(String),
    /// A `mysql://` URL with its password.
    MySql(String),
}

/// What users are found by.
pub struct Settings {
    /// Where.
    pub database: Database,
    /// The database as messages name it, without secrets.
    pub shown: String,
    /// One `SELECT`, with the database's placeholders.
    pub sql: String,
    /// How often the name is bound.
    pub parameters: usize,
    /// What their roles are here.
    pub roles: Roles,
}

/// Another system's users.
pub struct CmsUsers {
    place: Place,
    shown: String,
    sql: String,
    parameters: usize,
    roles: Roles,
    slots: Semaphore,
    free: Mutex<Vec<(Connection, Instant)>>,
}

impl CmsUsers {
    /// Connects to nothing yet: a database that is away now may be there for the first login.
    ///
    /// # Errors
    /// A URL that its driver does not take.
    pub fn new(settings: Settings) -> Result<CmsUsers, StoreError> {
        let Settings { database, shown, sql, parameters, roles } = settings;
        let place = match &database {
            Database::Sqlite(file) => {
                // Absolute, since SQLite would take a relative name that begins with `file:` for a URI.
                let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
                let options =
                    SqliteConnectOptions::new().filename(file).read_only(true).busy_timeout(PATIENCE);
                Ok(Place::Sqlite(Box::new(options.disable_statement_logging())))
            }
            Database::Postgres(url) => PgConnectOptions::from_str(url)
                .map(|options| Place::Postgres(Box::new(options.disable_statement_logging()))),
            Database::MySql(url) => MySqlConnectOptions::from_str(url).map(|options| {
                // As its own client would see it: the query is written for the server's settings.
                let options = options.pipes_as_concat(false).no_engine_substitution(false).timezone(None);
                Place::MySql(Box::new(options.disable_statement_logging()))
            }),
        }
        // What the driver says may hold the URL.
        .map_err(|_| {
            StoreError::Cms(shown.clone(), Fault::Unreachable("its URL is not understood".into()))
        })?;
        let (slots, free) = (Semaphore::new(CONNECTIONS), Mutex::default());
        Ok(CmsUsers { place, shown, sql, parameters, roles, slots, free })
    }

    fn failed(&self, fault: Fault) -> StoreError {
        StoreError::Cms(self.shown.clone(), fault)
    }

    fn column(&self, problem: ColumnProblem) -> StoreError {
        self.failed(match problem {
            ColumnProblem::Missing(name) => Fault::MissingColumn(name),
            ColumnProblem::Twice(name) => Fault::ColumnTwice(name),
        })
    }

    /// A connection that works, an old one or a new one.
    async fn connection(&self) -> Result<Connection, StoreError> {
        loop {
            let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match free {
                None => break,
                Some((_, since)) if since.elapsed() > IDLE => {}
                // The server may have restarted.
                Some((mut connection, _)) => {
                    if connection.answers().await {
                        return Ok(connection);
                    }
                }
            }
        }
        Connection::open(&self.place).await.map_err(|error| self.failed(Fault::Unreachable(said(&error))))
    }

    /// Does `work` on a connection, which is given back if it went well; else, and after [`PATIENCE`], it is closed:
    /// nobody knows what is under way on it.
    async fn ask<T>(
        &self,
        work: impl AsyncFnOnce(&mut Connection, &str) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let asking = async {
            let _slot = self.slots.acquire().await;
            let mut connection = self.connection().await?;
            let answer = work(&mut connection, &self.sql).await.map_err(|error| match error {
                sqlx::Error::Database(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                    self.failed(Fault::Query(said(&error)))
                }
                error => self.failed(Fault::Unreachable(said(&error))),
            })?;
            if connection.is_kept() {
                let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
                free.push((connection, Instant::now()));
            }
            Ok(answer)
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(self.failed(Fault::Slow(PATIENCE))))
    }

    async fn look_up(&self, username: &str) -> Result<Option<UserRecord>, StoreError> {
        // Nobody has such a name, and a database may stumble over it.
        if username.len() > MOST_NAME_BYTES || username.chars().any(char::is_control) {
            return Ok(None);
        }
        let rows = self
            .ask(async |connection: &mut Connection, sql: &str| {
                connection.rows(sql, self.parameters, username).await
            })
            .await?;
        let user = row::user(&rows, &self.roles).map_err(|problem| self.column(problem))?;
        user.map_err(|why| StoreError::UnusableUser(username.to_owned(), why))
    }
}

impl Users for CmsUsers {
    fn find<'a>(&'a self, username: &'a str) -> StoreFuture<'a, Option<UserRecord>> {
        Box::pin(self.look_up(username))
    }

    /// Has the query looked at as well, without running it.
    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let columns = self
                .ask(async |connection: &mut Connection, sql: &str| connection.columns(sql).await)
                .await?;
            row::check_columns(columns.iter().map(String::as_str), &self.roles)
                .map_err(|problem| self.column(problem))
        })
    }

    /// Nobody: users can only be looked up by name.
    fn sample(&self, _most: u32) -> StoreFuture<'_, Vec<UserRecord>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// What a database or the system said, as one short line. Both quote the query at most, never what was bound.
fn said(error: &sqlx::Error) -> String {
    const MOST: usize = 200;
    let text = match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Tls(error) => format!("TLS: {error}"),
        other => other.to_string(),
    };
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(MOST).collect()
}
