//! What a Service's policy says, parsed: the vocabulary that discovery fills in and the request
//! path decides with.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use http::{HeaderName, Method};

use super::{affinity, token};
use crate::fields::Fields;

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Peak EWMA over power of two choices.
    #[default]
    PeakEwma,
    /// Fewest requests in flight over power of two choices.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Uniformly at random.
    Random,
    /// By consistent hashing of what [`BalancerPolicy::hash_on`] names. A request that lacks it is
    /// balanced by peak EWMA.
    RingHash,
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HashOn {
    /// A field of its head; of several the first.
    Header(HeaderName),
    /// A cookie.
    Cookie(Box<str>),
    /// The address that the connection came from, without its port. In a sidecar that is the pod's
    /// own, so that all of a pod's requests go to one endpoint.
    #[default]
    ClientAddress,
}

impl HashOn {
    /// The key of a request; `None` where it lacks the field or cookie, or where that is empty. A
    /// connection carried as bytes has no fields.
    #[must_use]
    pub fn key(&self, fields: Option<&impl Fields>, client: IpAddr) -> Option<u64> {
        let bytes = match self {
            Self::ClientAddress => return Some(token::hash_address(client)),
            Self::Header(name) => fields?.get(name)?,
            Self::Cookie(name) => affinity::cookie(fields?, name)?,
        };
        (!bytes.is_empty()).then(|| token::hash(bytes.iter().copied()))
    }
}

/// Keeps a client at the endpoint that it had, whatever the algorithm, while it can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affinity {
    /// By a cookie that the proxy sets.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// How long the client keeps it; `None`: until its session ends.
        timeout: Option<Duration>,
    },
    /// By a field that the proxy adds to responses and the client sends back (GEP-1619).
    Header {
        /// Its name.
        name: HeaderName,
    },
    /// By the address that the connection came from.
    ClientAddress {
        /// For how long after the last use.
        timeout: Duration,
    },
}

/// Parameters of the balancer.
#[derive(Debug, Clone, PartialEq)]
pub struct BalancerPolicy {
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// For [`Algorithm::RingHash`].
    pub hash_on: HashOn,
    /// Time in which the share of an endpoint that joined grows from a tenth to all of it; zero
    /// switches it off. Not for [`Algorithm::RingHash`].
    pub slow_start: Duration,
    /// Round-trip time assumed of an endpoint that has not answered yet.
    pub default_rtt: Duration,
    /// Time constant by which old observations fade.
    pub decay: Duration,
    /// Latency that a failed request counts as, at least; zero switches it off.
    pub failure_penalty: Duration,
}

impl Default for BalancerPolicy {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::PeakEwma,
            hash_on: HashOn::default(),
            slow_start: Duration::ZERO,
            default_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
            failure_penalty: Duration::from_secs(5),
        }
    }
}

/// When an endpoint is taken out of balancing, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerPolicy {
    /// Failures in a row that open the breaker; 0 switches this rule off.
    pub consecutive_failures: u32,
    /// First penalty; it doubles from trip to trip up to `max_penalty`.
    pub min_penalty: Duration,
    /// Longest penalty.
    pub max_penalty: Duration,
    /// Share (0 to 1) by which a penalty is lengthened at random.
    pub jitter_ratio: f64,
    /// Share of successes (0 to 1) below which the breaker opens; 0 switches this rule off.
    pub success_rate_threshold: f64,
    /// Window of the success rate.
    pub success_rate_window: Duration,
    /// Requests in the window below which the success rate says nothing.
    pub success_rate_min_requests: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            consecutive_failures: 7,
            min_penalty: Duration::from_secs(1),
            max_penalty: Duration::from_secs(60),
            jitter_ratio: 0.5,
            success_rate_threshold: 0.0,
            success_rate_window: Duration::from_secs(10),
            success_rate_min_requests: 5,
        }
    }
}

/// What is sent again although it may have reached an application.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// HTTP statuses.
    pub http: Vec<RangeInclusive<u16>>,
    /// gRPC codes.
    pub grpc: Vec<u32>,
    /// Attempts that brought no answer, whatever status stands for that.
    pub unanswered: bool,
    /// Sends beyond the first.
    pub limit: u32,
    /// Time that one attempt may take until its response head.
    pub per_try_timeout: Option<Duration>,
    /// Which methods may be sent again.
    pub methods: RetryMethods,
    /// Pause before the first retry, before jitter; it doubles from retry to retry.
    pub backoff: Duration,
    /// Longest pause; not below the first.
    pub max_backoff: Duration,
    /// Bound on the share of retries.
    pub budget: BudgetPolicy,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            grpc: Vec::new(),
            unanswered: false,
            limit: 0,
            per_try_timeout: None,
            methods: RetryMethods::default(),
            backoff: Duration::from_millis(25),
            max_backoff: Duration::from_millis(250),
            budget: BudgetPolicy::default(),
        }
    }
}

