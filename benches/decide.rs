//! What deciding costs: target → judge → decide, with 10 to 10,000 rules. `cargo bench --bench decide`
//!
//! The bar: 10,000 rules take at most twice the time of 10. The table at the end holds each kind of
//! request against it. Requests go through 1,024 paths in a scattered order, so that with many rules
//! the rules come from memory and not from the nearest cache; `the same path` is what a benchmark with a
//! single request would claim.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use portcullis::policy::method::Methods;
use portcullis::policy::query::QueryCondition;
use portcullis::policy::{Caller, Endpoint, Mode, PathOptions, Pattern, Policy, Requirement, Roles, Rule};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const REQUESTS: usize = 1_024;

/// A kind of request: its name, the rules it meets, and the path and query of the request that asks for
/// what rule `n` is about.
type Kind = (&'static str, fn(&Roles, usize) -> Rule, fn(usize) -> String);

const KINDS: [Kind; 10] = [
    ("literal", mixed_rule, |n| format!("/admin/section-{n:05}/list")),
    ("the same path", mixed_rule, |_| "/admin/section-00000/list".to_owned()),
    ("param", mixed_rule, |n| format!("/admin/user/{n:05}/of-{n:05}")),
    ("prefix", mixed_rule, |n| format!("/content/section-{n:05}/2026/07/a-page")),
    ("deep", mixed_rule, |n| format!("/a/b/c/d/e/f/g/h/i/j/k/l-{n:05}/m/n")),
    ("miss", mixed_rule, |n| format!("/elsewhere/section-{n:05}/list")),
    ("odd: readings", mixed_rule, |n| format!("/admin//Section%2D{n:05};v=1/li%2573t/")),
    (
        "query: values",
        |roles, n| query_rule(roles, "/", "rest_route", &format!("/wp/v2/kind-{n:05}/*")),
        |n| format!("/?page=3&rest_route=/wp/v2/kind-{n:05}/7"),
    ),
    (
        "query: names",
        |roles, n| query_rule(roles, "/index.php", &format!("name-{n:05}"), "*"),
        |n| format!("/index.php?page=3&name-{n:05}=1"),
    ),
    (
        "query: paths",
        |roles, n| query_rule(roles, &format!("/site-{n:05}/*"), "action", "delete"),
        |n| format!("/site-{n:05}/page?id=3&action=delete"),
    ),
];

/// Rules of every shape in turn, four different ones for each `n`.
fn mixed_rule(roles: &Roles, n: usize) -> Rule {
    // The same number for the four shapes, so that each kind of request finds its own at any size.
    let group = n / 4;
    let path = match n % 4 {
        0 => format!("/admin/section-{group:05}/list"),
        1 => format!("/admin/user/:id/of-{group:05}"),
        2 => format!("/content/section-{group:05}/*"),
        _ => format!("/a/b/c/d/e/f/g/h/i/j/k/l-{group:05}/:m/n"),
    };
    rule(roles, &path, Vec::new())
}

fn query_rule(roles: &Roles, path: &str, name: &str, value: &str) -> Rule {
    rule(roles, path, vec![QueryCondition::new(name, value)])
}

fn rule(roles: &Roles, path: &str, query: Vec<QueryCondition>) -> Rule {
    let editor = roles.find("Editor").expect("one of the three");
    Rule {
        pattern: Pattern::parse(path).expect("the path is fit"),
        methods: Methods::any(),
        query,
        allow: Requirement::AtLeast(editor),
        mode: Mode::Enforce,
    }
}

fn policy(make: fn(&Roles, usize) -> Rule, size: usize) -> Policy {
    let roles =
        Roles::new(["Viewer", "Editor", "SuperAdmin"].map(str::to_owned).to_vec()).expect("three names");
    let list = (0..size).map(|n| make(&roles, n)).collect();
    let own = [(Pattern::parse("/auth/login").expect("the path is fit"), Endpoint::Login)];
    let options = PathOptions { scripts: vec!["php".into()], ..PathOptions::default() };
    let (policy, problems) = Policy::new(roles, list, &own, options);
    assert!(!problems.iter().any(|problem| problem.is_error()), "{problems:?}");
    policy
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(150))
        .measurement_time(Duration::from_millis(450))
        .without_plots()
        .configure_from_args();
    // (kind, rules) -> nanoseconds a decision, of every sample.
    let measured: RefCell<Vec<(&str, usize, f64)>> = RefCell::default();
    for (kind, make, request) in KINDS {
        let mut group = criterion.benchmark_group(kind);
        for size in SIZES {
            let policy = policy(make, size);
            // Rules of one kind in each of the four shapes, or all of one shape; 7919 is prime to both.
            let distinct = if std::ptr::fn_addr_eq(make, mixed_rule as fn(&Roles, usize) -> Rule) {
                size / 4
            } else {
                size
            };
            let requests: Vec<String> = (0..REQUESTS).map(|n| request(n * 7919 % distinct.max(1))).collect();
            group.bench_function(BenchmarkId::from_parameter(size), |bench| {
                bench.iter_custom(|times| {
                    let began = Instant::now();
                    for request in requests.iter().cycle().take(usize::try_from(times).unwrap_or(usize::MAX))
                    {
                        let (path, query) = match request.split_once('?') {
                            Some((path, query)) => (path, Some(query)),
                            None => (request.as_str(), None),
                        };
                        black_box(policy.answer("GET", path, query, Caller::Authenticated(Some("Editor"))));
                    }
                    let took = began.elapsed();
                    #[expect(clippy::cast_precision_loss, reason = "a count of iterations")]
                    measured.borrow_mut().push((kind, size, took.as_secs_f64() * 1e9 / times as f64));
                    took
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
    summary(&measured.into_inner());
}

/// The median of each kind and size, and how 10,000 rules compare with 10.
fn summary(measured: &[(&str, usize, f64)]) {
    let median = |kind: &str, size: usize| {
        let mut samples: Vec<f64> =
            measured.iter().filter(|(k, s, _)| (*k, *s) == (kind, size)).map(|(.., ns)| *ns).collect();
        samples.sort_by(f64::total_cmp);
        // A run that only tries the benches out has a single sample.
        (samples.len() >= 20).then(|| samples[samples.len() / 2])
    };
    println!("{:<16}{:>10}{:>10}{:>10}{:>10}   10,000 ÷ 10", "ns a decision", "10", "100", "1,000", "10,000");
    for (kind, ..) in KINDS {
        let medians: Vec<f64> = SIZES.iter().filter_map(|size| median(kind, *size)).collect();
        let [least, .., most] = medians[..] else { continue };
        if medians.len() < SIZES.len() {
            continue;
        }
        print!("{kind:<16}");
        for ns in &medians {
            print!("{ns:>10.0}");
        }
        println!("{:>11.2} ×", most / least);
    }
}
