//! The running gateway: what its threads share, how it starts, reloads and stops.
//!
//! [`listener`] accepts and hands connections to the request threads ([`worker`]), each of which serves
//! its own ([`connection`], [`handler`]). Everything that may wait for a disk, a database or another
//! server runs on the control runtime, the thread that [`run`] is called on.

pub mod connection;
pub mod drain;
pub mod gateway;
pub mod handler;
pub mod http2;
pub mod keys;
pub mod listener;
pub mod logins;
mod pages;
pub mod proxy_protocol;
mod redirect;
pub mod sessions;
pub mod tls;
pub mod trust;
pub mod upstreams;
pub mod users;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::config::reload::Loader;
use crate::config::snapshot::{Built, MissingKey, Surroundings};
use crate::config::{Source, raw};
use crate::login::Login;
use crate::login::guard::Guard;
use crate::login::session::LiveSessions;
use crate::observe::audit::Trigger;
use crate::observe::lines::LineSink;
use crate::observe::{LogFormat, start_logging};
pub use gateway::{Active, Gateway, Stage};
use gateway::{level_name, warn_of};
use handler::unix_now;
use listener::{Door, Listener};

/// Random bytes as hexadecimal digits, for names that must not repeat.
pub fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    // Without randomness there are no keys either, and serving ends before this matters.
    let _ = aws_lc_rs::rand::fill(&mut random);
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a configuration is loaded with at start: a signing key is made where there is none.
pub fn surroundings_at_start() -> Surroundings {
    Surroundings { missing_key: MissingKey::Make, now: unix_now(), ..Surroundings::default() }
}

/// Serves what `loader` has just loaded until told to stop. `ready` is told the addresses once requests
/// are taken.
///
/// # Errors
/// One sentence: what kept it from starting.
pub fn run(
    loader: Loader,
    (Built { snapshot, warnings }, source): (Built, Source),
    ready: impl FnOnce(&[std::net::SocketAddr]),
) -> Result<(), String> {
    let log_format = format_of(snapshot.log.format);
    let level = start_logging(log_format, level_name(snapshot.log.level));
    warn_of(&warnings, &source);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let lines = LineSink::start().map_err(|error| format!("cannot start: {error}"))?;
    let flushed = lines.clone();
    let outcome = runtime.block_on(async move {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let authority = users::open(&snapshot.fixed.users).await.map_err(|error| error.to_string())?;
        let sessions = LiveSessions::new();
        let hashes = snapshot.fixed.hashes.clone();
        let login = Login::new(authority, Arc::clone(&sessions), Guard::new(), cores, hashes);
        login.prepare().await;
        let gateway = Gateway::new(snapshot, loader, login, sessions, lines, log_format, level);
        count_panics(&gateway);
        let keeping = Arc::clone(&gateway);
        let outcome = serve(gateway, cores, ready).await;
        logins::keep_for_the_next_start(&keeping).await;
        if let Some(users) = keeping.login.users() {
            users.close().await;
        }
        outcome
    });
    flushed.flush();
    outcome
}

/// From here on a panic is counted and logged, on whatever thread. What it said is left out: it may hold
/// what a client sent.
fn count_panics(gateway: &Gateway) {
    let panics = gateway.metrics.panics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panics.inc();
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "a bug: something ended in a panic");
    }));
}

async fn serve(
    gateway: Arc<Gateway>,
    cores: usize,
    ready: impl FnOnce(&[std::net::SocketAddr]),
) -> Result<(), String> {
    let signals = drain::Signals::catch()?;
    let snapshot = Arc::clone(&gateway.current().snapshot);
    let fixed = &snapshot.fixed;
    let listeners = listener::open_all(&fixed.listen, fixed.redirect.as_ref(), fixed.tls, fixed.socket_mode)?;
    if let Some(port) = listeners.iter().find_map(|listener| listener.port_of(Door::Https)) {
        let _ = gateway.https_port.set(port);
    }
    let admin = match &fixed.admin {
        Some(address) => Some(listener::bind(address)?),
        None => None,
    };
    let asking =
        fixed.forward_auth.as_deref().map(|address| Listener::tcp(address, Door::ForwardAuth)).transpose()?;
    let following = sessions::Follower::start(Arc::clone(&gateway)).await?;
    let logins = logins::Keeper::start(Arc::clone(&gateway)).await;
    let (closing, closed) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let (mut handles, mut threads) = (Vec::new(), Vec::new());
    for index in 0..fixed.workers.unwrap_or(cores) {
        let started = worker::start(index, Arc::clone(&gateway), closed.clone(), ended.clone());
        let (handle, thread) = started.map_err(|error| format!("cannot start a request thread: {error}"))?;
        handles.push(handle);
        threads.push(thread);
    }
    follow_changes(&gateway)?;
    if let Some(admin) = admin {
        let address = listener::local_address(&admin)?;
        tracing::info!(%address, "admin listening");
        tokio::spawn(crate::admin::serve(Arc::clone(&gateway), admin));
    }
    tokio::spawn(following.run());
    tokio::spawn(trust::keep_fresh(Arc::clone(&gateway)));
    tokio::spawn(keys::keep(Arc::clone(&gateway)));
    tokio::spawn(upstreams::keep(Arc::clone(&gateway)));
    tokio::spawn(logins.run());
    tokio::spawn(users::watch(Arc::clone(&gateway)));
    tokio::spawn(users::recheck(Arc::clone(&gateway)));
    tokio::spawn(gateway::log_commands(Arc::clone(&gateway)));
    let mut addresses = Vec::new();
    let mut accepting = tokio::task::JoinSet::new();
    if let Some(listener) = asking {
        listener.announce();
        accepting.spawn(listener::accept(Arc::clone(&gateway), listener, handles.clone()));
    }
    for listener in listeners {
        listener.announce();
        addresses.extend(listener.tcp_address());
        accepting.spawn(listener::accept(Arc::clone(&gateway), listener, handles.clone()));
    }
    drop(handles);
    gateway.set_stage(Stage::Ready);
    ready(&addresses);
    drain::until_stopped(gateway, accepting, closing, end, threads, signals).await;
    Ok(())
}

/// Reloads whenever the files change or SIGHUP asks for it.
fn follow_changes(gateway: &Arc<Gateway>) -> Result<(), String> {
    let (sender, mut changes) = mpsc::unbounded_channel();
    let snapshot = Arc::clone(&gateway.current().snapshot);
    let (config, files) = (gateway.config_path().to_path_buf(), snapshot.watched.clone());
    let watch = crate::config::reload::watch(config, snapshot.hash.clone(), files, move || {
        let _ = sender.send(());
    })
    .map_err(|error| format!("cannot watch the configuration: {error}"))?;
    let _ = gateway.watch.set(watch);
    let following = Arc::clone(gateway);
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            // What came meanwhile is in the file already.
            while changes.try_recv().is_ok() {}
            let _ = following.reload(Trigger::File).await;
        }
    });
    let mut hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
        .map_err(|error| format!("cannot wait for signals: {error}"))?;
    let reloading = Arc::clone(gateway);
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            let _ = reloading.reload(Trigger::Signal).await;
        }
    });
    Ok(())
}

/// A moment between two attempts at something that failed.
const PAUSE: Duration = Duration::from_millis(50);

fn format_of(format: raw::LogFormat) -> LogFormat {
    match format {
        raw::LogFormat::Auto => LogFormat::automatic(),
        raw::LogFormat::Text => LogFormat::Text,
        raw::LogFormat::Json => LogFormat::Json,
    }
}

#[cfg(test)]
mod tests;
