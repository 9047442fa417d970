//! The users of a CMS log in with their own passwords, from its own database, which is only read.

use serde_json::{Value, json};

use crate::harness::databases::{Database, Kind};
use crate::harness::{Answer, Gateway, Upstream, partners, run};

/// Of every user here.
const PASSWORD: &str = "correct horse battery staple";

/// `password_hash($p, PASSWORD_BCRYPT)` of PHP 8.2, from `data/hashes.jsonl`.
const HASH: &str = "$2y$10$5bhgyex2jYXI0PuQhKDyTOw1vAjbFvLh/JhuXTsk5GO1ea1ADGvnm";

/// Of another password.
const OTHER_HASH: &str = "$2y$04$gSrJGkU9bEFkXuWYZBlM3.NUTYnfvKoHe8K/2P6j1fOelh18aM9by";

const QUERY: &str = "SELECT u.id AS id, u.login AS username, u.pass AS password_hash, r.role AS role, u.display AS name, \
     u.mail AS email, u.blocked AS disabled FROM users u LEFT JOIN roles r ON r.user_id = u.id \
     WHERE u.login = :username OR u.mail = :username";

const ROLE_MAP: &str = "{ subscriber: Viewer, author: Editor, administrator: SuperAdmin }";

/// A generic CMS: users, their roles in a table of their own, and rows that are damaged in every way.
fn schema() -> String {
    let cut = &HASH[..40];
    format!(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, login VARCHAR(60) NOT NULL, pass VARCHAR(255), \
             display VARCHAR(250), mail VARCHAR(100), blocked SMALLINT NOT NULL DEFAULT 0);
         CREATE TABLE roles (user_id INTEGER NOT NULL, role VARCHAR(64));
         INSERT INTO users VALUES (7, 'vera', '{HASH}', 'Vera Viewer', 'vera@example.org', 0), \
             (8, 'emil', '{HASH}', NULL, NULL, 0), (9, 'blocked', '{HASH}', NULL, NULL, 1), \
             (10, 'stranger', '{HASH}', NULL, NULL, 0), (11, 'nobody', '{HASH}', NULL, NULL, 0), \
             (12, 'passwordless', NULL, NULL, NULL, 0), (13, 'cut', '{cut}', NULL, NULL, 0), \
             (14, 'costly', 'pbkdf2_sha256$1000000000$c2FsdHNhbHQ$Tm8gcGFzc3dvcmQgaGFzaGVzIHRvIHRoaXMsIHByYXk=', NULL, NULL, 0), \
             (15, 'twin', '{HASH}', NULL, 'first@example.org', 0), (16, 'other twin', '{HASH}', NULL, 'twin', 0), \
             (17, 'ödegård', '{HASH}', 'Öde', NULL, 0), (18, 'wp', '{HASH}', NULL, NULL, 0);
         INSERT INTO roles VALUES (7, 'subscriber'), (8, 'subscriber'), (8, 'administrator'), (8, 'unheard of'), \
             (9, 'author'), (10, 'shop_manager'), (12, 'author'), (13, 'author'), (14, 'author'), (15, 'author'), \
             (16, 'author'), (17, 'author'), (18, 'a:2:{{s:6:\"author\";b:1;s:13:\"administrator\";b:0;}}');
        "
    )
}

/// Only what the query reads.
fn grants(kind: Kind) -> &'static str {
    match kind {
        Kind::Sqlite => "",
        Kind::Postgres => "GRANT SELECT ON users, roles TO gateway",
        Kind::MariaDb => {
            "GRANT SELECT ON cms.users TO gateway@'127.0.0.1';\nGRANT SELECT ON cms.roles TO gateway@'127.0.0.1'"
        }
    }
}

fn config(url: &str, query: &str) -> String {
    format!(
        "rules: [{{ path: /*, allow: Viewer }}]\nlogin: {{ rotate: /auth/rotate, max_failures: 3 }}\n\
         trusted_proxies: [127.0.0.1]\n\
         users:\n  store: {}\n  query: {}\n  role_map: {ROLE_MAP}\n  recheck: 1s\n",
        json!(url),
        json!(query)
    )
}

/// A folder in which no users of the gateway's own are made.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    folder
}

