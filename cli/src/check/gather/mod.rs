//! Reads the cluster. Nothing here judges, and nothing that cannot be read ends it.

mod mesh;
mod system;
mod trial;

pub(super) use mesh::SAMPLE;
pub(super) use system::is_ready;

use futures_util::future::join_all;
use remora_core::names::{LINT_CONFIGURATION, SYSTEM_NAMESPACE, WEBHOOK_CONFIGURATION};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    Args,
    api::{Listed, Read, Reader, Unread},
    connect::Cluster,
    facts::{Before, Facts, Node, Stage},
    permissions::{self, Permission},
    reduce,
};

/// Nodes that are looked at.
const MAX_NODES: usize = 5000;

/// Reads what counts before the install, or after it where our namespace is there.
pub(crate) async fn facts(reader: &Reader, cluster: &Cluster, args: &Args) -> Facts {
    let version = reader.get_timed("/version", "get /version").await;
    let (version, clock) = match version {
        Ok((version, clock)) => (Ok(version), clock),
        Err(why) => (Err(why), None),
    };
    let namespace = match &version {
        Ok(_) => {
            reader.get(&format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}"), "get namespaces").await
        }
        Err(_) => Err(Unread::Absent),
    };
    let stage = match (&version, namespace) {
        (Err(_), _) => Stage::Unreachable,
        (Ok(_), namespace) if args.pre || namespace == Err(Unread::Absent) => {
            let (nodes, may_install, webhook) =
                tokio::join!(nodes(reader), may_install(reader), webhook(reader));
            Stage::Before(Box::new(Before {
                asked: args.pre,
                nodes,
                may_install,
                namespace,
                webhook,
            }))
        }
        (Ok(_), namespace) => Stage::After(Box::new(system::after(reader, args, namespace).await)),
    };
    Facts {
        context: cluster.context.clone(),
        url: cluster.url.clone(),
        version,
        now: clock.map_or_else(|| reader.local_now(), |clock| clock.now),
        clock,
        stage,
    }
}

async fn nodes(reader: &Reader) -> Read<Listed<Node>> {
    reader.list("/api/v1/nodes", "list nodes", MAX_NODES, |node| Some(reduce::node(node))).await
}

async fn webhook<T: DeserializeOwned>(reader: &Reader) -> Read<T> {
    configuration(reader, "mutatingwebhookconfigurations", WEBHOOK_CONFIGURATION).await
}

async fn lint_webhook<T: DeserializeOwned>(reader: &Reader) -> Read<T> {
    configuration(reader, "validatingwebhookconfigurations", LINT_CONFIGURATION).await
}

async fn configuration<T: DeserializeOwned>(reader: &Reader, kind: &str, name: &str) -> Read<T> {
    let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}/{name}");
    reader.get(&path, &format!("get {kind}")).await
}

async fn may_install(reader: &Reader) -> Vec<(Permission, Read<bool>)> {
    let review = |permission: Permission| {
        json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": { "resourceAttributes": permission.attributes() } })
    };
    reviews(reader, "selfsubjectaccessreviews", permissions::install(), review).await
}

/// Whether one of our ServiceAccounts may do what it needs.
async fn account_may(
    reader: &Reader,
    account: &str,
    needed: Vec<Permission>,
) -> Vec<(Permission, Read<bool>)> {
    let review = |permission: Permission| {
        json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": { "user": format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{account}"),
                          "groups": ["system:serviceaccounts",
                                     format!("system:serviceaccounts:{SYSTEM_NAMESPACE}"),
                                     "system:authenticated"],
                          "resourceAttributes": permission.attributes() } })
    };
    reviews(reader, "subjectaccessreviews", needed, review).await
}

async fn reviews(
    reader: &Reader,
    kind: &str,
    permissions: Vec<Permission>,
    review: impl Fn(Permission) -> Value,
) -> Vec<(Permission, Read<bool>)> {
    let path = format!("/apis/authorization.k8s.io/v1/{kind}");
    let need = format!("create {kind}.authorization.k8s.io");
    let asked = permissions.into_iter().map(|permission| {
        let (path, need, review) = (&path, &need, review(permission));
        async move {
            let answer: Read<Value> = reader.post(path, &review, need).await;
            (permission, answer.map(|answer| answer["status"]["allowed"] == json!(true)))
        }
    });
    join_all(asked).await
}
