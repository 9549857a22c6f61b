//! The cluster's DNS, on the node's address: Services, their ports, and the pods behind headless
//! ones (the records that Kubernetes' DNS specification names). Only the cluster's own domain is
//! known; the pods have no other network, so anything else is refused.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, SRV},
    },
};
use parking_lot::RwLock;
use remora_core::names::CLUSTER_DOMAIN;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::services::{Backend, Table};

/// Seconds an answer may be kept: short, because pods come and go.
const TTL: u32 = 5;
/// Longest answer over UDP for askers without EDNS (RFC 1035 §4.2.1).
const PLAIN_UDP: u16 = 512;
/// Longest answer over UDP that we send at all.
const LARGEST_UDP: u16 = 4096;
/// Aliases of aliases that are followed.
const MAX_ALIASES: usize = 8;
/// Open TCP connections at a time.
const CONNECTIONS: usize = 256;
/// A TCP asker that says nothing for this long is let go.
const IDLE: Duration = Duration::from_secs(10);

/// All names and their records; replaced as a whole when anything changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    names: BTreeMap<String, Records>,
}

/// The zone in force.
pub type Shared = Arc<RwLock<Arc<Zone>>>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Records {
    addresses: Vec<Ipv4Addr>,
    ports: Vec<(u16, String)>,
    alias: Option<String>,
}

