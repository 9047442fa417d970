//! Connections in memory, in a time that passes only while nothing else can happen: no deadline here is
//! waited for, and none can be missed.

use std::ops::AsyncFnOnce;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::LocalOptions;
use tokio::time::{Instant, sleep};

use super::listener::Arrival;
use super::worker::{ConnectionCount, Worker};
use super::*;

/// A request that the gateway answers by itself, with a body.
const KEYS: &[u8] = b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: a\r\n\r\n";

/// Bytes on their way between the two ends of a connection.
const WIRE: usize = 64;

/// Runs `test` beside a request thread's worker whose file has these `limits`.
fn with_worker(limits: &str, test: impl AsyncFnOnce(Rc<Worker>)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let text = format!(
        "upstream: http://127.0.0.1:9\nroles: [Viewer]\nrules: [{{ path: /*, allow: Viewer }}]\n\
         log: {{ access: false }}\nlimits: {limits}\n"
    );
    std::fs::write(&path, text).unwrap();
    let loader = Loader::new(path);
    let (Built { snapshot, .. }, _) = loader.load(&surroundings_at_start()).unwrap();
    let builder = tokio::runtime::Builder::new_current_thread;
    // Of its own: the store's time is the world's.
    let stores = builder().enable_all().build().unwrap();
    let users = stores.block_on(users::open(&snapshot.fixed.users)).unwrap();
    let sessions = LiveSessions::new();
    let login = Login::new(users, Arc::clone(&sessions), Guard::new(), 1, snapshot.fixed.hashes.clone());
    let lines = LineSink::writing_to(std::io::sink()).unwrap();
    let runtime = builder().enable_all().start_paused(true).build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let level = start_logging(LogFormat::Json, "off");
        let gateway = Gateway::new(snapshot, loader, login, sessions, lines, LogFormat::Json, level);
        let (_end, ended) = watch::channel(false);
        test(Worker::new(gateway, ended)).await;
    });
}

/// The client's end of a new connection.
fn connect(worker: &Rc<Worker>) -> DuplexStream {
    let (client, server) = duplex(WIRE);
    serve(worker, server);
    client
}

fn serve(worker: &Rc<Worker>, server: DuplexStream) {
    let count = ConnectionCount::new(Arc::clone(&worker.gateway));
    let arrival = Arrival { address: ([192, 0, 2, 1], 40_000).into(), door: Door::Http, stranger: false };
    tokio::task::spawn_local(connection::serve(
        Rc::clone(worker),
        server,
        arrival,
        count,
        Worker::handle_http,
    ));
}

