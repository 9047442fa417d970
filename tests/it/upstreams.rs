//! Several upstreams: who gets a request, who is left out, and who comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use crate::harness::partners::{Partner, program, skip};
use crate::harness::{Gateway, PATIENCE, Raw, RawUpstream, Upstream, field, status_of};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A gateway before all of `addresses`, with further keys of `upstream`.
async fn before(addresses: &[SocketAddr], more: &str) -> Gateway {
    let urls: Vec<_> = addresses.iter().map(|address| format!("http://{address}")).collect();
    let extra = format!(
        "workers: 2\nrules: [{{ path: /*, allow: public }}]\nupstream: {{ urls: [{}]{more} }}",
        urls.join(", ")
    );
    Gateway::start_at(addresses[0], &extra).await
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn is_up(address: SocketAddr) -> String {
    format!("portcullis_upstream_up{{upstream=\"http://{address}\"}}")
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: cms.example\r\n\r\n")
}

/// The next connection with a request on it; another one, such as a look whether somebody is there, is passed over.
async fn asked(upstream: &RawUpstream) -> (Raw, String) {
    loop {
        let mut server = upstream.accept().await;
        if let Some(head) = server.try_until("\r\n\r\n").await {
            return (server, head);
        }
    }
}

#[tokio::test]
async fn a_request_goes_where_the_fewest_are_under_way() {
    let (busy, free) = (RawUpstream::start().await, Upstream::start().await);
    let gateway = before(&[busy.address, free.address], "").await;
    let mut waiting = gateway.connect().await;
    // One of the first two comes to it, and stays.
    let mut other = gateway.connect().await;
    waiting.send(get("/slow")).await;
    other.send(get("/slow")).await;
    let (mut server, _) = asked(&busy).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/").send().await.text(), "upstream");
    }
    assert!(busy.is_untouched().await);
    server.send(OK).await;
    let answers = [waiting.message().await.1, other.message().await.1];
    assert!(answers.contains(&"ok".to_owned()) && answers.contains(&"upstream".to_owned()), "{answers:?}");
}

#[tokio::test]
async fn no_request_is_lost_on_a_server_that_is_not_there() {
    let (dead, upstream) = (nobody(), Upstream::start().await);
    let gateway = before(&[dead, upstream.address], "").await;
    for count in 1..=20 {
        let answer = gateway.post("/form").body("name=value").send().await;
        assert_eq!((answer.status, upstream.last().body), (200, Bytes::from("name=value")));
        assert_eq!(upstream.count(), count, "each arrives once");
    }
    gateway.metric_becomes(&is_up(dead), 0.0).await;
    assert_eq!(gateway.metric(&is_up(upstream.address)).await, 1.0);
    gateway.wait_for_line(0, |line| line.contains("an upstream is down")).await;
    let status = gateway.admin("GET", "/status").send().await.json();
    assert_eq!(
        status["upstreams"],
        serde_json::json!([
            { "url": format!("http://{dead}"), "up": false },
            { "url": format!("http://{}", upstream.address), "up": true },
        ])
    );
}

