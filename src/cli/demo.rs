//! `portcullis demo`: a sample CMS, the gateway in front of it, three users, one temporary folder.
//!
//! The gateway is the real one, on the example configuration at the top of the repository; only its
//! addresses are replaced where they are taken.

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::extras::EXAMPLE;
use super::{CliError, in_runtime, open_local_users, printed};
use crate::config::recipe::HashPolicy;
use crate::config::reload::Loader;
use crate::config::snapshot::Surroundings;
use crate::login::password::{Hasher, NewPassword, Password};
use crate::server::surroundings_at_start;
use crate::store::{LocalUsers, NewUser, Username, Users};

/// The users of the demo and their roles.
const USERS: [(&str, &str, &str); 3] = [
    ("vera", "Viewer", "Vera Vance"),
    ("eddie", "Editor", "Eddie Eames"),
    ("sam", "SuperAdmin", "Sam Sinclair"),
];

/// The addresses in the example that are replaced when they are taken.
const ADDRESSES: [&str; 3] = ["127.0.0.1:8080", "127.0.0.1:9090", "127.0.0.1:3000"];

/// Runs until told to stop.
///
/// # Errors
/// No address or no temporary folder is to be had.
pub fn run() -> Result<(), CliError> {
    let fail = |what: &str, error: io::Error| CliError::failed(format!("cannot {what}: {error}"));
    let folder = tempfile::Builder::new().prefix("portcullis-demo-").tempdir();
    let folder = folder.map_err(|error| fail("make a temporary folder", error))?;
    let cms =
        free_address(ADDRESSES[2]).map_err(|error| fail("find an address for the sample CMS", error))?;
    let mut config = EXAMPLE.replace(ADDRESSES[2], &address_of(&cms)?);
    for address in &ADDRESSES[..2] {
        let free = free_address(address).map_err(|error| fail("find an address for the gateway", error))?;
        config = config.replace(address, &address_of(&free)?);
    }
    let path = folder.path().join("gateway.yaml");
    fs::write(&path, config).map_err(|error| fail("write the configuration", error))?;
    thread::Builder::new()
        .name("sample-cms".to_owned())
        .spawn(move || in_runtime(serve_cms(cms)))
        .map_err(|error| fail("start the sample CMS", error))?;
    let passwords = make_users(&path)?;
    let shown = path.clone();
    let loader = Loader::new(path);
    let loaded = loader.load(&surroundings_at_start()).map_err(super::invalid)?;
    crate::server::run(loader, loaded, move |addresses| {
        // A reader that has gone away is no reason to stop.
        let _ = printed(introduce(addresses, &shown, &passwords));
    })
    .map_err(CliError::failed)
}

/// The address itself if nobody has it, else a free one.
fn free_address(wanted: &str) -> io::Result<TcpListener> {
    TcpListener::bind(wanted).or_else(|_| TcpListener::bind("127.0.0.1:0"))
}

fn address_of(listener: &TcpListener) -> Result<String, CliError> {
    let address = listener.local_addr();
    address.map(|address| address.to_string()).map_err(|error| CliError::failed(error.to_string()))
}

/// Adds the users with fresh passwords and returns these.
fn make_users(config: &Path) -> Result<Vec<String>, CliError> {
    let (snapshot, _) = super::load(&Loader::new(config), &Surroundings::default())?;
    let passwords: Vec<String> = USERS.iter().map(|_| crate::server::random_hex(6)).collect();
    let given = passwords.clone();
    in_runtime(async move {
        let users = open_local_users(&snapshot).await?;
        let hasher = Hasher::new(1, HashPolicy::default());
        for ((username, role, name), password) in USERS.iter().zip(given) {
            let password = NewPassword::parse(Password::new(password.into_bytes()));
            let password = password.map_err(|error| CliError::failed(error.to_string()))?;
            let hash = hasher.hash(password).await.map_err(|error| CliError::failed(error.to_string()))?;
            let user = NewUser {
                username: Username::parse(username).map_err(|error| CliError::failed(error.to_string()))?,
                password_hash: hash,
                password_salt: None,
                role: (*role).to_owned(),
                name: Some((*name).to_owned()),
                email: Some(format!("{username}@example.com")),
                disabled: false,
            };
            users.add(user).await?;
        }
        users.close().await;
        Ok::<_, CliError>(())
    })??;
    Ok(passwords)
}

fn introduce(addresses: &[SocketAddr], config: &Path, passwords: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let base = addresses.first().map_or_else(String::new, |address| format!("http://{address}"));
    writeln!(out, "\nPortcullis stands at {base}, a sample CMS behind it.\n")?;
    for ((username, role, _), password) in USERS.iter().zip(passwords) {
        writeln!(out, "  {role:<11} {username:<6} {password}")?;
    }
    let (_, _, eddie) = (&passwords[0], &passwords[2], &passwords[1]);
    writeln!(
        out,
        "\nOpen {base}/admin/content/news in a browser, or try, in another terminal:\n\n  \
         curl -i {base}/public/hello            # everybody\n  \
         curl -i {base}/admin/content/news      # 401: who are you?\n\n  \
         TOKEN=$(curl -s {base}/auth/login -d username=eddie -d password={eddie} | grep -o '\"token\":\"[^\"]*' | cut -d'\"' -f4)\n\n  \
         curl -i {base}/admin/content/news -H \"Authorization: Bearer $TOKEN\"   # an Editor may\n  \
         curl -i {base}/admin/schema/pages -H \"Authorization: Bearer $TOKEN\"   # 403: an Editor may not\n  \
         curl -i {base}/admin/content/news -H \"Authorization: Bearer $TOKEN\" -H 'X-Auth-User: sam'   # still eddie\n\n\
         The rules are in {}; change them and watch.\nCtrl-C stops, and removes everything.\n",
        config.display()
    )?;
    out.flush()
}

/// Answers every request with what it was told about it.
async fn serve_cms(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let service =
            service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(page(&request)) });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn page(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let headers = request.headers();
    let who = match (header(headers, "x-auth-user"), header(headers, "x-auth-role")) {
        (Some(user), Some(role)) => {
            format!("You are {user} (id {}), a {role}.", header(headers, "x-auth-id").unwrap_or("?"))
        }
        _ => "I do not know you; this page is for everybody.".to_owned(),
    };
    let text = format!("The sample CMS was asked: {} {}\n{who}\n", request.method(), request.uri());
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_the_example_can_be_replaced() {
        for address in ADDRESSES {
            assert_eq!(EXAMPLE.matches(address).count(), 1, "{address}");
        }
    }
}
