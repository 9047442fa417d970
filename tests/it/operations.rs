//! What operators are given: audit lines that say enough and give nothing away, alert rules, a ban list's filter.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Gateway, PASSWORD, Upstream};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of the operators' own: on the path, or where `script/test` puts it. One that is missing is told by
/// name and passed over, and a failure in CI, where nobody would notice.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([root().join("target/tools/usr/bin")]);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{name} is missing");
        println!("skipped: {name} is missing");
    }
    found
}

#[test]
fn the_alert_rules_are_valid_and_fire_on_what_they_are_for() {
    let Some(promtool) = program("promtool") else { return };
    let folder = root().join("deploy/prometheus");
    for arguments in
        [&["check", "rules", "alerts.yml"][..], &["test", "rules", "alerts_test.yml", "alerts_age_test.yml"]]
    {
        let output = Command::new(&promtool).args(arguments).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_alert_is_about_metrics_and_codes_that_there_are_and_has_a_test_that_fires() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let rules = read("deploy/prometheus/alerts.yml");
    let reference = read("docs/reference.md");
    let expressions: String =
        rules.split("expr:").skip(1).filter_map(|rest| rest.split("annotations:").next()).collect();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut metrics = BTreeSet::new();
    for (at, _) in expressions.match_indices("portcullis_") {
        metrics.insert(expressions[at..].split(|c| !is_name(c)).next().unwrap());
    }
    assert!(metrics.len() > 5, "{metrics:?}");
    for metric in metrics {
        assert!(reference.contains(&format!("\n| `{metric}` |")), "there is no metric {metric}");
    }
    for listed in ["code=\"", "code=~\""].iter().flat_map(|start| expressions.split(start).skip(1)) {
        for code in listed.split('"').next().unwrap().split('|') {
            assert!(reference.contains(&format!("\n| `{code}` |")), "there is no code {code}");
        }
    }
    let guide = read("docs/operating.md");
    let tests = read("deploy/prometheus/alerts_test.yml") + &read("deploy/prometheus/alerts_age_test.yml");
    for alert in rules.split("- alert: ").skip(1).filter_map(|rest| rest.lines().next()) {
        // The name at the end of a line is a case with something to expect.
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} is never seen to fire");
        assert!(guide.contains(&format!("\n| `{alert}` |")), "{alert} is not in docs/operating.md");
    }
}

#[test]
fn every_panel_of_the_dashboard_is_about_metrics_labels_and_codes_that_there_are_and_no_metric_lacks_one() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/portcullis.json")).unwrap();
    let reference = read("docs/reference.md");
    let rows: Vec<(&str, &str)> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `portcullis_")?.split_once('|'))
        .map(|(name, rest)| (name.trim().trim_end_matches('`'), rest.split('|').next().unwrap()))
        .collect();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut expressions: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    expressions.push(dashboard["annotations"]["list"][0]["expr"].as_str().unwrap());
    expressions.extend(
        dashboard["templating"]["list"].as_array().unwrap().iter().filter_map(|one| one["query"].as_str()),
    );
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut seen = BTreeSet::new();
    for expression in &expressions {
        for (at, start) in expression.match_indices("portcullis_") {
            let name = expression[at + start.len()..].split(|c| !is_name(c)).next().unwrap();
            let name = name.strip_suffix("_bucket").unwrap_or(name);
            let (_, labels) =
                rows.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no {name}"));
            seen.insert(name);
            // Labels in a selector, and those that are grouped by.
            let selector =
                expression[at..].split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap());
            let grouped = expression.split("by (").nth(1).map_or("", |rest| rest.split(')').next().unwrap());
            let selected = selector.split(',').filter_map(|pair| pair.split(['=', '!']).next());
            for label in selected.chain(grouped.split(',')).map(str::trim).filter(|label| !label.is_empty()) {
                let known =
                    ["job", "instance", "le"].contains(&label) || labels.contains(&format!("`{label}`"));
                assert!(known, "{name} has no label {label}: {expression}");
            }
        }
        for code in expression.split("code=~\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            let start = code.trim_end_matches(".*");
            assert!(reference.contains(&format!("\n| `{start}")), "there is no code {code}");
        }
    }
    let lacking: Vec<_> =
        rows.iter().filter(|(name, _)| !seen.contains(name)).map(|(name, _)| name).collect();
    assert!(lacking.is_empty(), "{lacking:?} are on no panel");
    // Panels do not lie on one another.
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for place in
            (at("y")..at("y") + at("h")).flat_map(|y| (at("x")..at("x") + at("w")).map(move |x| (x, y)))
        {
            assert!(place.0 < 24 && taken.insert(place), "{} lies on another", panel["title"]);
        }
    }
}

