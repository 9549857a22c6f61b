//! The balancer, the breaker and the retry budget, simulated.
//!
//! - `sim_bounds` what must hold of the proxy's code, over several seeds;
//! - `sim_files` the scenarios of docs/examples/sim hold, and would not if the policy were worse;
//! - `sim_command` the command as people run it.

#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]

mod sim_bounds;
mod sim_command;
mod sim_files;
