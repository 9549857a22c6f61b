//! Choosing an endpoint, and deciding when to leave one alone: pure, no I/O, no clock, no global
//! randomness. Time and generators come in as arguments.

pub mod policy;

/// What is known of one endpoint.
#[derive(Debug)]
pub struct EndpointStats;
