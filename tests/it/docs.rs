//! The documentation says what the program does, and says all of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::CommandFactory;
use http::Response;
use http_body_util::Full;
use portcullis::observe::audit::{Event, KeyChange, Scope, Trigger, UserChange};
use portcullis::wire::answer::LockedBy;
use serde_json::{Value, json};

use crate::harness::tls::Authority;
use crate::harness::{Gateway, Upstream, run};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn reference() -> String {
    read("docs/reference.md")
}

/// README.md, everything in docs/ and its folders, and the other pages for people at the top level.
fn pages() -> Vec<PathBuf> {
    let files = ["docs", "docs/cms", "docs/load-balancers"]
        .map(|folder| std::fs::read_dir(root().join(folder)).unwrap());
    let docs = files.into_iter().flatten().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|e| e == "md"));
    let top = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root().join(name));
    top.into_iter().chain(docs).collect()
}

/// The fenced blocks of a page with that language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(fence) = line.trim_start().strip_prefix("```") else { continue };
        let body: Vec<&str> =
            lines.by_ref().take_while(|line| !line.trim_start().starts_with("```")).collect();
        if fence == language {
            found.push(body.join("\n") + "\n");
        }
    }
    found
}

#[test]
fn every_complete_gateway_file_in_the_documentation_passes_check() {
    let mut complete = 0;
    for page in pages() {
        for block in blocks(&std::fs::read_to_string(&page).unwrap(), "yaml") {
            if !block.starts_with("# gateway.yaml") {
                continue;
            }
            complete += 1;
            let folder = tempfile::tempdir().unwrap();
            // What a complete file may refer to.
            std::fs::write(folder.path().join("gateway-secret"), "0123456789abcdef0123456789abcdef\n")
                .unwrap();
            std::fs::write(folder.path().join("gateway-password"), "0123456789abcdef\n").unwrap();
            std::fs::write(folder.path().join("gateway.yaml"), &block).unwrap();
            let output = run(folder.path(), &["check"], "");
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success() && !told.contains("warning"),
                "{}\n{block}\n{told}",
                page.display()
            );
        }
    }
    assert!(complete >= 2, "the README and docs/operating.md show a complete file each");
}

/// The schema behind a `$ref`, its own members included.
fn resolved<'s>(schema: &'s Value, node: &'s Value) -> &'s Value {
    match node["$ref"].as_str() {
        Some(name) => schema.pointer(name.trim_start_matches('#')).unwrap(),
        None => node,
    }
}

/// A key of the file: its node, and whether it has to be there.
type Keys<'s> = BTreeMap<String, (&'s Value, bool)>;

/// Every key under `node`: `limits.headers`, `rules[].path`.
fn collect<'s>(schema: &'s Value, node: &'s Value, path: &str, keys: &mut Keys<'s>) {
    let node = resolved(schema, node);
    for (name, inner) in node["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let required = node["required"].as_array().is_some_and(|names| names.contains(&json!(name)));
        collect(schema, inner, &path, keys);
        keys.insert(path, (inner, required));
    }
    if node["items"].is_object() {
        collect(schema, &node["items"], &format!("{path}[]"), keys);
    }
    for branch in node["anyOf"].as_array().into_iter().flatten() {
        collect(schema, branch, path, keys);
    }
}

/// Everything that the schema says about one value as text for people: its words and its bounds.
fn said(node: &Value, words: &mut Vec<String>, bounds: &mut Vec<u64>) {
    for (name, value) in node.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            ("const", word) => words.push(word.as_str().map_or_else(|| word.to_string(), str::to_owned)),
            ("enum", Value::Array(listed)) => {
                words.extend(
                    listed.iter().map(|word| word.as_str().map_or_else(|| word.to_string(), str::to_owned)),
                );
            }
            ("x-least" | "x-most" | "minimum" | "maximum", bound) => bounds.extend(bound.as_u64()),
            ("anyOf" | "oneOf", Value::Array(branches)) => {
                branches.iter().for_each(|branch| said(branch, words, bounds));
            }
            _ => {}
        }
    }
}

