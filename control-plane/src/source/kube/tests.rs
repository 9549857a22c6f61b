use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    time::Duration,
};

use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::StreamBody;
use kube::client::Body;
use parking_lot::Mutex;
use remora_core::drain::Drain;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use super::*;

type Frame = Result<http_body::Frame<bytes::Bytes>, io::Error>;

/// An API server that says what it is told to, request by request, and keeps silent after that.
/// Kinds without a script have an empty list and a watch that says nothing.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    answers: HashMap<&'static str, VecDeque<Answer>>,
    asked: Vec<(Instant, String)>,
}

enum Answer {
    /// Status, `Retry-After` and body.
    Whole(u16, Option<u32>, String),
    /// What comes through the channel; its end is the end of the body.
    Watch(mpsc::Receiver<Frame>),
    /// Nothing, ever.
    Never,
}

impl Api {
    fn script(&self, path: &'static str, answers: impl IntoIterator<Item = Answer>) {
        self.0.lock().answers.entry(path).or_default().extend(answers);
    }

    fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = api.answer(&request);
            async move {
                match answer {
                    Some(answer) => Ok::<_, Infallible>(respond(answer)),
                    None => std::future::pending().await,
                }
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, request: &Request<Body>) -> Option<Answer> {
        let mut script = self.0.lock();
        script.asked.push((Instant::now(), request.uri().to_string()));
        match script.answers.get_mut(request.uri().path()) {
            Some(answers) => answers.pop_front().filter(|a| !matches!(a, Answer::Never)),
            None if request.uri().query().unwrap_or_default().contains("watch=true") => None,
            None => Some(list("1", &[])),
        }
    }

    /// Requests for a path so far.
    fn asked(&self, path: &str) -> Vec<(Instant, String)> {
        let script = self.0.lock();
        script
            .asked
            .iter()
            .filter(|(_, uri)| uri.split('?').next() == Some(path))
            .cloned()
            .collect()
    }
}

fn respond(answer: Answer) -> Response<StreamBody<ReceiverStream<Frame>>> {
    let (status, retry, body) = match answer {
        Answer::Whole(status, retry, text) => {
            let (frames, body) = mpsc::channel(1);
            say(&frames, &text);
            (status, retry, body)
        }
        Answer::Watch(body) => (200, None, body),
        Answer::Never => unreachable!("invariant: filtered before"),
    };
    let mut response = Response::builder().status(status);
    if let Some(seconds) = retry {
        response = response.header("Retry-After", seconds);
    }
    response.body(StreamBody::new(ReceiverStream::new(body))).unwrap()
}

fn list(version: &str, items: &[Value]) -> Answer {
    page(version, "", items)
}

fn page(version: &str, more: &str, items: &[Value]) -> Answer {
    let list = json!({"metadata": {"resourceVersion": version, "continue": more}, "items": items});
    Answer::Whole(200, None, list.to_string())
}

fn watching() -> (mpsc::Sender<Frame>, Answer) {
    let (frames, body) = mpsc::channel(64);
    (frames, Answer::Watch(body))
}

fn say(frames: &mpsc::Sender<Frame>, text: &str) {
    let frame = http_body::Frame::data(bytes::Bytes::copy_from_slice(text.as_bytes()));
    frames.try_send(Ok(frame)).unwrap();
}

fn line(what: &str, object: Value) -> String {
    json!({"type": what, "object": object}).to_string() + "\n"
}

/// A pod that is another with every version.
fn pod(name: &str, version: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version},
        "spec": {"nodeName": version, "containers": []}})
}

fn bookmark(version: &str) -> String {
    line(
        "BOOKMARK",
        json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"resourceVersion": version}, "spec": {"containers": null}}),
    )
}

fn expired() -> String {
    line(
        "ERROR",
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 1 (867)", "reason": "Expired", "code": 410}),
    )
}

const PODS: &str = "/api/v1/pods";

/// A running source; what it applies, as words.
struct Source {
    api: Api,
    status: Arc<Status>,
    batches: mpsc::Receiver<Vec<String>>,
    _drain: Drain,
}

impl Source {
    fn start(api: &Api) -> Self {
        let (drain, watching) = Drain::new();
        let (tell, batches) = mpsc::channel(64);
        let status = Arc::new(Status::default());
        let apply = move |events: Vec<Event>| {
            tell.try_send(events.iter().map(words).collect()).unwrap();
        };
        let run = watch(api.client(), Arc::clone(&status), apply, watching.clone());
        tokio::spawn(watching.track(run));
        Self { api: api.clone(), status, batches, _drain: drain }
    }

