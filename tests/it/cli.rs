//! The command line: what it says, and with which code it ends. Never a panic, never a backtrace.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use portcullis::config::Preset;
use portcullis::token::{Algorithm, generate_pkcs8_pem};
use serde_json::Value;

use crate::harness::{Gateway, PASSWORD, Upstream, refused_start, run};

const FILE: &str = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nupstream: http://127.0.0.1:1\n\
                    roles: [Viewer, Editor, SuperAdmin]\n";

/// A folder with a `gateway.yaml` that begins with [`FILE`].
fn folder(rest: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("gateway.yaml"), format!("{FILE}{rest}\n")).unwrap();
    folder
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error and the exit code, after a look that nothing in it is a crash.
fn failure(output: &Output) -> (String, Option<i32>) {
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    for word in ["panicked", "backtrace", "RUST_", "thread '", "unwrap", "src/", "Os {", "Error {"] {
        assert!(!told.contains(word), "{word}: {told}");
    }
    (told, output.status.code())
}

/// Runs a command that has to work and returns what it printed.
fn works(folder: &Path, arguments: &[&str], stdin: &str) -> String {
    let output = run(folder, arguments, stdin);
    let (told, code) = failure(&output);
    assert_eq!(code, Some(0), "{arguments:?}: {told}{}", out(&output));
    out(&output)
}

#[test]
fn check_says_what_it_found_and_ends_with_0() {
    let folder = folder(
        "rules:\n  - { path: /a/*, allow: Viewer }\n  - { path: /b, allow: public }\nexpect:\n  \
         - { request: GET /a/x, as: Viewer, is: allowed }",
    );
    let told = works(folder.path(), &["check"], "");
    assert!(told.contains("gateway.yaml is valid: 2 rules, 3 roles, 1 expectation held"), "{told}");
    assert!(told.contains("a signing key will be made at the first start"), "{told}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a check writes nothing");
}

#[test]
fn check_says_everything_that_is_wrong_at_once_in_file_order_and_ends_with_2() {
    let folder = folder(
        "rules:\n  - { path: /a, allow: Edtior }\n  - { path: b, allow: Viewer }\n  - { path: /c, alow: Viewer }\n\
         tokens: { ttl: 5, algoritm: EdDSA }\nlimits: { headers: many }\nlogn: {}",
    );
    let output = run(folder.path(), &["check"], "");
    let (errors, code) = failure(&output);
    assert_eq!((code, errors.as_str()), (Some(2), ""));
    let told = out(&output);
    let mut rest = told.as_str();
    for expected in [
        "gateway.yaml:6:24: unknown role 'Edtior', did you mean 'Editor'?",
        "6 |   - { path: /a, allow: Edtior }",
        "gateway.yaml:7:13: ",
        "gateway.yaml:8:5: the key 'allow' is missing",
        "gateway.yaml:8:17: unknown key 'alow', did you mean 'allow'?",
        "gateway.yaml:9:16: 'tokens.ttl' must be",
        "it needs a unit",
        "gateway.yaml:9:19: unknown key 'algoritm', did you mean 'algorithm'?",
        "gateway.yaml:10:20: 'limits.headers' must be",
        "gateway.yaml:11:1: unknown key 'logn', did you mean 'login'?",
        "is refused: 8 errors",
    ] {
        let at = rest
            .find(expected)
            .unwrap_or_else(|| panic!("{expected} is not there, or not in order:\n{told}"));
        rest = &rest[at..];
    }
    assert!(!told.contains('\x1b'), "no colours in a pipe");
}

