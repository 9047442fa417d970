//! Failed logins and bans in an SQLite file, that of the sessions.

use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::Database;
use crate::store::StoreError;
use crate::store::throttle::{Ban, Changes, Failures, Familiar, Order, Remembered, Subject};

/// How long an order is kept: longer than any gateway is too busy to look. In milliseconds.
const ORDERS_KEPT: u64 = 24 * 60 * 60 * 1000;

/// Failed logins and bans in an SQLite file. Cheap to clone; the clones share their connections.
#[derive(Clone, Debug)]
pub struct SqliteThrottle {
    database: Arc<Database>,
}

impl SqliteThrottle {
    /// Opens the file as [`SqliteUsers::open`](super::SqliteUsers::open) does.
    ///
    /// # Errors
    /// As there.
    pub async fn open(path: &Path) -> Result<SqliteThrottle, StoreError> {
        Ok(SqliteThrottle { database: Arc::new(Database::open(path).await?) })
    }

    /// As [`Users::close`](crate::store::Users::close) of the users.
    pub async fn close(&self) {
        self.database.close().await;
    }

    fn failed(&self, error: sqlx::Error) -> StoreError {
        self.database.failed(error)
    }

    /// Everything that counts at `now` (Unix milliseconds).
    ///
    /// # Errors
    /// What [`StoreError`] says of the store itself.
    pub async fn load(&self, now: u64) -> Result<Remembered, StoreError> {
        let pool = self.database.pool().await?;
        let read = async {
            let mut transaction = pool.begin().await?;
            Ok(Remembered {
                failures: sqlx::query("SELECT * FROM login_failures")
                    .try_map(|row| failures_of(&row))
                    .fetch_all(&mut *transaction)
                    .await?,
                familiar: sqlx::query("SELECT * FROM login_networks")
                    .try_map(|row: SqliteRow| match subject_of(&row)? {
                        Subject::Pair(account, network) => {
                            Ok(Familiar { account, network, seen_at: time(&row, "seen_at")? })
                        }
                        _ => Err(sqlx::Error::Decode("a row without account or network".into())),
                    })
                    .fetch_all(&mut *transaction)
                    .await?,
                bans: bans(&mut transaction, now).await?,
                orders: orders(&mut transaction, 0).await?,
            })
        };
        read.await.map_err(|error| self.failed(error))
    }

    /// The orders after `id`, all of them where the file has not come that far because another took its
    /// place; and the bans that have not ended at `now`.
    ///
    /// # Errors
    /// What [`StoreError`] says of the store itself.
    pub async fn orders_after(&self, id: i64, now: u64) -> Result<(Vec<Order>, Vec<Ban>), StoreError> {
        let pool = self.database.pool().await?;
        let read = async {
            let mut transaction = pool.begin().await?;
            Ok((orders(&mut transaction, id).await?, bans(&mut transaction, now).await?))
        };
        read.await.map_err(|error| self.failed(error))
    }

    /// Writes what has changed, all or nothing.
    ///
    /// # Errors
    /// What [`StoreError`] says of the store itself.
    pub async fn write(&self, changes: &Changes) -> Result<(), StoreError> {
        self.transact(async |connection| {
            if changes.everything {
                sqlx::query("DELETE FROM login_failures").execute(&mut *connection).await?;
                sqlx::query("DELETE FROM login_networks").execute(&mut *connection).await?;
            }
            for count in &changes.failures {
                let (account, network) = columns(&count.subject);
                sqlx::query("INSERT OR REPLACE INTO login_failures VALUES (?, ?, ?, ?, ?)")
                    .bind(account)
                    .bind(network)
                    .bind(i64::from(count.failures))
                    .bind(stored(count.counted_at))
                    .bind(stored(count.locked_until))
                    .execute(&mut *connection)
                    .await?;
            }
            for subject in &changes.forgiven {
                delete("DELETE FROM login_failures WHERE account = ? AND network = ?", subject, connection)
                    .await?;
            }
            for familiar in &changes.familiar {
                sqlx::query("INSERT OR REPLACE INTO login_networks VALUES (?, ?, ?)")
                    .bind(&*familiar.account)
                    .bind(familiar.network.to_string())
                    .bind(stored(familiar.seen_at))
                    .execute(&mut *connection)
                    .await?;
            }
            for (account, network) in &changes.forgotten {
                let subject = Subject::Pair(Arc::clone(account), *network);
                delete("DELETE FROM login_networks WHERE account = ? AND network = ?", &subject, connection)
                    .await?;
            }
            Ok(())
        })
        .await
    }

    /// Locks an account or a network out, or changes until when.
    ///
    /// # Errors
    /// What [`StoreError`] says of the store itself; nothing has changed then.
    pub async fn ban(&self, ban: &Ban) -> Result<(), StoreError> {
        self.transact(async |connection| {
            let (account, network) = columns(&ban.subject);
            sqlx::query("INSERT OR REPLACE INTO login_bans VALUES (?, ?, ?, ?)")
                .bind(account)
                .bind(network)
                .bind(stored(ban.since))
                .bind(ban.ends_at.map(stored))
                .execute(&mut *connection)
                .await?;
            give_order(&ban.subject, false, ban.since, connection).await
        })
        .await
    }

