//! Metrics, all named `portcullis_*`. Label values come from closed sets: rules, decisions and codes
//! of this program, never a path, a user or anything else that a client sends.

use std::sync::Arc;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::config::certificates::Certificate;
use crate::wire::answer::LockedBy;
use crate::wire::proxy_protocol::Outcome;

/// The upper bounds of the duration histogram, in seconds.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Every metric of the process.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    trials: IntCounterVec,
    refusals: IntCounterVec,
    proxy_headers: IntCounterVec,
    responses: [IntCounter; 6],
    /// How a token was found to be what it is.
    pub tokens: Tokens,
    logins: IntCounterVec,
    lockouts: IntCounterVec,
    /// Bans that hold.
    pub bans: IntGauge,
    /// Failed logins, by account, address and both, that are remembered.
    pub throttled: IntGauge,
    /// Failed attempts to read or write them in the database.
    pub throttle_failures: IntCounter,
    /// From the first look at a request to the last byte of its response.
    pub seconds: Histogram,
    /// Downstream connections that are open.
    pub connections: IntGauge,
    /// Panics, on whatever thread. Always 0, or there is a bug to report.
    pub panics: IntCounter,
    /// Clients given up for standing still while others waited for the connection to the upstream.
    pub hurried: IntCounter,
    /// Access-log lines given up because nobody took them.
    pub lines_dropped: IntCounter,
    /// 1 if the configuration file as it is now is in force.
    pub reload_successful: IntGauge,
    /// When the configuration in force was loaded, in Unix seconds.
    pub reload_time: IntGauge,
    /// Rules in force.
    pub rules: IntGauge,
    /// Requests sent again because a connection failed.
    pub retries: IntCounter,
    signing_keys: IntGauge,
    signing_key_created: IntGauge,
    logouts: IntCounterVec,
    rotations: IntCounterVec,
    revocations: IntGauge,
    stores: IntGaugeVec,
    upstreams: IntGaugeVec,
    sessions_read: IntGauge,
    certificate_expiry: IntGaugeVec,
    handshakes: [IntCounter; 5],
    jwks_age: IntGaugeVec,
    jwks_failures: IntCounterVec,
}

/// Counters of token verification, resolved once.
#[derive(Clone)]
pub struct Tokens {
    /// Already verified.
    pub cached: IntCounter,
    /// Verified now.
    pub verified: IntCounter,
    /// Genuine but expired.
    pub expired: IntCounter,
    /// Not genuine.
    pub invalid: IntCounter,
    /// Genuine, but ended before its time.
    pub revoked: IntCounter,
}

/// What is kept outside this process.
#[derive(Clone, Copy, Debug)]
pub enum Store {
    /// `users`
    Users,
    /// `sessions`
    Sessions,
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handshake {
    /// The connection is served.
    Success,
    /// The client and we did not come to terms, or it left.
    Failed,
    /// It did not come to its end in time.
    TimedOut,
    /// The client spoke plain HTTP.
    PlainHttp,
    /// Given up in favour of newer ones.
    Crowded,
}

impl Handshake {
    const ALL: [Self; 5] = [Self::Success, Self::Failed, Self::TimedOut, Self::PlainHttp, Self::Crowded];

    fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::PlainHttp => "plain_http",
            Self::Crowded => "crowded",
        }
    }
}

/// Counters of one rule, resolved when the rules are loaded.
#[derive(Clone, Debug)]
pub struct RuleCounters {
    /// Forwarded.
    pub allowed: IntCounter,
    /// Answered 401.
    pub unauthorized: IntCounter,
    /// Answered 403.
    pub forbidden: IntCounter,
}

