//! Portcullis: an authentication gateway in front of a legacy CMS.
#![forbid(unsafe_code)]

pub mod config;
