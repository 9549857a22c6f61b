//! For tests of what records, logs and traces.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, Method, StatusCode};
use remora_proto::v1 as pb;
use tokio::time::Instant;

use super::{
    Sight, Wanted,
    finished::{About, Answered, Finished},
    story::{Attempt, Outcome, Story},
};
use crate::{
    balance::{
        choice::{By, Choice},
        retry::Verdict,
    },
    discovery::Endpoint,
    error::Error,
    metrics::Direction,
};

/// Nothing recorded, at the beginning of 2026.
pub(crate) fn sight() -> Sight {
    Sight::new(1, || NOW)
}

/// The beginning of 2026.
pub(crate) const NOW: Duration = Duration::from_secs(1_767_225_600);

/// A request that is over.
pub(crate) struct Over {
    pub(crate) direction: Direction,
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) host: Option<&'static str>,
    pub(crate) grpc: bool,
    pub(crate) result: Result<(Option<u16>, Option<u32>), Error>,
    pub(crate) left: bool,
    pub(crate) story: Story,
}

impl Over {
    /// A GET that the application answered like this, of somebody who calls `orders`.
    pub(crate) fn answered(direction: Direction, status: u16) -> Self {
        Self {
            direction,
            method: Method::GET,
            path: "/cart",
            host: Some("orders:8080"),
            grpc: false,
            result: Ok((Some(status), None)),
            left: false,
            story: Story::new(Instant::now(), &HeaderMap::new()),
        }
    }

    /// One whose client left when its response was so far.
    pub(crate) fn left(direction: Direction, status: Option<u16>) -> Self {
        Self { result: Ok((status, None)), left: true, ..Self::answered(direction, 200) }
    }

    /// One that the proxy answered.
    pub(crate) fn failed(direction: Direction, error: Error) -> Self {
        Self { result: Err(error), ..Self::answered(direction, 503) }
    }

    /// A gRPC call with this status.
    pub(crate) fn grpc(direction: Direction, code: u32) -> Self {
        Self {
            grpc: true,
            method: Method::POST,
            path: "/shop.Orders/Call",
            result: Ok((Some(200), Some(code))),
            ..Self::answered(direction, 200)
        }
    }

    /// Adds an attempt at an endpoint, which ends now.
    pub(crate) fn attempt(&mut self, port: u16, result: Outcome, verdict: Verdict) {
        let choice = Choice::plain(By::RoundRobin);
        let began = Instant::now();
        let endpoint = endpoint(port);
        self.story.tell(Attempt { endpoint, choice, other: None, began, result, verdict });
    }

    /// As it is told, an instant later.
    pub(crate) fn tell<R>(&self, told: impl FnOnce(&Finished<'_>) -> R) -> R {
        let result = self.result.as_ref().map(|(status, grpc)| Answered {
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            grpc: *grpc,
            failure: status.is_some_and(|status| status >= 500),
            left: self.left,
            wanted: Wanted { record: true, line: true, spans: true },
        });
        let app = SocketAddr::from(([10, 0, 0, 7], 8080));
        let outbound = self.direction == Direction::Outbound;
        told(&Finished {
            direction: self.direction,
            about: Some(About {
                method: &self.method,
                path: self.path,
                host: self.host,
                protocol: if self.grpc { "http/2" } else { "http/1.1" },
            }),
            grpc: self.grpc,
            target: if outbound { &"shop/orders:80" } else { &app },
            service: outbound.then_some(&"shop/orders-v2:80"),
            route: outbound.then(|| ("shop/split/0", "path begins with /".into())),
            client: Some([10, 0, 0, 1].into()),
            peer: None,
            policy: None,
            rules: None,
            story: &self.story,
            carried: None,
            result,
            ended: Instant::now(),
        })
    }
}

fn endpoint(port: u16) -> Arc<Endpoint> {
    let wire = pb::Endpoint {
        address: Some(pb::SocketAddress { ip: vec![10, 0, 0, 7], port: port.into() }),
        identity: "spiffe://cluster.local/ns/shop/sa/orders".to_owned(),
        pod: "orders-1".to_owned(),
        zone: "a".to_owned(),
        ..pb::Endpoint::default()
    };
    Arc::new(Endpoint::parse(&wire, Instant::now().into_std()).unwrap())
}
