//! `portcullis hash`: what a stored password hash is, and whether a password is its.
//!
//! For an operator in front of a CMS's table, before any configuration. Hash and password are asked for
//! or read from standard input, never taken from an argument, where every process of the machine could
//! read them.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use zeroize::{Zeroize, Zeroizing};

use super::{CliError, printed};
use crate::config::recipe::{HashPolicy, Recipe};
use crate::config::value::Value;
use crate::login::hash::{MAX_HASH_BYTES, StoredHash};
use crate::login::password::MAX_PASSWORD_BYTES;

/// What can be asked about a hash.
#[derive(Debug, Subcommand)]
pub enum HashCommand {
    /// Tell the format of a hash, which systems write it, and whether it can be used
    #[command(
        after_help = "Reads the hash from standard input, or asks for it. Exit code 1 when it cannot be \
        used.\n\nExample:\n  mariadb -N wp -e 'select user_pass from wp_users where ID = 1' | portcullis \
        hash identify"
    )]
    Identify {
        #[command(flatten)]
        about: About,
    },
    /// Tell whether a password is the one of a hash
    #[command(
        after_help = "Asks for both, or reads them from standard input: the hash in the first line, the \
        password in the second. Exit code 1 when it is not.\n\nExample:\n  portcullis hash verify < \
        hash-and-password"
    )]
    Verify {
        #[command(flatten)]
        about: About,
    },
}

/// What a hash does not say of itself.
#[derive(Args, Debug)]
pub struct About {
    /// The salt, for formats that keep it in a column of its own
    #[arg(long)]
    salt: Option<String>,
    /// How an in-house system makes its digests, as in `users.hash_recipe`
    #[arg(long, value_name = "RECIPE")]
    recipe: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands; code 1 for a hash that cannot be used or a password that is not its.
///
/// # Errors
/// Code 2 for a recipe that is none or input that is missing, 1 for what cannot be read.
pub fn run(command: HashCommand, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let (about, verify) = match command {
        HashCommand::Identify { about } => (about, false),
        HashCommand::Verify { about } => (about, true),
    };
    let recipe = about
        .recipe
        .as_deref()
        .map(|text| {
            Recipe::parse(text).map_err(|why| CliError::usage(format!("--recipe: this recipe {why}")))
        })
        .transpose()?;
    let (hash, password) = if io::stdin().is_terminal() { asked(verify)? } else { read(verify)? };
    // An operator wants to know what it is, weak or not.
    let policy = HashPolicy { weak: true, recipe };
    let hash = StoredHash::examine(&hash, about.salt.as_deref(), &policy);
    let done = match (&hash, verify) {
        (Err(why), _) => {
            if about.json {
                printed(writeln!(out, "{:#}", json!({ "usable": false, "why": why.to_string() })))?;
                false
            } else {
                return Err(CliError::failed(why.to_string()));
            }
        }
        (Ok(hash), true) => {
            let matches = password.len() <= MAX_PASSWORD_BYTES
                && hash
                    .verify(&password)
                    .map_err(|_| CliError::failed("there is not enough memory for it"))?;
            let told = if matches { "the password matches" } else { "the password does not match" };
            printed(match about.json {
                true => writeln!(out, "{:#}", json!({ "matches": matches, "format": hash.format().name() })),
                false => writeln!(out, "{told} ({})", hash.format()),
            })?;
            matches
        }
        (Ok(hash), false) => {
            printed(if about.json { identified_json(hash, out) } else { identified(hash, out) })?;
            true
        }
    };
    Ok(ExitCode::from(u8::from(!done)))
}

fn identified_json(hash: &StoredHash, out: &mut dyn Write) -> io::Result<()> {
    let format = hash.format();
    let told = json!({
        "usable": true,
        "format": format.name(),
        "parameters": hash.parameters(),
        "weak": format.is_weak(),
        "written_by": format.written_by(),
    });
    writeln!(out, "{told:#}")
}

fn identified(hash: &StoredHash, out: &mut dyn Write) -> io::Result<()> {
    let format = hash.format();
    let strength = match format.is_weak() {
        true => "weak: needs `users.weak_hashes: true`, or `users.hash_recipe`",
        false => "stretched",
    };
    writeln!(out, "format      {format}\nparameters  {}\nstrength    {strength}", hash.parameters())?;
    writeln!(out, "written by  {}", format.written_by())
}

/// A hash and, where one is wanted, a password.
type Given = (Zeroizing<String>, Zeroizing<Vec<u8>>);

fn asked(with_password: bool) -> Result<Given, CliError> {
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt)
            .map_err(|error| CliError::failed(format!("cannot read the answer: {error}")))
    };
    let hash = Zeroizing::new(ask("Password hash: ")?);
    let password = if with_password { ask("Password: ")? } else { String::new() };
    Ok((hash, Zeroizing::new(password.into_bytes())))
}

fn read(with_password: bool) -> Result<Given, CliError> {
    const MOST: u64 = (MAX_HASH_BYTES + MAX_PASSWORD_BYTES + 8) as u64;
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_HASH_BYTES + MAX_PASSWORD_BYTES + 8));
    let read = io::stdin().lock().take(MOST).read_to_end(&mut bytes);
    read.map_err(|error| CliError::failed(format!("cannot read standard input: {error}")))?;
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let mut password = bytes.get(end + 1..).unwrap_or_default().to_vec();
    // The one line break is the shell's, whatever is before it the user's.
    if password.last() == Some(&b'\n') {
        password.pop();
        if password.last() == Some(&b'\r') {
            password.pop();
        }
    }
    if with_password && password.is_empty() {
        password.zeroize();
        return Err(CliError::usage(
            "the hash goes in the first line of standard input, the password in the second",
        ));
    }
    let hash = String::from_utf8_lossy(&bytes[..end]).trim().to_owned();
    Ok((Zeroizing::new(hash), Zeroizing::new(password)))
}
