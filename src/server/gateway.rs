//! What all threads share: the configuration in force, and how another takes its place.
//!
//! The configuration is swapped whole, by one pointer; whoever holds the old one finishes with it.
//! Not here: when to reload (`server`), what a configuration is (`config::snapshot`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::handler::unix_now;
use super::keys;
use crate::config::reload::{Fingerprints, LoadError, Loader, Watch};
use crate::config::snapshot::{Built, Fixed, MissingKey, Snapshot, Surroundings};
use crate::config::{Diagnostics, Source, raw};
use crate::login::Login;
use crate::login::session::LiveSessions;
use crate::observe::audit::{Audit, Event, KeyChange, Reason, Trigger};
use crate::observe::lines::LineSink;
use crate::observe::metrics::{Metrics, RuleCounters};
use crate::observe::outbox;
use crate::observe::{LogFormat, LogLevel};
use crate::policy::diff::differences;
use crate::policy::{Denied, Permit, RuleId};
use crate::proxy::Servers;

/// How many changed answers a reload's log line names.
const DIFFERENCES_SHOWN: usize = 20;

/// How often it is looked whether a command did something. Within a second it is in the log.
const LOOK_FOR_COMMANDS: Duration = Duration::from_millis(500);

/// A configuration in force, with the metric handles that its requests need.
pub struct Active {
    /// What requests are served with.
    pub snapshot: Arc<Snapshot>,
    generation: u64,
    rules: Vec<RuleCounters>,
    no_rule: RuleCounters,
    /// The upstream's servers, as all threads together see them.
    pub servers: Arc<Servers>,
}

impl Active {
    fn new(snapshot: Snapshot, generation: u64, metrics: &Metrics, servers: Arc<Servers>) -> Self {
        let rules = snapshot.rule_labels.iter().map(|label| metrics.rule(label)).collect();
        metrics.rules.set(i64::try_from(snapshot.rule_labels.len()).unwrap_or(i64::MAX));
        Self { snapshot: Arc::new(snapshot), generation, rules, no_rule: metrics.rule("none"), servers }
    }

    /// Which configuration this is, counted from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A rule in a few words.
    pub fn rule_label(&self, rule: RuleId) -> &str {
        &self.snapshot.rule_labels[rule.index()]
    }

    /// Counts a decision.
    pub fn count(&self, rule: Option<RuleId>, decision: &Result<Permit, Denied>) {
        let counters = rule.map_or(&self.no_rule, |rule| &self.rules[rule.index()]);
        match decision {
            Ok(_) => counters.allowed.inc(),
            Err(Denied::Anonymous) => counters.unauthorized.inc(),
            Err(Denied::Role) => counters.forbidden.inc(),
        }
    }

    /// Counts and logs what a rule on trial would have answered, if it is another answer.
    pub fn count_trial(
        &self,
        metrics: &Metrics,
        rule: RuleId,
        did: Result<(), Denied>,
        would: Result<(), Denied>,
    ) {
        if did == would {
            return;
        }
        let word = |decision: Result<(), Denied>| match decision {
            Ok(()) => "allowed",
            Err(Denied::Anonymous) => "401",
            Err(Denied::Role) => "403",
        };
        let label = self.rule_label(rule);
        metrics.trial(label, word(would));
        tracing::info!(
            rule = label,
            answered = word(did),
            would = word(would),
            "a rule on trial would differ"
        );
    }
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Not serving yet.
    Starting,
    /// Serving.
    Ready,
    /// Serving, but about to stop.
    Draining,
}

/// How the last attempt to load the configuration went.
#[derive(Clone, Debug)]
pub struct LastLoad {
    /// Unix seconds.
    pub at: u64,
    /// Why it was refused.
    pub error: Option<String>,
}

/// What all threads share.
pub struct Gateway {
    current: ArcSwap<Active>,
    generation: AtomicU64,
    stage: AtomicU8,
    /// Open downstream connections.
    pub(super) connections: AtomicUsize,
    warned_of_proxy: AtomicBool,
    warned_of_header: AtomicBool,
    loader: Loader,
    /// Held by whoever is loading a configuration: one at a time.
    surroundings: tokio::sync::Mutex<Surroundings>,
    last_load: Mutex<LastLoad>,
    /// Set once the files are watched.
    pub(super) watch: OnceLock<Watch>,
    /// Where HTTPS is served, for whoever is sent there.
    pub(super) https_port: OnceLock<u16>,
    keys_wanted: Notify,
    /// Told of every swap.
    pub(super) swapped: Notify,
    /// Told when the upstream is another.
    pub(super) upstream_changed: Notify,
    level: LogLevel,
    /// Every metric.
    pub metrics: Metrics,
    /// Where log lines go.
    pub lines: LineSink,
    /// What they look like.
    pub log_format: LogFormat,
    /// Checks credentials.
    pub login: Arc<Login>,
    /// Knows which tokens are over.
    pub sessions: Arc<LiveSessions>,
    /// Where everything runs that may wait.
    pub control: Handle,
}

