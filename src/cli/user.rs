//! `portcullis user`: the people who may log in, in a store that the caller has opened.
//!
//! A password is asked for without echo or read from standard input, never taken from an argument,
//! where every process of the machine could read it.

use super::{CliError, printed};
use crate::{
    config::recipe::HashPolicy,
    login::{
        body::{NotAnObject, json_members},
        hash::StoredHash,
        password::{Hasher, MAX_PASSWORD_BYTES, NewPassword, Password},
    },
    observe::audit::UserChange,
    store::{LocalUsers, NewUser, UserRecord, Username},
};
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    thread,
};
use tokio::task::JoinSet;
use zeroize::Zeroize;

/// Longest `--name` and `--email`, in bytes.
const MAX_DETAIL_BYTES: usize = 256;

/// Longest line of an import, in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// What to do with the local users.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user who can log in with a role
    #[command(after_help = "Examples:\n  portcullis user add vera --role Viewer\n  \
        pwgen 20 1 | portcullis user add robot --role Editor --password-stdin")]
    Add {
        /// The name to log in with: 1 to 128 bytes, letter case makes no difference
        #[arg(value_name = "NAME")]
        username: String,
        /// One of the `roles` of the configuration
        #[arg(long)]
        role: String,
        /// The name for people to read
        #[arg(long)]
        name: Option<String>,
        /// The e-mail address
        #[arg(long)]
        email: Option<String>,
        /// Read the password from standard input instead of asking for it
        #[arg(long)]
        password_stdin: bool,
    },
    /// List all users
    #[command(after_help = "Example:\n  portcullis user list --json | jq '.[] | select(.disabled)'")]
    List {
        /// Print a JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Give a user another password
    #[command(after_help = "Example:\n  portcullis user passwd vera")]
    Passwd {
        /// Whose password
        #[arg(value_name = "NAME")]
        username: String,
        /// Read the password from standard input instead of asking for it
        #[arg(long)]
        password_stdin: bool,
    },
    /// Give a user another role
    #[command(after_help = "Example:\n  portcullis user role vera Editor")]
    Role {
        /// Whose role
        #[arg(value_name = "NAME")]
        username: String,
        /// One of the `roles` of the configuration
        role: String,
    },
    /// Keep a user from logging in
    #[command(after_help = "Example:\n  portcullis user disable vera")]
    Disable {
        /// Who
        #[arg(value_name = "NAME")]
        username: String,
    },
    /// Let a disabled user log in again
    #[command(after_help = "Example:\n  portcullis user enable vera")]
    Enable {
        /// Who
        #[arg(value_name = "NAME")]
        username: String,
    },
    /// Remove a user for good; their id is never given to another one
    #[command(after_help = "Example:\n  portcullis user remove vera")]
    Remove {
        /// Who
        #[arg(value_name = "NAME")]
        username: String,
    },
    /// Add users from JSON lines: all of them, or none when a line is wrong
    #[command(after_help = "Each line is an object with `username`, `role`, either `password` or \
        `password_hash` (of this or another system, see docs/password-hashes.md; with `password_salt` where the \
        salt has a column of its own), and optionally `name`, `email` and `disabled`. A hash of another \
        system is replaced by Argon2id when its user logs in.\n\n\
        Example:\n  portcullis user import users.jsonl")]
    Import {
        /// The file, or `-` for standard input
        file: PathBuf,
    },
    /// Print all users as JSON lines, as `import` takes them
    #[command(after_help = "Example:\n  (umask 077; portcullis user export --with-hashes > users.jsonl)")]
    Export {
        /// Put the password hashes in: keep such a file secret
        #[arg(long)]
        with_hashes: bool,
    },
}

impl UserCommand {
    /// What it changes if it succeeds, for the audit log, and whose name that concerns.
    pub fn change(&self) -> (Option<UserChange>, Option<String>) {
        let (change, username) = match self {
            Self::Add { username, .. } => (UserChange::Added, username),
            Self::Passwd { username, .. } => (UserChange::Password, username),
            Self::Role { username, .. } => (UserChange::Role, username),
            Self::Disable { username } => (UserChange::Disabled, username),
            Self::Enable { username } => (UserChange::Enabled, username),
            Self::Remove { username } => (UserChange::Removed, username),
            Self::Import { .. } => return (Some(UserChange::Imported), None),
            Self::List { .. } | Self::Export { .. } => return (None, None),
        };
        (Some(change), Some(username.clone()))
    }
}

