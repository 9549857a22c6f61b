//! End-to-end cases.

mod corpus;
mod dashboard;
mod kube;
mod monitoring;
mod policy;
mod proxy;
mod routes;
mod services;
mod up;
