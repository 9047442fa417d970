//! Rows of the original systems, rows that are damaged, and what both cost.

use serde_json::Value as Json;

use super::{mix::Mix, *};
use crate::config::{recipe::Recipe, value::Value};

/// Made by `script/hash-rows`, none by this code.
const ROWS: &str = include_str!("../../../tests/data/hashes.jsonl");

const BCRYPT: &str = "$2y$04$gSrJGkU9bEFkXuWYZBlM3.NUTYnfvKoHe8K/2P6j1fOelh18aM9by";

struct Row {
    format: String,
    password: String,
    hash: String,
    salt: Option<String>,
    policy: HashPolicy,
}

fn rows() -> Vec<Row> {
    let text = |row: &Json, name: &str| row[name].as_str().map(str::to_owned);
    let rows = ROWS.lines().map(|line| {
        let row: Json = serde_json::from_str(line).unwrap();
        let recipe = text(&row, "recipe").map(|recipe| Recipe::parse(&recipe).unwrap());
        Row {
            format: text(&row, "format").unwrap(),
            password: text(&row, "password").unwrap(),
            hash: text(&row, "hash").unwrap(),
            salt: text(&row, "salt"),
            policy: HashPolicy { weak: true, recipe },
        }
    });
    rows.collect()
}

fn parse(hash: &str) -> Result<StoredHash, UnusableHash> {
    StoredHash::parse(hash, Some("salt"), &HashPolicy { weak: true, recipe: None })
}

/// Rows whose check takes more than a moment stay for one test.
fn is_quick(row: &Row) -> bool {
    let slow = [
        "$1000000$",
        "$12$",
        "$10$",
        "m=65536",
        "m=102400",
        "scrypt$",
        "-v1:",
        "-v2-",
        "$S$D",
        "$S$E",
        "rounds=20000",
    ];
    !slow.iter().any(|part| row.hash.contains(part))
}

#[test]
fn every_row_of_an_original_system_matches_its_password() {
    let mut seen = std::collections::BTreeSet::new();
    for row in rows() {
        let hash = StoredHash::parse(&row.hash, row.salt.as_deref(), &row.policy).unwrap();
        assert_eq!(hash.format().name(), row.format, "{}", row.hash);
        assert_eq!(hash.verify(row.password.as_bytes()), Ok(true), "{} of {}", row.password, row.hash);
        seen.insert(row.format);
    }
    assert_eq!(seen.len(), 21, "each format has rows: {seen:?}");
}

#[test]
fn no_row_matches_another_password() {
    for row in rows().into_iter().filter(is_quick) {
        let hash = StoredHash::parse(&row.hash, row.salt.as_deref(), &row.policy).unwrap();
        let mut changed = row.password.clone().into_bytes();
        changed[0] ^= 1;
        // 72 zeros are the same to bcrypt as 73, and so is a blank more or less to WordPress.
        let shorter = if row.password.starts_with(['0', ' ']) { b"0" } else { &row.password.as_bytes()[1..] };
        for wrong in [changed.as_slice(), shorter] {
            assert_eq!(hash.verify(wrong), Ok(false), "{} of {}", String::from_utf8_lossy(wrong), row.hash);
        }
    }
}

#[test]
fn a_password_counts_as_far_as_the_original_system_looks() {
    let long = "0123456789".repeat(8) + "-and-no-more-of-this-counts-for-bcrypt";
    for row in rows().into_iter().filter(|row| is_quick(row) && row.password == long) {
        let hash = StoredHash::parse(&row.hash, None, &row.policy).unwrap();
        let cut = hash.format() == Format::Bcrypt;
        assert_eq!(hash.verify(&long.as_bytes()[..72]), Ok(cut), "{}", row.hash);
        assert_eq!(hash.verify(format!("{long}x").as_bytes()), Ok(cut), "{}", row.hash);
        assert_eq!(hash.verify(&long.as_bytes()[..71]), Ok(false), "{}", row.hash);
    }
}

