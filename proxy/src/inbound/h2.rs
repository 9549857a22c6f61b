//! HTTP/2 requests for the application, gRPC among them.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use remora_core::names::headers::CLIENT_ID;
use tokio::time::Instant;

use super::{
    CONNECT,
    http::{Requests, Told, promised},
};
use crate::{
    error::{Error, Sent},
    http::{
        answer::{grpc_status, is_grpc},
        h2::{
            body::{End, OnEnd, Origin, RequestBody, ResponseBody},
            headers::strip_ours,
            pool::Connection,
            replay::BodyError,
            request::{check, version},
            server::StreamReset,
            upgrade,
        },
    },
    metrics::{
        Direction, Tls,
        flow::{End as Ended, Finished as Given, Rpc},
    },
    net::{
        admission::{STREAMS, Stream},
        copy::Carried,
    },
    sight::story::Story,
};

/// Sends of one request whose connection turned out to be closed before a byte was written.
const MAX_SENDS: usize = 3;

/// Answers one request: with the application's response or reset, or with the proxy's own response
/// that says why there is none.
pub(super) async fn handle(
    requests: Arc<Requests>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody<Box<Held>>>, StreamReset> {
    let story = requests.begin(request.headers(), Instant::now());
    let grpc = is_grpc(request.headers());
    let head = Head { head: (request.method().clone(), request.uri().clone()), grpc, story };
    let (error, head) = match forward(&requests, request, head).await {
        Ok(response) => return Ok(response),
        Err(failed) => failed,
    };
    if let Error::StreamReset { code, .. } = error {
        requests.reset(head.told(), &error);
        return Err(code.into());
    }
    Ok(requests.failed(head.told(), &error).map(ResponseBody::made))
}

async fn forward(
    requests: &Arc<Requests>,
    mut request: Request<Incoming>,
    head: Head,
) -> Result<Response<ResponseBody<Box<Held>>>, (Error, Head)> {
    let connect = request.method() == Method::CONNECT;
    let downstream = connect.then(|| hyper::upgrade::on(&mut request));
    let mut waiting = Waiting { requests, head: &head, over: false };
    let answered = ask(requests, request).await;
    waiting.over = true;
    drop(waiting);
    let (mut response, connection, stream) = match answered {
        Ok(answered) => answered,
        Err(error) => return Err((error, head)),
    };
    // Callers believe what our headers say, so only this proxy may set them.
    strip_ours(response.headers_mut());
    let rpc = match head.grpc {
        true => grpc_status(response.headers()).map_or(Rpc::Unsaid, Rpc::Said),
        false => Rpc::No,
    };
    let given = promised(response.status(), rpc, &head.story);
    let from = Origin { grpc: head.grpc, proxy: false };
    let held = Box::new(Held {
        requests: Arc::clone(requests),
        head,
        given,
        _connection: connection,
        _stream: stream,
    });
    if let Some(downstream) = downstream.filter(|_| response.status().is_success()) {
        requests.over(held.head.told(), &given);
        let upstream = hyper::upgrade::on(&mut response);
        tunnel(requests, downstream, upstream, held);
        return Ok(response.map(|_| ResponseBody::made(Bytes::new())));
    }
    let from = (from, Arc::clone(requests.bodies()));
    Ok(response.map(|body| ResponseBody::upstream((None, body), held, from)))
}

/// The application's response to a request that is let in.
async fn ask(
    requests: &Requests,
    mut request: Request<Incoming>,
) -> Result<(Response<Incoming>, Connection, Stream), Error> {
    let stream = requests.inbound.admission.stream().ok_or(Error::Overloaded(STREAMS))?;
    requests.admit(request.uri().path())?;
    check(&request, requests.inbound.max_head(&requests.arrival)).map_err(Error::Refused)?;
    *request.version_mut() = version(request.uri());
    if requests.arrival.tls != Tls::Mutual {
        // What a proxy of ours set stays, what anyone else pretends does not.
        strip_ours(request.headers_mut());
    }
    request.headers_mut().remove(CLIENT_ID);
    if let Some(id) = &requests.client_id {
        request.headers_mut().insert(CLIENT_ID, id.clone());
    }
    let (response, connection) = send(requests, request).await?;
    Ok((response, connection, stream))
}

/// What is left of a request once it is sent.
struct Head {
    head: (Method, Uri),
    grpc: bool,
    story: Story,
}

impl Head {
    fn told(&self) -> Told<'_> {
        Told { head: &self.head, grpc: self.grpc, story: &self.story }
    }
}