impl Zone {
    /// The zone of a set of Services.
    #[must_use]
    pub fn of(table: &Table) -> Self {
        let mut zone = Self::default();
        for service in &table.services {
            let (namespace, name) = &service.key;
            let base = format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}");
            if let Some(target) = &service.external_name {
                zone.name(&base).alias = Some(target.trim_end_matches('.').to_owned());
                continue;
            }
            match service.cluster_ip {
                Some(ip) => zone.name(&base).addresses.push(ip),
                // Headless: a name without ready pods still exists.
                None => zone.headless(&base, service.ready()),
            }
            for port in &service.ports {
                let Some(port_name) = &port.name else { continue };
                let protocol = port.protocol.to_ascii_lowercase();
                let srv = format!("_{port_name}._{protocol}.{base}");
                zone.name(&srv);
                if service.cluster_ip.is_some() {
                    zone.name(&srv).ports.push((port.port, base.clone()));
                    continue;
                }
                for pod in service.ready() {
                    if let Some(target) = pod.target(port) {
                        zone.name(&srv).ports.push((target, pod_name(pod, &base)));
                    }
                }
            }
        }
        zone
    }

    fn headless<'a>(&mut self, base: &str, pods: impl Iterator<Item = &'a Backend>) {
        self.name(base);
        for pod in pods {
            self.name(base).addresses.push(pod.address);
            self.name(&pod_name(pod, base)).addresses.push(pod.address);
        }
    }

    fn name(&mut self, name: &str) -> &mut Records {
        self.names.entry(name.to_ascii_lowercase()).or_default()
    }

    /// Whether some name ends in this one: it exists then, though it has no records (RFC 8020).
    fn has_below(&self, name: &str) -> bool {
        let suffix = format!(".{name}");
        self.names.keys().any(|known| known.ends_with(&suffix))
    }

    /// The answer to a message; `None` where there is nobody to answer.
    #[must_use]
    pub fn answer(&self, request: &[u8]) -> Option<Message> {
        let Ok(request) = Message::from_vec(request) else {
            // The id is all that can be trusted.
            let id = u16::from_be_bytes([*request.first()?, *request.get(1)?]);
            return Some(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
        };
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
        answer.metadata.recursion_desired = request.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_queries(request.queries.iter().cloned());
        if let Some(edns) = &request.edns {
            let mut edns = edns.clone();
            edns.set_max_payload(LARGEST_UDP);
            answer.set_edns(edns);
        }
        let code = match (request.metadata.op_code, request.queries.as_slice()) {
            (OpCode::Query, [query]) => self.resolve(query, &mut answer),
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        answer.metadata.response_code = code;
        Some(answer)
    }

    fn resolve(&self, query: &Query, answer: &mut Message) -> ResponseCode {
        let asked = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        if let Ok(net) = query.name().parse_arpa_name() {
            return self.reverse(query, net.addr(), answer);
        }
        if asked != CLUSTER_DOMAIN && !asked.ends_with(&format!(".{CLUSTER_DOMAIN}")) {
            return ResponseCode::Refused;
        }
        answer.metadata.authoritative = true;
        let Some(mut records) = self.names.get(&asked) else {
            let exists = asked == CLUSTER_DOMAIN || self.has_below(&asked);
            return if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
        };
        let mut name = query.name().clone();
        // Resolvers of applications do not follow aliases themselves. One that leads nowhere here, or
        // on and on, is told as far as it goes.
        for _ in 0..MAX_ALIASES {
            let Some(target) = records.alias.as_ref().and_then(|t| fqdn(t)) else { break };
            answer.add_answer(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
            let known = target.to_ascii().trim_end_matches('.').to_ascii_lowercase();
            let Some(next) = self.names.get(&known) else { return ResponseCode::NoError };
            (name, records) = (target, next);
        }
        let mut add = |data: RData| {
            answer.add_answer(Record::from_rdata(name.clone(), TTL, data));
        };
        match query.query_type() {
            RecordType::A => records.addresses.iter().for_each(|ip| add(RData::A(A(*ip)))),
            RecordType::SRV => {
                for (port, target) in &records.ports {
                    if let Some(target) = fqdn(target) {
                        add(RData::SRV(SRV::new(0, 100, *port, target)));
                    }
                }
            }
            // The name exists, without records of that type.
            _ => {}
        }
        ResponseCode::NoError
    }

    fn reverse(&self, query: &Query, address: IpAddr, answer: &mut Message) -> ResponseCode {
        let IpAddr::V4(address) = address else { return ResponseCode::Refused };
        let mut names = self.names.iter().filter(|(_, r)| r.addresses.contains(&address));
        // A headless Service shares its pods' addresses; the longest name is the pod's own.
        let Some((name, _)) = names.by_ref().max_by_key(|(name, _)| name.len()) else {
            let ours = address.octets()[0] == 10;
            return if ours { ResponseCode::NXDomain } else { ResponseCode::Refused };
        };
        if let (RecordType::PTR, Some(target)) = (query.query_type(), fqdn(name)) {
            let data = RData::PTR(hickory_proto::rr::rdata::PTR(target));
            answer.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
        }
        ResponseCode::NoError
    }
}

/// Serves until the process ends. Whatever is asked, it goes on.
pub async fn serve(udp: UdpSocket, tcp: TcpListener, zone: Shared) {
    tokio::join!(serve_udp(&udp, &zone), serve_tcp(tcp, &zone));
}

async fn serve_udp(socket: &UdpSocket, zone: &Shared) {
    let mut buffer = [0; LARGEST_UDP as usize];
    loop {
        // An error here is an earlier answer's asker having gone.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let current = zone.read().clone();
        let Some(answer) = current.answer(&buffer[..length]) else { continue };
        if let Some(bytes) = for_udp(&answer) {
            let _ = socket.send_to(&bytes, peer).await;
        }
    }
}

/// Too long an answer is cut, and the asker told to come by TCP.
fn for_udp(answer: &Message) -> Option<Vec<u8>> {
    let limit = answer.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().min(LARGEST_UDP));
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    let mut cut = answer.truncate();
    cut.answers.clear();
    cut.to_vec().ok()
}

async fn serve_tcp(listener: TcpListener, zone: &Shared) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let zone = zone.clone();
                tokio::spawn(async move {
                    // A broken connection concerns its asker alone.
                    let _ = connection(stream, &zone).await;
                    drop(permit);
                });
            }
            // Out of descriptors: wait for others to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(mut stream: TcpStream, zone: &Shared) -> std::io::Result<()> {
    let mut request = Vec::new();
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        request.resize(usize::from(length), 0);
        timeout(IDLE, stream.read_exact(&mut request)).await??;
        let current = zone.read().clone();
        let Some(answer) = current.answer(&request) else { return Ok(()) };
        let Ok(bytes) = answer.to_vec() else { return Ok(()) };
        let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
        timeout(IDLE, async {
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(&bytes).await
        })
        .await??;
    }
}

/// `web-0.web.shop.svc…` with a host name, else `10-244-0-7.web.shop.svc…`.
fn pod_name(pod: &Backend, base: &str) -> String {
    let label = pod.hostname.clone();
    let label = label.unwrap_or_else(|| pod.address.to_string().replace('.', "-"));
    format!("{label}.{base}")
}

