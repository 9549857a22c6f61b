//! Published ports: a listener on the host's loopback whose connections are carried into the
//! stage by a Unix socket in the state directory, which both sides see.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

use k8s_openapi::api::core::v1::Service;
use remora_core::names::ports;

use super::{
    cluster::Cluster,
    error::{Doing, Error},
    net::NODE,
    services::{Entry, Port, Table},
};

/// Time for the target to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest target, with its length in front: `service.namespace:port`.
const TARGET: u8 = 200;
/// In the place of a target: the control plane's admin endpoint. No Service's target is without a port.
const DASHBOARD: &str = "dashboard";

/// `127.0.0.1:8080=web.shop:80`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where to listen on the host.
    pub listen: SocketAddr,
    /// Where connections go.
    pub target: Target,
}

/// Service, namespace and port's number or name.
pub type Target = (String, String, String);

impl FromStr for Publish {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |problem: &str| Error::Publish { text: text.into(), problem: problem.into() };
        let (listen, target) = text.split_once('=').ok_or_else(|| fail("there is no `=`"))?;
        let listen: SocketAddr =
            listen.parse().map_err(|_| fail("the left side is no address and port"))?;
        if text.len() > usize::from(TARGET) {
            return Err(fail("it is too long"));
        }
        Ok(Self {
            listen,
            target: parse(target)
                .ok_or_else(|| fail("the right side is no service.namespace:port"))?,
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (service, namespace, port) = &self.target;
        write!(f, "{}={service}.{namespace}:{port}", self.listen)
    }
}

impl Publish {
    /// Checks that there is such a Service with such a port.
    ///
    /// # Errors
    /// Names what is not there, and what is.
    pub fn check(&self, services: &[Service]) -> Result<(), Error> {
        let entries = services.iter().map(|service| Entry::new(service, None)).collect();
        let table = Table { services: entries };
        let missing = target(&table, &self.target).err();
        missing.map_or(Ok(()), |Missing { problem, known }| {
            Err(Error::NoTarget { publish: self.to_string(), problem, known })
        })
    }
}

/// Listens on the host. Call it before the stage begins, so that a port in use is said at once.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn listen(publish: &Publish) -> Result<TcpListener, Error> {
    let address = publish.listen;
    TcpListener::bind(address).await.map_err(|error| {
        let problem = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "the port is in use; end the other program or choose another port".into()
            }
            io::ErrorKind::AddrNotAvailable => {
                "that is no address of this machine; choose for example 127.0.0.1".into()
            }
            io::ErrorKind::PermissionDenied => "not allowed; choose a port above 1023".into(),
            _ => format!("cannot listen: {error}"),
        };
        Error::Listen { publish: publish.to_string(), problem }
    })
}

/// Listens on the host's loopback for the dashboard: at the control plane's own port, else, where
/// another has it, at any.
///
/// # Errors
/// Where the host has no loopback.
pub async fn listen_for_dashboard() -> io::Result<TcpListener> {
    let at = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    match at(ports::CONTROL_PLANE_ADMIN).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => at(0).await,
        listener => listener,
    }
}

/// The host's side: carries each connection to the stage.
pub async fn carry(listener: TcpListener, publish: Publish, socket: PathBuf) {
    let (service, namespace, port) = publish.target;
    carry_to(listener, format!("{service}.{namespace}:{port}"), socket).await;
}

/// The same to the control plane's admin endpoint.
pub async fn carry_dashboard(listener: TcpListener, socket: PathBuf) {
    carry_to(listener, DASHBOARD.to_owned(), socket).await;
}

async fn carry_to(listener: TcpListener, target: String, socket: PathBuf) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (target, socket) = (target.clone(), socket.clone());
        tokio::spawn(async move {
            let mut stage = UnixStream::connect(socket).await?;
            let length = u8::try_from(target.len()).unwrap_or(0);
            stage.write_u8(length).await?;
            stage.write_all(target.as_bytes()).await?;
            // How it ends concerns its two ends alone.
            copy_bidirectional(&mut client, &mut stage).await
        });
    }
}

/// The stage's side: connects to a ready pod behind the Service, the next one each time.
///
/// # Errors
/// Where the socket cannot be made.
pub async fn serve(cluster: Cluster, socket: PathBuf) -> Result<(), Error> {
    let listener = UnixListener::bind(&socket).doing(|| format!("make {}", socket.display()))?;
    let mut turn = 0_usize;
    loop {
        let Ok((mut host, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        turn = turn.wrapping_add(1);
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let length = host.read_u8().await?;
            let mut target = vec![0; usize::from(length)];
            host.read_exact(&mut target).await?;
            let target = String::from_utf8_lossy(&target).into_owned();
            let address = destination(&target, turn, || cluster.table());
            // To close the connection is all the answer that bytes allow.
            let address = address.map_err(|problem| {
                cluster.warn_once(format!("published {target}: {problem}"));
                io::ErrorKind::ConnectionRefused
            })?;
            let mut pod = timeout(CONNECT, TcpStream::connect(address)).await??;
            copy_bidirectional(&mut host, &mut pod).await
        });
    }
}