#[test]
fn a_file_that_is_no_configuration_is_one_sentence_and_code_2() {
    for (text, expected) in [
        (None, "there is no '"),
        (Some(&b""[..]), "the file is empty"),
        (Some(b"- a\n- b"), "must be a mapping"),
        (Some(b"just words"), "must be a mapping"),
        (Some(b"a: [1, 2"), "not valid YAML"),
        (Some(b"a: b\n\xff"), "is not UTF-8: line 2"),
        (Some(b"roles: [a]\nroles: [b]\nupstream: http://h:1"), "second time"),
        (Some(b"roles: [a]"), "the key 'upstream' is missing"),
        (Some(b"roles: [a]\nupstream: http://h:1\nstate: ${NO_SUCH_VARIABLE}"), "NO_SUCH_VARIABLE"),
        (Some(b"roles: [a]\nupstream: http://h:1\nstate: ${file:none.txt}"), "none.txt"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        if let Some(text) = text {
            fs::write(folder.path().join("gateway.yaml"), text).unwrap();
        }
        for command in [&["check"][..], &["user", "list"], &["explain", "GET", "/"]] {
            let output = run(folder.path(), command, "");
            let (errors, code) = failure(&output);
            let told = format!("{errors}{}", out(&output));
            assert_eq!(code, Some(2), "{command:?} {expected}: {told}");
            assert!(told.contains(expected), "{command:?} {expected}: {told}");
        }
        let (told, code) = failure(&refused_start(folder.path()));
        assert_eq!(code, Some(2), "{told}");
        assert!(told.starts_with("portcullis: ") && told.contains(expected), "{told}");
    }
}

#[tokio::test]
async fn check_network_ends_with_1_when_something_does_not_answer() {
    let upstream = Upstream::start().await;
    let folder = folder("rules: []");
    let file = folder.path().join("gateway.yaml");
    // Reserved and never listening: nobody else takes it meanwhile.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let down = held.local_addr().unwrap();
    drop(held);
    for (address, expected, code) in
        [(upstream.address, "ok      upstream", 0), (down, "failed  upstream", 1)]
    {
        let text = fs::read_to_string(&file).unwrap();
        let line = text.lines().find(|line| line.starts_with("upstream:")).unwrap();
        fs::write(&file, text.replace(line, &format!("upstream: http://{address}"))).unwrap();
        let output = run(folder.path(), &["check", "--network"], "");
        assert_eq!(failure(&output).1, Some(code), "{}", out(&output));
        assert!(out(&output).contains(expected), "{}", out(&output));
    }
    // Without it nothing is asked.
    works(folder.path(), &["check"], "");
}

#[tokio::test]
async fn explain_shows_readings_lines_roles_and_the_answer() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        "rules:\n  - { path: /admin/*, allow: Viewer }\n  - { path: /admin/user/:id, methods: [DELETE], allow: SuperAdmin }\n  \
         - { path: /open, allow: public }",
    )
    .await;
    let (vera, sam) = (gateway.login("vera").await, gateway.login("sam").await);
    for (arguments, expected) in [
        (
            vec!["GET", "/admin/user/5"],
            vec![
                "/admin/*",
                "8",
                "The strictest counts: Viewer",
                "Who may pass: Viewer, Editor, SuperAdmin.",
                "anonymous: 401",
            ],
        ),
        (
            vec!["DELETE", "/admin/user/5", "--role", "Editor"],
            vec!["DELETE /admin/user/:id", "line 9", "Who may pass: SuperAdmin.", "Editor: 403"],
        ),
        (
            vec!["POST", "/admin/user/5", "--header", "X-HTTP-Method-Override: DELETE", "--role", "Viewer"],
            vec!["POST", "DELETE", "The strictest counts: SuperAdmin", "Viewer: 403"],
        ),
        (vec!["POST", "/admin/user/5?_method=DELETE", "--role", "SuperAdmin"], vec!["SuperAdmin: allowed."]),
        (vec!["GET", "/admin//user/5;x"], vec!["/admin/user/5"]),
        (vec!["GET", "/open"], vec!["Who may pass: everybody.", "anonymous: allowed."]),
        (
            vec!["GET", "/nowhere", "--role", "SuperAdmin"],
            vec!["no rule", "Who may pass: nobody.", "SuperAdmin: 403"],
        ),
        (vec!["GET", "/a/../b"], vec!["Refused with 400"]),
        (vec!["TRACE", "/open"], vec!["Refused with 400"]),
        (vec!["POST", "/auth/login"], vec!["The gateway answers this itself."]),
        (vec!["DELETE", "/admin/user/5", "--token", &vera], vec!["this token (Viewer): 403"]),
        (vec!["DELETE", "/admin/user/5", "--token", &sam], vec!["this token (SuperAdmin): allowed."]),
        (vec!["GET", "/admin", "--token", "nonsense"], vec!["this token: 401, Invalid token"]),
        (vec!["GET", "/open", "--token", "nonsense"], vec!["allowed, as anybody is"]),
    ] {
        let mut all = vec!["explain"];
        all.extend(&arguments);
        let told = works(gateway.folder.path(), &all, "");
        for expected in expected {
            assert!(told.contains(expected), "{arguments:?}: {expected} is not in\n{told}");
        }
    }
    // What explain says of a request is what serving it does.
    assert_eq!(gateway.request("DELETE", "/admin/user/5").bearer(&vera).send().await.status, 403);
    for (wrong, expected) in [
        (
            vec!["explain", "GET", "/", "--role", "Boss"],
            "there is no role 'Boss'; the roles are Viewer, Editor, SuperAdmin",
        ),
        (vec!["explain", "GET", "/", "--header", "nonsense"], "is no header"),
        (vec!["explain", "GET"], "<PATH>"),
        (vec!["explian"], "explain"),
    ] {
        let (told, code) = failure(&run(gateway.folder.path(), &wrong, ""));
        assert_eq!(code, Some(2), "{wrong:?}");
        assert!(told.contains(expected), "{wrong:?}: {told}");
    }
}

