//! A whole connection through the service in memory: guard, hyper, handler, and a real upstream that
//! reads with a parser of its own. What reaches the upstream is what the client sent, in the client's
//! order, and only what the rules let a stranger have.
//!
//! Input: a byte that says in what pieces the rest arrives, then what a client sends on one connection.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use portcullis::config::reload::Loader;
use portcullis::config::snapshot::UserSource;
use portcullis::login::guard::Guard;
use portcullis::login::{Authority, Login};
use portcullis::login::session::LiveSessions;
use portcullis::observe::lines::LineSink;
use portcullis::observe::{LogFormat, start_logging};
use portcullis::server::worker::{ConnectionCount, Worker};
use portcullis::server::listener::{Arrival, Door};
use portcullis::server::{Gateway, connection, surroundings_at_start, users};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime, Runtime};
use tokio::sync::watch;
use tokio::task::yield_now;

use crate::framing::Message;

/// Who asks; nobody whose word counts.
const CLIENT: &str = "192.0.2.1";

/// What only the gateway may say, as every spelling folds to it.
const NEVER_PASSES: [&str; 15] = [
    "x-auth-id",
    "x-auth-user",
    "x-auth-role",
    "x-gateway-secret",
    "x-original-url",
    "x-original-uri",
    "x-original-method",
    "x-rewrite-url",
    "x-rewrite-uri",
    "x-override-url",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-forwarded-prefix",
    "x-forwarded-method",
    "x-middleware-subrequest",
];

/// What the upstream was asked: whole messages, and the beginning of one that never ended.
#[derive(Default)]
struct Seen {
    whole: Vec<Message>,
    broken: Vec<Vec<u8>>,
}

struct Bench {
    runtime: LocalRuntime,
    worker: Rc<Worker>,
    seen: Rc<RefCell<Seen>>,
    _end: watch::Sender<bool>,
    _folder: tempfile::TempDir,
    _stores: Runtime,
}

thread_local! {
    // Made once: a gateway serves many connections, and so does this one.
    static BENCH: Bench = Bench::new();
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build_local(LocalOptions::default())
            .expect("a runtime");
        // Of its own: the store's time is the world's.
        let stores = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let seen = Rc::new(RefCell::new(Seen::default()));
        let (end, ended) = watch::channel(false);
        let worker = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let upstream = listener.local_addr().expect("its address");
            tokio::task::spawn_local(serve_upstream(listener, Rc::clone(&seen)));
            let path = folder.path().join("gateway.yaml");
            let text = format!(
                "upstream: {{ url: 'http://{upstream}', idle_timeout: 1h }}\n\
                 roles: [Viewer]\n\
                 rules:\n\
                 \x20 - {{ path: /open/*, allow: public }}\n\
                 \x20 - {{ path: /read/*, methods: read, allow: public }}\n\
                 \x20 - {{ path: /in/*, allow: Viewer }}\n\
                 identity: {{ secret: {{ header: X-Gateway-Secret, value: the-gateways-own-word }} }}\n\
                 # No input finds it, so no password is ever hashed.\n\
                 login: {{ username_field: a-name-of-forty-letters-that-nobody-tries }}\n\
                 log: {{ access: true }}\n"
            );
            std::fs::write(&path, text).expect("a file");
            let loader = Loader::new(path);
            let (built, _) = loader.load(&surroundings_at_start()).expect("a valid file");
            let users = opened(&stores, &built.snapshot.fixed.users);
            let lines = LineSink::writing_to(std::io::sink()).expect("a thread");
            let level = start_logging(LogFormat::Json, "off");
            let sessions = LiveSessions::new();
            let hashes = built.snapshot.fixed.hashes.clone();
            let login = Login::new(users, Arc::clone(&sessions), Guard::new(), 1, hashes);
            let gateway = Gateway::new(built.snapshot, loader, login, sessions, lines, LogFormat::Json, level);
            Worker::new(gateway, ended)
        });
        Self { runtime, worker, seen, _end: end, _folder: folder, _stores: stores }
    }

    /// Sends `bytes`, `step` at a time, and returns what came back until the connection's end.
    fn talk(&self, bytes: &[u8], step: usize) -> Vec<u8> {
        self.runtime.block_on(async {
            let (client, server) = duplex(64 * 1024);
            let count = ConnectionCount::new(Arc::clone(&self.worker.gateway));
            let address = format!("{CLIENT}:40000").parse().expect("an address");
            let served = tokio::task::spawn_local(connection::serve(
                Rc::clone(&self.worker),
                server,
                Arrival { address, door: Door::Http, stranger: false },
                count,
                Worker::handle_http,
            ));
            let (mut reading, mut writing) = tokio::io::split(client);
            let sending = async {
                for piece in bytes.chunks(step) {
                    // Whoever has been refused is not listened to any more.
                    if writing.write_all(piece).await.is_err() {
                        break;
                    }
                    yield_now().await;
                }
                std::future::pending::<()>().await
            };
            let mut told = Vec::new();
            tokio::select! {
                _ = reading.read_to_end(&mut told) => {}
                () = sending => {}
            }
            drop((reading, writing));
            served.await.expect("the connection ended in a panic");
            told
        })
    }
}

