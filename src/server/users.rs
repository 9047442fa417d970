//! Keeps an eye on the user store: whether it answers, and whether those who are signed in are still who they were.
//!
//! The gateway's own users are changed by its own commands, which end tokens themselves. A CMS changes its
//! users without a word: they are looked at again every `users.recheck`, and a change ends their tokens. Not
//! here: what is compared (`login::session`).

use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use super::handler::unix_now;
use crate::config::snapshot::{RoleSource, UserDatabase, UserSource};
use crate::login::Authority;
use crate::login::endpoint::Endpoint;
use crate::observe::audit::{Audit, Event, Reason};
use crate::observe::metrics::Store;
use crate::store::cms::{CmsUsers, Database, Roles, Settings};
use crate::store::htpasswd::HtpasswdUsers;
use crate::store::sqlite::SqliteUsers;
use crate::store::{StoreError, Users};

/// How often the store is asked whether it answers.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Users that are read from the session store at a time.
const PAGE: u32 = 500;

/// Opens the store. Another system's is connected to when it is needed.
///
/// # Errors
/// What [`StoreError`] says of the store itself.
pub async fn open(source: &UserSource) -> Result<Authority, StoreError> {
    let shown = source.to_string();
    let users: Arc<dyn Users> = match source {
        UserSource::Endpoint(endpoint) => {
            return Ok(Authority::Endpoint(Box::new(Endpoint::new((**endpoint).clone()))));
        }
        UserSource::Local(file) => Arc::new(SqliteUsers::open(file).await?),
        UserSource::Htpasswd { file, roles, default } => {
            Arc::new(HtpasswdUsers::new(file, roles, default.as_deref()))
        }
        UserSource::Table(table) => Arc::new(CmsUsers::new(Settings {
            database: match &table.database {
                UserDatabase::Sqlite(file) => Database::Sqlite(file.clone()),
                UserDatabase::Postgres(url) => Database::Postgres(url.expose().to_owned()),
                UserDatabase::MySql(url) => Database::MySql(url.expose().to_owned()),
            },
            shown,
            sql: table.query.sql.clone(),
            parameters: table.query.parameters,
            roles: roles_of(&table.roles),
        })?),
    };
    Ok(Authority::Store(users))
}

fn roles_of(source: &RoleSource) -> Roles {
    Roles::new(&source.ranked, source.map.as_deref(), source.default.as_deref())
}

/// Asks the store whether it answers, for ever.
pub async fn watch(gateway: Arc<Gateway>) {
    let mut answered = true;
    // A login of the CMS's own is not tried without somebody's password.
    let Some(users) = gateway.login.users() else {
        gateway.metrics.store(Store::Users, true);
        return;
    };
    loop {
        let outcome = users.ping().await;
        gateway.metrics.store(Store::Users, outcome.is_ok());
        match &outcome {
            Ok(()) if !answered => tracing::info!("the user store answers again"),
            // Once: the next times would say the same.
            Err(error) if answered => tracing::error!(%error, "the user store fails; nobody can log in"),
            _ => {}
        }
        answered = outcome.is_ok();
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Looks at those again who are signed in, for ever; not at users that only the gateway changes.
pub async fn recheck(gateway: Arc<Gateway>) {
    let Some(users) = gateway.login.users().filter(|users| !users.is_own()) else { return };
    gateway.login.prepare_from_sessions(PAGE, unix_now()).await;
    loop {
        tokio::time::sleep(gateway.current().snapshot.recheck).await;
        let mut missed = Missed::default();
        let round = look_again(&gateway, users, &mut missed).await;
        if let Some((user, error)) = missed.first {
            let missed = missed.users;
            tracing::warn!(user, missed, %error, "users who are signed in could not be looked at again");
        }
        if let Err(error) = round {
            // What was not looked at is looked at the next time; that a store fails is told by who watches it.
            tracing::warn!(%error, "looking at users who are signed in was broken off");
        }
    }
}

/// Whom a round could not look at, while it could others.
#[derive(Default)]
struct Missed {
    users: u64,
    /// The name of the first, and why.
    first: Option<(String, StoreError)>,
}

/// Looks at everybody once. One user's error is no reason not to look at the next, or it would hide their changes for
/// as long as it lasts.
///
/// # Errors
/// Of a store as a whole; the rest was not looked at.
async fn look_again(gateway: &Gateway, users: &dyn Users, missed: &mut Missed) -> Result<(), StoreError> {
    let sessions = &gateway.sessions;
    let Some(store) = sessions.store() else { return Ok(()) };
    let mut after = None;
    loop {
        let page = store.seen_after(after, unix_now(), PAGE).await?;
        for seen in &page {
            match sessions.look_again(users, seen, unix_now()).await {
                Ok(None) => {}
                Ok(Some(change)) => {
                    tracing::info!(
                        user = seen.username,
                        change = change.code(),
                        "a user has changed in the CMS"
                    );
                    gateway.audit(&Audit {
                        reason: Some(Reason::UserChange(change)),
                        user: Some(&seen.username),
                        ..Audit::of(Event::Revocation)
                    });
                }
                Err(error) => {
                    // Away, or slow for everybody: the others would each take as long to fail.
                    users.ping().await?;
                    missed.users += 1;
                    missed.first.get_or_insert_with(|| (seen.username.clone(), error));
                }
            }
        }
        match page.last() {
            Some(last) => after = Some(last.subject),
            None => return Ok(()),
        }
    }
}
