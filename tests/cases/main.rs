//! End-to-end cases.

mod corpus;
mod dashboard;
mod kube;
mod policy;
mod proxy;
mod routes;
mod services;
mod up;
