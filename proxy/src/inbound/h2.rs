//! HTTP/2 requests for the application, gRPC among them.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use remora_core::names::headers::CLIENT_ID;
use tokio::time::Instant;

use super::{
    CONNECT,
    http::{Facts, Requests, given},
};
use crate::{
    error::{Error, Sent},
    http::{
        answer::{grpc_status, is_grpc},
        h2::{
            body::{End, OnEnd, Origin, RequestBody, ResponseBody},
            headers::strip_ours,
            pool::Connection,
            request::{check, version},
            server::StreamReset,
            upgrade,
        },
    },
    metrics::{
        Direction, Tls,
        flow::{End as Ended, Finished, Rpc},
        trace::TraceId,
    },
    net::{
        admission::{STREAMS, Stream},
        copy::Carried,
    },
};

/// Sends of one request whose connection turned out to be closed before a byte was written.
const MAX_SENDS: usize = 3;

/// Answers one request: with the application's response or reset, or with the proxy's own response
/// that says why there is none.
pub(super) async fn handle(
    requests: Arc<Requests>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody<Held>>, StreamReset> {
    let grpc = is_grpc(request.headers());
    let started = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let error = match forward(&requests, request, grpc, started).await {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    let facts = Facts { method: &method, path: uri.path(), grpc, started };
    if let Error::StreamReset { code, .. } = error {
        requests.failed_late(facts, &error);
        requests.close_unanswered(started);
        return Err(code.into());
    }
    Ok(requests.failed(facts, &error).map(ResponseBody::made))
}

async fn forward(
    requests: &Arc<Requests>,
    mut request: Request<Incoming>,
    grpc: bool,
    started: Instant,
) -> Result<Response<ResponseBody<Held>>, Error> {
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
    let connect = request.method() == Method::CONNECT;
    let downstream = connect.then(|| hyper::upgrade::on(&mut request));
    let trace = TraceId::sampled(request.headers());
    let (mut response, connection) = send(requests, request).await?;
    // Callers believe what our headers say, so only this proxy may set them.
    strip_ours(response.headers_mut());
    let rpc = match grpc {
        true => grpc_status(response.headers()).map_or(Rpc::Unsaid, Rpc::Said),
        false => Rpc::No,
    };
    let held = Held {
        _connection: connection,
        _stream: stream,
        requests: Arc::clone(requests),
        given: Finished { trace, ..given(response.status(), rpc) },
        started,
    };
    if let Some(downstream) = downstream.filter(|_| response.status().is_success()) {
        let upstream = hyper::upgrade::on(&mut response);
        requests.close(&held.given, started);
        tunnel(requests, downstream, upstream, held);
        return Ok(response.map(|_| ResponseBody::made(Bytes::new())));
    }
    let from = Origin { grpc, proxy: false };
    Ok(response.map(|body| ResponseBody::upstream((None, body), held, from)))
}

/// What lasts as long as a response.
#[derive(Debug)]
pub(super) struct Held {
    _connection: Connection,
    /// Its place among the process's streams.
    _stream: Stream,
    requests: Arc<Requests>,
    /// What is counted where the response ends well.
    given: Finished,
    started: Instant,
}

impl OnEnd for Held {
    fn on_end(mut self, end: End<'_>) {
        let end = match end {
            End::Complete(trailers) => {
                if let (Rpc::Unsaid, Some(trailers)) = (self.given.rpc, trailers) {
                    self.given.rpc = grpc_status(trailers).map_or(Rpc::Unsaid, Rpc::Said);
                }
                Ended::Whole
            }
            End::Broken(_) => Ended::Broken,
            End::Dropped => Ended::Cancelled,
        };
        self.requests.close(&self.given.ended(end), self.started);
    }
}

/// Carries the bytes of a `CONNECT` on a task of its own.
fn tunnel(requests: &Requests, down: OnUpgrade, up: OnUpgrade, held: Held) {
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
        if body.is_end_stream() { RequestBody::Empty } else { RequestBody::Streaming(body) }
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