async fn attempt(gateway: &Gateway, name: &str, password: &str) -> Answer {
    // Everybody from somewhere else, so that failures of one name are no matter of the next.
    let client =
        format!("2001:db8:{:x}::1", name.bytes().fold(0u16, |sum, b| sum.wrapping_mul(31) ^ u16::from(b)));
    let body = json!({ "username": name, "password": password });
    gateway.post("/auth/login").header("x-forwarded-for", &client).json(&body).send().await
}

async fn token(gateway: &Gateway, name: &str) -> String {
    let answer = attempt(gateway, name, PASSWORD).await;
    assert_eq!(answer.status, 200, "{name}: {}\n{}", answer.text(), gateway.lines().join("\n"));
    answer.json()["token"].as_str().unwrap().to_owned()
}

async fn page(gateway: &Gateway, token: &str) -> u16 {
    gateway.get("/page").bearer(token).send().await.status
}

/// The reason of the last failed login of a name, from the audit log.
async fn reason(gateway: &Gateway, name: &str) -> String {
    let named = json!(name).to_string();
    let failed =
        move |line: &str| line.contains("\"login_failed\"") && line.contains(&format!("\"user\":{named}"));
    gateway.wait_for_line(0, failed.clone()).await;
    let line: Value = gateway.lines().iter().rev().find(|line| failed(line)).unwrap().parse().unwrap();
    line["reason"].as_str().unwrap().to_owned()
}

/// The whole life of a gateway in front of such a database.
async fn a_cms_in(kind: Kind) {
    let Some(mut database) = Database::start(kind).await else { return };
    database.execute(&schema()).await;
    database.execute(grants(kind)).await;
    let upstream = Upstream::start().await;
    let config = config(&database.url(), QUERY);
    let gateway = Gateway::start_in(folder(), upstream.address, &config).await;
    let told = String::from_utf8(gateway.run(&["check", "--network"], "").stdout).unwrap();
    assert!(told.contains("\nok      users in "), "{told}");

    users_sign_in_with_their_own_passwords(&gateway, &upstream).await;
    who_cannot_sign_in_gets_one_answer(&gateway, kind).await;
    one_user_is_one_account(&gateway, kind).await;
    commands_know_whose_the_users_are(&gateway).await;
    a_change_over_there_ends_tokens(&gateway, &database).await;
    a_database_that_is_slow_or_away_is_an_error_and_comes_back(&gateway, &mut database).await;
    nothing_is_written(&database).await;
    what_is_wrong_is_one_sentence(&database).await;
    let log = gateway.lines().join("\n");
    for secret in ["s3cret-of-the-gateway", HASH, PASSWORD] {
        assert!(!log.contains(secret), "{log}");
    }
}

async fn users_sign_in_with_their_own_passwords(gateway: &Gateway, upstream: &Upstream) {
    let answer = attempt(gateway, "vera", PASSWORD).await;
    let user = json!({ "id": 7, "name": "Vera Viewer", "email": "vera@example.org", "role": "Viewer" });
    assert_eq!((answer.status, &answer.json()["user"]), (200, &user));
    assert_eq!(page(gateway, answer.json()["token"].as_str().unwrap()).await, 200);
    let seen = upstream.last();
    for (name, value) in [("x-auth-id", "7"), ("x-auth-user", "vera"), ("x-auth-role", "Viewer")] {
        assert_eq!(seen.headers[name], value);
    }
    for (name, role) in
        [("vera@example.org", "Viewer"), ("emil", "SuperAdmin"), ("ödegård", "Editor"), ("wp", "Editor")]
    {
        let answer = attempt(gateway, name, PASSWORD).await;
        assert_eq!((answer.status, answer.json()["user"]["role"].as_str()), (200, Some(role)), "{name}");
    }
    // Rotation reads them afresh.
    let old = token(gateway, "vera").await;
    let rotated = gateway.post("/auth/rotate").bearer(&old).send().await;
    assert_eq!((rotated.status, page(gateway, &old).await), (200, 401), "{}", rotated.text());
}

