//! The command line: one file a command, and the one error that all of them end with.

pub mod ban;
pub mod check;
pub mod demo;
pub mod explain;
pub mod extras;
pub mod hash;
pub mod keys;
pub mod token;
pub mod user;

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::reload::{LoadError, Loader};
use crate::config::snapshot::{Built, Snapshot, Surroundings};
use crate::config::{Preset, Source};
use crate::login::Authority;
use crate::observe::audit::{Audit, Event, Reason};
use crate::observe::outbox;
use crate::server::{surroundings_at_start, users};
use crate::store::sessions::EndingTokens;
use crate::store::sqlite::SqliteUsers;
use crate::store::sqlite::sessions::SqliteSessions;
use crate::store::{StoreError, Users};

/// An authentication gateway in front of a legacy CMS.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, disable_help_subcommand = true)]
#[command(after_help = "Start with 'portcullis demo'. Without a command, 'serve' is meant.")]
pub struct Arguments {
    /// The configuration file
    #[arg(long, global = true, value_name = "F", default_value = "gateway.yaml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    #[command(
        after_help = "Signals: SIGHUP reloads the configuration, SIGTERM drains and stops, SIGINT stops \
        without draining.\n\nExample:\n  portcullis serve --config /etc/portcullis/gateway.yaml"
    )]
    Serve,
    /// Run a sample CMS, the gateway in front of it and three users, in a temporary folder
    Demo,
    /// Write a commented starter file
    #[command(
        after_help = "Examples:\n  portcullis init --config gateway.yaml\n  portcullis init --preset wordpress"
    )]
    Init {
        /// For a CMS that is known: its roles, rules and identity come with it
        #[arg(long, value_name = "NAME")]
        preset: Option<Preset>,
    },
    /// Say everything that is wrong with the configuration, without starting
    #[command(
        after_help = "Exit code 2 when the file would be refused.\n\nExample:\n  portcullis check --network"
    )]
    Check {
        /// Try the stores, the trusted issuers and the upstream as well
        #[arg(long)]
        network: bool,
    },
    /// Show every reading of a request, the rule that each hits, and who may pass
    #[command(after_help = "Examples:\n  portcullis explain GET /admin/user/5\n  \
        portcullis explain POST '/wp-json/wp/v2/users?_method=DELETE' --role Editor\n  \
        portcullis explain GET /admin --header 'X-HTTP-Method-Override: DELETE'")]
    Explain(explain::Explain),
    /// Manage the users of the local store
    #[command(subcommand)]
    User(user::UserCommand),
    /// List, add and lift bans and lock-outs from logging in
    #[command(subcommand)]
    Ban(ban::BanCommand),
    /// Make, look into and revoke tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Look after the keys that tokens are signed with
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Tell what a password hash of any system is, or whether a password is its
    #[command(subcommand)]
    Hash(hash::HashCommand),
    /// Ask the gateway of the configuration whether it is ready
    #[command(after_help = "Exit code 0 when it is; for containers and scripts.")]
    Health,
    /// Print the JSON Schema of gateway.yaml, for editors
    Schema,
    /// Print shell completions
    #[command(after_help = "Example:\n  portcullis completions bash > /etc/bash_completion.d/portcullis")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them to a folder
    Man {
        /// One page a command, into this folder
        #[arg(value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "portcullis: {error}");
            ExitCode::from(error.code)
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, CliError> {
    let loader = Loader::new(arguments.config);
    let mut out = io::stdout().lock();
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => {
            drop(out);
            let loaded = loader.load(&surroundings_at_start()).map_err(invalid)?;
            crate::server::run(loader, loaded, |_| {}).map_err(CliError::failed)?;
        }
        Command::Demo => {
            drop(out);
            demo::run()?;
        }
        Command::Init { preset } => extras::init(loader.path(), preset, &mut out)?,
        Command::Check { network } => return check::run(&loader, network, &mut out),
        Command::Explain(explain) => {
            explain::run(&explain, &load(&loader, &Surroundings::default())?.0, &mut out)?
        }
        Command::User(command) => {
            let (snapshot, _) = load(&loader, &Surroundings::default())?;
            let roles = snapshot.policy.roles().names().to_vec();
            let (change, name) = command.change();
            let hashes = snapshot.fixed.hashes.clone();
            in_runtime(async {
                let users = open_local_users(&snapshot).await?;
                let sessions = open_sessions(&snapshot).await?;
                let ending = EndingTokens::new(users.clone(), Box::new(sessions.clone()));
                let outcome = user::run(command, &ending, &roles, &hashes, &mut out).await;
                users.close().await;
                sessions.close().await;
                outcome
            })??;
            let reason = change.map(Reason::UserChange);
            if reason.is_some() {
                audit(&snapshot, &Audit { reason, user: name.as_deref(), ..Audit::of(Event::UserChange) });
            }
        }
        Command::Ban(command) => ban::run(command, &load(&loader, &Surroundings::default())?.0, &mut out)?,
        Command::Token(command) => token::run(command, &loader, &mut out)?,
        Command::Keys(command) => keys::run(command, &load(&loader, &Surroundings::default())?.0, &mut out)?,
        Command::Hash(command) => return hash::run(command, &mut out),
        Command::Health => extras::health(&load(&loader, &Surroundings::default())?.0)?,
        Command::Schema => printed(writeln!(out, "{:#}", crate::config::json_schema()))?,
        Command::Completions { shell } => {
            // Written to memory first: the generator panics when its reader has gone.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "portcullis", &mut script);
            printed(out.write_all(&script))?;
        }
        Command::Man { folder } => extras::man(&Arguments::command(), folder.as_deref(), &mut out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Loads the configuration; its warnings are nobody's question here.
fn load(loader: &Loader, surroundings: &Surroundings) -> Result<(Snapshot, Source), CliError> {
    let (Built { snapshot, .. }, source) = loader.load(surroundings).map_err(invalid)?;
    Ok((snapshot, source))
}

fn invalid(error: LoadError) -> CliError {
    CliError::usage(match &error {
        LoadError::Unreadable(what) => what.clone(),
        LoadError::Invalid(..) => {
            format!("the configuration is invalid\n{}", error.render(io::stderr().is_terminal()).trim_end())
        }
    })
}

/// For commands that manage users; those of another system are refused.
async fn open_local_users(snapshot: &Snapshot) -> Result<SqliteUsers, CliError> {
    let users = &snapshot.fixed.users;
    let file = users.local().ok_or_else(|| {
        CliError::failed(format!(
            "the users are those of {users}, which the gateway only reads: manage them there, and end what they have \
             with 'token revoke --user'"
        ))
    })?;
    Ok(SqliteUsers::open(file).await?)
}

async fn open_users(snapshot: &Snapshot) -> Result<Arc<dyn Users>, CliError> {
    match users::open(&snapshot.fixed.users).await? {
        Authority::Store(users) => Ok(users),
        Authority::Endpoint(_) => Err(CliError::failed(format!(
            "nobody can be looked up by name: the users are those of {}, which answers to their passwords alone",
            snapshot.fixed.users
        ))),
    }
}

async fn open_sessions(snapshot: &Snapshot) -> Result<SqliteSessions, CliError> {
    Ok(SqliteSessions::open(&snapshot.fixed.sessions).await?)
}

/// Has the gateway log what was done. That it cannot be is no reason to call a thing undone that is done.
fn audit(snapshot: &Snapshot, audit: &Audit<'_>) {
    if let Err(error) = outbox::leave(&snapshot.state, audit) {
        let _ = writeln!(
            io::stderr(),
            "portcullis: warning: it is done, but the audit log will not say so: cannot write to '{}': {error}",
            snapshot.state.display()
        );
    }
}

/// Runs what has to wait for something.
fn in_runtime<F: Future>(work: F) -> Result<F::Output, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|error| CliError::failed(format!("cannot start: {error}")))?.block_on(work))
}

/// Unix time in seconds.
fn now() -> u64 {
    crate::server::handler::unix_now()
}

/// Why a command did not do what it was asked: what to print, and how to exit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CliError {
    /// A sentence for people, without a full stop; one line, or one a problem.
    pub message: String,
    /// The exit code: 1 failed, 2 wrong usage or invalid configuration.
    pub code: u8,
}

impl CliError {
    /// The command was right and could not be done: exit code 1.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError { message: message.into(), code: 1 }
    }

    /// The command, or the configuration, was wrong: exit code 2.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError { message: message.into(), code: 2 }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> CliError {
        CliError::failed(error.to_string())
    }
}

/// Writes to a command's output. A reader that has gone away (`| head`) is no failure.
///
/// # Errors
/// Whatever else can be wrong with an output, a full disk for example.
pub fn printed(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| CliError::failed(format!("cannot write the output: {error}"))),
    }
}