    /// The next batch. Time is paused: an hour passes only where nothing else happens.
    async fn next(&mut self) -> Vec<String> {
        timeout(Duration::from_secs(3600), self.batches.recv()).await.unwrap().unwrap()
    }

    /// What the first batch says of pods.
    async fn first_pods(&mut self) -> String {
        self.next().await.into_iter().find(|event| event.starts_with("=Pod")).unwrap()
    }

    fn pods_asked(&self) -> Vec<String> {
        self.api.asked(PODS).into_iter().map(|(_, uri)| uri).collect()
    }
}

fn words(event: &Event) -> String {
    match event {
        Event::Apply(object) => format!("+{}", object.key()),
        Event::Delete(key) => format!("-{key}"),
        Event::Replace(kind, objects) => {
            let names = objects.iter().map(|o| o.key().name).collect::<Vec<_>>();
            format!("={} {}", kind.as_str(), names.join(","))
        }
        Event::Reset(_) => "reset".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_applied_before_every_kind_has_its_first_list() {
    let api = Api::default();
    let (services, services_watch) = watching();
    let service = |name: &str, version: &str| json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version}});
    api.script("/api/v1/services", [list("5", &[service("a", "3"), service("b", "4")])]);
    api.script("/api/v1/services", [services_watch]);
    let forbidden = r#"{"kind":"Status","status":"Failure","message":"pods is forbidden: User \"x\" cannot list resource \"pods\"","reason":"Forbidden","code":403}"#;
    api.script(PODS, (0..20).map(|_| Answer::Whole(403, None, forbidden.to_owned())));
    say(&services, &line("DELETED", service("a", "6")));
    say(&services, &line("ADDED", service("c", "7")));
    let mut source = Source::start(&api);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(source.batches.recv().now_or_never().is_none(), "pods are not listed yet");
    let waiting = source.status.waiting().unwrap();
    assert_eq!(
        waiting,
        "the first list of pods: cannot list pods: 403 pods is forbidden: User \"x\" cannot list resource \"pods\"; grant the verb list on pods: kubectl apply the ClusterRole remora-control-plane and its binding"
    );
    api.script(PODS, [list("9", &[pod("p", "8")])]);
    let first = source.next().await;
    let core = ["=Namespace ", "=Node ", "=Service b,c", "=Pod p", "=EndpointSlice "];
    assert_eq!(first[..5], core);
    assert_eq!(source.status.waiting(), None);
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_are_one_batch() {
    let api = Api::default();
    let (frames, watch) = watching();
    api.script(PODS, [list("1", &[]), watch]);
    let mut source = Source::start(&api);
    source.next().await;
    for version in ["2", "3", "4"] {
        say(&frames, &line("ADDED", pod(&format!("p{version}"), version)));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(source.next().await, ["+Pod shop/p2", "+Pod shop/p3", "+Pod shop/p4"]);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_version_is_one_replacement_and_never_an_empty_state() {
    let api = Api::default();
    let (frames, watch) = watching();
    let (later, later_watch) = watching();
    api.script(PODS, [list("1", &[pod("a", "1"), pod("b", "1")]), watch]);
    api.script(PODS, [list("9", &[pod("b", "1"), pod("c", "8")]), later_watch]);
    let mut source = Source::start(&api);
    assert_eq!(source.first_pods().await, "=Pod a,b");
    say(&frames, &expired());
    assert_eq!(source.next().await, ["=Pod b,c"]);
    say(&later, &line("DELETED", pod("c", "10")));
    assert_eq!(source.next().await, ["-Pod shop/c"]);
    assert!(source.pods_asked()[3].contains("resourceVersion=9"), "{:?}", source.pods_asked());
    assert_eq!(source.status.kinds()[4].1.lists, 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_in_order_goes_on_from_the_last_bookmark() {
    let api = Api::default();
    let (frames, watch) = watching();
    let (later, later_watch) = watching();
    api.script(PODS, [list("1", &[]), watch, later_watch]);
    let mut source = Source::start(&api);
    source.next().await;
    say(&frames, &line("ADDED", pod("a", "5")));
    say(&frames, &bookmark("77"));
    assert_eq!(source.next().await, ["+Pod shop/a"]);
    drop(frames);
    say(&later, &line("MODIFIED", pod("a", "80")));
    assert_eq!(source.next().await, ["+Pod shop/a"]);
    let asked = source.pods_asked();
    assert!(asked[0].contains("limit=250") && !asked[0].contains("resourceVersion"), "{asked:?}");
    assert!(asked[1].contains("resourceVersion=1&") || asked[1].ends_with("resourceVersion=1"));
    assert!(asked[1].contains("allowWatchBookmarks=true") && asked[1].contains("timeoutSeconds=2"));
    assert!(asked[2].ends_with("resourceVersion=77"), "{asked:?}");
    assert_eq!(source.status.kinds()[4].1.errors, 0, "no error");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_broke_off_is_not_taken_and_comes_again() {
    let api = Api::default();
    let (frames, watch) = watching();
    let (later, later_watch) = watching();
    api.script(PODS, [list("1", &[]), watch, later_watch]);
    let mut source = Source::start(&api);
    source.next().await;
    let (a, b) = (line("ADDED", pod("a", "5")), line("ADDED", pod("b", "6")));
    say(&frames, &(a + &b[..b.len() / 2]));
    frames.try_send(Err(io::Error::other("reset"))).unwrap();
    assert_eq!(source.next().await, ["+Pod shop/a"]);
    say(&later, &b);
    assert_eq!(source.next().await, ["+Pod shop/b"]);
    assert!(source.pods_asked()[2].ends_with("resourceVersion=5"));
    assert_eq!(source.status.kinds()[4].1.errors, 1);
    assert_eq!(source.status.kinds()[4].1.failing, None, "mended");
}

#[tokio::test(start_paused = true)]
async fn objects_split_over_chunks_are_put_together() {
    let api = Api::default();
    let (frames, watch) = watching();
    api.script(PODS, [list("1", &[]), watch]);
    let mut source = Source::start(&api);
    source.next().await;
    let text = line("ADDED", pod("a", "5")) + &line("DELETED", pod("a", "6"));
    for chunk in text.as_bytes().chunks(7) {
        say(&frames, std::str::from_utf8(chunk).unwrap());
    }
    assert_eq!(source.next().await, ["+Pod shop/a", "-Pod shop/a"]);
}

#[tokio::test(start_paused = true)]
async fn what_changed_in_fields_that_nobody_reads_is_not_told() {
    let api = Api::default();
    let (frames, watch) = watching();
    let (_later, later_watch) = watching();
    api.script(PODS, [list("1", &[pod("a", "1")]), watch, later_watch]);
    let mut source = Source::start(&api);
    source.next().await;
    let mut same = pod("a", "1");
    same["metadata"]["resourceVersion"] = json!("9");
    same["status"] = json!({"message": "scheduled"});
    say(&frames, &(line("MODIFIED", same) + &line("MODIFIED", pod("a", "10"))));
    assert_eq!(source.next().await, ["+Pod shop/a"]);
    say(&frames, &line("MODIFIED", pod("a", "10")));
    drop(frames);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(source.batches.recv().now_or_never().is_none());
    assert!(source.pods_asked()[2].ends_with("resourceVersion=10"), "its version counts");
}

#[tokio::test(start_paused = true)]
async fn an_api_that_asks_for_time_gets_it() {
    let api = Api::default();
    let busy = "Too many requests, please try again later.\n";
    api.script(PODS, [Answer::Whole(429, Some(7), busy.to_owned()), list("1", &[])]);
    let mut source = Source::start(&api);
    source.next().await;
    let asked = api.asked(PODS);
    assert!(asked[1].0 - asked[0].0 >= Duration::from_secs(7));
    assert_eq!(source.status.kinds()[4].1.errors, 1);
}

#[tokio::test(start_paused = true)]
async fn whatever_answers_badly_is_not_stormed() {
    type Bad = fn() -> Answer;
    let cases: [(&str, Bad); 6] = [
        ("ends at once", || watching().1),
        ("an error page", || Answer::Whole(502, None, "<html>\n<body>\n".repeat(100))),
        ("an empty error", || Answer::Whole(503, None, String::new())),
        ("no such path", || Answer::Whole(404, None, "404 page not found\n".to_owned())),
        ("nonsense", || Answer::Whole(200, None, "<html>\n".repeat(100))),
        ("gone at once", || Answer::Whole(200, None, expired())),
    ];
    for (what, answer) in cases {
        let api = Api::default();
        api.script(PODS, [list("1", &[])]);
        let each = |_| {
            if what == "gone at once" { vec![answer(), list("1", &[])] } else { vec![answer()] }
        };
        api.script(PODS, (0..1000).flat_map(each));
        let mut source = Source::start(&api);
        source.next().await;
        let start = Instant::now();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let asked = api.asked(PODS).iter().filter(|(at, _)| *at > start).count();
        // Twenty seconds apart in the end, two requests each where it lists anew.
        assert!((30..150).contains(&asked), "{what}: {asked} requests in 10 minutes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_opened_anew_and_then_the_list() {
    let api = Api::default();
    let (_first, first_watch) = watching();
    let (_second, second_watch) = watching();
    api.script(PODS, [list("100", &[pod("a", "1")]), first_watch, second_watch]);
    // What a restored etcd has: less than was known, at a lower version.
    let (_third, third_watch) = watching();
    api.script(PODS, [list("50", &[]), third_watch]);
    let mut source = Source::start(&api);
    assert_eq!(source.first_pods().await, "=Pod a");
    let start = Instant::now();
    assert_eq!(source.next().await, ["=Pod "]);
    assert!(start.elapsed() < Duration::from_secs(185), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_api_that_never_answers_is_asked_again_and_told_of() {
    let api = Api::default();
    api.script(PODS, [Answer::Never, list("1", &[pod("a", "1")])]);
    let mut source = Source::start(&api);
    assert_eq!(source.first_pods().await, "=Pod a");
    assert_eq!(source.status.kinds()[4].1.errors, 1);
}

#[tokio::test(start_paused = true)]
async fn pages_make_one_list_and_an_expired_page_begins_it_again() {
    let api = Api::default();
    let gone = r#"{"kind":"Status","message":"The provided continue parameter is too old","reason":"Expired","code":410}"#;
    api.script(PODS, [page("5", "T1", &[pod("a", "1")])]);
    api.script(PODS, [Answer::Whole(410, None, gone.to_owned())]);
    api.script(PODS, [page("6", "T2", &[pod("a", "1")]), page("6", "", &[pod("b", "2")])]);
    let mut source = Source::start(&api);
    assert_eq!(source.first_pods().await, "=Pod a,b");
    tokio::task::yield_now().await;
    let asked = source.pods_asked();
    assert!(asked[1].contains("continue=T1") && asked[3].contains("continue=T2"), "{asked:?}");
    assert!(asked[4].ends_with("resourceVersion=6"), "{asked:?}");
}

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const OLD_ROUTES: &str = "/apis/gateway.networking.k8s.io/v1beta1/httproutes";

fn no_such_kind() -> Answer {
    Answer::Whole(404, None, "404 page not found\n".to_owned())
}

fn route(name: &str, version: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version},
        "spec": {"parentRefs": []}})
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_the_cluster_does_not_have_holds_nothing_up_and_is_found_later() {
    let api = Api::default();
    let (_frames, watch) = watching();
    api.script(ROUTES, (0..5).map(|_| no_such_kind()));
    api.script(ROUTES, [list("9", &[route("a", "8")]), watch]);
    api.script(OLD_ROUTES, (0..5).map(|_| no_such_kind()));
    let mut source = Source::start(&api);
    let start = Instant::now();
    assert!(source.next().await.contains(&"=HTTPRoute ".to_owned()));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!((source.status.waiting(), source.status.kinds()[5].1.errors), (None, 0));
    assert_eq!(source.next().await, ["=HTTPRoute a"]);
    let looked = api.asked(ROUTES)[1].0 - api.asked(ROUTES)[0].0;
    assert!((20..31).contains(&looked.as_secs()), "{looked:?}");
}

#[tokio::test(start_paused = true)]
async fn an_older_version_of_a_kind_will_do() {
    let api = Api::default();
    let (frames, watch) = watching();
    api.script(ROUTES, [no_such_kind()]);
    api.script(OLD_ROUTES, [list("9", &[route("a", "8")]), watch]);
    let mut source = Source::start(&api);
    assert!(source.next().await.contains(&"=HTTPRoute a".to_owned()));
    say(&frames, &line("ADDED", route("b", "10")));
    assert_eq!(source.next().await, ["+HTTPRoute shop/b"]);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_goes_is_missed_several_times_before_it_is_believed() {
    let api = Api::default();
    let (frames, watch) = watching();
    api.script(ROUTES, [list("1", &[route("a", "1")]), watch]);
    api.script(ROUTES, (0..50).map(|_| no_such_kind()));
    api.script(OLD_ROUTES, (0..50).map(|_| no_such_kind()));
    let mut source = Source::start(&api);
    source.next().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let start = Instant::now();
    drop(frames);
    assert_eq!(source.next().await, ["=HTTPRoute "]);
    assert!(start.elapsed() > Duration::from_secs(40), "{:?}", start.elapsed());
}
