//! Webhooks, called as an API server calls them: over HTTPS, with the `caBundle` of the stored
//! configuration, to where the test says the Service is.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;

use super::{
    Shared, defaults,
    kinds::{self, Kind},
    selectors::label_selector,
    status::{self, Refusal},
};
use crate::origin::full;

/// The object after every webhook that wants it, and their warnings.
pub(super) async fn admitted(
    shared: &Arc<Shared>,
    kind: &Kind,
    object: Value,
    user: &str,
    dry_run: bool,
) -> Result<(Value, Vec<String>), Refusal> {
    let call = Call { shared, kind, part: None, old: None, user, dry_run };
    let webhooks = webhooks(shared, &call, "mutatingwebhookconfigurations");
    let (mut object, mut warnings) = (object, Vec::new());
    // Who had changed nothing yet when a later one did, and wants to see that.
    let mut again = Vec::new();
    for (at, webhook) in webhooks.iter().enumerate() {
        let before = object.clone();
        object = call.through(webhook, object, &mut warnings).await?;
        if object != before {
            again.retain(|earlier| *earlier != at);
            let earlier = webhooks[..at].iter().enumerate();
            let wants = earlier.filter(|(_, one)| one["reinvocationPolicy"] == "IfNeeded");
            again.extend(wants.map(|(at, _)| at));
        }
    }
    again.sort_unstable();
    again.dedup();
    for at in again {
        object = call.through(&webhooks[at], object, &mut warnings).await?;
    }
    Ok((object, warnings))
}

/// What is written as validating webhooks see it.
pub(super) struct Written<'a> {
    pub(super) kind: &'a Kind,
    /// The subresource that is written.
    pub(super) part: Option<&'a str>,
    /// What is stored; nothing where the object is new.
    pub(super) old: Option<&'a Value>,
    pub(super) new: &'a Value,
}

/// Whether any validating webhook's rules name this.
pub(super) fn is_validated(shared: &Arc<Shared>, kind: &Kind, part: Option<&str>) -> bool {
    ["CREATE", "UPDATE"].iter().any(|operation| {
        !named(shared, "validatingwebhookconfigurations", operation, kind, part).is_empty()
    })
}

/// The warnings of all validating webhooks that want to see what is written; the first that denies it
/// ends it.
pub(super) async fn validated(
    shared: &Arc<Shared>,
    written: Written<'_>,
    user: &str,
    dry_run: bool,
) -> Result<Vec<String>, Refusal> {
    let Written { kind, part, old, new } = written;
    let call = Call { shared, kind, part, old, user, dry_run };
    let mut warnings = Vec::new();
    for webhook in webhooks(shared, &call, "validatingwebhookconfigurations") {
        call.asked(&webhook, new, &mut warnings).await?;
    }
    Ok(warnings)
}

/// Webhooks whose rules name what is done, in the order of their configurations' names.
fn webhooks(shared: &Shared, call: &Call<'_>, configurations: &str) -> Vec<Value> {
    named(shared, configurations, call.operation(), call.kind, call.part)
}

fn named(
    shared: &Shared,
    configurations: &str,
    operation: &str,
    kind: &Kind,
    part: Option<&str>,
) -> Vec<Value> {
    let resource = match part {
        Some(part) => format!("{}/{part}", kind.plural),
        None => kind.plural.to_owned(),
    };
    let configurations = kinds::plural(configurations);
    let configurations = configurations.expect("invariant: in the table");
    let state = shared.state.lock();
    let version = state.store.version_at(Instant::now() - state.webhook_lag);
    let all = state.store.objects_at(configurations, None, version).unwrap_or_default();
    let has = |rule: &Value, field: &str, wanted: &str| {
        let mut values = rule[field].as_array().into_iter().flatten();
        values.any(|value| value == wanted || value == "*")
    };
    let fits = |rule: &Value| {
        has(rule, "operations", operation)
            && has(rule, "apiGroups", kind.group)
            && has(rule, "apiVersions", kind.version)
            && has(rule, "resources", &resource)
    };
    all.values()
        .flat_map(|object| object["webhooks"].as_array().into_iter().flatten())
        .filter(|webhook| webhook["rules"].as_array().into_iter().flatten().any(fits))
        .cloned()
        .collect()
}

struct Call<'a> {
    shared: &'a Arc<Shared>,
    kind: &'a Kind,
    part: Option<&'a str>,
    old: Option<&'a Value>,
    user: &'a str,
    dry_run: bool,
}