async fn who_cannot_sign_in_gets_one_answer(gateway: &Gateway, kind: Kind) {
    let long = "x".repeat(10 * 1024);
    let mut answers = Vec::new();
    for (name, password, why) in [
        ("vera", "wrong password", "wrong_password"),
        ("somebody", PASSWORD, "unknown_user"),
        ("blocked", PASSWORD, "disabled_user"),
        ("stranger", PASSWORD, "no_role"),
        ("nobody", PASSWORD, "no_role"),
        ("passwordless", PASSWORD, "unusable_hash"),
        ("cut", PASSWORD, "unusable_hash"),
        ("costly", PASSWORD, "unusable_hash"),
        ("twin", PASSWORD, "unusable_user"),
        ("' OR 1=1 -- ", PASSWORD, "unknown_user"),
        ("\\' OR 1=1 -- ", PASSWORD, "unknown_user"),
        ("vera'; DROP TABLE users; --", PASSWORD, "unknown_user"),
        (":username", PASSWORD, "unknown_user"),
        ("%", PASSWORD, "unknown_user"),
        ("ve\u{0}ra", PASSWORD, "unknown_user"),
        // Looks like vera.
        ("v\u{435}ra", PASSWORD, "unknown_user"),
    ] {
        let answer = attempt(gateway, name, password).await;
        assert_eq!(answer.status, 401, "{name}: {}", answer.text());
        assert_eq!(reason(gateway, name).await, why, "{name} in {kind:?}");
        answers.push(answer.body);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1);
    assert_eq!(attempt(gateway, &long, PASSWORD).await.status, 400);
    let log = gateway.lines().join("\n");
    assert!(log.contains("none of their roles is one here (shop_manager)"), "{log}");
    assert!(log.contains("finds several users by that name"), "{log}");
    // A wrong password is forgiven.
    token(gateway, "vera").await;
}

/// Whatever a name may be in this database or another, it is counted once.
async fn one_user_is_one_account(gateway: &Gateway, kind: Kind) {
    let from = |client: &'static str, name: &'static str| async move {
        let body = json!({ "username": name, "password": "wrong password" });
        gateway.post("/auth/login").header("x-forwarded-for", client).json(&body).send().await.status
    };
    assert_eq!(from("192.0.2.1", "emil").await, 401);
    assert_eq!(from("192.0.2.1", "EMIL").await, 401);
    assert_eq!(from("192.0.2.1", "émil").await, 401);
    assert_eq!(from("192.0.2.1", "Emil").await, 429);
    // By two names.
    assert_eq!(from("192.0.2.2", "vera@example.org").await, 401);
    assert_eq!(from("192.0.2.2", "vera").await, 401);
    assert_eq!(from("192.0.2.2", "vera@example.org").await, 401);
    assert_eq!(from("192.0.2.2", "vera").await, 429);
    assert_eq!(from("192.0.2.2", "vera@example.org").await, 429);
    // MariaDB's collation takes these for one user.
    let answer = attempt(gateway, "ODEGARD", PASSWORD).await;
    assert_eq!(answer.status, if kind == Kind::MariaDb { 200 } else { 401 });
    if kind == Kind::MariaDb {
        let claims = portcullis::token::decode_without_verifying(answer.json()["token"].as_str().unwrap())
            .unwrap()
            .claims;
        assert_eq!(claims["preferred_username"], "ödegård");
    }
    let listed = String::from_utf8(gateway.run(&["ban", "lift", "Émil"], "").stdout).unwrap();
    assert!(listed.contains("can log in again"), "{listed}");
    assert!(gateway.run(&["ban", "lift", "Vera"], "").status.success());
}

async fn commands_know_whose_the_users_are(gateway: &Gateway) {
    for arguments in [&["user", "list"][..], &["user", "remove", "vera"], &["user", "role", "vera", "Editor"]]
    {
        let output = gateway.run(arguments, "");
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("which the gateway only reads") && !told.contains("s3cret"), "{told}");
    }
    let output = gateway.run(&["token", "issue", "emil"], "");
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert_eq!(page(gateway, &token).await, 200, "{}", String::from_utf8_lossy(&output.stderr));
    let output = gateway.run(&["token", "issue", "stranger"], "");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("none of their roles is one here"), "{told}");
    assert!(gateway.run(&["token", "revoke", "--user", "emil"], "").status.success());
    over(gateway, &token).await;
}

