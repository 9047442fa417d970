//! Portcullis: an authentication gateway in front of a legacy CMS.
#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod config;
pub mod login;
pub mod observe;
pub mod policy;
pub mod proxy;
pub mod server;
pub mod store;
pub mod timer;
pub mod token;
pub mod wire;
