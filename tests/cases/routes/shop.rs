//! The caller `web`, the Service `orders` that it dials, Services beside it, and routes.
//!
//! Every application is the same one: it says who it is and what it was asked, and fails or hangs where
//! the request says so, so that no test keeps state in it.

use std::{collections::BTreeMap, future::pending, net::SocketAddr};

use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use remora_tests::{
    grpc,
    mesh::{Mesh, NAMESPACE},
    origin::{Answer, Body, Origin, Speaks, empty, full, h1, h2},
    sidecar::Sidecar,
    wait::{eventually, within},
};
use serde_json::{Value, json};

/// What a caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    H1,
    H2,
}

/// Both of them.
pub(super) const WAYS: [Way; 2] = [Way::H1, Way::H2];

/// Everything that runs.
pub(super) struct Shop {
    pub(super) mesh: Mesh,
    pub(super) client: Sidecar,
    _servers: Vec<Sidecar>,
    pub(super) origins: BTreeMap<String, Origin>,
}

impl Shop {
    /// With `orders` and these Services, each of one pod with a sidecar, and these objects.
    pub(super) async fn start(beside: &[&'static str], objects: &[Value]) -> Self {
        Self::in_mesh(Mesh::new(), beside, objects, &["orders"]).await
    }

    /// The same in a mesh that may have more, these Services too, with listeners for `calls`.
    pub(super) async fn in_mesh(
        mut mesh: Mesh,
        beside: &[&'static str],
        objects: &[Value],
        calls: &[&str],
    ) -> Self {
        objects.iter().for_each(|object| write(&mesh, object));
        let web = mesh.pod("web", "web");
        let (mut pods, mut origins) = (Vec::new(), BTreeMap::new());
        for name in ["orders"].iter().chain(beside) {
            if !mesh.has(&format!("service-{name}")) {
                mesh.service(name, &[]);
            }
            let pod = mesh.pod(&format!("{name}-1"), name);
            origins.insert((*name).to_owned(), application(pod.app(), name).await);
            pods.push(pod);
        }
        mesh.start_plane().await;
        let client = mesh.sidecar(&web, calls).await;
        let mut servers = Vec::new();
        for pod in &pods {
            servers.push(mesh.sidecar(pod, &[]).await);
        }
        Self { mesh, client, _servers: servers, origins }
    }

    /// Puts an object into the manifests, or a changed one in its place.
    pub(super) fn put(&self, object: &Value) {
        write(&self.mesh, object);
    }

    /// Waits until the caller's proxy knows a rule (`r/0`), which it does once it was asked for the
    /// Service.
    pub(super) async fn until_rule(&self, rule: &str) {
        let shown = format!("\"{NAMESPACE}/{rule}\"");
        eventually(&format!("rule {rule}"), async || {
            self.client.try_get("/services").await?.1.contains(&shown).then_some(())
        })
        .await;
    }

    pub(super) async fn ask(&self, way: Way, ask: &Ask) -> Told {
        ask.send(self.client.entry("orders"), way).await
    }

    /// Who answers so many requests: the Services' names, or the statuses of answers by the proxy.
    pub(super) async fn shares(&self, way: Way, ask: &Ask, requests: usize) -> Shares {
        let mut shares = BTreeMap::new();
        for _ in 0..requests {
            let told = self.ask(way, ask).await;
            let who = match told.reason() {
                None if told.status == 200 => told.service().to_owned(),
                _ => told.status.to_string(),
            };
            *shares.entry(who).or_default() += 1;
        }
        Shares(shares)
    }

    /// Requests that a Service's pod has seen.
    pub(super) fn seen(&self, service: &str) -> usize {
        self.origins[service].requests()
    }
}

/// How many requests each got.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shares(BTreeMap<String, usize>);

impl Shares {
    pub(super) fn of(&self, who: &str) -> usize {
        self.0.get(who).copied().unwrap_or(0)
    }

    pub(super) fn all(&self) -> usize {
        self.0.values().sum()
    }
}

/// Puts an object into the manifests of a mesh.
pub(super) fn write(mesh: &Mesh, object: &Value) {
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    let part = |name: &str| object["metadata"][name].as_str().unwrap().to_owned();
    let name = format!("{kind}-{}-{}", part("namespace"), part("name"));
    mesh.write_raw(&name, &object.to_string());
}

/// A route on `orders` with these rules.
pub(super) fn route(name: &str, rules: Value) -> Value {
    of_kind("HTTPRoute", name, rules)
}

/// The same of another kind.
pub(super) fn of_kind(kind: &str, name: &str, rules: Value) -> Value {
    let version = match kind {
        "TCPRoute" => "v1alpha2",
        "TLSRoute" => "v1alpha3",
        "ReferenceGrant" => "v1beta1",
        _ => "v1",
    };
    json!({
        "apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": kind,
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders"}], "rules": rules},
    })
}

/// A backend of weight 1.
pub(super) fn to(service: &str) -> Value {
    weighted(service, 1)
}

pub(super) fn weighted(service: &str, weight: u32) -> Value {
    json!({"name": service, "port": 80, "weight": weight})
}

/// A rule that says in the response that it was taken.
pub(super) fn marked(name: &str, matches: Value) -> Value {
    let set = json!([{"name": "x-rule", "value": name}]);
    json!({
        "name": name, "matches": matches, "backendRefs": [to("orders")],
        "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": set}}],
    })
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    method: Method,
    host: String,
    target: String,
    fields: Vec<(&'static str, String)>,
    body: Option<&'static str>,
}

