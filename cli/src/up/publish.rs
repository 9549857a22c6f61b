//! Published ports: a listener on the host's loopback whose connections are carried into the
//! stage by a Unix socket in the state directory, which both sides see.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::{
    cluster::Cluster,
    error::{Doing, Error},
};

/// Time for the target to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest target, with its length in front: `service.namespace:port`.
const TARGET: u8 = 200;

/// `127.0.0.1:8080=web.shop:80`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where to listen on the host.
    pub listen: SocketAddr,
    /// Service, namespace and port's number or name.
    pub target: (String, String, String),
}

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

/// Listens on the host. Call it before the stage begins, so that a port in use is said at once.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn listen(publish: &Publish) -> Result<TcpListener, Error> {
    let address = publish.listen;
    TcpListener::bind(address).await.doing(|| format!("publish on {address}"))
}

/// The host's side: carries each connection to the stage.
pub async fn carry(listener: TcpListener, publish: Publish, socket: PathBuf) {
    let (service, namespace, port) = publish.target;
    let target = format!("{service}.{namespace}:{port}");
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
            let address = choose(&cluster, &target, turn);
            let address = address.ok_or(std::io::ErrorKind::ConnectionRefused)?;
            let mut pod = timeout(CONNECT, TcpStream::connect(address)).await??;
            copy_bidirectional(&mut host, &mut pod).await
        });
    }
}

fn choose(cluster: &Cluster, target: &str, turn: usize) -> Option<SocketAddr> {
    let (service, namespace, port) = parse(target)?;
    let table = cluster.table();
    let service = table.service(&namespace, &service)?;
    let port = service.port(&port)?;
    let pods: Vec<_> = service.ready().collect();
    let pod = pods.get(turn.checked_rem(pods.len())?)?;
    Some(SocketAddr::from((pod.address, pod.target(port)?)))
}

fn parse(target: &str) -> Option<(String, String, String)> {
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
}