#[tokio::test]
async fn users_are_managed_while_the_gateway_runs() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, "rules: [{ path: /a, allow: Editor }]").await;
    let here = gateway.folder.path();
    let log_in = async |name: &str, password: &str| {
        let body = serde_json::json!({ "username": name, "password": password });
        gateway.post("/auth/login").json(&body).send().await
    };
    let added = works(
        here,
        &["user", "add", "otto", "--role", "Viewer", "--email", "o@x.example", "--password-stdin"],
        "otto's password\n",
    );
    assert_eq!(added, "added otto (id 4, role Viewer)\n");
    assert_eq!(log_in("otto", "otto's password").await.status, 200);
    works(here, &["user", "passwd", "otto", "--password-stdin"], "another password");
    assert_eq!(log_in("otto", "otto's password").await.status, 401);
    works(here, &["user", "role", "otto", "Editor"], "");
    let answer = log_in("otto", "another password").await.json();
    assert_eq!(answer["user"]["role"], "Editor");
    assert_eq!(gateway.get("/a").bearer(answer["token"].as_str().unwrap()).send().await.status, 200);
    works(here, &["user", "disable", "otto"], "");
    let disabled = log_in("otto", "another password").await;
    let unknown = log_in("nobody", "another password").await;
    assert_eq!((disabled.status, &disabled.body), (401, &unknown.body), "the same bytes for both");
    works(here, &["user", "enable", "otto"], "");
    assert_eq!(log_in("otto", "another password").await.status, 200);
    let list: Value = serde_json::from_str(&works(here, &["user", "list", "--json"], "")).unwrap();
    let names: Vec<_> =
        list.as_array().unwrap().iter().map(|user| user["username"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 4);
    assert!(names.contains(&"otto") && !list.to_string().contains("argon2"), "{list}");
    let exported = works(here, &["user", "export", "--with-hashes"], "");
    works(here, &["user", "remove", "otto"], "");
    assert_eq!(log_in("otto", "another password").await.status, 401);
    // Back from the export, with the password and under an id that nobody had before.
    let otto = exported.lines().find(|line| line.contains("otto")).unwrap();
    works(here, &["user", "import", "-"], &format!("{otto}\n"));
    let back = log_in("otto", "another password").await;
    assert_eq!((back.status, &back.json()["user"]["id"]), (200, &Value::from(5)));
    for (arguments, stdin, code, expected) in [
        (
            vec!["user", "add", "otto", "--role", "Viewer", "--password-stdin"],
            PASSWORD,
            1,
            "there is a user `otto` already",
        ),
        (
            vec!["user", "add", "OTTO", "--role", "Viewer", "--password-stdin"],
            PASSWORD,
            1,
            "there is a user `otto` already",
        ),
        (vec!["user", "add", "new", "--role", "Boss", "--password-stdin"], PASSWORD, 2, "Boss"),
        (vec!["user", "add", "new", "--role", "Viewer", "--password-stdin"], "short", 2, "at least 8 bytes"),
        (vec!["user", "add", "new", "--role", "Viewer", "--password", "x"], "", 2, "--password"),
        (vec!["user", "passwd", "ottto", "--password-stdin"], PASSWORD, 1, "otto"),
        (vec!["user", "remove", "nobody"], "", 1, "there is no user `nobody`"),
        (vec!["user", "import", "-"], "{ \"username\": \"x\" }\n", 1, ""),
        (vec!["user", "import", "none.jsonl"], "", 1, "none.jsonl"),
    ] {
        let (told, ended) = failure(&run(here, &arguments, stdin));
        assert!(ended == Some(code) && told.contains(expected), "{arguments:?}: {ended:?} {told}");
    }
}

