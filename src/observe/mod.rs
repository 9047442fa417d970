//! What operators see of a running gateway: metrics, the access log, the audit log.
//!
//! Labels come from closed sets, lines are single lines whatever a client sends, and neither ever
//! holds a token, a password or a hash.

pub mod audit;
pub mod lines;
pub mod metrics;
pub mod outbox;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Text on a terminal, JSON otherwise.
    pub fn automatic() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// Changes the level of the running program's log.
pub struct LogLevel(Box<dyn Fn(&str) + Send + Sync>);

impl LogLevel {
    /// `level`: error, warn, info, debug or trace.
    pub fn set(&self, level: &str) {
        (self.0)(level);
    }
}

fn filter(level: &str) -> EnvFilter {
    // The libraries' own chatter is for whoever asks for it by name, in RUST_LOG.
    std::env::var("RUST_LOG")
        .ok()
        .and_then(|directives| EnvFilter::try_new(directives).ok())
        .unwrap_or_else(|| EnvFilter::new(format!("warn,portcullis={level}")))
}

/// Sends the program's own log to standard error. To be called once; later calls change nothing.
pub fn start_logging(format: LogFormat, level: &str) -> LogLevel {
    let (filter_layer, handle) = reload::Layer::new(filter(level));
    let registry = tracing_subscriber::registry().with(filter_layer);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let _ = match format {
        LogFormat::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => {
            registry.with(layer.json().flatten_event(true).with_current_span(false)).try_init()
        }
    };
    LogLevel(Box::new(move |level| {
        let _ = handle.reload(filter(level));
    }))
}
