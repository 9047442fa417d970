//! `portcullis token`: mint a token for a user, or look into one.

use std::io::{Read, Write};
use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use super::{CliError, audit, in_runtime, load, now, open_users, printed};
use crate::config::reload::Loader;
use crate::config::snapshot::{Snapshot, Surroundings};
use crate::login::subject_of;
use crate::observe::audit::{Audit, Event};
use crate::server::surroundings_at_start;
use crate::store::Users;
use crate::token::{TokenError, decode_without_verifying};

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
    }
}

async fn issue(snapshot: &Snapshot, username: &str, ttl: Option<&str>) -> Result<String, CliError> {
    let ttl = match ttl {
        None => snapshot.ttl,
        Some(text) => parse_ttl(text, snapshot.ttl)?,
    };
    let users = open_users(snapshot).await?;
    let user = users.find(username).await;
    users.close().await;
    let user = user?.ok_or_else(|| CliError::failed(format!("there is no user '{username}'")))?;
    if user.disabled {
        return Err(CliError::failed(format!("the user '{username}' is disabled")));
    }
    let signer = snapshot.keys.signer(now()).ok_or_else(|| CliError::failed("there is no signing key"))?;
    let issued = signer
        .issue_for(&subject_of(&user, &user.id.to_string()), now(), ttl)
        .map_err(|error| CliError::failed(format!("cannot make a token: {error}")))?;
    Ok(issued.token)
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