#[tokio::test]
async fn a_token_is_issued_for_the_running_gateway_and_looked_into() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, "rules: [{ path: /a, allow: Viewer }]").await;
    let here = gateway.folder.path();
    let token = works(here, &["token", "issue", "vera", "--ttl", "5m"], "");
    let token = token.trim();
    assert_eq!(gateway.get("/a").bearer(token).send().await.status, 200);
    let seen: Value =
        serde_json::from_str(&works(here, &["token", "inspect", "--json", "-"], token)).unwrap();
    assert_eq!((&seen["valid"], &seen["claims"]["role"]), (&true.into(), &"Viewer".into()));
    assert_eq!(seen["claims"]["exp"].as_u64().unwrap() - seen["claims"]["iat"].as_u64().unwrap(), 300);
    assert!(works(here, &["token", "inspect", token], "").starts_with("valid until "));
    let forged = format!("{}AAAA", &token[..token.len() - 4]);
    for (arguments, code, expected) in [
        (vec!["token", "inspect", &forged], 1, "the token is not valid"),
        (vec!["token", "inspect", "nonsense"], 1, "the token is not valid"),
        (vec!["token", "issue", "nobody"], 1, "there is no user 'nobody'"),
        (vec!["token", "issue", "vera", "--ttl", "2h"], 2, "longer than 'tokens.ttl'"),
        (vec!["token", "issue", "vera", "--ttl", "soon"], 2, "--ttl"),
    ] {
        let (told, ended) = failure(&run(here, &arguments, ""));
        assert!(ended == Some(code) && told.contains(expected), "{arguments:?}: {ended:?} {told}");
    }
    works(here, &["user", "disable", "vera"], "");
    assert!(failure(&run(here, &["token", "issue", "vera"], "")).0.contains("is disabled"));
}

#[test]
fn init_writes_a_file_that_check_accepts_and_overwrites_none() {
    let folder = tempfile::tempdir().unwrap();
    let told = works(folder.path(), &["init"], "");
    assert!(told.contains("wrote ") && told.contains("portcullis check"), "{told}");
    let written = fs::read_to_string(folder.path().join("gateway.yaml")).unwrap();
    works(folder.path(), &["check"], "");
    let (told, code) = failure(&run(folder.path(), &["init"], ""));
    assert_eq!(code, Some(2));
    assert!(told.contains("is there already and stays as it is"), "{told}");
    assert_eq!(fs::read_to_string(folder.path().join("gateway.yaml")).unwrap(), written);
}

/// A line that every file with a preset passes `check` with, wherever it runs.
const WITHOUT_SECRET: &str = "identity: { secret: false }\n";