    /// Lifts the bans that `subject` covers and forgives the failures it covers. Answers the bans and
    /// failures that there were; where there were none, running gateways are told all the same, since
    /// they may know of failures that are not written yet.
    ///
    /// # Errors
    /// What [`StoreError`] says of the store itself; nothing has changed then.
    pub async fn lift(&self, subject: &Subject, now: u64) -> Result<(Vec<Ban>, Vec<Failures>), StoreError> {
        self.transact(async |connection| {
            let mut bans = bans(&mut *connection, now).await?;
            // A ban on a wider network stays: lifting one address must not let its neighbours in.
            bans.retain(|ban| match (subject, &ban.subject) {
                (Subject::Network(own), Subject::Network(banned)) => own.contains(banned),
                (own, banned) => own == banned,
            });
            for ban in &bans {
                let sql = "DELETE FROM login_bans WHERE account = ? AND network = ?";
                delete(sql, &ban.subject, connection).await?;
            }
            let mut failures = sqlx::query("SELECT * FROM login_failures")
                .try_map(|row| failures_of(&row))
                .fetch_all(&mut *connection)
                .await?;
            failures.retain(|count| subject.covers(&count.subject));
            for count in &failures {
                let sql = "DELETE FROM login_failures WHERE account = ? AND network = ?";
                delete(sql, &count.subject, connection).await?;
            }
            give_order(subject, true, now, connection).await?;
            Ok((bans, failures))
        })
        .await
    }

    async fn transact<T>(
        &self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let pool = self.database.pool().await?;
        // IMMEDIATE: a transaction that began as a reader could not wait for another writer.
        let done = async {
            let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
            let done = work(&mut transaction).await?;
            transaction.commit().await?;
            Ok(done)
        };
        let done = done.await.map_err(|error| self.failed(error))?;
        self.database.holds(&pool)?;
        Ok(done)
    }
}

async fn delete(
    sql: &'static str,
    subject: &Subject,
    connection: &mut SqliteConnection,
) -> Result<(), sqlx::Error> {
    let (account, network) = columns(subject);
    sqlx::query(sql).bind(account).bind(network).execute(connection).await.map(drop)
}

