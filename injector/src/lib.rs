//! Whether a pod gets a sidecar, and the pod with it: pure functions that the webhook, the command
//! line and the local cluster share.
//!
//! [`decide()`] reads the annotations of pod and namespace and answers [`Decision::Inject`] with a
//! plan, or why not; [`patch`] and [`inject()`] carry the plan out; [`inject_stream`] does both for
//! every object of a YAML text.

pub mod cli;
pub mod decide;
pub mod inject;
mod pod;
pub mod proxy_settings;
pub mod stream;
pub mod webhook;

pub use decide::{
    Decision, Form, NamespaceInfo, Plan, ProxiedProbe, Refusal, Scope, Settings, SkipReason, decide,
};
pub use inject::{inject, patch};
pub use pod::{Owner, owner};
pub use proxy_settings::{AccessLog, NativeSidecar, ProxySettings, Resources};
pub use stream::{InjectedStream, StreamError, inject_stream};