/// `` `1h` `` as what the schema counts: milliseconds, bytes or pieces.
fn amount(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[digits..] {
        "" | "ms" | "B" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok().map(|number| number * factor)
}

/// What stands between backticks.
fn code_in(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_reference_has_every_key_with_its_default_its_words_and_its_bounds() {
    let schema = portcullis::config::json_schema();
    let mut keys = Keys::new();
    collect(&schema, &schema, "", &mut keys);
    assert!(keys.len() > 60, "the schema is walked whole");
    let page = reference();
    let rows: BTreeMap<&str, Vec<&str>> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
            let key = cells.first()?.strip_suffix('`')?;
            (cells.len() == 4).then(|| (key, cells[1..].to_vec()))
        })
        .collect();
    let mut wrong = Vec::new();
    for (key, (node, required)) in &keys {
        let node = *node;
        let is_section = resolved(&schema, node)["properties"].is_object() || key == "login";
        let Some(row) = rows.get(key.as_str()) else {
            // A section may have a heading instead, as long as its keys are there.
            wrong.push(format!("{key} has no row"));
            continue;
        };
        let (kind, default) = (row[0], row[1]);
        let (mut words, mut bounds) = (Vec::new(), Vec::new());
        said(node, &mut words, &mut bounds);
        for word in words {
            if !code_in(kind).contains(&word.as_str()) {
                wrong.push(format!("{key} does not say that it may be `{word}`"));
            }
        }
        let given: Vec<u64> = code_in(kind).into_iter().filter_map(amount).collect();
        if bounds.iter().any(|bound| !given.contains(bound)) {
            wrong.push(format!("{key} has the bounds {bounds:?}, the page {given:?}"));
        }
        let expected = &node["default"];
        let right = match (required, expected) {
            (true, _) => default == "required",
            (false, Value::Null) => default == "—",
            (false, _) if is_section => default == "section",
            (false, _) => match code_in(default).as_slice() {
                [text] => match expected {
                    Value::String(expected) => expected == text,
                    _ => serde_yaml::from_str::<Value>(text).is_ok_and(|read| read == *expected),
                },
                _ => false,
            },
        };
        if !right {
            wrong.push(format!(
                "{key} has the default {expected} (required: {required}), the page says {default}"
            ));
        }
    }
    for key in rows.keys() {
        let first = key.split(['.', '[']).next().unwrap();
        if keys.contains_key(first) && !keys.contains_key(*key) {
            wrong.push(format!("{key} is on the page and not in the program"));
        }
    }
    assert!(wrong.is_empty(), "docs/reference.md:\n{}", wrong.join("\n"));
}

/// The words that `fn code` of a type answers with, from the source.
fn codes(file: &str, of: &str) -> Vec<String> {
    let source = read(file);
    let inherent = source.split(&format!("\nimpl {of} {{")).nth(1).unwrap_or_else(|| panic!("{file}: {of}"));
    let body = inherent.split("fn code(").nth(1).unwrap().split("\n    }\n").next().unwrap();
    body.lines().filter_map(|line| Some(line.split_once("=> \"")?.1.split('"').next()?.to_owned())).collect()
}

#[test]
fn the_reference_has_every_code_and_no_other() {
    let page = reference();
    let table = page.split("### `$code`").nth(1).unwrap().split("\n### ").next().unwrap();
    let mut listed: Vec<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut codes = [
        codes("src/wire/answer.rs", "Refusal"),
        codes("src/wire/hygiene.rs", "HeadError"),
        codes("src/policy/path.rs", "PathError"),
    ]
    .concat();
    assert!(codes.len() > 40, "{codes:?}");
    listed.sort_unstable();
    codes.sort_unstable();
    assert_eq!(listed, codes);
}

/// The events of the reference's table, each with its reasons.
fn audit_table() -> BTreeMap<String, Vec<String>> {
    let page = reference();
    let section = page.split("### Audit lines").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.split("\n| event ").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut table = BTreeMap::new();
    for row in rows.lines().filter(|row| row.starts_with("| `")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let reasons: Vec<String> = code_in(cells[1]).into_iter().map(str::to_owned).collect();
        for event in code_in(cells[0]) {
            assert!(table.insert(event.to_owned(), reasons.clone()).is_none(), "{event} has two rows");
        }
    }
    table
}