/// Runs one of the commands and prints what it did to `out`.
///
/// `roles` are the configured ones, `hashes` says which weak ones an import may hold. Needs a Tokio runtime; may ask for a password on the terminal and
/// shows a progress bar on standard error when that is one.
///
/// # Errors
/// Code 2 for a name, role or password that no user can have, code 1 for the rest; nothing has been
/// changed then.
pub async fn run(
    command: UserCommand,
    users: &dyn LocalUsers,
    roles: &[String],
    hashes: &HashPolicy,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    run_with(command, users, roles, hashes, out, &mut Process).await
}

/// Where passwords and imports come from: a seam for the tests.
trait Input {
    fn stdin_is_terminal(&self) -> bool;
    fn stdin(&mut self) -> Box<dyn BufRead + '_>;
    fn ask_hidden(&mut self, prompt: &str) -> io::Result<String>;
}

struct Process;

impl Input for Process {
    fn stdin_is_terminal(&self) -> bool {
        io::stdin().is_terminal()
    }

    fn stdin(&mut self) -> Box<dyn BufRead + '_> {
        Box::new(io::stdin().lock())
    }

    fn ask_hidden(&mut self, prompt: &str) -> io::Result<String> {
        rpassword::prompt_password(prompt)
    }
}

async fn run_with(
    command: UserCommand,
    users: &dyn LocalUsers,
    roles: &[String],
    hashes: &HashPolicy,
    out: &mut dyn Write,
    input: &mut dyn Input,
) -> Result<(), CliError> {
    match command {
        UserCommand::Add { username, role, name, email, password_stdin } => {
            // Everything that can be wrong comes before the password is asked for.
            let username = Username::parse(&username).map_err(|error| CliError::usage(error.to_string()))?;
            known_role(&role, roles).map_err(CliError::usage)?;
            let name = detail("name", name).map_err(CliError::usage)?;
            let email = detail("email", email).map_err(CliError::usage)?;
            if let Some(taken) = users.find(username.as_str()).await? {
                return Err(CliError::failed(format!("there is a user `{}` already", taken.username)));
            }
            let password = new_password(username.as_str(), password_stdin, input)?;
            let password_hash = hasher().hash(password).await.map_err(failed)?;
            let user =
                NewUser { username, password_hash, password_salt: None, role, name, email, disabled: false };
            let added = users.add(user).await?;
            printed(writeln!(out, "added {} (id {}, role {})", added.username, added.id, added.role))
        }
        UserCommand::List { json } => {
            let all = users.list().await?;
            printed(if json { list_json(&all, out) } else { list_table(&all, out) })
        }
        UserCommand::Passwd { username, password_stdin } => {
            let user = existing(users, &username).await?;
            let password = new_password(&user.username, password_stdin, input)?;
            let hash = hasher().hash(password).await.map_err(failed)?;
            users.set_password(&user.username, &hash).await?;
            printed(writeln!(out, "{} has a new password", user.username))
        }
        UserCommand::Role { username, role } => {
            known_role(&role, roles).map_err(CliError::usage)?;
            let user = existing(users, &username).await?;
            users.set_role(&user.username, &role).await?;
            printed(writeln!(out, "{} is {role} now (was {})", user.username, user.role))
        }
        UserCommand::Disable { username } => {
            let user = existing(users, &username).await?;
            users.set_disabled(&user.username, true).await?;
            printed(writeln!(out, "{} is disabled", user.username))
        }
        UserCommand::Enable { username } => {
            let user = existing(users, &username).await?;
            users.set_disabled(&user.username, false).await?;
            printed(writeln!(out, "{} is enabled", user.username))
        }
        UserCommand::Remove { username } => {
            let user = existing(users, &username).await?;
            users.remove(&user.username).await?;
            printed(writeln!(out, "removed {} (id {})", user.username, user.id))
        }
        UserCommand::Import { file } => {
            let lines = if file == Path::new("-") {
                read_lines(input.stdin(), roles, hashes)
            } else {
                let opened = File::open(&file).map_err(|error| unreadable(&file, &error))?;
                read_lines(BufReader::new(opened), roles, hashes)
            }
            .map_err(|error| unreadable(&file, &error))?;
            let imported = import(lines, users).await?;
            printed(writeln!(out, "imported {}", counted(imported, "user")))
        }
        UserCommand::Export { with_hashes } => {
            let all = users.list().await?;
            printed(all.iter().try_for_each(|user| writeln!(out, "{}", exported(user, with_hashes))))
        }
    }
}

