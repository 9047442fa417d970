//! Forward authentication: a load balancer asks whether it may forward a request, and forwards it itself.
//!
//! It describes the request in headers ([`ask_about`]); which ones is configured and never guessed, because in any
//! other header a client can describe what it likes. From then on the described request is decided on like any that
//! comes to be forwarded. What the gateway would have removed from it, only the load balancer can remove: a header
//! by which an upstream could be led elsewhere is refused, and the answer to an allowed request ([`allowed`]) carries
//! the identity headers with which the load balancer replaces the client's. Not here: the decision (`policy`), the
//! order of the steps (`server`).

use bytes::Bytes;
use http::header::{CACHE_CONTROL, HOST, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};

use crate::config::snapshot::{DescribingHeaders, ForwardAuth};
use crate::wire::answer::{Misdescribed, Refusal};
use crate::wire::client::FORWARDED_HOST;
use crate::wire::headers::{HeaderRules, folds_alike};
use crate::wire::hygiene::{self, HeadError};

/// What is known of a request that somebody asks about, beside the request.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Whether it is the beginning of a WebSocket (RFC 6455 §4.1, RFC 8441 §5). `Upgrade` ends at the load balancer,
    /// and what every browser sends with it does not.
    pub websocket: bool,
}

/// Puts the request that `parts` describe in their place: its method, its target, its Host. `target_bytes`: how
/// long a target may be. What is described is held to what a request line is held to.
///
/// # Errors
/// `Description` where a header is missing, there twice, or contradicted by another; `Head` where what they say
/// would be refused in a request line.
pub fn ask_about(
    form: &ForwardAuth,
    rules: &HeaderRules,
    target_bytes: usize,
    parts: &mut Parts,
) -> Result<Asked, Refusal> {
    let websocket =
        ["sec-websocket-key", "sec-websocket-version"].iter().any(|name| parts.headers.contains_key(*name));
    let describing = form.headers.as_ref();
    for name in parts.headers.keys() {
        if describing.is_some_and(|describing| describing.names().any(|known| known == name)) {
            continue;
        }
        if describing.is_some_and(|describing| {
            describing.names().any(|known| folds_alike(known.as_str(), name.as_str()))
        }) {
            return Err(Refusal::Description(Misdescribed::Twice));
        }
        if rules.is_beyond_removal(name) {
            return Err(Refusal::Description(Misdescribed::Contradicted));
        }
    }
    if let Some(describing) = describing {
        describe(describing, target_bytes, parts)?;
    }
    // The Host is the described one now, and whose word this is nobody knows.
    parts.headers.remove(FORWARDED_HOST);
    Ok(Asked { websocket })
}

fn describe(describing: &DescribingHeaders, target_bytes: usize, parts: &mut Parts) -> Result<(), Refusal> {
    let method = the_one(&parts.headers, &describing.method)?;
    let target = the_one(&parts.headers, &describing.uri)?;
    let authority =
        hygiene::check_request(method.as_bytes(), target.as_bytes(), target_bytes).map_err(Refusal::Head)?;
    let host = match &describing.host {
        Some(name) => the_one(&parts.headers, name)?,
        None => the_one(&parts.headers, &HOST)?,
    };
    if !hygiene::is_authority(host.as_bytes()) {
        return Err(Refusal::Head(HeadError::Host));
    }
    if authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(host.as_bytes())) {
        return Err(Refusal::Head(HeadError::AuthorityMismatch));
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Refusal::Head(HeadError::Method))?;
    let uri = Uri::from_maybe_shared(Bytes::copy_from_slice(target.as_bytes()))
        .map_err(|_| Refusal::Head(HeadError::RequestLine))?;
    let host = host.clone();
    parts.method = method;
    parts.uri = uri;
    parts.headers.insert(HOST, host);
    Ok(())
}

impl DescribingHeaders {
    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        [Some(&self.method), Some(&self.uri), self.host.as_ref()].into_iter().flatten()
    }
}

/// The value of a header that has to be there exactly once.
fn the_one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<&'h HeaderValue, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if !value.is_empty() => Ok(value),
        (Some(_), Some(_)) => Err(Refusal::Description(Misdescribed::Twice)),
        _ => Err(Refusal::Description(Misdescribed::Missing)),
    }
}