#[test]
fn the_reference_has_every_event_and_reason_of_the_audit_log_and_no_other() {
    let table = audit_table();
    let mut events: Vec<&str> = Event::ALL.iter().map(|event| event.code()).collect();
    events.sort_unstable();
    assert_eq!(table.keys().collect::<Vec<_>>(), events);
    let is = |event: &str, mut reasons: Vec<String>| {
        let mut listed = table[event].clone();
        listed.sort_unstable();
        reasons.sort_unstable();
        assert_eq!(listed, reasons, "{event}");
    };
    macro_rules! all {
        ($list:ident) => {
            $list::ALL.iter().map(|one| one.code().to_owned()).collect::<Vec<_>>()
        };
    }
    is("reload", all!(Trigger));
    is("reload_refused", all!(Trigger));
    is("key_change", all!(KeyChange));
    is("user_change", all!(UserChange));
    for event in ["login", "token_issued", "rotation", "reuse", "ban", "lift"] {
        is(event, vec![]);
    }
    // What a CMS does to its users without asking.
    let theirs = [UserChange::Role, UserChange::Password, UserChange::Disabled, UserChange::Removed];
    is("revocation", theirs.map(|change| change.code().to_owned()).to_vec());
    is("logout", all!(Scope));
    is("lock_out", LockedBy::FAILURES.map(|by| by.code().to_owned()).to_vec());
    // What a caller is refused for beyond the token itself, and what a login can fail for beyond the
    // credentials, are codes.
    let refusals = codes("src/wire/answer.rs", "Refusal");
    for (event, file, of) in [
        ("refused", "src/token/mod.rs", "InvalidToken"),
        ("login_failed", "src/wire/answer.rs", "WrongCredentials"),
    ] {
        let mut behind = codes(file, of);
        if event == "login_failed" {
            behind.extend(codes("src/wire/answer.rs", "LockedBy"));
        }
        for reason in &behind {
            assert!(table[event].contains(reason), "{event} lacks {reason}");
        }
        for reason in table[event].iter().filter(|reason| !behind.contains(reason)) {
            assert!(refusals.contains(reason), "{event} has {reason}");
        }
    }
}

#[tokio::test]
async fn the_reference_has_every_metric_with_its_labels_and_no_other() {
    let keys = json!({ "keys": [] }).to_string();
    let upstream = Upstream::answering(move |seen| match seen.target.as_str() {
        "/jwks" => Response::new(Full::from(keys.clone())),
        _ => Response::builder().status(500).body(Full::<Bytes>::default()).unwrap(),
    })
    .await;
    // Whatever only counts with its first occurrence has one here.
    let gateway = Gateway::start(
        &upstream,
        "rules: [{ path: /*, allow: Viewer }, { path: /a, allow: public, mode: report }]\n\
         login: { rotate: /auth/rotate, max_failures: 1 }\n\
         tokens:\n  trust:\n    \
         - { issuer: one, audience: portcullis, jwks: 'http://UPSTREAM/jwks' }\n    \
         - { issuer: two, audience: portcullis, jwks: 'http://UPSTREAM/none' }",
    )
    .await;
    let token = gateway.login("vera").await;
    for path in ["/auth/rotate", "/auth/logout"] {
        gateway.post(path).bearer(&token).send().await;
    }
    gateway.metric_becomes("portcullis_store_up{store=\"users\"}", 1.0).await;
    let wrong = json!({ "username": "nobody", "password": "wrong" });
    gateway.post("/auth/login").json(&wrong).send().await;
    gateway.get("/a").send().await;
    gateway.wait_for_line(0, |line| line.contains("cannot fetch a trusted issuer's keys")).await;
    let mut scraped = gateway.admin("GET", "/metrics").send().await.text();
    let folder = tempfile::tempdir().unwrap();
    Authority::new().write(folder.path(), "cert", &["localhost"]);
    let https = Gateway::start_in(folder, upstream.address, "tls: { cert: cert.pem, key: cert.key }").await;
    scraped.push_str(&https.admin("GET", "/metrics").send().await.text());
    let mut metrics: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in scraped.lines().filter_map(|line| line.strip_prefix("# TYPE portcullis_")?.split(' ').next())
    {
        let sample = scraped.lines().find(|line| {
            line.strip_prefix("portcullis_").is_some_and(|line| line.starts_with(&format!("{name}{{")))
        });
        let labels = sample.and_then(|line| line.split(['{', '}']).nth(1)).unwrap_or_default();
        let mut labels: Vec<&str> = labels
            .split(',')
            .filter_map(|pair| Some(pair.split_once('=')?.0))
            .filter(|name| *name != "le")
            .collect();
        labels.sort_unstable();
        metrics.insert(name, labels);
    }
    // And none of those that the source registers was forgotten above.
    let source = read("src/observe/metrics.rs");
    for name in source
        .split("build(")
        .skip(1)
        .filter_map(|rest| rest.split('"').nth(1))
        .filter(|name| !name.contains('{'))
    {
        assert!(metrics.contains_key(name), "{name} was not provoked, or is no metric");
    }
    let page = reference();
    let documented: BTreeMap<&str, Vec<&str>> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `portcullis_")?.split('|').collect();
            let mut labels = code_in(cells[1]);
            labels.sort_unstable();
            Some((cells[0].trim().strip_suffix('`')?, labels))
        })
        .collect();
    assert_eq!(documented, metrics);
}