/// Which methods may be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RetryMethods {
    /// The idempotent ones (RFC 9110 §9.2.2): GET, HEAD, OPTIONS, TRACE, PUT, DELETE; and any
    /// other where the request has an `Idempotency-Key`.
    #[default]
    Idempotent,
    /// Every method: the route's owner says that it is safe.
    All,
    /// These.
    Only(Vec<Method>),
}

/// Bound on retries, per proxy and Service.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetPolicy {
    /// Retries per request.
    pub ratio: f64,
    /// Retries per second that are always allowed.
    pub min_per_second: f64,
    /// Window over which requests count.
    pub window: Duration,
}

impl Default for BudgetPolicy {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10.0, window: Duration::from_secs(10) }
    }
}

/// Time-outs; `None` is no bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutPolicy {
    /// From the request's head to the end of the response.
    pub request: Option<Duration>,
    /// From the end of the request to the response's head.
    pub response: Option<Duration>,
    /// Longest pause in either body.
    pub idle: Option<Duration>,
    /// One attempt, from when it is sent to the end of its response.
    pub backend_request: Option<Duration>,
    /// Establishing a connection, TLS included.
    pub connect: Duration,
}

impl Default for TimeoutPolicy {
    fn default() -> Self {
        Self {
            request: None,
            response: None,
            idle: None,
            backend_request: None,
            connect: Duration::from_secs(1),
        }
    }
}

/// What of one Service may be going on in this proxy at a time; `None` is no bound. Beyond a bound
/// requests wait for their turn, as many and as long as allowed, and are refused then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bulkheads {
    /// Connections to all of its endpoints together.
    pub max_connections: Option<u32>,
    /// Requests; for opaque TCP connections.
    pub max_in_flight: Option<u32>,
    /// Requests that wait for their turn; zero: none waits.
    pub max_pending: u32,
    /// How long one waits.
    pub pending_timeout: Duration,
}

impl Default for Bulkheads {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_in_flight: None,
            max_pending: 0,
            pending_timeout: Duration::from_secs(1),
        }
    }
}

/// All of it for one Service port.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// How endpoints are chosen.
    pub balancer: BalancerPolicy,
    /// Who keeps the endpoint that it had; `None`: nobody.
    pub affinity: Option<Affinity>,
    /// When they are ejected; `None`: never.
    pub breaker: Option<BreakerPolicy>,
    /// What is retried; `None`: only what provably never ran.
    pub retry: Option<RetryPolicy>,
    /// Time-outs.
    pub timeouts: TimeoutPolicy,
    /// How much at a time.
    pub bulkheads: Bulkheads,
    /// Who is near.
    pub topology: Topology,
}

/// Which endpoints are near ([`super::pick`] says what comes of that).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// By what.
    pub prefer: Prefer,
    /// Node of this proxy; empty if unknown.
    pub node: Box<str>,
    /// Its topology zone; empty if unknown.
    pub zone: Box<str>,
}

/// What makes an endpoint near (Kubernetes' `trafficDistribution`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// Nothing.
    #[default]
    Any,
    /// To be in the same zone.
    SameZone,
    /// To be on the same node; where none is, to be in the same zone.
    SameNode,
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::*;

    #[test]
    fn a_key_is_what_the_policy_names_and_absent_where_the_request_lacks_it() {
        let client = IpAddr::from([10, 0, 0, 9]);
        let mut headers = HeaderMap::new();
        headers.append("x-user", HeaderValue::from_static("alice"));
        headers.append("x-user", HeaderValue::from_static("bob"));
        headers.insert("x-empty", HeaderValue::from_static(""));
        headers.insert(header::COOKIE, HeaderValue::from_static("a=1; cart=alice"));
        let header = |name| HashOn::Header(HeaderName::from_static(name));
        let alice = Some(token::hash("alice".bytes()));
        for (on, key) in [
            (header("x-user"), alice),
            (header("x-empty"), None),
            (header("x-other"), None),
            (HashOn::Cookie("cart".into()), alice),
            (HashOn::Cookie("car".into()), None),
        ] {
            assert_eq!(on.key(Some(&headers), client), key, "{on:?}");
            assert_eq!(on.key(None::<&HeaderMap>, client), None);
        }
        let mapped = "::ffff:10.0.0.9".parse().unwrap();
        let by_address = HashOn::ClientAddress.key(None::<&HeaderMap>, client);
        assert!(by_address.is_some());
        assert_eq!(by_address, HashOn::ClientAddress.key(Some(&headers), mapped));
    }
}
