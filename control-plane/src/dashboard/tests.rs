use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::index::Index;

fn dashboard() -> Arc<Dashboard> {
    let state = State::new(Index::new("cluster.local", "cluster.local"), Arc::default());
    Dashboard::new(state, || SystemTime::UNIX_EPOCH + Duration::from_secs(1000))
}

async fn get(dashboard: &Arc<Dashboard>, path: &str) -> (Response, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router(Arc::clone(dashboard)).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (Response::from_parts(head, Body::empty()), String::from_utf8_lossy(&body).into_owned())
}

/// Every file that the page names, and those they name.
const FILES: [&str; 8] = [
    "/",
    "/dashboard/style.css",
    "/dashboard/page.js",
    "/dashboard/graph.js",
    "/dashboard/service.js",
    "/dashboard/dom.js",
    "/dashboard/icon.svg",
    "/dashboard/topology.json",
];

#[tokio::test(start_paused = true)]
async fn every_answer_forbids_what_does_not_come_from_here() {
    let dashboard = dashboard();
    let mut bytes = 0;
    for path in FILES {
        let (response, body) = get(&dashboard, path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        bytes += body.len();
        // The name of a namespace of XML is no address.
        let body = body.replace("http://www.w3.org/2000/svg", "");
        assert!(!body.contains("http://") && !body.contains("https://"), "{path} leads elsewhere");
        assert!(!body.contains("innerHTML") && !body.contains("outerHTML"), "{path}");
    }
    assert!(bytes < 60_000, "{bytes} bytes");
}

#[tokio::test(start_paused = true)]
async fn the_page_has_one_address_also_behind_a_prefix() {
    let dashboard = dashboard();
    for (path, to) in [("/dashboard", "./"), ("/dashboard/", "../")] {
        let (response, _) = get(&dashboard, path).await;
        assert_eq!(response.headers()[header::LOCATION], to, "{path}");
        assert!(response.status().is_redirection());
    }
    let (_, page) = get(&dashboard, "/").await;
    for named in ["href=\"", "src=\""] {
        assert!(!page.contains(&format!("{named}/")), "an address from the root: {page}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_there_is_told() {
    let dashboard = dashboard();
    for path in ["/dashboard/services/shop/web.json", "/dashboard/services/shop/web"] {
        assert_eq!(get(&dashboard, path).await.0.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_unless_somebody_looks() {
    let dashboard = dashboard();
    let (drain, watch) = drain::Drain::new();
    let rounds = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut seen = dashboard.round.subscribe();
    let counted = Arc::clone(&rounds);
    let count = tokio::spawn(async move {
        while seen.changed().await.is_ok() {
            if seen.borrow_and_update().is_some() {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    let running = tokio::spawn(Arc::clone(&dashboard).run(watch));
    let rounds = || rounds.load(std::sync::atomic::Ordering::Relaxed);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rounds(), 0);
    let (_, body) = get(&dashboard, "/dashboard/topology.json").await;
    assert!(
        body.contains("\"sampled_ms\":1000000"),
        "the first request has the first round: {body}"
    );
    sleep(Duration::from_secs(60)).await;
    let after = rounds();
    assert!((4..=6).contains(&after), "{after} rounds in the ten seconds after a look");
    sleep(history::KEPT).await;
    assert_eq!(rounds(), after);
    assert!(dashboard.round.borrow().is_none(), "memory is given back");
    drop(dashboard);
    drain.drain(Duration::from_secs(1)).await;
    running.await.unwrap();
    count.abort();
}
