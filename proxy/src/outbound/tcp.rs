//! Connections carried as bytes: opaque services, the application's own TLS, and everything that
//! is not ours.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{
    Outbound, Upstream, address_of,
    passage::{Passage, told},
};
use crate::{
    discovery::Target,
    http::Version,
    metrics::{Direction, Tls},
    net::{
        connect::Reset,
        copy::{self, Carried},
        detect::{self, Detected},
        overheard::Overheard,
        prefixed::Prefixed,
    },
    sight::{finished::Connection, story::Story},
};

/// Bytes of a server's first word that are carried at once.
const FIRST_WORD: usize = 4096;

/// Not in the mesh's world: on to where it was going, untouched.
pub(super) async fn pass_through(outbound: &Outbound, client: TcpStream, addr: SocketAddr) {
    let (story, from) = (Story::of_connection(Instant::now()), address_of(&client));
    let host: OnceLock<Box<str>> = OnceLock::new();
    let mut client = Overheard::new(client, |name| {
        outbound.metrics.passed_through.count(name);
        // It is called once.
        name.map(|name| host.set(name.into()));
    });
    let _open = outbound.metrics.connection(Direction::Outbound, Tls::Passthrough);
    // The application's own patience is the bound here, as it would be without us.
    let bound = Duration::from_secs(120);
    match outbound.connector.connect(addr, bound).await {
        Ok(mut server) => {
            let mut carried = Carried::default();
            let _ = copy::bidirectional(&mut client, &mut server, &mut carried, None).await;
            outbound.metrics.carried(Direction::Outbound, carried.a_to_b, carried.b_to_a);
            drop(client);
            let over = Connection {
                direction: Direction::Outbound,
                target: &addr,
                service: None,
                client: Some(from),
                peer: None,
                policy: None,
                story: &story,
                carried: Some(told(&carried, host.get().map(|host| &**host))),
                error: None,
            };
            outbound.sight.connection(over, Instant::now());
        }
        Err(error) => outbound.refuse(client.get_ref(), &error),
    }
}

/// Picks an endpoint, connects and carries to the end. `via`: whom a route of `upstream` leads to.
pub(super) async fn carry(
    outbound: &Outbound,
    mut client: Prefixed<TcpStream>,
    (upstream, via): (&Upstream, &Upstream),
) {
    let mut passage = Passage::new(outbound, (upstream, via), address_of(client.get_ref()));
    match passage.connect().await {
        Ok((mut server, carrying)) => {
            passage.relay(&mut client, (&mut server, &carrying), Carried::default()).await;
        }
        Err(error) => passage.refuse(client.get_ref(), &error),
    }
}

/// The client is silent: connect, to `via`, and see who speaks.
///
/// A server that does is remembered, so that the next client does not wait. A client that speaks
/// after all may still turn out to be HTTP; then the connection that was opened carries nothing
/// and closes, and requests are balanced as ever.
pub(super) async fn first_word(
    outbound: &Arc<Outbound>,
    mut client: TcpStream,
    target: Target,
    (upstream, via): (Upstream, Upstream),
) {
    let mut passage = Passage::new(outbound, (&upstream, &via), address_of(&client));
    let (mut server, carrying) = match passage.connect().await {
        Ok(connected) => connected,
        Err(error) => return passage.refuse(&client, &error),
    };
    let (mut question, mut greeting) =
        (BytesMut::with_capacity(2048), BytesMut::with_capacity(FIRST_WORD));
    let broke = |side| move |error| copy::Broken::Io { side, error };
    let spoke = tokio::select! {
        read = client.read_buf(&mut question) => {
            read.map(|_| false).map_err(broke(copy::Side::A))
        }
        read = server.read_buf(&mut greeting) => {
            read.map(|_| true).map_err(broke(copy::Side::B))
        }
        broken = silence(carrying.idle) => Err(broken),
    };
    let server_spoke = match spoke {
        Ok(server_spoke) => server_spoke,
        Err(broken) => {
            passage.over(&Carried::default(), Some(broken));
            client.reset();
            return server.reset();
        }
    };
    if server_spoke {
        if !greeting.is_empty() {
            outbound.learned.server_first(&target);
            if client.write_all(&greeting).await.is_err() {
                return server.reset();
            }
        }
        let carried = Carried { b_to_a: greeting.len() as u64, ..Carried::default() };
        drop(greeting);
        // An end without a word is found again by the copy.
        return passage.relay(&mut client, (&mut server, &carrying), carried).await;
    }
    let found = if question.is_empty() {
        Ok(Detected::Opaque)
    } else {
        detect::detect(&mut client, &mut question, detect::FIRST_BYTE).await
    };
    let version = match found {
        Ok(Detected::Http1) => Version::H1,
        Ok(Detected::Http2) => Version::H2,
        Ok(_) => {
            let mut client = Prefixed::new(question.freeze(), client);
            let both = (&mut server, &carrying);
            return passage.relay(&mut client, both, Carried::default()).await;
        }
        Err(_) => return server.reset(),
    };
    // An orderly end: the application should not take it for a client that crashed.
    let _ = server.shutdown().await;
    drop((server, carrying));
    Arc::clone(outbound).http(client, question, version, target, upstream).await;
}

/// Resolves where nobody says a first word within the bound on pauses.
async fn silence(bound: Option<Duration>) -> copy::Broken {
    let Some(after) = bound else { return pending().await };
    sleep(after).await;
    copy::Broken::Idle { after, owing: copy::Side::A }
}
