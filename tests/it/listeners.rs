//! Where clients connect beside a TCP port: Unix sockets, and sockets that systemd has opened.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use crate::harness::partners::{program, skip};
use crate::harness::tls::Authority;
use crate::harness::{Answer, Call, Gateway, PATIENCE, Upstream, binary, refused_start};

const RULES: &str = "rules: [{ path: /*, allow: public }, { path: /admin, allow: Viewer }]\n";
const BOTH: &str = "listen: ['127.0.0.1:0', 'unix:gateway.sock']\n";

async fn over(socket: &Path, call: Call) -> Answer {
    call.over(UnixStream::connect(socket).await.unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_unix_socket_is_served_for_those_whom_its_mode_lets_and_removed_at_the_end() {
    let upstream = Upstream::start().await;
    for (extra, mode) in [("", 0o660), ("socket_mode: '0600'\n", 0o600), ("socket_mode: '0666'\n", 0o666)] {
        let mut gateway = Gateway::start(&upstream, &format!("{BOTH}{RULES}{extra}")).await;
        let socket = gateway.folder.path().join("gateway.sock");
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, mode);
        let answer = over(&socket, gateway.get("/x").host("cms.example")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "upstream"));
        let seen = upstream.last();
        assert_eq!(seen.header("x-forwarded-for"), None);
        assert_eq!(seen.header("forwarded"), Some("for=unknown;host=\"cms.example\";proto=http"));
        let line = gateway.wait_for_line(0, |line| line.contains("\"access\"")).await;
        assert!(gateway.lines()[line].contains("\"client\":\"unix\""), "{}", gateway.lines()[line]);
        assert_eq!(over(&socket, gateway.get("/admin")).await.status, 401);
        gateway.signal("TERM");
        assert_eq!(gateway.ended().await, Some(0));
        assert!(!socket.exists());
    }
}

#[tokio::test]
async fn whoever_connects_to_a_unix_socket_is_believed_only_where_it_is_trusted() {
    let upstream = Upstream::start().await;
    for (extra, forwarded_for, proto) in [
        ("", None, "http"),
        ("trusted_proxies: [10.0.0.0/8]\n", None, "http"),
        ("trusted_proxies: [unix]\n", Some("192.0.2.7"), "https"),
    ] {
        let gateway = Gateway::start(&upstream, &format!("{BOTH}{RULES}{extra}")).await;
        let call =
            gateway.get("/x").header("x-forwarded-for", "192.0.2.7").header("x-forwarded-proto", "https");
        assert_eq!(over(&gateway.folder.path().join("gateway.sock"), call).await.status, 200);
        let seen = upstream.last();
        assert_eq!(seen.header("x-forwarded-for"), forwarded_for, "{extra}");
        assert_eq!(seen.header("x-forwarded-proto"), Some(proto), "{extra}");
        let line = gateway.wait_for_line(0, |line| line.contains("\"access\"")).await;
        let client = format!("\"client\":\"{}\"", forwarded_for.unwrap_or("unix"));
        assert!(gateway.lines()[line].contains(&client), "{}", gateway.lines()[line]);
    }
}

#[tokio::test]
async fn a_socket_left_by_a_dead_process_is_replaced_and_a_live_one_or_a_file_is_not() {
    let upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&upstream, &format!("{BOTH}{RULES}")).await;
    let socket = gateway.folder.path().join("gateway.sock");
    gateway.kill_and_restart().await;
    assert_eq!(over(&socket, gateway.get("/x")).await.status, 200, "the old socket was still there");

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "precious").unwrap();
    for (listen, said) in [
        (format!("unix:{}", socket.display()), "another process listens there"),
        ("unix:file".to_owned(), "there is a file that is no socket"),
        ("unix:none/x.sock".to_owned(), "its folder is not there"),
        ("systemd".to_owned(), "'listen: systemd' found no socket"),
        ("systemd:web".to_owned(), "needs 'FileDescriptorName=web'"),
    ] {
        let text =
            format!("upstream: http://127.0.0.1:9\nroles: [Viewer]\nadmin: false\nlisten: {listen}\n{RULES}");
        std::fs::write(folder.path().join("gateway.yaml"), text).unwrap();
        let output = refused_start(folder.path());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(said), "{listen}: {told}");
    }
    assert_eq!(std::fs::read_to_string(folder.path().join("file")).unwrap(), "precious");
    assert_eq!(over(&socket, gateway.get("/x")).await.status, 200, "it was left alone");
}

#[tokio::test]
async fn a_unix_socket_stays_plain_beside_https() {
    let upstream = Upstream::start().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path(), "cert", &["localhost"]);
    let extra = format!("{BOTH}{RULES}tls: {{ cert: cert.pem, key: cert.key, hsts: 1d }}\n");
    let gateway = Gateway::start_in(folder, upstream.address, &extra).await;
    assert_eq!(gateway.get_by_https(&authority.client(), "/x").await.status, 200);
    let answer = over(&gateway.folder.path().join("gateway.sock"), gateway.get("/x")).await;
    assert_eq!((answer.status, answer.header("strict-transport-security")), (200, None));
    assert_eq!(upstream.last().header("x-forwarded-proto"), Some("http"));
}

struct Activated(Child);

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends it as soon as somebody answers there.
async fn eventually(address: SocketAddr, call: impl Fn() -> Call) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call().try_send().await {
            Ok(answer) => return answer,
            Err(error) if Instant::now() > deadline => panic!("{address}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test]
async fn sockets_that_systemd_hands_over_are_served_by_their_names() {
    let Some(activate) = program("systemd-socket-activate") else {
        return skip("socket activation", "systemd-socket-activate (systemd)");
    };
    let upstream = Upstream::start().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path(), "cert", &["localhost"]);
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (http, https) = (free(), free());
    let socket = folder.path().join("web.sock");
    let text = format!(
        "upstream: http://{}\nroles: [Viewer]\nadmin: false\nlisten: systemd\n{RULES}\
         tls: {{ cert: cert.pem, key: cert.key, redirect: 'systemd:plain' }}\n",
        upstream.address
    );
    std::fs::write(folder.path().join("gateway.yaml"), text).unwrap();
    let child = Command::new(activate)
        .args(["-l", &http.to_string(), "-l", &https.to_string(), "-l", socket.to_str().unwrap()])
        .args(["--fdname", "plain:web:local", binary(), "serve", "--config"])
        .arg(folder.path().join("gateway.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _activated = Activated(child);
    let answer = eventually(http, || Call::new(http, "GET", "/x").host("localhost")).await;
    let location = format!("https://localhost:{}/x", https.port());
    assert_eq!((answer.status, answer.header("location")), (308, Some(location.as_str())));
    let stream = authority.client().connect(https, "localhost").await.unwrap();
    assert_eq!(Call::new(https, "GET", "/x").over(stream).await.unwrap().status, 200);
    assert_eq!(over(&socket, Call::new(https, "GET", "/x")).await.status, 200);
}