#[test]
fn a_password_that_the_original_could_not_have_read_whole_matches_nothing() {
    // PHP's own answer to the first of these is an error.
    let zeros = parse(BCRYPT).unwrap();
    let password = "0".repeat(71);
    assert_eq!(zeros.verify(password.as_bytes()), Ok(true));
    assert_eq!(zeros.verify(format!("{password}\0").as_bytes()), Ok(false));
    assert_eq!(zeros.verify(format!("{password}\0x").as_bytes()), Ok(false));
    assert!(Spelling::AtMost512.allows(&[b'x'; 512]) && !Spelling::AtMost512.allows(&[b'x'; 513]));
}

#[test]
fn a_salt_of_its_own_column_counts_and_has_to_be_there() {
    for row in rows().into_iter().filter(|row| row.salt.is_some() && is_quick(row)) {
        let salted = row.policy.recipe.as_ref().is_none_or(Recipe::is_salted);
        for salt in [None, Some(""), Some("x".repeat(MAX_SALT_BYTES + 1).as_str())] {
            let parsed = StoredHash::parse(&row.hash, salt, &row.policy);
            assert_eq!(matches!(parsed, Err(UnusableHash::Salt(_))), salted, "{}", row.hash);
        }
        let other = StoredHash::parse(&row.hash, Some("another"), &row.policy).unwrap();
        assert_eq!(other.verify(row.password.as_bytes()), Ok(!salted), "{}", row.hash);
    }
}

#[test]
fn blanks_at_the_end_of_a_row_do_not_count() {
    assert!(parse(&format!("{BCRYPT}    ")).is_ok());
    assert!(parse(&format!(" {BCRYPT}")).is_err());
}

#[test]
fn a_row_that_is_cut_short_anywhere_matches_nothing() {
    for row in rows().into_iter().filter(is_quick) {
        let whole = StoredHash::parse(&row.hash, row.salt.as_deref(), &row.policy).unwrap();
        let bare = matches!(whole.format(), Format::JoomlaMd5 | Format::BareDigest | Format::Recipe);
        for end in (0..row.hash.len()).filter(|end| !bare || end % 16 == 0) {
            let Ok(cut) = StoredHash::parse(&row.hash[..end], row.salt.as_deref(), &row.policy) else {
                continue;
            };
            // What is cut may still be a hash: an LDAP digest or Joomla's with less of its salt.
            assert!(
                matches!(
                    cut.format(),
                    Format::Ldap
                        | Format::Recipe
                        | Format::JoomlaMd5
                        | Format::BareDigest
                        | Format::Argon2id
                        | Format::Argon2i
                        | Format::Pbkdf2Sha256
                        | Format::Pbkdf2Sha1
                        | Format::Scrypt
                ),
                "{} is read as {cut:?}",
                &row.hash[..end]
            );
            // The last characters of base64 may be padding alone.
            let padding = row.hash[end..].trim_end_matches('=').is_empty();
            assert_eq!(cut.verify(row.password.as_bytes()), Ok(padding), "{}", &row.hash[..end]);
        }
    }
}

