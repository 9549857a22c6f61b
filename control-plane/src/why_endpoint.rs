//! `GET /why-endpoint?address=ADDRESS:PORT`: what an address is to its Services and since when, and
//! which proxies were told of them.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use axum::{
    Json,
    extract::{Query, State as Extract, rejection::QueryRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use crate::{
    discovery::{Push, State},
    index::Known,
    moment::Moment,
};

/// Most proxies that are told of each port of a Service.
const MAX_PUSHES: usize = 200;

/// What the page is made of.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) state: Arc<State>,
    pub(crate) clock: fn() -> SystemTime,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    address: String,
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    address: SocketAddr,
    services: Vec<Standing>,
}

/// What the address is to one port of a Service.
#[derive(Debug, Serialize)]
struct Standing {
    namespace: String,
    name: String,
    port: u16,
    state: &'static str,
    /// Of the change that made it so, in Unix milliseconds.
    event_ms: Option<u64>,
    pushes: Vec<Told>,
    /// Proxies that were told beside those.
    pushes_left_out: usize,
}

/// The last message about the Service's port to a proxy.
#[derive(Debug, Serialize)]
struct Told {
    namespace: String,
    pod: String,
    sent_ms: u64,
    acked_ms: Option<u64>,
}

/// The page.
pub(crate) async fn page(
    Extract(View { state, clock }): Extract<View>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Explanation>, (StatusCode, &'static str)> {
    let address = asked.ok().and_then(|Query(asked)| asked.address.parse().ok());
    let address = address
        .ok_or((StatusCode::BAD_REQUEST, "ask for ?address=10.0.0.1:80 or [fd00::1]:80\n"))?;
    let known = state.read(|index| index.standings(address));
    let services = known.into_iter().map(|known| {
        let pushes = state.pushes(&known.service, known.port);
        (known, pushes)
    });
    Ok(Json(explain(address, services, &Moment::at(clock()))))
}

/// Those who have not confirmed come first: they are what one looks for.
fn explain(
    address: SocketAddr,
    services: impl Iterator<Item = (Known, Vec<Push>)>,
    moment: &Moment,
) -> Explanation {
    let standing = |(known, mut pushes): (Known, Vec<Push>)| {
        pushes.sort_by_key(|push| push.acked.is_some());
        let pushes_left_out = pushes.len().saturating_sub(MAX_PUSHES);
        let told = pushes.into_iter().take(MAX_PUSHES).map(|push| Told {
            namespace: push.namespace,
            pod: push.pod,
            sent_ms: moment.unix_ms_of(push.sent),
            acked_ms: push.acked.map(|at| moment.unix_ms_of(at)),
        });
        Standing {
            namespace: known.service.namespace.to_string(),
            name: known.service.name.to_string(),
            port: known.port,
            state: known.condition.as_str(),
            event_ms: known.since.map(|since| moment.unix_ms_of(since)),
            pushes: told.collect(),
            pushes_left_out,
        }
    };
    Explanation { address, services: services.map(standing).collect() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::index::{Condition, Name};

    fn moment() -> Moment {
        // Far from the machine's start, so that there is a past.
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let now = tokio::time::Instant::now() + Duration::from_secs(1000);
        Moment { now, wall }
    }

    fn known() -> Known {
        let service = Name::new("shop", "orders");
        let since = Some(moment().now - Duration::from_secs(9));
        Known { service, port: 80, condition: Condition::Ready, since }
    }

    #[test]
    fn the_answer_says_event_message_and_confirmation_in_wall_time() {
        let moment = moment();
        let ago = |seconds| moment.now - Duration::from_secs(seconds);
        let push = |pod: &str, acked| Push {
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            sent: ago(8),
            acked,
        };
        let pushes = vec![push("a", Some(ago(7))), push("b", None)];
        let known = Known { since: Some(ago(9)), ..known() };
        let address = "10.0.0.1:80".parse().unwrap();
        let answer = explain(address, [(known, pushes)].into_iter(), &moment);
        assert_eq!(
            serde_json::to_value(answer).unwrap(),
            json!({"address": "10.0.0.1:80", "services": [{
                "namespace": "shop", "name": "orders", "port": 80, "state": "ready",
                "event_ms": 991_000,
                "pushes": [
                    {"namespace": "shop", "pod": "b", "sent_ms": 992_000, "acked_ms": null},
                    {"namespace": "shop", "pod": "a", "sent_ms": 992_000, "acked_ms": 993_000},
                ],
                "pushes_left_out": 0,
            }]})
        );
    }

    #[test]
    fn of_very_many_proxies_those_that_have_not_confirmed_are_told() {
        let moment = moment();
        let push = |n: usize| Push {
            namespace: "shop".to_owned(),
            pod: format!("p{n}"),
            sent: moment.now,
            acked: (n != 250).then_some(moment.now),
        };
        let pushes = (0..300).map(push).collect();
        let address = "10.0.0.1:80".parse().unwrap();
        let answer = explain(address, [(known(), pushes)].into_iter(), &moment);
        let service = &answer.services[0];
        assert_eq!((service.pushes.len(), service.pushes_left_out), (MAX_PUSHES, 100));
        assert_eq!((&*service.pushes[0].pod, service.pushes[0].acked_ms), ("p250", None));
    }
}
