//! What a million live revocations cost: memory, a check, and reading them at start.
//! `cargo bench --bench revoked`

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use portcullis::login::session::LiveSessions;
use portcullis::store::sessions::Sessions;
use portcullis::store::sqlite::sessions::SqliteSessions;
use portcullis::token::revoked::{Key, Keys};
use portcullis::token::{Claims, OwnClaims, Revocation, Revocations};
use sqlx::{ConnectOptions, Executor};

const LIVE: u64 = 1_000_000;

const UNTIL: u64 = 4_000_000_000;

/// The claims of one of our own tokens.
fn claims(number: u64) -> Claims {
    let (jti, sid, subject) = (format!("jti {number}"), format!("sid {number}"), number.to_string());
    Claims {
        keys: Keys {
            token: Key::token("", &jti),
            family: Some(Key::family(&sid)),
            subject: Key::subject("", &subject),
        },
        issuer: "portcullis".into(),
        subject,
        username: None,
        role: None,
        name: None,
        email: None,
        jti: Some(jti),
        sid: Some(sid),
        issued_at: 1_800_000_000,
        expires_at: UNTIL,
        own: Some(OwnClaims { generation: Some(0), auth_time: 1_800_000_000 }),
    }
}

/// Resident memory in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it says so");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

fn checks(criterion: &mut Criterion) {
    // A third each: tokens, logins, users.
    let before = resident();
    let revoked = Revocations::new();
    for number in 0..LIVE {
        let name = number.to_string();
        revoked.add(match number % 3 {
            0 => Revocation::End { key: Key::token("", &name), until: UNTIL },
            1 => Revocation::End { key: Key::family(&name), until: UNTIL },
            _ => Revocation::Mark { subject: Key::subject("", &name), generation: 1, until: UNTIL },
        });
    }
    println!("{} mixed revocations: {:.1} MiB", revoked.len(), resident() - before);
    // As many as a thread remembers: what is looked up is in memory, not in a cache of the processor's.
    let live: Vec<Claims> = (0..16_000).map(|number| claims(2 * LIVE + number)).collect();
    let mut next = 0;
    criterion.bench_function("check a live token", |bench| {
        bench.iter(|| {
            next = (next + 1) % live.len();
            revoked.check(black_box(&live[next])).expect("it is live")
        });
    });
    let over: Vec<Claims> = live
        .iter()
        .enumerate()
        .map(|(number, claims)| {
            let mut claims = claims.clone();
            claims.keys.subject = Key::subject("", &(3 * number + 2).to_string());
            claims
        })
        .collect();
    criterion.bench_function("check a token that is over by its user", |bench| {
        bench.iter(|| {
            next = (next + 1) % over.len();
            revoked.check(black_box(&over[next])).expect_err("it is over")
        });
    });
    criterion.bench_function("the epoch, all that a token pays while nothing is revoked", |bench| {
        bench.iter(|| black_box(&revoked).epoch());
    });
}

fn load(_: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sessions.db");
        let store = SqliteSessions::open(&file).await.expect("a store");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
        let mut connection = options.connect().await.expect("a connection");
        let rows = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {LIVE})
             INSERT INTO ended (key, until) SELECT randomblob(16), {UNTIL} FROM n"
        );
        connection.execute(sqlx::AssertSqlSafe(rows)).await.expect("the rows");
        let before = resident();
        let sessions = LiveSessions::new();
        let began = Instant::now();
        let mut last = 0;
        loop {
            let page = store.changes(last, 5_000).await.expect("a page");
            for change in &page {
                last = change.seq;
                sessions.learn(change);
            }
            if page.len() < 5_000 {
                break;
            }
        }
        let (took, grown) = (began.elapsed(), resident() - before);
        println!(
            "{} logouts read from SQLite in {took:.2?}; {grown:.1} MiB, reading included",
            sessions.len()
        );
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = load, checks
}
criterion_main!(benches);