#[test]
fn what_no_row_may_ask_for_is_refused_before_anything_is_computed() {
    use Format::*;
    let argon2 =
        |head: &str| format!("${head}$cG9ydGN1bGxpcy1kdW1teQ$Tm8gcGFzc3dvcmQgaGFzaGVzIHRvIHRoaXMsIHByYXk");
    let bcrypt = |cost: &str| BCRYPT.replacen("04", cost, 1);
    let b64 = |bytes: usize| BASE64.encode(vec![7; bytes]);
    let pbkdf2 = |rounds: &str| format!("pbkdf2_sha256${rounds}$salt${}", b64(32));
    let scrypt = |costs: &str| {
        let fields: Vec<&str> = costs.split(' ').collect();
        format!("scrypt${}$salt${}${}${}", fields[0], fields[1], fields[2], b64(64))
    };
    let phpass = |digit: char| format!("$P${digit}A6dFhaO2UUZKTCSYSMGBpD9VSNDmy0");
    let sha =
        |rounds: &str| format!("$5${rounds}AhDD.z4u7d.vV5Dg$m2GSHWTtQd4mlOKmg4HAFxJTkVm7SJTvdcJAI3rp5W0");
    let payload = |head: &str, bytes: usize| format!("pbkdf2-sha256-v2-{head}:{}", "07".repeat(bytes));
    for (hash, is) in [
        (argon2("argon2id$v=19$m=262144,t=10,p=8"), Ok(Argon2id)),
        (argon2("argon2id$v=16$m=64,t=1,p=1"), Ok(Argon2id)),
        (argon2("argon2i$m=64,t=1,p=1"), Ok(Argon2i)),
        (argon2("argon2id$v=19$m=262145,t=1,p=1"), Err(UnusableHash::Parameters(Argon2id))),
        (argon2("argon2id$v=19$m=19456,t=11,p=1"), Err(UnusableHash::Parameters(Argon2id))),
        (argon2("argon2i$v=19$m=19456,t=2,p=9"), Err(UnusableHash::Parameters(Argon2i))),
        (argon2("argon2id$v=19$m=99999999999,t=2,p=1"), Err(UnusableHash::Parameters(Argon2id))),
        (argon2("argon2id$v=19$m=8,t=1,p=2"), Err(UnusableHash::Parameters(Argon2id))),
        (argon2("argon2id$v=19$m=19456,t=0,p=1"), Err(UnusableHash::Parameters(Argon2id))),
        (argon2("argon2id$v=19$m=19456,t=2"), Err(UnusableHash::Malformed(Argon2id))),
        (argon2("argon2id$v=19$m=64,t=2,p=1,m=99"), Err(UnusableHash::Malformed(Argon2id))),
        (argon2("argon2id$v=18$m=64,t=2,p=1"), Err(UnusableHash::Malformed(Argon2id))),
        (argon2("argon2d$v=19$m=64,t=2,p=1"), Err(UnusableHash::Unsupported("an Argon2d hash"))),
        ("argon2$bcrypt$".into(), Err(UnusableHash::Malformed(Argon2id))),
        (
            "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$c2hvcnQ".into(),
            Err(UnusableHash::Malformed(Argon2id)),
        ),
        (bcrypt("15"), Ok(Bcrypt)),
        (bcrypt("16"), Err(UnusableHash::Parameters(Bcrypt))),
        (bcrypt("31"), Err(UnusableHash::Parameters(Bcrypt))),
        (bcrypt("03"), Err(UnusableHash::Parameters(Bcrypt))),
        (bcrypt("4"), Err(UnusableHash::Malformed(Bcrypt))),
        (bcrypt("+4"), Err(UnusableHash::Malformed(Bcrypt))),
        (format!("$wp{}", bcrypt("16")), Err(UnusableHash::Parameters(WordPressBcrypt))),
        (format!("bcrypt_sha256${}", bcrypt("31")), Err(UnusableHash::Parameters(DjangoBcryptSha256))),
        ("bcrypt$rubbish".into(), Err(UnusableHash::Malformed(Bcrypt))),
        (pbkdf2("5000000"), Ok(Pbkdf2Sha256)),
        (pbkdf2("5000001"), Err(UnusableHash::Parameters(Pbkdf2Sha256))),
        (pbkdf2("99999999999"), Err(UnusableHash::Parameters(Pbkdf2Sha256))),
        (pbkdf2("0"), Err(UnusableHash::Parameters(Pbkdf2Sha256))),
        (pbkdf2("-1"), Err(UnusableHash::Parameters(Pbkdf2Sha256))),
        (format!("pbkdf2_sha1$1$salt${}", b64(32)), Err(UnusableHash::Malformed(Pbkdf2Sha1))),
        (format!("$pbkdf2-sha256$1$AAAA${}", b64(31)), Err(UnusableHash::Malformed(Pbkdf2Sha256))),
        (payload("i600000-l32", 32), Ok(Payload)),
        (payload("i600000-l512", 512), Err(UnusableHash::Parameters(Payload))),
        (payload("i1-l513", 513), Err(UnusableHash::Malformed(Payload))),
        (payload("i1-l8", 8), Err(UnusableHash::Malformed(Payload))),
        (payload("i1-l33", 32), Err(UnusableHash::Malformed(Payload))),
        (payload("i1", 32), Err(UnusableHash::Malformed(Payload))),
        (scrypt("131072 8 4"), Ok(Scrypt)),
        (scrypt("262144 8 1"), Ok(Scrypt)),
        (scrypt("524288 8 1"), Err(UnusableHash::Parameters(Scrypt))),
        (scrypt("131072 8 5"), Err(UnusableHash::Parameters(Scrypt))),
        (scrypt("16383 8 1"), Err(UnusableHash::Parameters(Scrypt))),
        (scrypt("1 8 1"), Err(UnusableHash::Parameters(Scrypt))),
        (scrypt("16384 4294967295 4294967295"), Err(UnusableHash::Parameters(Scrypt))),
        (phpass('I'), Ok(Phpass)),
        (phpass('J'), Err(UnusableHash::Parameters(Phpass))),
        (phpass('z'), Err(UnusableHash::Parameters(Phpass))),
        (phpass('4'), Err(UnusableHash::Parameters(Phpass))),
        (phpass('+'), Err(UnusableHash::Malformed(Phpass))),
        (sha("rounds=1000000$"), Ok(Sha256Crypt)),
        (sha("rounds=1000001$"), Err(UnusableHash::Parameters(Sha256Crypt))),
        (sha("rounds=999$"), Err(UnusableHash::Parameters(Sha256Crypt))),
        (sha("rounds=$"), Err(UnusableHash::Parameters(Sha256Crypt))),
        (sha("toolongasalt"), Err(UnusableHash::Malformed(Sha256Crypt))),
        ("$1$123456789$zNKu5VGl0isl8Okyq2nE70".into(), Err(UnusableHash::Malformed(Md5Crypt))),
        ("{SSHA}AAAA".into(), Err(UnusableHash::Malformed(Ldap))),
        ("{SHA}liHtBevYOj0/2Ohe0SnEP73nTWQm5Pyf".into(), Err(UnusableHash::Malformed(Ldap))),
        ("{WHIRLPOOL}AAAA".into(), Err(UnusableHash::Unknown)),
        ("md5$salt$12".into(), Err(UnusableHash::Malformed(DjangoDigest))),
        (
            "$2x$04$x".into(),
            Err(UnusableHash::Unsupported("a bcrypt hash of a faulty implementation ($2x$)")),
        ),
        ("$y$j9T$x".into(), Err(UnusableHash::Unsupported("a yescrypt hash ($y$)"))),
        ("".into(), Err(UnusableHash::NoPassword)),
        ("   ".into(), Err(UnusableHash::NoPassword)),
        ("!locked".into(), Err(UnusableHash::NoPassword)),
        ("*".into(), Err(UnusableHash::NoPassword)),
        ("correct horse".into(), Err(UnusableHash::Unknown)),
        ("0123456789abcdef".into(), Err(UnusableHash::Unknown)),
        ("Grüße".into(), Err(UnusableHash::Unknown)),
        ("a".repeat(MAX_HASH_BYTES + 2), Err(UnusableHash::Unknown)),
    ] {
        assert_eq!(parse(&hash).map(|hash| hash.format()), is, "{hash}");
    }
}

