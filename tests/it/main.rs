//! End-to-end tests: the real binary, a recording upstream, real clients. One file a promise.

mod forwarding;
mod harness;
mod hygiene;
mod identity;
mod robustness;
mod shutdown;
mod smoke;
mod websocket;
