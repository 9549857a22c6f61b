//! Which mesh is meant, and whose proxies.

use std::path::PathBuf;

use super::error::Error;
use crate::check::{self, connect};

/// Which mesh to ask, and which of its proxies.
///
/// Without any of these: all proxies of the mesh that runs on this machine, else of the cluster that
/// kubectl would talk to.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Which proxies")]
pub struct Place {
    /// Ask the proxies of this namespace only
    #[arg(long, short, value_name = "NS", value_parser = check::namespace)]
    pub(crate) namespace: Option<String>,
    /// Ask the proxy of this pod only
    #[arg(long, value_name = "[NS/]POD", value_parser = pod)]
    pub(crate) pod: Option<Pod>,
    /// Which mesh of `remora up`; without it the one named default, else the only one
    #[arg(long, conflicts_with_all = ["kubernetes", "kubeconfig", "context"])]
    pub(crate) name: Option<String>,
    /// Ask the cluster, even where a mesh runs on this machine
    #[arg(long, short)]
    pub(crate) kubernetes: bool,
    /// Kubeconfig to use, instead of $KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig, instead of its current one
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// A pod, with its namespace where that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    namespace: Option<String>,
    name: String,
}

impl Place {
    /// Whether only a cluster can be meant.
    pub(super) fn asks_for_kubernetes(&self) -> bool {
        self.kubernetes || self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Namespace and name of the pods that are meant; `None` is all.
    pub(super) fn wanted(&self) -> (Option<&str>, Option<&str>) {
        let pod = self.pod.as_ref();
        let of_pod = pod.and_then(|pod| pod.namespace.as_deref());
        (of_pod.or(self.namespace.as_deref()), pod.map(|pod| pod.name.as_str()))
    }

    /// The same mesh, and all its proxies.
    pub(super) fn everywhere(&self) -> Self {
        Self { namespace: None, pod: None, ..self.clone() }
    }

    /// Why no cluster can be asked.
    pub(super) fn no_cluster(&self, source: connect::Error) -> Error {
        Error::NoCluster { source, asked: self.asks_for_kubernetes() }
    }

    /// What is looked for, in words: `namespace shop`, `pod shop/web`; empty where all are meant.
    pub(super) fn described(&self) -> String {
        match self.wanted() {
            (None, None) => String::new(),
            (Some(namespace), None) => format!(" in namespace {namespace}"),
            (None, Some(pod)) => format!(" in a pod {pod}"),
            (Some(namespace), Some(pod)) => format!(" in pod {namespace}/{pod}"),
        }
    }
}

fn pod(text: &str) -> Result<Pod, String> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(check::namespace(namespace)?), name),
        None => (None, text),
    };
    // RFC 1123 subdomain, since it becomes part of URLs.
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let fits = (1..=253).contains(&name.len()) && name.bytes().all(inner);
    if fits {
        Ok(Pod { namespace, name: name.to_owned() })
    } else {
        Err(format!("{name:?} is no name of a pod"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_own_namespace_wins() {
        let place = Place {
            namespace: Some("a".to_owned()),
            pod: Some(pod("b/web-0").unwrap()),
            ..Place::default()
        };
        assert_eq!(place.wanted(), (Some("b"), Some("web-0")));
        let place = Place { pod: Some(pod("web-0").unwrap()), ..place };
        assert_eq!(place.wanted(), (Some("a"), Some("web-0")));
        assert!(pod("a/b/c").is_err() && pod("../x").is_err() && pod("").is_err());
    }
}
