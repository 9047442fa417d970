//! The command line: one file a command, and the one error that all of them end with.

pub mod user;

use crate::store::StoreError;
use std::{error::Error, fmt, io};

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
