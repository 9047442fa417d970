//! `portcullis ban`: who is kept from logging in, by an operator or by failed logins.
//!
//! A change is in the database when the command says so, and a gateway that runs follows within a
//! second. Not here: what failures lock, and for how long (`login::throttle`).

use std::io::Write;

use clap::Subcommand;
use comfy_table::{ContentArrangement, Table, presets};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::user::{counted, shown};
use super::{CliError, audit, in_runtime, printed};
use crate::config::snapshot::Snapshot;
use crate::login::guard::now;
use crate::observe::audit::{Audit, Event};
use crate::store::sqlite::throttle::SqliteThrottle;
use crate::store::throttle::{Ban, Remembered, Subject};
use crate::store::{Username, folded};

/// What can be done about bans.
#[derive(Debug, Subcommand)]
pub enum BanCommand {
    /// List who cannot log in now: bans, and locks after failed logins
    #[command(after_help = "Example:\n  portcullis ban list --json | jq '.[] | select(.by == \"failures\")'")]
    List {
        /// Failed logins that lock nobody now as well
        #[arg(long)]
        all: bool,
        /// Print a JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Keep an account, an address or a network from logging in
    #[command(
        after_help = "Tokens that are out stay good. A ban on somebody who is banned replaces the one \
        before.\n\nExamples:\n  portcullis ban add vera\n  portcullis ban add 203.0.113.0/24 --for 7d"
    )]
    Add {
        /// A user name (there need not be such a user), an address or a network
        #[arg(value_name = "WHO")]
        who: String,
        /// For how long, such as 1h or 7d; for good when left out
        #[arg(long = "for", value_name = "D")]
        duration: Option<String>,
        /// Take WHO for a user name, whatever it looks like
        #[arg(long)]
        account: bool,
    },
    /// Lift a ban, and forgive the failed logins of an account, an address or a network
    #[command(after_help = "Examples:\n  portcullis ban lift vera\n  portcullis ban lift 2001:db8::/32")]
    Lift {
        /// As `ban list` shows it: a user name, an address or a network
        #[arg(value_name = "WHO")]
        who: String,
        /// Take WHO for a user name, whatever it looks like
        #[arg(long)]
        account: bool,
    },
}

/// Runs one of the commands.
///
/// # Errors
/// Code 2 for what is neither a name nor an address, and for an unusable duration; code 1 for the rest.
pub fn run(command: BanCommand, snapshot: &Snapshot, out: &mut dyn Write) -> Result<(), CliError> {
    // As logins are counted: a CMS may take several spellings for one user.
    let spelling: Spelling = if snapshot.fixed.users.local().is_some() { str::to_owned } else { folded };
    let change = match &command {
        BanCommand::List { .. } => None,
        BanCommand::Add { who, account, .. } => Some((Event::Ban, subject(who, *account, spelling)?)),
        BanCommand::Lift { who, account } => Some((Event::Lift, subject(who, *account, spelling)?)),
    };
    in_runtime(async {
        let store = SqliteThrottle::open(&snapshot.fixed.sessions).await?;
        let outcome = run_on(command, spelling, &store, out).await;
        store.close().await;
        outcome
    })??;
    if let Some((event, subject)) = change {
        let (user, network) = parts(&subject);
        audit(snapshot, &Audit { user, network: network.as_deref(), ..Audit::of(event) });
    }
    Ok(())
}

/// How the names of accounts are written.
type Spelling = fn(&str) -> String;

async fn run_on(
    command: BanCommand,
    spelling: Spelling,
    store: &SqliteThrottle,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let now = now();
    match command {
        BanCommand::List { all, json } => {
            let rows = rows(&store.load(now).await?, all, now);
            printed(if json { list_json(&rows, out) } else { list_table(&rows, all, out) })
        }
        BanCommand::Add { who, duration, account } => {
            let subject = subject(&who, account, spelling)?;
            let ends_at = match duration {
                None => None,
                Some(text) => Some(now.saturating_add(milliseconds(&text)?)),
            };
            store.ban(&Ban { subject: subject.clone(), since: now, ends_at }).await?;
            let until =
                ends_at.map_or("until it is lifted".to_owned(), |at| format!("until {}", instant(at)));
            printed(writeln!(out, "{} cannot log in {until}", named(&subject)))
        }
        BanCommand::Lift { who, account } => {
            let subject = subject(&who, account, spelling)?;
            let (bans, failures) = store.lift(&subject, now).await?;
            let counts = store.load(now).await?;
            // What is still in the way is easily overlooked.
            let wider: Vec<_> = counts.bans.iter().filter(|ban| ban.subject.covers(&subject)).collect();
            let name = named(&subject);
            let done = match (bans.len(), failures.len()) {
                (0, 0) => format!("nothing was held against {name}"),
                (bans, failures) => {
                    let (bans, failures) = (counted(bans, "ban"), counted(failures, "failure count"));
                    let outcome =
                        if wider.is_empty() { format!("{name} can log in again: ") } else { String::new() };
                    format!("{outcome}lifted {bans}, forgave {failures}")
                }
            };
            printed(writeln!(out, "{done}"))?;
            for ban in wider {
                printed(writeln!(out, "{name} cannot log in yet: {} is banned still", named(&ban.subject)))?;
            }
            Ok(())
        }
    }
}