impl Gateway {
    /// A gateway that serves `snapshot` first. To be called on the control runtime.
    pub fn new(
        snapshot: Snapshot,
        loader: Loader,
        login: Login,
        sessions: Arc<LiveSessions>,
        lines: LineSink,
        log_format: LogFormat,
        level: LogLevel,
    ) -> Arc<Self> {
        let metrics = Metrics::new();
        let servers = Arc::new(Servers::new(snapshot.upstream.as_ref(), None));
        let gateway = Arc::new(Self {
            current: ArcSwap::from_pointee(Active::new(snapshot, 1, &metrics, servers)),
            generation: AtomicU64::new(1),
            stage: AtomicU8::new(Stage::Starting as u8),
            connections: AtomicUsize::new(0),
            warned_of_proxy: AtomicBool::new(false),
            warned_of_header: AtomicBool::new(false),
            loader,
            surroundings: tokio::sync::Mutex::default(),
            last_load: Mutex::new(LastLoad { at: unix_now(), error: None }),
            watch: OnceLock::new(),
            https_port: OnceLock::new(),
            keys_wanted: Notify::new(),
            swapped: Notify::new(),
            upstream_changed: Notify::new(),
            level,
            metrics,
            lines,
            log_format,
            login: Arc::new(login),
            sessions,
            control: Handle::current(),
        });
        let tls = gateway.current().snapshot.tls.clone();
        gateway.metrics.certificates(tls.as_deref().map_or(&[], |tls| &tls.certificates));
        gateway.note(gateway.last_load());
        gateway
    }

    /// The configuration in force.
    pub fn current(&self) -> Arc<Active> {
        self.current.load_full()
    }

