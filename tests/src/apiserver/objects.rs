//! The test's side of the double: objects, tokens, faults, surroundings.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering, time::Duration};

use serde_json::{Value, json};

use super::{
    ApiServer, Cut, Fault, defaults,
    faults::Rule,
    finish_namespace,
    kinds::{self, Kind},
    review::Token,
    store::Id,
};

/// Objects, from the test's side: nothing is refused, and `status` is written like the rest.
impl ApiServer {
    /// Creates or replaces an object, and gives it as it is stored.
    ///
    /// # Panics
    /// Where its kind is not known.
    pub fn put(&self, mut object: Value) -> Value {
        let text =
            |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let kind = kinds::of(&text(&object, "apiVersion"), &text(&object, "kind"));
        let kind = kind.unwrap_or_else(|| panic!("not a known kind: {object}"));
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        if kind.namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!("default");
        }
        let id =
            id(kind, &text(&object["metadata"], "namespace"), &text(&object["metadata"], "name"));
        self.shared.change(|state| {
            let writer = state.writer("test");
            let status = object["status"].clone();
            defaults::fill(kind, &mut object, &writer.suffix);
            if !status.is_null() {
                object["status"] = status;
            }
            let old = state.store.object(&id).map(|old| old["metadata"].clone());
            let old = old.unwrap_or_default();
            for (field, fresh) in [("uid", writer.uid), ("creationTimestamp", writer.time)] {
                let own = object["metadata"][field].take();
                let kept = [own, old[field].clone()].into_iter().find(|value| !value.is_null());
                object["metadata"][field] = kept.unwrap_or_else(|| json!(fresh));
            }
            state.store.insert(id, object)
        })
    }

    /// Merges this into an object (RFC 7396), and gives it as it is stored.
    ///
    /// # Panics
    /// Where it is not there.
    pub fn merge(&self, plural: &str, namespace: &str, name: &str, patch: Value) -> Value {
        let id = id(known(plural), namespace, name);
        self.shared.change(|state| {
            let mut object = state.store.object(&id).cloned();
            let object =
                object.as_mut().unwrap_or_else(|| panic!("no {plural} {namespace}/{name}"));
            json_patch::merge(object, &patch);
            state.store.insert(id, object.clone())
        })
    }

    /// Takes an object away at once, whatever holds it; whether it was there.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) -> bool {
        let id = id(known(plural), namespace, name);
        self.shared.change(|state| state.store.remove(&id).is_some())
    }

    /// An object as it is stored.
    #[must_use]
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let id = id(known(plural), namespace, name);
        self.shared.state.lock().store.object(&id).cloned()
    }

    /// All objects of a kind.
    #[must_use]
    pub fn objects(&self, plural: &str) -> Vec<Value> {
        let state = self.shared.state.lock();
        state.store.objects(known(plural), None).map(|(_, object)| object.clone()).collect()
    }

    /// Puts a namespace with these annotations.
    pub fn namespace(&self, name: &str, annotations: &[(&str, &str)]) {
        let own = annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value)));
        let annotations: serde_json::Map<String, Value> = own.collect();
        let metadata = match annotations.is_empty() {
            true => json!({"name": name}),
            false => json!({"name": name, "annotations": annotations}),
        };
        self.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }

    /// Lets a deleted namespace stay `Terminating`.
    pub fn keep_terminating(&self) {
        self.shared.change(|state| state.keeps_terminating = true);
    }

    /// Takes away a namespace and everything in it.
    pub fn finish_namespace(&self, name: &str) {
        self.shared.change(|state| finish_namespace(state, name));
    }

    /// A ServiceAccount token as the kubelet gets it for a projected volume.
    ///
    /// # Panics
    /// Where it is to be bound to a pod that is not there.
    #[must_use]
    pub fn issue_token(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<&str>,
        audiences: &[&str],
    ) -> String {
        let uid = |plural: &str, name: &str| {
            let object = self.object(plural, namespace, name)?;
            Some(object["metadata"]["uid"].as_str()?.to_owned())
        };
        let pod = pod.map(|name| {
            let uid = uid("pods", name);
            (name.to_owned(), uid.unwrap_or_else(|| panic!("no pod {namespace}/{name}")))
        });
        let account_uid = uid("serviceaccounts", account);
        let mut state = self.shared.state.lock();
        let token = Token {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            account_uid: account_uid.unwrap_or_else(|| state.uid()),
            pod,
            audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
            id: state.uid(),
            refused: None,
        };
        let text = format!("e30.{}.c2ln", state.uid());
        state.tokens.insert(text.clone(), token);
        text
    }

    /// Lets reviews refuse a token, for example because `service account token has expired`.
    pub fn refuse_token(&self, token: &str, why: &str) {
        self.shared.change(|state| {
            if let Some(token) = state.tokens.get_mut(token) {
                token.refused = Some(why.to_owned());
            }
        });
    }
}

