//! The one table of fixed names: annotations, labels, environment variables, ports, defaults.
//!
//! Other people's manifests, dashboards and scripts rely on these; they change with a major
//! version only.

/// Namespace the control plane lives in.
pub const SYSTEM_NAMESPACE: &str = "remora-system";
/// ServiceAccount of the control plane; with [`SYSTEM_NAMESPACE`] its SPIFFE id.
pub const CONTROL_PLANE_SERVICE_ACCOUNT: &str = "remora-control-plane";
/// ServiceAccount of the injector.
pub const INJECTOR_SERVICE_ACCOUNT: &str = "remora-injector";
/// Default trust domain of SPIFFE ids.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Default DNS suffix of the cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Audience of the ServiceAccount tokens that proxies present.
pub const TOKEN_AUDIENCE: &str = "identity.remora.io";
/// Secret (type `kubernetes.io/tls`) that holds the issuer.
pub const ISSUER_SECRET: &str = "remora-identity-issuer";
/// ConfigMap with the roots to trust, in the control plane's namespace and in each that has sidecars.
pub const TRUST_BUNDLE_CONFIG_MAP: &str = "remora-trust-bundle";
/// Key of the roots (PEM) in [`TRUST_BUNDLE_CONFIG_MAP`].
pub const TRUST_BUNDLE_KEY: &str = "ca.crt";
/// Our name in the status of Gateway API routes (`controllerName`).
pub const ROUTE_CONTROLLER: &str = "remora.io/mesh-controller";
/// Lease of the control-plane replica that writes what must be written once.
pub const LEADER_LEASE: &str = "remora-control-plane";
/// Secret (type `kubernetes.io/tls`, with `ca.crt`) of the webhook's serving certificate.
pub const INJECTOR_TLS_SECRET: &str = "remora-injector-tls";
/// Name of the MutatingWebhookConfiguration.
pub const WEBHOOK_CONFIGURATION: &str = "remora-injector";
/// Name of the proxy's container in a pod.
pub const PROXY_CONTAINER: &str = "remora-proxy";
/// HTTP path of the webhook.
pub const WEBHOOK_PATH: &str = "/mutate";
/// Name of the ValidatingWebhookConfiguration.
pub const LINT_CONFIGURATION: &str = "remora-lint";
/// HTTP path of the control plane's answers at admission.
pub const LINT_PATH: &str = "/lint";

/// Ports and ids.
pub mod ports {
    /// Outbound listener of the proxy.
    pub const OUTBOUND: u16 = 4140;
    /// Inbound listener of the proxy.
    pub const INBOUND: u16 = 4143;
    /// Admin HTTP of the proxy.
    pub const PROXY_ADMIN: u16 = 4191;
    /// gRPC (discovery, identity) of the control plane.
    pub const CONTROL_PLANE: u16 = 8086;
    /// Admin HTTP of the control plane.
    pub const CONTROL_PLANE_ADMIN: u16 = 9990;
    /// Answers of the control plane at admission, HTTPS.
    pub const ADMISSION: u16 = 8444;
    /// Webhook of the injector.
    pub const INJECTOR: u16 = 8443;
    /// The node's agent that writes redirect rules for pods that may not.
    pub const REDIRECT_AGENT: u16 = 4193;
    /// Admin HTTP of the injector.
    pub const INJECTOR_ADMIN: u16 = 9995;
}

/// User id the proxy runs as; its traffic is exempt from redirection.
pub const PROXY_UID: u32 = 2102;
/// Socket mark of the proxy's own connections, where user ids cannot tell them apart
/// (a user namespace that maps only one).
pub const PROXY_MARK: u32 = 0x2102;

/// ALPN tokens of a mesh connection: what is inside, so that the inbound side need not detect.
pub mod alpn {
    /// HTTP/1.1, pooled.
    pub const H1: &[u8] = b"remora/h1";
    /// HTTP/2, gRPC included.
    pub const H2: &[u8] = b"remora/h2";
    /// Bytes.
    pub const TCP: &[u8] = b"remora/tcp";
    /// What every token of ours begins with.
    pub const PREFIX: &[u8] = b"remora/";
}

/// Headers of ours. All that start with [`headers::PREFIX`] are stripped where they come from
/// outside the mesh.
pub mod headers {
    /// What every header of ours begins with.
    pub const PREFIX: &str = "remora-";
    /// Reason of an answer that the proxy made itself.
    pub const PROXY_ERROR: &str = "remora-proxy-error";
    /// SPIFFE id of the caller, set by the inbound proxy.
    pub const CLIENT_ID: &str = "remora-client-id";
    /// `abort` in an answer that a route's fault asked for.
    pub const FAULT: &str = "remora-fault";
    /// `1` in a request of the pod's own application: record what happens to it, and say under which id.
    pub const EXPLAIN: &str = "remora-explain";
    /// Id of the record of a request: in its answer, and on its way to the next proxy.
    pub const DECISION_ID: &str = "remora-decision-id";
    /// Attempt number, 1 for the first, set on retries.
    pub const ATTEMPT: &str = "remora-attempt";
}

