//! What a Service's policy says, parsed: the vocabulary that discovery fills in and the request
//! path decides with.

use std::{ops::RangeInclusive, time::Duration};

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
}

/// Parameters of the balancer.
#[derive(Debug, Clone, PartialEq)]
pub struct BalancerPolicy {
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
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
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RetryPolicy {
    /// HTTP statuses.
    pub http: Vec<RangeInclusive<u16>>,
    /// gRPC codes.
    pub grpc: Vec<u32>,
    /// Sends beyond the first.
    pub limit: u32,
    /// Time that one attempt may take until its response head.
    pub per_try_timeout: Option<Duration>,
    /// Which methods may be sent again.
    pub methods: RetryMethods,
    /// Bound on the share of retries.
    pub budget: BudgetPolicy,
}

/// Which methods may be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RetryMethods {
    /// The idempotent ones (RFC 9110 §9.2.2): GET, HEAD, OPTIONS, TRACE, PUT, DELETE.
    #[default]
    Idempotent,
    /// Every method: the route's owner says that it is safe.
    All,
    /// These.
    Only(Vec<http::Method>),
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
    /// Establishing a connection, TLS included.
    pub connect: Duration,
}

impl Default for TimeoutPolicy {
    fn default() -> Self {
        Self { request: None, response: None, idle: None, connect: Duration::from_secs(1) }
    }
}

/// All of it for one Service port.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// How endpoints are chosen.
    pub balancer: BalancerPolicy,
    /// When they are ejected; `None`: never.
    pub breaker: Option<BreakerPolicy>,
    /// What is retried; `None`: only what provably never ran.
    pub retry: Option<RetryPolicy>,
    /// Time-outs.
    pub timeouts: TimeoutPolicy,
}