fn destination(
    target: &str,
    turn: usize,
    table: impl FnOnce() -> Table,
) -> Result<SocketAddr, String> {
    if target == DASHBOARD {
        return Ok((NODE, ports::CONTROL_PLANE_ADMIN).into());
    }
    let parsed = parse(target).ok_or("it cannot be read")?;
    choose(&table(), &parsed, turn)
}

fn choose(table: &Table, wanted: &Target, turn: usize) -> Result<SocketAddr, String> {
    let (service, port) = target(table, wanted).map_err(|missing| missing.problem)?;
    let pods = service.ready().filter_map(|pod| Some((pod.address, pod.target(port)?)));
    let pods: Vec<_> = pods.collect();
    let turn = turn.checked_rem(pods.len()).ok_or("no ready pod is behind it")?;
    Ok(pods[turn].into())
}

/// What a target lacks.
struct Missing {
    problem: String,
    known: Vec<String>,
}

fn target<'a>(table: &'a Table, wanted: &Target) -> Result<(&'a Entry, &'a Port), Missing> {
    let (service, namespace, port) = wanted;
    let found = table.service(namespace, service).ok_or_else(|| Missing {
        problem: format!("there is no Service {service:?} in namespace {namespace:?}"),
        known: table.services.iter().map(|s| format!("{}.{}", s.key.1, s.key.0)).collect(),
    })?;
    let number = found.port(port).ok_or_else(|| Missing {
        problem: format!("Service {namespace}/{service} has no port {port:?}"),
        known: found.ports.iter().map(|p| p.port.to_string()).collect(),
    })?;
    Ok((found, number))
}

fn parse(target: &str) -> Option<Target> {
    let (name, port) = target.rsplit_once(':')?;
    let (service, namespace) = name.split_once('.').unwrap_or((name, "default"));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Some((some(service)?, some(namespace)?, some(port)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        let publish: Publish = "127.0.0.1:8080=web.shop:80".parse().unwrap();
        assert_eq!(publish.listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(publish.target, ("web".into(), "shop".into(), "80".into()));
        let publish: Publish = "[::1]:0=web:http".parse().unwrap();
        assert_eq!(publish.target, ("web".into(), "default".into(), "http".into()));
        for bad in ["", "8080=web:80", "127.0.0.1:80", "127.0.0.1:80=web", "127.0.0.1:80=:80"] {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }

    fn web() -> Service {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"ports": [{"name": "http", "port": 80}]}
        }))
        .unwrap()
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        let check = |target: &str| {
            let publish: Publish = format!("127.0.0.1:8080={target}").parse().unwrap();
            publish.check(&[web()]).map_err(|error| error.to_string())
        };
        assert_eq!(check("web.shop:80"), Ok(()));
        assert_eq!(check("web.shop:http"), Ok(()));
        assert_eq!(
            check("wbe.shop:80").unwrap_err(),
            "--publish 127.0.0.1:8080=wbe.shop:80: there is no Service \"wbe\" in namespace \
             \"shop\"; there are: web.shop"
        );
        assert_eq!(
            check("web.shop:81").unwrap_err(),
            "--publish 127.0.0.1:8080=web.shop:81: Service shop/web has no port \"81\"; there \
             are: 80"
        );
    }

    #[test]
    fn a_service_that_vanishes_or_has_no_pod_is_told_apart() {
        let wanted = parse("web.shop:80").unwrap();
        let table = Table { services: vec![Entry::new(&web(), None)] };
        assert_eq!(choose(&table, &wanted, 7).unwrap_err(), "no ready pod is behind it");
        let gone = choose(&Table::default(), &wanted, 7).unwrap_err();
        assert_eq!(gone, "there is no Service \"web\" in namespace \"shop\"");
    }

    #[test]
    fn the_dashboard_is_the_control_planes_whatever_services_are_called() {
        let service = |name: &str| {
            let mut service = web();
            service.metadata.name = Some(name.to_owned());
            Table { services: vec![Entry::new(&service, None)] }
        };
        let to = |target: &str| destination(target, 0, || service(DASHBOARD));
        assert_eq!(to("dashboard"), Ok("10.244.0.1:9990".parse().unwrap()));
        assert_eq!(to("dashboard.shop:80").unwrap_err(), "no ready pod is behind it");
    }

    #[tokio::test]
    async fn a_second_mesh_has_its_dashboard_at_another_port() {
        let one = listen_for_dashboard().await.unwrap().local_addr().unwrap();
        let held = listen_for_dashboard().await.unwrap();
        let two = listen_for_dashboard().await.unwrap();
        assert_ne!(held.local_addr().unwrap(), two.local_addr().unwrap());
        assert!(one.ip().is_loopback());
    }

    #[tokio::test]
    async fn a_port_in_use_is_one_reason_with_its_mend() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let publish = format!("{address}=web.shop:80").parse().unwrap();
        assert_eq!(
            listen(&publish).await.unwrap_err().to_string(),
            format!(
                "--publish {address}=web.shop:80: the port is in use; end the other program or \
                 choose another port"
            )
        );
    }
}