#[tokio::test]
async fn what_a_server_broke_is_sent_to_another_only_if_that_is_safe() {
    for (request, again) in [
        (get("/x"), true),
        ("DELETE /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), true),
        ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".to_owned(), false),
        ("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".to_owned(), false),
    ] {
        let (one, other) = (RawUpstream::start().await, RawUpstream::start().await);
        let gateway = before(&[one.address, other.address], "").await;
        let mut client = gateway.connect().await;
        client.send(&request).await;
        // The first is either of the two.
        let (first, second) = tokio::select! {
            (server, _) = asked(&one) => (server, &other),
            (server, _) = asked(&other) => (server, &one),
        };
        drop(first);
        if again {
            let (mut server, head) = asked(second).await;
            assert!(head.contains(" /x "), "{head}");
            server.send(OK).await;
        }
        let head = client.head().await;
        assert_eq!(status_of(&head), if again { 200 } else { 502 }, "{request}");
        assert!(one.is_untouched().await && other.is_untouched().await, "{request}");
        let retries = gateway.metric("portcullis_upstream_retries_total").await;
        assert_eq!(retries, f64::from(u8::from(again)), "{request}");
    }
}

#[tokio::test]
async fn a_server_that_breaks_one_request_after_another_is_left_out_for_a_while() {
    let (bad, good) = (RawUpstream::start().await, Upstream::start().await);
    let gateway = before(&[bad.address, good.address], "").await;
    let address = bad.address;
    let breaking = tokio::spawn(async move {
        loop {
            // Resets, too, whoever only looks.
            let _ = asked(&bad).await;
        }
    });
    let mut failed = 0;
    for _ in 0..100 {
        if failed == 3 {
            break;
        }
        failed += u32::from(gateway.post("/").body("x").send().await.status == 502);
    }
    assert_eq!(failed, 3);
    gateway.wait_for_line(0, |line| line.contains("broke several requests in a row")).await;
    // It takes connections, so it gets another chance.
    gateway.metric_becomes(&is_up(address), 1.0).await;
    breaking.abort();
}

#[tokio::test]
async fn a_server_that_does_not_say_it_is_well_gets_no_requests_until_it_does() {
    let state = Arc::new(AtomicU16::new(200));
    let told = Arc::clone(&state);
    let upstream = Upstream::answering(move |seen| {
        let status = if seen.target == "/healthz?deep" { told.load(Ordering::SeqCst) } else { 200 };
        Response::builder().status(status).body(Full::from("cms")).unwrap()
    })
    .await;
    let gateway = before(&[upstream.address], ", health: /healthz?deep").await;
    assert_eq!(gateway.get("/").send().await.status, 200);
    let pages = || upstream.seen().iter().filter(|seen| seen.target == "/page").count();
    for (bad, good) in [(503, 204), (404, 302)] {
        state.store(bad, Ordering::SeqCst);
        gateway.metric_becomes(&is_up(upstream.address), 0.0).await;
        let before = pages();
        let answer = gateway.get("/page").send().await;
        assert_eq!((answer.status, answer.text()), (502, r#"{"error":"Upstream unavailable"}"#.into()));
        assert_eq!(pages(), before, "it was not asked");
        assert_eq!(gateway.admin("GET", "/readyz").send().await.status, 200, "the gateway itself is well");
        state.store(good, Ordering::SeqCst);
        gateway.metric_becomes(&is_up(upstream.address), 1.0).await;
        assert_eq!(gateway.get("/page").send().await.status, 200);
    }
    let seen = upstream.seen().into_iter().find(|seen| seen.target == "/healthz?deep").unwrap();
    assert_eq!(seen.header("host"), Some(upstream.address.to_string().as_str()));
    assert_eq!(seen.header("x-auth-user"), None);
}

#[tokio::test]
async fn each_server_sees_its_own_name_where_that_is_wanted_after_a_retry_too() {
    let (one, other) = (RawUpstream::start().await, RawUpstream::start().await);
    for (more, request, own) in [
        (", host: upstream", get("/"), true),
        ("", "GET / HTTP/1.0\r\n\r\n".to_owned(), true),
        ("", get("/"), false),
    ] {
        let gateway = before(&[one.address, other.address], more).await;
        let mut client = gateway.connect().await;
        client.send(&request).await;
        let ((first, head), is, second) = tokio::select! {
            asked = asked(&one) => (asked, &one, &other),
            asked = asked(&other) => (asked, &other, &one),
        };
        let name =
            |upstream: &RawUpstream| if own { upstream.address.to_string() } else { "cms.example".into() };
        assert_eq!(field(&head, "host"), Some(name(is).as_str()));
        drop(first);
        let (mut server, head) = asked(second).await;
        assert_eq!(field(&head, "host"), Some(name(second).as_str()));
        server.send(OK).await;
        assert_eq!(status_of(&client.head().await), 200);
    }
}

#[tokio::test]
async fn a_reload_brings_a_server_in_and_takes_one_away() {
    let (one, other) = (Upstream::start().await, Upstream::start().await);
    let gateway = before(&[one.address], "").await;
    let file = |addresses: &[SocketAddr]| {
        let urls: Vec<_> = addresses.iter().map(|address| format!("http://{address}")).collect();
        format!(
            "workers: 2\nrules: [{{ path: /*, allow: public }}]\nupstream: {{ urls: [{}] }}",
            urls.join(", ")
        )
    };
    for (addresses, gets) in
        [(vec![one.address, other.address], [true, true]), (vec![other.address], [false, true])]
    {
        gateway.after("the configuration is reloaded", || gateway.write_config(&file(&addresses))).await;
        one.forget();
        other.forget();
        for _ in 0..10 {
            assert_eq!(gateway.get("/").send().await.status, 200);
        }
        assert_eq!([one.count() > 0, other.count() > 0], gets);
    }
    gateway.metric_becomes(&is_up(other.address), 1.0).await;
    let metrics = gateway.admin("GET", "/metrics").send().await.text();
    assert!(!metrics.contains(&one.address.to_string()), "nothing is said of one that is gone");
}

const NGINX: &str = "daemon off;\nmaster_process off;\npid FOLDER/nginx.pid;\nerror_log FOLDER/log;\nevents {}\n\
    http { access_log off; client_body_temp_path FOLDER/b; proxy_temp_path FOLDER/p; fastcgi_temp_path FOLDER/f;\n\
    uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;\n\
    server { listen 127.0.0.1:PORT; root FOLDER/site; } }\n";

#[tokio::test]
async fn nginx_is_killed_and_comes_back_and_no_request_fails_while_another_is_up() {
    let Some(nginx) = program("nginx") else { return skip("nginx as an upstream", "nginx") };
    let command = [nginx.to_str().unwrap(), "-p", "FOLDER", "-c", "FOLDER/nginx.conf"];
    let (site, files) = ([("index.html", "page"), ("healthz", "well")], [("nginx.conf", NGINX)]);
    let mut one = Partner::start(&site, &files, &[&command]).await;
    let mut other = Partner::start(&site, &files, &[&command]).await;
    let gateway = before(&[one.address, other.address], ", health: /healthz").await;
    let ask = |count: u32| {
        let gateway = &gateway;
        async move {
            for _ in 0..count {
                let answer = gateway.get("/").send().await;
                assert_eq!((answer.status, answer.text()), (200, "page".to_owned()));
            }
        }
    };
    for _ in 0..3 {
        ask(20).await;
        one.kill();
        ask(50).await;
        gateway.metric_becomes(&is_up(one.address), 0.0).await;
        one.run(&[&command]).await;
        gateway.metric_becomes(&is_up(one.address), 1.0).await;
    }
    // None is left: a refusal at once, and service again as soon as one is back.
    one.kill();
    other.kill();
    gateway.metric_becomes(&is_up(one.address), 0.0).await;
    gateway.metric_becomes(&is_up(other.address), 0.0).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/").send().await.status, 502);
    }
    other.run(&[&command]).await;
    let waited = tokio::time::timeout(PATIENCE, async {
        while gateway.get("/").send().await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("it is served again");
    ask(20).await;
}