impl Metrics {
    /// All metrics, at zero.
    ///
    /// # Panics
    /// Never: every name is valid and registered once.
    pub fn new() -> Self {
        let registry = Registry::new();
        let build = |name: &str, help: &str| Opts::new(format!("portcullis_{name}"), help);
        macro_rules! register {
            ($metric:expr) => {{
                let metric = $metric.expect("the name and labels are valid");
                registry.register(Box::new(metric.clone())).expect("each metric is registered once");
                metric
            }};
        }
        let tokens = register!(IntCounterVec::new(
            build("token_verifications_total", "Bearer tokens, by outcome"),
            &["outcome"]
        ));
        let responses = register!(IntCounterVec::new(
            build("responses_total", "Responses, by class of status"),
            &["class"]
        ));
        let handshakes = register!(IntCounterVec::new(
            build("tls_handshakes_total", "TLS handshakes with clients, by outcome"),
            &["outcome"]
        ));
        let info =
            register!(IntGaugeVec::new(build("build_info", "Always 1; says what is running"), &["version"]));
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            requests: register!(IntCounterVec::new(
                build("requests_total", "Requests that rules were asked about, by rule and decision"),
                &["rule", "decision"]
            )),
            trials: register!(IntCounterVec::new(
                build(
                    "trial_requests_total",
                    "Requests that a rule with `mode: report` would have answered otherwise"
                ),
                &["rule", "would"]
            )),
            proxy_headers: register!(IntCounterVec::new(
                build(
                    "proxy_headers_total",
                    "Connections that begin, or should, with a PROXY protocol header, by outcome"
                ),
                &["outcome"]
            )),
            refusals: register!(IntCounterVec::new(
                build("refusals_total", "Error answers of the gateway's own, by code"),
                &["code"]
            )),
            responses: ["other", "1xx", "2xx", "3xx", "4xx", "5xx"]
                .map(|class| responses.with_label_values(&[class])),
            tokens: Tokens {
                cached: tokens.with_label_values(&["cached"]),
                verified: tokens.with_label_values(&["verified"]),
                expired: tokens.with_label_values(&["expired"]),
                invalid: tokens.with_label_values(&["invalid"]),
                revoked: tokens.with_label_values(&["revoked"]),
            },
            logins: register!(IntCounterVec::new(
                build("logins_total", "Login attempts, by outcome"),
                &["outcome"]
            )),
            lockouts: register!(IntCounterVec::new(
                build("lockouts_total", "Times that failed logins locked somebody out, by what is locked"),
                &["reason"]
            )),
            bans: register!(IntGauge::with_opts(build("bans", "Accounts and networks that are banned"))),
            throttled: register!(IntGauge::with_opts(build(
                "login_failure_counts",
                "Accounts, addresses and pairs of both whose failed logins are remembered"
            ))),
            throttle_failures: register!(IntCounter::with_opts(build(
                "login_failure_store_errors_total",
                "Failed attempts to read or write bans and failed logins in the database"
            ))),
            seconds: register!(Histogram::with_opts(
                HistogramOpts::new(
                    "portcullis_request_seconds",
                    "From the first look at a request to the last byte of its response"
                )
                .buckets(SECONDS.to_vec())
            )),
            connections: register!(IntGauge::with_opts(build("connections", "Open downstream connections"))),
            panics: register!(IntCounter::with_opts(build("panics_total", "Panics, each of them a bug"))),
            hurried: register!(IntCounter::with_opts(build(
                "stalled_clients_cut_total",
                "Clients cut for standing still while others waited for a connection to the upstream"
            ))),
            lines_dropped: register!(IntCounter::with_opts(build(
                "log_lines_dropped_total",
                "Access-log lines dropped because they were not taken in time"
            ))),
            reload_successful: register!(IntGauge::with_opts(build(
                "config_last_reload_successful",
                "1 if the configuration file as it is now is in force"
            ))),
            reload_time: register!(IntGauge::with_opts(build(
                "config_last_reload_timestamp_seconds",
                "When the configuration in force was loaded"
            ))),
            rules: register!(IntGauge::with_opts(build("config_rules", "Rules in force"))),
            retries: register!(IntCounter::with_opts(build(
                "upstream_retries_total",
                "Requests sent again because a connection failed before an answer"
            ))),
            signing_keys: register!(IntGauge::with_opts(build(
                "signing_keys",
                "Keys of the gateway's own whose tokens count"
            ))),
            signing_key_created: register!(IntGauge::with_opts(build(
                "signing_key_created_timestamp_seconds",
                "When the key that signs was made; 0 for a secret"
            ))),
            logouts: register!(IntCounterVec::new(
                build("logouts_total", "Logouts with a genuine token, by outcome"),
                &["outcome"]
            )),
            rotations: register!(IntCounterVec::new(
                build("rotations_total", "Rotations of a genuine token, by outcome"),
                &["outcome"]
            )),
            revocations: register!(IntGauge::with_opts(build(
                "revocations",
                "What was revoked and has not expired, in memory"
            ))),
            stores: register!(IntGaugeVec::new(
                build("store_up", "1 if the store answered when it was last asked"),
                &["store"]
            )),
            upstreams: register!(IntGaugeVec::new(
                build("upstream_up", "1 if an upstream takes connections and answers, as far as is known"),
                &["upstream"]
            )),
            sessions_read: register!(IntGauge::with_opts(build(
                "sessions_last_read_timestamp_seconds",
                "When the session store was last read"
            ))),
            certificate_expiry: register!(IntGaugeVec::new(
                build(
                    "certificate_expiry_timestamp_seconds",
                    "When a certificate that clients are shown expires"
                ),
                &["certificate"]
            )),
            handshakes: Handshake::ALL.map(|outcome| handshakes.with_label_values(&[outcome.name()])),
            jwks_age: register!(IntGaugeVec::new(
                build("jwks_last_refresh_timestamp_seconds", "When a trusted issuer's keys were last read"),
                &["issuer"]
            )),
            jwks_failures: register!(IntCounterVec::new(
                build("jwks_refresh_failures_total", "Failed attempts to read a trusted issuer's keys"),
                &["issuer"]
            )),
            registry,
        };
        // There from the beginning, or an alert would miss the first one.
        metrics.rotations.with_label_values(&["reuse"]);
        for outcome in Outcome::ALL {
            metrics.proxy_headers.with_label_values(&[outcome.code()]);
        }
        #[cfg(target_os = "linux")]
        metrics
            .registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("registered once");
        metrics
    }

    /// The counters of a rule; `label` is its methods and path as in the file.
    pub fn rule(&self, label: &str) -> RuleCounters {
        let counter = |decision: &str| self.requests.with_label_values(&[label, decision]);
        RuleCounters {
            allowed: counter("allowed"),
            unauthorized: counter("unauthorized"),
            forbidden: counter("forbidden"),
        }
    }

    /// A rule on trial would have given another answer.
    pub fn trial(&self, label: &str, would: &str) {
        self.trials.with_label_values(&[label, would]).inc();
    }

    /// An error answer.
    pub fn refusal(&self, code: &str) {
        self.refusals.with_label_values(&[code]).inc();
    }

    /// A connection that began with a PROXY protocol header, or should have.
    pub fn proxy_header(&self, outcome: Outcome) {
        self.proxy_headers.with_label_values(&[outcome.code()]).inc();
    }

    /// A response, whoever made it.
    pub fn response(&self, status: u16) {
        let class = usize::from(status / 100);
        self.responses[if class < 6 { class } else { 0 }].inc();
    }

    /// A login attempt: `success`, or the reason that it failed for.
    pub fn login(&self, outcome: &str) {
        self.logins.with_label_values(&[outcome]).inc();
    }

    /// A TLS handshake ended.
    pub fn handshake(&self, outcome: Handshake) {
        self.handshakes[outcome as usize].inc();
    }

    /// The certificates in use: the ones before are forgotten.
    pub fn certificates(&self, certificates: &[Certificate]) {
        self.certificate_expiry.reset();
        for certificate in certificates {
            let end = i64::try_from(certificate.validity.1).unwrap_or(i64::MAX);
            self.certificate_expiry.with_label_values(&[&certificate.file]).set(end);
        }
    }

    /// How many keys of our own there are, and when the one that signs was made (Unix seconds).
    pub fn keys(&self, count: usize, made: Option<u64>) {
        self.signing_keys.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.signing_key_created.set(made.and_then(|made| i64::try_from(made).ok()).unwrap_or(0));
    }

    /// A logout: `success`, or one of the words of [`crate::login::session::Outcome`].
    pub fn logout(&self, outcome: &str) {
        self.logouts.with_label_values(&[outcome]).inc();
    }

    /// A rotation, likewise.
    pub fn rotation(&self, outcome: &str) {
        self.rotations.with_label_values(&[outcome]).inc();
    }

    /// How many revocations are in memory.
    pub fn revocations(&self, count: usize) {
        self.revocations.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether a store answered.
    pub fn store(&self, store: Store, answers: bool) {
        let name = match store {
            Store::Users => "users",
            Store::Sessions => "sessions",
        };
        self.stores.with_label_values(&[name]).set(i64::from(answers));
    }

    /// Whether an upstream, named by its URL, is up.
    pub fn upstream(&self, url: &str, up: bool) {
        self.upstreams.with_label_values(&[url]).set(i64::from(up));
    }

    /// There are other upstreams from now on: those before are forgotten.
    pub fn forget_upstreams(&self) {
        self.upstreams.reset();
    }

    /// The session store was read at `now`, in Unix seconds.
    pub fn sessions_read(&self, now: u64) {
        self.sessions_read.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    /// Failures locked somebody out.
    pub fn lockout(&self, by: LockedBy) {
        self.lockouts.with_label_values(&[by.code()]).inc();
    }

    /// A trusted issuer's keys were read at `now`, or could not be.
    pub fn jwks(&self, issuer: &str, outcome: Result<u64, ()>) {
        match outcome {
            Ok(now) => self.jwks_age.with_label_values(&[issuer]).set(i64::try_from(now).unwrap_or(i64::MAX)),
            Err(()) => self.jwks_failures.with_label_values(&[issuer]).inc(),
        }
    }

    /// Everything, in Prometheus' text format.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Metrics that all threads share.
pub type SharedMetrics = Arc<Metrics>;
