//! Portcullis: an authentication gateway in front of a legacy CMS.
#![forbid(unsafe_code)]

pub mod cli;
pub mod login;
pub mod policy;
pub mod store;
pub mod wire;
