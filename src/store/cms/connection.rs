//! One connection to another system's database, which reads and cannot write.
//!
//! SQLite is opened read-only, PostgreSQL and MySQL are told that every transaction of the session is: a
//! database user who may write more than it should cannot do so from here. Values come as the [`Cell`]s of
//! [`super::row`], whatever type a column has. Not here: how many connections there are, and for how long one is waited for.

use futures_util::TryStreamExt;
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection as _, Executor, Row, SqlSafeStr, Statement, TypeInfo,
    ValueRef,
    mysql::{MySqlConnectOptions, MySqlConnection, MySqlRow},
    postgres::{PgArgumentBuffer, PgConnectOptions, PgConnection, PgRow, PgTypeInfo, PgTypeKind, types::Oid},
    sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow},
};

use super::row::{Cell, MOST_ROWS};

/// Where the database is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file.
    Sqlite(Box<SqliteConnectOptions>),
    /// A server.
    Postgres(Box<PgConnectOptions>),
    /// A server.
    MySql(Box<MySqlConnectOptions>),
}

/// What is ended by nothing but being dropped.
pub enum Connection {
    /// To a file.
    Sqlite(SqliteConnection),
    /// To a server.
    Postgres(Box<PgConnection>),
    /// To a server.
    MySql(Box<MySqlConnection>),
}

/// A row by the names of its columns.
pub type Cells = Vec<(String, Cell)>;

/// Reads rows until there are too many.
macro_rules! rows {
    ($connection:expr, $sql:expr, $times:expr, $name:expr, $cells:expr) => {{
        let mut query = sqlx::query(AssertSqlSafe($sql)).persistent(false);
        for _ in 0..$times {
            query = query.bind($name);
        }
        let mut rows = query.fetch($connection);
        let mut found = Vec::new();
        while let Some(row) = rows.try_next().await? {
            found.push($cells(&row)?);
            if found.len() > MOST_ROWS {
                break;
            }
        }
        found
    }};
}

/// The columns that a statement answers with.
macro_rules! columns {
    ($connection:expr, $sql:expr) => {{
        let statement = $connection.prepare(AssertSqlSafe($sql).into_sql_str()).await?;
        statement.columns().iter().map(|column| column.name().to_owned()).collect()
    }};
}

impl Connection {
    /// Connects and makes the session read-only.
    pub async fn open(place: &Place) -> Result<Connection, sqlx::Error> {
        Ok(match place {
            Place::Sqlite(options) => Connection::Sqlite(options.connect().await?),
            Place::Postgres(options) => {
                let mut connection = options.connect().await?;
                connection
                    .execute("SET default_transaction_read_only = on; SET statement_timeout = '5s'")
                    .await?;
                Connection::Postgres(Box::new(connection))
            }
            Place::MySql(options) => {
                let mut connection = options.connect().await?;
                connection.execute("SET SESSION TRANSACTION READ ONLY").await?;
                Connection::MySql(Box::new(connection))
            }
        })
    }

    /// Whether it is worth keeping for the next question. A file is opened each time: another may stand in its place.
    pub fn is_kept(&self) -> bool {
        !matches!(self, Connection::Sqlite(_))
    }

    /// Whether it still leads somewhere.
    pub async fn answers(&mut self) -> bool {
        match self {
            Connection::Sqlite(connection) => connection.ping().await,
            Connection::Postgres(connection) => connection.ping().await,
            Connection::MySql(connection) => connection.ping().await,
        }
        .is_ok()
    }

    /// What the statement finds for a name, bound `times` times; one row more than there may be at most.
    pub async fn rows(&mut self, sql: &str, times: usize, name: &str) -> Result<Vec<Cells>, sqlx::Error> {
        Ok(match self {
            Connection::Sqlite(connection) => rows!(connection, sql, times, name, sqlite_cells),
            Connection::Postgres(connection) => {
                rows!(connection.as_mut(), sql, times, Untyped(name), postgres_cells)
            }
            Connection::MySql(connection) => rows!(connection.as_mut(), sql, times, name, mysql_cells),
        })
    }

    /// Has the statement looked at, without running it, and says what columns it has.
    pub async fn columns(&mut self, sql: &str) -> Result<Vec<String>, sqlx::Error> {
        Ok(match self {
            Connection::Sqlite(connection) => columns!(connection, sql),
            Connection::Postgres(connection) => columns!(connection, sql),
            Connection::MySql(connection) => columns!(connection, sql),
        })
    }
}

/// A text whose type PostgreSQL takes from where it stands, so that the column's own comparison decides
/// (`citext` without regard to case, for example) and not that of `text`.
#[derive(Clone, Copy)]
struct Untyped<'n>(&'n str);