fn hasher() -> Hasher {
    // Only to make hashes, so that it does not matter which it believes.
    Hasher::new(thread::available_parallelism().map_or(1, usize::from), HashPolicy::default())
}

fn failed(error: impl std::error::Error) -> CliError {
    CliError::failed(error.to_string())
}

fn unreadable(file: &Path, error: &io::Error) -> CliError {
    CliError::failed(format!("cannot read {}: {error}", file.display()))
}

pub(super) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

async fn existing(users: &dyn LocalUsers, username: &str) -> Result<UserRecord, CliError> {
    if let Some(user) = users.find(username).await? {
        return Ok(user);
    }
    let all = users.list().await?;
    let nearest = nearest(username, all.iter().map(|user| user.username.as_str()));
    Err(CliError::failed(format!("there is no user `{}`{}", username.escape_debug(), did_you_mean(nearest))))
}

fn known_role(role: &str, roles: &[String]) -> Result<(), String> {
    if roles.iter().any(|known| known == role) {
        return Ok(());
    }
    let nearest = nearest(role, roles.iter().map(String::as_str));
    let hint = match nearest {
        Some(_) => did_you_mean(nearest),
        None => format!(" (the configuration has {})", roles.join(", ")),
    };
    Err(format!("unknown role `{}`{hint}", role.escape_debug()))
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

/// The known name that is so near to `given` that a slip of the fingers explains it.
fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    known
        .map(|name| (strsim::damerau_levenshtein(&given, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 2 && *distance * 2 < name.chars().count())
        .min()
        .map(|(_, name)| name)
}

/// A `name` or `email` that can stand in a header and on a terminal. An empty one is none.
fn detail(what: &str, value: Option<String>) -> Result<Option<String>, String> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    if value.len() > MAX_DETAIL_BYTES {
        return Err(format!("`{what}` has at most {MAX_DETAIL_BYTES} bytes"));
    }
    if value.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        return Err(format!("`{what}` cannot contain control characters or line breaks"));
    }
    // No token can be made with one: its user could never log in.
    if value.trim().len() != value.len() {
        return Err(format!("`{what}` cannot begin or end with a blank"));
    }
    Ok(Some(value))
}

/// Asks twice on a terminal, else reads standard input; one line break at its end is cut.
fn new_password(username: &str, from_stdin: bool, input: &mut dyn Input) -> Result<NewPassword, CliError> {
    let password = if input.stdin_is_terminal() {
        let mut ask = |prompt: String| match input.ask_hidden(&prompt) {
            Ok(typed) => Ok(Password::new(typed.into_bytes())),
            Err(error) => Err(CliError::failed(format!("cannot read the password: {error}"))),
        };
        let password = ask(format!("New password for {username}: "))?;
        if ask("The same again: ".into())?.as_bytes() != password.as_bytes() {
            return Err(CliError::failed("the two passwords differ, nothing was changed"));
        }
        password
    } else if from_stdin {
        let mut bytes = Vec::with_capacity(MAX_PASSWORD_BYTES + 3);
        // Two bytes for a line break, and one more to tell what is too long from what just fits.
        let limit = MAX_PASSWORD_BYTES as u64 + 3;
        let read = input.stdin().take(limit).read_to_end(&mut bytes);
        read.map_err(|error| CliError::failed(format!("cannot read the password: {error}")))?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        Password::new(bytes)
    } else {
        return Err(CliError::usage(
            "there is no terminal to ask for the password on: pipe it in and add --password-stdin",
        ));
    };
    NewPassword::parse(password).map_err(|rule| CliError::usage(rule.to_string()))
}

fn list_json(users: &[UserRecord], out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<Value> = users
        .iter()
        .map(|user| {
            json!({
                "id": Value::from(&user.id),
                "username": user.username,
                "role": user.role,
                "name": user.name,
                "email": user.email,
                "disabled": user.disabled,
                "created_at": instant(user.created_at),
                "changed_at": instant(user.changed_at),
            })
        })
        .collect();
    serde_json::to_writer_pretty(&mut *out, &rows)?;
    writeln!(out)
}

