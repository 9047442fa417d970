//! Portcullis: an authentication gateway in front of a legacy CMS.
//!
//! # The life of a request
//!
//! [`server`] accepts a connection and hands it to the request thread with the fewest. That thread
//! reads it through [`wire::hygiene`], which lets one message at a time through and refuses what two
//! parsers could read as two; hyper parses what passes. Before it may be TLS, and HTTP/2 becomes what HTTP/1.1
//! would have been. The handler (`server::handler`) takes the
//! configuration in force, the same one from the first byte to the last, and goes through the steps of
//! the contract: [`wire::headers`] removes what only the gateway may say, [`wire::client`] says who is
//! asking, [`policy`] works out every way in which an upstream could read the target and what the
//! strictest of them requires, [`wire::credentials`] finds the token, a cache of verified tokens or
//! [`token::verify`](token) says whose it is, [`token::revoked`] whether it is over, the policy decides, and [`proxy`] sends the request on,
//! with the permit that only a decision can make. What the gateway answers itself is made by
//! [`wire::answer`]. A load balancer that forwards itself comes through a listener of its own and describes a
//! request ([`proxy::forward_auth`]), which goes the same way up to the decision. Nothing on this way touches a disk, a database or a lock shared by all threads.
//!
//! A login takes the way through [`login`]: a body, a place among those who may try, a user of the
//! [`store`], a password checked off the request threads, a token signed; how it ends before its time is
//! in [`login::session`]. A reload goes through [`config`]: text, tree, raw values, snapshot, and one
//! pointer swapped, or every problem of the file told and the old one kept.
//!
//! # The modules
//!
//! [`policy`] and [`token`] are pure: time, keys and rules are arguments. [`config`] makes immutable
//! snapshots of a file and its keys. [`wire`] is what is on the wire, [`proxy`] what goes to the
//! upstream and comes back, [`server`] the threads and the order of the steps. [`observe`] is what
//! operators see, [`admin`] where they look, [`cli`] what they type. [`fetch`] asks other servers; [`timer`] is for deadlines that
//! almost never come, [`stream`] for writes that are almost always small. Which module may use which is held by `tests/it/layers.rs`.
#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod config;
pub mod fetch;
pub mod login;
pub mod observe;
pub mod policy;
pub mod proxy;
pub mod server;
pub mod store;
pub mod stream;
pub mod timer;
pub mod token;
pub mod wire;