#[test]
fn a_weak_hash_is_believed_only_when_the_configuration_says_so() {
    let mut weak = 0;
    for row in rows() {
        let strict = StoredHash::parse(&row.hash, row.salt.as_deref(), &HashPolicy::default());
        if row.policy.recipe.is_some() {
            assert!(strict.is_err(), "{}", row.hash);
            let recipe_alone = HashPolicy { weak: false, recipe: row.policy.recipe };
            assert!(StoredHash::parse(&row.hash, row.salt.as_deref(), &recipe_alone).is_ok());
        } else {
            let format = parse(&row.hash).unwrap().format();
            let is = if format.is_weak() { Err(UnusableHash::Weak(format)) } else { Ok(format) };
            assert_eq!(strict.map(|hash| hash.format()), is, "{}", row.hash);
            weak += u32::from(format.is_weak());
        }
    }
    assert!(weak > 10);
    // With a recipe, a bare digest is the recipe's and nothing else's.
    let recipe = Recipe::parse("sha1(password)").unwrap();
    let policy = HashPolicy { weak: true, recipe: Some(recipe) };
    let md5 = StoredHash::parse("9cc2ae8a1ba7a93da39b46fc1019c481", None, &policy);
    assert_eq!(md5.map(|hash| hash.format()), Err(UnusableHash::Malformed(Format::Recipe)));
}