async fn give_order(
    subject: &Subject,
    lifted: bool,
    now: u64,
    connection: &mut SqliteConnection,
) -> Result<(), sqlx::Error> {
    let (account, network) = columns(subject);
    sqlx::query("DELETE FROM login_orders WHERE at < ?")
        .bind(stored(now.saturating_sub(ORDERS_KEPT)))
        .execute(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO login_orders (account, network, lifted, at) VALUES (?, ?, ?, ?)")
        .bind(account)
        .bind(network)
        .bind(lifted)
        .bind(stored(now))
        .execute(connection)
        .await
        .map(drop)
}

async fn bans(connection: &mut SqliteConnection, now: u64) -> Result<Vec<Ban>, sqlx::Error> {
    sqlx::query("SELECT * FROM login_bans WHERE ends_at IS NULL OR ends_at > ? ORDER BY since")
        .bind(stored(now))
        .try_map(|row: SqliteRow| {
            let ends_at: Option<i64> = row.try_get("ends_at")?;
            Ok(Ban {
                subject: subject_of(&row)?,
                since: time(&row, "since")?,
                ends_at: ends_at.map(|at| u64::try_from(at).unwrap_or(0)),
            })
        })
        .fetch_all(connection)
        .await
}

async fn orders(connection: &mut SqliteConnection, after: i64) -> Result<Vec<Order>, sqlx::Error> {
    sqlx::query(
        "SELECT * FROM login_orders WHERE id > CASE
             WHEN ?1 > (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'login_orders') THEN 0
             ELSE ?1 END
         ORDER BY id",
    )
    .bind(after)
    .try_map(|row: SqliteRow| {
        Ok(Order {
            id: row.try_get("id")?,
            subject: subject_of(&row)?,
            lifted: row.try_get("lifted")?,
            at: time(&row, "at")?,
        })
    })
    .fetch_all(connection)
    .await
}

fn failures_of(row: &SqliteRow) -> Result<Failures, sqlx::Error> {
    let failures: i64 = row.try_get("failures")?;
    Ok(Failures {
        subject: subject_of(row)?,
        failures: u32::try_from(failures.max(0)).unwrap_or(u32::MAX),
        counted_at: time(row, "counted_at")?,
        locked_until: time(row, "locked_until")?,
    })
}

fn time(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    let at: i64 = row.try_get(column)?;
    Ok(u64::try_from(at).unwrap_or(0))
}

fn stored(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

fn columns(subject: &Subject) -> (&str, String) {
    match subject {
        Subject::Account(account) => (account, String::new()),
        Subject::Network(network) => ("", network.to_string()),
        Subject::Pair(account, network) => (account, network.to_string()),
    }
}

fn subject_of(row: &SqliteRow) -> Result<Subject, sqlx::Error> {
    let (account, network): (String, String) = (row.try_get("account")?, row.try_get("network")?);
    let parsed = match network.as_str() {
        "" => None,
        text => {
            let network = text.parse::<IpNet>();
            Some(network.map_err(|error| sqlx::Error::Decode(Box::new(error)))?)
        }
    };
    Ok(match (account.as_str(), parsed) {
        ("", Some(network)) => Subject::Network(network),
        (account, None) => Subject::Account(account.into()),
        (account, Some(network)) => Subject::Pair(account.into(), network),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::throttle::account;

    async fn fresh() -> (tempfile::TempDir, SqliteThrottle) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteThrottle::open(&folder.path().join("sessions.db")).await.unwrap();
        (folder, store)
    }

    fn network(text: &str) -> Subject {
        Subject::Network(text.parse().unwrap())
    }

    fn pair(name: &str, text: &str) -> Subject {
        Subject::Pair(account(name), text.parse().unwrap())
    }

    fn count(subject: Subject, failures: u32) -> Failures {
        Failures { subject, failures, counted_at: 1_000, locked_until: 2_000 }
    }

    #[tokio::test]
    async fn what_is_written_is_loaded_and_what_is_forgiven_is_gone() {
        let (_folder, store) = fresh().await;
        let (vera, both) = (Subject::account("vera"), pair("vera", "2001:db8::/64"));
        let familiar =
            Familiar { account: account("vera"), network: "192.0.2.1/32".parse().unwrap(), seen_at: 7 };
        let first = Changes {
            failures: vec![count(vera.clone(), 3), count(both.clone(), 5), count(network("192.0.2.7/32"), 1)],
            familiar: vec![familiar.clone()],
            ..Changes::default()
        };
        store.write(&first).await.unwrap();
        store.write(&first).await.unwrap();
        let mut loaded = store.load(0).await.unwrap();
        loaded.failures.sort_by_key(|count| count.failures);
        assert_eq!(
            loaded.failures,
            [count(network("192.0.2.7/32"), 1), count(vera.clone(), 3), count(both.clone(), 5)]
        );
        assert_eq!(loaded.familiar, std::slice::from_ref(&familiar));
        let second = Changes {
            forgiven: vec![both],
            forgotten: vec![(familiar.account, familiar.network)],
            ..Changes::default()
        };
        store.write(&second).await.unwrap();
        let loaded = store.load(0).await.unwrap();
        assert_eq!((loaded.failures.len(), loaded.familiar.len()), (2, 0));
        let whole =
            Changes { everything: true, failures: vec![count(vera.clone(), 9)], ..Changes::default() };
        store.write(&whole).await.unwrap();
        assert_eq!(store.load(0).await.unwrap().failures, [count(vera, 9)]);
    }

    #[tokio::test]
    async fn a_ban_lasts_until_it_ends_or_is_lifted_and_each_change_leaves_an_order() {
        let (_folder, store) = fresh().await;
        let vera = Ban { subject: Subject::account("vera"), since: 10, ends_at: Some(100) };
        let wide = Ban { subject: network("192.0.2.0/24"), since: 20, ends_at: None };
        store.ban(&vera).await.unwrap();
        store.ban(&wide).await.unwrap();
        assert_eq!(store.load(50).await.unwrap().bans, [vera.clone(), wide.clone()]);
        assert_eq!(store.load(100).await.unwrap().bans, std::slice::from_ref(&wide));
        // One address of a network that is banned as a whole cannot be lifted by itself.
        assert_eq!(store.lift(&network("192.0.2.1/32"), 60).await.unwrap(), (vec![], vec![]));
        let counted = count(pair("vera", "192.0.2.1/32"), 5);
        store.write(&Changes { failures: vec![counted.clone()], ..Changes::default() }).await.unwrap();
        assert_eq!(store.lift(&vera.subject, 60).await.unwrap(), (vec![vera.clone()], vec![counted]));
        assert_eq!(store.load(50).await.unwrap().bans, std::slice::from_ref(&wide));

        let (orders, bans) = store.orders_after(0, 60).await.unwrap();
        let told: Vec<_> = orders.iter().map(|order| (order.subject.clone(), order.lifted)).collect();
        assert_eq!(
            told,
            [
                (vera.subject.clone(), false),
                (wide.subject.clone(), false),
                (network("192.0.2.1/32"), true),
                (vera.subject, true)
            ]
        );
        assert_eq!(bans, [wide]);
        assert_eq!(store.orders_after(orders[3].id, 60).await.unwrap().0, []);
        // Of a file that is older than what was read before, all of it is new.
        assert_eq!(store.orders_after(orders[3].id + 1, 60).await.unwrap().0, orders);
    }
}