impl sqlx::Type<sqlx::Postgres> for Untyped<'_> {
    fn type_info() -> PgTypeInfo {
        // `unknown`
        PgTypeInfo::with_oid(Oid(705))
    }
}

impl<'q> sqlx::Encode<'q, sqlx::Postgres> for Untyped<'_> {
    fn encode_by_ref(
        &self,
        buffer: &mut PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        <&str as sqlx::Encode<sqlx::Postgres>>::encode_by_ref(&self.0, buffer)
    }
}

fn sqlite_cells(row: &SqliteRow) -> Result<Cells, sqlx::Error> {
    let mut cells = Vec::with_capacity(row.columns().len());
    for (at, column) in row.columns().iter().enumerate() {
        let value = row.try_get_raw(at)?;
        let kind = value.type_info().name().to_owned();
        let cell = match kind.as_str() {
            _ if value.is_null() => Cell::Null,
            "INTEGER" | "BOOLEAN" => Cell::Number(row.try_get_unchecked::<i64, _>(at)?.into()),
            "TEXT" => Cell::text(row.try_get_unchecked::<&[u8], _>(at)?),
            "BLOB" => Cell::text(row.try_get_unchecked::<&[u8], _>(at)?),
            _ => Cell::Unreadable(kind),
        };
        cells.push((column.name().to_ascii_lowercase(), cell));
    }
    Ok(cells)
}

fn postgres_cells(row: &PgRow) -> Result<Cells, sqlx::Error> {
    let mut cells = Vec::with_capacity(row.columns().len());
    for (at, column) in row.columns().iter().enumerate() {
        let value = row.try_get_raw(at)?;
        let info = value.type_info();
        let cell = match (info.name(), info.kind()) {
            _ if value.is_null() => Cell::Null,
            ("INT2" | "INT4" | "INT8", _) => Cell::Number(row.try_get_unchecked::<i64, _>(at)?.into()),
            ("BOOL", _) => Cell::Switch(row.try_get_unchecked::<bool, _>(at)?),
            ("UUID", _) => {
                let bytes = row.try_get_unchecked::<&[u8], _>(at)?;
                <[u8; 16]>::try_from(bytes).map_or_else(|_| Cell::Unreadable("UUID".into()), Cell::uuid)
            }
            // A version, then the text.
            ("JSONB", _) => Cell::text(row.try_get_unchecked::<&[u8], _>(at)?.get(1..).unwrap_or_default()),
            ("NUMERIC" | "FLOAT4" | "FLOAT8" | "MONEY", _) => Cell::Unreadable(info.name().to_owned()),
            (_, PgTypeKind::Array(of))
                if matches!(of.name(), "TEXT" | "VARCHAR" | "CHAR" | "NAME")
                    || of.name() == "citext"
                    || matches!(of.kind(), PgTypeKind::Enum(_)) =>
            {
                Cell::List(
                    row.try_get_unchecked::<Vec<Option<String>>, _>(at)?.into_iter().flatten().collect(),
                )
            }
            ("TEXT" | "VARCHAR" | "CHAR" | "NAME" | "BYTEA" | "JSON" | "XML" | "UNKNOWN" | "citext", _)
            | (_, PgTypeKind::Enum(_)) => Cell::text(row.try_get_unchecked::<&[u8], _>(at)?),
            (name, _) => Cell::Unreadable(name.to_owned()),
        };
        cells.push((column.name().to_ascii_lowercase(), cell));
    }
    Ok(cells)
}

fn mysql_cells(row: &MySqlRow) -> Result<Cells, sqlx::Error> {
    let mut cells = Vec::with_capacity(row.columns().len());
    for (at, column) in row.columns().iter().enumerate() {
        let value = row.try_get_raw(at)?;
        let kind = value.type_info().name().to_owned();
        let cell = match kind.as_str() {
            _ if value.is_null() => Cell::Null,
            "FLOAT" | "DOUBLE" | "DATE" | "TIME" | "DATETIME" | "TIMESTAMP" | "GEOMETRY" => {
                Cell::Unreadable(kind)
            }
            "BIT" => Cell::Number(row.try_get_unchecked::<u64, _>(at)?.into()),
            "YEAR" | "BOOLEAN" => Cell::Number(row.try_get_unchecked::<i64, _>(at)?.into()),
            unsigned if unsigned.ends_with("UNSIGNED") => {
                Cell::Number(row.try_get_unchecked::<u64, _>(at)?.into())
            }
            signed if signed.ends_with("INT") => Cell::Number(row.try_get_unchecked::<i64, _>(at)?.into()),
            // Texts, binary ones too, ENUM, SET, JSON, and DECIMAL in digits.
            _ => Cell::text(row.try_get_unchecked::<&[u8], _>(at)?),
        };
        cells.push((column.name().to_ascii_lowercase(), cell));
    }
    Ok(cells)
}