/// The addresses that the filter finds in a log, one a line.
fn banned(log: &str) -> Option<Vec<String>> {
    let program = program("fail2ban-regex")?;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    fs::write(&file, log).unwrap();
    let mut command = Command::new("python3");
    if program.starts_with(root()) {
        // Unpacked, not installed.
        let unpacked = root().join("target/tools");
        command.env("PYTHONPATH", unpacked.join("usr/lib/python3/dist-packages"));
        command.arg(&program).arg("-c").arg(unpacked.join("etc/fail2ban"));
    } else {
        command.arg(&program);
    }
    let output = command
        .args(["-o", "<ip>"])
        .arg(&file)
        .arg(root().join("deploy/fail2ban/filter.d/portcullis.conf"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Some(said.lines().map(str::to_owned).collect())
}

/// A name that would like to be the end of its line.
const FORGERY: [&str; 3] = [
    "x\",\"client\":\"203.0.113.66\",\"reason\":\"wrong_password\"}",
    "x client=203.0.113.66 reason=wrong_password",
    "x\"\n{\"timestamp\":\"2026-11-23T20:04:56.000Z\",\"log\":\"audit\",\"event\":\"login_failed\",\"client\":\"203.0.113.66\",\"reason\":\"wrong_password\"}",
];

#[tokio::test]
async fn the_filter_finds_whoever_fails_to_log_in_and_nobody_whom_a_name_accuses() {
    for format in ["json", "text"] {
        let upstream = Upstream::start().await;
        let gateway = Gateway::start(
            &upstream,
            &format!(
                "rules: [{{ path: /a, allow: Viewer }}]\ntrusted_proxies: [127.0.0.1]\nlog: {{ format: {format} }}
login: {{ max_failures: 2, max_failures_per_address: 4 }}"
            ),
        )
        .await;
        let attempt = |client: &'static str, body: Value| {
            let call = gateway.post("/auth/login").header("x-forwarded-for", client).json(&body);
            async move { call.send().await.status }
        };
        let wrong = |name: &str| json!({ "username": name, "password": "not the password" });
        assert_eq!(attempt("192.0.2.1", wrong("vera")).await, 401);
        assert_eq!(attempt("2001:db8::7", wrong("nobody")).await, 401);
        for name in FORGERY {
            assert_eq!(attempt("192.0.2.2", wrong(name)).await, 401);
        }
        // The second locks the account from there, and does not stop a third.
        for status in [401, 401, 429] {
            assert_eq!(attempt("192.0.2.6", wrong("eddie")).await, status);
        }
        // Neither a success nor a mistake in the form.
        assert_eq!(attempt("192.0.2.3", json!({ "username": "vera", "password": PASSWORD })).await, 200);
        assert_eq!(attempt("192.0.2.4", json!({ "username": "vera" })).await, 400);
        gateway.get("/a").header("x-forwarded-for", "192.0.2.5").bearer("x.y.z").send().await;
        gateway.wait_for_line(0, |line| line.contains("192.0.2.5") && line.contains("refused")).await;
        let lines = gateway.lines();
        let expected = [
            "192.0.2.1",
            "2001:db8::7",
            "192.0.2.2",
            "192.0.2.2",
            "192.0.2.2",
            "192.0.2.6",
            "192.0.2.6",
            "192.0.2.6",
        ];
        let Some(found) = banned(&(lines.join("\n") + "\n")) else { return };
        assert_eq!(found, expected, "{format}");
        // The same from the journal, or from syslog.
        let journal: String = lines.iter().map(|line| format!("host portcullis[4711]: {line}\n")).collect();
        assert_eq!(banned(&journal).unwrap(), expected, "{format} in the journal");
    }
}

/// Secrets as they might be in a request, each to be looked for by a part that stands nowhere else.
struct Secrets {
    token: String,
    other: String,
    needles: Vec<String>,
}

#[tokio::test]
async fn no_secret_is_in_any_line_or_metric_wherever_a_client_puts_it() {
    for format in ["json", "text"] {
        let upstream = Upstream::start().await;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("header"), "needle-gateway-secret-0001\n").unwrap();
        let mut gateway = Gateway::start_in(
            folder,
            upstream.address,
            &format!(
                "rules: [{{ path: /a, allow: Viewer }}, {{ path: /high, allow: SuperAdmin }}, {{ path: /open/*, allow: public }}]\n\
                 identity: {{ secret: {{ header: X-Gateway-Secret, value: \"${{file:header}}\" }} }}\n\
                 trusted_proxies: [127.0.0.1]\nlog: {{ format: {format}, level: trace }}"
            ),
        )
        .await;
        let secrets = {
            let (token, other) = (gateway.login("vera").await, gateway.login("eddie").await);
            let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
            let needles = vec![
                signature(&token),
                signature(&other),
                token.split('.').nth(1).unwrap().to_owned(),
                PASSWORD.to_owned(),
                "needle".to_owned(),
                "$argon2".to_owned(),
                "PRIVATE KEY".to_owned(),
            ];
            Secrets { token, other, needles }
        };
        let Secrets { token, other, needles } = &secrets;
        let forged = format!("{}needle", &token[..token.len() - 6]);
        for target in ["/a", "/high", "/open/x", "/nowhere", "/auth/login", "/.well-known/jwks.json"] {
            for credentials in [
                format!("Bearer {token}"),
                format!("bearer  {token}"),
                format!("Bearer {forged}"),
                format!("Bearer {token} {other}"),
                "Basic bmVlZGxlOm5lZWRsZQ==needle".to_owned(),
                "needle".to_owned(),
            ] {
                gateway
                    .get(&format!("{target}?token={token}&password=needle"))
                    .header("authorization", &credentials)
                    .header("cookie", &format!("portcullis_token={token}; session=needle"))
                    .header("referer", &format!("https://example.org/?token={token}"))
                    .header("user-agent", "needle")
                    .header("proxy-authorization", &format!("Bearer {other}"))
                    .header("x-auth-user", "needle")
                    .header("x-gateway-secret", "needle")
                    .header("sec-websocket-protocol", &format!("bearer, {token}"))
                    .send()
                    .await;
            }
        }
        // Twice, and in heads that are none.
        gateway.get("/a").bearer(token).bearer(other).send().await;
        for head in [
            format!("GET /a HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer {token}\r\n\r\n"),
            format!("GET /a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer\r\n {token}\r\n\r\n"),
            format!("GET /a HTTP/1.1\r\nHost: a\r\nCookie: needle={token}\0\r\n\r\n"),
            format!("Authorization: Bearer {token}\r\n\r\n"),
            format!("GET /%2e%2e?{token} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        ] {
            let mut client = gateway.connect().await;
            client.send(head).await;
            client.rest().await;
        }
        // Logins: right, wrong, with the secret in what cannot be read, as a form, and with another's hash.
        for (kind, body) in [
            ("application/json", json!({ "username": "vera", "password": "needle" }).to_string()),
            (
                "application/json",
                json!({ "username": "vera", "password": "$argon2id$v=19$needle" }).to_string(),
            ),
            ("application/json", json!({ "username": "vera", "password": ["needle"] }).to_string()),
            ("application/json", "{\"username\":\"vera\",\"password\":\"needle".to_owned()),
            (
                "application/json",
                "{\"username\":\"vera\",\"password\":\"needle\",\"password\":\"needle\"}".to_owned(),
            ),
            ("application/x-www-form-urlencoded", "username=vera&password=needle".to_owned()),
            (
                "application/x-www-form-urlencoded",
                "username=vera&password=needle&password=needle%zz".to_owned(),
            ),
            ("text/plain", "needle".to_owned()),
        ] {
            gateway.post("/auth/login").header("content-type", kind).body(body).send().await;
        }
        for target in ["/metrics", "/status"] {
            let told = gateway.admin("GET", target).send().await.text();
            for needle in needles {
                assert!(!told.contains(needle), "{target} has {needle}: {told}");
            }
        }
        gateway.run(&["user", "passwd", "vera", "--password-stdin"], "needle-in-a-new-password");
        gateway.run(&["keys", "rotate"], "");
        gateway.wait_for_line(0, |line| line.contains("user_change") && line.contains("password")).await;
        gateway.signal("TERM");
        assert_eq!(gateway.ended().await, Some(0));
        gateway.wait_for_line(0, |line| line == "(the gateway has ended)").await;
        let lines = gateway.lines();
        assert!(
            lines.iter().filter(|line| line.contains("access")).count() > 36,
            "{format}: {}",
            lines.len()
        );
        for line in &lines {
            // The word for a changed password is no password.
            for needle in needles {
                assert!(!line.contains(needle.as_str()), "{format}: {needle} in {line}");
            }
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
}

#[tokio::test]
async fn every_line_of_the_audit_log_has_an_event_and_a_reason_of_the_reference() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /a, allow: Viewer }, { path: /high, allow: SuperAdmin }]\ntokens: { ttl: 3s }",
    )
    .await;
    let token = gateway.login("vera").await;
    gateway.get("/high").bearer(&token).send().await;
    gateway.get("/a").bearer("x.y.z").send().await;
    gateway.get("/a").bearer(&token).bearer(&token).send().await;
    for name in FORGERY {
        let body = json!({ "username": name, "password": "not the password" });
        gateway.post("/auth/login").json(&body).send().await;
    }
    while gateway.get("/a").bearer(&token).send().await.status != 401 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    gateway.run(&["user", "disable", "eddie"], "");
    let body = json!({ "username": "eddie", "password": PASSWORD });
    gateway.post("/auth/login").json(&body).send().await;
    gateway.post("/auth/login").body("nothing").send().await;
    gateway.write_config("rules: [");
    let by_file = |line: &str| line.contains("\"reload_refused\"") && line.contains("\"file\"");
    gateway.wait_for_line(0, by_file).await;
    gateway.admin("POST", "/reload").send().await;
    gateway.run(&["keys", "rotate"], "");
    gateway.wait_for_line(0, |line| line.contains("\"disabled\"")).await;
    let reference = fs::read_to_string(root().join("docs/reference.md")).unwrap();
    let table = reference.split("### Audit lines").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut seen = BTreeSet::new();
    for line in gateway.lines() {
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["log"] != "audit" {
            continue;
        }
        let event = line["event"].as_str().unwrap();
        let named = format!("`{event}`");
        let row = table
            .lines()
            .find(|row| row.starts_with("| `") && row.split(" | ").next().unwrap().contains(&named));
        let row = row.unwrap_or_else(|| panic!("no row for {line}"));
        if let Some(reason) = line["reason"].as_str() {
            assert!(row.contains(&format!("`{reason}`")), "{line}");
            seen.insert(format!("{event} {reason}"));
        }
        let fields = [
            "timestamp",
            "log",
            "event",
            "user",
            "key",
            "by",
            "client",
            "reason",
            "rule",
            "method",
            "path",
            "request_id",
        ];
        assert!(line.as_object().unwrap().keys().all(|name| fields.contains(&name.as_str())), "{line}");
    }
    for one in [
        "refused access_denied",
        "refused ambiguous_credentials",
        "refused expired_token",
        "login_failed unknown_user",
        "login_failed disabled_user",
        "login_failed login_media_type",
        "user_change disabled",
        "reload_refused file",
    ] {
        assert!(seen.contains(one), "{one} is not among {seen:?}");
    }
}
