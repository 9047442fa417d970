//! What people with a browser are answered, where a program would get JSON.
//!
//! Who is a person is `wire::browser`'s to say, what the pages look like `login::page`'s; here is which one
//! they get.

use bytes::Bytes;
use http::header::SET_COOKIE;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response};

use super::handler::unix_now;
use super::worker::{Known, Local, Worker};
use crate::config::snapshot::{Cookie, LoginSettings};
use crate::login::next::Next;
use crate::login::page::{self, Notice};
use crate::login::session;
use crate::policy::Endpoint;
use crate::wire::answer::Refusal;
use crate::wire::credentials::{self, Credentials};
use crate::wire::{browser, cookies};

/// Whether a refused request is of a person who can be shown a page.
pub(super) fn are_for(active: &Local, parts: &Parts) -> bool {
    active.snapshot.login_page().is_some() && browser::is_navigation(&parts.method, &parts.headers)
}

/// The page in the place of a refusal that concerns who somebody is; `None` for any other.
pub(super) fn instead(
    active: &Local,
    method: &Method,
    path: Option<&PathAndQuery>,
    user: Option<&str>,
    refusal: &Refusal,
) -> Option<Response<Bytes>> {
    let settings = active.snapshot.login_page()?;
    // Who comes back does so with a GET.
    let here = match (path, method) {
        (Some(path), &Method::GET | &Method::HEAD) => Next::of(path),
        _ => Next::default(),
    };
    match refusal {
        Refusal::NoCredentials | Refusal::InvalidToken(_) | Refusal::ExpiredToken => {
            Some(page::go_and_sign_in(settings, &here))
        }
        Refusal::AccessDenied => Some(page::denied(settings, &here, user?)),
        _ => None,
    }
}

/// Whether a request to the login path is for its page.
pub(super) fn shows_login(settings: &LoginSettings, parts: &Parts) -> bool {
    settings.page.is_some() && matches!(parts.method, Method::GET | Method::HEAD)
}

/// What a browser shows after a form was sent to one of the gateway's own paths. `user`: the name that was
/// sent; `refused` makes a refusal known and gives its JSON.
///
/// # Errors
/// The refusal itself, where there is no page to say it on.
pub(super) fn after_form(
    settings: &LoginSettings,
    cookie: &Cookie,
    endpoint: Endpoint,
    query: Option<&str>,
    user: Option<&str>,
    answered: Result<Response<Bytes>, Refusal>,
    refused: impl Fn(&Refusal) -> Response<Bytes>,
) -> Result<Response<Bytes>, Refusal> {
    let next = Next::in_query(query);
    match (endpoint, answered) {
        (Endpoint::Login, Ok(answer)) => Ok(page::signed_in(&next, &answer)),
        (Endpoint::Login, Err(refusal)) if settings.page.is_some() => {
            Ok(page::try_again(settings, &next, user, &refusal, &refused(&refusal)))
        }
        // Whoever has nothing that counts is signed out as well; the cookie is of no more use.
        (Endpoint::Logout, Ok(_) | Err(Refusal::NoCredentials | Refusal::InvalidToken(_))) => {
            let mut response = page::signed_out(settings, &next);
            response.headers_mut().append(SET_COOKIE, cookies::clear(cookie));
            Ok(response)
        }
        (Endpoint::Logout, Err(refusal)) if settings.page.is_some() => {
            Ok(page::still_signed_in(settings, query, &refusal, &refused(&refusal)))
        }
        (_, answered) => answered,
    }
}

/// Whether the answer to a request by cookie may bring a fresh one: to a navigation, which a browser is
/// sure to take a cookie from, past half the token's life.
pub(super) fn may_renew(active: &Local, parts: &Parts, known: Option<&Known>) -> bool {
    active.snapshot.cookie().is_some_and(|cookie| cookie.renew)
        && known.is_some_and(|known| session::is_half_over(&known.claims, unix_now()))
        && browser::is_navigation(&parts.method, &parts.headers)
}

impl Worker {
    /// Lets an answer of the upstream's bring a fresh cookie, if the old one counts still: much may have
    /// ended while the upstream took its time.
    pub(super) fn renew(&self, active: &Local, known: &Known, headers: &mut HeaderMap) {
        let Some(cookie) = active.snapshot.cookie().filter(|_| cookies::may_ride_on(headers)) else { return };
        if self.gateway.sessions.check(&known.claims).is_err() {
            return;
        }
        let now = unix_now();
        if let Some(issued) = session::renewed(&active.snapshot, &known.claims, now) {
            let max_age = issued.expires_at.saturating_sub(now);
            cookies::ride_on(headers, cookies::set(cookie, &issued.token, max_age));
        }
    }

    /// The login page, for whoever comes to it.
    pub(super) fn login_page(
        &self,
        active: &Local,
        settings: &LoginSettings,
        parts: &Parts,
    ) -> Response<Bytes> {
        let query = parts.uri.query();
        let known = match credentials::read(&parts.headers, settings.cookie.as_ref()) {
            Ok(Credentials::Cookie(token)) => active.verify(&self.gateway, token, unix_now()).ok(),
            _ => None,
        };
        let notice = match known.as_deref().and_then(Known::user) {
            Some(name) => Notice::SignedIn(name),
            None if page::is_signed_out(query) => Notice::SignedOut,
            None => Notice::None,
        };
        page::sign_in(settings, &Next::in_query(query), notice)
    }
}
