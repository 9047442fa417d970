//! Password hashes of other systems: their users come with them, log in with their own passwords, and get
//! a better hash for it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Gateway, Upstream, run};

/// Made by the original systems; see `script/hash-rows`.
const ROWS: &str = include_str!("../data/hashes.jsonl");

const RULES: &str = "rules: [{ path: /a, allow: Viewer }]";

/// The first row of each format, as lines for `user import`; the user is called after the format.
fn one_of_each(wanted: impl Fn(&Value) -> bool) -> Vec<(String, String, Value)> {
    let mut seen = BTreeSet::new();
    let rows = ROWS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.filter(|row| wanted(row) && seen.insert(row["format"].to_string()))
        .map(|row| {
            let name = row["format"].as_str().unwrap().to_owned();
            let line = json!({ "username": name, "role": "Viewer", "password_hash": row["hash"],
                "password_salt": row["salt"] });
            (name, row["password"].as_str().unwrap().to_owned(), line)
        })
        .collect()
}

fn is_weak(row: &Value) -> bool {
    let weak = [
        "LDAP digest",
        "MD5 with a salt",
        "digest with a salt",
        "digest without a salt",
        "digest of a recipe",
    ];
    weak.contains(&row["format"].as_str().unwrap())
}

async fn log_in(gateway: &Gateway, name: &str, password: &str) -> u16 {
    let body = json!({ "username": name, "password": password });
    gateway.post("/auth/login").json(&body).send().await.status
}

fn import(gateway: &Gateway, users: &[(String, String, Value)]) {
    let lines: String = users.iter().map(|(_, _, line)| format!("{line}\n")).collect();
    let output = gateway.run(&["user", "import", "-"], &lines);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn stored(gateway: &Gateway) -> Vec<Value> {
    let exported = gateway.run(&["user", "export", "--with-hashes"], "");
    let lines = String::from_utf8(exported.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn users_of_other_systems_log_in_with_their_passwords_and_get_an_argon2id_hash() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let users = one_of_each(|row| !is_weak(row));
    assert_eq!(users.len(), 16, "every format that is not weak");
    import(&gateway, &users);
    for (name, password, _) in &users {
        assert_eq!(log_in(&gateway, name, &format!("{password}x")).await, 401, "{name}");
        assert_eq!(log_in(&gateway, name, password).await, 200, "{name}");
    }
    for user in stored(&gateway) {
        let hash = user["password_hash"].as_str().unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", user["username"]);
        assert!(user.get("password_salt").is_none());
    }
    for (name, password, _) in &users {
        assert_eq!(log_in(&gateway, name, password).await, 200, "{name} once more");
    }
    assert!(!gateway.lines().iter().any(|line| line.contains("$argon2") || line.contains("$2y$")));
}

#[tokio::test]
async fn weak_hashes_come_in_only_where_the_file_says_so() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&upstream, RULES).await;
    let weak = one_of_each(|row| is_weak(row) && row["format"] != "digest of a recipe");
    assert_eq!(weak.len(), 4);
    for (name, _, line) in &weak {
        let output = gateway.run(&["user", "import", "-"], &line.to_string());
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(
            told.contains("unless `users.weak_hashes` is true") && !output.status.success(),
            "{name}: {told}"
        );
    }
    let gateway = Gateway::start(&upstream, &format!("{RULES}\nusers: {{ weak_hashes: true }}")).await;
    import(&gateway, &weak);
    for (name, password, _) in &weak {
        assert_eq!(log_in(&gateway, name, &format!("{password}x")).await, 401, "{name}");
        assert_eq!(log_in(&gateway, name, password).await, 200, "{name}");
    }
    let told = String::from_utf8(gateway.run(&["check"], "").stdout).unwrap();
    assert!(told.contains("'weak_hashes' lets in password hashes that are not stretched"), "{told}");
}

#[tokio::test]
async fn an_in_house_systems_users_log_in_by_a_recipe() {
    let upstream = Upstream::start().await;
    let recipe = "users: { store: sqlite:portcullis.db, hash_recipe: md5(password + salt) }";
    let gateway = Gateway::start(&upstream, &format!("{RULES}\n{recipe}")).await;
    let users = one_of_each(|row| row["recipe"] == "md5(password + salt)");
    import(&gateway, &users);
    let (name, password, line) = &users[0];
    assert_eq!(log_in(&gateway, name, "another").await, 401);
    assert_eq!(log_in(&gateway, name, password).await, 200);
    let told = String::from_utf8(gateway.run(&["check"], "").stdout).unwrap();
    assert!(told.contains("'hash_recipe' lets in"), "{told}");
    let without = json!({ "username": "x", "role": "Viewer", "password_hash": line["password_hash"] });
    let output = gateway.run(&["user", "import", "-"], &without.to_string());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("needs a salt"), "{told}");
}

#[test]
fn an_operator_is_told_what_a_hash_is_and_whether_a_password_is_its() {
    let folder = tempfile::tempdir().unwrap();
    let bcrypt = "$2y$04$gSrJGkU9bEFkXuWYZBlM3.NUTYnfvKoHe8K/2P6j1fOelh18aM9by";
    let password = "0".repeat(71);
    let salted = "0123456789abcdef0123456789abcdef";
    for (arguments, stdin, code, expected) in [
        (
            vec!["identify"],
            bcrypt.to_owned(),
            0,
            "format      bcrypt\nparameters  cost 4\nstrength    stretched\n",
        ),
        (vec!["identify"], format!("  {salted}  \n"), 0, "strength    weak"),
        (vec!["identify", "--json"], bcrypt.to_owned(), 0, "\"parameters\": \"cost 4\""),
        (vec!["identify", "--json"], "nonsense".into(), 1, "\"usable\": false"),
        (vec!["identify"], "nonsense".into(), 1, "is in no format that is known here"),
        (
            vec!["identify"],
            "$2y$31$gSrJGkU9bEFkXuWYZBlM3.NUTYnfvKoHe8K/2P6j1fOelh18aM9by".into(),
            1,
            "out of bounds",
        ),
        (vec!["identify"], String::new(), 1, "no password to log in with"),
        (vec!["identify", "--recipe", "md5(salt + password)"], salted.into(), 1, "needs a salt"),
        (
            vec!["identify", "--recipe", "md5(salt + password)", "--salt", "x"],
            salted.into(),
            0,
            "digest of a recipe",
        ),
        (
            vec!["identify", "--recipe", "rot13(password)"],
            salted.into(),
            2,
            "--recipe: this recipe names a function",
        ),
        (vec!["verify"], format!("{bcrypt}\n{password}\n"), 0, "the password matches (bcrypt)"),
        (vec!["verify"], format!("{bcrypt}\r\n{password}\r\n"), 0, "the password matches (bcrypt)"),
        (vec!["verify"], format!("{bcrypt}\n{password}0"), 1, "the password does not match"),
        (vec!["verify", "--json"], format!("{bcrypt}\n{password}"), 0, "\"matches\": true"),
        (vec!["verify"], bcrypt.to_owned(), 2, "the password in the second"),
        (vec!["verify", bcrypt], String::new(), 2, "unexpected argument"),
    ] {
        let output = run(folder.path(), &[&["hash"], arguments.as_slice()].concat(), &stdin);
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {stdin}: {told}");
        assert!(told.contains(expected), "{arguments:?} {stdin}: {told}");
    }
}
