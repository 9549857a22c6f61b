//! An installation: what `remora install` prints, in the double, and its programs in this process
//! with the flags of their Deployments and the rights of their ServiceAccounts.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    thread::JoinHandle,
    time::Duration,
};

use clap::Parser;
use parking_lot::Mutex;
use remora_control_plane::app::Listeners;
use remora_core::{
    drain::{self, Drain},
    names::SYSTEM_NAMESPACE,
};
use remora_injector::webhook;
use remora_tests::{
    apiserver::ApiServer,
    origin,
    wait::{eventually, within},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot};

/// The double with the objects of an installation.
pub(super) struct Cluster {
    pub(super) api: ApiServer,
}

impl Cluster {
    /// Applies what `remora install` prints; from then on roles count.
    pub(super) async fn install() -> Self {
        let api = ApiServer::start().await;
        for object in installation() {
            api.put(object);
        }
        api.enforce_rbac();
        api.decide_conditions(condition);
        Self { api }
    }

    /// Starts a replica of the injector, and sends the API server's calls to it.
    pub(super) async fn injector(&self) -> Program {
        let injector = self.injector_apart().await;
        self.route(&injector);
        injector
    }

    /// Starts one without.
    pub(super) async fn injector_apart(&self) -> Program {
        let client = self.api.client_as("system:serviceaccount:remora-system:remora-injector");
        let args = flags::<webhook::Args>(self.flags("remora-injector"));
        Program::start("injector", move |listener, admin, drain| {
            webhook::serve(args, client, listener, admin, None, drain)
        })
        .await
    }

    /// Starts a replica of the control plane with these flags beside the Deployment's.
    pub(super) async fn control_plane(&self, more: &[&str]) -> Program {
        let user = "system:serviceaccount:remora-system:remora-control-plane";
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(kubeconfig.path(), self.api.kubeconfig(user)).unwrap();
        let mut args = self.flags("remora-control-plane");
        args.push(format!("--kubeconfig={}", kubeconfig.path().display()));
        args.extend(more.iter().map(|flag| (*flag).to_owned()));
        let args = flags::<remora_control_plane::Args>(args);
        let at = (args.listen.ip().to_canonical() != Ipv6Addr::UNSPECIFIED).then_some(args.listen);
        let reviews = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        reviews.set_nonblocking(true).unwrap();
        let service = ("remora-system", "remora-control-plane", 443);
        let (namespace, name, port) = service;
        self.api.route_service(namespace, name, port, reviews.local_addr().unwrap());
        Program::start_at(at, "control-plane", async move |grpc, admin, drain| {
            let admission = Some(TcpListener::from_std(reviews)?);
            let listeners = Listeners { grpc, admin, admission };
            let result = remora_control_plane::app::serve(args, listeners, None, drain).await;
            drop(kubeconfig);
            result
        })
        .await
    }

    /// Sends the API server's calls to this replica.
    pub(super) fn route(&self, injector: &Program) {
        self.api.route_service("remora-system", "remora-injector", 443, injector.addr);
    }

    /// Changes a flag of a Deployment's container, as somebody does who edits it.
    pub(super) fn set_flag(&self, deployment: &str, flag: &str, value: &str) {
        let mut object = self.api.object("deployments", SYSTEM_NAMESPACE, deployment).unwrap();
        let args = &mut object["spec"]["template"]["spec"]["containers"][0]["args"];
        let args = args.as_array_mut().unwrap();
        let prefix = format!("--{flag}=");
        args.retain(|arg| !arg.as_str().unwrap().starts_with(&prefix));
        args.push(json!(format!("{prefix}{value}")));
        self.api.put(object);
    }

    /// The command line of a Deployment's container, as clap takes it.
    fn flags(&self, deployment: &str) -> Vec<String> {
        let object = self.api.object("deployments", SYSTEM_NAMESPACE, deployment).unwrap();
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        let args = container["args"].as_array().unwrap().iter();
        let args = args.map(|arg| arg.as_str().unwrap().to_owned());
        std::iter::once(deployment.to_owned()).chain(args).collect()
    }

    /// Creates a pod as a ReplicaSet's controller does, and gives what is stored, or why not.
    pub(super) async fn create_pod(&self, namespace: &str, name: &str) -> Result<Value, String> {
        self.create(namespace, pod(name)).await
    }

    /// The same with a pod of the test's own.
    pub(super) async fn create(&self, namespace: &str, pod: Value) -> Result<Value, String> {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let request = http::Request::post(path)
            .header("host", "kubernetes")
            .header("content-type", "application/json")
            .body(origin::full(pod.to_string()))
            .unwrap();
        let mut sender = origin::h1(self.api.addr()).await;
        let response = within("a created pod", sender.send_request(request)).await.unwrap();
        let answer = origin::Answer::read(response).await.unwrap();
        let object: Value = serde_json::from_str(&answer.text).unwrap();
        match answer.status {
            201 => Ok(object),
            _ => Err(object["message"].as_str().unwrap().to_owned()),
        }
    }

