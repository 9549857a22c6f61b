use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;

use super::{
    Filter, MAX_FAILURES, SAMPLE, Sight, Wanted,
    finished::{About, Answered, Connection, Finished},
    story::Story,
    testing::sight,
};
use crate::{error::Error, metrics::Direction};

/// Stands for: the client did not wait.
const LEFT: u16 = 299;

/// Ends one request.
fn end(sight: &Sight, path: &str, result: Result<u16, &Error>) {
    let story = Story::new(Instant::now(), &HeaderMap::new());
    let result = result.map(|status| Answered {
        status: Some(StatusCode::from_u16(status).unwrap()),
        grpc: None,
        failure: status >= 500,
        left: status == LEFT,
        wanted: Wanted { record: true, ..Wanted::default() },
    });
    let method = Method::GET;
    let finished = Finished {
        direction: Direction::Outbound,
        about: Some(About { method: &method, path, host: Some("orders"), protocol: "http/1.1" }),
        grpc: false,
        target: &"shop/orders:80",
        service: Some(&"shop/orders-v2:80"),
        route: Some(("shop/split/0", "path begins with /".into())),
        client: None,
        peer: None,
        policy: None,
        rules: None,
        story: &story,
        carried: None,
        result,
        ended: Instant::now(),
    };
    sight.finished(sight.id(), &finished);
}

fn failed(sight: &Sight, path: &str) {
    end(sight, path, Err(&Error::NoEndpoints { service: "shop/orders:80".into() }));
}

fn shown(sight: &Sight, filter: &Filter) -> Vec<serde_json::Value> {
    let shown = sight.newest_first(filter, 1000, Instant::now());
    shown.iter().map(|shown| serde_json::to_value(shown).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_newest_comes_first_and_the_oldest_goes() {
    let sight = sight();
    for n in 0..=MAX_FAILURES {
        failed(&sight, &format!("/{n}"));
        tokio::time::advance(std::time::Duration::from_millis(1)).await;
    }
    let shown = shown(&sight, &Filter::default());
    assert_eq!(shown.len(), MAX_FAILURES);
    assert_eq!(shown[0]["path"], format!("/{MAX_FAILURES}"));
    assert_eq!(shown[MAX_FAILURES - 1]["path"], "/1");
    assert_eq!((&shown[0]["reason"], &shown[0]["status"]), (&"no-endpoints".into(), &503.into()));
    assert_eq!(shown[0]["ago_ms"], 1);
}

#[tokio::test(start_paused = true)]
async fn successes_do_not_push_out_failures() {
    let sight = sight();
    failed(&sight, "/lost");
    for _ in 0..2000 {
        end(&sight, "/fine", Ok(200));
    }
    let failures = Filter { failed: Some(true), ..Filter::default() };
    assert_eq!(shown(&sight, &failures).len(), 1);
}

#[test]
fn one_success_in_many_is_wanted_and_every_one_that_is_asked_for() {
    let sight = std::sync::Arc::new(sight());
    let mut story = Story::new(Instant::now(), &HeaderMap::new());
    let wanted = (0..10 * SAMPLE).filter(|_| sight.wants(&story, false).any()).count();
    assert_eq!(wanted, 10);
    let heard = sight.listen();
    assert!((0..5).all(|_| sight.wants(&story, false).record));
    drop(heard);
    assert!((1..SAMPLE / 2).all(|_| !sight.wants(&story, false).any()));
    // Without an answer there is no way back to ask.
    assert!((0..5).all(|_| sight.wants_of_left(&story).record));
    story.explained = Some(sight.id());
    assert!((0..5).all(|_| sight.wants(&story, false).record));
}

#[tokio::test(start_paused = true)]
async fn who_listens_hears_each_record_once() {
    let sight = std::sync::Arc::new(sight());
    let mut heard = sight.listen();
    end(&sight, "/a", Ok(200));
    failed(&sight, "/b");
    assert_eq!(heard.next().await.unwrap().path(), Some("/a"));
    assert_eq!(heard.next().await.unwrap().path(), Some("/b"));
    drop(heard);
    assert_eq!(sight.listening.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn filters_let_through_what_is_asked_for() {
    let sight = sight();
    end(&sight, "/api/orders", Ok(200));
    end(&sight, "/api/carts", Ok(502));
    failed(&sight, "/login");
    end(&sight, "/logout", Ok(LEFT));
    let count = |text: &str| {
        let filter: Filter = serde_json::from_str(text).unwrap();
        filter.check().unwrap();
        shown(&sight, &filter).len()
    };
    for (filter, wanted) in [
        (r#"{}"#, 4),
        (r#"{"status":"5xx"}"#, 2),
        (r#"{"status":"503"}"#, 1),
        (r#"{"path":"/api/"}"#, 2),
        (r#"{"service":"shop/orders"}"#, 4),
        (r#"{"service":"shop/orders-v2:80"}"#, 4),
        (r#"{"service":"shop/order"}"#, 0),
        (r#"{"route":"shop/split"}"#, 4),
        (r#"{"route":"shop/split/1"}"#, 0),
        (r#"{"reason":"no-endpoints"}"#, 1),
        (r#"{"method":"POST"}"#, 0),
        (r#"{"failed":false}"#, 2),
        (r#"{"client_left":true}"#, 1),
        (r#"{"client_left":false}"#, 3),
    ] {
        assert_eq!(count(filter), wanted, "{filter}");
    }
    let id = shown(&sight, &Filter::default())[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(count(&format!(r#"{{"id":"{id}"}}"#)), 1);
}

#[test]
fn a_filter_that_cannot_be_used_says_how_it_is_written() {
    let filter = |text: &str| serde_json::from_str::<Filter>(text).unwrap().check().unwrap_err();
    assert!(filter(r#"{"status":"bad"}"#).contains("5xx"));
    assert!(filter(r#"{"status":"xx"}"#).contains("5xx"));
    assert!(filter(r#"{"id":"7"}"#).contains("16 hexadecimal digits"));
}

#[tokio::test(start_paused = true)]
async fn long_paths_are_cut_at_a_characters_end() {
    let sight = sight();
    failed(&sight, &format!("/{}", "é".repeat(5000)));
    let path = shown(&sight, &Filter::default())[0]["path"].as_str().unwrap().to_owned();
    assert_eq!(path.len(), 255);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_carried_is_recorded_without_a_request() {
    let sight = sight();
    let refused = Connection {
        direction: Direction::Inbound,
        target: &"10.0.0.1:5432",
        service: None,
        client: Some([10, 0, 0, 9].into()),
        peer: None,
        policy: None,
        story: &Story::of_connection(Instant::now()),
        carried: None,
        error: Some(&Error::Denied("no".into())),
    };
    sight.connection(refused, Instant::now());
    let record = &shown(&sight, &Filter::default())[0];
    assert_eq!((&record["protocol"], &record["reason"]), (&"tcp".into(), &"denied".into()));
    assert_eq!(
        (&record["status"], &record["path"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
}
