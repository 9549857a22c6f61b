//! Which namespaces have sidecars or will: those that the leader writes the trust bundle into.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use remora_core::names::annotations;

use crate::source::{Annotations, Event, Key, Kind, Object};

/// Namespaces that opted in or have a pod that did or that has a sidecar.
#[derive(Debug, Default)]
pub(super) struct Sidecars {
    opted_in: BTreeSet<Arc<str>>,
    /// Names of the pods, by namespace; no namespace without one.
    pods: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl Sidecars {
    /// Follows a batch of events; whether the namespaces may be others now.
    pub(super) fn apply(&mut self, events: &[Event]) -> bool {
        let mut changed = false;
        for event in events {
            changed |= match event {
                Event::Apply(object) => self.put(object),
                Event::Delete(key) => self.remove(key),
                Event::Replace(kind, objects) => {
                    match kind {
                        Kind::Namespace => self.opted_in.clear(),
                        Kind::Pod => self.pods.clear(),
                        _ => continue,
                    }
                    self.put_all(objects)
                }
                Event::Reset(objects) => {
                    *self = Self::default();
                    self.put_all(objects)
                }
            };
        }
        changed
    }

    /// The namespaces, as they are now.
    pub(super) fn namespaces(&self) -> BTreeSet<Arc<str>> {
        self.opted_in.iter().chain(self.pods.keys()).cloned().collect()
    }

    fn put_all(&mut self, objects: &[Object]) -> bool {
        for object in objects {
            self.put(object);
        }
        true
    }

    fn put(&mut self, object: &Object) -> bool {
        match object {
            Object::Namespace(namespace) => {
                let name = &namespace.meta.name.name;
                if is_enabled(&namespace.meta.annotations) {
                    self.opted_in.insert(Arc::clone(name))
                } else {
                    self.opted_in.remove(name)
                }
            }
            Object::Pod(pod) => {
                let name = &pod.meta.name;
                if pod.sidecar || is_enabled(&pod.meta.annotations) {
                    let pods = self.pods.entry(Arc::clone(&name.namespace)).or_default();
                    pods.insert(Arc::clone(&name.name));
                    pods.len() == 1
                } else {
                    self.remove_pod(&name.namespace, &name.name)
                }
            }
            _ => false,
        }
    }

    fn remove(&mut self, key: &Key) -> bool {
        match key.kind {
            Kind::Namespace => self.opted_in.remove(key.name.as_str()),
            Kind::Pod => self.remove_pod(&key.namespace, &key.name),
            _ => false,
        }
    }

    fn remove_pod(&mut self, namespace: &str, name: &str) -> bool {
        let Some(pods) = self.pods.get_mut(namespace) else { return false };
        pods.remove(name);
        if pods.is_empty() {
            self.pods.remove(namespace);
            return true;
        }
        false
    }
}

fn is_enabled(all: &Annotations) -> bool {
    all.find(annotations::INJECT) == Some("enabled")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    fn meta(namespace: &str, name: &str, inject: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            name: Some(name.to_owned()),
            annotations: inject
                .map(|word| BTreeMap::from([(annotations::INJECT.to_owned(), word.to_owned())])),
            ..ObjectMeta::default()
        }
    }

    fn namespace(name: &str, inject: Option<&str>) -> Object {
        Object::Namespace(Arc::new((&meta("", name, inject)).into()))
    }

    fn pod(namespace: &str, name: &str, inject: Option<&str>) -> Object {
        let pod = core::Pod { metadata: meta(namespace, name, inject), ..core::Pod::default() };
        Object::Pod(Arc::new(crate::source::Pod::running(&pod)))
    }

    fn names(sidecars: &Sidecars) -> Vec<String> {
        sidecars.namespaces().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_namespace_counts_while_it_or_one_of_its_pods_opts_in() {
        let mut sidecars = Sidecars::default();
        sidecars.apply(&[
            Event::Apply(namespace("shop", Some("enabled"))),
            Event::Apply(namespace("plain", None)),
            Event::Apply(namespace("pods", Some("disabled"))),
            Event::Apply(pod("pods", "a", Some("enabled"))),
            Event::Apply(pod("plain", "b", None)),
        ]);
        assert_eq!(names(&sidecars), ["pods", "shop"]);
        sidecars.apply(&[
            Event::Apply(namespace("shop", None)),
            Event::Delete(pod("pods", "a", None).key()),
        ]);
        assert_eq!(names(&sidecars), [""; 0]);
    }

    #[test]
    fn a_new_list_of_a_kind_replaces_what_that_kind_said() {
        let mut sidecars = Sidecars::default();
        sidecars.apply(&[
            Event::Apply(namespace("old", Some("enabled"))),
            Event::Apply(pod("kept", "a", Some("enabled"))),
        ]);
        sidecars.apply(&[Event::Replace(Kind::Namespace, vec![namespace("new", Some("enabled"))])]);
        assert_eq!(names(&sidecars), ["kept", "new"]);
        sidecars.apply(&[Event::Replace(Kind::Pod, vec![])]);
        assert_eq!(names(&sidecars), ["new"]);
    }
}