/// Pages of the project's documentation that programs point to, by their path in the project's tree.
pub mod docs {
    /// Each reason word has a section of its name: `docs/reasons.md#no-endpoints`.
    pub const REASONS: &str = "docs/reasons.md";
}

/// Annotations and the label that mirrors one of them.
pub mod annotations {
    /// `enabled` or `disabled`, on a namespace or a pod template; the pod wins.
    pub const INJECT: &str = "remora.io/inject";
    /// Set on pods that have a sidecar: the proxy's version.
    pub const INJECTED: &str = "remora.io/proxy-version";
    /// Prefix of the configuration annotations.
    pub const CONFIG_PREFIX: &str = "config.remora.io/";
    /// Prefix of the balancer's annotations on a Service.
    pub const BALANCER_PREFIX: &str = "balancer.remora.io/";
    /// Prefix of the retry annotations on a Service or route.
    pub const RETRY_PREFIX: &str = "retry.remora.io/";
    /// Prefix of the time-out annotations on a Service or route.
    pub const TIMEOUT_PREFIX: &str = "timeout.remora.io/";
    /// Prefix of the annotations on a route that make it fail on purpose.
    pub const FAULT_PREFIX: &str = "fault.remora.io/";

    /// Ports whose inbound connections bypass the proxy: `22,8000-8010`.
    pub const SKIP_INBOUND_PORTS: &str = "config.remora.io/skip-inbound-ports";
    /// Ports whose outbound connections bypass the proxy.
    pub const SKIP_OUTBOUND_PORTS: &str = "config.remora.io/skip-outbound-ports";
    /// Subnets whose traffic bypasses the proxy: `10.0.0.0/8,fd00::/8`.
    pub const SKIP_SUBNETS: &str = "config.remora.io/skip-subnets";
    /// Ports carried as bytes.
    pub const OPAQUE_PORTS: &str = "config.remora.io/opaque-ports";
    /// Log filter of the proxy, `tracing` syntax.
    pub const PROXY_LOG_LEVEL: &str = "config.remora.io/proxy-log-level";
    /// Resource requests and limits of the proxy container.
    pub const PROXY_CPU_REQUEST: &str = "config.remora.io/proxy-cpu-request";
    /// See [`PROXY_CPU_REQUEST`].
    pub const PROXY_CPU_LIMIT: &str = "config.remora.io/proxy-cpu-limit";
    /// See [`PROXY_CPU_REQUEST`].
    pub const PROXY_MEMORY_REQUEST: &str = "config.remora.io/proxy-memory-request";
    /// See [`PROXY_CPU_REQUEST`].
    pub const PROXY_MEMORY_LIMIT: &str = "config.remora.io/proxy-memory-limit";
    /// Time a draining proxy waits for open requests.
    pub const SHUTDOWN_GRACE_PERIOD: &str = "config.remora.io/shutdown-grace-period";
    /// Which requests get a line: `off`, `errors`, `sampled`, `all`.
    pub const ACCESS_LOG: &str = "config.remora.io/access-log";
    /// `text` or `json`.
    pub const ACCESS_LOG_FORMAT: &str = "config.remora.io/access-log-format";
    /// `host:port` of the collector that gets spans, OTLP over gRPC.
    pub const TRACE_COLLECTOR: &str = "config.remora.io/trace-collector";
    /// Share of requests that are traced where their caller does not say: `0.0` to `1.0`.
    pub const TRACE_SAMPLE_RATE: &str = "config.remora.io/trace-sample-rate";
    /// One of the six default policies.
    pub const DEFAULT_INBOUND_POLICY: &str = "config.remora.io/default-inbound-policy";
    /// `allow` or `deny`: whether connections may go to what the mesh does not know.
    pub const DEFAULT_OUTBOUND_POLICY: &str = "config.remora.io/default-outbound-policy";
    /// `enabled` or `disabled`: the pod dials addresses of pods itself and means their Services, as
    /// ingress controllers do.
    pub const INGRESS: &str = "config.remora.io/ingress";
    /// Largest head of a request: `64Ki`.
    pub const MAX_HEADER_SIZE: &str = "config.remora.io/max-header-size";

    /// `enabled`, `disabled` or `auto`: whether the proxy is a native sidecar (an init container that
    /// stays, Kubernetes 1.29) or an ordinary container; `auto` asks the cluster's version.
    pub const NATIVE_SIDECAR: &str = "config.remora.io/native-sidecar";

