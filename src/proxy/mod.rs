//! From a permit to the upstream's response, or to the word that a load balancer may get it itself.
//!
//! [`forward`] needs a [`crate::policy::Permit`], which a decision alone can make. [`balance`] says which
//! server it goes to, [`upstream`] keeps the connections, [`body`] streams both ways, [`upgrade`] carries what is no longer HTTP.
//! [`forward_auth`] reads what load balancers ask and words the answer.

pub mod balance;
pub mod body;
pub mod forward;
pub mod forward_auth;
pub mod upgrade;
pub mod upstream;

pub use balance::{Servers, Upstreams};
pub use body::{AnswerBody, RequestBody};