#[test]
fn the_reference_has_every_command_and_option() {
    fn walk(command: &clap::Command, prefix: &str, page: &[&str], missing: &mut Vec<String>) {
        for inner in command.get_subcommands() {
            let name = format!("{prefix}{}", inner.get_name());
            if inner.has_subcommands() {
                walk(inner, &format!("{name} "), page, missing);
                continue;
            }
            let Some(row) = page.iter().find(|row| {
                code_in(row).iter().any(|code| *code == name || code.starts_with(&format!("{name} ")))
            }) else {
                missing.push(name);
                continue;
            };
            for option in inner.get_arguments().filter_map(clap::Arg::get_long) {
                if !["config", "help"].contains(&option) && !row.contains(&format!("--{option}")) {
                    missing.push(format!("{name} --{option}"));
                }
            }
        }
    }
    let page = reference();
    let section = page.split("\n## Commands").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let mut missing = Vec::new();
    walk(&portcullis::cli::Arguments::command(), "", &rows, &mut missing);
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_link_within_the_documentation_leads_somewhere() {
    let mut broken = Vec::new();
    for page in pages().into_iter().chain(
        [
            "deploy/wagtail/README.md",
            "benches/login/README.md",
            "benches/proxy/README.md",
            "benches/slow/README.md",
            "fuzz/README.md",
        ]
        .map(|p| root().join(p)),
    ) {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let there = path.exists()
                && (heading.is_empty()
                    || headings(&std::fs::read_to_string(&path).unwrap()).iter().any(|h| h == heading));
            if !there {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The anchors of a page's headings, as GitHub makes them.
fn headings(page: &str) -> Vec<String> {
    let mut in_block = false;
    page.lines()
        .filter(|line| {
            in_block ^= line.trim_start().starts_with("```");
            !in_block && line.starts_with('#')
        })
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_load_balancers_page_begins_with_what_is_believed_from_whom() {
    let folder = root().join("docs/load-balancers");
    let mut seen = 0;
    for page in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if page.ends_with("README.md") {
            continue;
        }
        seen += 1;
        let text = std::fs::read_to_string(&page).unwrap();
        let first = text.split("\n\n").nth(1).unwrap_or_default();
        assert!(first.starts_with("**Believed from whom:** "), "{}: {first}", page.display());
        assert!(text.contains("../../deploy/load-balancers/"), "{} shows no configuration", page.display());
    }
    assert!(seen >= 8, "{seen}");
}

#[tokio::test]
async fn the_reason_of_a_failed_login_is_a_word_of_the_closed_list() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, "rules: [{ path: /*, allow: Viewer }]").await;
    for (body, reason) in [
        (json!({ "username": "vera" }), "login_body"),
        (json!({ "username": "vera", "password": "wrong" }), "wrong_password"),
        (json!({ "username": "nobody", "password": "wrong" }), "unknown_user"),
    ] {
        let seen = gateway.lines().len();
        gateway.post("/auth/login").json(&body).send().await;
        let at = gateway.wait_for_line(seen, |line| line.contains(r#""event":"login_failed""#)).await;
        let line: Value = serde_json::from_str(&gateway.lines()[at]).unwrap();
        assert_eq!(line["reason"], reason);
        assert_eq!(gateway.metric(&format!("portcullis_logins_total{{outcome=\"{reason}\"}}")).await, 1.0);
    }
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let page = read("docs/threat-model.md");
    let targets = read("fuzz/Cargo.toml");
    let mut missing = Vec::new();
    let mut named = 0;
    for span in code_in(&page).into_iter().filter(|span| span.contains("::")) {
        let (place, test) = span.rsplit_once("::").unwrap();
        let path = place.replace("::", "/");
        let there = match place {
            "fuzz" => targets.contains(&format!("path = \"targets/{test}.rs\"")),
            _ => ["src/@.rs", "src/@/mod.rs", "src/@/tests.rs", "tests/@.rs"]
                .map(|file| file.replace('@', &path))
                .iter()
                .filter_map(|file| std::fs::read_to_string(root().join(file)).ok())
                .any(|source| source.contains(&format!("fn {test}("))),
        };
        named += 1;
        if !there {
            missing.push(span);
        }
    }
    assert!(named > 60, "{named}");
    assert!(missing.is_empty(), "{missing:#?}");
}
