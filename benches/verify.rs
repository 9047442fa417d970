//! What a token costs: a hit in the cache of verified tokens, and a verification from scratch for
//! each algorithm. `cargo bench --bench verify`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use portcullis::token::{
    Algorithm, Issuer, IssuerKind, Session, Signer, SigningKey, Subject, TokenCache, Verifier,
    generate_pkcs8_pem,
};

const NOW: u64 = 1_800_000_000;

fn signing_key(algorithm: Algorithm) -> SigningKey {
    match algorithm.least_secret_bytes() {
        Some(bytes) => SigningKey::from_secret("k1", &vec![7; bytes], algorithm),
        None => {
            generate_pkcs8_pem(algorithm).and_then(|pem| SigningKey::from_pkcs8_pem("k1", &pem, algorithm))
        }
    }
    .expect("a key just made is a good one")
}

fn verify(criterion: &mut Criterion) {
    for algorithm in Algorithm::ALL {
        let key = signing_key(algorithm);
        let issuer = Issuer {
            issuer: "portcullis".into(),
            audience: "portcullis".into(),
            keys: vec![key.verifying_key()],
            kind: IssuerKind::Own,
        };
        let roles = ["Viewer", "Editor", "SuperAdmin"].map(str::to_owned).to_vec();
        let verifier = Verifier::new(vec![issuer], 0, 8192, roles);
        let signer = Signer::new(key, "portcullis", "portcullis");
        let session = |seconds| Session::begin(NOW, Duration::from_secs(seconds), 0);
        let subject = Subject {
            id: "42",
            username: "vera",
            role: "Editor",
            name: Some("Vera Example"),
            email: Some("vera@example.com"),
        };
        let token = signer.issue(&subject, &session(3600)).expect("the subject is fit").token;

        criterion.bench_function(&format!("cold/{algorithm}"), |bench| {
            bench.iter(|| verifier.verify(black_box(&token), NOW).expect("the token is genuine"));
        });

        let mut cache = TokenCache::new(10_000, 16 << 20, 0);
        for n in 0..10_000 {
            let other = signer.issue(&subject, &session(60 + n % 100));
            if n < 500 || algorithm.is_symmetric() {
                let other = other.expect("the subject is fit");
                let claims = verifier.verify(&other.token, NOW).expect("the token is genuine");
                cache.insert(&other.token, Arc::new(claims), other.expires_at);
            } else {
                break;
            }
        }
        let claims = Arc::new(verifier.verify(&token, NOW).expect("the token is genuine"));
        cache.insert(&token, Arc::clone(&claims), claims.expires_at);
        criterion.bench_function(&format!("warm/{algorithm}"), |bench| {
            bench.iter(|| cache.get(black_box(&token), NOW).expect("the token was kept"));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = verify
}
criterion_main!(benches);