fn fqdn(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    fn zone() -> Zone {
        let service = |object, ip: Option<[u8; 4]>, pods: &[u8]| {
            let object: Service = serde_json::from_value(object).unwrap();
            let mut entry = super::super::services::Entry::new(&object, ip.map(Into::into));
            entry.backends = pods
                .iter()
                .map(|last| Backend {
                    address: Ipv4Addr::new(10, 244, 0, *last),
                    hostname: (*last == 3).then(|| "three".into()),
                    ready: true,
                    terminating: false,
                    named_ports: BTreeMap::from([("web".into(), 8080)]),
                })
                .collect();
            entry
        };
        let meta = |name: &str| json!({"name": name, "namespace": "shop"});
        let ports = json!([{"name": "http", "port": 80, "targetPort": "web"}]);
        let orders = json!({"metadata": meta("orders"), "spec": {"ports": ports}});
        let each = json!({"metadata": meta("each"), "spec": {"clusterIP": "None", "ports": ports}});
        let away = json!({"metadata": meta("away"),
            "spec": {"type": "ExternalName", "externalName": "orders.shop.svc.cluster.local"}});
        Zone::of(&Table {
            services: vec![
                service(orders, Some([10, 96, 0, 7]), &[2, 3]),
                service(each, None, &[2, 3]),
                service(away, None, &[]),
            ],
        })
    }

    fn ask(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let answer = zone().answer(&request.to_vec().unwrap()).unwrap();
        assert_eq!(answer.metadata.id, request.metadata.id);
        let records = answer.answers.iter().map(|record| record.data.to_string()).collect();
        (answer.metadata.response_code, records)
    }

    #[test]
    fn services_and_the_pods_behind_headless_ones_have_names() {
        let one = |text: &str| (ResponseCode::NoError, vec![text.to_owned()]);
        assert_eq!(ask("orders.shop.svc.cluster.local.", RecordType::A), one("10.96.0.7"));
        assert_eq!(ask("ORDERS.shop.svc.Cluster.local.", RecordType::A), one("10.96.0.7"));
        let (_, each) = ask("each.shop.svc.cluster.local.", RecordType::A);
        assert_eq!(each, ["10.244.0.2", "10.244.0.3"]);
        assert_eq!(ask("three.each.shop.svc.cluster.local.", RecordType::A), one("10.244.0.3"));
        assert_eq!(
            ask("10-244-0-2.each.shop.svc.cluster.local.", RecordType::A),
            one("10.244.0.2")
        );
        let srv = one("0 100 80 orders.shop.svc.cluster.local.");
        assert_eq!(ask("_http._tcp.orders.shop.svc.cluster.local.", RecordType::SRV), srv);
        let (_, srv) = ask("_http._tcp.each.shop.svc.cluster.local.", RecordType::SRV);
        assert!(srv[1].starts_with("0 100 8080 three.each."), "{srv:?}");
        let (_, alias) = ask("away.shop.svc.cluster.local.", RecordType::A);
        assert_eq!(alias, ["orders.shop.svc.cluster.local.", "10.96.0.7"]);
        let pointer = one("orders.shop.svc.cluster.local.");
        assert_eq!(ask("7.0.96.10.in-addr.arpa.", RecordType::PTR), pointer);
    }

    #[test]
    fn no_such_type_is_not_no_such_name_and_foreign_names_are_refused() {
        let none = |code| (code, Vec::new());
        let aaaa = ask("orders.shop.svc.cluster.local.", RecordType::AAAA);
        assert_eq!(aaaa, none(ResponseCode::NoError));
        let above = ask("shop.svc.cluster.local.", RecordType::A);
        assert_eq!(above, none(ResponseCode::NoError));
        let unknown = ask("nobody.shop.svc.cluster.local.", RecordType::A);
        assert_eq!(unknown, none(ResponseCode::NXDomain));
        assert_eq!(ask("example.com.", RecordType::A), none(ResponseCode::Refused));
        assert_eq!(ask("xcluster.local.", RecordType::A), none(ResponseCode::Refused));
    }

    #[test]
    fn malformed_messages_are_answered_or_dropped() {
        let zone = zone();
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii("a.b.").unwrap(), RecordType::A));
        let good = request.to_vec().unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        for length in 0..good.len() {
            let answer = zone.answer(&good[..length]);
            assert_eq!(answer.is_some(), length >= 2, "{length}");
        }
        for _ in 0..10_000 {
            let mut bytes = good.clone();
            for _ in 0..rng.usize(1..6) {
                let at = rng.usize(0..bytes.len());
                bytes[at] = rng.u8(..);
            }
            if let Some(answer) = zone.answer(&bytes) {
                assert!(for_udp(&answer).is_none_or(|b| b.len() <= usize::from(LARGEST_UDP)));
            }
        }
    }
}