fn list_table(users: &[UserRecord], out: &mut dyn Write) -> io::Result<()> {
    if users.is_empty() {
        return writeln!(out, "no users yet: add one with `portcullis user add NAME --role ROLE`");
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["id", "username", "role", "name", "email", "state", "changed"]);
    for user in users {
        table.add_row([
            user.id.to_string(),
            shown(&user.username),
            shown(&user.role),
            user.name.as_deref().map(shown).unwrap_or_default(),
            user.email.as_deref().map(shown).unwrap_or_default(),
            if user.disabled { "disabled" } else { "enabled" }.to_owned(),
            instant(user.changed_at),
        ]);
    }
    writeln!(out, "{table}")
}

/// What stands in the file may not be what was checked here; a terminal must not take it for orders.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// RFC 3339 in UTC; the bare number for what no calendar has.
pub(super) fn instant(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
}

fn exported(user: &UserRecord, with_hashes: bool) -> Value {
    let mut line = json!({ "username": user.username, "role": user.role });
    for (field, value) in [("name", &user.name), ("email", &user.email)] {
        if let Some(value) = value {
            line[field] = json!(value);
        }
    }
    line["disabled"] = json!(user.disabled);
    if with_hashes {
        line["password_hash"] = json!(user.password_hash);
        if let Some(salt) = &user.password_salt {
            line["password_salt"] = json!(salt);
        }
    }
    line
}

/// A sound line of an import.
struct Draft {
    username: Username,
    role: String,
    name: Option<String>,
    email: Option<String>,
    disabled: bool,
    secret: Secret,
}

enum Secret {
    Hash { hash: String, salt: Option<String> },
    Password(NewPassword),
}

/// Reads an import whole. Each line that is not blank gives its number, from 1, and what is in it or
/// what is wrong with it.
fn read_lines(
    mut source: impl BufRead,
    roles: &[String],
    hashes: &HashPolicy,
) -> io::Result<Vec<(usize, Result<Draft, String>)>> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        let read = (&mut source).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        if read > MAX_LINE_BYTES {
            // Not a file of lines, most likely: what would follow is no help to anybody.
            let what = format!("is longer than {} KiB; what follows was not read", MAX_LINE_BYTES / 1024);
            lines.push((number, Err(what)));
            break;
        }
        let text = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1).unwrap_or(&line);
        let text = text.trim_ascii_end();
        if !text.is_empty() {
            lines.push((number, draft(text, roles, hashes)));
        }
        // The line may hold a password.
        line.zeroize();
    }
    Ok(lines)
}

