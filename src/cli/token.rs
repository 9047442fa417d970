//! `portcullis token`: mint a token for a user, look into one, or end some.

use std::io::{Read, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::{CliError, audit, in_runtime, load, now, open_sessions, open_users, printed};
use crate::config::reload::Loader;
use crate::config::snapshot::{Snapshot, Surroundings};
use crate::login::session::end_session;
use crate::login::subject_of;
use crate::observe::audit::{Audit, Event};
use crate::server::surroundings_at_start;
use crate::store::sessions::{Seen, Sessions, end_user, find_with_generation, last_expiry, local_subject};
use crate::token::revoked::Key;
use crate::token::{Session, TokenError, decode_without_verifying};

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Mint a token for a user, for a cron job or a test
    #[command(
        after_help = "Example:\n  curl -H \"Authorization: Bearer $(portcullis token issue robot --ttl 5m)\" …"
    )]
    Issue {
        /// Whose token
        #[arg(value_name = "NAME")]
        username: String,
        /// How long it is valid, such as 5m; at most what the configuration gives
        #[arg(long)]
        ttl: Option<String>,
    },
    /// Decode a token and say why it is valid or not
    #[command(after_help = "Example:\n  pbpaste | portcullis token inspect -")]
    Inspect {
        /// The token, or `-` for standard input
        token: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End tokens before their time; a running gateway refuses them within a second
    #[command(after_help = "Examples:\n  pbpaste | portcullis token revoke -\n  \
        portcullis token revoke --user vera\n  \
        portcullis token revoke --user auth0|5f7 --issuer https://idp.example.org/")]
    Revoke(Revoke),
}

/// What to end: exactly one of these.
#[derive(Args, Debug)]
pub struct Revoke {
    /// The token, or `-` for standard input: it and what it was rotated into, its whole login
    #[arg(required_unless_present_any = ["jti", "user"], conflicts_with_all = ["jti", "user", "issuer"])]
    token: Option<String>,
    /// The one token with this id, its claim `jti`
    #[arg(long, value_name = "ID", conflicts_with = "user")]
    jti: Option<String>,
    /// All tokens of this user that were issued until now
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The trusted issuer that the id or the user is one of: then the user is named by the id that the
    /// CMS is told, with its prefix
    #[arg(long, value_name = "ISS")]
    issuer: Option<String>,
}

/// Runs one of the commands.
///
/// # Errors
/// Code 2 for an unusable argument, 1 for the rest.
pub fn run(command: TokenCommand, loader: &Loader, out: &mut dyn Write) -> Result<(), CliError> {
    match command {
        TokenCommand::Issue { username, ttl } => {
            let (snapshot, _) = load(loader, &surroundings_at_start())?;
            let token = in_runtime(issue(&snapshot, &username, ttl.as_deref()))??;
            audit(&snapshot, &Audit { user: Some(&username), ..Audit::of(Event::TokenIssued) });
            printed(writeln!(out, "{token}"))
        }
        TokenCommand::Inspect { token, json } => {
            let (snapshot, _) = load(loader, &Surroundings::default())?;
            inspect(&snapshot, &read_token(token)?, json, out)
        }
        TokenCommand::Revoke(revoke) => {
            let (snapshot, _) = load(loader, &Surroundings::default())?;
            let revoked = in_runtime(self::revoke(&snapshot, revoke))??;
            let Some(Revoked { told, user }) = revoked else {
                return printed(writeln!(out, "the token has expired already"));
            };
            audit(&snapshot, &Audit { user: user.as_deref(), ..Audit::of(Event::Revocation) });
            printed(writeln!(out, "{told}"))
        }
    }
}

async fn issue(snapshot: &Snapshot, username: &str, ttl: Option<&str>) -> Result<String, CliError> {
    let ttl = match ttl {
        None => snapshot.ttl,
        Some(text) => parse_ttl(text, snapshot.ttl)?,
    };
    let users = open_users(snapshot).await?;
    let sessions = open_sessions(snapshot).await?;
    let found = find_with_generation(&*users, username, async |user| sessions.generation(user).await).await;
    let noted = match &found {
        // A change in the CMS is to end this token, too.
        Ok(Some((user, _))) if !users.is_own() => {
            sessions.note(Seen::of(user, snapshot.sessions_end(now()))).await
        }
        _ => Ok(()),
    };
    users.close().await;
    sessions.close().await;
    noted?;
    let (user, generation) =
        found?.ok_or_else(|| CliError::failed(format!("there is no user '{username}'")))?;
    if user.disabled {
        return Err(CliError::failed(format!("the user '{username}' is disabled")));
    }
    let signer = snapshot.keys.signer(now()).ok_or_else(|| CliError::failed("there is no signing key"))?;
    let issued = signer
        .issue(&subject_of(&user, &user.id.to_string()), &Session::begin(now(), ttl, generation))
        .map_err(|error| CliError::failed(format!("cannot make a token: {error}")))?;
    Ok(issued.token)
}