/// Somebody waits for a response. Dropped before it is over, nobody polls the request any more: its stream
/// was reset, or its connection ended.
struct Waiting<'a> {
    requests: &'a Requests,
    head: &'a Head,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.requests.left(self.head.told());
        }
    }
}

/// What lasts as long as a response.
pub(super) struct Held {
    requests: Arc<Requests>,
    head: Head,
    /// What is counted where the response ends well.
    given: Given,
    _connection: Connection,
    /// Its place among the process's streams.
    _stream: Stream,
}

impl OnEnd for Box<Held> {
    fn on_end(mut self, end: End<'_>) {
        if let (Rpc::Unsaid, End::Complete(Some(trailers))) = (self.given.rpc, &end) {
            self.given.rpc = grpc_status(*trailers).map_or(Rpc::Unsaid, Rpc::Said);
        }
        let Held { requests, head, given, .. } = &*self;
        match end {
            End::Complete(_) => drop(requests.over(head.told(), given)),
            End::Broken(error @ BodyError::Upstream(_)) => {
                let (addr, detail) = (requests.arrival.app, error.to_string());
                let error = Error::UpstreamReset { addr, detail, sent: Sent::Yes };
                requests.failed_late(head.told(), given, &error);
            }
            End::Broken(_) | End::Dropped => {
                requests.over(head.told(), &given.ended(Ended::Cancelled));
            }
        }
    }
}

/// Carries the bytes of a `CONNECT` on a task of its own.
fn tunnel(requests: &Requests, down: OnUpgrade, up: OnUpgrade, held: Box<Held>) {
    let inbound = Arc::clone(&requests.inbound);
    let drain = inbound.drain.clone();
    tokio::spawn(drain.track(async move {
        let mut carried = Carried::default();
        if let Err(error) = upgrade::carry(down, up, None, &mut carried).await {
            tracing::debug!(%error, "tunnel broke");
        }
        inbound.metrics.carried(Direction::Inbound, carried.a_to_b, carried.b_to_a);
        drop(held);
    }));
}

/// Sends to the application, over another connection where one was closed before a byte was written.
async fn send(
    requests: &Requests,
    request: Request<Incoming>,
) -> Result<(Response<Incoming>, Connection), Error> {
    let (inbound, addr) = (&requests.inbound, requests.arrival.app);
    let mut request = request.map(|body| {
        if body.is_end_stream() {
            RequestBody::Empty
        } else {
            RequestBody::Streaming(body, Arc::clone(requests.bodies()))
        }
    });
    let mut sends = 0;
    loop {
        let mut connection = match inbound.shared.get(&addr) {
            Some(connection) => connection,
            None => {
                let dial = || inbound.connector.connect(addr, CONNECT);
                inbound.shared.open(&addr, dial).await?
            }
        };
        sends += 1;
        match connection.send(request).await {
            Ok(response) => return Ok((response, connection)),
            // The caller's proxy still has the request and may try again, elsewhere if it can.
            Err(failed) if failed.refused() => {
                return Err(Error::Overloaded("the application refused the request"));
            }
            Err(failed) => {
                let (reset, detail) = (failed.reset(), failed.error.to_string());
                match failed.unsent {
                    Some(unsent) if sends < MAX_SENDS => request = unsent,
                    Some(_) => {
                        return Err(Error::UpstreamReset { addr, detail, sent: Sent::No });
                    }
                    None => {
                        return Err(match reset {
                            Some(code) => Error::StreamReset { addr, code },
                            None => Error::UpstreamReset { addr, detail, sent: Sent::Maybe },
                        });
                    }
                }
            }
        }
    }
}