    /// Changes whenever [`Gateway::current`] does.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Where the process is in its life.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Starting,
            1 => Stage::Ready,
            _ => Stage::Draining,
        }
    }

    /// Whether requests that need a token can be served, for whoever sends some here.
    pub fn is_ready(&self) -> bool {
        self.stage() == Stage::Ready && self.sessions.is_loaded()
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// How the last attempt to load the configuration went.
    pub fn last_load(&self) -> LastLoad {
        self.last_load.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The configuration file, as given.
    pub fn config_path(&self) -> &std::path::Path {
        self.loader.path()
    }

    /// Writes an audit line.
    pub fn audit(&self, audit: &Audit<'_>) {
        let mut line = Vec::with_capacity(256);
        audit.write(self.log_format, &mut line);
        self.lines.deliver(line);
    }

    /// A token names a key that is not known: the key folder or a trusted issuer may have a new one.
    /// Looked for soon, and never while a request waits.
    pub fn look_for_keys(&self) {
        self.keys_wanted.notify_one();
    }

    /// Waits until an unknown key makes looking worth while, and has the key folder looked at.
    pub async fn keys_wanted(&self) {
        self.keys_wanted.notified().await;
        self.look_at_files();
    }

    /// Has the configuration's files looked at, without waiting for news of them.
    pub(super) fn look_at_files(&self) {
        if let Some(watch) = self.watch.get() {
            watch.look();
        }
    }

    /// Says, once, that somebody untrusted speaks for others.
    pub fn warn_of_undeclared_proxy(&self, peer: std::net::IpAddr) {
        if !self.warned_of_proxy.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %peer,
                "requests from this address carry X-Forwarded-For or Forwarded, which is not believed: if it is a load \
                 balancer of yours, list it in 'trusted_proxies', or everybody seems to come from there"
            );
        }
    }

    /// Says, once, that a connection was closed for its PROXY protocol header, or for having none.
    pub fn warn_of_proxy_header(&self, peer: std::net::IpAddr, why: &'static str) {
        if !self.warned_of_header.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %peer,
                why,
                "a connection was closed for its PROXY protocol header, or for having none: see 'proxy_protocol' \
                 and 'trusted_proxies'; further ones are counted in portcullis_proxy_headers_total"
            );
        }
    }

    /// Loads the configuration again and swaps it in if it is valid; the old one stays otherwise.
    ///
    /// # Errors
    /// Why it was refused; the log has said so.
    pub async fn reload(self: &Arc<Self>, trigger: Trigger) -> Result<(), LoadError> {
        let surroundings = self.surroundings.lock().await;
        self.reload_with(&surroundings, trigger).await
    }

    /// As [`Gateway::reload`], with the keys at `url` as they were just fetched. Nothing happens if
    /// they are the same as before.
    pub async fn reload_keys(self: &Arc<Self>, url: &str, jwks: String) -> Result<(), LoadError> {
        let mut surroundings = self.surroundings.lock().await;
        if surroundings.fetched.get(url) == Some(&jwks) {
            return Ok(());
        }
        let before = surroundings.fetched.insert(url.to_owned(), jwks);
        let outcome = self.reload_with(&surroundings, Trigger::Keys).await;
        if outcome.is_err() {
            // Try again with the next fetch; until then what was good stays.
            match before {
                Some(before) => surroundings.fetched.insert(url.to_owned(), before),
                None => surroundings.fetched.remove(url),
            };
        }
        outcome
    }

    async fn reload_with(
        self: &Arc<Self>,
        surroundings: &Surroundings,
        trigger: Trigger,
    ) -> Result<(), LoadError> {
        // A key that has gone is a mistake while the gateway runs, and no reason to make another.
        let given = Surroundings {
            fetched: surroundings.fetched.clone(),
            missing_key: MissingKey::Refuse,
            now: unix_now(),
        };
        let loader = self.loader.clone();
        let old = self.current();
        let loaded = tokio::task::spawn_blocking(move || {
            let (loaded, files) = loader.load_as_it_stands(&given, &old.snapshot.watched);
            let with_changes = loaded.map(|(built, source)| {
                let changes = Changes::between(&old.snapshot, &built.snapshot);
                (built, source, changes)
            });
            (with_changes, files)
        });
        let (loaded, files) = loaded.await.unwrap_or_else(|_| {
            let broken = LoadError::Unreadable("loading the configuration broke off".to_owned());
            (Err(broken), Fingerprints::default())
        });
        let at = unix_now();
        match loaded {
            Ok((Built { snapshot, warnings }, source, changes)) => {
                warn_of(&warnings, &source);
                if let Some(watch) = self.watch.get() {
                    watch.follow(snapshot.watched.clone(), files);
                }
                self.swap(snapshot, &changes, trigger);
                self.note(LastLoad { at, error: None });
                Ok(())
            }
            Err(error) => {
                if let (LoadError::Invalid(.., named), Some(watch)) = (&error, self.watch.get()) {
                    // The file may be right as soon as what it names is there.
                    let mut followed = self.current().snapshot.watched.clone();
                    followed.extend_from_slice(named);
                    watch.follow(followed, files);
                }
                let told = error.to_string();
                tracing::error!(
                    reason = trigger.code(),
                    problems = told,
                    "the configuration is refused; the old one stays in force"
                );
                self.audit_reload(Event::ReloadRefused, trigger);
                self.note(LastLoad { at, error: Some(told) });
                Err(error)
            }
        }
    }

    fn note(&self, load: LastLoad) {
        let good = load.error.is_none();
        self.metrics.reload_successful.set(i64::from(good));
        if good {
            self.metrics.reload_time.set(i64::try_from(load.at).unwrap_or(i64::MAX));
        }
        *self.last_load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }

    fn swap(&self, mut snapshot: Snapshot, changes: &Changes, trigger: Trigger) {
        let old = self.current();
        self.level.set(level_name(snapshot.log.level));
        for name in old.snapshot.fixed.differences(&snapshot.fixed) {
            tracing::warn!("'{name}' changes only with a restart; the rest of the configuration applies now");
        }
        snapshot.tls = match (old.snapshot.tls.clone(), snapshot.tls) {
            // The listeners stay what they are until the next start.
            (Some(old), None) => Some(old),
            (None, _) => None,
            (Some(old), Some(new)) => Some(Arc::new(new.continuing(&old))),
        };
        self.metrics.certificates(snapshot.tls.as_deref().map_or(&[], |tls| &tls.certificates));
        let servers = if old.snapshot.upstream == snapshot.upstream {
            Arc::clone(&old.servers)
        } else {
            Arc::new(Servers::new(snapshot.upstream.as_ref(), Some(&old.servers)))
        };
        let kids = |snapshot: &Snapshot| -> BTreeSet<String> {
            snapshot.keys.ring.keys().iter().map(|one| one.key.kid().to_owned()).collect()
        };
        let (had, has) = (kids(&old.snapshot), kids(&snapshot));
        let generation = old.generation + 1;
        self.current.store(Arc::new(Active::new(snapshot, generation, &self.metrics, servers)));
        self.generation.store(generation, Ordering::Release);
        self.swapped.notify_one();
        self.upstream_changed.notify_one();
        tracing::info!(
            reason = trigger.code(),
            rules_added = changes.added.join("; "),
            rules_removed = changes.removed.join("; "),
            answers_changed = changes.count,
            answers = changes.answers.join("; "),
            "the configuration is reloaded"
        );
        self.audit_reload(Event::Reload, trigger);
        for kid in has.difference(&had) {
            keys::audit(self, KeyChange::Published, kid);
        }
        for kid in had.difference(&has) {
            keys::audit(self, KeyChange::Gone, kid);
        }
    }

    fn audit_reload(&self, event: Event, trigger: Trigger) {
        self.audit(&Audit { reason: Some(Reason::Trigger(trigger)), ..Audit::of(event) });
    }
}