#[test]
fn nothing_that_is_told_about_a_hash_holds_any_of_it() {
    for row in rows() {
        let hash = StoredHash::parse(&row.hash, row.salt.as_deref(), &row.policy).unwrap();
        let told = format!("{hash:?} {:?} {}", hash.cost(), hash.parameters());
        let end = &row.hash.trim_end_matches('=')[row.hash.trim_end_matches('=').len() - 8..];
        assert!(!told.contains(end) && !told.contains(&row.password), "{told}");
    }
}

#[test]
fn a_cost_is_that_of_its_format_and_parameters_whatever_salt_and_password() {
    let cost = |hash: &str| parse(hash).unwrap().cost();
    let other = "$2y$04$Q0HfKCWuc3Oxkl3p9JgOQ..mUnVlk/AQgjmojzQQoH/o/acznDKtK";
    assert_eq!(cost(BCRYPT), cost(other));
    assert_ne!(cost(BCRYPT), cost(&BCRYPT.replacen("04", "05", 1)));
    assert_eq!(
        cost("{SSHA}liHtBevYOj0/2Ohe0SnEP73nTWQm5Pyf"),
        cost("{SSHA}liHtBevYOj0/2Ohe0SnEP73nTWQm5PyfAAAA")
    );
    assert_eq!(cost(BCRYPT).spend(b"correct horse"), Ok(()));
}

#[test]
fn an_unknown_name_always_costs_what_some_user_costs() {
    let bcrypt = parse(BCRYPT).unwrap().cost();
    let phpass = parse("$P$BA6dFhaO2UUZKTCSYSMGBpD9VSNDmy0").unwrap().cost();
    let mix = Mix::new();
    assert_eq!(mix.cost_of("nobody"), None);
    for at in 0..100 {
        // Once each, however often they log in.
        for _ in 0..=at % 7 {
            mix.saw(&format!("user{at}"), if at % 4 == 0 { bcrypt.clone() } else { phpass.clone() });
        }
    }
    let names: Vec<String> = (0..2_000).map(|at| format!("nobody{at}")).collect();
    let costs: Vec<Cost> = names.iter().map(|name| mix.cost_of(name).unwrap()).collect();
    let of_bcrypt = costs.iter().filter(|cost| **cost == bcrypt).count();
    // A quarter of the users, so 500 of 2,000 names; 19 is the standard deviation.
    assert!((350..650).contains(&of_bcrypt), "{of_bcrypt}");
    for (name, cost) in names.iter().zip(&costs) {
        assert_eq!(mix.cost_of(name).as_ref(), Some(cost), "the same again");
        for spelled in [name.to_uppercase(), name.replace('o', "ö"), format!("{name} ")] {
            assert_eq!(mix.cost_of(&spelled).as_ref(), Some(cost), "{spelled} may be {name} to a store");
        }
    }
    // A user with another hash moves few of them.
    mix.saw("user0", phpass.clone());
    let moved =
        names.iter().zip(&costs).filter(|(name, cost)| mix.cost_of(name).as_ref() != Some(*cost)).count();
    assert!(moved < 100, "{moved}");
    // The last one with a hash of before takes its cost along.
    for at in 0..100 {
        mix.saw(&format!("USER{at}"), phpass.clone());
    }
    assert!(names.iter().all(|name| mix.cost_of(name).as_ref() == Some(&phpass)));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_or_ask_for_too_much(text in "\\PC{0,80}", prefix in 0usize..24, salt in "\\PC{0,8}") {
        let prefixes = [
            "", "$argon2id$v=19$", "$argon2i$", "argon2$argon2id$", "$2y$", "$wp$2y$", "bcrypt$$2b$", "bcrypt_sha256$",
            "pbkdf2_sha256$", "pbkdf2_sha1$", "$pbkdf2-sha256$", "pbkdf2-sha256-v1:", "pbkdf2-sha256-v2-i", "scrypt$",
            "$P$", "$H$", "$S$", "U$S$", "$1$", "$apr1$", "$5$", "$6$rounds=", "{SSHA}", "md5$",
        ];
        let _ = parse(&format!("{}{text}", prefixes[prefix]));
        let recipe = Recipe::parse(&text).ok();
        let _ = StoredHash::parse(&text, Some(&salt), &HashPolicy { weak: true, recipe });
    }
}
