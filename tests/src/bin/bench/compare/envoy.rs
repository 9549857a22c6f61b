//! A pair of Envoys with our pair's job: redirected listeners, three endpoints per Service port,
//! mTLS with SPIFFE identities, HTTP/1.1 and HTTP/2 as HTTP with retries of what failed to connect,
//! the rest as bytes.

use std::{fs, path::Path};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

use super::pods::{INBOUND_PORT, OUTBOUND_PORT, SERVERS, SERVICE};
use crate::backend::ports;

const TYPES: &str = "type.googleapis.com/envoy.extensions";
const PORTS: [u16; 4] = [ports::HTTP1, ports::HTTP2, ports::ECHO, ports::BULK];
/// Envoy's own limits are meant for edges; a sidecar's are lifted.
const UNLIMITED: u32 = u32::MAX;

/// Writes both configurations and their certificates.
pub(crate) fn write(dir: &Path) -> anyhow::Result<()> {
    certificates(dir).context("cannot make Envoy's certificates")?;
    fs::write(dir.join("envoy-client.json"), client(dir).to_string())?;
    fs::write(dir.join("envoy-server.json"), server(dir).to_string())?;
    Ok(())
}

/// The command line of one of them.
pub(crate) fn command(envoy: &Path, dir: &Path, side: &str) -> Vec<String> {
    let config = dir.join(format!("envoy-{side}.json"));
    let words = ["--disable-hot-restart", "--concurrency", "1", "-l", "error", "-c"];
    std::iter::once(envoy.to_string_lossy().into_owned())
        .chain(words.map(str::to_owned))
        .chain([config.to_string_lossy().into_owned()])
        .collect()
}

fn certificates(dir: &Path) -> anyhow::Result<()> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "bench CA");
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    fs::write(dir.join("ca.pem"), ca.pem())?;
    for side in ["client", "server"] {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::CommonName, side);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.subject_alt_names = vec![SanType::URI(spiffe(side).try_into()?)];
        fs::write(dir.join(format!("{side}.pem")), leaf.signed_by(&key, &ca)?.pem())?;
        fs::write(dir.join(format!("{side}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn spiffe(side: &str) -> String {
    format!("spiffe://cluster.local/ns/bench/sa/{side}")
}

fn client(dir: &Path) -> Value {
    let mut listeners = vec![json!({
        "name": "redirected", "address": address("0.0.0.0", OUTBOUND_PORT), "use_original_dst": true,
        "filter_chains": [{"filters": [tcp_proxy("pass-through")]}],
    })];
    listeners.extend(PORTS.map(|port| {
        json!({
            "name": format!("service-{port}"), "address": address(&SERVICE.to_string(), port),
            "bind_to_port": false, "filter_chains": [{"filters": [filter(port, true)]}],
        })
    }));
    let mut clusters = vec![json!({
        "name": "pass-through", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
    })];
    clusters.extend(PORTS.map(|port| {
        // HTTP/2 between the pair for both: it costs Envoy less than HTTP/1.1 does.
        let mut cluster = cluster(port, SERVERS.map(|ip| ip.to_string()).as_slice(), true);
        let tls = json!({
            "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
            "common_tls_context": tls_context(dir, "client", port, json!({"exact": spiffe("server")})),
        });
        cluster["transport_socket"] = json!({"name": "tls", "typed_config": tls});
        cluster
    }));
    bootstrap("client", listeners, clusters)
}

fn server(dir: &Path) -> Value {
    let chains = PORTS.map(|port| {
        let tls = json!({
            "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context":
                tls_context(dir, "server", port, json!({"prefix": "spiffe://cluster.local/"})),
        });
        json!({
            "filter_chain_match": {"destination_port": port, "transport_protocol": "tls"},
            "transport_socket": {"name": "tls", "typed_config": tls},
            "filters": [filter(port, false)],
        })
    });
    let listener_filter = |name: &str, message: &str| {
        let typed = format!("{TYPES}.filters.listener.{name}.v3.{message}");
        json!({"name": name, "typed_config": {"@type": typed}})
    };
    let listener = json!({
        "name": "redirected", "address": address("0.0.0.0", INBOUND_PORT),
        "listener_filters": [
            listener_filter("original_dst", "OriginalDst"),
            listener_filter("tls_inspector", "TlsInspector"),
        ],
        "filter_chains": chains,
    });
    let clusters = PORTS.map(|port| cluster(port, &["127.0.0.1".to_owned()], port == ports::HTTP2));
    bootstrap("server", vec![listener], clusters.to_vec())
}

fn bootstrap(id: &str, listeners: Vec<Value>, clusters: Vec<Value>) -> Value {
    json!({
        "node": {"id": id, "cluster": "bench"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

fn is_http(port: u16) -> bool {
    port == ports::HTTP1 || port == ports::HTTP2
}

fn filter(port: u16, retries: bool) -> Value {
    let cluster = format!("app-{port}");
    if !is_http(port) {
        return tcp_proxy(&cluster);
    }
    let mut route = json!({"cluster": cluster, "timeout": "0s"});
    if retries {
        route["retry_policy"] =
            json!({"retry_on": "connect-failure,refused-stream", "num_retries": 2});
    }
    let router = json!({"@type": format!("{TYPES}.filters.http.router.v3.Router")});
    let hosts = json!([{
        "name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}],
    }]);
    json!({"name": "http", "typed_config": {
        "@type":
            format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": cluster,
        "stream_idle_timeout": "0s",
        "http_filters": [{"name": "router", "typed_config": router}],
        "route_config": {"name": cluster, "virtual_hosts": hosts},
    }})
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({"name": "tcp", "typed_config": {
        "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": cluster, "cluster": cluster,
    }})
}

fn cluster(port: u16, ips: &[String], http2: bool) -> Value {
    let name = format!("app-{port}");
    let endpoints: Vec<_> =
        ips.iter().map(|ip| json!({"endpoint": {"address": address(ip, port)}})).collect();
    let mut cluster = json!({
        "name": name, "type": "STATIC", "lb_policy": "LEAST_REQUEST", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": UNLIMITED, "max_pending_requests": UNLIMITED,
            "max_requests": UNLIMITED, "max_retries": UNLIMITED,
        }]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    });
    if is_http(port) {
        let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": {protocol: {}},
        }});
    }
    cluster
}

fn tls_context(dir: &Path, side: &str, port: u16, peer: Value) -> Value {
    let file = |name: String| json!({"filename": dir.join(name)});
    let alpn = match port {
        ports::HTTP1 | ports::HTTP2 => "h2",
        _ => "bench-tcp",
    };
    json!({
        "alpn_protocols": [alpn],
        "tls_params":
            {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": file(format!("{side}.pem")),
            "private_key": file(format!("{side}.key")),
        }],
        "validation_context": {
            "trusted_ca": file("ca.pem".to_owned()),
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": peer}],
        },
    })
}
