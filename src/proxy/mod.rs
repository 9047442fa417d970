//! From a permit to the upstream's response.
//!
//! [`forward`] needs a [`crate::policy::Permit`], which a decision alone can make. [`upstream`] keeps
//! the connections, [`body`] streams both ways, [`upgrade`] carries what is no longer HTTP.

pub mod body;
pub mod forward;
pub mod upgrade;
pub mod upstream;

pub use body::{AnswerBody, RequestBody};
pub use upstream::{Slots, Upstream};
