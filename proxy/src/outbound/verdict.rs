//! What a response, or the lack of one, says about its endpoint.

use std::time::Duration;

use http::{HeaderName, StatusCode, header};
use remora_core::names::headers::PROXY_ERROR;

use super::call::Answer;
use crate::{
    balance::{
        retry::{Answer as Seen, Sent},
        stats::{FailureKind, Outcome},
    },
    discovery::Endpoint,
    error::{Error, Reason},
    fields::Fields,
    http::answer::grpc_status,
};

static GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
static REASON: HeaderName = HeaderName::from_static(PROXY_ERROR);

/// What the client would see.
pub(super) fn seen_by_client(answer: &impl Answer, grpc: bool) -> Seen {
    match grpc_status(answer.fields()).filter(|_| grpc) {
        Some(code) => Seen::Grpc(code),
        None => Seen::Http(answer.status()),
    }
}

/// What a response's head says; `None` where gRPC says it in the trailers.
pub(super) fn outcome(answer: &impl Answer, grpc: bool) -> Option<Outcome> {
    let fields = answer.fields();
    if grpc && answer.status() == StatusCode::OK {
        return grpc_status(fields).map(|code| grpc_outcome(code, fields));
    }
    Some(match answer.status() {
        StatusCode::TOO_MANY_REQUESTS => {
            Outcome::Failure(FailureKind::RateLimited { retry_after: retry_after(fields) })
        }
        status if status.is_server_error() => {
            Outcome::Failure(FailureKind::ServerError { retry_after: retry_after(fields) })
        }
        _ => Outcome::Success,
    })
}

/// What an attempt without a response says.
pub(super) fn failure(error: &Error) -> Outcome {
    match error {
        // Our own doing: the endpoint was not even asked.
        Error::NoCertificate { .. } | Error::Overloaded(_) => Outcome::Cancelled,
        _ if error.status() == StatusCode::GATEWAY_TIMEOUT => {
            Outcome::Failure(FailureKind::TimedOut)
        }
        _ => Outcome::Failure(FailureKind::Transport),
    }
}

/// What a gRPC status says of the endpoint: DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and DATA_LOSS
/// blame it.
pub(super) fn grpc_outcome(code: u32, fields: &impl Fields) -> Outcome {
    let retry_after = fields.get(&GRPC_PUSHBACK).and_then(number).map(Duration::from_millis);
    match code {
        8 => Outcome::Failure(FailureKind::RateLimited { retry_after }),
        4 | 13 | 14 | 15 => Outcome::Failure(FailureKind::ServerError { retry_after }),
        _ => Outcome::Success,
    }
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3). The form with a date is rare and not followed.
fn retry_after(fields: &impl Fields) -> Option<Duration> {
    fields.get(&header::RETRY_AFTER).and_then(number).map(Duration::from_secs)
}

fn number<N: std::str::FromStr>(value: &[u8]) -> Option<N> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The inbound proxy of an endpoint says that the request did not get through to the application.
pub(super) fn not_delivered(endpoint: &Endpoint, fields: &impl Fields) -> Option<Error> {
    let reason = said_by_proxy(endpoint, fields)?;
    matches!(reason, Reason::ConnectFailed | Reason::ConnectTimeout | Reason::Overloaded)
        .then_some(Error::NotDelivered { addr: endpoint.addr, reason })
}

/// Whether an answer is the application's. Where its connection broke, the inbound proxy of the endpoint
/// answers in its place, and that is no more of an answer than a connection of ours that breaks.
pub(super) fn sent(endpoint: &Endpoint, fields: &impl Fields) -> Sent {
    match said_by_proxy(endpoint, fields) {
        Some(Reason::UpstreamReset) => Sent::Maybe,
        _ => Sent::Yes,
    }
}

/// Why the inbound proxy of an endpoint answered in the application's place. Only a peer that proved its
/// identity is believed.
fn said_by_proxy(endpoint: &Endpoint, fields: &impl Fields) -> Option<Reason> {
    endpoint.identity.as_ref()?;
    Reason::from_word(fields.get(&REASON)?)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use remora_proto::v1 as pb;

    use super::*;

    fn endpoint(identity: &str) -> Endpoint {
        let address = Some(pb::SocketAddress { ip: vec![10, 0, 0, 1], port: 80 });
        let identity = identity.to_owned();
        let wire = pb::Endpoint { address, identity, ..pb::Endpoint::default() };
        Endpoint::parse(&wire, tokio::time::Instant::now().into_std()).unwrap()
    }

    #[test]
    fn an_answer_is_the_applications_unless_its_proxy_says_that_the_connection_broke() {
        let meshed = endpoint("spiffe://cluster.local/ns/shop/sa/orders");
        let saying =
            |word| HeaderMap::from_iter([(REASON.clone(), HeaderValue::from_static(word))]);
        assert_eq!(sent(&meshed, &saying("upstream-reset")), Sent::Maybe);
        assert_eq!(sent(&meshed, &saying("denied")), Sent::Yes);
        assert_eq!(sent(&meshed, &HeaderMap::new()), Sent::Yes);
        // Nobody vouches for what a stranger says.
        assert_eq!(sent(&endpoint(""), &saying("upstream-reset")), Sent::Yes);
    }
}