/// Writes the audit lines of what commands do, until dropped.
pub(super) async fn log_commands(gateway: Arc<Gateway>) {
    // What another process was about to write when it ended is this one's to write.
    let mut unfinished = true;
    loop {
        let logging = Arc::clone(&gateway);
        let look = move || outbox::take(&logging.current().snapshot.state, unfinished, |e| logging.audit(e));
        let _ = tokio::task::spawn_blocking(look).await;
        unfinished = false;
        tokio::time::sleep(LOOK_FOR_COMMANDS).await;
    }
}

/// What a reload changes.
struct Changes {
    added: Vec<String>,
    removed: Vec<String>,
    answers: Vec<String>,
    count: usize,
}

impl Changes {
    fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let text = |snapshot: &Snapshot| -> BTreeSet<String> {
            let rules = snapshot.policy.rules().iter().zip(&snapshot.rule_labels);
            rules.map(|(rule, label)| format!("{label}: {}", snapshot.policy.wording(rule.allow))).collect()
        };
        let (before, after) = (text(old), text(new));
        let shown = |set: std::collections::btree_set::Difference<'_, String>| {
            set.take(DIFFERENCES_SHOWN).cloned().collect::<Vec<_>>()
        };
        let (answers, count) = if before == after && old.policy.roles() == new.policy.roles() {
            (Vec::new(), 0)
        } else {
            differences(&old.policy, &new.policy, DIFFERENCES_SHOWN)
        };
        Self {
            added: shown(after.difference(&before)),
            removed: shown(before.difference(&after)),
            answers: answers
                .into_iter()
                .map(|d| format!("{} {} as {}: {} -> {}", d.method, d.path, d.caller, d.before, d.after))
                .collect(),
            count,
        }
    }
}

pub(super) fn warn_of(warnings: &Diagnostics, source: &Source) {
    for warning in warnings.iter() {
        let place = warning.at.map_or(source.name.clone(), |at| at.with_name(&source.name));
        tracing::warn!("{place}: {}", warning.problem);
    }
}

pub(super) fn level_name(level: raw::LogLevel) -> &'static str {
    match level {
        raw::LogLevel::Error => "error",
        raw::LogLevel::Warn => "warn",
        raw::LogLevel::Info => "info",
        raw::LogLevel::Debug => "debug",
        raw::LogLevel::Trace => "trace",
    }
}

impl Fixed {
    /// The keys that differ and need a restart.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (differs, name) in [
            (self.listen != other.listen || self.socket_mode != other.socket_mode, "listen"),
            (self.tls != other.tls, "tls"),
            (self.redirect != other.redirect, "tls.redirect"),
            (self.admin != other.admin, "admin"),
            (self.forward_auth != other.forward_auth, "forward_auth.listen"),
            (self.workers != other.workers, "workers"),
            (self.users != other.users || self.hashes != other.hashes, "users"),
            (self.sessions != other.sessions, "sessions"),
            (self.log_format != other.log_format, "log.format"),
        ] {
            if differs {
                names.push(name);
            }
        }
        names
    }
}