impl Call<'_> {
    fn operation(&self) -> &'static str {
        if self.old.is_some() { "UPDATE" } else { "CREATE" }
    }

    /// The object after a webhook, where that wants it.
    async fn through(
        &self,
        webhook: &Value,
        object: Value,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Refusal> {
        match self.asked(webhook, &object, warnings).await? {
            Some(response) => self.patched(object, &response),
            None => Ok(object),
        }
    }

    /// What a webhook says that allows it; nothing where it does not want it, or fails and may.
    async fn asked(
        &self,
        webhook: &Value,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Value>, Refusal> {
        let name = webhook["name"].as_str().unwrap_or_default();
        let request = self.request(object);
        if !self.wanted(webhook, &request) {
            return Ok(None);
        }
        if self.dry_run
            && !["None", "NoneOnDryRun"].map(Value::from).contains(&webhook["sideEffects"])
        {
            let why = format!("admission webhook \"{name}\" does not support dry run");
            return Err(status::bad_request(why));
        }
        let seconds = webhook["timeoutSeconds"].as_u64().unwrap_or(10);
        self.shared.change(|state| state.admitted(name, &request));
        let posted = post(self.shared, webhook, &request, seconds);
        let result = match tokio::time::timeout(Duration::from_secs(seconds), posted).await {
            Ok(result) => result,
            Err(_) => Err(format!(
                "failed to call webhook: Post \"{}\": context deadline exceeded",
                url(webhook, seconds)
            )),
        };
        let response = match result.and_then(|review| response(&request, &review)) {
            Ok(response) => response,
            Err(_) if webhook["failurePolicy"] == "Ignore" => return Ok(None),
            Err(why) => {
                return Err(status::internal(&format!("failed calling webhook \"{name}\": {why}")));
            }
        };
        let said = response["warnings"].as_array().into_iter().flatten();
        warnings.extend(said.filter_map(Value::as_str).map(str::to_owned));
        if response["allowed"] != json!(true) {
            return Err(denied(name, &response["status"]));
        }
        Ok(Some(response))
    }

    /// Whether the webhook's selectors and conditions take this.
    fn wanted(&self, webhook: &Value, request: &Value) -> bool {
        let state = self.shared.state.lock();
        let namespaces = kinds::plural("namespaces").expect("invariant: in the table");
        let name = request["namespace"].as_str().unwrap_or_default();
        let mut all = state.store.objects(namespaces, None);
        let namespace = all.find(|(id, _)| id.name == name).map(|(_, object)| object);
        let labels = namespace.map(|object| object["metadata"]["labels"].clone());
        let own_labels = &request["object"]["metadata"]["labels"];
        let condition = Arc::clone(&state.condition);
        drop(all);
        drop(state);
        let webhook_name = webhook["name"].as_str().unwrap_or_default();
        let mut conditions = webhook["matchConditions"].as_array().into_iter().flatten();
        labels.is_none_or(|labels| label_selector(&webhook["namespaceSelector"], &labels))
            && label_selector(&webhook["objectSelector"], own_labels)
            && conditions.all(|one| {
                let expression = one["expression"].as_str().unwrap_or_default();
                condition(webhook_name, expression, request)
            })
    }

    /// The `request` of an AdmissionReview.
    fn request(&self, object: &Value) -> Value {
        let Kind { group, version, plural, name, .. } = self.kind;
        let kind = json!({"group": group, "version": version, "kind": name});
        let resource = json!({"group": group, "version": version, "resource": plural});
        let groups = ["system:serviceaccounts", "system:authenticated"];
        let mut request = json!({
            "uid": self.shared.state.lock().uid(),
            "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
            "operation": self.operation(),
            "userInfo": {"username": self.user, "groups": groups},
            "object": object, "oldObject": self.old, "dryRun": self.dry_run,
            "options": {"apiVersion": "meta.k8s.io/v1",
                        "kind": if self.old.is_some() { "UpdateOptions" } else { "CreateOptions" }},
        });
        if let Some(part) = self.part {
            request["subResource"] = json!(part);
            request["requestSubResource"] = json!(part);
        }
        for field in ["name", "namespace"] {
            let value = &object["metadata"][field];
            if !value.is_null() {
                request[field] = value.clone();
            }
        }
        request
    }

    fn patched(&self, mut object: Value, response: &Value) -> Result<Value, Refusal> {
        let Some(patch) = response["patch"].as_str() else { return Ok(object) };
        let bytes: Result<ByteString, _> = serde_json::from_value(json!(patch));
        let patch = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes.0).ok());
        let patch: json_patch::Patch = patch
            .ok_or_else(|| status::internal("received undecodable patch in webhook response"))?;
        json_patch::patch(&mut object, &patch)
            .map_err(|error| status::internal(&format!("error in patch: {error}")))?;
        if self.kind.plural == "pods" {
            defaults::refill(&mut object);
        }
        Ok(object)
    }
}