#[test]
fn init_writes_a_file_for_each_cms_that_is_known() {
    for preset in Preset::ALL {
        let (folder, name) = (tempfile::tempdir().unwrap(), preset.name());
        let told = works(folder.path(), &["init", "--preset", name], "");
        let file = folder.path().join("gateway.yaml");
        let written = fs::read_to_string(&file).unwrap();
        assert_eq!(
            told.contains("set GATEWAY_SECRET"),
            preset.text().contains("${GATEWAY_SECRET}"),
            "{told}"
        );
        assert!(written.contains(&format!("\npreset: {name}\n")), "{written}");
        assert!(written.lines().filter(|line| line.starts_with("# | ")).count() > 20, "{written}");
        fs::write(&file, format!("{written}{WITHOUT_SECRET}")).unwrap();
        let told = works(folder.path(), &["check"], "");
        assert!(!told.contains("warning") && told.contains(&format!("\npreset {name} (")), "{told}");
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/cms/{name}.md"));
        assert!(page.is_file(), "{}", page.display());
    }
    let folder = tempfile::tempdir().unwrap();
    let (told, code) = failure(&run(folder.path(), &["init", "--preset", "wordpres"], ""));
    assert!(code == Some(2) && told.contains("wordpress"), "{told}");
}

#[test]
fn check_tells_what_a_preset_adds_and_explain_names_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "preset: wordpress\nupstream: http://127.0.0.1:1\n{WITHOUT_SECRET}rules:\n  \
         - {{ path: /wp-cron.php, methods: [GET], allow: public }}\n  - {{ path: /xmlrpc.php, allow: author }}\n"
    );
    fs::write(folder.path().join("gateway.yaml"), text).unwrap();
    let told = works(folder.path(), &["check"], "");
    assert!(told.contains("preset wordpress (WordPress: tried with 6.1.9"), "{told}");
    assert!(told.contains("fills in roles, identity.user, login.cookie, login.page"), "{told}");
    assert!(told.contains("leaves /xmlrpc.php to the file's own rule"), "{told}");
    let line =
        |needle: &str| Preset::Wordpress.text().lines().position(|line| line.contains(needle)).unwrap() + 1;
    let cron = line("path: /wp-cron.php");
    assert!(told.contains(&format!("line {cron:<4} {:<16} /wp-cron.php", "deny")), "{told}");
    let users = line("path: /wp-admin/*,                     allow");
    let told = works(folder.path(), &["explain", "GET", "/wp-admin/users.php", "--role", "editor"], "");
    assert!(told.contains(&format!("by '/wp-admin/*', line {users} of the preset wordpress")), "{told}");
    assert!(told.contains("Who may pass: administrator.") && told.contains("editor: 403"), "{told}");
    let told = works(folder.path(), &["explain", "GET", "/xmlrpc.php"], "");
    assert!(told.contains("by '/xmlrpc.php', line 6)"), "{told}");
}

#[tokio::test]
async fn health_asks_the_gateway_of_the_configuration() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, "rules: []").await;
    // The file that it runs on says port 0; this one says where that is.
    let asked = folder("rules: []");
    let file = asked.path().join("gateway.yaml");
    let text = FILE.replace("admin: 127.0.0.1:0", &format!("admin: {}", gateway.admin));
    fs::write(&file, &text).unwrap();
    works(asked.path(), &["health"], "");
    drop(gateway);
    let (told, code) = failure(&run(asked.path(), &["health"], ""));
    assert!(code == Some(1) && told.contains("does not answer"), "{told}");
    fs::write(&file, FILE.replace("admin: 127.0.0.1:0", "admin: false")).unwrap();
    let (told, code) = failure(&run(asked.path(), &["health"], ""));
    assert!(code == Some(2) && told.contains("'admin' is off"), "{told}");
}

#[test]
fn completions_manual_pages_and_schema_are_printed_without_a_configuration() {
    let empty = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(works(empty.path(), &["completions", shell], "").contains("portcullis"), "{shell}");
    }
    assert!(works(empty.path(), &["man"], "").contains(".TH portcullis"));
    let pages = empty.path().join("man");
    fs::create_dir(&pages).unwrap();
    works(empty.path(), &["man", pages.to_str().unwrap()], "");
    assert!(pages.join("portcullis.1").is_file() && fs::read_dir(&pages).unwrap().count() > 5);
    let schema: Value = serde_json::from_str(&works(empty.path(), &["schema"], "")).unwrap();
    assert!(schema["properties"]["rules"].is_object());
    assert!(works(empty.path(), &["--help"], "").contains("portcullis demo"));
    assert!(works(empty.path(), &["--version"], "").starts_with("portcullis "));
}