    /// Waits until a namespace has the label that the webhook selects by, or has it no more.
    pub(super) async fn labelled(&self, namespace: &str, value: Option<&str>) {
        let what = format!("the label of {namespace} to be {value:?}");
        self.api
            .until(&what, |api| {
                let namespace = api.object("namespaces", "", namespace)?;
                let label = namespace["metadata"]["labels"].get("remora.io/inject");
                (label.and_then(Value::as_str) == value).then_some(())
            })
            .await;
    }
}

/// A program's flags from its command line.
pub(super) fn flags<A: clap::Args>(line: Vec<String>) -> A {
    Flags::<A>::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).args
}

#[derive(Parser)]
struct Flags<A: clap::Args> {
    #[command(flatten)]
    args: A,
}

/// A pod with one container.
pub(super) fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
           "spec": {"containers": [{"name": "app", "image": "app"}]}})
}

/// Whether a stored pod has its sidecar.
pub(super) fn is_injected(pod: &Value) -> bool {
    let named = |container: &Value| container["name"] == "remora-proxy";
    let lists = [&pod["spec"]["initContainers"], &pod["spec"]["containers"]];
    lists.into_iter().filter_map(Value::as_array).flatten().any(named)
}

/// What the conditions of the webhooks say, as an API server would evaluate them.
fn condition(webhook: &str, expression: &str, request: &Value) -> bool {
    let object = &request["object"];
    match webhook {
        "routes.lint.remora.io" => {
            assert!(expression.contains("parent.kind == 'Service'"), "not known: {expression}");
            let mut parents = object["spec"]["parentRefs"].as_array().into_iter().flatten();
            return parents.any(|parent| parent["kind"] == "Service");
        }
        "services.lint.remora.io" => {
            assert!(expression.contains("key.contains('remora.io/')"), "not known: {expression}");
            let annotations = object["metadata"]["annotations"].as_object();
            return annotations.is_some_and(|all| all.keys().any(|key| key.contains("remora.io/")));
        }
        _ => {}
    }
    let own = request["object"]["metadata"]["annotations"]["remora.io/inject"].as_str();
    assert!(expression.contains("!= 'disabled'"), "a condition that is not known: {expression}");
    match expression.starts_with("!has(") {
        true => own != Some("disabled"),
        false => own.is_some_and(|own| own != "disabled"),
    }
}

/// The objects that `remora install` prints.
fn installation() -> Vec<Value> {
    let program = env!("CARGO_BIN_EXE_remora-under-test");
    let output = Command::new(program).arg("install").output().unwrap();
    let (text, said) = (output.stdout, output.stderr);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    let text = String::from_utf8(text).unwrap();
    let documents = text.split("\n---\n").filter(|document| !document.trim().is_empty());
    documents.map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// A program on a thread of its own. Dropped, it is killed.
pub(super) struct Program {
    pub(super) addr: SocketAddr,
    pub(super) admin: SocketAddr,
    drain: Mutex<Option<Drain>>,
    kill: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Program {
    /// Starts it on two listeners of 127.0.0.1: its own and the admin server's.
    pub(super) async fn start<R, F>(name: &str, run: R) -> Self
    where
        R: FnOnce(TcpListener, TcpListener, drain::Watch) -> F + Send + 'static,
        F: Future<Output = anyhow::Result<()>>,
    {
        Self::start_at(None, name, run).await
    }

    /// The same with an address for the first.
    pub(super) async fn start_at<R, F>(at: Option<SocketAddr>, name: &str, run: R) -> Self
    where
        R: FnOnce(TcpListener, TcpListener, drain::Watch) -> F + Send + 'static,
        F: Future<Output = anyhow::Result<()>>,
    {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listen = async |addr: SocketAddr| {
            // A former listener there may be on its way out.
            let bind = async || TcpListener::bind(addr).await.ok();
            let listener = eventually("a free address", bind).await;
            let addr = listener.local_addr().unwrap();
            (listener.into_std().unwrap(), addr)
        };
        let (listener, addr) = listen(at.unwrap_or(any)).await;
        let (admin_listener, admin) = listen(any).await;
        let (drain, watch) = Drain::new();
        let (kill, killed) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                let admin = TcpListener::from_std(admin_listener)?;
                let mut running = std::pin::pin!(run(listener, admin, watch));
                tokio::select! {
                    result = &mut running => result,
                    // A dropped sender is a kill too.
                    _ = killed => Ok(()),
                }
            })
        });
        let thread = Some(thread.unwrap());
        Self { addr, admin, drain: Mutex::new(Some(drain)), kill: Some(kill), thread }
    }

    /// Waits until it says that it is ready.
    pub(super) async fn ready(&self) {
        eventually("a ready program", async || {
            let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            assert!(!ended, "the program ended");
            matches!(self.try_get("/ready").await, Some((200, _))).then_some(())
        })
        .await;
    }

    /// Status and body of an admin page, where it answers.
    pub(super) async fn try_get(&self, path: &str) -> Option<(u16, String)> {
        remora_tests::sidecar::try_get(self.admin, path).await
    }

    /// Ends it as SIGTERM does.
    pub(super) async fn end(&self) {
        let drain = self.drain.lock().take().expect("it was not ended before");
        drain.drain(Duration::from_secs(10)).await;
        eventually("the program's end", async || {
            self.thread.as_ref().is_none_or(JoinHandle::is_finished).then_some(())
        })
        .await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.kill.take());
    }
}
