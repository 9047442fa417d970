//! `portcullis keys`: the keys that our own tokens are signed with.
//!
//! Works on the folder alone, beside a running gateway or without one: what is written there is all that
//! replicas need to agree. Not here: when which key signs (`token::ring`), the folder (`config::keyring`).

use std::io::Write;
use std::path::Path;

use clap::Subcommand;
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{CliError, audit, now, printed};
use crate::config::keyring::{self, KeyringError, NewKey, PUBLISHED_FIRST};
use crate::config::snapshot::{OwnKeys, Snapshot};
use crate::config::value::{Duration as Written, Value as _};
use crate::observe::audit::{Audit, Event, KeyChange, Reason};
use crate::token::{KeyState, jwks};

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// List the keys: which one signs, and until when the others are needed
    #[command(after_help = "Example:\n  portcullis keys list --json")]
    List {
        /// Print a JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Make a new key: it is published at once and signs a minute later
    #[command(
        after_help = "The old key goes on verifying. A running gateway needs no restart.\n\nExamples:\n  \
        portcullis keys rotate\n  portcullis keys rotate --publish-for 10m    # where files take long to reach all replicas"
    )]
    Rotate {
        /// How long it is published before it signs, such as 10m
        #[arg(long, value_name = "D", default_value = "60s")]
        publish_for: String,
        /// Let it sign at once: for an emergency, when another key must not sign any more
        #[arg(long, conflicts_with = "publish_for")]
        now: bool,
    },
    /// Take a key out of use once no token needs it
    #[command(after_help = "The file stays in the folder under a name that is no key's.\n\nA key that a \
        stranger may have:\n  portcullis keys rotate --now\n  portcullis keys retire --now KID")]
    Retire {
        /// Which key
        kid: String,
        /// Even if tokens that it signed are still valid: all of them are refused from then on
        #[arg(long)]
        now: bool,
    },
    /// Print the public keys as a JWKS, as the gateway publishes them
    #[command(after_help = "Example:\n  portcullis keys jwks > jwks.json")]
    Jwks,
}

/// Runs one of the commands.
///
/// # Errors
/// Code 2 for an unusable argument, or where the configuration has a secret and no keys; 1 for the rest.
pub fn run(command: KeysCommand, snapshot: &Snapshot, out: &mut dyn Write) -> Result<(), CliError> {
    let keys = &snapshot.keys;
    match command {
        KeysCommand::List { json: true } => {
            printed(writeln!(out, "{:#}", Value::from(rows(keys)?.iter().map(Row::json).collect::<Vec<_>>())))
        }
        KeysCommand::List { json: false } => list(keys, out),
        KeysCommand::Rotate { publish_for, now: at_once } => {
            let wait = if at_once { 0 } else { seconds(&publish_for)? };
            rotate(snapshot, wait, out)
        }
        KeysCommand::Retire { kid, now: at_once } => retire(snapshot, &kid, at_once, out),
        KeysCommand::Jwks => {
            printed(writeln!(out, "{:#}", jwks(keys.ring.keys().iter().map(|one| &one.key))))
        }
    }
}

fn folder(keys: &OwnKeys) -> Result<&Path, CliError> {
    keys.folder.as_deref().ok_or_else(|| {
        CliError::usage("tokens are signed with a secret ('tokens.keys'): to change it, change it there")
    })
}

fn seconds(text: &str) -> Result<u64, CliError> {
    let parsed = Written::<1_000, { 7 * 86_400_000 }>::parse(text);
    Ok(parsed.map_err(|why| CliError::usage(format!("--publish-for: '{text}' {why}")))?.get().as_secs())
}

fn rotate(snapshot: &Snapshot, wait: u64, out: &mut dyn Write) -> Result<(), CliError> {
    let (keys, now) = (&snapshot.keys, now());
    let folder = folder(keys)?;
    let is_first = keys.ring.signing(now).is_none();
    let signs_from = if is_first { now } else { now + wait };
    let new = NewKey { kid: keys.ring.next_kid(now), algorithm: keys.algorithm, made: now, signs_from };
    let made = keyring::create(folder, &new)?;
    let kid = made.key.kid();
    let reason = Some(Reason::KeyChange(KeyChange::Made));
    audit(snapshot, &Audit { reason, key: Some(kid), ..Audit::of(Event::KeyChange) });
    let when = match signs_from {
        from if from <= now => "signs from now on".to_owned(),
        from => format!("is published now and signs from {} on", time(from)),
    };
    printed(writeln!(out, "{kid} {when}"))?;
    if wait < PUBLISHED_FIRST && !is_first {
        return printed(writeln!(
            out,
            "whoever has not seen it yet refuses its tokens: replicas for a few seconds, others for as long \
             as they keep the public keys"
        ));
    }
    Ok(())
}