/// What was ended.
struct Revoked {
    /// A sentence.
    told: String,
    /// Whose it was, where that is known.
    user: Option<String>,
}

/// Ends what is to be ended and says what that was; nothing, where it is over by itself.
async fn revoke(snapshot: &Snapshot, revoke: Revoke) -> Result<Option<Revoked>, CliError> {
    if let Some(issuer) = &revoke.issuer
        && !snapshot.verifier.trusts(issuer)
    {
        return Err(CliError::usage(format!("--issuer: '{issuer}' is not one of 'tokens.trust'")));
    }
    let sessions = open_sessions(snapshot).await?;
    let revoked = revoke_in(snapshot, &sessions, revoke).await;
    sessions.close().await;
    revoked
}

async fn revoke_in(
    snapshot: &Snapshot,
    sessions: &dyn Sessions,
    revoke: Revoke,
) -> Result<Option<Revoked>, CliError> {
    let issuer = revoke.issuer.as_deref();
    if let Some(jti) = revoke.jti {
        let key = Key::token(issuer.unwrap_or_default(), &jti);
        // How long the token would last is not known.
        sessions.end_token(key, last_expiry(issuer.is_none(), now())).await?;
        let told = format!("the token '{}' is revoked", jti.escape_debug());
        return Ok(Some(Revoked { told, user: None }));
    }
    if let Some(name) = revoke.user {
        let (subject, name) = match issuer {
            Some(issuer) => (Key::subject(issuer, &name), name),
            None => {
                let users = open_users(snapshot).await?;
                let user = users.find(&name).await;
                users.close().await;
                let user = user?.ok_or_else(|| {
                    CliError::failed(format!(
                        "there is no user '{}'; the tokens of a removed one were ended with it",
                        name.escape_debug()
                    ))
                })?;
                (local_subject(&user.id), user.username)
            }
        };
        let told = format!("all tokens of '{}' are revoked", name.escape_debug());
        end_user(sessions, subject, issuer.is_none(), now()).await?;
        return Ok(Some(Revoked { told, user: Some(name) }));
    }
    let token = read_token(revoke.token.unwrap_or_default())?;
    let claims = match snapshot.verifier.verify(&token, now()) {
        Ok(claims) => claims,
        Err(TokenError::Expired) => return Ok(None),
        Err(TokenError::Invalid(why)) => {
            return Err(CliError::failed(format!(
                "no gateway takes this token, so there is nothing to revoke: {why}"
            )));
        }
    };
    let user = claims.username.as_ref().unwrap_or(&claims.subject).clone();
    end_session(sessions, &claims, now(), snapshot.ttl).await?;
    Ok(Some(Revoked { told: "the token is revoked".to_owned(), user: Some(user) }))
}

fn parse_ttl(text: &str, most: Duration) -> Result<Duration, CliError> {
    use crate::config::value::{Duration as Written, Value};
    let ttl = Written::<1_000, { 366 * 86_400_000 }>::parse(text)
        .map_err(|why| CliError::usage(format!("--ttl: '{text}' {why}")))?
        .get();
    if ttl > most {
        return Err(CliError::usage(format!(
            "--ttl: longer than 'tokens.ttl', which is {} seconds",
            most.as_secs()
        )));
    }
    Ok(ttl)
}

fn read_token(argument: String) -> Result<String, CliError> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut text = String::new();
    let read = std::io::stdin().lock().take(1024 * 1024).read_to_string(&mut text);
    read.map_err(|error| CliError::failed(format!("cannot read standard input: {error}")))?;
    Ok(text.trim().to_owned())
}

fn inspect(snapshot: &Snapshot, token: &str, as_json: bool, out: &mut dyn Write) -> Result<(), CliError> {
    let verdict = snapshot.verifier.verify(token, now());
    let valid = verdict.is_ok();
    let why = match &verdict {
        Ok(claims) => format!("valid until {}", time(claims.expires_at)),
        Err(TokenError::Expired) => "expired; genuine otherwise".to_owned(),
        Err(TokenError::Invalid(why)) => format!("invalid: {why}"),
    };
    let decoded = decode_without_verifying(token);
    if as_json {
        let (header, claims) = decoded.map_or((None, None), |token| (Some(token.header), Some(token.claims)));
        let body = json!({ "valid": valid, "why": why, "header": header, "claims": claims });
        printed(writeln!(out, "{body:#}"))?;
    } else {
        printed(writeln!(out, "{why}"))?;
        if let Ok(token) = decoded {
            let trust = if valid { "" } else { " (anybody could have written this)" };
            printed(writeln!(out, "\nheader{trust}: {:#}\nclaims{trust}: {:#}", token.header, token.claims))?;
        }
    }
    if valid { Ok(()) } else { Err(CliError::failed("the token is not valid")) }
}

fn time(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map_or_else(|| seconds.to_string(), |time| time.to_string())
}