/// Reads a line, without quoting any value of it in an error.
fn draft(line: &[u8], roles: &[String], hashes: &HashPolicy) -> Result<Draft, String> {
    let mut members = json_members(line, None).map_err(|error| match error {
        NotAnObject::Syntax { column } => format!("is not valid JSON (column {column})"),
        NotAnObject::Other => "is not a JSON object".to_owned(),
    })?;
    let known =
        ["username", "role", "name", "email", "disabled", "password", "password_hash", "password_salt"];
    for (at, (name, _)) in members.iter().enumerate() {
        if !known.contains(&name.as_str()) {
            let hint = did_you_mean(nearest(name, known.into_iter()));
            return Err(format!("unknown field `{}`{hint}", name.escape_debug()));
        }
        if members[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(format!("the field `{name}` is there more than once"));
        }
    }
    let mut take = |name: &str| {
        let at = members.iter().position(|(key, value)| key == name && !value.is_null())?;
        Some(members.swap_remove(at).1)
    };
    let text = |name: &str, value: Option<Value>| match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{name}` is not a string")),
    };
    // First of all, so that it is zeroed whatever else is wrong.
    let password = text("password", take("password"))?.map(|text| Password::new(text.into_bytes()));
    let password_hash = text("password_hash", take("password_hash"))?;
    let password_salt = text("password_salt", take("password_salt"))?;

    let username = text("username", take("username"))?.ok_or("`username` is missing")?;
    let username = Username::parse(&username).map_err(|error| error.to_string())?;
    let role = text("role", take("role"))?.ok_or("`role` is missing")?;
    known_role(&role, roles)?;
    let name = detail("name", text("name", take("name"))?)?;
    let email = detail("email", text("email", take("email"))?)?;
    let disabled = match take("disabled") {
        None => false,
        Some(Value::Bool(disabled)) => disabled,
        Some(_) => return Err("`disabled` is neither true nor false".into()),
    };
    let secret = match (password, password_hash) {
        (Some(_), None) if password_salt.is_some() => {
            return Err("has a `password_salt` without a `password_hash`".into());
        }
        (Some(password), None) => {
            Secret::Password(NewPassword::parse(password).map_err(|rule| rule.to_string())?)
        }
        (None, Some(hash)) => {
            StoredHash::parse(&hash, password_salt.as_deref(), hashes).map_err(|error| error.to_string())?;
            Secret::Hash { hash, salt: password_salt }
        }
        (Some(_), Some(_)) => return Err("has both `password` and `password_hash`".into()),
        (None, None) => return Err("has neither `password` nor `password_hash`".into()),
    };
    Ok(Draft { username, role, name, email, disabled, secret })
}

/// Adds all or, with every bad line in the error, none; answers how many.
async fn import(
    lines: Vec<(usize, Result<Draft, String>)>,
    users: &dyn LocalUsers,
) -> Result<usize, CliError> {
    let total = lines.len();
    // Folded as the store folds: ASCII only.
    let fold = |name: &str| name.to_ascii_lowercase();
    let mut taken: HashMap<String, Option<usize>> =
        users.list().await?.iter().map(|user| (fold(&user.username), None)).collect();
    let mut drafts = Vec::new();
    let mut problems = Vec::new();
    for (number, line) in lines {
        match line {
            Err(what) => problems.push(format!("line {number}: {what}")),
            Ok(draft) => match taken.insert(fold(draft.username.as_str()), Some(number)) {
                None => drafts.push(draft),
                Some(None) => {
                    problems.push(format!("line {number}: there is a user `{}` already", draft.username));
                }
                Some(Some(earlier)) => {
                    problems.push(format!("line {number}: the same user as in line {earlier}"));
                }
            },
        }
    }
    if !problems.is_empty() {
        let wrong = counted(problems.len(), "line");
        problems.push(format!("nothing was imported: {wrong} of {total} cannot be used"));
        return Err(CliError::failed(problems.join("\n")));
    }
    let users_to_add = hashed(drafts).await?;
    users.import(users_to_add).await?;
    Ok(total)
}

/// Hashes what came as a password, on all cores, with a progress bar where somebody watches.
async fn hashed(drafts: Vec<Draft>) -> Result<Vec<NewUser>, CliError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let hasher = hasher();
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(drafts.len() as u64).with_style(style).with_message("hashing passwords");

    let mut order = Vec::with_capacity(drafts.len());
    let mut running: JoinSet<(usize, Result<String, _>)> = JoinSet::new();
    let mut hashes: Vec<Option<(String, Option<String>)>> = vec![None; drafts.len()];
    for (at, draft) in drafts.into_iter().enumerate() {
        match draft.secret {
            Secret::Hash { hash, salt } => {
                hashes[at] = Some((hash, salt));
                bar.inc(1);
            }
            Secret::Password(password) => {
                let hasher = hasher.clone();
                running.spawn(async move { (at, hasher.hash(password).await) });
            }
        }
        order.push((draft.username, draft.role, draft.name, draft.email, draft.disabled));
        // No more than can be computed at once, or the hasher would turn the rest away.
        while running.len() >= cores {
            collect(running.join_next().await, &mut hashes, &bar)?;
        }
    }
    while !running.is_empty() {
        collect(running.join_next().await, &mut hashes, &bar)?;
    }
    bar.finish_and_clear();

    order
        .into_iter()
        .zip(hashes)
        .map(|((username, role, name, email, disabled), hash)| {
            let (password_hash, password_salt) =
                hash.ok_or_else(|| CliError::failed("a password was not hashed"))?;
            Ok(NewUser { username, password_hash, password_salt, role, name, email, disabled })
        })
        .collect()
}

type Hashed = Result<(usize, Result<String, crate::login::password::HashError>), tokio::task::JoinError>;

fn collect(
    done: Option<Hashed>,
    hashes: &mut [Option<(String, Option<String>)>],
    bar: &ProgressBar,
) -> Result<(), CliError> {
    if let Some(done) = done {
        let (at, hash) = done.map_err(|_| CliError::failed("password hashing was interrupted"))?;
        hashes[at] = Some((hash.map_err(failed)?, None));
        bar.inc(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        login::password::Verdict,
        store::{Users, sqlite::SqliteUsers},
    };
    use clap::Parser;
    use std::collections::VecDeque;

    #[derive(Parser)]
    struct Arguments {
        #[command(subcommand)]
        command: UserCommand,
    }

    /// What is typed on a terminal, or else piped in.
    struct Script {
        piped: Option<Vec<u8>>,
        typed: VecDeque<String>,
    }

    impl Input for Script {
        fn stdin_is_terminal(&self) -> bool {
            self.piped.is_none()
        }

        fn stdin(&mut self) -> Box<dyn BufRead + '_> {
            Box::new(self.piped.as_deref().unwrap_or_default())
        }

        fn ask_hidden(&mut self, _prompt: &str) -> io::Result<String> {
            self.typed.pop_front().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn piped(bytes: &[u8]) -> Script {
        Script { piped: Some(bytes.to_vec()), typed: VecDeque::new() }
    }

    fn typed(lines: &[&str]) -> Script {
        Script { piped: None, typed: lines.iter().map(ToString::to_string).collect() }
    }

    struct Shop {
        users: SqliteUsers,
        _folder: tempfile::TempDir,
    }

    impl Shop {
        async fn open() -> Shop {
            let folder = tempfile::tempdir().unwrap();
            let users = SqliteUsers::open(&folder.path().join("users.db")).await.unwrap();
            Shop { users, _folder: folder }
        }

        async fn with_vera() -> Shop {
            let shop = Shop::open().await;
            shop.run(&["add", "vera", "--role", "Viewer", "--password-stdin"], piped(b"correct horse\n"))
                .await
                .unwrap();
            shop
        }

        async fn run(&self, arguments: &[&str], mut input: Script) -> Result<String, CliError> {
            let command =
                Arguments::try_parse_from([&["user"], arguments].concat()).map_err(failed).unwrap().command;
            let roles = ["Viewer", "Editor", "SuperAdmin"].map(str::to_owned);
            let mut out = Vec::new();
            run_with(command, &self.users, &roles, &HashPolicy::default(), &mut out, &mut input).await?;
            Ok(String::from_utf8(out).unwrap())
        }

        async fn log_in(&self, username: &str, password: &str) -> bool {
            let user = self.users.find(username).await.unwrap();
            let password = Password::new(password.as_bytes().to_vec());
            hasher().verify(password, username, user.as_ref()).await == Ok(Verdict::Matches)
        }
    }

    #[test]
    fn the_commands_are_well_formed_and_each_has_an_example() {
        let command = <Arguments as clap::CommandFactory>::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            let help = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("portcullis user"), "{}", subcommand.get_name());
        }
    }

    #[tokio::test]
    async fn a_user_goes_through_life() {
        let shop = Shop::open().await;
        let add = ["add", "Vera", "--role", "Viewer", "--name", "Vera V", "--email", "v@example.org"];
        assert_eq!(
            shop.run(&add, typed(&["correct horse", "correct horse"])).await.unwrap(),
            "added Vera (id 1, role Viewer)\n"
        );
        assert!(shop.log_in("vera", "correct horse").await);

        let table = shop.run(&["list"], piped(b"")).await.unwrap();
        for shown in ["Vera", "Viewer", "Vera V", "v@example.org", "enabled"] {
            assert!(table.contains(shown), "{table}");
        }
        assert!(!table.contains("argon2") && !table.contains('\u{1b}'), "{table}");

        shop.run(&["passwd", "VERA", "--password-stdin"], piped(b"battery staple\r\n")).await.unwrap();
        assert!(shop.log_in("vera", "battery staple").await);
        assert!(!shop.log_in("vera", "correct horse").await);
        assert_eq!(
            shop.run(&["role", "vera", "Editor"], piped(b"")).await.unwrap(),
            "Vera is Editor now (was Viewer)\n"
        );
        shop.run(&["disable", "vera"], piped(b"")).await.unwrap();
        assert!(!shop.log_in("vera", "battery staple").await);
        let json: Value =
            serde_json::from_str(&shop.run(&["list", "--json"], piped(b"")).await.unwrap()).unwrap();
        assert_eq!((&json[0]["id"], &json[0]["disabled"]), (&json!(1), &json!(true)));
        assert_eq!(json[0]["role"], "Editor");
        assert!(json[0].get("password_hash").is_none());
        shop.run(&["enable", "vera"], piped(b"")).await.unwrap();
        assert!(shop.log_in("vera", "battery staple").await);
        assert_eq!(shop.run(&["remove", "vera"], piped(b"")).await.unwrap(), "removed Vera (id 1)\n");
        assert!(shop.run(&["list"], piped(b"")).await.unwrap().contains("no users yet"));
        assert_eq!(shop.run(&["list", "--json"], piped(b"")).await.unwrap(), "[]\n");
    }

    #[tokio::test]
    async fn a_mistake_costs_one_sentence_and_changes_nothing() {
        let shop = Shop::with_vera().await;
        let before = shop.users.list().await.unwrap();
        let stdin = "--password-stdin";
        for (arguments, input, code, message) in [
            (
                vec!["add", "emil", "--role", "Edtior", stdin],
                piped(b"correct horse"),
                2,
                "unknown role `Edtior`, did you mean `Editor`?",
            ),
            (
                vec!["add", "emil", "--role", "Boss", stdin],
                piped(b"correct horse"),
                2,
                "unknown role `Boss` (the configuration has Viewer, Editor, SuperAdmin)",
            ),
            (
                vec!["add", "VERA", "--role", "Viewer", stdin],
                piped(b"correct horse"),
                1,
                "there is a user `vera` already",
            ),
            (
                vec!["add", " emil", "--role", "Viewer", stdin],
                piped(b"correct horse"),
                2,
                "a user name cannot begin or end with a blank",
            ),
            (
                vec!["add", "emil", "--role", "Viewer", "--name", "a\u{1b}[31m", stdin],
                piped(b"correct horse"),
                2,
                "`name` cannot contain control characters or line breaks",
            ),
            (
                vec!["add", "emil", "--role", "Viewer", "--email", "emil@example.org ", stdin],
                piped(b"correct horse"),
                2,
                "`email` cannot begin or end with a blank",
            ),
            (
                vec!["add", "emil", "--role", "Viewer", stdin],
                piped(b"1234567\n"),
                2,
                "a password has at least 8 bytes",
            ),
            (
                vec!["add", "emil", "--role", "Viewer", stdin],
                piped(&[b'x'; 100_000]),
                2,
                "a password has at most 1024 bytes",
            ),
            (
                vec!["add", "emil", "--role", "Viewer"],
                piped(b"correct horse"),
                2,
                "there is no terminal to ask for the password on: pipe it in and add --password-stdin",
            ),
            (
                vec!["passwd", "vera"],
                typed(&["correct horse", "correct hores"]),
                1,
                "the two passwords differ, nothing was changed",
            ),
            (vec!["passwd", "vear"], typed(&[]), 1, "there is no user `vear`, did you mean `vera`?"),
            (vec!["role", "vera", "viewer"], piped(b""), 2, "unknown role `viewer`, did you mean `Viewer`?"),
            (vec!["disable", "nobody"], piped(b""), 1, "there is no user `nobody`"),
            (vec!["enable", "no\nbody"], piped(b""), 1, "there is no user `no\\nbody`"),
            (vec!["remove", ""], piped(b""), 1, "there is no user ``"),
        ] {
            let error = shop.run(&arguments, input).await.unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (code, message), "{arguments:?}");
        }
        assert_eq!(shop.users.list().await.unwrap(), before);
    }

    #[tokio::test]
    async fn a_password_of_exactly_the_longest_length_is_taken_with_its_line_break() {
        let shop = Shop::with_vera().await;
        let longest = "x".repeat(MAX_PASSWORD_BYTES);
        for ending in ["", "\n", "\r\n"] {
            let input = piped(format!("{longest}{ending}").as_bytes());
            shop.run(&["passwd", "vera", "--password-stdin"], input).await.unwrap();
            assert!(shop.log_in("vera", &longest).await, "{ending:?}");
        }
        // One line break is the shell's, the second is the user's.
        shop.run(&["passwd", "vera", "--password-stdin"], piped(b"correct horse\n\n")).await.unwrap();
        assert!(shop.log_in("vera", "correct horse\n").await);
    }

    #[tokio::test]
    async fn an_export_with_hashes_can_be_imported_elsewhere() {
        let shop = Shop::with_vera().await;
        let emil = ["add", "Ödi", "--role", "Editor", "--name", "Ö \"x\"", "--password-stdin"];
        shop.run(&emil, piped(b"battery staple")).await.unwrap();
        shop.run(&["disable", "vera"], piped(b"")).await.unwrap();
        assert!(!shop.run(&["export"], piped(b"")).await.unwrap().contains("argon2"));
        let lines = shop.run(&["export", "--with-hashes"], piped(b"")).await.unwrap();

        let other = Shop::open().await;
        assert_eq!(other.run(&["import", "-"], piped(lines.as_bytes())).await.unwrap(), "imported 2 users\n");
        assert_eq!(other.run(&["export", "--with-hashes"], piped(b"")).await.unwrap(), lines);
        assert!(other.log_in("Ödi", "battery staple").await);
        assert!(!other.log_in("vera", "correct horse").await);
    }

    #[tokio::test]
    async fn an_import_hashes_passwords_each_to_its_own_user() {
        let shop = Shop::open().await;
        let mut lines = String::from("\u{feff}\n");
        for n in 0..5 {
            lines += &format!(
                "{{\"username\":\"user{n}\",\"role\":\"Viewer\",\"password\":\"password {n}\"}}\r\n\n"
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.jsonl");
        std::fs::write(&file, lines).unwrap();
        let imported = shop.run(&["import", file.to_str().unwrap()], piped(b"")).await.unwrap();
        assert_eq!(imported, "imported 5 users\n");
        for n in 0..5 {
            assert!(shop.log_in(&format!("user{n}"), &format!("password {n}")).await);
        }
        let missing = folder.path().join("none.jsonl");
        let error = shop.run(&["import", missing.to_str().unwrap()], piped(b"")).await.unwrap_err();
        assert!(error.message.contains(missing.to_str().unwrap()), "{error}");
    }

    #[tokio::test]
    async fn every_bad_line_of_an_import_is_reported_and_nothing_is_written() {
        let shop = Shop::with_vera().await;
        let secret = r#""password":"hunter2hunter2""#;
        let lines = [
            format!(r#"{{"username":"good","role":"Viewer",{secret}}}"#),
            format!(r#"{{"username":"emil","role":"Edtior",{secret}}}"#),
            format!(r#"{{"username":"VERA","role":"Viewer",{secret}}}"#),
            format!(r#"{{"username":"GOOD","role":"Viewer",{secret}}}"#),
            String::new(),
            format!(r#"{{"username":"emil","role":"Viewer",{secret}"#),
            r#"{"username":"emil","role":"Viewer"}"#.into(),
            format!(r#"{{"username":"emil","role":"Viewer",{secret},"password_hash":"x"}}"#),
            r#"{"username":"emil","role":"Viewer","password_hash":"hunter2"}"#.into(),
            r#"{"username":"emil","role":"Viewer","password":"hunter2"}"#.into(),
            r#"{"username":"emil","role":"Viewer","password":["hunter2"]}"#.into(),
            format!(r#"{{"username":"emil","rôle":"Viewer",{secret}}}"#),
            format!(r#"{{"username":"emil","role":"Viewer",{secret},{secret}}}"#),
            format!(r#"{{"username":"emil","role":"Viewer","disabled":"hunter2",{secret}}}"#),
            r#""hunter2""#.into(),
            format!(r#"{{"username":"e\u0000","role":"Viewer",{secret}}}"#),
        ]
        .join("\n");
        let error = shop.run(&["import", "-"], piped(lines.as_bytes())).await.unwrap_err();
        assert_eq!(error.code, 1);
        let expected = "\
            line 2: unknown role `Edtior`, did you mean `Editor`?\n\
            line 3: there is a user `VERA` already\n\
            line 4: the same user as in line 1\n\
            line 6: is not valid JSON (column 62)\n\
            line 7: has neither `password` nor `password_hash`\n\
            line 8: has both `password` and `password_hash`\n\
            line 9: the password hash is in no format that is known here\n\
            line 10: a password has at least 8 bytes\n\
            line 11: `password` is not a string\n\
            line 12: unknown field `rôle`, did you mean `role`?\n\
            line 13: the field `password` is there more than once\n\
            line 14: `disabled` is neither true nor false\n\
            line 15: is not a JSON object\n\
            line 16: a user name cannot contain control characters or line breaks\n\
            nothing was imported: 14 lines of 15 cannot be used";
        assert_eq!(error.message, expected);
        assert_eq!(shop.users.list().await.unwrap().len(), 1);

        let endless = vec![b'x'; 1 << 20];
        let error = shop.run(&["import", "-"], piped(&endless)).await.unwrap_err();
        assert!(error.message.starts_with("line 1: is longer than 64 KiB"), "{error}");
    }

    #[test]
    fn what_stands_in_the_file_gives_a_terminal_no_orders() {
        assert_eq!(shown("a\u{1b}[31mb\nÖ"), "a\\u{1b}[31mb\\nÖ");
    }
}