fn retire(snapshot: &Snapshot, kid: &str, at_once: bool, out: &mut dyn Write) -> Result<(), CliError> {
    let (keys, now) = (&snapshot.keys, now());
    let folder = folder(keys)?;
    let place = keys.ring.keys().iter().position(|one| one.key.kid() == kid).ok_or_else(|| {
        let kids: Vec<_> = keys.ring.keys().iter().map(|one| one.key.kid()).collect();
        CliError::failed(format!(
            "there is no key '{}'; there is {}",
            kid.escape_debug(),
            if kids.is_empty() { "none at all".to_owned() } else { kids.join(", ") }
        ))
    })?;
    let algorithm = keys.ring.keys()[place].key.algorithm();
    let others = keys.ring.keys().iter().enumerate();
    let another = others.filter(|(other, one)| *other != place && one.key.algorithm() == algorithm).count();
    let signs = keys.ring.state(place, now) == KeyState::Signing;
    if signs && another == 0 {
        return Err(CliError::failed(format!(
            "'{kid}' signs, and there is no other key: make one first, with 'portcullis keys rotate{}'",
            if at_once { " --now" } else { "" }
        )));
    }
    let needed_until = keys.ring.needed_until(place, keys.longest_token.as_secs());
    let was_used = !matches!(keys.ring.state(place, now), KeyState::Published { .. });
    let dies = match needed_until {
        _ if signs => Some("every token that it signed".to_owned()),
        Some(until) if was_used && until > now => {
            Some(format!("what it signed, valid until {} at most,", time(until)))
        }
        None if was_used => Some("every token that it signed".to_owned()),
        _ => None,
    };
    if let (Some(dies), false) = (&dies, at_once) {
        let why = if signs { "signs" } else { "is still needed" };
        return Err(CliError::failed(format!(
            "'{kid}' {why}: {dies} would be refused; '--now' does that, and is for a key that a stranger may \
             have"
        )));
    }
    keyring::retire(folder, kid, now)?;
    let reason = Some(Reason::KeyChange(KeyChange::Retired));
    audit(snapshot, &Audit { reason, key: Some(kid), ..Audit::of(Event::KeyChange) });
    match dies {
        Some(dies) => printed(writeln!(out, "{kid} is retired: {dies} is refused from now on")),
        None => printed(writeln!(out, "{kid} is retired: no valid token needs it")),
    }
}

/// A key as `list` shows it; times are Unix seconds.
struct Row {
    kid: String,
    algorithm: Option<&'static str>,
    state: &'static str,
    made: Option<u64>,
    signs_from: Option<u64>,
    signed_until: Option<u64>,
    needed_until: Option<u64>,
    retired_at: Option<u64>,
}

fn rows(keys: &OwnKeys) -> Result<Vec<Row>, CliError> {
    let now = now();
    let longest = keys.longest_token.as_secs();
    let mut rows: Vec<Row> = (0..keys.ring.keys().len())
        .map(|place| {
            let (one, state) = (&keys.ring.keys()[place], keys.ring.state(place, now));
            Row {
                kid: one.key.kid().to_owned(),
                algorithm: Some(one.key.algorithm().name()),
                state: state.code(),
                made: one.made,
                signs_from: (one.signs_from > 0).then_some(one.signs_from),
                signed_until: match state {
                    KeyState::Verifying { signed_until } => signed_until,
                    KeyState::Published { .. } | KeyState::Signing => None,
                },
                needed_until: match state {
                    KeyState::Verifying { .. } => keys.ring.needed_until(place, longest),
                    KeyState::Published { .. } | KeyState::Signing => None,
                },
                retired_at: None,
            }
        })
        .collect();
    if let Some(folder) = &keys.folder {
        rows.extend(keyring::retired(folder)?.into_iter().map(|(kid, at)| Row {
            kid,
            algorithm: None,
            state: "retired",
            made: None,
            signs_from: None,
            signed_until: None,
            needed_until: None,
            retired_at: Some(at),
        }));
    }
    Ok(rows)
}

impl Row {
    fn json(&self) -> Value {
        json!({
            "kid": self.kid,
            "algorithm": self.algorithm,
            "state": self.state,
            "made": self.made.map(time),
            "signs_from": self.signs_from.map(time),
            "signed_until": self.signed_until.map(time),
            "needed_until": self.needed_until.map(time),
            "retired_at": self.retired_at.map(time),
        })
    }
}

fn list(keys: &OwnKeys, out: &mut dyn Write) -> Result<(), CliError> {
    let rows = rows(keys)?;
    if rows.is_empty() {
        return printed(writeln!(out, "no keys yet: the first is made when the gateway starts"));
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["kid", "algorithm", "state", "made", "since", "needed until"]);
    for row in &rows {
        // Since when it is what it is; for a published key, when that ends.
        let since = row.retired_at.or(row.signed_until).or(row.signs_from);
        let text = |at: Option<u64>| at.map_or_else(|| "-".to_owned(), time);
        table.add_row([
            row.kid.escape_debug().to_string(),
            row.algorithm.unwrap_or("-").to_owned(),
            row.state.to_owned(),
            text(row.made),
            match row.state {
                "published" => format!("signs from {}", text(since)),
                _ => text(since),
            },
            text(row.needed_until),
        ]);
    }
    printed(writeln!(out, "{}", table))
}

fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

impl From<KeyringError> for CliError {
    fn from(error: KeyringError) -> CliError {
        CliError::failed(error.to_string())
    }
}