/// One line of the list.
struct Row {
    subject: Subject,
    /// `None`: a ban.
    failures: Option<u32>,
    since: u64,
    until: Option<u64>,
}

fn rows(remembered: &Remembered, all: bool, now: u64) -> Vec<Row> {
    let bans = remembered.bans.iter().map(|ban| Row {
        subject: ban.subject.clone(),
        failures: None,
        since: ban.since,
        until: ban.ends_at,
    });
    let mut failures: Vec<&_> =
        remembered.failures.iter().filter(|count| all || count.locked_until > now).collect();
    failures.sort_by(|a, b| b.locked_until.cmp(&a.locked_until).then_with(|| a.subject.cmp(&b.subject)));
    let failures = failures.into_iter().map(|count| Row {
        subject: count.subject.clone(),
        failures: Some(count.failures),
        since: count.counted_at,
        until: Some(count.locked_until),
    });
    bans.chain(failures).collect()
}

/// Account and network, as they are shown.
fn parts(subject: &Subject) -> (Option<&str>, Option<String>) {
    match subject {
        Subject::Account(account) => (Some(account), None),
        Subject::Network(network) => (None, Some(brief(network))),
        Subject::Pair(account, network) => (Some(account), Some(brief(network))),
    }
}

/// A network, or the address that is all of it.
fn brief(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

fn named(subject: &Subject) -> String {
    match parts(subject) {
        (Some(account), Some(network)) => format!("`{}` from {network}", shown(account)),
        (Some(account), None) => format!("`{}`", shown(account)),
        (None, network) => network.unwrap_or_default(),
    }
}

fn list_json(rows: &[Row], out: &mut dyn Write) -> std::io::Result<()> {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let (account, network) = parts(&row.subject);
            json!({
                "account": account,
                "network": network,
                "by": if row.failures.is_some() { "failures" } else { "ban" },
                "failures": row.failures,
                "since": instant(row.since),
                "until": row.until.filter(|until| *until > 0).map(instant),
            })
        })
        .collect();
    serde_json::to_writer_pretty(&mut *out, &rows)?;
    writeln!(out)
}

fn list_table(rows: &[Row], all: bool, out: &mut dyn Write) -> std::io::Result<()> {
    if rows.is_empty() {
        return writeln!(
            out,
            "nobody is locked out{}",
            if all { ", and no login has failed of late" } else { "" }
        );
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["account", "network", "by", "since", "until"]);
    for row in rows {
        let (account, network) = parts(&row.subject);
        table.add_row([
            account.map_or("any".to_owned(), shown),
            network.unwrap_or_else(|| "any".to_owned()),
            row.failures.map_or("ban".to_owned(), |failures| counted(failures as usize, "failure")),
            instant(row.since),
            match row.until {
                None => "it is lifted".to_owned(),
                Some(0) => String::new(),
                Some(until) => instant(until),
            },
        ]);
    }
    writeln!(out, "{table}")
}

fn subject(who: &str, account: bool, spelling: Spelling) -> Result<Subject, CliError> {
    let network = who.parse::<IpNet>().ok().or_else(|| {
        let address: std::net::IpAddr = who.parse().ok()?;
        Some(IpNet::from(address.to_canonical()))
    });
    // A mistyped address must not become the ban of a user whom nobody has.
    let digits = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '/');
    let like_an_address =
        who.contains(['.', ':']) && who.chars().all(digits) && who.contains(|c: char| c.is_ascii_digit());
    match network {
        Some(network) if !account => Ok(Subject::Network(network.trunc())),
        None if like_an_address && !account => Err(CliError::usage(format!(
            "'{who}' is no address and no network; if it is the name of a user, say --account"
        ))),
        _ => match Username::parse(who) {
            Ok(name) => Ok(Subject::account(&spelling(name.as_str()))),
            Err(error) => Err(CliError::usage(error.to_string())),
        },
    }
}

fn milliseconds(text: &str) -> Result<u64, CliError> {
    use crate::config::value::{Duration, Value};
    let duration = Duration::<1_000, { 3660 * 86_400_000 }>::parse(text)
        .map_err(|why| CliError::usage(format!("--for: '{text}' {why}")))?;
    Ok(u64::try_from(duration.get().as_millis()).unwrap_or(u64::MAX))
}

/// RFC 3339 in UTC, to the second.
fn instant(milliseconds: u64) -> String {
    super::user::instant(i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX))
}
