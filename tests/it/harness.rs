//! The only place that knows how to start things: the real gateway, a recording upstream, clients.
//!
//! Everything listens on a free port of loopback, is awaited by what it says and not by the clock, and
//! is stopped when it is dropped.
#![allow(dead_code)]

pub mod databases;
pub mod h2;
pub mod partners;
pub mod tls;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub mod browser;

/// The longest that anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The password of every user that [`Gateway::start`] adds: `vera` (Viewer), `eddie` (Editor), `sam` (SuperAdmin).
pub const PASSWORD: &str = "correct horse battery";

/// The binary under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_portcullis")
}

/// A running gateway in a folder of its own.
pub struct Gateway {
    child: Child,
    /// The folder that holds `gateway.yaml` and the state.
    pub folder: tempfile::TempDir,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Probes and metrics.
    pub admin: SocketAddr,
    log: Arc<Log>,
    /// The lines before `extra` in the file.
    head: String,
}

/// What the gateway has written to standard error so far.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Log {
    fn wait_for<T>(&self, mut find: impl FnMut(&[String]) -> Option<T>) -> Result<T, Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(found) = find(&lines) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.last().is_some_and(|line| line == ENDED) {
                return Err(lines.clone());
            }
            lines = self.more.wait_timeout(lines, left).unwrap().0;
        }
    }
}

const ENDED: &str = "(the gateway has ended)";

/// The keys that every test's file begins with, unless `extra` brings them itself.
fn head(upstream: SocketAddr, extra: &str) -> String {
    let mut head = String::new();
    for (key, value) in [
        ("listen", "127.0.0.1:0".to_owned()),
        ("admin", "127.0.0.1:0".to_owned()),
        ("upstream", format!("http://{upstream}")),
        ("roles", "[Viewer, Editor, SuperAdmin]".to_owned()),
        ("log", "{ format: json }".to_owned()),
        ("shutdown", "{ drain: 0s, timeout: 5s }".to_owned()),
    ] {
        let says = |key: &str| extra.lines().any(|line| line.starts_with(&format!("{key}:")));
        // Whoever asks forwards, too.
        let forwards_nothing = key == "upstream" && says("forward_auth");
        if !says(key) && !forwards_nothing {
            head.push_str(&format!("{key}: {value}\n"));
        }
    }
    head
}

impl Gateway {
    /// Starts a gateway in front of `upstream`. `extra` is the rest of its `gateway.yaml`, `rules` above
    /// all; the text `UPSTREAM` in it stands for the upstream's address.
    pub async fn start(upstream: &Upstream, extra: &str) -> Self {
        Self::start_at(upstream.address, extra).await
    }

    /// As [`Gateway::start`], for an upstream that may not be there.
    pub async fn start_at(upstream: SocketAddr, extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, upstream, extra).await
    }

    /// As [`Gateway::start`], in a folder that holds files already.
    pub async fn start_in(folder: tempfile::TempDir, upstream: SocketAddr, extra: &str) -> Self {
        let extra = extra.replace("UPSTREAM", &upstream.to_string());
        let head = head(upstream, &extra);
        std::fs::write(folder.path().join("gateway.yaml"), format!("{head}{extra}\n")).unwrap();
        if !folder.path().join("data").exists() {
            add_users(folder.path());
        }
        let (child, log) = spawn(folder.path());
        let (address, admin) = addresses(&log).await;
        Self { child, folder, address, admin, log, head }
    }

    /// Kills the process with SIGKILL, as it is, and starts it again in the same folder.
    pub async fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.log) = spawn(self.folder.path());
        (self.address, self.admin) = addresses(&self.log).await;
    }

    /// The path of its `gateway.yaml`.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("gateway.yaml")
    }

    /// Writes another rest of `gateway.yaml`, as [`Gateway::start`] takes it, in one step (a rename).
    pub fn write_config(&self, extra: &str) {
        let new = self.folder.path().join("gateway.yaml.new");
        // The listening addresses stay as they are in the file.
        std::fs::write(&new, format!("{}{extra}\n", self.head)).unwrap();
        std::fs::rename(new, self.config()).unwrap();
    }

    /// Does `change` and waits for the log line with `message` that follows; returns the line.
    pub async fn after(&self, message: &str, change: impl FnOnce()) -> String {
        let (from, wanted) = (self.lines().len(), message.to_owned());
        change();
        let index = self.wait_for_line(from, move |line| line.contains(&wanted)).await;
        self.lines()[index].clone()
    }

    /// Waits for a log line that `matches` picks, among those not seen before `from`; returns its index.
    pub async fn wait_for_line(&self, from: usize, matches: impl Fn(&str) -> bool + Send + 'static) -> usize {
        let log = Arc::clone(&self.log);
        let found = tokio::task::spawn_blocking(move || {
            log.wait_for(|lines| (from..lines.len()).find(|index| matches(&lines[*index])))
        });
        found.await.unwrap().unwrap_or_else(|lines| panic!("no such line:\n{}", lines.join("\n")))
    }

    /// All log lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().clone()
    }

    /// A token of one of the users, by the login path.
    pub async fn login(&self, username: &str) -> String {
        let answer = self
            .post("/auth/login")
            .json(&serde_json::json!({ "username": username, "password": PASSWORD }))
            .send()
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    pub fn get(&self, target: &str) -> Call {
        self.request("GET", target)
    }

    pub fn post(&self, target: &str) -> Call {
        self.request("POST", target)
    }

    pub fn request(&self, method: &str, target: &str) -> Call {
        Call::new(self.address, method, target)
    }

    /// A request to the admin address.
    pub fn admin(&self, method: &str, target: &str) -> Call {
        Call::new(self.admin, method, target)
    }

    /// Sends bytes as they are on a new connection and reads until the gateway closes it or `PATIENCE` ends.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        read_to_end(&mut stream).await
    }

    /// Where load balancers ask, if they may.
    pub fn asked_at(&self) -> SocketAddr {
        address_in(&self.lines(), "forward-auth listening").expect("the file has `forward_auth`")
    }

    /// Runs a subcommand on this gateway's configuration.
    pub fn run(&self, arguments: &[&str], stdin: &str) -> Output {
        run(self.folder.path(), arguments, stdin)
    }

    /// The value of a metric, labels included, 0 if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.admin("GET", "/metrics").send().await.text();
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, such as `HUP`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the process to end and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_running() {
            assert!(Instant::now() < deadline, "the gateway does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.child.wait().unwrap().code()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path) -> (Child, Arc<Log>) {
    let mut child = Command::new(binary())
        .args(["serve", "--config"])
        .arg(folder.join("gateway.yaml"))
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let log = Arc::new(Log::default());
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let written = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            written.lines.lock().unwrap().push(line);
            written.more.notify_all();
        }
        written.lines.lock().unwrap().push(ENDED.to_owned());
        written.more.notify_all();
    });
    (child, log)
}

