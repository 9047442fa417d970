//! Logging in: credentials in, token out.

pub mod body;
pub mod password;
