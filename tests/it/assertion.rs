//! The upstream is told who is asking in a JWT of its own, which nothing else can be mistaken for.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use portcullis::token::{
    Algorithm, Asserter, SigningKey, decode_without_verifying, generate_pkcs8_pem, jwks,
};
use serde_json::{Value, json};

use crate::harness::partners::{in_repository, program, skip};
use crate::harness::{Call, Gateway, KeepAlive, Upstream};

const RULES: &str = "rules: [{ path: /in/*, allow: Viewer }, { path: /open/*, allow: public }]\nworkers: 1";

async fn start(upstream: &Upstream, assertion: &str) -> Gateway {
    Gateway::start(upstream, &format!("{RULES}\nidentity: {{ assertion: {assertion}, email: X-Auth-Email }}"))
        .await
}

/// The assertion that the upstream saw last.
fn seen(upstream: &Upstream) -> String {
    upstream.last().header("x-auth-assertion").expect("an assertion came").to_owned()
}

#[tokio::test]
async fn an_assertion_says_who_is_asking_whatever_the_client_says() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "X-Auth-Assertion").await;
    let token = gateway.login("vera").await;
    let forged = "eyJhbGciOiJub25lIn0.e30.";
    for spelling in ["X-Auth-Assertion", "x_auth_assertion", "X.Auth_ASSERTION"] {
        let open = gateway.get("/open/x").header(spelling, forged).send().await;
        assert_eq!(open.status, 200);
        let names: Vec<_> = upstream.last().headers.keys().map(|name| name.as_str().to_owned()).collect();
        assert!(!names.iter().any(|name| name.contains("assertion")), "{spelling}: {names:?}");
        for path in ["/in/x", "/open/x"] {
            assert_eq!(gateway.get(path).header(spelling, forged).bearer(&token).send().await.status, 200);
            let names =
                upstream.last().headers.keys().filter(|name| name.as_str().contains("assertion")).count();
            assert_eq!(names, 1, "{spelling}");
            let claims = decode_without_verifying(&seen(&upstream)).unwrap().claims;
            assert_eq!(
                (&claims["preferred_username"], &claims["role"], &claims["email"], &claims["name"]),
                (&json!("vera"), &json!("Viewer"), &json!("vera@example.com"), &json!("VERA"))
            );
            assert_eq!(claims["sub"], upstream.last().header("x-auth-id").unwrap());
            assert_eq!(claims["aud"], format!("http://{}", upstream.address), "the upstream's URL");
            let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
            assert_eq!(life, 60);
        }
    }
}

#[tokio::test]
async fn one_assertion_serves_many_requests_of_one_token() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "{ header: X-Auth-Assertion, audience: cms, ttl: 10m }").await;
    let (vera, eddie) = (gateway.login("vera").await, gateway.login("eddie").await);
    let mut client = KeepAlive::connect(gateway.address).await;
    for _ in 0..20 {
        for token in [&vera, &eddie] {
            let call = client.request("GET", "/in/x").bearer(token);
            assert_eq!(client.send(call).await.unwrap().status, 200);
        }
    }
    let mut sent: Vec<_> =
        upstream.seen().iter().map(|seen| seen.header("x-auth-assertion").unwrap().to_owned()).collect();
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), 2, "one for each");
    assert_eq!(decode_without_verifying(&sent[0]).unwrap().claims["aud"], "cms");
}

#[tokio::test]
async fn a_load_balancer_that_asks_is_given_the_assertion_to_pass_on() {
    let upstream = Upstream::start().await;
    let file = format!(
        "{RULES}\nforward_auth: {{ listen: 127.0.0.1:0, headers: nginx }}\n\
         identity: {{ assertion: {{ header: X-Auth-Assertion, audience: cms }} }}"
    );
    let gateway = Gateway::start(&upstream, &file).await;
    let token = gateway.login("vera").await;
    let ask = |path: &str| {
        let call = Call::new(gateway.asked_at(), "GET", "/").header("x-original-method", "GET");
        call.header("x-original-uri", path).header("x-auth-assertion", "a.b.c")
    };
    let answer = ask("/in/x").bearer(&token).send().await;
    let claims = decode_without_verifying(answer.header("x-auth-assertion").unwrap()).unwrap().claims;
    assert_eq!(
        (answer.status, &claims["preferred_username"], &claims["aud"]),
        (200, &json!("vera"), &json!("cms"))
    );
    let answer = ask("/open/x").send().await;
    assert_eq!((answer.status, answer.header("x-auth-assertion")), (200, None));
}

