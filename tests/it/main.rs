//! End-to-end tests: the real binary, a recording upstream, real clients. One file a promise.

mod cli;
mod docs;
mod forwarding;
mod golden;
mod harness;
mod hygiene;
mod layers;
mod queries;
mod reload;
mod smoke;
mod trust;
