//! What must hold for every input, target by target: each module has a function `check` that takes
//! arbitrary bytes and panics where an invariant breaks.
//!
//! Every check has a second opinion of its own, written from the contract and not from the code under
//! test: a naive matcher, a reading of paths step by step, a parser of requests that knows nothing else.
//! `targets/` hands them to libFuzzer; `tests/seeds.rs` runs them on the seeds without it.
#![forbid(unsafe_code)]

pub mod credentials;
pub mod framing;
pub mod request;
pub mod rules;
pub mod target;
pub mod token;
pub mod yaml;

use portcullis::policy::{Judgement, Policy, Requirement, Roles, Route};

/// Lowest to highest.
pub const ROLES: [&str; 3] = ["Viewer", "Editor", "SuperAdmin"];

/// The roles of every policy here.
pub fn roles() -> Roles {
    Roles::new(ROLES.map(str::to_owned).to_vec()).expect("three different names")
}

/// What `allow: word` asks for; `None` for a word that is none.
pub fn requirement(word: &str) -> Option<Requirement> {
    Some(match word {
        "public" => Requirement::Public,
        "authenticated" => Requirement::Authenticated,
        "deny" => Requirement::Deny,
        role => Requirement::AtLeast(roles().find(role)?),
    })
}

/// What a request must bring to reach the upstream; `None` if it never does.
fn needed(judgement: Judgement) -> Option<Requirement> {
    match judgement.route {
        Route::Own(_) => None,
        Route::Upstream { requirement, .. } => Some(requirement),
    }
}

/// As [`Policy::judge`] for a target that is read here; `Err` if it is refused.
fn judge(
    policy: &Policy,
    method: &str,
    path: &str,
    query: Option<&str>,
    overrides: &[&str],
) -> Result<Judgement, ()> {
    let target = policy.target(method, path, query, overrides.iter().copied()).map_err(|_| ())?;
    Ok(policy.judge(&target))
}
