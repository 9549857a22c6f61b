//! What happened to single requests: `/decisions` and `/tap`.

use std::{convert::Infallible, net::SocketAddr};

use axum::{
    Json,
    body::Body,
    extract::{ConnectInfo, Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::{sync::broadcast::error::RecvError, time::Instant};

use super::View;
use crate::sight::{Heard, MAX_FAILURES, MAX_OTHERS, filter::Filter};

/// The filter of a query string, or what is wrong with it.
fn filter(query: Result<Query<Filter>, QueryRejection>) -> Result<Filter, (StatusCode, String)> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, format!("{why}\n"));
    let Query(filter) = query.map_err(|rejected| bad(rejected.body_text()))?;
    filter.check().map_err(bad)?;
    Ok(filter)
}

/// The last ones. From elsewhere than the pod itself only failures: what others call and how it went
/// is for those who may forward a port to the pod.
pub(super) async fn last(
    State(view): State<View>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    query: Result<Query<Filter>, QueryRejection>,
) -> Response {
    let mut filter = match filter(query) {
        Ok(filter) => filter,
        Err(bad) => return bad.into_response(),
    };
    if !peer.ip().to_canonical().is_loopback() {
        filter.failed = Some(true);
    }
    let limit = filter.limit.unwrap_or(MAX_FAILURES + MAX_OTHERS);
    let decisions = view.sight.newest_first(&filter, limit, Instant::now());
    Json(json!({ "decisions": decisions })).into_response()
}

/// Those that are made from now on, a JSON object a line, until the client goes or so many as it asked
/// for were there. One that listens too slowly misses some, and reads how many.
pub(super) async fn tap(
    State(view): State<View>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    query: Result<Query<Filter>, QueryRejection>,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let why = "requests are shown to loopback only: forward a port to the pod\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let filter = match filter(query) {
        Ok(filter) => filter,
        Err(bad) => return bad.into_response(),
    };
    let left = filter.limit.unwrap_or(usize::MAX);
    let drain = view.drain.clone();
    let lines = stream::unfold((view.sight.listen(), left), move |(mut heard, left)| {
        let (filter, drain) = (filter.clone(), drain.clone());
        async move {
            if left == 0 {
                return None;
            }
            let line = tokio::select! {
                line = next(&mut heard, &filter) => line?,
                // A drain is not held up by somebody who listens.
                () = drain.draining() => return None,
            };
            Some((Ok::<_, Infallible>(line), (heard, left - 1)))
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn next(heard: &mut Heard, filter: &Filter) -> Option<Bytes> {
    loop {
        let line = match heard.next().await {
            Ok(decision) if filter.passes(&decision) => serde_json::to_vec(&*decision).ok()?,
            Ok(_) => continue,
            Err(RecvError::Lagged(missed)) => json!({ "missed": missed }).to_string().into_bytes(),
            Err(RecvError::Closed) => return None,
        };
        return Some([&line[..], b"\n"].concat().into());
    }
}