#[tokio::test]
async fn an_assertion_opens_nothing_at_the_gateway() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(
        &upstream,
        &format!("{RULES}\nidentity: {{ assertion: X-Auth-Assertion }}\nlogin: {{ cookie: {{ name: t }}, rotate: /auth/rotate }}"),
    )
    .await;
    let token = gateway.login("sam").await;
    assert_eq!(gateway.get("/in/x").bearer(&token).send().await.status, 200);
    let assertion = seen(&upstream);
    let before = upstream.count();
    for call in [
        gateway.get("/in/x").bearer(&assertion),
        gateway.get("/in/x").header("cookie", &format!("t={assertion}")),
        gateway.post("/auth/logout").bearer(&assertion),
        gateway.post("/auth/rotate").bearer(&assertion),
    ] {
        let answer = call.send().await;
        assert_eq!((answer.status, &answer.json()["error"]), (401, &json!("Invalid token")));
    }
    assert_eq!(upstream.count(), before);
    assert_eq!(gateway.get("/in/x").bearer(&token).send().await.status, 200, "and ended nothing");
}

/// Each verifier of `deploy/assertion`: the program, the argument before its code, and code that reads questions
/// from standard input and prints the answers.
const VERIFIERS: [(&str, &[&str], &str); 3] = [
    (
        "php",
        &["-r"],
        "require 'portcullis_assertion.php'; $q = json_decode(stream_get_contents(STDIN), true); $a = [];\
         foreach ($q as $one) $a[] = portcullis_assertion(...$one); echo json_encode($a);",
    ),
    (
        "python3",
        &["-c"],
        "import json, sys; from portcullis_assertion import assertion\n\
         print(json.dumps([assertion(*one) for one in json.load(sys.stdin)]))",
    ),
    (
        "node",
        &["--input-type=module", "-e"],
        "import { assertion } from './portcullis-assertion.mjs'; import { readFileSync } from 'node:fs';\
         console.log(JSON.stringify(JSON.parse(readFileSync(0)).map((one) => assertion(...one))));",
    ),
];