/// Where it listens, once it says so.
async fn addresses(log: &Arc<Log>) -> (SocketAddr, SocketAddr) {
    let log = Arc::clone(log);
    let started = tokio::task::spawn_blocking(move || {
        log.wait_for(|lines| {
            address_in(lines, "listening")
                .zip(address_in(lines, "admin listening").or_else(|| Some(([127, 0, 0, 1], 1).into())))
        })
    });
    started.await.unwrap().unwrap_or_else(|lines| panic!("no start:\n{}", lines.join("\n")))
}

pub fn address_in(lines: &[String], message: &str) -> Option<SocketAddr> {
    lines.iter().find_map(|line| {
        // `log.format: text`.
        if let Some((_, address)) = line.split_once(&format!(" INFO {message} address=")) {
            return address.parse().ok();
        }
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        if line["message"] != message {
            return None;
        }
        line["address"].as_str()?.parse().ok()
    })
}

/// Runs the binary in `folder` on its `gateway.yaml`.
pub fn run(folder: &Path, arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(binary())
        .args(arguments)
        .arg("--config")
        .arg(folder.join("gateway.yaml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that takes no input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn add_users(folder: &Path) {
    let users: String = [("vera", "Viewer"), ("eddie", "Editor"), ("sam", "SuperAdmin")]
        .iter()
        .map(|(name, role)| {
            let user = serde_json::json!({ "username": name, "role": role, "name": name.to_uppercase(),
                "email": format!("{name}@example.com"), "password": PASSWORD });
            format!("{user}\n")
        })
        .collect();
    let output = run(folder, &["user", "import", "-"], &users);
    // A test with other roles adds its own users.
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("role"), "{told}");
    }
}

/// A request that is being put together.
pub struct Call {
    address: SocketAddr,
    pub request: Request<Full<Bytes>>,
}

