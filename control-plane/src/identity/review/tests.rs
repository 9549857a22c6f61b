use std::{convert::Infallible, sync::Mutex};

use http::{Request, Response};
use kube::client::Body;
use tokio::sync::mpsc;

use super::*;

/// A client for a server that says what `answer` does.
fn client<F>(answer: impl Fn(Request<Body>) -> F + Send + Sync + Clone + 'static) -> Client
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    Client::new(
        tower::service_fn(move |request| {
            let answer = answer(request);
            async move { Ok::<_, Infallible>(answer.await) }
        }),
        "default",
    )
}

fn response(code: u16, body: &'static str) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body.as_bytes().to_vec())).unwrap()
}

/// Reviews a token with a server that gives a recorded answer.
async fn review(code: u16, body: &'static str) -> Result<Workload, TokenError> {
    let client = client(move |_| async move { response(code, body) });
    ApiReview::new(client, Arc::default()).review(b"token").await
}

fn refused(result: Result<Workload, TokenError>, word: &str) {
    let Err(TokenError::Refused(problem)) = result else { panic!("{result:?}") };
    assert!(problem.contains(word) && !problem.contains('\n'), "{problem}");
}

fn unavailable(result: Result<Workload, TokenError>, word: &str) {
    let Err(TokenError::Unavailable(problem)) = result else { panic!("{result:?}") };
    assert!(problem.contains(word) && problem.contains(';'), "{problem}");
}

#[tokio::test]
async fn a_good_token_is_its_service_account_and_pod() {
    let workload = review(201, include_str!("recorded/201.good.txt")).await.unwrap();
    let expected = Workload {
        namespace: "tok".to_owned(),
        service_account: "web".to_owned(),
        pod: "web-1".to_owned(),
    };
    assert_eq!(workload, expected);
}

#[tokio::test]
async fn what_the_api_does_not_vouch_for_is_refused_with_its_words() {
    refused(review(201, include_str!("recorded/201.garbage.txt")).await, "invalid bearer token");
    refused(review(201, include_str!("recorded/201.pod-deleted.txt")).await, "invalidated");
    let audience = include_str!("recorded/201.wrong-audience.txt");
    refused(review(201, audience).await, "audience identity.remora.io");
    refused(review(201, r#"{"metadata":{},"spec":{"token":"t"}}"#).await, "does not accept");
}

#[tokio::test]
async fn a_good_token_for_others_or_of_no_pod_is_refused() {
    let other = include_str!("recorded/201.other-audience-answered.txt");
    refused(review(201, other).await, "do not contain identity.remora.io");
    refused(review(201, include_str!("recorded/201.not-bound-to-a-pod.txt")).await, "not bound");
    let good = include_str!("recorded/201.good.txt");
    for (name, word) in [
        ("system:node:n1", "not of a ServiceAccount"),
        ("system:serviceaccount:tok", "not of a ServiceAccount"),
        ("system:serviceaccount:a:b:c", "not of a ServiceAccount"),
    ] {
        let body = good.replace("system:serviceaccount:tok:web", name);
        refused(review(201, body.leak()).await, word);
    }
}

#[tokio::test]
async fn an_empty_token_is_refused_without_asking() {
    let client = client(|_| async { panic!("asked") });
    let reviewer = ApiReview::new(client, Arc::default());
    refused(reviewer.review(b" \n").await, "empty");
    refused(reviewer.review(b"\xff").await, "no text");
}

#[tokio::test]
async fn an_api_server_that_cannot_answer_says_nothing_about_the_token() {
    let forbidden = include_str!("recorded/403.forbidden.txt");
    unavailable(review(403, forbidden).await, "verb create on tokenreviews");
    unavailable(review(429, include_str!("recorded/429.throttled.txt")).await, "too busy");
    unavailable(review(503, "starting").await, "503");
    unavailable(review(500, "").await, "500");
    unavailable(review(201, "no JSON").await, "trying again");
    let broken = Client::new(
        tower::service_fn(|_: Request<Body>| async {
            Err::<Response<Body>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
        }),
        "default",
    );
    unavailable(ApiReview::new(broken, Arc::default()).review(b"t").await, "no answer");
}

#[tokio::test(start_paused = true)]
async fn silence_is_unavailable_after_five_seconds_and_few_are_asked_at_a_time() {
    let (asked, mut asks) = mpsc::channel(IN_FLIGHT + 1);
    let silent = client(move |_| {
        let _ = asked.try_send(());
        std::future::pending()
    });
    let metrics = Arc::new(Metrics::default());
    let reviewer = Arc::new(ApiReview::new(silent, Arc::clone(&metrics)));
    let results = Arc::new(Mutex::new(Vec::new()));
    let started = Instant::now();
    let all = (0..IN_FLIGHT + 1).map(|_| {
        let (reviewer, results) = (Arc::clone(&reviewer), Arc::clone(&results));
        async move {
            let result = reviewer.review(b"token").await;
            results.lock().unwrap().push((started.elapsed(), result));
        }
    });
    let all = futures_util::future::join_all(all);
    tokio::join!(all, async {
        for _ in 0..IN_FLIGHT {
            asks.recv().await.unwrap();
        }
        assert!(asks.try_recv().is_err(), "one too many");
    });
    let results = std::mem::take(&mut *results.lock().unwrap());
    assert_eq!(results.len(), IN_FLIGHT + 1);
    assert!(results.iter().all(|(after, _)| *after <= 2 * TIMEOUT));
    for (_, result) in results {
        let Err(TokenError::Unavailable(_)) = result else { panic!("{result:?}") };
    }
}