/// Takes the keys that were asked for.
async fn answer(client: &mut DuplexStream) {
    let (mut told, mut byte) = (Vec::new(), [0]);
    while !told.ends_with(b"}]}") {
        client.read_exact(&mut byte).await.unwrap();
        told.push(byte[0]);
    }
    assert!(told.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

/// What comes until the connection ends, or breaks.
async fn rest(client: &mut DuplexStream) -> String {
    let mut bytes = Vec::new();
    let _ = client.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

/// How many connections the gateway counts, once everybody has had a turn.
async fn open(worker: &Worker) -> i64 {
    sleep(Duration::from_millis(1)).await;
    worker.gateway.metrics.connections.get()
}

#[test]
fn a_refused_head_request_is_answered_without_a_body() {
    with_worker("{}", async |worker| {
        for (method, has_body) in [("HEAD", false), ("GET", true), ("HEADS", true)] {
            let mut client = connect(&worker);
            client.write_all(format!("{method} / HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
            let told = rest(&mut client).await;
            assert!(told.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{method}: {told}");
            let (head, body) = told.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("content-length: "), "{method}: {told}");
            assert_eq!(!body.is_empty(), has_body, "{method}: {told}");
        }
    });
}

#[test]
fn a_panic_in_one_request_ends_that_request_alone_and_is_counted() {
    with_worker("{}", async |worker| {
        count_panics(&worker.gateway);
        let before = worker.gateway.metrics.panics.get();
        let (mut unlucky, mut other) = (connect(&worker), connect(&worker));
        other.write_all(KEYS).await.unwrap();
        answer(&mut other).await;
        worker.fault.set(true);
        unlucky.write_all(KEYS).await.unwrap();
        assert_eq!(rest(&mut unlucky).await, "", "nothing is said, or forwarded, for it");
        assert!(worker.gateway.metrics.panics.get() > before);
        drop(std::panic::take_hook());
        assert_eq!(open(&worker).await, 1, "its place is free again");
        other.write_all(KEYS).await.unwrap();
        answer(&mut other).await;
        drop(other);
        assert_eq!(open(&worker).await, 0);
    });
}

#[test]
fn whoever_stands_still_is_gone_by_the_deadline_and_whoever_moves_is_not() {
    let limits = "{ header_timeout: 10s, idle_timeout: 75s }";
    let login = "POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n";
    with_worker(limits, async |worker| {
        // (what was sent, a byte more every so many seconds, when it is over and what was said)
        for (sent, every, over, said) in [
            ("", None, Some(75), ""),
            ("GET / HT", None, Some(10), "HTTP/1.1 408 "),
            ("GET /", Some(1), Some(10), "HTTP/1.1 408 "),
            (login, None, Some(75), "HTTP/1.1 408 "),
            (login, Some(60), None, ""),
        ] {
            let mut client = connect(&worker);
            let began = Instant::now();
            client.write_all(sent.as_bytes()).await.unwrap();
            let (mut reading, mut writing) = tokio::io::split(client);
            let dripping = async {
                while let Some(seconds) = every {
                    sleep(Duration::from_secs(seconds)).await;
                    // What has been given up takes no more.
                    if writing.write_all(b"x").await.is_err() {
                        break;
                    }
                }
                std::future::pending::<()>().await;
            };
            let mut told = Vec::new();
            let finished = tokio::select! {
                _ = reading.read_to_end(&mut told) => true,
                () = dripping => unreachable!(),
                () = sleep(Duration::from_secs(3600)) => false,
            };
            assert_eq!(finished, over.is_some(), "{sent:?}");
            assert!(String::from_utf8(told).unwrap().starts_with(said), "{sent:?}");
            if let Some(seconds) = over {
                let took = began.elapsed().as_secs();
                assert!((seconds..seconds + 3).contains(&took), "{sent:?}: {took} s");
            }
        }
        // Between two requests it is the time since the last answer that counts.
        let mut client = connect(&worker);
        let began = Instant::now();
        sleep(Duration::from_secs(50)).await;
        client.write_all(KEYS).await.unwrap();
        answer(&mut client).await;
        assert_eq!(rest(&mut client).await, "");
        assert_eq!(began.elapsed().as_secs(), 50 + 75);
        assert_eq!(open(&worker).await, 0);
    });
}

#[test]
fn a_request_that_comes_with_its_connection_makes_it_no_immortal_one() {
    with_worker("{ idle_timeout: 75s }", async |worker| {
        let (mut client, server) = duplex(4096);
        client.write_all(KEYS).await.unwrap();
        serve(&worker, server);
        answer(&mut client).await;
        let began = Instant::now();
        assert_eq!(rest(&mut client).await, "");
        assert_eq!(began.elapsed().as_secs(), 75);
    });
}

#[test]
fn an_answer_that_nobody_takes_is_given_up_and_one_that_is_taken_slowly_is_not() {
    with_worker("{ idle_timeout: 75s }", async |worker| {
        for (every, whole) in [(None, false), (Some(60), true), (Some(80), false)] {
            let mut client = connect(&worker);
            client.write_all(KEYS).await.unwrap();
            let (mut told, mut pause) = (Vec::new(), [0; WIRE]);
            while let Some(seconds) = every {
                sleep(Duration::from_secs(seconds)).await;
                match client.read(&mut pause).await {
                    Ok(length) if length > 0 => told.extend_from_slice(&pause[..length]),
                    _ => break,
                }
                if told.ends_with(b"}]}") {
                    break;
                }
            }
            assert_eq!(told.ends_with(b"}]}"), whole, "{}", String::from_utf8_lossy(&told));
            if every.is_none() {
                sleep(Duration::from_secs(76)).await;
            }
            assert_eq!(open(&worker).await, i64::from(whole), "a byte every {every:?} seconds");
        }
    });
}