/// What came back.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub fn new(address: SocketAddr, method: &str, target: &str) -> Self {
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(target)
            .header("host", address.to_string())
            .body(Full::default())
            .unwrap();
        Self { address, request }
    }

    /// Adds a header; the same name twice makes two of them.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    /// Replaces the Host.
    pub fn host(mut self, host: &str) -> Self {
        self.request.headers_mut().insert("host", HeaderValue::from_str(host).unwrap());
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        *self.request.body_mut() = Full::new(body.into());
        self
    }

    pub fn json(self, value: &serde_json::Value) -> Self {
        self.header("content-type", "application/json").body(value.to_string())
    }

    pub async fn send(self) -> Answer {
        self.try_send().await.unwrap()
    }

    /// As [`Call::send`], where the connection may be refused or cut.
    pub async fn try_send(self) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        self.send_within(PATIENCE).await
    }

    async fn send_within(
        self,
        patience: Duration,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let work = async {
            let stream = TcpStream::connect(self.address).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let response = sender.send_request(self.request).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        tokio::time::timeout(patience, work).await?
    }
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A client that keeps its one connection.
pub struct KeepAlive {
    address: SocketAddr,
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl KeepAlive {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { address, sender }
    }

    /// A request for this connection, to be put together and handed to [`KeepAlive::send`].
    pub fn request(&self, method: &str, target: &str) -> Call {
        Call::new(self.address, method, target)
    }

    /// Sends on the one connection.
    pub async fn send(&mut self, call: Call) -> hyper::Result<Answer> {
        self.sender.ready().await?;
        let (parts, body) = self.sender.send_request(call.request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }
}

/// Runs `serve` on the file in `folder`, where it has to end by itself.
pub fn refused_start(folder: &Path) -> Output {
    let mut child = Command::new(binary())
        .args(["serve", "--config"])
        .arg(folder.join("gateway.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it started: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Reads until the other side closes; what has come when `PATIENCE` ends is returned all the same.
pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// As it stood in the request line.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Seen {
    /// The value of a header that came once; panics if it came several times.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert!(values.next().is_none(), "{name} came more than once");
        value
    }
}

type Answering = Arc<dyn Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync>;

/// An HTTP/1.1 upstream that remembers what it was asked.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Upstream {
    /// Answers everything with 200 and the text `upstream`.
    pub async fn start() -> Self {
        Self::answering(|_| Response::new(Full::from("upstream"))).await
    }

    /// Answers as `answer` says. The request body has been read by then.
    pub async fn answering(answer: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (remembered, answer): (_, Answering) = (Arc::clone(&seen), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (seen, answer) = (Arc::clone(&remembered), Arc::clone(&answer));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                    async move {
                        let (parts, body) = request.into_parts();
                        let collected = body.collect().await?;
                        let trailers = collected.trailers().cloned();
                        let one = Seen {
                            method: parts.method.to_string(),
                            target: parts.uri.to_string(),
                            headers: parts.headers,
                            body: collected.to_bytes(),
                            trailers,
                        };
                        let response = answer(&one);
                        seen.lock().unwrap().push(one);
                        Ok::<_, hyper::Error>(response)
                    }
                });
                // Dropped with the set, so that no connection outlives the upstream.
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, seen, task }
    }

    /// Everything that it was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The last request.
    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().expect("the upstream was asked nothing")
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// How many requests came.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection whose every byte is in the test's hands: the client's, or the upstream's.
pub struct Raw {
    pub stream: TcpStream,
    held: Vec<u8>,
}

impl Raw {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, held: Vec::new() }
    }

    pub async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads once; false at the end, and where the connection was reset.
    async fn more(&mut self) -> bool {
        let mut space = [0; 16 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut space)).await;
        let length = read.expect("nothing comes and nothing ends").unwrap_or(0);
        self.held.extend_from_slice(&space[..length]);
        length > 0
    }

    /// Everything up to and with `end`; `None` if the connection ends before that.
    pub async fn try_until(&mut self, end: &str) -> Option<String> {
        loop {
            let found = self.held.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let taken: Vec<u8> = self.held.drain(..at + end.len()).collect();
                return Some(String::from_utf8_lossy(&taken).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// As [`Raw::try_until`], where it has to come.
    pub async fn until(&mut self, end: &str) -> String {
        match self.try_until(end).await {
            Some(text) => text,
            None => panic!("the connection ended; left: {:?}", String::from_utf8_lossy(&self.held)),
        }
    }

    /// One message's head, its empty line included.
    pub async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Exactly so many bytes.
    pub async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.held.len() < length {
            assert!(self.more().await, "the connection ended {} bytes early", length - self.held.len());
        }
        self.held.drain(..length).collect()
    }

    /// What comes until the connection ends.
    pub async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }

    /// How many bytes have come that nobody has taken yet.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.held.clear();
    }

    /// What is left of a chunked answer: to its last chunk, or to the connection's end.
    pub async fn rest_of(&mut self, complete: bool) -> String {
        if complete { self.until("0\r\n\r\n").await } else { self.rest().await }
    }

    /// A head, and the body that its Content-Length announces.
    pub async fn message(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let body = self.take(length).await;
        (head, String::from_utf8_lossy(&body).into_owned())
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// The value of a header in a head as text; panics if it comes twice.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = head.lines().skip(1).filter_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then_some(value.trim())
    });
    let value = values.next();
    assert!(values.next().is_none(), "{name} comes twice in {head}");
    value
}

/// The status of a response's head.
pub fn status_of(head: &str) -> u16 {
    let code = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    code.unwrap_or_else(|| panic!("no status line: {head:?}")).parse().unwrap()
}

/// An upstream that does nothing by itself: a test takes its connections and plays it.
pub struct RawUpstream {
    pub address: SocketAddr,
    listener: TcpListener,
}

impl RawUpstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    /// The next connection.
    pub async fn accept(&self) -> Raw {
        let accepted = tokio::time::timeout(PATIENCE, self.listener.accept()).await;
        Raw::new(accepted.expect("nobody connects").unwrap().0)
    }

    /// Whether nobody has connected (beyond those taken).
    pub async fn is_untouched(&self) -> bool {
        tokio::time::timeout(Duration::ZERO, self.listener.accept()).await.is_err()
    }
}

impl Gateway {
    /// A connection to it.
    pub async fn connect(&self) -> Raw {
        Raw::connect(self.address).await
    }

    /// Waits until a metric has a value.
    pub async fn metric_becomes(&self, name: &str, value: f64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.metric(name).await;
            if (seen - value).abs() < 0.5 {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is {seen}, not {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}
