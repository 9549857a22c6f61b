use std::{convert::Infallible, sync::Mutex};

use http::{Method, Request, Response};
use kube::client::Body;
use remora_core::drain::Drain;
use serde_json::{Value, json};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A moment in 2027.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// An API server with one Secret, or none.
#[derive(Default)]
struct Server {
    secret: Option<Value>,
    /// What another replica makes just before we do.
    rival: Option<Value>,
    creations: usize,
}

impl Server {
    /// `None` for a watch, which stays silent.
    fn answer(&mut self, method: &Method, path: &str) -> Option<(u16, Value)> {
        let status = |code: u16, reason: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code}))
        };
        if path.contains("watch=true") {
            return None;
        }
        Some(match (method, &self.secret) {
            (&Method::POST, _) if self.rival.is_some() => {
                self.secret = self.rival.take();
                status(409, "AlreadyExists")
            }
            (&Method::POST, _) => {
                self.creations += 1;
                (201, json!({"metadata": {"name": names::ISSUER_SECRET}}))
            }
            (_, secret) if path.contains('?') => {
                let items: Vec<_> = secret.iter().collect();
                (200, json!({"metadata": {"resourceVersion": "9"}, "items": items}))
            }
            (_, Some(secret)) => (
                200,
                json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": secret["metadata"],
                }),
            ),
            (_, None) => status(404, "NotFound"),
        })
    }
}

fn home(server: &Arc<Mutex<Server>>, external: bool) -> Home {
    let server = Arc::clone(server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = server.lock().unwrap().answer(request.method(), &request.uri().to_string());
        async move {
            let Some((code, body)) = answer else { return std::future::pending().await };
            let body = Body::from(serde_json::to_vec(&body).unwrap());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    Home {
        client: Client::new(service, "default"),
        namespace: "remora-system".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        external,
        leaf_lifetime: DAY,
        clock: now,
    }
}

fn secret() -> Secret {
    let mut secret = fresh("cluster.local", now()).unwrap();
    secret.metadata.namespace = Some("remora-system".to_owned());
    secret.metadata.resource_version = Some("7".to_owned());
    secret
}

/// What is seen first.
async fn first(server: Server, external: bool) -> (Seen, usize) {
    let server = Arc::new(Mutex::new(server));
    let (drain, watch) = Drain::new();
    let (says, mut seen) = mpsc::channel(4);
    let home = home(&server, external);
    let follow = tokio::spawn(async move { home.follow(says, watch).await });
    let first = tokio::time::timeout(DAY, seen.recv()).await.unwrap().unwrap();
    drain.drain(DAY).await;
    follow.await.unwrap();
    let creations = server.lock().unwrap().creations;
    (first, creations)
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_there_is_used_and_none_is_made() {
    let secret = serde_json::to_value(secret()).unwrap();
    let (seen, creations) =
        first(Server { secret: Some(secret), ..Server::default() }, false).await;
    assert!(matches!(seen, Seen::Issuer(_)), "{seen:?}");
    assert_eq!(creations, 0);
}

#[tokio::test(start_paused = true)]
async fn of_two_replicas_that_make_the_secret_the_later_reads_what_the_other_made() {
    let rival = serde_json::to_value(secret()).unwrap();
    let (seen, creations) = first(Server { rival: Some(rival), ..Server::default() }, false).await;
    assert!(matches!(seen, Seen::Issuer(_)), "{seen:?}");
    assert_eq!(creations, 0);
}

#[tokio::test(start_paused = true)]
async fn an_absent_secret_is_made_unless_somebody_else_brings_it() {
    let (_, creations) = first(Server::default(), false).await;
    assert_eq!(creations, 1);
    let (seen, creations) = first(Server::default(), true).await;
    let Seen::Refused { problem, .. } = seen else { panic!("{seen:?}") };
    assert!(
        problem.starts_with("Secret remora-system/remora-identity-issuer: absent;"),
        "{problem}"
    );
    assert_eq!(creations, 0);
}

#[test]
fn a_bad_secret_is_one_line_with_its_key_and_the_mend() {
    let told = |key: &str, value: Option<&[u8]>, what: &str| {
        let mut secret = secret();
        let data = secret.data.as_mut().unwrap();
        match value {
            Some(value) => data.insert(key.to_owned(), ByteString(value.to_vec())),
            None => data.remove(key),
        };
        let line = judge(&secret, DAY, now()).unwrap_err().to_string();
        let place = format!("Secret remora-system/remora-identity-issuer, key {key}: ");
        assert!(
            line.starts_with(&place) && line.contains(what) && line.contains("; put"),
            "{line}"
        );
    };
    let other = secret().data.unwrap();
    told("ca.crt", None, "no certificate");
    told("tls.crt", Some(b"nothing"), "no certificate");
    told("tls.key", None, "no private key");
    told("tls.key", Some(&other["tls.key"].0), "is not the key of");
    let mut unrelated = secret();
    unrelated.data.as_mut().unwrap().insert("ca.crt".to_owned(), other["ca.crt"].clone());
    let line = judge(&unrelated, DAY, now()).unwrap_err().to_string();
    assert!(line.contains("key tls.crt: was not issued by a root in"), "{line}");
    let line = judge(&secret(), DAY, now() + 4000 * DAY).unwrap_err().to_string();
    assert!(line.contains("key tls.crt: expired"), "{line}");
}

#[test]
fn an_expired_root_that_is_not_needed_is_left_out() {
    let old = NewRoot::generate("old", now() - 4000 * DAY).unwrap();
    let mut secret = secret();
    let ca = secret.data.as_mut().unwrap().get_mut("ca.crt").unwrap();
    ca.0.extend(pem(&old.certificate).bytes());
    assert_eq!(judge(&secret, DAY, now()).unwrap().roots().len(), 1);
}
