//! Arguments in, exit code out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Requests are served on threads other than the first, whose memory the system's allocator keeps giving
/// back and asking for again (`mprotect`, one in twenty requests).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    portcullis::cli::main()
}
