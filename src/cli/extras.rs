//! The small commands: `init`, `health`, `man`.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use super::{CliError, printed};
use crate::config::Preset;
use crate::config::snapshot::Snapshot;

/// The commented example at the top of the repository.
pub const EXAMPLE: &str = include_str!("../../gateway.yaml");

/// For the whole question.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// The beginning of a file with a preset; `NAME` stands for its name and `TITLE` for what it says of itself.
const STARTER: &str = "\
# The gateway in front of a CMS that is known: TITLE.
# `portcullis check` says what the preset fills in and everything that is wrong; docs/cms/NAME.md leads from an
# existing site to a protected one. Whatever is written here wins over the preset.
preset: NAME

# Where clients connect.
listen: 127.0.0.1:8080

# Probes, metrics, status, reload. Never make it public; false turns it off.
admin: 127.0.0.1:9090

# The CMS. It must not be reachable except through the gateway.
upstream: http://127.0.0.1:8000

# Rules of your own join the preset's. One for the same path, methods and query takes its place.
rules: []
#  - { path: /members/*, allow: authenticated }

# Without HTTPS in front, other than on localhost, browsers keep the cookie only so:
# login: { cookie: { secure: false } }
";

/// Writes a commented file to `path`: the example, or one for a CMS that is known.
///
/// # Errors
/// Code 2 if there is such a file already: nothing is overwritten.
pub fn init(path: &Path, preset: Option<Preset>, out: &mut dyn Write) -> Result<(), CliError> {
    let text = preset.map_or_else(|| EXAMPLE.to_owned(), starter);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| {
        let shown = path.display();
        match error.kind() {
            io::ErrorKind::AlreadyExists => CliError::usage(format!(
                "'{shown}' is there already and stays as it is; name another with --config"
            )),
            _ => CliError::failed(format!("cannot write '{shown}': {error}")),
        }
    })?;
    file.write_all(text.as_bytes())
        .map_err(|error| CliError::failed(format!("cannot write '{}': {error}", path.display())))?;
    let shown = path.display();
    let needs = if text.contains("${GATEWAY_SECRET}") {
        "set GATEWAY_SECRET (openssl rand -hex 32) for the gateway and for the CMS, "
    } else {
        ""
    };
    printed(writeln!(
        out,
        "wrote {shown}\nnext: {needs}edit 'upstream' and 'rules', then\n  portcullis check --config {shown}\n  \
         portcullis user add NAME --role ROLE --config {shown}\n  portcullis serve --config {shown}"
    ))
}

/// A file that names the preset, and shows as comments what comes with it.
fn starter(preset: Preset) -> String {
    let mut text = STARTER.replace("NAME", preset.name()).replace("TITLE", preset.title());
    if let Some(store) = preset.text().lines().find(|line| line.starts_with("  store: ")) {
        text.push_str("\n# With this, people sign in with what the CMS knows of them; without, with users of the gateway's own.\n");
        text.push_str(&format!("# users:\n# {store}\n"));
    }
    text.push_str("\n# What the preset says, line by line. Copy a line from here to change it.\n#\n");
    for line in preset.text().lines() {
        text.push_str(if line.is_empty() { "#" } else { "# | " });
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Asks the admin address of the configuration whether the gateway is ready.
///
/// # Errors
/// Code 1 if it is not, or does not answer; code 2 if the admin address is off.
pub fn health(snapshot: &Snapshot) -> Result<(), CliError> {
    let Some(address) = &snapshot.fixed.admin else {
        return Err(CliError::usage("'admin' is off in the configuration, so there is nobody to ask"));
    };
    let down =
        |error: io::Error| CliError::failed(format!("the gateway does not answer at {address}: {error}"));
    let resolved = address.to_socket_addrs().map_err(down)?.next().map(reachable);
    let resolved = resolved.ok_or_else(|| CliError::failed(format!("{address} is no address")))?;
    let mut stream = TcpStream::connect_timeout(&resolved, HEALTH_TIMEOUT).map_err(down)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT)).map_err(down)?;
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .map_err(down)?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).map_err(down)?;
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&answer);
    let reason = text.lines().last().unwrap_or_default().trim();
    Err(CliError::failed(format!("the gateway is not ready: {reason}")))
}

/// What listens on all addresses is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

/// Prints the main page, or writes one page a command into `folder`.
///
/// # Errors
/// The output cannot be written.
pub fn man(command: &clap::Command, folder: Option<&Path>, out: &mut dyn Write) -> Result<(), CliError> {
    match folder {
        Some(folder) => clap_mangen::generate_to(command.clone(), folder)
            .map_err(|error| CliError::failed(format!("cannot write to '{}': {error}", folder.display()))),
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(command.clone()).render(&mut page);
            printed(rendered.and_then(|()| out.write_all(&page)))
        }
    }
}