/// Waits until a token is refused.
async fn over(gateway: &Gateway, token: &str) {
    let ended = async {
        while page(gateway, token).await != 401 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, ended).await.expect("the token ends");
}

async fn a_change_over_there_ends_tokens(gateway: &Gateway, database: &Database) {
    let unchanged = token(gateway, "ödegård").await;
    let (mut role, mut password, mut issued) = (String::new(), String::new(), String::new());
    for (sql, reason, back) in [
        ("UPDATE roles SET role = 'author' WHERE user_id = 7", "role", ""),
        (
            "UPDATE roles SET role = 'shop_manager' WHERE user_id = 7",
            "role",
            "UPDATE roles SET role = 'author' WHERE user_id = 7",
        ),
        (
            "UPDATE users SET blocked = 1 WHERE id = 7",
            "disabled",
            "UPDATE users SET blocked = 0 WHERE id = 7",
        ),
        (
            "UPDATE users SET login = 'gone', mail = NULL WHERE id = 7",
            "removed",
            "UPDATE users SET login = 'vera' WHERE id = 7",
        ),
        (
            &format!("UPDATE users SET pass = '{OTHER_HASH}' WHERE id = 7") as &str,
            "password",
            &format!("UPDATE users SET pass = '{HASH}' WHERE id = 7"),
        ),
    ] {
        let live = token(gateway, "vera").await;
        assert_eq!(page(gateway, &live).await, 200, "{reason}");
        let lines = gateway.lines().len();
        database.execute(sql).await;
        over(gateway, &live).await;
        let told = format!("\"reason\":\"{reason}\"");
        gateway
            .wait_for_line(lines, move |line| line.contains("\"revocation\"") && line.contains(&told))
            .await;
        database.execute(back).await;
        (issued, password, role) = (password, role, live);
    }
    assert!([&role, &password, &issued].iter().all(|token| !token.is_empty()));
    assert_eq!(page(gateway, &unchanged).await, 200);
    // A change is noticed by the next login as well, and by a rotation.
    let live = token(gateway, "vera").await;
    database.execute("UPDATE users SET blocked = 1 WHERE id = 7").await;
    assert_eq!(gateway.post("/auth/rotate").bearer(&live).send().await.status, 401);
    database.execute("UPDATE users SET blocked = 0 WHERE id = 7").await;
    database.execute("UPDATE roles SET role = 'subscriber' WHERE user_id = 7").await;
}

async fn a_database_that_is_slow_or_away_is_an_error_and_comes_back(
    gateway: &Gateway,
    database: &mut Database,
) {
    let live = token(gateway, "emil").await;
    database
        .while_locked(async {
            let answer = attempt(gateway, "emil", PASSWORD).await;
            assert_eq!((answer.status, answer.json()["error"].as_str()), (500, Some("Failed to fetch user")));
            assert_eq!(page(gateway, &live).await, 200);
        })
        .await;
    assert_eq!(attempt(gateway, "emil", PASSWORD).await.status, 200);
    if database.kind == Kind::Sqlite {
        return;
    }
    database.stop();
    for name in ["emil", "somebody"] {
        assert_eq!(attempt(gateway, name, PASSWORD).await.status, 500);
    }
    assert_eq!(page(gateway, &live).await, 200);
    let told = String::from_utf8(gateway.run(&["check", "--network"], "").stdout).unwrap();
    assert!(told.contains("cannot be used") && !told.contains("s3cret"), "{told}");
    database.start_again().await;
    assert_eq!(attempt(gateway, "emil", PASSWORD).await.status, 200);
    assert_eq!(page(gateway, &live).await, 200);
}

/// Not even by a query that would, of a user who may.
async fn nothing_is_written(database: &Database) {
    let (setup, query) = match database.kind {
        Kind::Sqlite => return,
        Kind::Postgres => {
            ("CREATE SEQUENCE counter", QUERY.replace("WHERE", "WHERE nextval('counter') > 0 AND"))
        }
        Kind::MariaDb => (
            "CREATE TABLE counter (n INT);\nCREATE FUNCTION counted() RETURNS INT BEGIN INSERT INTO counter VALUES (1); RETURN 1; END",
            QUERY.replace("WHERE", "WHERE counted() = 1 AND"),
        ),
    };
    database.execute(setup).await;
    let upstream = Upstream::start().await;
    let url = database.url_of_the_owner();
    let gateway = Gateway::start_in(folder(), upstream.address, &config(&url, &query)).await;
    assert_eq!(attempt(&gateway, "vera", PASSWORD).await.status, 500);
    let log = gateway.lines().join("\n").to_lowercase();
    assert!(log.contains("read-only") || log.contains("read only"), "{log}");
}

