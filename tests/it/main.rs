//! End-to-end tests: the real binary, a recording upstream, real clients. One file a promise.

mod abandoned;
mod advisories;
mod browser;
mod cli;
mod cookies;
mod differential;
mod docs;
mod forwarding;
mod golden;
mod harness;
mod hashes;
mod hygiene;
mod identity;
mod keys;
mod layers;
mod operations;
mod queries;
mod reload;
mod robustness;
mod sessions;
mod shutdown;
mod slow;
mod smoke;
mod throttle;
mod trust;
mod websocket;