/// [`users::open`] on a runtime of its own, from within another.
fn opened(stores: &Runtime, settings: &UserSource) -> Authority {
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| stores.block_on(users::open(settings)).expect("a store"));
        opening.join().expect("no panic")
    })
}

async fn serve_upstream(listener: TcpListener, seen: Rc<RefCell<Seen>>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        tokio::task::spawn_local(serve_one(stream, Rc::clone(&seen)));
    }
}

async fn serve_one(mut stream: TcpStream, seen: Rc<RefCell<Seen>>) {
    let (mut held, mut space) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(message) = Message::read(&held) {
            held.drain(..message.length);
            let body = if message.method == "HEAD" { "" } else { "ok" };
            seen.borrow_mut().whole.push(message);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        match stream.read(&mut space).await {
            Ok(length) if length > 0 => held.extend_from_slice(&space[..length]),
            _ => break,
        }
    }
    if !held.is_empty() {
        seen.borrow_mut().broken.push(held);
    }
}

/// See the module.
pub fn check(data: &[u8]) {
    let [step, bytes @ ..] = data else { return };
    if bytes.len() > 100_000 {
        return;
    }
    BENCH.with(|bench| {
        let told = bench.talk(bytes, usize::from(*step).max(1));
        let seen = std::mem::take(&mut *bench.seen.borrow_mut());
        let mut sent = Vec::new();
        let mut at = 0;
        while let Some(message) = Message::read(&bytes[at..]) {
            at += message.length;
            sent.push(message);
        }
        compare(&sent, &seen.whole);
        for message in &seen.whole {
            judge(&message.method, &message.target, &message.headers);
            for trailer in &message.trailers {
                let name = trailer.split(|byte| *byte == b':').next().unwrap_or_default();
                assert!(!is_the_gateways(&String::from_utf8_lossy(name)), "a trailer forges {name:?}");
            }
        }
        for broken in &seen.broken {
            let mut space = [httparse::EMPTY_HEADER; 128];
            let mut request = httparse::Request::new(&mut space);
            let Ok(httparse::Status::Complete(_)) = request.parse(broken) else {
                panic!("the upstream is sent half a head: {:?}", String::from_utf8_lossy(broken));
            };
            let headers: Vec<_> =
                request.headers.iter().map(|h| (h.name.to_ascii_lowercase(), h.value.to_vec())).collect();
            judge(request.method.expect("complete"), request.path.expect("complete"), &headers);
        }
        let answered = answers(&told, &sent);
        assert!(
            answered <= seen.whole.len(),
            "{answered} answers of the upstream's to {} requests",
            seen.whole.len()
        );
        assert_eq!(bench.worker.gateway.metrics.connections.get(), 0, "its place is free again");
    });
}

/// What the upstream got is what was sent: the same messages in the same order, though not all of them.
fn compare(sent: &[Message], got: &[Message]) {
    let mut left = sent.iter();
    for message in got {
        let found = left.any(|sent| {
            sent.method == message.method
                && origin_form(&sent.target) == message.target
                && sent.body == message.body
        });
        assert!(found, "nobody sent {message:?}; sent were {sent:?}");
    }
}

