//! What is on the wire: requests as bytes and headers, and the gateway's own answers.
//!
//! [`hygiene`] lets one message at a time through, [`pseudo`] and [`frames`] do the like for HTTP/2; [`client`] says who is asking; [`credentials`] finds
//! the token; [`headers`] removes what the upstream must not believe; [`answer`] makes every response
//! of the gateway's own.

pub mod answer;
pub mod browser;
pub mod client;
pub mod cookies;
pub mod credentials;
pub mod csrf;
pub mod frames;
pub mod headers;
pub mod hygiene;
pub mod proxy_protocol;
pub mod pseudo;