/// What a verifier answers to questions of the form `[token, jwks, issuer, audience, now]`. `None`: it cannot run here.
fn ask(program_name: &str, arguments: &[&str], code: &str, questions: &Value) -> Option<Value> {
    let program = program(program_name)?;
    // Debian's Python has Debian's packages; another one on the path may have none.
    let has_cryptography = |python: &std::path::Path| {
        let found = Command::new(python).args(["-c", "import cryptography"]).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    let program = match program_name {
        "python3" => [program, "/usr/bin/python3".into()].into_iter().find(|one| has_cryptography(one))?,
        _ => program,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .arg(code)
        .current_dir(in_repository("deploy/assertion").unwrap())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(questions.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program_name}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[tokio::test]
async fn php_python_and_node_believe_the_gateways_assertions_and_nobody_elses() {
    let upstream = Upstream::start().await;
    let gateway = start(&upstream, "{ header: X-Auth-Assertion, audience: cms }").await;
    let token = gateway.login("eddie").await;
    assert_eq!(gateway.get("/in/x").bearer(&token).send().await.status, 200);
    let genuine = seen(&upstream);
    let published = gateway.get("/.well-known/jwks.json").send().await.json();
    let claims = decode_without_verifying(&genuine).unwrap().claims;
    let (iat, exp) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    let kid = published["keys"][0]["kid"].as_str().unwrap();
    let parts: Vec<&str> = genuine.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("{genuine}") };

    // A key of somebody else's under the same name, and what it signs.
    let pem = generate_pkcs8_pem(Algorithm::EdDSA).unwrap();
    let other = SigningKey::from_pkcs8_pem(kid, &pem, Algorithm::EdDSA).unwrap();
    let caller = {
        let own = portcullis::token::Issuer {
            issuer: "portcullis".into(),
            audience: "portcullis".into(),
            keys: vec![other.verifying_key()],
            kind: portcullis::token::IssuerKind::Own,
        };
        let sam = portcullis::token::Subject {
            id: "1",
            username: "sam",
            role: "SuperAdmin",
            name: None,
            email: None,
        };
        let session = portcullis::token::Session::begin(iat, Duration::from_secs(60), 1);
        let token =
            portcullis::token::Signer::new(other.clone(), "portcullis", "portcullis").issue(&sam, &session);
        let verifier = portcullis::token::Verifier::new(vec![own], 0, 8192, vec!["SuperAdmin".into()]);
        verifier.verify(&token.unwrap().token, iat).unwrap()
    };
    let forged =
        Asserter::new(other.clone(), "portcullis", "cms", Duration::from_secs(60)).assert(&caller, iat);
    let forged = forged.unwrap().text;
    let encode = |value: Value| {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let unsigned = encode(json!({ "alg": "none", "kid": kid, "typ": "portcullis-assertion+jwt" }));
    let symmetric = encode(json!({ "alg": "HS256", "kid": kid, "typ": "portcullis-assertion+jwt" }));
    let raised = encode(json!({ "iss": "portcullis", "aud": "cms", "sub": "1", "exp": exp, "iat": iat,
        "preferred_username": "sam", "role": "SuperAdmin" }));
    let with_other_key = jwks([&other]);

    let rows = [
        ("genuine", genuine.clone(), &published, "portcullis", "cms", iat, true),
        ("in its last second", genuine.clone(), &published, "portcullis", "cms", exp - 1, true),
        ("over", genuine.clone(), &published, "portcullis", "cms", exp, false),
        ("of another gateway", genuine.clone(), &published, "elsewhere", "cms", iat, false),
        ("for another CMS", genuine.clone(), &published, "portcullis", "shop", iat, false),
        ("another's keys", genuine.clone(), &with_other_key, "portcullis", "cms", iat, false),
        ("a forger's, by the forger's keys", forged.clone(), &with_other_key, "portcullis", "cms", iat, true),
        ("a forger's", forged, &published, "portcullis", "cms", iat, false),
        ("a login token", token.clone(), &published, "portcullis", "portcullis", iat, false),
        ("raised", format!("{header}.{raised}.{signature}"), &published, "portcullis", "cms", iat, false),
        ("unsigned", format!("{unsigned}.{payload}."), &published, "portcullis", "cms", iat, false),
        (
            "unsigned, signed",
            format!("{unsigned}.{payload}.{signature}"),
            &published,
            "portcullis",
            "cms",
            iat,
            false,
        ),
        (
            "another algorithm",
            format!("{symmetric}.{payload}.{signature}"),
            &published,
            "portcullis",
            "cms",
            iat,
            false,
        ),
        ("four parts", format!("{genuine}.x"), &published, "portcullis", "cms", iat, false),
        ("two parts", format!("{header}.{payload}"), &published, "portcullis", "cms", iat, false),
        (
            "a signature cut short",
            genuine[..genuine.len() - 4].to_owned(),
            &published,
            "portcullis",
            "cms",
            iat,
            false,
        ),
        ("no signature", format!("{header}.{payload}."), &published, "portcullis", "cms", iat, false),
        ("nothing", String::new(), &published, "portcullis", "cms", iat, false),
        ("no JSON", "e.e.e".to_owned(), &published, "portcullis", "cms", iat, false),
    ];
    let questions: Vec<Value> = rows
        .iter()
        .map(|(_, token, keys, issuer, audience, now, _)| json!([token, keys, issuer, audience, now]))
        .collect();
    let questions = Value::from(questions);
    for (program, arguments, code) in VERIFIERS {
        let Some(answers) = ask(program, arguments, code, &questions) else {
            let needs = if program == "python3" { "python3 with cryptography" } else { program };
            skip("a verifier of assertions", needs);
            continue;
        };
        let answers = answers.as_array().unwrap().clone();
        assert_eq!(answers.len(), rows.len(), "{program}");
        for ((what, .., believed), answer) in rows.iter().zip(&answers) {
            assert_eq!(answer.is_object(), *believed, "{program}: {what}: {answer}");
            assert!(answer.is_object() || answer.is_null(), "{program}: {what}: {answer}");
        }
        assert_eq!(answers[0], claims, "{program}");
    }
}
