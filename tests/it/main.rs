//! End-to-end tests: the real binary, a recording upstream, real clients. One file a promise.

mod forwarding;
mod harness;
mod smoke;