#[test]
fn what_keeps_it_from_starting_is_one_sentence() {
    // Whoever may write anywhere is not kept from it by permissions.
    let everywhere = is_root();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    type Prepare = Box<dyn Fn(&Path)>;
    let rows: Vec<(&str, String, Prepare, i32, &str)> = vec![
        (
            "the port is taken",
            FILE.replace("listen: 127.0.0.1:0", &format!("listen: {address}")),
            Box::new(|_| {}),
            1,
            "another process listens there",
        ),
        (
            "the admin port is taken",
            FILE.replace("admin: 127.0.0.1:0", &format!("admin: {address}")),
            Box::new(|_| {}),
            1,
            "another process listens there",
        ),
        (
            "the address is another machine's",
            FILE.replace("listen: 127.0.0.1:0", "listen: 192.0.2.1:8080"),
            Box::new(|_| {}),
            1,
            "this machine has no such address",
        ),
        (
            "the state folder is a file",
            FILE.to_owned(),
            Box::new(|folder| fs::write(folder.join("data"), "x").unwrap()),
            2,
            "data",
        ),
        (
            "the database is none",
            FILE.to_owned(),
            Box::new(|folder| {
                fs::create_dir(folder.join("data")).unwrap();
                fs::write(folder.join("data/portcullis.db"), "this is no database at all".repeat(100))
                    .unwrap();
            }),
            1,
            "portcullis.db",
        ),
        (
            "the database is a folder",
            FILE.to_owned(),
            Box::new(|folder| fs::create_dir_all(folder.join("data/portcullis.db")).unwrap()),
            1,
            "portcullis.db",
        ),
        (
            "everybody may read the key",
            FILE.to_owned(),
            Box::new(|folder| {
                fs::create_dir_all(folder.join("data/keys")).unwrap();
                let key = folder.join("data/keys/a.pem");
                fs::write(&key, generate_pkcs8_pem(Algorithm::EdDSA).unwrap()).unwrap();
                fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
            }),
            2,
            "everybody may read the key",
        ),
        (
            "the key is none",
            FILE.to_owned(),
            Box::new(|folder| {
                fs::create_dir_all(folder.join("data/keys")).unwrap();
                let key = folder.join("data/keys/a.pem");
                fs::write(&key, "nonsense").unwrap();
                fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            }),
            2,
            "a.pem",
        ),
        (
            "the state folder cannot be written to",
            FILE.to_owned(),
            Box::new(|folder| {
                fs::create_dir(folder.join("data")).unwrap();
                fs::set_permissions(folder.join("data"), fs::Permissions::from_mode(0o500)).unwrap();
            }),
            2,
            "data",
        ),
        (
            "the state folder cannot be made",
            format!("{FILE}state: /proc/portcullis"),
            Box::new(|_| {}),
            2,
            "/proc/portcullis",
        ),
        (
            "the configuration is invalid",
            format!("{FILE}rulez: []"),
            Box::new(|_| {}),
            2,
            "unknown key 'rulez'",
        ),
        (
            "an expectation fails",
            format!("{FILE}expect: [{{ request: GET /, as: Viewer, is: allowed }}]"),
            Box::new(|_| {}),
            2,
            "gateway.yaml:5:",
        ),
    ];
    for (why, text, prepare, code, expected) in rows {
        if everywhere && why.contains("cannot be written to") {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("gateway.yaml"), text).unwrap();
        prepare(folder.path());
        let (told, ended) = failure(&refused_start(folder.path()));
        let mut messages: Vec<&str> = told.lines().filter(|line| line.starts_with("portcullis: ")).collect();
        assert_eq!(messages.len(), 1, "{why}: {told}");
        assert!(told.contains(expected), "{why}: {told}");
        assert_eq!(ended, Some(code), "{why}: {told}");
        if code == 1 {
            // One sentence is all of it: no list of causes, no code of the system's.
            let sentence = messages.remove(0);
            assert!(!sentence.contains("os error") && !sentence.contains("(code:"), "{why}: {sentence}");
        }
    }
}

/// Whether permissions mean nothing to this process.
fn is_root() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    fs::read(&file).is_ok()
}