/// The answer to a request that may be forwarded: 200, which nobody may store. Who the caller is, is still to be
/// written into it.
pub fn allowed() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A refusal as the load balancer can use it. One that knows 200, 401 and 403 alone gets a redirect to the login
/// page as a 401 with `Location`, and any other refusal that is the client's fault as a 403; what is the gateway's
/// own fault stays what it is, and is an error to every load balancer.
pub fn refused(form: Option<&ForwardAuth>, mut response: Response<Bytes>) -> Response<Bytes> {
    if form.is_some_and(|form| form.pages) {
        return response;
    }
    let status = response.status();
    if status.is_redirection() {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.headers_mut().entry(WWW_AUTHENTICATE).or_insert(HeaderValue::from_static("Bearer"));
    } else if status.is_client_error() && status != StatusCode::UNAUTHORIZED {
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn form(headers: Option<[&'static str; 3]>) -> ForwardAuth {
        let name = |name: &'static str| HeaderName::from_static(name);
        let headers = headers.map(|[method, uri, host]| DescribingHeaders {
            method: name(method),
            uri: name(uri),
            host: (!host.is_empty()).then(|| name(host)),
        });
        ForwardAuth { headers, pages: true }
    }

    const NGINX: [&str; 3] = ["x-original-method", "x-original-uri", ""];
    const TRAEFIK: [&str; 3] = ["x-forwarded-method", "x-forwarded-uri", "x-forwarded-host"];

    /// Method, target and Host of what is asked about.
    fn asked(form: &ForwardAuth, lines: &[(&str, &str)]) -> Result<(String, String, String), Refusal> {
        let mut request = Request::builder().method("GET").uri("/ask").header("host", "lb");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let rules = HeaderRules::new(&[HeaderName::from_static("x-auth-user")]);
        ask_about(form, &rules, 100, &mut parts)?;
        assert!(!parts.headers.contains_key("x-forwarded-host"));
        let host = parts.headers["host"].to_str().unwrap().to_owned();
        Ok((parts.method.to_string(), parts.uri.to_string(), host))
    }

    #[test]
    fn the_request_is_the_one_that_is_described() {
        for (names, lines, expected) in [
            (
                Some(NGINX),
                &[("x-original-method", "POST"), ("x-original-uri", "/a%20b?c=d")][..],
                ("POST", "/a%20b?c=d", "lb"),
            ),
            (
                Some(NGINX),
                &[("x-original-method", "GET"), ("x-original-uri", "//a//b")],
                ("GET", "//a//b", "lb"),
            ),
            (
                Some(NGINX),
                &[("x-original-method", "GET"), ("x-original-uri", "http://LB/a")],
                ("GET", "http://LB/a", "lb"),
            ),
            (
                Some(TRAEFIK),
                &[("x-forwarded-method", "PUT"), ("x-forwarded-uri", "/"), ("x-forwarded-host", "cms:8443")],
                ("PUT", "/", "cms:8443"),
            ),
            // What a client says of itself where nobody reads it is nothing to the description.
            (
                Some(NGINX),
                &[
                    ("x-original-method", "GET"),
                    ("x-original-uri", "/a"),
                    ("x-forwarded-host", "evil"),
                    ("x-auth-user", "root"),
                    ("x-real-ip", "1.2.3.4"),
                    ("x-http-method-override", "DELETE"),
                ],
                ("GET", "/a", "lb"),
            ),
            (None, &[("x-auth-user", "root")], ("GET", "/ask", "lb")),
        ] {
            let (method, target, host) = expected;
            let expected = Ok((method.to_owned(), target.to_owned(), host.to_owned()));
            assert_eq!(asked(&form(names), lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_not_described_exactly_once_is_refused() {
        use Misdescribed::{Contradicted, Missing, Twice};
        let nginx = [("x-original-method", "GET"), ("x-original-uri", "/a")];
        let traefik = [("x-forwarded-method", "GET"), ("x-forwarded-uri", "/a"), ("x-forwarded-host", "cms")];
        for (names, base, more, why) in [
            (NGINX, &nginx[..0], &[][..], Missing),
            (NGINX, &nginx[..1], &[], Missing),
            (NGINX, &nginx[1..], &[], Missing),
            (NGINX, &nginx[..1], &[("x-original-uri", "")], Missing),
            (NGINX, &nginx[..], &[("x-original-uri", "/a")], Twice),
            (NGINX, &nginx[..], &[("x-original-method", "GET")], Twice),
            (NGINX, &nginx[..], &[("x_original_uri", "/b")], Twice),
            (NGINX, &nginx[..], &[("x.original-method", "GET")], Twice),
            (NGINX, &nginx[..], &[("host", "b")], Twice),
            (TRAEFIK, &traefik[..2], &[], Missing),
            (TRAEFIK, &traefik[..], &[("x-forwarded-host", "cms")], Twice),
            (TRAEFIK, &traefik[..], &[("x-forwarded_host", "cms")], Twice),
            // Another way to describe it than the one that is configured is a client's own.
            (NGINX, &nginx[..], &[("x-forwarded-uri", "/b")], Contradicted),
            (TRAEFIK, &traefik[..], &[("x-original-uri", "/b")], Contradicted),
            (TRAEFIK, &traefik[..], &[("x-original-url", "/b")], Contradicted),
            (TRAEFIK, &traefik[..], &[("x-rewrite-url", "/b")], Contradicted),
            (TRAEFIK, &traefik[..], &[("x-forwarded-prefix", "/b")], Contradicted),
            (TRAEFIK, &traefik[..], &[("script_name", "/b")], Contradicted),
            // A load balancer that replaces `X-Auth-User` need not replace these.
            (TRAEFIK, &traefik[..], &[("x_auth_user", "root")], Contradicted),
            (TRAEFIK, &traefik[..], &[("x-auth.user", "root")], Contradicted),
            (TRAEFIK, &traefik[..], &[("x_forwarded_for", "1.2.3.4")], Contradicted),
        ] {
            let lines: Vec<_> = base.iter().chain(more).copied().collect();
            assert_eq!(asked(&form(Some(names)), &lines), Err(Refusal::Description(why)), "{lines:?}");
        }
        assert_eq!(asked(&form(None), &[("x-original-url", "/b")]), Err(Refusal::Description(Contradicted)));
    }

    #[test]
    fn what_is_described_is_held_to_what_a_request_line_is_held_to() {
        for (method, target, why) in [
            ("get", "/a", HeadError::Method),
            ("GET /b HTTP/1.1", "/a", HeadError::Method),
            ("CONNECT", "/a", HeadError::MethodRefused),
            ("TRACE", "/a", HeadError::MethodRefused),
            ("OPTIONS", "*", HeadError::MethodRefused),
            ("GET", "a", HeadError::RequestLine),
            ("GET", "/a#b", HeadError::RequestLine),
            ("GET", "/a b", HeadError::RequestLine),
            ("GET", "ftp://lb/a", HeadError::RequestLine),
            ("GET", "http://other/a", HeadError::AuthorityMismatch),
            ("GET", "http://u@lb/a", HeadError::AuthorityMismatch),
        ] {
            let lines = [("x-original-method", method), ("x-original-uri", target)];
            assert_eq!(asked(&form(Some(NGINX)), &lines), Err(Refusal::Head(why)), "{method} {target}");
        }
        let long = format!("/{}", "a".repeat(100));
        let lines = [("x-original-method", "GET"), ("x-original-uri", long.as_str())];
        assert_eq!(asked(&form(Some(NGINX)), &lines), Err(Refusal::Head(HeadError::TargetTooLong)));
        for host in ["a b", "a/b", "u@a", "a, b"] {
            let lines = [("x-forwarded-method", "GET"), ("x-forwarded-uri", "/"), ("x-forwarded-host", host)];
            assert_eq!(asked(&form(Some(TRAEFIK)), &lines), Err(Refusal::Head(HeadError::Host)), "{host}");
        }
    }

    #[test]
    fn a_websocket_is_told_by_what_reaches_the_gateway_of_it() {
        for (name, expected) in
            [("sec-websocket-key", true), ("sec-websocket-version", true), ("upgrade", false)]
        {
            let request = Request::builder().uri("/").header("host", "a").header(name, "websocket");
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            let rules = HeaderRules::new(&[]);
            let asked = ask_about(&form(None), &rules, 100, &mut parts).unwrap();
            assert_eq!(asked.websocket, expected, "{name}");
        }
    }

    #[test]
    fn a_load_balancer_that_knows_three_answers_gets_one_of_them_or_an_error() {
        for (status, expected) in
            [(303, 401), (400, 403), (401, 401), (403, 403), (405, 403), (414, 403), (500, 500), (503, 503)]
        {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            let mut plain = form(Some(NGINX));
            assert_eq!(refused(Some(&plain), response.clone()).status(), status);
            plain.pages = false;
            assert_eq!(refused(Some(&plain), response.clone()).status(), expected, "{status}");
            // Whoever asks where nobody should ask any more gets no more than that.
            assert_eq!(refused(None, response).status(), expected, "{status}");
        }
    }
}
