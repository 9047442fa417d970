//! `portcullis explain`: what the rules make of one request, asked of the policy that serves.

use std::io::Write;

use clap::Args;

use super::{CliError, now, printed};
use crate::config::snapshot::{Snapshot, split_target};
use crate::policy::{Answer, Because, Caller, Endpoint, Route};
use crate::token::TokenError;
use crate::wire::headers::HeaderRules;

/// The request and who asks.
#[derive(Args, Debug)]
pub struct Explain {
    /// The method
    method: String,
    /// The path as a client would send it, with its query
    path: String,
    /// What the answer to this role would be
    #[arg(long, conflicts_with = "token")]
    role: Option<String>,
    /// What the answer to the bearer of this token would be
    #[arg(long)]
    token: Option<String>,
    /// A header of the request
    #[arg(long = "header", value_name = "K: V")]
    headers: Vec<String>,
}

/// Prints the explanation.
///
/// # Errors
/// Code 2 for a method, header or role that cannot be meant.
pub fn run(explain: &Explain, snapshot: &Snapshot, out: &mut dyn Write) -> Result<(), CliError> {
    let policy = &snapshot.policy;
    let roles = policy.roles();
    if let Some(role) = &explain.role
        && roles.find(role).is_none()
    {
        let known = roles.names().join(", ");
        return Err(CliError::usage(format!("there is no role '{role}'; the roles are {known}")));
    }
    let overrides = overrides(explain, snapshot)?;
    let (path, query) = split_target(&explain.path);
    printed(writeln!(out, "{} {}", explain.method, explain.path))?;
    if !crate::policy::method::is_method(&explain.method)
        || matches!(explain.method.as_str(), "CONNECT" | "TRACE")
    {
        return printed(writeln!(out, "\nRefused with 400: this method never passes."));
    }
    let target = match policy.target(&explain.method, path, query, overrides.iter().map(String::as_str)) {
        Ok(target) => target,
        Err(why) => return printed(writeln!(out, "\nRefused with 400: {why}.")),
    };
    let judgement = policy.judge(&target);
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["method", "path", "letter case", "rule", "line", "needs"]);
    for reading in policy.explain(&target) {
        let (rule, line) = match reading.because {
            Because::Rule(id) | Because::QueryRule(id) => {
                let line = snapshot.rule_positions[id.index()].line_in_words();
                (snapshot.rule_labels[id.index()].clone(), line)
            }
            Because::NoRule => ("no rule".to_owned(), String::new()),
            Because::Own(Endpoint::Login) => ("the login path".to_owned(), String::new()),
            Because::Own(Endpoint::Logout) => ("the logout path".to_owned(), String::new()),
            Because::Own(Endpoint::Rotate) => ("the rotation path".to_owned(), String::new()),
            Because::Own(Endpoint::Jwks) => ("the public keys".to_owned(), String::new()),
        };
        let case = if reading.case_folded { "ignored" } else { "as sent" };
        let needs = policy.wording(reading.requirement).to_owned();
        table.add_row([reading.method, reading.path, case.to_owned(), rule, line, needs]);
    }
    printed(writeln!(out, "\nReadings:\n{table}"))?;
    let needed = match judgement.route {
        Route::Own(_) => return printed(writeln!(out, "\nThe gateway answers this itself.")),
        Route::Upstream { requirement, rule } => {
            let by = rule.map_or("no rule covers it".to_owned(), |rule| {
                format!(
                    "by '{}', line {}",
                    snapshot.rule_labels[rule.index()],
                    snapshot.rule_positions[rule.index()].line_in_words()
                )
            });
            printed(writeln!(out, "\nThe strictest counts: {} ({by}).", policy.wording(requirement)))?;
            requirement
        }
    };
    let may = |caller: Caller<'_>| policy.decide(needed, caller).is_ok();
    let mut who: Vec<&str> = Vec::new();
    if may(Caller::Anonymous) {
        who.push("everybody");
    } else {
        if may(Caller::Authenticated(None)) {
            who.push("everybody with a valid token");
        }
        who.extend(
            roles.names().iter().map(String::as_str).filter(|role| may(Caller::Authenticated(Some(role)))),
        );
    }
    let who = if who.is_empty() { "nobody".to_owned() } else { who.join(", ") };
    printed(writeln!(out, "Who may pass: {who}."))?;
    if let Some((requirement, rule)) = judgement.on_trial {
        let label = &snapshot.rule_labels[rule.index()];
        printed(writeln!(out, "On trial: '{label}' would ask for {}.", policy.wording(requirement)))?;
    }
    answer(explain, snapshot, &target, out)
}

fn answer(
    explain: &Explain,
    snapshot: &Snapshot,
    target: &crate::policy::Target<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let say = |who: &str, caller: Caller<'_>| match snapshot.policy.answer_target(target, caller) {
        Answer::Allowed => format!("{who}: allowed."),
        other => format!("{who}: {other}."),
    };
    let line = match (&explain.role, &explain.token) {
        (Some(role), _) => say(role, Caller::Authenticated(Some(role))),
        (None, Some(token)) => match snapshot.verifier.verify(token, now()) {
            Ok(claims) => {
                let role = claims.role.as_deref();
                say(
                    &format!("this token ({})", role.unwrap_or("without a role")),
                    Caller::Authenticated(role),
                )
            }
            Err(error) => {
                let told = match error {
                    TokenError::Expired => "Token expired".to_owned(),
                    TokenError::Invalid(why) => format!("Invalid token: {why}"),
                };
                let public = snapshot.policy.answer_target(target, Caller::Anonymous) == Answer::Allowed;
                if public {
                    format!("this token ({told}): allowed, as anybody is.")
                } else {
                    format!("this token: 401, {told}.")
                }
            }
        },
        (None, None) => say("anonymous", Caller::Anonymous),
    };
    printed(writeln!(out, "{line}"))
}

/// The methods that the given headers name.
fn overrides(explain: &Explain, snapshot: &Snapshot) -> Result<Vec<String>, CliError> {
    let rules = HeaderRules::new(snapshot.identity.header_names());
    let mut found = Vec::new();
    for header in &explain.headers {
        let wrong = || CliError::usage(format!("'{header}' is no header: write --header 'Name: value'"));
        let (name, value) = header.split_once(':').ok_or_else(wrong)?;
        let name = http::HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
        if rules.names_method(&name) {
            found.push(value.trim().to_owned());
        }
    }
    Ok(found)
}