    /// Every configuration annotation; any other key under [`CONFIG_PREFIX`] is a warning.
    pub const CONFIG: [&str; 19] = [
        SKIP_INBOUND_PORTS,
        SKIP_OUTBOUND_PORTS,
        SKIP_SUBNETS,
        OPAQUE_PORTS,
        PROXY_LOG_LEVEL,
        PROXY_CPU_REQUEST,
        PROXY_CPU_LIMIT,
        PROXY_MEMORY_REQUEST,
        PROXY_MEMORY_LIMIT,
        SHUTDOWN_GRACE_PERIOD,
        ACCESS_LOG,
        ACCESS_LOG_FORMAT,
        TRACE_COLLECTOR,
        TRACE_SAMPLE_RATE,
        DEFAULT_INBOUND_POLICY,
        DEFAULT_OUTBOUND_POLICY,
        INGRESS,
        MAX_HEADER_SIZE,
        NATIVE_SIDECAR,
    ];

    /// Those of them that the control plane reads from pod and namespace for as long as the pod lives:
    /// they are not written on the pod when it is made.
    pub const LIVE: [&str; 2] = [DEFAULT_OUTBOUND_POLICY, INGRESS];
}

/// Labels on our own objects, and on namespaces.
pub mod labels {
    /// Mirrors the namespace's annotation of the same name, for the webhook's namespaceSelector.
    pub const INJECT: &str = super::annotations::INJECT;
    /// `disabled` on a namespace: nothing in it is judged at admission.
    pub const LINT: &str = "remora.io/lint";
    /// `remora` on every object of an installation.
    pub const PART_OF: &str = "app.kubernetes.io/part-of";
    /// `control-plane` or `injector`.
    pub const COMPONENT: &str = "app.kubernetes.io/component";
    /// The value of [`PART_OF`].
    pub const REMORA: &str = "remora";
}

/// Environment variables of the programs; each is also a flag of the same meaning.
pub mod env {
    /// Log filter, `tracing` syntax: `info`, `remora_proxy=debug,warn`.
    pub const LOG: &str = "REMORA_LOG";
    /// `text` or `json`.
    pub const LOG_FORMAT: &str = "REMORA_LOG_FORMAT";
    /// Namespace of the pod that the proxy serves.
    pub const POD_NAMESPACE: &str = "REMORA_POD_NAMESPACE";
    /// Name of the pod that the proxy serves.
    pub const POD_NAME: &str = "REMORA_POD_NAME";
    /// Addresses of the pod, comma-separated.
    pub const POD_IPS: &str = "REMORA_POD_IPS";
    /// Node the pod runs on.
    pub const NODE_NAME: &str = "REMORA_NODE_NAME";
    /// Topology zone of the node.
    pub const ZONE: &str = "REMORA_ZONE";
    /// `host:port` of the control plane's gRPC.
    pub const CONTROL_PLANE: &str = "REMORA_CONTROL_PLANE";
    /// SPIFFE id that the control plane must prove.
    pub const CONTROL_PLANE_ID: &str = "REMORA_CONTROL_PLANE_ID";
    /// File with the roots to trust at start, PEM.
    pub const TRUST_BUNDLE: &str = "REMORA_TRUST_BUNDLE";
    /// File with the workload's token.
    pub const TOKEN_FILE: &str = "REMORA_TOKEN_FILE";
    /// Probes that the proxy answers in the application's stead: a JSON object from the path on the
    /// admin port to the Kubernetes probe handler (`tcpSocket`, `httpGet` or `grpc`).
    pub const PROBES: &str = "REMORA_PROBES";
    /// Which requests get a line: `off`, `errors`, `sampled`, `all`.
    pub const ACCESS_LOG: &str = "REMORA_ACCESS_LOG";
    /// `text` or `json`.
    pub const ACCESS_LOG_FORMAT: &str = "REMORA_ACCESS_LOG_FORMAT";
    /// `host:port` of the collector that gets spans, OTLP over gRPC.
    pub const TRACE_COLLECTOR: &str = "REMORA_TRACE_COLLECTOR";
    /// Share of requests that are traced where their caller does not say: `0.0` to `1.0`.
    pub const TRACE_SAMPLE_RATE: &str = "REMORA_TRACE_SAMPLE_RATE";
    /// Name of the workload that the pod belongs to, `service.name` in spans.
    pub const SERVICE_NAME: &str = "REMORA_SERVICE_NAME";
    /// Largest head of a request: `64Ki`.
    pub const MAX_HEADER_SIZE: &str = "REMORA_MAX_HEADER_SIZE";
}

/// Ports that carry well-known protocols in which the server speaks first or which are not HTTP;
/// opaque unless an annotation says otherwise (the same list that Linkerd's users know).
pub const DEFAULT_OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];