impl Ask {
    pub(super) fn get(target: &str) -> Self {
        Self {
            method: Method::GET,
            host: "orders".to_owned(),
            target: target.to_owned(),
            fields: Vec::new(),
            body: None,
        }
    }

    /// What it names as its host.
    pub(super) fn host(self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self }
    }

    pub(super) fn method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    pub(super) fn body(self, body: &'static str) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    pub(super) async fn send(&self, to: SocketAddr, way: Way) -> Told {
        let body = || self.body.map_or_else(empty, full);
        let with = |builder: http::request::Builder| {
            let builder = builder.method(self.method.clone());
            let add = |b: http::request::Builder, (n, v): &(&str, String)| b.header(*n, v);
            self.fields.iter().fold(builder, add).body(body()).unwrap()
        };
        let answer = match way {
            Way::H1 => {
                let request = with(Request::builder().uri(&self.target).header("host", &self.host));
                let mut sender = h1(to).await;
                let response = within("an answer", sender.send_request(request)).await;
                Answer::read(response.unwrap()).await
            }
            Way::H2 => {
                let uri = format!("http://{}{}", self.host, self.target);
                let request = with(Request::builder().uri(uri));
                let mut sender = h2(to).await;
                let response = within("an answer", sender.send_request(request)).await;
                Answer::read(response.unwrap()).await
            }
        };
        let answer = answer.unwrap();
        Told::new(answer.status, answer.headers, &answer.text)
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// What the application says; null where it was not asked.
    said: Value,
}

impl Told {
    fn new(status: u16, headers: HeaderMap, text: &str) -> Self {
        Self { status, headers, said: serde_json::from_str(text).unwrap_or(Value::Null) }
    }

    /// The answer to a call of gRPC: its one message, and the fields that came with its status.
    pub(super) fn of_call(ended: &grpc::Ended) -> Self {
        let text = ended.texts.first().map_or("", String::as_str);
        Self::new(200, ended.fields.clone(), text)
    }

    /// Who answered; empty: no application.
    pub(super) fn service(&self) -> &str {
        self.said["service"].as_str().unwrap_or_default()
    }

    /// `path`, `host`, `version` or `body` as the application got it.
    pub(super) fn got(&self, part: &str) -> &str {
        self.said[part].as_str().unwrap_or_default()
    }

    /// Values of a field as the application got it.
    pub(super) fn field(&self, name: &str) -> Vec<&str> {
        let values = self.said["fields"][name].as_array();
        values.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Values of a field of the response.
    pub(super) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect()
    }

    pub(super) fn reason(&self) -> Option<&str> {
        self.headers.get("remora-proxy-error")?.to_str().ok()
    }

    /// The rule that was taken ([`marked`]), or the status.
    pub(super) fn rule(&self) -> String {
        match self.header("x-rule")[..] {
            [rule] => rule.to_owned(),
            _ => self.status.to_string(),
        }
    }
}

/// The application of a Service.
pub(super) async fn application(at: SocketAddr, service: &str) -> Origin {
    let service = service.to_owned();
    Origin::serve(at, Speaks::Any, move |request| answer(service.clone(), request)).await
}

/// `x-hang: v1` has `v1` never answer, `x-fail: v1` fail with 503; `x-hang-first: 2` and `x-fail-first: 2`
/// have the first two attempts do so, whoever gets them.
async fn answer(service: String, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let number = |name: &str| field(name).and_then(|n| n.parse::<usize>().ok());
    let attempt = number("remora-attempt").unwrap_or(1);
    if field("x-hang") == Some(service.as_str()) || attempt <= number("x-hang-first").unwrap_or(0) {
        return pending().await;
    }
    let first = number("x-fail-first").unwrap_or(0);
    let fails = field("x-fail") == Some(service.as_str()) || attempt <= first;
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut fields: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in &head.headers {
        fields.entry(name.as_str()).or_default().push(value.to_str().unwrap_or_default());
    }
    let said = json!({
        "service": service, "attempt": attempt, "fields": fields,
        "path": head.uri.path_and_query().map(ToString::to_string),
        "host": head.uri.authority().map_or(field("host").unwrap_or_default(), |a| a.as_str()),
        "version": format!("{:?}", head.version), "body": String::from_utf8_lossy(&body),
    });
    if field("content-type").is_some_and(|kind| kind.starts_with("application/grpc")) {
        if fails {
            let mut response = grpc::answer(empty());
            response.headers_mut().extend(grpc::status("14"));
            return response;
        }
        let said = grpc::message(&said.to_string());
        return grpc::answer(grpc::body(vec![said], grpc::status("0")));
    }
    let mut response = Response::new(full(said.to_string()));
    for name in ["x-kept", "x-removed", "x-set"] {
        response.headers_mut().insert(name, http::HeaderValue::from_static("application"));
    }
    if fails {
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}
