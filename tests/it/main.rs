//! End-to-end tests: the real binary, a recording upstream, real clients. One file a promise.

mod docs;
mod forwarding;
mod harness;
mod hygiene;
mod smoke;
