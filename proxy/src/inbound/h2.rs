//! HTTP/2 requests for the application, gRPC among them.

use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::body::{Body as _, Incoming};
use remora_core::names::headers::CLIENT_ID;
use tokio::time::Instant;

use super::{
    CONNECT,
    http::{Facts, Requests},
};
use crate::{
    error::{Error, Sent},
    http::{
        answer::is_grpc,
        h2::{
            body::{End, OnEnd, RequestBody, ResponseBody},
            headers::strip_ours,
            pool::Connection,
            upgrade,
        },
    },
    metrics::Tls,
    net::admission::{STREAMS, Stream},
};

/// Sends of one request whose connection turned out to be closed before a byte was written.
const MAX_SENDS: usize = 3;

/// Answers one request: with the application's response, or with the proxy's own that says why not.
pub(super) async fn handle(
    requests: Arc<Requests>,
    request: Request<Incoming>,
) -> Response<ResponseBody<Held>> {
    let grpc = is_grpc(request.headers());
    let started = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    match forward(&requests, request, grpc).await {
        Ok(response) => response,
        Err(error) => {
            let facts = Facts { method: &method, path: uri.path(), grpc, started };
            requests.failed(facts, &error).map(ResponseBody::made)
        }
    }
}

async fn forward(
    requests: &Requests,
    mut request: Request<Incoming>,
    grpc: bool,
) -> Result<Response<ResponseBody<Held>>, Error> {
    let stream = requests.inbound.admission.stream().ok_or(Error::Overloaded(STREAMS))?;
    requests.admit(request.uri().path())?;
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
    let (mut response, connection) = send(requests, request).await?;
    // Callers believe what our headers say, so only this proxy may set them.
    strip_ours(response.headers_mut());
    if let Some(downstream) = downstream.filter(|_| response.status().is_success()) {
        let upstream = hyper::upgrade::on(&mut response);
        upgrade::carry(downstream, upstream, &requests.inbound.drain);
    }
    let held = Held { _connection: connection, _stream: stream };
    Ok(response.map(|body| ResponseBody::upstream(body, held, grpc)))
}

/// What lasts as long as a response.
#[derive(Debug)]
pub(super) struct Held {
    _connection: Connection,
    /// Its place among the process's streams.
    _stream: Stream,
}

impl OnEnd for Held {
    fn on_end(self, _: End<'_>) {}
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
            Err(failed) => match failed.unsent {
                Some(unsent) if sends < MAX_SENDS => request = unsent,
                unsent => {
                    return Err(Error::UpstreamReset {
                        addr,
                        detail: failed.error.to_string(),
                        sent: if unsent.is_some() { Sent::No } else { Sent::Maybe },
                    });
                }
            },
        }
    }
}