/// The `response` of a review that answers the request.
fn response(request: &Value, review: &Value) -> Result<Value, String> {
    let invalid = |why: String| Err(format!("received invalid webhook response: {why}"));
    if review["apiVersion"] != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
        return invalid(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
            review["apiVersion"].as_str().unwrap_or_default(),
            review["kind"].as_str().unwrap_or_default()
        ));
    }
    let response = &review["response"];
    if response.is_null() {
        return invalid("webhook response was absent".to_owned());
    }
    let (asked, got) = (&request["uid"], &response["uid"]);
    if asked != got {
        return invalid(format!("expected response.uid={asked}, got {got}"));
    }
    if !response["patch"].is_null() && response["patchType"] != "JSONPatch" {
        return invalid("webhook returned response.patch but not response.patchType".to_owned());
    }
    Ok(response.clone())
}

fn denied(name: &str, said: &Value) -> Refusal {
    let why = match (said["message"].as_str(), said["reason"].as_str()) {
        (Some(text), _) | (None, Some(text)) if !text.is_empty() => format!(": {text}"),
        _ => " without explanation".to_owned(),
    };
    let message = format!("admission webhook \"{name}\" denied the request{why}");
    let code = said["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    status::bare(code, said["reason"].as_str().unwrap_or_default(), message)
}

fn url(webhook: &Value, seconds: u64) -> String {
    let service = &webhook["clientConfig"]["service"];
    let text = |field: &str| service[field].as_str().unwrap_or_default();
    let port = service["port"].as_u64().unwrap_or(443);
    let (name, namespace, path) = (text("name"), text("namespace"), text("path"));
    format!("https://{name}.{namespace}.svc:{port}{path}?timeout={seconds}s")
}

/// Sends a review and gives the review that comes back.
async fn post(
    shared: &Shared,
    webhook: &Value,
    request: &Value,
    seconds: u64,
) -> Result<Value, String> {
    let url = url(webhook, seconds);
    let failed = |why: String| format!("failed to call webhook: Post \"{url}\": {why}");
    let (host, addr) = service(shared, webhook).map_err(failed)?;
    let stream = TcpStream::connect(addr)
        .await
        .map_err(|_| failed(format!("dial tcp {addr}: connect: connection refused")))?;
    let bundle: Option<ByteString> =
        serde_json::from_value(webhook["clientConfig"]["caBundle"].clone()).unwrap_or_default();
    let connector = connector(&bundle.unwrap_or_default().0);
    let name = ServerName::try_from(host.clone()).map_err(|error| failed(error.to_string()))?;
    let stream = connector.connect(name, stream).await.map_err(|error| {
        let why = tls_error(&error, &host);
        failed(format!("tls: failed to verify certificate: x509: {why}"))
    })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    let driver = tokio::spawn(connection);
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
                        "request": request});
    let path = webhook["clientConfig"]["service"]["path"].as_str().unwrap_or("/");
    let request = Request::post(format!("{path}?timeout={seconds}s"))
        .header(header::HOST, format!("{host}:443"))
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .header(header::ACCEPT, "application/json, */*")
        .header(header::CONTENT_TYPE, "application/json")
        .body(full(review.to_string()))
        .map_err(|error| failed(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|_| failed("EOF".to_owned()))?;
    let code = response.status();
    let body = response.into_body().collect().await.map_err(|_| failed("EOF".to_owned()))?;
    driver.abort();
    let body = body.to_bytes();
    if code != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        return Err(match code {
            StatusCode::NOT_FOUND => {
                "failed to call webhook: the server could not find the requested resource"
                    .to_owned()
            }
            _ => format!(
                "failed to call webhook: an error on the server ({text:?}) has prevented the request from succeeding"
            ),
        });
    }
    serde_json::from_slice(&body)
        .map_err(|error| format!("failed to call webhook: json parse error: {error}"))
}

/// The Service's name in certificates, and where it is.
fn service(shared: &Shared, webhook: &Value) -> Result<(String, SocketAddr), String> {
    let service = &webhook["clientConfig"]["service"];
    let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (text("name"), text("namespace"));
    let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
    let state = shared.state.lock();
    let host = format!("{name}.{namespace}.svc");
    let addr = state.services.get(&(namespace, name.clone(), port)).copied();
    addr.map(|addr| (host, addr)).ok_or_else(|| format!("service \"{name}\" not found"))
}

fn connector(bundle: &[u8]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle).flatten() {
        let _ = roots.add(root);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("invariant: the provider has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// In the words of Go's TLS where a test may look for them.
fn tls_error(error: &std::io::Error, host: &str) -> String {
    use rustls::{CertificateError, Error};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "certificate signed by unknown authority".to_owned()
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => format!("certificate is valid for another name, not {host}"),
        Some(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "certificate has expired or is not yet valid".to_owned(),
        _ => error.to_string(),
    }
}
