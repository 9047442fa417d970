//! Which other sites' pages may log in, log out and rotate (Fetch standard, HTTP extensions): `login.origins`.
//!
//! For them credentials travel in the body or in `Authorization` and the token in the answer, never in a cookie, so no
//! `Access-Control-Allow-Credentials` is sent.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

/// The request's origin, if it is one of `origins`.
pub fn allowed_origin<'h>(headers: &'h HeaderMap, origins: &[String]) -> Option<&'h HeaderValue> {
    headers.get(ORIGIN).filter(|origin| origins.iter().any(|known| known.as_bytes() == origin.as_bytes()))
}

/// The answer to a browser that asks whether it may.
pub fn preflight(origin: &HeaderValue) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type"));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    permit(origin, headers);
    response
}

/// Lets the page at `origin` read the answer.
pub fn permit(origin: &HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.append(VARY, HeaderValue::from_static("origin"));
}
