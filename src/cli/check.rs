//! `portcullis check`: everything that can be said of a configuration without starting.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{CliError, in_runtime, now, open_sessions, open_users, printed};
use crate::config::Filled;
use crate::config::reload::{LoadError, Loader};
use crate::config::snapshot::{Built, Snapshot, Surroundings, UserSource};
use crate::fetch::Client;
use crate::server::trust;

/// For one thing tried over the network.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Prints what is wrong, or what was found; code 2 when the file would be refused, 1 when it is sound
/// but something that it names does not answer.
pub fn run(loader: &Loader, network: bool, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let colour = io::stdout().is_terminal();
    let surroundings = Surroundings { now: now(), ..Surroundings::default() };
    let (Built { snapshot, warnings }, source) = match loader.load(&surroundings) {
        Ok(loaded) => loaded,
        Err(LoadError::Unreadable(what)) => return Err(CliError::usage(what)),
        Err(error) => {
            printed(write!(out, "{}", error.render(colour)))?;
            let LoadError::Invalid(diagnostics, ..) = &error else { return Ok(ExitCode::from(2)) };
            let errors =
                diagnostics.iter().filter(|found| found.severity == crate::config::Severity::Error).count();
            printed(writeln!(out, "\n{} is refused: {}", loader.path().display(), count(errors, "error")))?;
            return Ok(ExitCode::from(2));
        }
    };
    printed(write!(out, "{}", warnings.render(&source, colour)))?;
    let warned = warnings.iter().count();
    let policy = &snapshot.policy;
    let mut found = vec![
        count(policy.rules().len(), "rule"),
        count(policy.roles().names().len(), "role"),
        format!("{} held", count(snapshot.expectations, "expectation")),
    ];
    if warned > 0 {
        found.push(count(warned, "warning"));
    }
    printed(writeln!(out, "{} is valid: {}", loader.path().display(), found.join(", ")))?;
    if let Some(filled) = &snapshot.filled {
        printed(tell_preset(filled, &snapshot, out))?;
    }
    if snapshot.keys.signer(super::now()).is_none() {
        printed(writeln!(out, "a signing key will be made at the first start"))?;
    }
    if !network {
        return Ok(ExitCode::SUCCESS);
    }
    let all_well = in_runtime(try_network(&snapshot, out))??;
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What the preset has put into the file, and what of it made way.
fn tell_preset(filled: &Filled, snapshot: &Snapshot, out: &mut dyn Write) -> io::Result<()> {
    let name = filled.preset.name();
    writeln!(out, "preset {name} ({})", filled.preset.title())?;
    if !filled.keys.is_empty() {
        writeln!(out, "  fills in {}", filled.keys.join(", "))?;
    }
    for path in &filled.replaced {
        writeln!(out, "  leaves {path} to the file's own rule")?;
    }
    let policy = &snapshot.policy;
    let rules = policy.rules().iter().zip(&snapshot.rule_labels).zip(&snapshot.rule_positions);
    let added: Vec<_> = rules.filter(|(_, at)| at.preset().is_some()).collect();
    writeln!(out, "  adds {}", count(added.len(), "rule"))?;
    for ((rule, label), at) in added {
        writeln!(out, "    line {:<4} {:<16} {label}", at.line, policy.wording(rule.allow))?;
    }
    Ok(())
}

async fn try_network(snapshot: &Snapshot, out: &mut dyn Write) -> Result<bool, CliError> {
    let mut all_well = true;
    let mut tell = |what: String, outcome: Result<(), String>| {
        all_well &= outcome.is_ok();
        printed(match outcome {
            Ok(()) => writeln!(out, "ok      {what}"),
            Err(why) => writeln!(out, "failed  {what}: {why}"),
        })
    };
    let users = &snapshot.fixed.users;
    match users.local() {
        Some(file) if !file.exists() => {
            tell(format!("users: {users} will be made at the first start"), Ok(()))?;
        }
        None if let UserSource::Endpoint(endpoint) = users => {
            let client = Client::default();
            let reached = match timeout(TIMEOUT, client.reach(&endpoint.url)).await {
                Ok(reached) => reached,
                Err(_) => Err("it does not answer".to_owned()),
            };
            tell(format!("users by {users}, which takes connections; no login was tried"), reached)?;
        }
        _ => {
            let outcome = try_users(snapshot).await.map_err(|error| error.message);
            tell(format!("users in {users}"), outcome)?;
        }
    }
    let sessions = &snapshot.fixed.sessions;
    if Some(sessions.as_path()) != users.local() {
        if sessions.exists() {
            let opened = open_sessions(snapshot).await;
            if let Ok(sessions) = &opened {
                sessions.close().await;
            }
            let what = format!("sessions in {}", sessions.display());
            tell(what, opened.map(drop).map_err(|error| error.message))?;
        } else {
            tell(format!("sessions: {} will be made at the first start", sessions.display()), Ok(()))?;
        }
    }
    for server in snapshot.upstream.iter().flat_map(|upstream| &upstream.servers) {
        let address = &server.address;
        let connected = match timeout(TIMEOUT, TcpStream::connect(address.as_str())).await {
            Ok(outcome) => outcome.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err("it does not answer".to_owned()),
        };
        tell(format!("upstream {address}"), connected)?;
    }
    for source in &snapshot.remote_keys {
        let fetched = match timeout(TIMEOUT, trust::fetch(&source.url)).await {
            Ok(outcome) => outcome.and_then(|jwks| {
                let all = crate::token::Algorithm::ASYMMETRIC;
                let (keys, _) = crate::token::parse_jwks(&jwks, &all).map_err(|error| error.to_string())?;
                if keys.is_empty() { Err("it holds no key that can be used".to_owned()) } else { Ok(()) }
            }),
            Err(_) => Err("it does not answer".to_owned()),
        };
        tell(format!("keys of {} at {}", source.issuer, source.url), fetched)?;
    }
    Ok(all_well)
}

/// Opens the user store and asks it something; of a CMS's, has the query looked at.
async fn try_users(snapshot: &Snapshot) -> Result<(), CliError> {
    let users = open_users(snapshot).await?;
    let answer = users.ping().await;
    users.close().await;
    Ok(answer?)
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
