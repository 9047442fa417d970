//! The shortest way through everything: log in, be forwarded, be refused.

use crate::harness::{Gateway, Upstream};

#[tokio::test]
async fn a_user_logs_in_and_is_forwarded_with_an_identity_and_only_where_rules_allow() {
    let upstream = Upstream::start().await;
    let gateway =
        Gateway::start(&upstream, "rules: [{ path: /a/*, allow: Viewer }, { path: /b, allow: Editor }]")
            .await;
    let token = gateway.login("vera").await;
    let answer = gateway.get("/a/x?y=z").bearer(&token).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "upstream"));
    let seen = upstream.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/a/x?y=z"));
    assert_eq!(seen.header("x-auth-user"), Some("vera"));
    assert_eq!(seen.header("x-auth-role"), Some("Viewer"));
    assert_eq!(seen.header("authorization"), None);
    assert_eq!(gateway.get("/b").bearer(&token).send().await.status, 403);
    assert_eq!(gateway.get("/a/x").send().await.status, 401);
    assert_eq!(upstream.count(), 1, "a refused request never reaches the upstream");
}