/// What goes wrong.
impl ApiServer {
    /// Lets every request of this verb and resource (`*`: any) fail until [`ApiServer::heal`].
    /// Reviews are `create` of `tokenreviews`.
    pub fn fail(&self, verb: &str, resource: &str, fault: Fault) {
        self.add_rule(verb, resource, None, fault);
    }

    /// Lets so many of them fail.
    pub fn fail_times(&self, times: usize, verb: &str, resource: &str, fault: Fault) {
        self.add_rule(verb, resource, Some(times), fault);
    }

    fn add_rule(&self, verb: &str, resource: &str, left: Option<usize>, fault: Fault) {
        let (verb, resource) = (verb.to_owned(), resource.to_owned());
        self.shared.change(|state| state.rules.push(Rule { verb, resource, left, fault }));
    }

    /// Ends all faults of [`ApiServer::fail`], and the silence of [`ApiServer::hold_watches`].
    pub fn heal(&self) {
        self.shared.change(|state| {
            state.rules.clear();
            state.held = false;
        });
    }

    /// Ends all open watches.
    pub fn cut_watches(&self, how: Cut) {
        self.shared.change(|state| {
            state.cuts += 1;
            state.cut = how;
        });
    }

    /// Open watches say nothing more, not even bookmarks, until [`ApiServer::heal`].
    pub fn hold_watches(&self) {
        self.shared.change(|state| state.held = true);
    }

    /// Forgets the history: a watch from an older version gets 410, open ones go on.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.compact());
    }

    /// Remembers so many changes only, from now on.
    pub fn keep_history(&self, changes: usize) {
        self.shared.change(|state| state.store.keep(changes));
    }

    /// Lets watches send each chunk in halves, torn anywhere.
    pub fn tear_chunks(&self) {
        self.shared.torn.store(true, Ordering::Relaxed);
    }

    /// Lets bookmarks of new watches come so often; a real server's come every minute.
    pub fn bookmark_every(&self, pause: Duration) {
        self.shared.change(|state| state.bookmark_every = pause);
    }

    /// What `/version` says, as `v1.29.0`.
    pub fn say_version(&self, git_version: &str) {
        self.shared.change(|state| git_version.clone_into(&mut state.version));
    }
}

/// What is around the server.
impl ApiServer {
    /// Where connections to a Service's port go, for webhooks.
    pub fn route_service(&self, namespace: &str, name: &str, port: u16, addr: SocketAddr) {
        let key = (namespace.to_owned(), name.to_owned(), port);
        self.shared.change(|state| state.services.insert(key, addr));
    }

    /// Lets admission learn of changed webhook configurations so much later, as an API server does
    /// whose own watch is behind.
    pub fn lag_webhooks(&self, lag: Duration) {
        self.shared.change(|state| state.webhook_lag = lag);
    }

    /// Decides matchConditions of webhooks, which are not evaluated here: from the webhook's name,
    /// the expression and the admission request. Until it is set, all hold.
    pub fn decide_conditions(
        &self,
        decide: impl Fn(&str, &str, &Value) -> bool + Send + Sync + 'static,
    ) {
        self.shared.change(|state| state.condition = Arc::new(decide));
    }

    /// Answers requests through the proxy subresource of pods: from the pod, the port and the path
    /// to status and body.
    pub fn answer_for_pods(
        &self,
        answer: impl Fn(&Value, u16, &str) -> (u16, String) + Send + Sync + 'static,
    ) {
        self.shared.change(|state| state.pod_proxy = Arc::new(answer));
    }

    /// Sends port-forwards to a pod's port to this address; without it nobody listens there.
    pub fn route_pod(&self, namespace: &str, pod: &str, port: u16, to: SocketAddr) {
        let place = (namespace.to_owned(), pod.to_owned(), port);
        self.shared.change(|state| state.pod_ports.insert(place, to));
    }

    /// What the log of a pod says.
    pub fn set_log(&self, namespace: &str, pod: &str, text: &str) {
        let place = (namespace.to_owned(), pod.to_owned());
        self.shared.change(|state| state.logs.insert(place, text.to_owned()));
    }

    /// The requests that webhooks got so far: the webhook's name and the review's `request`.
    #[must_use]
    pub fn admissions(&self) -> Vec<(String, Value)> {
        self.shared.state.lock().admissions.iter().cloned().collect()
    }
}

fn known(plural: &str) -> &'static Kind {
    kinds::plural(plural).unwrap_or_else(|| panic!("not a known kind: {plural}"))
}

fn id(kind: &'static Kind, namespace: &str, name: &str) -> Id {
    let namespace = if kind.namespaced { namespace.to_owned() } else { String::new() };
    Id { kind, namespace, name: name.to_owned() }
}