async fn what_is_wrong_is_one_sentence(database: &Database) {
    let url = database.url();
    let unknown = match database.kind {
        Kind::Sqlite => "no such table: userz",
        Kind::Postgres => "relation \"userz\" does not exist",
        Kind::MariaDb => "userz",
    };
    for (url, query, told) in [
        (url.clone(), QUERY.replace("FROM users", "FROM userz"), unknown),
        (
            url.clone(),
            QUERY.replace(" AS username", ""),
            "answers 'users.query' without a column 'username': write … AS username",
        ),
        (url.clone(), QUERY.replace(" AS name", " AS id"), "with two columns 'id': leave one out"),
        (
            url.replace("s3cret-of-the-gateway", "an0ther").replace("cms.db", "gone.db"),
            QUERY.to_owned(),
            "cannot be used",
        ),
    ] {
        // PostgreSQL trusts everybody here, whatever the password is.
        if database.kind == Kind::Postgres && told == "cannot be used" {
            continue;
        }
        let folder = folder();
        let file = format!(
            "upstream: http://127.0.0.1:9\nroles: [Viewer, Editor, SuperAdmin]\n{}",
            config(&url, &query)
        );
        std::fs::write(folder.path().join("gateway.yaml"), file).unwrap();
        let output = run(folder.path(), &["check", "--network"], "");
        let found = String::from_utf8(output.stdout).unwrap();
        let line = found
            .lines()
            .find(|line| line.starts_with("failed  users in"))
            .unwrap_or_else(|| panic!("{found}"));
        assert!(line.contains(told), "{line}");
        assert!(!found.contains("s3cret") && !found.contains("an0ther"), "{found}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[tokio::test]
async fn users_of_a_cms_in_sqlite_log_in() {
    a_cms_in(Kind::Sqlite).await;
}

#[tokio::test]
async fn users_of_a_cms_in_postgresql_log_in() {
    a_cms_in(Kind::Postgres).await;
}

#[tokio::test]
async fn users_of_a_cms_in_mariadb_log_in() {
    a_cms_in(Kind::MariaDb).await;
}

#[tokio::test]
async fn a_user_who_cannot_be_looked_at_again_hides_no_other() {
    let Some(database) = Database::start(Kind::Sqlite).await else { return };
    database.execute(&schema()).await;
    let upstream = Upstream::start().await;
    // Of the smallest number there is no absolute value: SQLite gives up on the row.
    let query = QUERY.replace("u.blocked AS", "abs(u.blocked) AS");
    let gateway = Gateway::start_in(folder(), upstream.address, &config(&database.url(), &query)).await;
    let names = ["vera", "emil", "wp"];
    // Whoever comes first in the round.
    for broken in names {
        let others = names.into_iter().filter(|name| *name != broken).collect::<Vec<_>>();
        let unseen = token(&gateway, broken).await;
        let tokens = [token(&gateway, others[0]).await, token(&gateway, others[1]).await];
        let lines = gateway.lines().len();
        database
            .execute(&format!(
                "UPDATE users SET blocked = CASE login WHEN '{broken}' THEN -9223372036854775808 ELSE 1 END"
            ))
            .await;
        for token in &tokens {
            over(&gateway, token).await;
        }
        let told = move |line: &str| line.contains("could not be looked at again") && line.contains(broken);
        gateway.wait_for_line(lines, told).await;
        assert_eq!(page(&gateway, &unseen).await, 200);
        database.execute("UPDATE users SET blocked = 0").await;
    }
}

#[test]
fn what_cannot_be_a_store_is_said_at_its_place() {
    let query =
        "SELECT id, login AS username, pass AS password_hash, role FROM users WHERE login = :username";
    for (users, told) in [
        (
            "postgres://cms:hunter2@127.0.0.1/cms".to_owned(),
            "3:8: a database of the CMS needs 'query', which finds a user in the CMS's own table",
        ),
        (format!("{{ query: '{query}' }}"), "3:17: 'query' needs 'store', the CMS's database"),
        ("{ role_map: { a: Viewer } }".into(), "3:22: 'role_map' needs 'query'"),
        ("{ role: Viewer }".into(), "3:16: 'role' needs 'query'"),
        ("{ roles: { vera: Viewer } }".into(), "3:19: 'roles' needs 'store: htpasswd:FILE'"),
        ("htpasswd:users".into(), "3:8: an htpasswd file needs 'role' or 'roles'"),
        (
            format!("{{ store: 'htpasswd:users', role: Viewer, query: '{query}' }}"),
            "3:56: 'query' needs a database as its 'store'",
        ),
        ("{ recheck: 5s }".into(), "3:19: 'recheck' needs 'query'"),
        (
            "{ store: 'mysql://cms:hunter2@db/cms', query: 'SELECT 1' }".into(),
            "3:54: 'users.query' must hold :username, outside quotes",
        ),
        (
            "{ store: 'mysql://db/cms', query: 'DELETE FROM users WHERE login = :username' }".into(),
            "3:42: 'users.query' must begin with SELECT or WITH",
        ),
        (
            format!(
                "{{ store: 'sqlite:cms.db', query: '{query}', role_map: {{ editor: Viwer }}, role: Admin }}"
            ),
            "3:157: unknown role 'Viwer', did you mean 'Viewer'?",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = format!(
            "upstream: http://127.0.0.1:9\nroles: [Viewer, Editor]\nusers: {users}\nrules: [{{ path: /, allow: deny }}]\n"
        );
        std::fs::write(folder.path().join("gateway.yaml"), file).unwrap();
        let output = run(folder.path(), &["check"], "");
        let found = String::from_utf8(output.stdout).unwrap();
        assert!(found.contains(told), "{users}\n{found}");
        assert!(!found.contains("hunter2"), "{found}");
        assert_eq!(output.status.code(), Some(2));
    }
}

#[tokio::test]
async fn users_of_an_htpasswd_file_log_in_and_a_change_of_it_ends_their_tokens() {
    // htpasswd 2.4 -bnm and -bns of the same password, from `data/hashes.jsonl`.
    let rows = hashes();
    let of = |start: &str| {
        let row = rows.iter().find(|row| {
            row["password"] == PASSWORD && row["hash"].as_str().is_some_and(|hash| hash.starts_with(start))
        });
        row.unwrap_or_else(|| panic!("no row {start}"))["hash"].as_str().unwrap()
    };
    let (apr1, sha, crypt) = (of("$apr1$"), of("{SHA}"), of("$6$"));
    let upstream = Upstream::start().await;
    let folder = folder();
    let file = folder.path().join("htpasswd");
    let text = format!("vera:{apr1}\nemil:{HASH}\nsha:{sha}\ncrypt:{crypt}\nplain:{PASSWORD}\n");
    std::fs::write(&file, &text).unwrap();
    let config = "rules: [{ path: /*, allow: Viewer }]\ntrusted_proxies: [127.0.0.1]\n\
                  users: { store: 'htpasswd:htpasswd', roles: { vera: SuperAdmin }, role: Viewer, recheck: 1s }";
    let gateway = Gateway::start_in(folder, upstream.address, config).await;
    let told = String::from_utf8(gateway.run(&["check", "--network"], "").stdout).unwrap();
    assert!(told.contains("ok      users in htpasswd:"), "{told}");
    for (name, role) in [
        ("vera", Some("SuperAdmin")),
        ("emil", Some("Viewer")),
        ("crypt", Some("Viewer")),
        ("sha", None),
        ("plain", None),
        ("VERA", None),
    ] {
        let answer = attempt(&gateway, name, PASSWORD).await;
        assert_eq!(answer.status, if role.is_some() { 200 } else { 401 }, "{name}: {}", answer.text());
        if let Some(role) = role {
            assert_eq!(
                (&answer.json()["user"]["role"], &answer.json()["user"]["id"]),
                (&json!(role), &json!(name))
            );
        }
    }
    let (vera, emil) = (token(&gateway, "vera").await, token(&gateway, "emil").await);
    std::fs::write(&file, text.replace(&format!("vera:{apr1}\n"), "")).unwrap();
    over(&gateway, &vera).await;
    assert_eq!((attempt(&gateway, "vera", PASSWORD).await.status, page(&gateway, &emil).await), (401, 200));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(attempt(&gateway, "emil", PASSWORD).await.status, 500);
    assert_eq!(page(&gateway, &emil).await, 200);
}

/// Makes the database of a Django site, by Django itself: users with hashes that it has made, here or before.
const DJANGO: &str = r#"
import json, sys, django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField")
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.contrib.auth.models import Group, User
editors = Group.objects.create(name="Editors")
for name, password_hash in json.loads(sys.argv[3]):
    User.objects.create(username=name, password=password_hash).groups.add(editors)
User.objects.create_superuser("root", "root@example.org", sys.argv[2])
User.objects.create_user("left", password=sys.argv[2], is_active=False).groups.add(editors)
User.objects.create_user("groupless", password=sys.argv[2])
User.objects.create_user("unusable").groups.add(editors)
"#;

#[tokio::test]
async fn users_of_django_sign_in_whatever_made_their_hash() {
    let Some(python) = partners::in_repository("target/wagtail/venv/bin/python") else {
        return partners::skip("Django's users", "target/wagtail (deploy/wagtail/setup.sh target/wagtail)");
    };
    // All that Django stretches, each with the password that it is of.
    let rows = hashes().into_iter().filter(|row| {
        row["by"].as_str().is_some_and(|by| by.starts_with("Django")) && row["format"] != "digest with a salt"
    });
    let rows: Vec<(String, Value)> = rows.enumerate().map(|(at, row)| (format!("user{at}"), row)).collect();
    assert!(rows.len() >= 6);
    let given: Vec<Value> = rows.iter().map(|(name, row)| json!([name, row["hash"]])).collect();
    let site = folder();
    let database = site.path().join("db.sqlite3");
    let mut django = std::process::Command::new(python);
    django.args(["-c", DJANGO]).arg(&database).args([PASSWORD, &json!(given).to_string()]);
    let made = django.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let upstream = Upstream::start().await;
    let query = "SELECT u.id AS id, u.username AS username, u.password AS password_hash, u.email AS email, \
                 CASE WHEN u.is_superuser THEN 'superuser' ELSE g.name END AS role, NOT u.is_active AS disabled \
                 FROM auth_user u LEFT JOIN auth_user_groups m ON m.user_id = u.id \
                 LEFT JOIN auth_group g ON g.id = m.group_id WHERE u.username = :username";
    let config = format!(
        "rules: [{{ path: /*, allow: Viewer }}]\ntrusted_proxies: [127.0.0.1]\nusers:\n  store: sqlite:db.sqlite3\n  \
         query: {}\n  role_map: {{ superuser: SuperAdmin, Editors: Editor }}",
        json!(query)
    );
    let gateway = Gateway::start_in(site, upstream.address, &config).await;
    for (name, row) in &rows {
        let answer = attempt(&gateway, name, row["password"].as_str().unwrap()).await;
        assert_eq!(
            (answer.status, answer.json()["user"]["role"].as_str()),
            (200, Some("Editor")),
            "{row}\n{}",
            gateway.lines().join("\n")
        );
        assert_eq!(attempt(&gateway, name, "another password").await.status, 401, "{row}");
    }
    assert_eq!(attempt(&gateway, "root", PASSWORD).await.json()["user"]["role"], "SuperAdmin");
    for (name, why) in [("left", "disabled_user"), ("groupless", "no_role"), ("unusable", "unusable_hash")] {
        assert_eq!(attempt(&gateway, name, PASSWORD).await.status, 401);
        assert_eq!(reason(&gateway, name).await, why, "{name}");
    }
}

/// What the original systems have made, with the passwords.
fn hashes() -> Vec<Value> {
    include_str!("../data/hashes.jsonl").lines().map(|line| line.parse().unwrap()).collect()
}