fn origin_form(target: &str) -> String {
    let Some(rest) = target.split_once("://").map(|(_, rest)| rest).filter(|_| !target.starts_with('/'))
    else {
        return target.to_owned();
    };
    let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// What a stranger may have the upstream do.
fn judge(method: &str, target: &str, headers: &[(String, Vec<u8>)]) {
    let path = target.split('?').next().unwrap_or_default();
    let mut read = path.to_owned();
    while let Some(again) = decoded(&read).filter(|again| *again != read) {
        read = again;
    }
    let read = read.to_lowercase();
    let segments: Vec<&str> = read.split('/').filter(|segment| !segment.is_empty()).collect();
    assert!(!segments.iter().any(|segment| matches!(*segment, "." | "..")), "{path}");
    let is_read = |method: &str| matches!(method, "" | "GET" | "HEAD" | "OPTIONS");
    match segments.first() {
        Some(&"open") => {}
        Some(&"read") => {
            assert!(is_read(method), "{method} {path}");
            for (name, value) in headers.iter().filter(|(name, _)| fold(name).contains("method")) {
                let named = String::from_utf8_lossy(value).trim().to_uppercase();
                assert!(is_read(&named), "{method} {path} with {name}: {named}");
            }
        }
        _ => panic!("{method} {path} is nothing for strangers"),
    }
    let count = |wanted: &str| headers.iter().filter(|(name, _)| name == wanted).count();
    assert_eq!(count("host"), 1, "{headers:?}");
    assert!(count("content-length") + count("transfer-encoding") <= 1, "{headers:?}");
    for (name, value) in headers {
        let secret = name == "x-gateway-secret" && value == b"the-gateways-own-word";
        assert!(secret || !is_the_gateways(name), "{name} is forged");
        if fold(name) == "x-forwarded-for" {
            assert_eq!(value, CLIENT.as_bytes(), "{name}");
        }
        if name == "authorization" {
            assert!(!value.to_ascii_lowercase().starts_with(b"bearer "), "a token goes on");
        }
    }
    assert_eq!(headers.iter().filter(|(name, _)| fold(name) == "x-gateway-secret").count(), 1);
    assert_eq!(headers.iter().filter(|(name, _)| fold(name) == "x-forwarded-for").count(), 1);
}

fn fold(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

fn is_the_gateways(name: &str) -> bool {
    NEVER_PASSES.contains(&fold(name).as_str())
}

fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let digit = |byte: &u8| (*byte as char).to_digit(16);
        match (*first, rest) {
            (b'%', [high, low, after @ ..]) if digit(high).is_some() && digit(low).is_some() => {
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                rest = after;
            }
            (other, _) => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Reads what the client was told, answer by answer; returns how many of them are the upstream's.
fn answers(told: &[u8], sent: &[Message]) -> usize {
    let (mut at, mut number, mut upstreams) = (0, 0, 0);
    while at < told.len() {
        let mut space = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut space);
        let shown = |at: usize| String::from_utf8_lossy(&told[at..]).into_owned();
        let Ok(httparse::Status::Complete(head)) = response.parse(&told[at..]) else {
            panic!("no answer: {:?}", shown(at));
        };
        at += head;
        let status = response.code.expect("complete");
        if status < 200 {
            continue;
        }
        assert!(number <= sent.len(), "more answers than requests: {:?}", String::from_utf8_lossy(told));
        let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
        let length =
            length.map_or(0, |h| std::str::from_utf8(h.value).expect("digits").parse().expect("a number"));
        let bodiless =
            sent.get(number).is_some_and(|sent| sent.method == "HEAD") || matches!(status, 204 | 304);
        let body = if bodiless {
            &[][..]
        } else {
            told.get(at..at + length).unwrap_or_else(|| panic!("{:?}", shown(at)))
        };
        at += body.len();
        upstreams += usize::from(status == 200 && body == b"ok");
        number += 1;
    }
    upstreams
}
