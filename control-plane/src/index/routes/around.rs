//! What a Service or a route depends on: enough to judge it in an index of its own.

use std::{collections::BTreeMap, sync::Arc};

use super::{in_namespace, parse::Parsed};
use crate::{
    index::{Index, Name, Reference, references},
    source::{
        Key, Object,
        route::{ReferenceGrant, Route},
    },
};

/// Objects, each once.
type Around = BTreeMap<Key, Object>;

impl Index {
    /// The objects that decide, beside a Service or a route itself, what becomes of it: of a Service its
    /// namespace and what its ports speak; of a route its parents, all routes on those, what it refers
    /// to, and who allows that. The object itself is not among them, whether it is known or not. In
    /// proportion to what hangs on the parents.
    #[must_use]
    pub fn around(&self, object: &Object) -> Vec<Object> {
        let mut around = Around::new();
        match object {
            Object::Service(service) => self.around_service(&service.meta.name, &mut around),
            Object::Route(route) => self.around_route(route, &mut around),
            _ => {}
        }
        around.remove(&object.key());
        around.into_values().collect()
    }

    fn around_service(&self, name: &Name, around: &mut Around) {
        if let Some(namespace) = self.namespaces.get(&name.namespace) {
            add(around, Object::Namespace(Arc::clone(&namespace.object)));
        }
        if let Some(service) = self.services.get(name) {
            add(around, Object::Service(Arc::clone(&service.object)));
        }
        // Pods may say that a port is opaque.
        for slice in self.slices_of.of(name).filter_map(|slice| self.slices.get(slice)) {
            add(around, Object::EndpointSlice(Arc::clone(slice)));
            for reference in references(slice) {
                let Reference::Pod(pod) = reference else { continue };
                if let Some(pod) = self.pods.get(&pod) {
                    add(around, Object::Pod(Arc::clone(&pod.object)));
                }
            }
        }
    }

    fn around_route(&self, route: &Arc<Route>, around: &mut Around) {
        let parsed = Parsed::parse(route, None, &mut Vec::new());
        for parent in parsed.services() {
            self.around_service(&parent, around);
            for other in self.routes_on(&parent) {
                add(around, Object::Route(Arc::clone(&other.object)));
            }
        }
        for to in parsed.references() {
            if let Some(service) = self.services.get(&to.name) {
                add(around, Object::Service(Arc::clone(&service.object)));
            }
            let grants = in_namespace(&self.routes.grants, &to.name.namespace);
            grants.for_each(|(_, grant): (_, &Arc<ReferenceGrant>)| {
                add(around, Object::ReferenceGrant(Arc::clone(grant)));
            });
        }
    }
}

fn add(around: &mut Around, object: Object) {
    around.insert(object.key(), object);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::index::routes::tests::{index, on_cart, service, to};

    fn names(index: &Index, kind: &str, route: &Value) -> Vec<String> {
        let route = Route::http(&serde_json::from_value(route.clone()).unwrap());
        let around = index.around(&Object::Route(Arc::new(route))).into_iter();
        around.map(|object| object.key().to_string()).filter(|key| key.starts_with(kind)).collect()
    }

    #[test]
    fn what_decides_about_a_route_is_around_it_and_nothing_else() {
        let rules = json!([{"backendRefs": [to("next"), {"name": "stock", "namespace": "bank", "port": 80}]}]);
        let route = on_cart("HTTPRoute", "shop", "r", rules);
        let mut elsewhere = on_cart("HTTPRoute", "shop", "elsewhere", json!([]));
        elsewhere["spec"]["parentRefs"][0]["name"] = json!("other");
        let grant = |namespace: &str| {
            json!({"kind": "ReferenceGrant", "metadata": {"namespace": namespace, "name": "g"},
                "spec": {"from": [], "to": []}})
        };
        let index = index(&[
            service("shop", "cart"),
            service("shop", "next"),
            service("shop", "other"),
            service("bank", "stock"),
            route.clone(),
            on_cart("GRPCRoute", "shop", "beside", json!([])),
            on_cart("HTTPRoute", "web", "consumer", json!([])),
            elsewhere,
            grant("bank"),
            grant("web"),
        ]);
        let around = |kind| names(&index, kind, &route);
        assert_eq!(
            around("Service"),
            ["Service bank/stock", "Service shop/cart", "Service shop/next"]
        );
        assert_eq!(around("HTTPRoute"), ["HTTPRoute web/consumer"], "itself is not");
        assert_eq!(around("GRPCRoute"), ["GRPCRoute shop/beside"]);
        assert_eq!(around("ReferenceGrant"), ["ReferenceGrant bank/g"]);
    }
}
